"""The 12-joint, four-finger DLR hand: limits, forward kinematics, collision spheres.

Kinematics as the GraspIt! project publishes them (models/robots/DLR), scaled by 0.85.

    joints (n, 12) rad = 4 fingers x [flexion q0, abduction q1, distal q2]; the tip joint follows q2
    frames      palm frame -> hand frame, the frame of a wrist pose: same origin, y along the
                fingers, z the approach direction (out of the palm), x across the palm
    pose (7)    wrist position x y z in metres and unit quaternion x y z w, in the object's frame
    geometry    8 spheres per finger (4 + 2 + 2 on its three links) and 27 on the palm
"""

import numpy as np
from scipy.spatial.transform import Rotation

SCALE = 0.85e-3  # published millimetres -> metres of this hand
FINGERS = ("thumb", "first", "middle", "ring")
JOINT_NAMES = tuple(f"{finger}_{joint}" for finger in FINGERS for joint in ("flexion", "abduction", "distal"))
ABDUCTION_LIMITS = ((-30, 30), (-30, 10), (-30, 30), (-10, 30))  # degrees, one pair per finger
LIMITS = np.radians([pair for abduction in ABDUCTION_LIMITS for pair in ((-20, 70), abduction, (0, 100))])  # (12, 2)
COUPLING = 1.0476  # tip angle per distal angle
LINK1, LINK2 = 100.35 * SCALE, 40.0 * SCALE  # m

HAND_FROM_PALM = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # x = palm z, y = palm y, z = -palm x
BASE_POSITIONS = np.array([  # (4, 3) m, palm frame
    [-44.5493, 26.5, 19.85], [-1.92188, 134.5, 39.0717], [0.0, 134.5, 0.0], [-2.17275, 134.5, -39.0717]]) * SCALE
BASE_ROTATIONS = np.stack([  # (4, 3, 3), palm frame, column vectors
    (Rotation.from_euler("x", 180, degrees=True) * Rotation.from_euler("z", 90, degrees=True)).as_matrix(),
    Rotation.from_euler("x", 6, degrees=True).as_matrix(), np.eye(3), Rotation.from_euler("x", -6, degrees=True).as_matrix()])
BASES = np.zeros((4, 4, 4))  # finger -> 4 x 4 from the finger's base to the hand frame
BASES[:, :3, :3], BASES[:, :3, 3], BASES[:, 3, 3] = HAND_FROM_PALM @ BASE_ROTATIONS, BASE_POSITIONS @ HAND_FROM_PALM.T, 1

# Spheres along a finger: 4 on link 1 and 2 on link 2, counted back from the link's far joint, 2 beyond the last joint.
# Row: how far each center is along the directions of links 1, 2, 3 (m).
SPHERE_REACH = np.array([
    *[(100.35 - back, 0, 0) for back in (82, 60, 38, 16)],
    *[(100.35, 40 - back, 0) for back in (30, 12)],
    *[(100.35, 40, beyond) for beyond in (6, 20)]]) * SCALE  # (8, 3)
SPHERE_RADII = np.array([13, 13, 13, 13, 11.5, 11.5, 11, 10.5]) * SCALE  # (8,) m
PALM_CENTERS = np.array([(x, y, 5) for x in (-50, -25, 0, 25, 50) for y in (15, 40, 65, 90, 115)]
                        + [(20, 20, 28), (20, 32, 28)]) * SCALE  # (27, 3) m, hand frame
PALM_RADII = np.array([18.0] * 25 + [16.0] * 2) * SCALE


def forward_kinematics(joints):
    """Frames after each Denavit-Hartenberg row Rz(theta) Tx(a) Rx(alpha), in the hand frame.

    joints (n, 12) rad -> (n, 4 fingers, 4 rows, 4, 4). Rows: flexion, abduction (far end of link 1),
    distal (far end of link 2), coupled tip (same origin; link 3 points along its z).
    """
    q = np.asarray(joints, dtype=float).reshape(-1, 4, 3)
    right = np.pi / 2
    rows = ((q[..., 0] + right, 0.0, -right), (q[..., 1], LINK1, right), (q[..., 2], LINK2, 0.0),
            (COUPLING * q[..., 2] + right, 0.0, right))
    frames, current = [], np.broadcast_to(BASES, (len(q), 4, 4, 4))
    for theta, a, alpha in rows:
        current = current @ denavit_hartenberg(theta, a, alpha)
        frames.append(current)
    return np.stack(frames, axis=2)


