"""Polygons of any shape, checked and cut into triangles."""

import heapq

import numpy as np

from cli.errors import UserError, refuse

CROSSES = "crosses itself; export the mesh with triangles"


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
    """The triangles (T, 3) of polygons, in their order: n - 2 for each of n corners, whether convex or not.

    sizes (F,): how many corners each polygon has; corners (sum of sizes,): the vertices of all, one after the other.
    """
    if (sizes == 3).all():
        return corners.reshape(-1, 3)
    points = vertices / (np.abs(vertices).max() or 1)  # so that no product of them is too large
    begins, ends = np.cumsum(sizes) - sizes, np.cumsum(sizes - 2)  # of a polygon's corners, of its triangles
    begin = np.repeat(begins, sizes - 2)
    second = begin + np.arange(len(begin)) - np.repeat(ends - sizes + 2, sizes - 2) + 1
    triangles = corners[np.stack([begin, second, second + 1], axis=1)]  # around each polygon's first corner
    for size in {*sizes.tolist()} - {3}:
        numbers = np.flatnonzero(sizes == size)
        polygons = corners[begins[numbers, None] + np.arange(size)]  # (m, size)
        convex = is_fan(points[polygons])
        for number, polygon in zip(numbers[~convex], polygons[~convex]):
            try:
                triangles[ends[number] - size + 2 : ends[number]] = polygon[cut_ears(points[polygon])]
            except UserError as error:
                raise UserError(f"face {number} {error}") from None
    return triangles


def is_fan(points):
    """Which of polygons (m, n, 3) the triangles around their first corner cover: all turn the same way round; (m,)."""
    points = points - points[:, :1]
    slices = np.cross(points[:, 1:-1], points[:, 2:])  # (m, n - 2, 3) along the normals, twice the areas long
    normal = slices.sum(axis=1)  # (m, 3)
    nothing = 1e-9 * np.abs(points).max(axis=(1, 2)) ** 2  # (m,)
    length = np.linalg.norm(normal, axis=1)
    forward = (slices * normal[:, None]).sum(axis=2) >= -(nothing * length)[:, None]
    empty = np.linalg.norm(slices, axis=2).max(axis=1) <= nothing
    return forward.all(axis=1) & (length > nothing) | empty


def cut_ears(points):
    """The triangles of a polygon (n, 3), one ear after the other, as triples of its corners.

    An ear is a corner that turns the polygon's way round and whose triangle holds no other corner; the first one is
    cut. `UserError` where there is none, as in a bow tie.
    """
    points = points - points[0]
    normal = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
    nothing = 1e-9 * np.abs(points).max() ** 2
    refuse(not normal.any(), CROSSES)
    normal /= max(np.linalg.norm(normal), nothing)
    across = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    across /= np.linalg.norm(across)
    flat = points @ across + 1j * (points @ np.cross(normal, across))  # in the polygon's plane

    def turn(a, b, c):
        """Twice the area of a triangle, or of many of them; negative where it turns the wrong way round."""
        return ((flat[b] - flat[a]).conjugate() * (flat[c] - flat[a])).imag

    left, ears = np.arange(len(points)), []
    before, after = np.roll(left, 1).tolist(), np.roll(left, -1).tolist()
    asked = left.tolist()  # a heap of the corners that may be ears
    hidden = [[] for _ in asked]  # the corners whose triangles hold this one
    while len(left) > 2:
        refuse(not asked, CROSSES)
        b = heapq.heappop(asked)
        a, c = before[b], after[b]
        if after[a] != b:  # cut already
            continue
        area = turn(a, b, c)
        if area > nothing:  # else on a straight line, where nothing is cut off, or turning the wrong way
            inside = (turn(a, b, left) > nothing) & (turn(b, c, left) > nothing) & (turn(c, a, left) >= -nothing)
            if inside.any():  # also on the side from c to a, where the cut is
                hidden[left[inside.argmax()]].append(b)
                continue
        if area >= -nothing:
            ears.append((a, b, c))
            left = left[left != b]
            after[a], before[c] = c, a
            for corner in (a, c, *hidden[b]):  # may be ears now
                heapq.heappush(asked, corner)
    return ears
