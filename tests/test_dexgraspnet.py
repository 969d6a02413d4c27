"""synthesize.py --import dexgraspnet, and recordings without scores: grasps of other hands, from end to end."""

import pickle
import re

import numpy as np
import pytest
from conftest import Planted, fails, random_grasps, stopped, write_box, write_root
from scipy.spatial.transform import Rotation

import data
import synthesize
from benchmark import dexgraspnet
from cli.errors import UserError
from hand.described import BENCHMARK

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
    write_box(folder / "meshdata" / name / "coacd/decomposed.obj", size, lambda box: box - (0, 0, size[2] / 2))
    np.save(folder / "dataset" / f"{name}.npy", np.array(entries, dtype=object), allow_pickle=True)
    return folder / "dataset" / f"{name}.npy"


def bring(folder, out):
    synthesize.main([str(word) for word in ("--out", out, "--import", "dexgraspnet", folder, "--workers", 1)])


def test_frames_scales_and_names(tmp_path, capsys):
    entries = entries_of(np.random.default_rng(0), 9)
    for name in ("core-mug-857", "sem-Bottle-437", "ddg-gd_banana_002"):
        write_object(tmp_path / "in", name, entries)
    bring(tmp_path / "in", tmp_path / "out")
    assert "3 objects, 27 grasps" in capsys.readouterr().out
    found = data.load_dataset(tmp_path / "out", 500, quiet=True)
    assert capsys.readouterr().err == f"{tmp_path / 'out'}: 6 recordings without scores: all their grasps are kept\n"
    objects = ["Bottle/sem-Bottle-437", "mug/core-mug-857", "unsorted/ddg-gd_banana_002"]
    assert found.scenes == [f"{name}/scale_{scale}" for name in objects for scale in ("0.06", "0.1")]
    assert found.joint_names == sorted(JOINTS) and np.isnan(found.scores).all() and found.num_low == 0
    np.testing.assert_allclose(np.ptp(found.clouds[:2], axis=1)[:, 2], (0.12, 0.2), atol=5e-3)
    for scene, scale in ((0, 0.06), (1, 0.1)):
        own = [entry["qpos"] for entry in entries if abs(entry["scale"] - scale) < 1e-3]
        for row, qpos in zip(np.flatnonzero(found.scene == scene), own, strict=True):
            wrist = [qpos["WRJTx"], qpos["WRJTy"], qpos["WRJTz"] + scale]  # the box was centred, and is 2 units high
            np.testing.assert_allclose(found.poses[row, :3], wrist, atol=1e-6)
            x, y, z = (Rotation.from_rotvec(qpos[f"WRJR{axis}"] * np.eye(3)[i]) for i, axis in enumerate("xyz"))
            turn = (z * y * x).as_matrix()  # about fixed axes: x is first
            np.testing.assert_allclose(Rotation.from_quat(found.poses[row, 3:]).as_matrix(), turn, atol=1e-6)
            np.testing.assert_allclose(found.joints[row], [qpos[name] for name in sorted(JOINTS)], atol=1e-6)
    assert re.search("scores +none", data.describe(found))
    for path in write_root(tmp_path / "low", {"1": 1}, names=BENCHMARK.joint_names).rglob("recording.npz"):
        np.savez(path, **dict(np.load(path)) | {"scores": np.ones(12)})
    for name in ("out", "low"):
        code, err = stopped(synthesize.main, ["--card", tmp_path / name, "--out", tmp_path / "card"])
        assert code == 2 and f"error: {tmp_path / name}: has another hand or not all scores" in err


def test_recordings_with_and_without_scores_in_one_root(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"1": 2})  # 12 grasps each, 9 of them over the minimum
    path = root / "1/object_000/scene_0/recording.npz"
    with np.load(path) as recording:
        np.savez(path, grasps=recording["grasps"])
    for _ in range(2):  # read, then from the cache
        found = data.load_dataset(root, 32, quiet=True)
        assert capsys.readouterr().err == f"{root}: 1 recording without scores: all their grasps are kept\n"
        assert np.bincount(found.scene).tolist() == [12, 9] and found.num_low == 3
        assert np.isnan(found.scores).tolist() == [True] * 12 + [False] * 9
    assert "12 grasps have none" in data.describe(found)
    assert np.bincount(data.load_dataset(root, 32, min_score=1e6, quiet=True).scene).tolist() == [12]


