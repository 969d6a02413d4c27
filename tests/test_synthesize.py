"""synthesize.py: a whole root is the same for any number of workers and after any stop; what lies in its place."""

import collections
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import MADE, claim, fails, files_in

import synthesize
from benchmark import make
from benchmark.progress import VERSION
from benchmark.shipped import SETTINGS, ensure_root
from cli.errors import UserError
from files.reading import read_mesh
from hand.described import BENCHMARK

FLAGS = MADE.split()


def run(*argv):
    synthesize.main([str(word) for word in argv])


def test_root_layout(made_root):
    content = json.loads((made_root / "dataset.json").read_text(encoding="utf-8"))
    assert content["complete"] and content["version"] == VERSION and content["objects"] == 4
    files = files_in(made_root)
    assert len(files) == 17 and "03797390/mug_0000/1/recording.npz" in files
    kept = 0
    for path in made_root.rglob("recording.npz"):
        with np.load(path) as recording:
            assert sorted(recording) == ["drawn_from", "grasps", "joint_names", "pose", "scores"]
            assert recording["joint_names"].tolist() == list(BENCHMARK.joint_names)
            kept += (recording["scores"] >= 1.5).sum()
    assert kept == content["grasps_kept"] == 32
    scenes = [read_mesh(made_root / "03797390/mug_0000" / k / "mesh.obj")[0] for k in "01"]
    assert not np.allclose(np.ptp(scenes[0], axis=0), np.ptp(scenes[1], axis=0), atol=1e-3)


def test_workers_and_resuming_change_no_byte(made_root, tmp_path, capsys):
    """Killed: two objects logged, half a line, a third object half written; gone on with by two workers."""
    killed = tmp_path / "killed"
    shutil.copytree(made_root, killed)
    content = json.loads((killed / "dataset.json").read_text(encoding="utf-8"))
    (killed / "dataset.json").unlink()
    lines = [{"version": VERSION, "settings": content["settings"]}]
    for name in ("03797390/mug_0000", "02876657/bottle_0000"):
        lines.append({"object": name, "counts": {"kept": 8}})
    (killed / "progress.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"object": "028', encoding="utf-8"
    )
    shutil.rmtree(killed / "03593526")
    (killed / "02880940/bowl_0000/0/recording.npz").unlink()
    assert "with other settings" in fails(synthesize.main, ["--out", killed, "--objects", 5], capsys)
    with pytest.raises(UserError, match="is unfinished; make it with: .* --objects 4 --grasps 8 --scenes 2 --seed 0"):
        ensure_root(killed)
    run("--out", killed, *FLAGS, "--workers", 2)
    assert (killed / "dataset.json").exists()
    settled = {"dataset.json": "its counts are of this log"}
    assert files_in(killed) | settled == files_in(made_root) | settled


def test_category_sizes():
    sizes = collections.Counter(synset for synset, _ in make.procedural_objects(1500))
    assert sizes.total() == 1500 and sizes["03797390"] == 280 and min(sizes.values()) == sizes["02954340"] == 30
    assert len(make.procedural_objects(17)) == 17


def test_existing_roots(made_root, tmp_path, monkeypatch, capsys):
    argv, written = ("--out", made_root, *FLAGS), (made_root / "dataset.json").stat().st_mtime_ns
    run(*argv)  # complete: nothing to do
    assert (made_root / "dataset.json").stat().st_mtime_ns == written
    assert "32 grasps" in capsys.readouterr().out
    assert "other settings (seed 0 there, 7 here)" in fails(synthesize.main, [*argv, "--seed", 7], capsys)
    (tmp_path / "mine/03797390/a/0").mkdir(parents=True)
    assert "not empty" in fails(synthesize.main, ["--out", tmp_path / "mine"], capsys)
    run("--out", tmp_path / "other", "--objects", 1, "--grasps", 8, "--seed", 1, "--workers", 1)
    mug = "03797390/mug_0000/0/mesh.obj"
    assert files_in(tmp_path / "other")[mug] != files_in(made_root)[mug]
    monkeypatch.chdir(tmp_path)  # where the default root would be made
    meshes = "--objects 3 --out x --meshes .", "does not go with --meshes"
    for words, said in (meshes, ("--objects 3", "--out DIR is needed"), ("--card .", "--out DIR is needed")):
        assert said in fails(synthesize.main, words.split(), capsys)


# ---------------------------------------------------------------- roots that are there already
OTHER = {"objects": 4, "scenes": None, "rescale": True, "quick": False}
ONE = {"objects": 1500, "seed": 0, "meshes": None}  # settings of version 1


def refused(path):
    with pytest.raises(UserError) as error:
        ensure_root(path)
    return str(error.value)


def test_roots_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/03797390").mkdir(parents=True)
    for root in (tmp_path / "mine", claim(Path("made"), **OTHER), claim(Path("data/synthetic"), **SETTINGS)):
        assert ensure_root(root) == root


def test_roots_that_must_be_made_again(tmp_path, monkeypatch):
    """Whoever reads a number of the README must have its data."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/synthetic", "data/full"):
        made = "made by version 1 of the benchmark, this is 2"
        message = refused(claim(Path(name), version=1, **ONE))
        assert f"{name}: {made}; remove it and run: python synthesize.py" in message
    message = refused(claim(Path("mine"), version=1, **ONE | {"objects": None, "meshes": "m", "grasps": 5}))
    assert "remove it and run: python synthesize.py --out mine --seed 0 --meshes m --grasps 5" in message
    assert "settings of its own" in refused(claim(Path("data/synthetic"), **SETTINGS | {"seed": 1}))
