"""A surface as a distance field, pre-shapes, and fingers that close until they touch."""

import itertools

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from hand import kinematics

# ---------------------------------------------------------------- the surface as a distance field
CELL, FIELD_REACH = 0.004, 0.032  # m: grid spacing; distances are cut off here
MAX_CELLS = 2e7  # 80 MB, and 1.3 GB while it is made; over 1 m in each direction cells grow, at 2 m to 7.6 mm
SURFACE_SAMPLES = 12000


class DistanceField:
    """Unsigned distance to surface samples (P, 3) m on a grid: open meshes and wrong windings do not matter.

    threads: so many look for the nearest samples.
    """

    def __init__(self, points, threads=1):
        self.center = points.mean(0)  # (3,) m: what torques are about
        self.cell = cell = max(CELL, float(np.cbrt(np.prod(np.ptp(points, axis=0) + 2 * FIELD_REACH) / MAX_CELLS)))
        self.low = points.min(0) - FIELD_REACH - cell
        self.shape = shape = np.ceil((points.max(0) + FIELD_REACH + cell - self.low) / cell).astype(int) + 1
        self.low32, self.last = self.low.astype(np.float32)[:, None], (shape - 1.001).astype(np.float32)[:, None]
        self.strides = (int(shape[1] * shape[2]), int(shape[2]), 1)
        corners = list(itertools.product((0, 1), repeat=3)) @ np.array(self.strides)
        self.corners = corners[:, None]  # (8, 1): how far a cell's corners lie behind its first
        empty = np.ones(shape, dtype=bool)
        empty[tuple(np.rint((points - self.low) / cell).astype(int).T)] = False
        # far away, a lower bound is enough: samples were moved by at most half a cell's diagonal
        distance = distance_transform_edt(empty, sampling=cell) - cell * np.sqrt(0.75)
        near = np.nonzero(distance < 0.02 + 2 * (cell - CELL))  # more than the largest sphere's radius
        # the exact distance, where it matters; many samples are near a cell, so that large leaves are faster
        tree = cKDTree(points, leafsize=64, balanced_tree=False, compact_nodes=False)
        distance[near] = tree.query(np.stack(near, -1) * cell + self.low, workers=threads)[0]
        self.values = np.minimum(distance, FIELD_REACH).astype(np.float32).ravel()

    def __call__(self, points):
        """Trilinear distance at points (..., 3), float32 m; outside the grid that of its border, FIELD_REACH."""
        at = np.ascontiguousarray(points.reshape(-1, 3).T)  # (3, n)
        at = np.clip((at - self.low32) * np.float32(1 / self.cell), 0, self.last)  # in cells
        whole = at.astype(np.int32)
        corner = whole[0] * self.strides[0] + whole[1] * self.strides[1] + whole[2]
        value = self.values.take(corner + self.corners)  # (8, n)
        for share in at - whole:  # along this axis, the first half of the corners lies below the point
            half = len(value) // 2
            value = value[:half] + share * (value[half:] - value[:half])
        return value[0].reshape(points.shape[:-1])

    def direction(self, points):
        """Unit vectors (m, 3) from points (m, 3) towards the surface."""
        step = np.float32(0.5 * self.cell) * np.concatenate((np.eye(3), -np.eye(3))).astype(np.float32)
        values = self(points[:, None] + step)
        slope = values[:, 3:] - values[:, :3]
        return slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)


