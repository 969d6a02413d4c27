"""Would the hand hold the object at these joints? A grasp is judged by closing it, not by its distance to another one.

    field = solid_field(vertices, faces)               once per scene
    outcomes = grasp_outcomes(field, poses, joints)    free, holds, touching, ... of any joints at any wrist poses

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
from hand.closing import CONTACT, LEVERS, MIN_STEP, RADII, TOUCH, DistanceField, link_gaps, surface_normals
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
    """What became of grasps; (...) is the shape of their joints (..., 12), clipped to the hand's limits first."""

    free: np.ndarray  # (...) bool: no link deeper than FREE_DEPTH in the object, before opening and closing
    holds: np.ndarray  # (...) bool: closed, what grasps.py would keep
    touching: np.ndarray  # (..., 4) bool: fingers that touch, closed
    gaps: np.ndarray  # (..., 4) m: each finger's distance to the object then, negative inside
    closed: np.ndarray  # (..., 12) rad: the joints after opening and closing
    scores: np.ndarray  # (...): as in grasps.py, closed; -1 where there is no grasp to score


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


def grasp_outcomes(field, poses, joints):
    """`Outcomes` of joints (n, ..., 12) rad at wrist poses (n, 7): several sets of joints may share a pose.

    Raises `UserError` where one is not finite.
    """
    finite = np.isfinite(joints).all() and np.isfinite(poses).all()
    refuse(not finite, "joints or wrist poses are not finite, so no hand can be closed; leave those grasps out")
    shape, sets = joints.shape[:-1], int(np.prod(joints.shape[1:-1]))
    matrix = np.repeat(kinematics.pose_to_matrix(poses), sets, axis=0).astype(np.float32)  # (m, 4, 4), m = n x sets
    rotation, position = matrix[:, :3, :3], matrix[:, :3, 3]
    joints = np.clip(joints, kinematics.LIMITS[:, 0], kinematics.LIMITS[:, 1]).astype(np.float32).reshape(-1, 12)
    bases, origins = kinematics.finger_bases(rotation, position)
    bases, origins = bases.reshape(-1, 3, 3), origins.reshape(-1, 3)  # a finger each: (4 m, 3, 3), (4 m, 3)
    q = joints.reshape(-1, 3)
    before = finger_gaps(q, bases, origins, field).min(0).reshape(-1, 4)
    q, _ = flex(q, bases, origins, field, -1)
    q, gaps = flex(q, bases, origins, field, 1)
    closed, gaps = q.reshape(-1, 12), gaps.T.reshape(-1, 4, 8)
    links = link_gaps(gaps)[0] < CONTACT  # (m, 4, 3)
    touching = links.any(2)
    local = kinematics.finger_spheres(closed)[0].astype(np.float32)  # (m, 4, 8, 3)
    centers = (local.reshape(-1, 32, 3) @ rotation.transpose(0, 2, 1) + position[:, None]).reshape(local.shape)
    grasping = touching[:, 0] & touching[:, 1:].any(1) & (links.sum((1, 2)) >= 3)
    grasping &= gaps.min((1, 2)) > -FREE_DEPTH
    grasping &= ~kinematics.fingers_collide(local)
    scores = np.full(len(closed), -1, dtype=np.float32)
    scores[grasping] = score(centers[grasping], gaps[grasping], field)
    found = Outcomes(before.min(1) > -FREE_DEPTH, scores >= MIN_SCORE, touching, before, closed, scores)
    return Outcomes(*(values.reshape(*shape, *values.shape[1:]) for values in found))


def flex(q, rotation, position, field, direction):
    """Turn the flexion of fingers q (m, 3) rad: direction -1 until each is out of the object, 1 until each touches.

    At most TRAVEL, within the hand's limits. Returns q (m, 3) and the spheres' gaps (8, m) m at its end. Steps
    are as long as the gaps allow (conservative advancement), so that nothing is passed through.
    """
    q, gaps, lever = q.copy(), np.empty((8, len(q)), dtype=np.float32), LEVERS[0, :, None]
    end = np.clip(q[:, 0] + direction * TRAVEL, *kinematics.LIMITS[0]).astype(np.float32)
    active = np.arange(len(q))
    while len(active):
        gap = gaps[:, active] = finger_gaps(q[active], rotation[active], position[active], field)
        moving = (direction * gap.min(0) > TOUCH) & (q[active, 0] != end[active])
        active = active[moving]
        step = np.maximum(direction * (gap[:, moving] / lever).min(0), MIN_STEP)
        left = np.abs(end[active] - q[active, 0])
        q[active, 0] = np.where(step < left, q[active, 0] + direction * step, end[active])
    return q, gaps


def finger_gaps(q, rotation, position, field):
    """Gaps (8, m) m between the spheres of fingers q (m, 3) rad, on bases (m, 3, 3), (m, 3), and the object."""
    return field(kinematics.finger_points(q, rotation, position)) - RADII[:, None]
