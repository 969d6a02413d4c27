"""Closed solids, of which objects are built: revolved profiles, boxes, swept tubes.

Each is vertices (V, 3) float64 m and faces (F, 3) int64 that point outwards.
"""

import numpy as np


def skin(rings):
    """Closed mesh over rings (R, S, 3) with a pole at each end, its faces pointing outwards."""
    count, size = rings.shape[:2]
    vertices = np.concatenate((rings.reshape(-1, 3), rings[:1].mean(1), rings[-1:].mean(1)))
    index = np.arange(count * size).reshape(count, size)
    after = np.roll(index, -1, axis=1)
    first, last = np.full(size, count * size), np.full(size, count * size + 1)
    corners = (
        (index[:-1], after[:-1], after[1:]),
        (index[:-1], after[1:], index[1:]),  # quads in two halves
        (after[0], index[0], first),
        (index[-1], after[-1], last),
    )
    faces = np.concatenate([np.stack(triangle, -1).reshape(-1, 3) for triangle in corners])
    x, y, z = vertices[faces].transpose(1, 0, 2)
    return (vertices, faces) if np.sum(x * np.cross(y, z)) > 0 else (vertices, faces[:, ::-1])


def section(power, segments):
    """Superellipse of radius 1: power 2 a circle, 8 nearly a square; (S, 2)."""
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    circle = np.stack((np.cos(angle), np.sin(angle)), -1)
    return circle / (np.abs(circle) ** power).sum(-1, keepdims=True) ** (1 / power)


def dense(points, step=0.012):
    """A polyline (P, d) with points inserted, so that no piece is longer than `step` (m): bends need them."""
    points = np.asarray(points, dtype=float)
    pieces = np.maximum(1, np.ceil(np.linalg.norm(np.diff(points, axis=0), axis=1) / step)).astype(int)
    at = np.concatenate([i + np.arange(n) / n for i, n in enumerate(pieces)] + [[len(pieces)]])
    return np.stack([np.interp(at, np.arange(len(points)), column) for column in points.T], -1)


def spline(*points, pieces=5):
    """Catmull-Rom curve through P points (d,), `pieces` per interval."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate((2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]))
    t = (np.arange(pieces) / pieces)[:, None]
    a, b, c, d = (p[k : len(p) - 3 + k, None] for k in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate((curve.reshape(-1, p.shape[1]), p[-2:-1]))


def lathe(profile, power=2.0, step=0.012, segments=32):
    """Revolve (radius, z) points about z; the ends are closed on the axis. `power` squares the section."""
    profile = dense(profile, step)
    rings = np.empty((len(profile), segments, 3))
    rings[..., :2] = np.maximum(profile[:, :1], 1e-4)[:, None] * section(power, segments)
    rings[..., 2] = profile[:, 1:]
    return skin(rings)


def block(x, y, z, power=8.0, bevel=0.15, center=(0, 0, 0)):
    """A box with rounded edges, a disc or a pill: sides x, y, z (m); bevel as a share of the shortest."""
    b = bevel * min(x, y, z)
    s = 1 - 2 * b / min(x, y)
    profile = [(0, -z / 2), (s / 2, -z / 2), (0.5, b - z / 2), (0.5, z / 2 - b), (s / 2, z / 2), (0, z / 2)]
    vertices, faces = lathe(np.asarray(profile) * (max(x, y), 1), power)
    return vertices / max(x, y) * (x, y, max(x, y)) + center, faces


def tube(path, radius, side=(0, 1, 0), power=2.0, segments=14):
    """Sweep a section along path (P, 3) that lies in the plane with normal `side`.

    radius: scalar, (P,) or (P, 2) in and across that plane, m.
    """
    radius = np.asarray(radius, dtype=float)
    radius = np.broadcast_to(radius if radius.ndim == 2 else radius.reshape(-1, 1), (len(path), 2))
    across = np.broadcast_to(np.asarray(side, dtype=float), path.shape)
    normal = np.cross(across, np.gradient(path, axis=0))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    s = section(power, segments)
    offset = radius[:, None, :1] * s[:, :1] * normal[:, None] + radius[:, None, 1:] * s[:, 1:] * across[:, None]
    return skin(path[:, None] + offset)


def rod(start, end, radius, **options):
    """A straight tube from start to end (3,); radius at both ends: scalar or pair."""
    path, direction = dense([start, end]), np.subtract(end, start)
    side = np.eye(3)[np.argmin(np.abs(direction))]
    side = side - direction * (side @ direction) / (direction @ direction)
    return tube(path, np.linspace(*np.broadcast_to(radius, 2), len(path)), side / np.linalg.norm(side), **options)


def ball(center, radius, squash=1.0):
    """A sphere (squash 1) or spheroid about z."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 13)
    profile = np.stack((radius * np.cos(angle), radius * squash * np.sin(angle)), -1)
    vertices, faces = lathe(profile, step=1, segments=24)
    return vertices + center, faces
