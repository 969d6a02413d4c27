"""Polygons of any shape, cut into triangles."""

import numpy as np

from cli.errors import UserError, refuse


def triangulate(vertices, polygons):
    """The triangles (a, b, c) of polygons, in their order: n - 2 for each of n corners, whether convex or not."""
    sizes = {*map(len, polygons)}
    if sizes <= {3}:
        return polygons
    points = vertices / (np.abs(vertices).max() or 1)  # so that no product of them is too large
    cut = {}  # number of a polygon -> its triangles, where these are no fan
    for size in sizes - {3}:
        numbers = np.array([number for number, polygon in enumerate(polygons) if len(polygon) == size])
        for number in numbers[~is_fan(points[[polygons[number] for number in numbers]])]:
            try:
                cut[number] = cut_ears(points[polygons[number]])
            except UserError as error:
                raise UserError(f"face {number} {error}") from None
    triangles = []
    for number, polygon in enumerate(polygons):
        fan = [(0, i, i + 1) for i in range(1, len(polygon) - 1)]
        triangles += [(polygon[a], polygon[b], polygon[c]) for a, b, c in cut.get(number, fan)]
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

    An ear is a corner that turns the polygon's way round and whose triangle holds no other corner. `UserError` where
    there is none, as in a bow tie.
    """
    points = points - points[0]
    normal = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
    nothing = 1e-9 * np.abs(points).max() ** 2
    normal /= max(np.linalg.norm(normal), nothing)

    def turn(a, b, c):
        """Twice the area of a triangle, or of many of them; negative where it turns the wrong way round."""
        return np.cross(points[b] - points[a], points[c] - points[a]) @ normal

    def is_ear(a, b, c):
        if turn(a, b, c) <= nothing:
            return turn(a, b, c) >= -nothing  # on a straight line: nothing is cut off
        inside = (turn(a, b, left) > nothing) & (turn(b, c, left) > nothing) & (turn(c, a, left) >= -nothing)
        return not inside.any()  # also none on the side from c to a, where the cut is

    left, ears = list(range(len(points))), []
    while len(left) > 2:
        around = zip([left[-1], *left], left, [*left[1:], left[0]])
        ear = next((corners for corners in around if is_ear(*corners)), None)
        refuse(ear is None or not normal.any(), "crosses itself; export the mesh with triangles")
        ears.append(ear)
        left.remove(ear[1])
    return ears