def surface_normals(vertices, faces, count, rng):
    """Area-weighted samples and face normals, of whatever sign the winding gives: (count, 3) twice, float32."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1)
    face = rng.choice(len(faces), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return points.astype(np.float32), (normal[face] / area[face, None]).astype(np.float32)


# ---------------------------------------------------------------- closing the fingers
# Pre-shapes power, pinch, sphere:
# degrees [flexion, abduction, distal] of thumb, first, middle, ring at the start; closing speeds (flexion, distal)
START = [
    [-15, 22, 5, -15, 0, 5, -15, 0, 5, -15, 0, 5],
    [-15, -10, 10, -15, 6, 10, -15, 4, 10, 70, 0, 95],
    [-15, -8, 50, -15, -27, 50, -15, 0, 50, -15, 27, 50],
]
START = np.radians(START).astype(np.float32)
SPEED = np.array([[1, 1], [1, 0], [1, 0.1]], dtype=np.float32)

# How fast the 8 spheres can move per radian of flexion and of the distal joint, at most: (2, 8) m
DISTAL_LEVERS = [0, 0, 0, 0, *(kinematics.SPHERE_REACH[4:, 1:] @ [1, 1 + kinematics.COUPLING])]
LEVERS = np.stack((kinematics.SPHERE_REACH.sum(1), DISTAL_LEVERS)).astype(np.float32)
RADII = kinematics.SPHERE_RADII.astype(np.float32)
LINKS = (slice(0, 4), slice(4, 6), slice(6, 8))  # spheres of a finger's links
UPPER = kinematics.LIMITS[:3, 1].astype(np.float32)  # flexion and distal are the same for all fingers
TOUCH, CONTACT = 0.0005, 0.002  # m: a finger stops, a link counts as touching
MIN_STEP, MAX_STEP = np.radians([0.15, 12]).astype(np.float32)


def close_fingers(q, rotation, position, mode, field):
    """Close each finger (m rows) by itself until it touches: q (m, 3) -> q (m, 3), last gaps (8, m).

    Conservative advancement: a step is as long as the nearest sphere's gap allows, so nothing is
    passed through. Contact of link 1 stops flexion (a power grasp's distal joint then goes on, other
    fingers end); contact of link 2 or 3 ends the finger.
    """
    q, gaps, speed = q.copy(), np.empty((8, len(q)), dtype=np.float32), SPEED[mode]
    active = np.arange(len(q))
    for _ in range(80):
        now, pace = q[active], speed[active]
        gap = field(kinematics.finger_points(now, rotation[active], position[active])) - RADII[:, None]
        gaps[:, active] = gap
        base, rest = gap[:4].min(0) < TOUCH, gap[4:].min(0) < TOUCH
        pace[:, 0] *= ~base & (now[:, 0] < UPPER[0])
        pace[:, 1] *= now[:, 2] < UPPER[2]
        pace *= ~(rest | base & (mode[active] > 0))[:, None]
        speed[active] = pace
        keep = (pace[:, 0] > 0) | (pace[:, 1] > 0)
        active, now, pace = active[keep], now[keep], pace[keep]
        if not len(active):
            break
        reach = LEVERS.T @ pace.T + np.float32(1e-6)  # (8, m) m per unit of closing
        advance = np.clip((gap[:, keep] / reach).min(0), MIN_STEP, MAX_STEP)[:, None]
        q[active, ::2] = np.minimum(now[:, ::2] + advance * pace, UPPER[::2])
    return q, gaps


def close_hands(rotation, position, joints, mode, field):
    """Close whole hands, the thumb first: a thumb that meets nothing is no grasp, and saves the other fingers.

    joints (n, 12) -> joints (n, 12), gaps (n, 4, 8) m, and masks (n,): free at the start, thumb touches.
    """
    n = len(joints)
    q, (bases, origins) = joints.reshape(n, 4, 3).copy(), kinematics.finger_bases(rotation, position)
    start = kinematics.finger_points(q.reshape(-1, 3), bases.reshape(-1, 3, 3), origins.reshape(-1, 3))
    free = (field(start) - RADII[:, None]).min(0).reshape(n, 4).min(1) > -0.001
    touching, gaps = free.copy(), np.full((n, 4, 8), FIELD_REACH, dtype=np.float32)
    for fingers, count in ((slice(0, 1), 1), (slice(1, 4), 3)):
        rows = np.flatnonzero(touching)
        closed, gap = close_fingers(
            q[rows, fingers].reshape(-1, 3),
            bases[rows, fingers].reshape(-1, 3, 3),
            origins[rows, fingers].reshape(-1, 3),
            np.repeat(mode[rows], count),
            field,
        )
        q[rows, fingers], gaps[rows, fingers] = closed.reshape(-1, count, 3), gap.T.reshape(-1, count, 8)
        touching[rows] = gaps[rows, 0].min(1) < CONTACT
    return q.reshape(n, 12), gaps, free, touching


def link_gaps(gaps):
    """gaps (n, 4, 8) m -> the gap of each finger's three links and the sphere that has it (n, 4, 3)."""
    nearest = np.stack([link.start + gaps[..., link].argmin(-1) for link in LINKS], -1)
    return np.take_along_axis(gaps, nearest, -1), nearest
