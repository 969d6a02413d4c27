"""Which hands hold an object (hand/holds.py): generated grasps, joints that know nothing, geometry by hand."""

import os
import shutil

import numpy as np
import pytest
import trimesh

import synthesize
from benchmark.card import sphere_gaps
from cli.errors import UserError
from data import load_dataset
from files.reading import read_mesh
from hand import closing, kinematics
from hand.described import BENCHMARK
from hand.holds import TRAVEL, flex, grasp_outcomes, solid_field
from hand.scenes import outcomes_in_scenes, scene_mesh


NOISE = (2, 5, 10, 20)  # degrees


def generated(folder, sizes):
    synthesize.main(f"--out {folder}/root {sizes} --workers 1 --quiet".split())
    return load_dataset(folder / "root", 64, quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generated(tmp_path_factory.mktemp("holds"), "--objects 2 --grasps 16")


@pytest.fixture(scope="module")
def scene(data):
    """Field, mesh, poses and joints of one scene, half of the joints with noise, so that not all of them hold."""
    rows = np.flatnonzero(data.scene == 0)
    joints = data.joints[rows].copy()
    joints[::2] += np.random.default_rng(0).normal(0, 0.15, joints[::2].shape)
    mesh = read_mesh(scene_mesh(data, 0))
    return solid_field(*mesh), mesh, data.poses[rows], joints


@pytest.mark.slow
def test_recorded_grasps_hold_and_what_knows_nothing_of_the_object_seldom(tmp_path):
    data = generated(tmp_path, "--objects 28 --grasps 16")
    rng, recorded, limits = np.random.default_rng(0), data.joints, BENCHMARK.limits
    opened = recorded.copy()
    opened[:, 0::3], opened[:, 2::3] = limits[0, 0], limits[2, 0]  # flexion and distal
    kinds = {"recorded": recorded, "open": opened, "average": np.broadcast_to(recorded.mean(0), recorded.shape)}
    kinds |= {f"uniform {k}": rng.uniform(*limits.T, recorded.shape) for k in range(3)}
    kinds |= {degrees: recorded + rng.normal(0, np.radians(degrees), recorded.shape) for degrees in NOISE}
    found = outcomes_in_scenes(data, np.arange(len(recorded)), np.stack(list(kinds.values()), 1), quiet=True)
    share = dict(zip(kinds, found.holds.mean(0)))
    assert len(found.holds) == 448 and found.free[:, 0].all() and share["recorded"] >= 0.95
    assert np.mean([share[f"uniform {k}"] for k in range(3)]) <= 0.05
    assert share["average"] <= 0.15 and share["open"] == 0
    shares = [share[degrees] for degrees in NOISE]
    assert shares[0] > 0.6 and shares[-1] < 0.1 and (np.diff(shares) < -0.05).all()


def test_a_hand_inside_the_object_is_neither_free_nor_holds():
    """Deep inside a large box every link is far from its surface: only its sign says where the hand is."""
    box = trimesh.creation.box((0.3, 0.3, 0.3))
    field = solid_field(np.asarray(box.vertices), np.asarray(box.faces), density=2e5)
    pose = np.array([[0, -0.1, 0, 0, 0, 0, 1.0]])
    joints = np.tile(np.radians([0.0, 0, 10]), 4)[None]
    inside, outside = grasp_outcomes(field, pose, joints), grasp_outcomes(field, pose + [0, 0, 0.5, 0, 0, 0, 0], joints)
    assert not inside.free.any() and not inside.holds.any()
    assert outside.free.all() and not outside.holds.any()


@pytest.mark.slow
def test_the_field_of_a_large_object_is_bounded_and_still_right(monkeypatch):
    """A box with as few cells as one of 2 m would have for its size: 7.6 mm wide."""
    box = trimesh.creation.box((0.3, 0.3, 0.3))
    mesh, rng = (np.asarray(box.vertices), np.asarray(box.faces)), np.random.default_rng(0)
    points = rng.uniform(-0.2, 0.2, (4000, 3)).astype(np.float32)
    beyond = np.abs(points) - 0.15
    exact = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(1), 0)
    for most, width in ((closing.MAX_CELLS, closing.CELL), (1.1e5, 0.0076)):
        monkeypatch.setattr(closing, "MAX_CELLS", most)
        field = solid_field(*mesh, density=2e5)
        assert field.cell == pytest.approx(width, rel=0.02) and field.values.size < 1.3 * most
        near, inside = (width < exact) & (exact < 0.015), exact < -0.02
        assert np.abs(field(points) - exact)[near].max() < 0.002
        assert near.any() and inside.any() and (field(points)[inside] < 0).all()


