"""synthesize.py --import dexgraspnet, and recordings without scores: grasps of other hands, from end to end."""

import io
import json
import pickle
import re

import numpy as np
import pytest
from conftest import Planted, fails, random_grasps, write_box, write_root
from scipy.spatial.transform import Rotation

import data
import synthesize
import train
from benchmark import dexgraspnet
from cli.errors import UserError

JOINTS = ["robot0:THJ0", "robot0:FFJ3", "robot0:FFJ2"]  # in no order, as in the published files
WRIST = ["WRJRx", "WRJRy", "WRJRz", "WRJTx", "WRJTy", "WRJTz"]


def entries_of(rng, count, scales=(0.06, 0.1), size=(1, 1, 2), **more):
    """Grasps of a box that is centred on the origin, of `size` in the mesh's unit, as dicts of DexGraspNet."""
    entries = []
    for i in range(count):
        scale = scales[i % len(scales)]
        grasp = random_grasps(rng, 1, np.multiply(size, scale), len(JOINTS))[0]
        grasp[2] -= size[2] * scale / 2
        angles = Rotation.from_quat(grasp[3:7]).as_euler("xyz")
        values = [*angles, *grasp[:3], *grasp[7:]]
        qpos = dict(zip(WRIST + JOINTS, map(float, values)))
        entries.append({"qpos": qpos, "scale": np.float64(scale * (1 - 1e-8 * (i % 3))), **more})
    return entries


def write_object(folder, name, entries, size=(1, 1, 2)):
    """An object of a DexGraspNet folder: its box, centred on the origin, and its grasps."""
    (folder / "dataset").mkdir(parents=True, exist_ok=True)
    mesh = folder / "meshdata" / name / "coacd/decomposed.obj"
    mesh.parent.mkdir(parents=True, exist_ok=True)
    write_box(mesh, np.array(size))
    rows = [line.split() for line in mesh.read_text().splitlines()]
    for row in rows:
        if row[0] == "v":
            row[3] = str(float(row[3]) - size[2] / 2)
    mesh.write_text("\n".join(map(" ".join, rows)) + "\n")
    np.save(folder / "dataset" / f"{name}.npy", np.array(entries, dtype=object), allow_pickle=True)
    return folder / "dataset" / f"{name}.npy"


def run(*argv):
    synthesize.main([str(word) for word in argv])


def test_frames_scales_and_names(tmp_path, capsys):
    entries = entries_of(np.random.default_rng(0), 9)
    write_object(tmp_path / "in", "core-mug-857", entries)
    write_object(tmp_path / "in", "sem-Bottle-437", entries)
    write_object(tmp_path / "in", "ddg-gd_banana_002", entries)
    run("--out", tmp_path / "out", "--import", "dexgraspnet", tmp_path / "in", "--workers", 1)
    assert "3 objects, 27 grasps" in capsys.readouterr().out
    found = data.load_dataset(tmp_path / "out", 500, quiet=True)
    assert capsys.readouterr().err == f"{tmp_path / 'out'}: 6 recordings have no scores: all their grasps are kept\n"
    objects = ["Bottle/sem-Bottle-437", "mug/core-mug-857", "unsorted/ddg-gd_banana_002"]
    assert found.scenes == [f"{name}/scale_{scale}" for name in objects for scale in ("0.06", "0.1")]
    assert found.joint_names == sorted(JOINTS) and np.isnan(found.scores).all() and found.num_low == 0
    np.testing.assert_allclose(np.ptp(found.clouds[:2], axis=1)[:, 2], (0.12, 0.2), atol=5e-3)
    for scene, scale in ((0, 0.06), (1, 0.1)):
        own = [entry for entry in entries if abs(entry["scale"] - scale) < 1e-3]
        rows = np.flatnonzero(found.scene == scene)
        for row, entry in zip(rows, own, strict=True):
            qpos, pose = entry["qpos"], found.poses[row]
            wrist = [qpos["WRJTx"], qpos["WRJTy"], qpos["WRJTz"] + scale]  # the box was centred, and is 2 units high
            np.testing.assert_allclose(pose[:3], wrist, atol=1e-6)
            x, y, z = (qpos[name] for name in ("WRJRx", "WRJRy", "WRJRz"))
            about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
            about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
            about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
            matrix = np.array(about_z) @ about_y @ about_x  # about fixed axes: x is first
            np.testing.assert_allclose(Rotation.from_quat(pose[3:]).as_matrix(), matrix, atol=1e-6)
            np.testing.assert_allclose(found.joints[row], [qpos[name] for name in sorted(JOINTS)], atol=1e-6)
    assert re.search("scores +none", data.describe(found))
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["settings"] == {"import": f"dexgraspnet {tmp_path / 'in'}"} and content["grasps_kept"] == 27
    run("--out", tmp_path / "out", "--import", "dexgraspnet", tmp_path / "in")  # complete: nothing to do
    other = fails(synthesize.main, ["--out", tmp_path / "out", "--import", "dexgraspnet", tmp_path], capsys)
    assert "was made with other settings (import" in other
    card = fails(synthesize.main, ["--card", tmp_path / "out", "--out", tmp_path / "card"], capsys)
    assert "has no scores or another hand" in card


