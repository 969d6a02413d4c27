"""Would the hand hold the object at these joints? A grasp is judged by closing it, not by its distance to another one.

    field = solid_field(vertices, faces)               once per scene
    outcomes = grasp_outcomes(field, poses, joints)    free and holds, of any joints at any wrist poses

A mean squared error rewards the average of two grasps whether or not it holds anything. Here the joints are carried
out by the plainest controller there is. A finger that is in the object opens by its flexion joint until it is out, one
that is off the object closes by it until it touches, neither by more than TRAVEL; abduction and distal joint stay.
The hand that results holds if it is what hand/closing.py would keep: three contacts, thumb and finger among them,
no finger in the object or in another one, a score of at least 1.5. Nothing here knows the recorded grasp, nor the
pre-shape that it was made with.

Not modelled: forces and compliance, gravity, an object that moves while the fingers close, the table. The palm is not
checked, since the wrist pose is given. A surface with holes has no inside: only the surface itself is in the way.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import label

from cli.errors import refuse
from hand import kinematics
from hand.closing import DistanceField, finger_gaps, grasps_it, surface_normals, turn_fingers
from hand.described import BENCHMARK
from hand.score import MIN_SCORE, score

# What the shares become with other values stands in results/holds/constants.csv.
FREE_DEPTH = 0.003  # m: a link deeper in the object than this is not free (the deepest of a recorded grasp: 0.0015).
TRAVEL = np.radians(10)  # rad: a finger opens or closes by no more than this. With 0 hardly any but recorded grasps
# hold; with 90 degrees the controller finds a grasp of its own, and joints drawn at random hold in one case of five.
DENSITY = 1e6  # samples per m2, one per mm2. Recorded scores are of other samples; with fewer, more of them differ.
MAX_SAMPLES = 2_000_000  # a surface over 2 m2 gets fewer per mm2
WALL = 0.005  # m: room farther than this from the surface is inside where no way leads to it from outside. It is more
# than samples and grid miss of a wall, and less than a finger's smallest radius (0.0089), so no finger gets in there.


class Outcomes(NamedTuple):
    """What became of grasps; (...) is the shape of their joints (..., J), clipped to the hand's limits first."""

    free: np.ndarray  # (...) bool: no link deeper than FREE_DEPTH in the object, before opening and closing
    holds: np.ndarray  # (...) bool: closed, what benchmark/grasps.py would keep


def solid_field(vertices, faces, density=DENSITY, threads=1):
    """Signed distance field of a scene, vertices (V, 3) m, faces (F, 3): negative inside.

    Inside is what a flood from the border does not reach: overlapping parts and wrong windings do not matter.
    """
    a, b, c = vertices[faces].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    count = min(int(np.ceil(area * density)), MAX_SAMPLES)
    points, _ = surface_normals(vertices, faces, count, np.random.default_rng(0))
    field = DistanceField(points, threads)
    distance = field.values.reshape(field.shape)
    wall = max(WALL, 0.75 * field.cell)
    room, _ = label(distance > wall)  # connected regions, numbered; 0 is within a wall of the surface
    inside = (room > 0) & (room != room[0, 0, 0])
    field.values = np.where(inside, -distance, distance).ravel()
    return field


def grasp_outcomes(field, poses, joints, hand=BENCHMARK):
    """`Outcomes` of joints (n, ..., J) rad at wrist poses (n, 7): several sets of joints may share a pose.

    Raises `UserError` where one is not finite.
    """
    finite = np.isfinite(joints).all() and np.isfinite(poses).all()
    refuse(not finite, "joints or wrist poses are not finite, so no hand can be closed; leave those grasps out")
    shape, sets = joints.shape[:-1], int(np.prod(joints.shape[1:-1]))
    matrix = np.repeat(kinematics.pose_to_matrix(poses), sets, axis=0).astype(np.float32)  # (m, 4, 4), m = n x sets
    frames = np.ascontiguousarray(matrix[:, :3].transpose(1, 2, 0))
    there = np.clip(joints, *hand.limits.T).astype(np.float32).reshape(-1, len(hand.limits)).T  # (J, m)
    free = finger_gaps(hand.fingers.some(slice(None)), there, frames, field).min((0, 1)) > -FREE_DEPTH  # (m,)
    opened, _ = flex(there, frames, field, -1, hand)
    closed, gaps = flex(opened, frames, field, 1, hand)
    gaps = gaps.transpose(2, 0, 1)  # (m, F, P)
    local = kinematics.finger_spheres(closed.T, hand).astype(np.float32)  # (m, F, P, 3)
    centers = kinematics.transform(matrix, local)
    grasping = grasps_it(gaps, hand) & (gaps.min((1, 2)) > -FREE_DEPTH) & ~kinematics.fingers_collide(local, hand)
    holds = grasping.copy()
    holds[grasping] = score(centers[grasping], gaps[grasping], field, hand) >= MIN_SCORE
    return Outcomes(free.reshape(shape), holds.reshape(shape))


def flex(joints, frames, field, way, hand=BENCHMARK):
    """Turn the flexion of all fingers, joints (J, m) rad: way -1 until each is out of the object, 1 until each touches.

    At most TRAVEL, within the hand's limits. Returns joints (J, m) and the gaps (F, P, m) m at their end.
    """
    pace, (low, high) = np.zeros_like(joints), hand.limits.T[..., None]
    pace[hand.flexors] = way * np.where(hand.speed[:, hand.flexors].sum(0) >= 0, 1, -1)[:, None]
    limits = np.clip((joints - TRAVEL, joints + TRAVEL), low, high)
    goes_on = np.ones(joints.shape[1], dtype=bool)
    return turn_fingers(hand.fingers.some(slice(None)), joints, pace, limits, goes_on, frames, field, way)
