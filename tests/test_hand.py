"""hand/kinematics.py against a chain of 4 x 4 matrices written out here, and published points."""

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from hand import kinematics
from hand.described import BENCHMARK


def move(x, y, z):
    return trimesh.transformations.translation_matrix((x, y, z))


def turn(axis, degrees):
    return trimesh.transformations.rotation_matrix(np.radians(degrees), {"x": (1, 0, 0), "z": (0, 0, 1)}[axis])


HAND_FROM_PALM = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
BASES = [  # mm, palm frame, as published
    move(-44.5493, 26.5, 19.85) @ turn("x", 180) @ turn("z", 90),
    move(-1.92188, 134.5, 39.0717) @ turn("x", 6),
    move(0, 134.5, 0),
    move(-2.17275, 134.5, -39.0717) @ turn("x", -6),
]


def oracle(finger, flexion, abduction, distal):
    """The four frames of one finger in mm of the unscaled palm frame, angles in degrees."""
    rows = [(flexion + 90, 0, -90), (abduction, 100.35, 90), (distal, 40, 0), (1.0476 * distal + 90, 0, 90)]
    frames, current = [], BASES[finger]
    for theta, a, alpha in rows:
        current = current @ turn("z", theta) @ move(a, 0, 0) @ turn("x", alpha)
        frames.append(current)
    return frames


@pytest.fixture
def joints():
    return np.random.default_rng(0).uniform(*BENCHMARK.limits.T, (40, 12))


def scaled(frame):
    """mm of the palm frame -> m of this hand's frame."""
    frame = HAND_FROM_PALM @ frame
    frame[:3, 3] *= 0.85e-3
    return frame


def test_names_and_limits():
    assert len(BENCHMARK.joint_names) == 12 and BENCHMARK.limits.shape == (12, 2)
    assert BENCHMARK.joint_names[:4] == ("thumb_flexion", "thumb_abduction", "thumb_distal", "first_flexion")
    degrees = np.degrees(BENCHMARK.limits).round(6)
    assert degrees[0].tolist() == [-20, 70] and degrees[2].tolist() == [0, 100]
    assert degrees[1::3].tolist() == [[-30, 30], [-30, 10], [-30, 30], [-10, 30]]


def frames_of(row):
    """The frames (4 fingers, 4, 4, 4) of joints (12,) rad by the chain of matrices, in m of the hand's frame."""
    return np.array([[scaled(f) for f in oracle(i, *np.degrees(row[3 * i : 3 * i + 3]))] for i in range(4)])


def test_published_points_at_rest():
    middle = kinematics.finger_spheres(np.zeros((1, 12)))[0, [2, 0], 4:6]  # on the second links of middle and thumb
    third = (middle[:, 1] + (middle[:, 1] - middle[:, 0]) * 12 / 18) @ HAND_FROM_PALM[:3, :3] / 0.85e-3  # palm mm
    np.testing.assert_allclose(third, ((0, 274.85, 0), (-184.9, 26.5, 19.85)), atol=0.06)


def test_spheres_sit_on_their_links(joints):
    centers = kinematics.finger_spheres(joints)
    assert centers.shape == (40, 4, 8, 3)
    frames = np.array([frames_of(row) for row in joints])
    along = [(1, 0, -82), (1, 0, -60), (1, 0, -38), (1, 0, -16), (2, 0, -30), (2, 0, -12), (3, 2, 6), (3, 2, 20)]
    for sphere, (row, axis, offset) in enumerate(along):
        expected = frames[:, :, row, :3, 3] + offset * 0.85e-3 * frames[:, :, row, :3, axis]
        np.testing.assert_allclose(centers[:, :, sphere], expected, atol=1e-9)


def test_pose_round_trip_and_canonical_sign():
    rng = np.random.default_rng(1)
    poses = np.concatenate((rng.normal(size=(50, 3)), Rotation.random(50, random_state=1).as_quat()), axis=1)
    back = kinematics.matrix_to_pose(kinematics.pose_to_matrix(poses))
    assert (back[:, 6] >= 0).all()
    np.testing.assert_allclose(back[:, :3], poses[:, :3])
    np.testing.assert_allclose(np.abs(np.sum(back[:, 3:] * poses[:, 3:], axis=1)), 1)
    quarter = kinematics.pose_to_matrix([[0.1, 0, 0, 0, 0, np.sqrt(0.5), np.sqrt(0.5)]])  # 90 degrees about z
    np.testing.assert_allclose(kinematics.transform(quarter, np.array([[[1.0, 0, 0]]]))[0, 0], (0.1, 1, 0), atol=1e-12)


def test_drawing_is_the_hand_in_the_objects_frame(joints):
    pose = np.array([0.1, -0.2, 0.3, 0, 0, 1, 0])  # half a turn about z
    centers, radii = kinematics.hand_drawing(pose, joints[0])
    assert centers.shape == (59, 3) and radii.shape == (59,)
    local = np.concatenate((BENCHMARK.palm_centers, kinematics.finger_spheres(joints[:1]).reshape(-1, 3)))
    np.testing.assert_allclose(centers, local * (-1, -1, 1) + pose[:3], atol=1e-12)