def test_scores_are_kept_where_all_have_one(tmp_path):
    entries = entries_of(np.random.default_rng(0), 6, scales=(0.1,))
    for i, entry in enumerate(entries):
        entry["score"] = float(i)
    path = write_object(tmp_path, "core-mug-1", entries)
    (scene,), _ = dexgraspnet.read_object(path)
    assert scene[4].tolist() == [0, 1, 2, 3, 4, 5]
    del entries[4]["score"]
    with pytest.raises(UserError, match="entry 4: has no 'score'"):
        dexgraspnet.read_object(write_object(tmp_path, "core-mug-1", entries))


def test_training_from_end_to_end(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(6):
        size = rng.uniform(0.6, 1.6, 3)
        write_object(tmp_path / "in", f"core-mug-{i}", entries_of(rng, 30, size=size), size)
    run("--out", tmp_path / "out", "--import", "dexgraspnet", tmp_path / "in", "--workers", 1)
    flags = "--name run --preset tiny --steps 2 --no-baseline --quiet --threads 1"
    train.main(["--data", str(tmp_path / "out"), "--runs", str(tmp_path), *flags.split()])
    assert capsys.readouterr().err.count("have no scores: all their grasps are kept") == 1
    result = json.loads((tmp_path / "run/result.json").read_text())
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["network"]["joints"] == len(JOINTS)
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])


def spoil(entries, row, where, key, value):
    """Entries of which one lacks a key, or holds another value there."""
    target = entries[row] if where == "entry" else entries[row]["qpos"]
    if value is None:
        del target[key]
    else:
        target[key] = value
    return entries


FAULTS = [
    ("entry", "scale", None, "entry 3: has no 'scale'"),
    ("entry", "qpos", None, "entry 3: has no 'qpos'"),
    ("entry", "scale", "big", "entry 3: 'scale' is not a finite number"),
    ("entry", "scale", 0.0, "entry 3: 'scale' makes the object 0 or over 2 m long"),
    ("entry", "scale", 90.0, "entry 3: 'scale' makes the object 0 or over 2 m long"),
    ("qpos", "WRJRx", None, "entry 3: 'qpos': has no 'WRJRx'"),
    ("qpos", "robot0:FFJ3", None, "entry 3: 'qpos': has no 'robot0:FFJ3'"),
    ("qpos", "robot0:FFJ3", float("nan"), "entry 3: 'qpos': 'robot0:FFJ3' is not a finite number"),
    ("qpos", "robot0:FFJ3", 90.0, "entry 3: a joint is turned by over 720 degrees"),
    ("qpos", "robot0:LFJ9", 0.1, "entry 3: 'qpos' has a joint 'robot0:LFJ9'"),
    ("qpos", "WRJTx", 120.0, "row 3: the wrist is over 2 m away"),
]


