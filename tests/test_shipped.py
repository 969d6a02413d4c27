"""The benchmark as it ships: packed and unpacked it is what was made, rounded, on every processor."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import fails
from scipy.spatial.transform import Rotation

import synthesize
from benchmark import make, shipped
from benchmark.progress import LOG, VERSION
from benchmark.shapes import pose_scene
from cli.errors import UserError
from data import load_dataset
from hand.described import BENCHMARK
from model import PRESETS

REDRAWN = "03624134/knife_0023"  # the hand found next to nothing on this knife's first shape


@pytest.fixture(scope="module")
def packed(made_root, tmp_path_factory):
    """A root made from nothing, and the file that it is packed into."""
    file = tmp_path_factory.mktemp("packed") / "grasps.npz"
    shipped.pack(made_root, file)
    return made_root, file


def rounded_alike(grasps, scores, found_grasps, found_scores):
    """Which grasps (n,) are those of the file within its rounding."""
    off = np.abs(grasps - found_grasps)
    opposite = np.abs(grasps[:, 3:7] + found_grasps[:, 3:7])  # where w is about zero
    quaternion = np.minimum(off[:, 3:7].max(1), opposite.max(1))
    close = (off[:, :3].max(1) < 2e-5) & (quaternion < 1e-4) & (off[:, 7:].max(1) < 1e-4)
    return close & (np.abs(scores - found_scores) < 1e-3)


def test_rounding(tmp_path):
    rng = np.random.default_rng(0)
    low, high = BENCHMARK.limits.T
    quaternion = Rotation.random(4000, random_state=0).as_quat(canonical=True)
    quaternion[:8] = np.concatenate((np.eye(4), np.eye(4)[[1, 0, 3, 2]] + np.eye(4))) / np.sqrt([[1]] * 4 + [[2]] * 4)
    joints = np.clip(rng.uniform(low - 0.1, high + 0.1, (4000, 12)), low, high)
    grasps = np.concatenate((rng.uniform(-0.3, 0.4, (4000, 3)), quaternion, joints), 1).astype(np.float32)
    scores = np.float32(1.5) + rng.exponential(2, 4000).astype(np.float32)
    scores[:2] = 1.5, np.nextafter(np.float32(1.5), np.float32(2))
    found, found_scores = shipped.restore(*shipped.quantise(grasps, scores))
    assert rounded_alike(grasps, scores, found, found_scores).all() and (found_scores > 1.5).all()
    assert (found[:, 7:] >= low.astype(np.float32)).all() and (found[:, 7:] <= high.astype(np.float32)).all()
    np.testing.assert_allclose(np.linalg.norm(found[:, 3:7], axis=1), 1, atol=1e-6)
    again, again_scores = shipped.restore(*shipped.quantise(found, found_scores))
    assert rounded_alike(found, found_scores, again, again_scores).all()


def test_unpacked_is_what_was_made_rounded(packed, tmp_path):
    root, file = packed
    content = shipped.unpack(tmp_path / "root", workers=1, quiet=True, file=file)
    assert content["objects"] == 4 and content["grasps_kept"] == 32 and content["settings"]["shipped"]
    for path in root.rglob("recording.npz"):
        ours = tmp_path / "root" / path.relative_to(root)
        assert ours.with_name("mesh.obj").read_bytes() == path.with_name("mesh.obj").read_bytes()
        with np.load(path) as made, np.load(ours) as found:
            kept = made["scores"] >= 1.5
            parts = (made["grasps"][kept], made["scores"][kept], found["grasps"], found["scores"])
            assert rounded_alike(*parts).all()


def test_ready_to_train_on(packed, tmp_path):
    """The cache is that of a first reading, and nothing is read again."""
    root, cache = tmp_path / "root", tmp_path / "root/.cache/points-512.npz"
    shipped.unpack(root, workers=2, quiet=True, file=packed[1])
    written = cache.stat().st_mtime_ns
    assert PRESETS["small"].points == shipped.NUM_POINTS  # train.py's default
    cached = load_dataset(root, 512, quiet=True)
    assert cache.stat().st_mtime_ns == written
    read = load_dataset(root, 512, cache_dir=tmp_path / "elsewhere", quiet=True)
    assert cached.fingerprint == read.fingerprint
    for name in ("clouds", "poses", "joints", "scores", "scene", "row"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(read, name))


def test_resumed_and_checked(packed, tmp_path, monkeypatch):
    """What is there and right stays, what is missing or broken is made; what cannot be made right is named."""
    root, (_, file) = tmp_path / "root", packed
    shipped.unpack(root, workers=1, quiet=True, file=file)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.glob("*/*/*/*")}
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    (root / "dataset.json").unlink()
    (root / LOG).write_text(json.dumps({"version": VERSION, "settings": content["settings"]}) + "\n", encoding="utf-8")
    (root / "03797390/mug_0000/0/mesh.obj").write_text("v 0 0 0\n", encoding="utf-8")
    (root / "03593526/jar_0000/1/recording.npz").unlink()
    shipped.unpack(root, workers=1, quiet=True, file=file)
    assert all(path.read_bytes() == content for path, (content, _) in files.items()) and len(files) == 16
    again = {path.parent.relative_to(root).as_posix() for path in files if path.stat().st_mtime_ns != files[path][1]}
    assert again == {"03797390/mug_0000/0", "03593526/jar_0000/1"} and (root / "dataset.json").exists()
    monkeypatch.setitem(shipped.opened(file), "digest", shipped.opened(file)["digest"] ^ 1)
    with pytest.raises(UserError, match="02876657/bottle_0000/0: is not what grasps.npz says it must be; restore"):
        shipped.unpack(tmp_path / "other", workers=1, quiet=True, file=file)
    assert not (tmp_path / "other/dataset.json").exists()


def test_what_cannot_be_packed_or_unpacked(packed, tmp_path, capsys):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(packed[1].read_bytes()[:-100])
    with pytest.raises(UserError, match="broken.npz: not an .npz archive, or cut short; restore it with: git checkout"):
        shipped.unpack(tmp_path / "root", 1, file=broken)
    assert "is no complete root of synthesize.py --out" in fails(shipped.main, [tmp_path], capsys)


@pytest.mark.parametrize("name", ["03797390/mug_0000", "03636649/lamp_0003", REDRAWN])
def test_meshes_are_the_same_whatever_the_last_bits(tmp_path, name):
    """Processors differ by some 1e-16 m; rounding must not make 10 µm of it."""
    content, rng = shipped.opened(shipped.FILE), np.random.default_rng(0)
    vertices, faces = shipped.shape_of(name, 0, content["redrawn"].get(name))
    assert (name == REDRAWN) == (name in content["redrawn"])
    for scene in shipped.unpack_object(tmp_path, shipped.FILE, name):  # checks their digests
        number = content["scenes"].index(scene["name"])
        posed, nudge = pose_scene(vertices, *content["pose"][number]), int(content["nudge"][number])
        for _ in range(5):
            moved, _ = make.on_grid(posed + rng.uniform(-1e-12, 1e-12, posed.shape), nudge)
            assert hashlib.sha256(make.mesh_text(moved, faces, 5)).hexdigest() == scene["mesh_hash"]


def test_what_lies_between_two_points_of_the_grid_is_moved():
    vertices = np.array([[0.000015, 0.0, -1e-9], [0.00001, 0.02, 0.1]])
    rounded, nudge = make.on_grid(vertices)
    assert nudge == 1 and np.array_equal(rounded, [[0.00002, 0, 0], [0.00001, 0.02, 0.1]])
    assert b"-0.00000" not in make.mesh_text(rounded, np.zeros((0, 3), int), 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02946921/can_0001", "02954340/cap_0000", "03759954/microphone_0002", REDRAWN])
def test_made_from_nothing_it_is_the_shipped_one(tmp_path, name):
    """Scores follow the last bits, so that a grasp may be just good enough here and just not there; joints do not."""
    settings = {"objects": 1500, "grasps": 240, "scenes": 2, "seed": 0, "meshes": None}
    make.make_object(tmp_path / "made", settings, (*name.split("/"), None))
    alike, off = [], []
    for scene in shipped.unpack_object(tmp_path / "shipped", shipped.FILE, name):
        made = tmp_path / "made" / scene["name"]
        assert hashlib.sha256((made / "mesh.obj").read_bytes()).hexdigest() == scene["mesh_hash"]
        with np.load(made / "recording.npz") as recording:
            grasps, scores = recording["grasps"], recording["scores"]
        found = np.concatenate((scene["poses"], scene["joints"]), 1)
        nearest = np.abs(grasps - found[:, None]).max(2).argmin(1)
        alike += rounded_alike(grasps[nearest], 0, found, 0).tolist()
        off += np.abs(scores[nearest] - scene["scores"]).tolist()
    assert np.mean(alike) > 0.99 and np.mean(off) < 0.02


@pytest.mark.slow
def test_the_whole_benchmark_is_one_on_all_processors(tmp_path, monkeypatch):
    """Made without the instructions that newer processors have, and with another product of matrices."""
    older = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR", "OPENBLAS_CORETYPE": "Prescott"}
    words = [sys.executable, synthesize.__file__, "--quiet"]
    subprocess.run(words, cwd=tmp_path, env=os.environ | older, check=True, stderr=subprocess.DEVNULL)
    monkeypatch.chdir(tmp_path)
    found = load_dataset(shipped.ensure_root("data/synthetic"), 512, quiet=True)
    assert (len(found.scenes), len(found.scene)) == (3000, 353628) and found.fingerprint == "602efc528f12ccbf"
    assert (tmp_path / "data/synthetic/.cache/points-512.npz").exists()