def denavit_hartenberg(theta, a, alpha):
    """Rz(theta) Tx(a) Rx(alpha) for an array of angles: theta (...) rad -> (..., 4, 4)."""
    c, s = np.cos(theta), np.sin(theta)
    matrix = np.zeros(theta.shape + (4, 4))
    matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2] = c, -s * np.cos(alpha), s * np.sin(alpha)
    matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2] = s, c * np.cos(alpha), -c * np.sin(alpha)
    matrix[..., 2, 1], matrix[..., 2, 2] = np.sin(alpha), np.cos(alpha)
    matrix[..., 0, 3], matrix[..., 1, 3], matrix[..., 3, 3] = a * c, a * s, 1
    return matrix


def finger_points(q, rotation, position):
    """Sphere centers of single fingers, in closed form: what closing a hand evaluates most.

    q (m, 3) rad, rotation (m, 3, 3) and position (m, 3) of each finger's base -> (8, m, 3) m, spheres
    first. Links 2 and 3 stay in the plane of link 1's axis `along` and the flexion normal `across`,
    turned by q2 and (1 + COUPLING) q2.
    """
    sine, cosine = np.sin(q).T[..., None], np.cos(q).T[..., None]  # (3, m, 1)
    x, y, z = rotation[..., 0], rotation[..., 1], rotation[..., 2]
    forward, across = cosine[0] * y - sine[0] * x, -cosine[0] * x - sine[0] * y  # x and y turned by q0 + 90 degrees
    along = cosine[1] * forward - sine[1] * z
    tip = (1 + COUPLING) * q[:, 2, None]
    directions = np.stack((along, cosine[2] * along + sine[2] * across, np.cos(tip) * along + np.sin(tip) * across))
    reach = SPHERE_REACH.astype(q.dtype) @ directions.reshape(3, -1)
    return reach.reshape(8, *along.shape) + position


def finger_spheres(joints):
    """joints (n, 12) rad -> centers (n, 4, 8, 3) m in the hand frame, radii (8,) m."""
    q = np.asarray(joints, dtype=float).reshape(-1, 3)
    bases = np.tile(BASES, (len(q) // 4, 1, 1))
    centers = finger_points(q, bases[:, :3, :3], bases[:, :3, 3])
    return centers.transpose(1, 0, 2).reshape(-1, 4, 8, 3), SPHERE_RADII


def pose_to_matrix(poses):
    """Wrist poses (n, 7), xyz m + quaternion xyzw -> (n, 4, 4) from the hand frame to the object's."""
    poses = np.asarray(poses, dtype=float).reshape(-1, 7)
    matrix = np.tile(np.eye(4), (len(poses), 1, 1))
    matrix[:, :3, :3], matrix[:, :3, 3] = Rotation.from_quat(poses[:, 3:]).as_matrix(), poses[:, :3]
    return matrix


def matrix_to_pose(matrix):
    """(n, 4, 4) -> (n, 7) with the quaternion's canonical sign: the first non-zero of w, z, y, x is positive."""
    quaternion = Rotation.from_matrix(matrix[:, :3, :3]).as_quat(canonical=True)
    return np.concatenate((matrix[:, :3, 3], quaternion), axis=1)


def transform(matrix, points):
    """Apply (n, 4, 4) to points (n, ..., 3)."""
    flat = points.reshape(len(points), -1, 3)
    moved = flat @ matrix[:, :3, :3].transpose(0, 2, 1) + matrix[:, None, :3, 3]
    return moved.reshape(points.shape)


def hand_drawing(pose, joints):
    """What a picture of one hand needs, in the object's frame.

    pose (7), joints (12,) -> centers (59, 3) m, radii (59,) m, segments (16, 2, 3) m: the spheres of
    palm and fingers, and per finger the lines palm - base - elbow - last joint - tip.
    """
    matrix = pose_to_matrix(pose)
    joints = np.asarray(joints, dtype=float)[None]
    frames = forward_kinematics(joints)[0]  # (4, 4, 4, 4)
    tips = frames[:, 3, :3, 3] + 25 * SCALE * frames[:, 3, :3, 2]
    root = np.broadcast_to([0.0, 50 * SCALE, 5 * SCALE], (4, 3))
    chain = np.stack((root, frames[:, 0, :3, 3], frames[:, 1, :3, 3], frames[:, 2, :3, 3], tips), 1)  # (4, 5, 3)
    segments = np.stack((chain[:, :-1], chain[:, 1:]), 2).reshape(-1, 2, 3)
    spheres, radii = finger_spheres(joints)
    centers = np.concatenate((PALM_CENTERS, spheres.reshape(-1, 3)))
    return transform(matrix, centers[None])[0], np.concatenate((PALM_RADII, np.tile(radii, 4))), transform(matrix, segments[None])[0]