@pytest.mark.parametrize("where, key, value, message", FAULTS)
def test_faults_name_file_and_entry(tmp_path, where, key, value, message):
    path = write_object(tmp_path, "core-mug-1", spoil(entries_of(np.random.default_rng(0), 5), 3, where, key, value))
    with pytest.raises(UserError) as error:
        dexgraspnet.read_object(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_files_that_are_no_grasps(tmp_path, capsys, problems):
    entries = entries_of(np.random.default_rng(0), 5)
    path = write_object(tmp_path, "core-mug-1", entries)
    whole = path.read_bytes()
    numbers, single = io.BytesIO(), io.BytesIO()
    np.save(numbers, np.arange(5))
    np.save(single, np.array(entries[0], dtype=object), allow_pickle=True)
    cases = {
        "cut": (whole[:-40], "cut short"), "empty": (b"", "not an array"), "text": (b"hello", "not an array"),
        "numbers": (numbers.getvalue(), "plain numbers"), "pointer": (b"version https://git-lfs x", "Git LFS"),
        "no header": (pickle.dumps(entries), "not an array"),
    }  # fmt: skip
    for name, (content, message) in cases.items():
        with problems.of(name):
            path.write_bytes(content)
            with pytest.raises(UserError, match=message):
                dexgraspnet.read_object(path)
    path.write_bytes(whole)
    (tmp_path / "meshdata/core-mug-1/coacd/decomposed.obj").unlink()
    argv = ["--out", tmp_path / "out", "--workers", 1, "--import", "dexgraspnet"]
    assert "none of 1 objects can be used" in fails(synthesize.main, [*argv, tmp_path], capsys)
    assert not (tmp_path / "out").exists()
    assert "no .npy files" in fails(synthesize.main, [*argv, tmp_path / "meshdata"], capsys)
    assert "no such folder" in fails(synthesize.main, [*argv, tmp_path / "nowhere"], capsys)
    assert "only format" in fails(synthesize.main, ["--out", tmp_path / "out", "--import", "other", tmp_path], capsys)
    assert "--grasps" in fails(synthesize.main, [*argv, tmp_path, "--grasps", 3], capsys)


def test_one_bad_object_is_named_and_left_out(tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_object(tmp_path / "in", "core-mug-1", entries_of(rng, 5))
    write_object(tmp_path / "in", "core-mug-2", spoil(entries_of(rng, 5), 2, "entry", "scale", None))
    run("--out", tmp_path / "out", "--import", "dexgraspnet", tmp_path / "in", "--workers", 1)
    assert "not used: mug/core-mug-2: " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out/mug").iterdir()) == ["core-mug-1"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_no_pickle_runs_code(tmp_path, protocol, planted):
    path = write_object(tmp_path, "core-mug-1", [{"qpos": {}, "scale": 1.0}])
    header = path.read_bytes()
    header = header[: header.index(b"\n") + 1]
    entries = np.array([{"qpos": Planted(), "scale": 1.0}], dtype=object)
    path.write_bytes(header + pickle.dumps(entries, protocol=protocol))
    with pytest.raises(UserError, match=r"names (builtins|__builtin__)\.exec"):
        dexgraspnet.read_object(path)
    good = entries_of(np.random.default_rng(0), 5)
    path.write_bytes(header + pickle.dumps(np.array(good, dtype=object), protocol=protocol))
    assert dexgraspnet.read_entries(path) == good


# ---------------------------------------------------------------- recordings without scores, in any root


def test_mixed_root_keeps_all_grasps_without_scores(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"1": 2})  # 12 grasps each, 9 of them over the minimum
    path = root / "1/object_000/scene_0/recording.npz"
    with np.load(path) as recording:
        grasps = recording["grasps"]
    np.savez(path, grasps=grasps)
    first = data.load_dataset(root, 32, quiet=True)
    line = f"{root}: 1 recordings have no scores: all their grasps are kept\n"
    assert capsys.readouterr().err == line and (root / ".cache/points-32.npz").exists()
    assert np.bincount(first.scene).tolist() == [12, 9] and first.num_low == 3
    assert np.isnan(first.scores).tolist() == [True] * 12 + [False] * 9
    assert "12 grasps have none" in data.describe(first)
    read = data.load_dataset(root, 32, quiet=True)  # from the cache
    assert capsys.readouterr().err == line and read.fingerprint == first.fingerprint
    np.testing.assert_array_equal(read.scores, first.scores)
    strict = data.load_dataset(root, 32, min_score=1e6, quiet=True)
    assert np.bincount(strict.scene).tolist() == [12] and strict.fingerprint != first.fingerprint
    np.savez(path, grasps=grasps, scores=np.full(12, 2.0))
    capsys.readouterr()
    assert data.load_dataset(root, 32, quiet=True).fingerprint != first.fingerprint
    assert capsys.readouterr().err == ""
    np.savez(path, grasps=grasps, scores=np.full(12, np.nan))  # what stands there must be a score
    assert "'scores' row 0 is not finite" in fails(data.main, [root], capsys)