# ---------------------------------------------------------------- what is wrong with a file


FAULTS = {  # how to spoil the fourth of five entries, and what is said
    "no scale": (lambda entry: entry.pop("scale"), "entry 3: 'scale' is not in it"),
    "long": (lambda entry: entry.update(scale=90.0), "entry 3: 'scale' makes the object 0 or over 2 m long"),
    "no joint": (lambda entry: entry["qpos"].pop(JOINTS[1]), "entry 3: 'robot0:FFJ3' is not in it"),
    "NaN": (lambda entry: entry["qpos"].update({JOINTS[1]: float("nan")}), "'robot0:FFJ3' is not a finite number"),
    "degrees": (lambda entry: entry["qpos"].update({JOINTS[1]: 90.0}), "entry 3: a joint is turned by over 720"),
    "more": (lambda entry: entry["qpos"].update({"robot0:LFJ9": 0.1}), "'robot0:LFJ9' is not in it, or not in entry 0"),
    "far": (lambda entry: entry["qpos"].update(WRJTx=120.0), "row 3: the wrist is over 2 m away"),
}


@pytest.mark.parametrize("spoil, message", FAULTS.values(), ids=FAULTS)
def test_faults_name_file_and_entry(tmp_path, spoil, message):
    entries = entries_of(np.random.default_rng(0), 5)
    spoil(entries[3])
    path = write_object(tmp_path, "core-mug-1", entries)
    with pytest.raises(UserError) as error:
        dexgraspnet.read_object(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_files_that_are_no_grasps(tmp_path, capsys, problems):
    entries = entries_of(np.random.default_rng(0), 5)
    path = write_object(tmp_path, "core-mug-1", entries)
    whole = path.read_bytes()
    np.save(tmp_path / "numbers.npy", np.arange(5))
    cases = {
        "cut": (whole[:-40], "cut short"), "no header": (pickle.dumps(entries), "not an array"),
        "numbers": ((tmp_path / "numbers.npy").read_bytes(), "plain numbers"),
        "pointer": (b"version https://git-lfs x", "Git LFS"),
    }  # fmt: skip
    for name, (content, message) in cases.items():
        with problems.of(name):
            path.write_bytes(content)
            with pytest.raises(UserError, match=message):
                dexgraspnet.read_object(path)
    argv = ["--out", tmp_path / "out", "--workers", 1, "--import", "dexgraspnet"]
    assert "none of its objects (1) can be used" in fails(synthesize.main, [*argv, tmp_path], capsys)
    assert not (tmp_path / "out").exists()
    assert "no .npy files" in fails(synthesize.main, [*argv, tmp_path / "meshdata"], capsys)
    assert "only format" in fails(synthesize.main, ["--out", tmp_path / "out", "--import", "other", tmp_path], capsys)
    assert "--grasps" in fails(synthesize.main, [*argv, tmp_path, "--grasps", 3], capsys)
    path.write_bytes(whole)
    write_object(tmp_path, "core-mug-2", entries)
    (tmp_path / "meshdata/core-mug-1/coacd/decomposed.obj").unlink()
    capsys.readouterr()
    bring(tmp_path, tmp_path / "out")  # one good object: the other one is named and left out
    assert "not used: mug/core-mug-1: " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out/mug").iterdir()] == ["core-mug-2"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_no_pickle_runs_code(tmp_path, protocol, planted):
    path = write_object(tmp_path, "core-mug-1", entries_of(np.random.default_rng(0), 5))
    header = path.read_bytes()
    header = header[: header.index(b"\n") + 1]
    evil = np.array([{"qpos": Planted(), "scale": 1.0}], dtype=object)
    path.write_bytes(header + pickle.dumps(evil, protocol=protocol))
    with pytest.raises(UserError, match=r"names (builtins|__builtin__)\.exec"):
        dexgraspnet.read_object(path)
    good = np.array(entries_of(np.random.default_rng(0), 5), dtype=object)
    path.write_bytes(header + pickle.dumps(good, protocol=protocol))
    assert len(dexgraspnet.read_object(path)[0]) == 2
