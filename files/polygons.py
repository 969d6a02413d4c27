"""Polygons, checked and cut into triangles."""

import numpy as np

from cli.errors import UserError


def surface(vertices, sizes, corners):
    """Vertices (V, 3) float64 and triangles (T, 3) int64 of polygons, as the readers of meshes.py give them."""
    if not len(sizes):
        cloud = ", or save its points as an .npy cloud (numpy.save), if one will do" if len(vertices) else ""
        raise UserError(f"the mesh has no faces; export it with triangles{cloud}")
    finite = np.isfinite(vertices).all(axis=1)
    if not finite.all():
        raise UserError(f"vertex {finite.argmin()} is not three finite numbers; export the mesh again")
    few = sizes < 3
    if few.any():
        raise UserError(f"face {few.argmax()} has only {sizes[few][0]} corners; is the file cut short? Export it again")
    missing = ~((corners >= 0) & (corners < len(vertices)) & (corners == np.floor(corners)))
    if missing.any():
        face, corner = np.repeat(np.arange(len(sizes)), sizes)[missing][0], corners[missing][0]
        raise UserError(f"face {face} refers to vertex {corner:.15g} of {len(vertices)}; export the mesh again")
    return vertices, triangulate(vertices, sizes, corners.astype(np.int64))


def triangulate(vertices, sizes, corners):
    """The triangles (T, 3) of convex polygons, in their order: n - 2 for each of n corners, around its first one.

    sizes (F,): how many corners each polygon has; corners (sum of sizes,): the vertices of all, one after the other.
    """
    begins, ends = np.cumsum(sizes) - sizes, np.cumsum(sizes - 2)  # of a polygon's corners, of its triangles
    begin = np.repeat(begins, sizes - 2)
    second = begin + np.arange(len(begin)) - np.repeat(ends - sizes + 2, sizes - 2) + 1
    points = vertices / (np.abs(vertices).max() or 1)  # so that no product of them is too large
    for size in {*sizes.tolist()} - {3}:
        numbers = np.flatnonzero(sizes == size)
        convex = is_fan(points[corners[begins[numbers, None] + np.arange(size)]])
        if not convex.all():
            raise UserError(f"face {numbers[convex.argmin()]} is not convex; export the mesh with triangles")
    return corners[np.stack([begin, second, second + 1], axis=1)]


def is_fan(points):
    """Which of polygons (m, n, 3) the triangles around their first corner cover; (m,) bool.

    All turn the same way round, but for what is under a thousandth of the polygon: coordinates are rounded.
    """
    points = points - points[:, :1]
    slices = np.cross(points[:, 1:-1], points[:, 2:])  # (m, n - 2, 3) along the normals, twice the areas long
    normal, area = slices.sum(axis=1), np.linalg.norm(slices, axis=2).sum(axis=1)  # (m, 3), (m,)
    forward = (slices * normal[:, None]).sum(axis=2) >= -1e-3 * area[:, None] ** 2  # (m, n - 2)
    return forward.all(axis=1) & (np.linalg.norm(normal, axis=1) >= 0.01 * area)
