"""A surface as a distance field, pre-shapes, and fingers that close until they touch."""

import itertools

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from hand.described import BENCHMARK
from hand.kinematics import finger_frames, finger_joints, finger_points

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
        return self.at(np.ascontiguousarray(points.reshape(-1, 3).T)).reshape(points.shape[:-1])

    def at(self, points):
        """The same at points (3, n), which is how it is computed: (n,)."""
        at = np.clip((points - self.low32) * np.float32(1 / self.cell), 0, self.last)  # in cells
        whole = at.astype(np.int32)
        corner = whole[0] * self.strides[0] + whole[1] * self.strides[1] + whole[2]
        value = self.values.take(corner + self.corners)  # (8, n)
        for share in at - whole:  # along this axis, the first half of the corners lies below the point
            half = len(value) // 2
            value = value[:half] + share * (value[half:] - value[:half])
        return value[0]

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
TOUCH, CONTACT = 0.0005, 0.002  # m: a finger stops, a link counts as touching
MIN_STEP, MAX_STEP = np.radians([0.15, 12]).astype(np.float32)


def finger_gaps(chain, q, frames, field):
    """Gaps (P, m) m between the spheres of fingers q (k, m) rad, on frames (4, 3, m), and the object."""
    points = finger_points(chain, q, frames)
    return field.at(points.reshape(3, -1)).reshape(points.shape[1:]) - chain.radii.astype(np.float32)


def close_fingers(chain, q, frames, mode, field, goes_on):
    """Close fingers of a `Chain` each by itself until it touches: q (k, m) -> q (k, m), last gaps (P, m).

    Conservative advancement: a step is as long as the nearest sphere's gap allows, so nothing is passed through.
    A link that touches stops all joints that move it; those beyond then go on where `goes_on` (modes,) says so.
    """
    q, gaps = q.copy(), np.empty((len(chain.links), q.shape[1]), dtype=np.float32)
    (low, high), levers = chain.limits.astype(np.float32), chain.levers.T.astype(np.float32)
    active, speed, ends = np.arange(q.shape[1]), chain.speed.astype(np.float32)[mode].T, ~goes_on[mode]
    moved = [(joint, chain.levers[:, joint].nonzero()[0][0]) for joint in np.flatnonzero(chain.speed.any(0))]
    for _ in range(80):
        now, pace = q[:, active], speed[:, active]
        gap = gaps[:, active] = finger_gaps(chain, now, frames, field)
        any_touches = gap.min(0) < TOUCH
        for joint, first in moved:
            touches = gap[first:].min(0, initial=FIELD_REACH) < TOUCH
            at_end = np.where(pace[joint] > 0, now[joint] >= high[joint], now[joint] <= low[joint])
            pace[joint, touches | at_end | any_touches & ends[active]] = 0
        speed[:, active] = pace
        keep = pace.any(0)
        active, now, pace, frames = active[keep], now[:, keep], pace[:, keep], frames[:, :, keep]
        if not len(active):
            break
        reach = levers.T @ np.abs(pace) + np.float32(1e-6)  # (P, m) m per unit of closing
        advance = np.clip((gap[:, keep] / reach).min(0), MIN_STEP, MAX_STEP)
        q[:, active] = np.clip(now + advance * pace, low, high)
    return q, gaps


def close_hands(rotation, position, joints, mode, field, hand=BENCHMARK):
    """Close whole hands, the thumb first: a thumb that meets nothing is no grasp, and saves the other fingers.

    joints (n, J) -> joints (n, J), gaps (n, F, P) m, and masks (n,): free at the start, thumb touches.
    """
    joints, gaps = joints.copy(), np.full((len(joints), *hand.radii.shape), FIELD_REACH, dtype=np.float32)
    free = np.ones(len(joints), dtype=bool)
    for chain in hand.chains:
        frames = finger_frames(chain, rotation, position)
        start = finger_gaps(chain, finger_joints(chain, joints), frames, field)
        free &= start.min(0).reshape(len(joints), len(chain.fingers)).min(1) > -0.001
    touching = free.copy()
    for chain in hand.chains:
        rows = np.flatnonzero(touching)
        frames = finger_frames(chain, rotation[rows], position[rows])
        modes = np.repeat(mode[rows], len(chain.fingers))
        q, gap = close_fingers(chain, finger_joints(chain, joints[rows]), frames, modes, field, hand.goes_on)
        shape = len(rows), *chain.columns.shape
        joints[rows[:, None, None], chain.columns] = q.T.reshape(shape)
        gaps[rows[:, None], chain.fingers] = gap.T.reshape(*shape[:2], gaps.shape[2])
        touching[rows] = gaps[rows, 0].min(1) < CONTACT
    return joints, gaps, free, touching


def link_gaps(gaps, hand=BENCHMARK):
    """gaps (..., F, P) m -> the gap of each finger's links and the sphere that has it (..., F, L)."""
    on_link = hand.links[:, None] == np.arange(hand.links.max() + 1)[:, None]  # (F, L, P)
    each = np.where(on_link, gaps[..., None, :], np.float32(np.inf))  # not all fingers have as many links
    nearest = each.argmin(-1)
    return np.take_along_axis(each, nearest[..., None], -1)[..., 0], nearest
