"""data.py: from a root to arrays, its cache, its batches."""

import shutil

import numpy as np
import pytest
from conftest import fails, write_box, write_root
from scipy.spatial.transform import Rotation

import data
from files.reading import parse_mesh
from files.recordings import canonical_quaternion


def load(root, **options):
    return data.load_dataset(root, 64, quiet=True, **options)


def test_counts_and_minimum_score(box_root):
    loaded = load(box_root)
    assert len(loaded.scenes) == 18 and loaded.clouds.shape == (18, 64, 3)
    assert len(loaded.scene) == 18 * 9 and loaded.num_low == 18 * 3
    assert (loaded.scores >= 1.5).all() and (np.diff(loaded.scene) >= 0).all()
    assert loaded.row[:9].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert len(load(box_root, min_score=0.0).scene) == 18 * 12


def test_samples_are_uniform_over_the_surface_and_never_of_the_hull():
    # a unit square and a small far triangle: the hull would fill the space between
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 1], [0, 0.5, 1]], dtype=float)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    points = data.sample_surface(vertices, faces, 20000, seed=1)
    low = points[:, 2] == 0
    assert (low | (points[:, 2] == 1)).all()
    assert low.mean() == pytest.approx(1 / 1.125, abs=0.01)
    assert points[low, :2].mean(0) == pytest.approx([0.5, 0.5], abs=0.01)
    top = points[~low]
    assert (top[:, 0] + top[:, 1] <= 0.5 + 1e-6).all() and top[:, :2].mean(0) == pytest.approx([1 / 6, 1 / 6], abs=0.01)


# ---------------------------------------------------------------- recordings


def test_canonical_quaternion_keeps_the_rotation():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(200, 4))
    q[:50, 3] = 0  # w = 0: the sign of z decides
    q[:25, 2] = 0
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    ours = canonical_quaternion(q)
    assert np.array_equal(ours, canonical_quaternion(-q))
    assert (ours[50:, 3] > 0).all() and (ours[25:50, 2] > 0).all() and (ours[:25, 1] > 0).all()
    assert np.allclose(Rotation.from_quat(ours).as_matrix(), Rotation.from_quat(q).as_matrix())


def test_read_as_they_are(tmp_path):
    root = write_root(tmp_path / "my röot", {"tasses à café": 1})
    path = root / "tasses à café" / "object_000" / "scene_0" / "recording.npz"
    poses = np.array([[0, 0, 0, 0, 0, 0, 1] + [1] * 22, [0, 0, 0, 0, 0, -1, 0] + [0] * 22])
    np.savez(path, grasps=poses.astype(np.int16), qualities=np.array([3, 4], dtype=np.float16))
    loaded = load(root)
    assert loaded.joints.shape == (2, 22) and loaded.poses[1, 5] == 1 and loaded.scores.tolist() == [3, 4]


def test_the_recording_that_names_other_joints_is_the_bad_one(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"a": 4}, names=[f"j{i}" for i in range(12)])
    shutil.rmtree(root / "a" / "object_000")
    write_root(tmp_path / "other", {"a": 1}, names=[f"j{i ^ 1}" for i in range(12)])
    shutil.move(tmp_path / "other" / "a" / "object_000", root / "a")
    error = fails(data.main, [root], capsys)
    assert "a/object_000/scene_0" in error and "joint 0 is 'j1', in most recordings of the root 'j0'" in error
    kept = load(root, skip_bad=True)
    assert len(kept.scenes) == 3 and [name for name, _ in kept.excluded] == ["a/object_000/scene_0"]


# ---------------------------------------------------------------- the root and its cache


def test_second_read_uses_the_cache_and_sees_changes(tmp_path, monkeypatch):
    root = write_root(tmp_path / "root", {"03797390": 3})
    first = load(root)
    read = []
    monkeypatch.setattr(data, "parse_mesh", lambda *args: read.append(args[1]) or parse_mesh(*args))
    second = load(root)
    assert not read and first.fingerprint == second.fingerprint
    for name in ("clouds", "poses", "joints", "scores", "scene", "row"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    mesh = root / "03797390" / "object_001" / "scene_0" / "mesh.obj"
    write_box(mesh, (0.1, 0.11, 0.12))
    third = load(root)
    assert read == [str(mesh)]
    assert third.fingerprint != first.fingerprint and not np.array_equal(third.clouds[1], first.clouds[1])


def test_fingerprint_is_of_the_content_not_of_the_archive(tmp_path):
    """Other systems, versions of numpy and byte orders write other bytes of the same recordings."""
    root = write_root(tmp_path / "root", {"03797390": 2}, names=[f"joint {i}" for i in range(12)])
    first = data.load_dataset(root, 32, quiet=True)
    path = root / "03797390/object_001/scene_0/recording.npz"
    arrays = dict(np.load(path))
    np.savez_compressed(path, **{name: arrays[name].astype(arrays[name].dtype.newbyteorder(">")) for name in arrays})
    assert data.load_dataset(root, 32, quiet=True).fingerprint == first.fingerprint
    np.savez(path, **arrays | {"scores": arrays["scores"].astype(np.float32)})
    assert data.load_dataset(root, 32, quiet=True).fingerprint != first.fingerprint


def test_cache_elsewhere(tmp_path):
    root = write_root(tmp_path / "root", {"03797390": 1})
    load(root, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("root-*-points-64.npz"))) == 1 and not (root / ".cache").exists()


def test_epoch_visits_every_grasp_once_in_batches_of_distinct_scenes():
    rng = np.random.default_rng(0)
    for trial in range(20):
        scene = np.sort(rng.integers(0, rng.integers(1, 12), rng.integers(1, 300)))
        objects, grasps = int(rng.integers(1, 6)), int(rng.integers(1, 9))
        epoch = data.epoch_batches(scene, objects, grasps, seed=trial)
        assert sorted(np.concatenate([index for _, index, _ in epoch]).tolist()) == list(range(len(scene)))
        for scenes, index, object_index in epoch:
            assert len(set(scenes.tolist())) == len(scenes) <= objects
            assert np.array_equal(scenes[object_index], scene[index])
            assert np.bincount(object_index).max() <= grasps
    again = data.epoch_batches(scene, objects, grasps, seed=trial)
    assert all(np.array_equal(a, b) for x, y in zip(epoch, again) for a, b in zip(x, y))


def test_padded_batches_are_the_plain_ones_and_their_first_grasps_of_weight_zero():
    scene, rows = np.repeat(np.arange(5), (3, 9, 1, 4, 7)), np.arange(1, 24)  # uneven numbers of grasps
    plain, filled = (next(data.epochs(scene, rows, 2, 4, seed=0, pad=pad)) for pad in (False, True))
    for (scenes, grasps, objects), (*padded, weights) in zip(plain, filled, strict=True):
        more = 4 * len(scenes) - len(grasps)
        expected = scenes, np.r_[grasps, grasps[:1].repeat(more)], np.r_[objects, objects[:1].repeat(more)]
        assert all(map(np.array_equal, padded, expected))
        assert weights.tolist() == pytest.approx([1 / len(grasps)] * len(grasps) + [0] * more)
