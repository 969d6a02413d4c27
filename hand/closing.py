"""A surface as a distance field, pre-shapes, and fingers that close until they touch."""

import itertools

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from hand.described import BENCHMARK
from hand.kinematics import finger_points

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
        low = points.min(0) - FIELD_REACH - cell
        self.shape = shape = np.ceil((points.max(0) + FIELD_REACH + cell - low) / cell).astype(int) + 1
        self.low, self.last = low.astype(np.float32)[:, None], (shape - 1.001).astype(np.float32)[:, None]
        self.strides = (int(shape[1] * shape[2]), int(shape[2]), 1)
        corners = list(itertools.product((0, 1), repeat=3)) @ np.array(self.strides)
        self.corners = corners[:, None]  # (8, 1): how far a cell's corners lie behind its first
        empty = np.ones(shape, dtype=bool)
        empty[tuple(np.rint((points - low) / cell).astype(int).T)] = False
        # far away, a lower bound is enough: samples were moved by at most half a cell's diagonal
        distance = distance_transform_edt(empty, sampling=cell) - cell * np.sqrt(0.75)
        near = np.nonzero(distance < 0.02 + 2 * (cell - CELL))  # more than the largest sphere's radius
        # the exact distance, where it matters; many samples are near a cell, so that large leaves are faster
        tree = cKDTree(points, leafsize=64, balanced_tree=False, compact_nodes=False)
        distance[near] = tree.query(np.stack(near, -1) * cell + low, workers=threads)[0]
        self.values = np.minimum(distance, FIELD_REACH).astype(np.float32).ravel()

    def __call__(self, points):
        """Trilinear distance at points (..., 3), float32 m; outside the grid that of its border, FIELD_REACH."""
        return self.at(np.ascontiguousarray(points.reshape(-1, 3).T)).reshape(points.shape[:-1])

    def at(self, points):
        """The same at points (3, n), which is how it is computed: (n,)."""
        at = np.clip((points - self.low) * np.float32(1 / self.cell), 0, self.last)  # in cells
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


def finger_gaps(fingers, joints, frames, field):
    """Gaps (F, P, m) m between the spheres of `Fingers` at joints (J, m) rad, of wrists (3, 4, m), and the object."""
    points = finger_points(fingers, joints, frames)
    return field.at(points.reshape(3, -1)).reshape(points.shape[1:]) - fingers.radii[..., None]


def turn_fingers(fingers, joints, pace, limits, goes_on, frames, field, way=1):
    """Turn some `Fingers`, each by itself until it touches; with way -1, until it is out of the object.

    joints (J, m) rad, pace (J, m): how fast and where to each turns, limits (2, J, m) rad, frames (3, 4, m) ->
    joints (J, m), last gaps (F, P, m). A sphere that touches stops all joints that move it; those beyond then go on
    where `goes_on` (m,). Conservative advancement: a step is as long as gaps allow, so nothing is passed through.
    """
    joints, active, (low, high) = joints.copy(), np.arange(joints.shape[1]), limits.astype(np.float32)
    gaps = np.empty((*fingers.levers.shape[:2], len(active)), dtype=np.float32)
    moves = fingers.levers > 0  # (F, P, J)
    finger = moves.any(1).argmax(0)  # (J,) that a joint moves, and its first sphere there
    first = moves[finger, :, np.arange(len(joints))].argmax(1)
    pace = pace.astype(np.float32) * moves.any((0, 1))[:, None]
    for _ in range(80):
        now = joints[:, active]
        gap = gaps[..., active] = finger_gaps(fingers, now, frames, field)
        nearest = np.minimum.accumulate(gap[:, ::-1], axis=1)[:, ::-1]  # (F, P, m) of a sphere and those beyond it
        done = way * nearest < TOUCH
        stops = np.where(goes_on, done[finger, first], done[finger, 0])  # (J, m)
        pace = pace * ~(stops | np.where(pace > 0, now >= high, now <= low))
        keep = pace.any(0)
        parts = active, goes_on, frames, low, high, now, pace, gap
        active, goes_on, frames, low, high, now, pace, gap = (part[..., keep] for part in parts)
        if not len(active):
            break
        reach = fingers.levers @ np.abs(pace) + np.float32(1e-6)  # (F, P, m) m per unit of pace
        step = np.clip(way * (gap / reach).min(1), MIN_STEP, MAX_STEP)  # (F, m)
        joints[:, active] = np.clip(now + step[finger] * pace, low, high)
    return joints, gaps


def close_hands(matrix, joints, mode, field, hand=BENCHMARK):
    """Close whole hands, the thumb first: a thumb that meets nothing is no grasp, and saves the other fingers.

    matrix (n, 4, 4) from the hand's frame to the object's, joints (n, J) rad -> joints (n, J), gaps (n, F, P) m, which
    are FIELD_REACH where a hand is in the object at the start.
    """
    joints, frames = joints.T.copy(), np.ascontiguousarray(matrix[:, :3].transpose(1, 2, 0))
    pace, limits = hand.speed[mode].T, np.broadcast_to(hand.limits.T[..., None], (2, *joints.shape))
    gaps = finger_gaps(hand.fingers.some(slice(None)), joints, frames, field)  # (F, P, n)
    touching, gaps[:] = gaps.min((0, 1)) > -0.001, FIELD_REACH
    goes_on = np.array(hand.modes)[mode] == "power"
    for part in (slice(0, 1), slice(1, None)):
        rows = np.flatnonzero(touching)
        of_rows = (values[..., rows] for values in (joints, pace, limits, goes_on, frames))
        joints[:, rows], gaps[part, :, rows] = turn_fingers(hand.fingers.some(part), *of_rows, field)
        touching[rows] = gaps[0, :, rows].min(1) < CONTACT
    return joints.T, gaps.transpose(2, 0, 1)


def link_gaps(gaps, hand):
    """gaps (..., F, P) m -> the gap of each finger's links and the sphere that has it (..., F, L)."""
    on_link = hand.links[:, None] == np.arange(hand.links.max() + 1)[:, None]  # (F, L, P)
    each = np.where(on_link, gaps[..., None, :], np.float32(np.inf))  # not all fingers have as many links
    nearest = each.argmin(-1)
    return np.take_along_axis(each, nearest[..., None], -1)[..., 0], nearest


def grasps_it(gaps, hand=BENCHMARK):
    """Do three links touch, the thumb's and another finger's among them? gaps (n, F, P) m -> (n,)."""
    links = link_gaps(gaps, hand)[0] < CONTACT  # (n, F, L)
    return links[:, 0].any(1) & links[:, 1:].any((1, 2)) & (links.sum((1, 2)) >= 3)