@pytest.mark.parametrize("where", ["poses", "joints"])
def test_hands_without_numbers_are_refused(scene, where):
    field, _, poses, joints = scene
    given = {"poses": poses.copy(), "joints": joints.copy()}
    given[where][1, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        grasp_outcomes(field, **given)


def test_gaps_are_those_of_exact_geometry(scene):
    field, mesh, poses, joints = scene
    frames, exact = kinematics.pose_to_matrix(poses)[:, :3].transpose(1, 2, 0).astype(np.float32), []
    found = closing.finger_gaps(BENCHMARK.fingers.some(slice(None)), joints.T.astype(np.float32), frames, field)
    for pose, its_joints in zip(poses, joints):
        centers, radii = kinematics.hand_drawing(pose, its_joints)
        gaps, _ = sphere_gaps(*mesh, centers[-32:], radii[-32:])  # infinite where a sphere is far away
        exact.append(gaps.reshape(4, 8).min(1))
    close = np.abs(exact) < 0.008  # m; deeper inside, the surfaces of overlapping parts come nearer than the outer one
    assert close.sum() > len(joints)
    assert np.abs(found.min(1).T - exact)[close].max() < 0.0015


def test_no_hand_that_holds_ends_in_the_object(scene):
    field, _, poses, joints = scene
    joints = joints + np.random.default_rng(1).normal(0, 0.15, (20, *joints.shape))
    joints = np.clip(joints.reshape(-1, 12), *BENCHMARK.limits.T).astype(np.float32)
    poses = np.tile(poses, (20, 1))
    wrists = kinematics.pose_to_matrix(poses)[:, :3].transpose(1, 2, 0).astype(np.float32)
    opened, _ = flex(joints.T, wrists, field, -1)
    _, gaps = flex(opened, wrists, field, 1)
    deep = gaps.min((0, 1)) <= -0.003  # m
    holds = grasp_outcomes(field, poses, joints).holds
    assert holds.any() and deep.any() and not holds[deep].any()


def test_fingers_open_and_close_by_no_more_than_they_may():
    """Middle fingers that reach over a table's edge, its top z = 0: a little above it, far above it, in it."""
    table = trimesh.creation.box((0.3, 0.3, 0.1))
    field = solid_field(np.asarray(table.vertices) - (0, 0.23, 0.05), np.asarray(table.faces), density=2e5)
    height = np.array([0.02, 0.06, 0.0])  # m, of the wrist above the top
    frames = np.tile(np.diag([1.0, -1, -1, 1]), (3, 1, 1))  # half a turn about x
    frames[:, :3, 3] = np.stack((0 * height, 0.1 + 0 * height, height), -1)
    wrists = frames[:, :3].transpose(1, 2, 0).astype(np.float32)
    start, middle = np.zeros((12, 3), dtype=np.float32), slice(6, 9)

    def lowest(q):  # gap (3,) m of the spheres over the table
        centers = kinematics.transform(frames, kinematics.finger_spheres(q.T)[:, 2])
        over = centers[..., 1] < -0.08  # the table begins there
        return np.where(over, centers[..., 2] - BENCHMARK.fingers.radii[2], np.inf).min(1)

    opened, _ = flex(start, wrists, field, -1)
    closed, gaps = flex(opened, wrists, field, 1)
    assert lowest(start)[0] > closing.CONTACT and lowest(start)[2] < -0.005
    assert np.array_equal(opened[middle, :2], start[middle, :2])  # nothing to open
    assert abs(lowest(closed)[0]) < closing.CONTACT  # near: touches
    np.testing.assert_allclose(closed[middle, 1] - start[middle, 1], [TRAVEL, 0, 0], atol=1e-6)  # far: as far as it may
    assert -TRAVEL <= opened[6, 2] < 0 and abs(lowest(closed)[2]) < closing.CONTACT  # in it: out, and touching
    np.testing.assert_allclose(gaps[2].min(0)[[0, 2]], lowest(closed)[[0, 2]], atol=0.001)


def test_batch_and_order_do_not_matter(data):
    """Scenes mixed, two sets of joints at each pose, half of the recorded ones with noise: as each by itself."""
    rows = np.random.default_rng(0).permutation(len(data.joints))[:24]
    joints = np.stack((data.joints[rows[::-1]], data.joints[rows]), 1)
    joints[::2] += np.random.default_rng(0).normal(0, 0.15, joints[::2].shape)
    found = outcomes_in_scenes(data, rows, joints, quiet=True)
    assert found.holds.shape == (24, 2) and 0 < found.holds[:, 1].sum() < 24
    for i in range(0, 24, 3):
        field = solid_field(*read_mesh(scene_mesh(data, data.scene[rows[i]])))
        alone = grasp_outcomes(field, data.poses[rows[i : i + 1]], joints[i : i + 1, 1])
        assert (alone.holds, alone.free) == (found.holds[i, 1], found.free[i, 1])


def test_another_mesh_at_the_same_place_is_read_again(data, tmp_path):
    shutil.copytree(data.root, tmp_path / "root")
    data = load_dataset(tmp_path / "root", 64, quiet=True)
    rows, path = np.flatnonzero(data.scene == 0), scene_mesh(data, 0)
    assert outcomes_in_scenes(data, rows, data.joints[rows], quiet=True).holds.mean() > 0.8
    vertices, faces = read_mesh(path)
    trimesh.Trimesh(vertices + (0, 0, 1), faces, process=False).export(path)  # out of reach
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert not outcomes_in_scenes(data, rows, data.joints[rows], quiet=True).holds.any()
