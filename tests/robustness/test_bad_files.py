"""Checkpoints, runs, settings, poses and clouds that are none: named in one clear line, kept as they are, never run."""

import csv
import json
import pickle
import shutil

import numpy as np
import torch
from conftest import Planted
from rules import EXTENSIONS, rejected

import evaluate
import pretrain_jepa
import train
from benchmark import roots
from files import checkpoints

POSE = "--pose 0 0 0.2 0 0 0 1".split()


# ---------------------------------------------------------------- checkpoints


def checkpoint_cases(good):
    """(id, bytes) of files that are no checkpoint, from the bytes of a good one."""
    rng = np.random.default_rng(5)
    yield "empty", b""
    yield "text", b"not a checkpoint\n"
    yield "noise", rng.bytes(1000)
    yield "a pickle with code", pickle.dumps(Planted())
    yield "a pickle with code of protocol 0", pickle.dumps(Planted(), protocol=0)
    for share in rng.uniform(0.001, 0.999, 10):
        yield f"cut short at {share:.1%}", good[: int(share * len(good))]
    yield "the head cut off", good[100:]


def content_cases(good):
    """(id, content) of well-formed files that hold something else than the checkpoint `good`."""
    weights = next(key for key in ("encoder", "model") if key in good)
    yield "a list", [1, 2]
    yield "a tensor", torch.zeros(3)
    yield "an empty dict", {}
    yield "code beside the weights", {"planted": Planted(), weights: Planted()}
    yield "no config", {k: v for k, v in good.items() if k != "config"}
    yield "no weights", {k: v for k, v in good.items() if k != weights}
    yield "weights that are a list", good | {weights: [1]}
    yield "weights that are numbers", good | {weights: {k: 1.0 for k in good[weights]}}
    yield "config is a list", good | {"config": [1]}
    for field, value in (
        ("width", 64), ("depth", 3), ("heads", 5), ("width", 0), ("points", -1), ("points", "many"), ("group", "other"),
        ("dropout", 2.0), ("dropout", float("nan")), ("scale", 0.0), ("patches", 1000), ("pool", 3), ("w1", 8),
    ):  # fmt: skip
        yield f"config says {field} {value}", good | {"config": good["config"] | {field: value}}
    yield "an unknown setting", good | {"config": good["config"] | {"colour": 1}}
    name = sorted(good[weights])[0]
    yield "a weight missing", good | {weights: {k: v for k, v in good[weights].items() if k != name}}
    yield "a weight too many", good | {weights: good[weights] | {"extra": torch.zeros(1)}}
    yield "a weight of another shape", good | {weights: good[weights] | {name: torch.zeros(1, 2, 3)}}


def bad_checkpoints(path):
    """(id, write(path)) of bad versions of a checkpoint file."""
    for name, content in checkpoint_cases(path.read_bytes()):
        yield name, lambda target, content=content: target.write_bytes(content)
    for name, content in content_cases(checkpoints.read_checkpoint(path)):
        yield name, lambda target, content=content: torch.save(content, target)
    yield "a folder", lambda target: target.mkdir()
    yield "a dangling link", lambda target: target.symlink_to("nowhere")
    yield "missing", lambda target: None


def test_bad_encoders(tiny_run, box_root, tmp_path, capsys, planted, problems):
    (tmp_path / "runs").mkdir()
    argv = f"--data {box_root} --runs {tmp_path}/runs --init jepa --steps 2 --quiet --jepa-ckpt".split()
    cases = list(bad_checkpoints(tiny_run / "encoder.pt"))
    assert len(cases) > 35
    for i, (name, write) in enumerate(cases):
        path = tmp_path / f"bad{i}.pt"
        write(path)
        with problems.of(f"encoder {name!r}"):
            rejected(train.main, [*argv, path], (path.name,), capsys, tmp_path)
    for flags in ("--preset small", "--points 32", "--patches 4", "--patch-size 4", "--group ball --radius 0.1"):
        rejected(train.main, [*argv, tiny_run / "encoder.pt", *flags.split()], ("encoder.pt",), capsys, tmp_path)


# ---------------------------------------------------------------- runs


def test_bad_runs(tiny_run, tmp_path, capsys, planted, problems):
    """Bad best.pt and config.json, for evaluation and for one object's prediction."""
    for i, (name, write) in enumerate(bad_checkpoints(tiny_run / "run" / "best.pt")):
        folder = tmp_path / f"run{i}"
        shutil.copytree(tiny_run / "run", folder)
        (folder / "best.pt").unlink()
        write(folder / "best.pt")
        more = ["--mesh", tiny_run / "box.obj", *POSE] if i % 2 else ["--json", folder / "out.json"]
        with problems.of(f"best.pt {name!r}"):
            rejected(evaluate.main, [folder, *more], (folder.name,), capsys, tmp_path)
    good = json.loads((tiny_run / "run" / "config.json").read_text())
    lacking = [{k: v for k, v in good.items() if k != key} for key in ("settings", "network")]
    wrong = ("", "{", "[]", "3", "null", '"text"', "{}", '{"settings": []}', '{"settings": {}, "network": {}}')
    for content in (*wrong, *map(json.dumps, lacking)):
        folder = tmp_path / "config"
        shutil.copytree(tiny_run / "run", folder)
        (folder / "config.json").write_text(content)
        rejected(evaluate.main, [folder], ("config.json",), capsys, folder)
        shutil.rmtree(folder)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", tiny_run / "box.obj"):
        rejected(evaluate.main, [path], (path.name,), capsys, tmp_path)


def test_bad_settings_to_repeat(tiny_run, tmp_path, capsys):
    good = json.loads((tiny_run / "run" / "config.json").read_text())
    cases = (
        ("budget", 7, "--budget"), ("k", 0, "--k"), ("steps", -5, "--steps"), ("pack", "C", "--pack"),
        ("seed", "x", "--seed"), ("lr_head", "nan", "--lr-head"), ("pool", [1, 2], "--pool"),
        ("preset", "huge", "--preset"), ("points", 3.5, "--points"), ("quick", True, "--quick"),
        ("device", "tpu", "--device"), ("held_out", ["12345678"], "12345678"), ("min_score", {}, "--min-score"),
        ("data", str(tmp_path / "nowhere"), "nowhere"), ("init", True, "--init"), ("patches", 65, "patches"),
        ("jepa_ckpt", "x.pt", "--jepa-ckpt"), ("eval_every", 0, "--eval-every"),
    )  # fmt: skip
    path = tmp_path / "config.json"
    for name, value, named in cases:
        path.write_text(json.dumps(good | {"settings": good["settings"] | {name: value}}))
        rejected(train.main, ["--from", path, "--runs", tmp_path / "runs", "--quiet"], (named,), capsys, tmp_path)
    for content in ("[]", "{}", "3", "{", '{"settings": 3}', "\x00"):
        path.write_text(content)
        rejected(train.main, ["--from", path, "--runs", tmp_path / "runs"], ("config.json",), capsys, tmp_path)
    rejected(train.main, ["--from", tmp_path, "--runs", tmp_path / "runs"], (tmp_path.name,), capsys, tmp_path)


def test_bad_unfinished_runs(tiny_run, box_root, tmp_path, capsys, planted, problems):
    """A last.pt of another shape, or of nothing at all, is named and kept as it is."""
    flags = "--name run --preset tiny --steps 2 --keep-last --no-baseline --quiet --resume --threads 1"
    argv = [*f"--data {box_root} --runs {tmp_path}".split(), *flags.split()]
    cases = [*bad_checkpoints(tiny_run / "run" / "last.pt")][:-1]  # without last.pt, --resume starts anew
    good = checkpoints.read_checkpoint(tiny_run / "run" / "last.pt")
    for key, value in (
        ("optimizer", {}), ("optimizer", 3), ("progress", {"stage": 1}), ("progress", []),
        ("rng", torch.zeros(3)), ("generator", None), ("generator", torch.zeros(3)),
    ):  # fmt: skip
        cases.append((f"{key} is {value!r:.20}", lambda path, content=good | {key: value}: torch.save(content, path)))
    shutil.copytree(tiny_run / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    accepted = []
    for name, write in cases:
        path = tmp_path / "run" / "last.pt"
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write(path)
        if name == "no config" or name.startswith(("config", "an unknown")) or name == "a dangling link":
            accepted.append(name)  # the run's own settings count, and a link to nothing is nothing
            continue
        with problems.of(f"last.pt {name!r}"):
            rejected(train.main, argv, ("last.pt",), capsys, tmp_path)
    assert len(cases) - len(accepted) > 25
    (tmp_path / "run" / "last.pt").unlink()
    for content in ("", "[]", "{}"):
        (tmp_path / "run" / "config.json").write_text(content)
        rejected(train.main, argv, ("config.json",), capsys, tmp_path)


def test_files_of_a_run_are_plain(tiny_run):
    """What the scripts write can be read without a single pickled class."""
    for path in (tiny_run / "run" / "best.pt", tiny_run / "run" / "last.pt", tiny_run / "encoder.pt"):
        assert isinstance(torch.load(path, weights_only=True), dict)
    with open(tiny_run / "run" / "metrics.csv") as file:
        assert len(list(csv.DictReader(file))) >= 1


# ---------------------------------------------------------------- one object, saved predictions


def pose_cases(folder):
    """(id, flags after --mesh FILE or what the file poses.npy holds, what the message names)."""
    rng = np.random.default_rng(6)
    for text in (
        "", "0", "0 0 0.2 0 0 0", "0 0 0.2 0 0 0 x", "0 0 nan 0 0 0 1", "0 0 inf 0 0 0 1", "0 0 0.2 0 0 0 0",
        "0 0 0.2 1 1 1 1", "0 0 200 0 0 0 1", "0 0 1.2 0 0 0 1", "0 0 0.2 0 0 0 0.9", "0 0 1e400 0 0 0 1",
        "0,0,0.2,0,0,0,1", "0 0 -1e3 0 0 0 1",
    ):  # fmt: skip
        yield f"--pose {text}", ["--pose", *text.split()], "--pose"
    good = np.array([[0, 0, 0.2, 0, 0, 0, 1.0]] * 3)
    for _ in range(6):
        bad, row = good.copy(), rng.integers(3)
        bad[row, rng.integers(7)] = rng.choice([np.nan, np.inf, 50])
        yield f"poses with a bad row {row}", bad, f"row {row}"
    for shape in ((), (7,), (0, 7), (3, 6), (3, 8), (1, 3, 7)):
        yield f"poses of shape {shape}", np.zeros(shape), "(n, 7)"
    for kind in (object, bool, complex, "U3"):
        yield f"poses of type {kind}", good.astype(kind), "poses.npy"
    yield "a planted pickle", np.array([Planted()], dtype=object), "poses.npy"
    for content in (b"", b"text", rng.bytes(200), pickle.dumps(Planted())):
        yield "poses that are no array", content, "poses.npy"
    yield "an archive", folder, "poses.npy"


def test_bad_poses(tiny_run, tmp_path, capsys, planted, problems):
    path, argv = tmp_path / "poses.npy", [tiny_run / "run", "--mesh", tiny_run / "box.obj"]
    for name, case, named in pose_cases(tmp_path):
        if isinstance(case, bytes):
            path.write_bytes(case)
        elif isinstance(case, np.ndarray):
            np.save(path, case, allow_pickle=True)
        elif not isinstance(case, list):
            with open(path, "wb") as file:
                np.savez(file, a=np.zeros((2, 7)))
        flags = case if isinstance(case, list) else ["--poses", path]
        with problems.of(name):
            rejected(evaluate.main, [*argv, *flags], (named,), capsys, tmp_path, tiny_run)


def test_bad_words_to_evaluate(tiny_run, tmp_path, capsys, problems):
    run, mesh, poses = tiny_run / "run", ["--mesh", tiny_run / "box.obj"], tmp_path / "poses.npy"
    for flags, named in (
        ([], "RUN"),
        ([run, *POSE], "--mesh"),
        ([run, *mesh], "--pose"),
        ([run, *mesh, *POSE, "--poses", poses], "--pose"),
        ([run, "--predictions", poses], "RUN"),
        (["--predictions", poses, *mesh], "--mesh"),
        ([run, "--mesh", tiny_run / "nowhere.obj", *POSE], "nowhere.obj"),
        ([run, "--mesh", tiny_run / "encoder.pt", *POSE], "encoder.pt"),
        ([run, "--mesh", tmp_path, *POSE], tmp_path.name),
        ([run, "--suite", "none"], "--suite"),
        ([run, "--suite", "all"], "--suite"),
        ([run, "--checkpoint", "first"], "--checkpoint"),
        ([run, "--data", tmp_path / "moved"], "moved"),
        ([run, "--seed", "-1"], "--seed"),
    ):
        with problems.of(flags):
            rejected(evaluate.main, flags, (named,), capsys, tmp_path, tiny_run)


def test_bad_clouds(tiny_run, tmp_path, capsys, problems):
    clouds = {
        "few": np.zeros((5, 3)), "far": np.eye(64, 3) * 1000, "point": np.ones((64, 3)),
        "nan": np.full((64, 3), np.nan), "wide": np.zeros((64, 4)), "huge": np.eye(64, 3) * 1e300,
    }  # fmt: skip
    for name, cloud in clouds.items():
        path = tmp_path / f"{name}.npy"
        np.save(path, cloud)
        with problems.of(name):
            argv = [tiny_run / "run", "--mesh", path, *POSE]
            rejected(evaluate.main, argv, (path.name,), capsys, tmp_path, tiny_run)


def test_bad_predictions(tmp_path, capsys, planted, problems):
    path = tmp_path / "predictions.npz"
    good = {"joints_pred": np.zeros((4, 2, 3)), "logits": np.zeros((4, 2)), "joints_true": np.zeros((4, 3))}
    code = np.array([[Planted()] * 2] * 4, dtype=object)
    for change in (
        {"logits": np.zeros((4, 3))}, {"joints_true": np.zeros((5, 3))}, {"joints_pred": np.zeros((4, 2))},
        {"logits": np.full((4, 2), np.nan)}, {"joints_pred": np.zeros((0, 2, 3))}, {"object": np.array(["a"])},
        {"logits": np.zeros((4, 2), int)}, {"logits": code},
    ):  # fmt: skip
        np.savez(path, **good | change)
        with problems.of(str(change)[:60]):
            rejected(evaluate.main, ["--predictions", path], (path.name,), capsys, tmp_path)


# ---------------------------------------------------------------- shapes to pretrain on


def test_bad_shapes_to_pretrain_on(tmp_path, capsys, monkeypatch, planted):
    rng = np.random.default_rng(7)
    shapes, out = tmp_path / "shapes", tmp_path / "out"
    shapes.mkdir()
    out.mkdir()
    for i in range(3):
        np.save(shapes / f"{i}.npy", rng.normal(size=(64, 3)))
    tiny = f"--out {out}/e.pt --preset tiny --steps 2 --batch 2 --quiet".split()
    argv = ["--clouds", shapes, *tiny]
    code = np.array([Planted()], dtype=object)
    empty, infinite, flat, few = np.zeros((64, 3)), np.full((64, 3), np.inf), np.zeros((64, 2)), np.zeros((63, 3))
    for cloud in (empty, infinite, flat, few, code, np.eye(64, 3) * 1e300):
        np.save(shapes / "bad.npy", cloud, allow_pickle=True)
        rejected(pretrain_jepa.main, argv, ("bad.npy",), capsys, out, shapes)
    (shapes / "bad.npy").unlink()
    np.save(tmp_path / "outside.npy", rng.normal(size=(64, 3)))
    (shapes / "link.npy").symlink_to(tmp_path / "outside.npy")
    rejected(pretrain_jepa.main, argv, ("link.npy", "leads out"), capsys, out, shapes)
    (shapes / "link.npy").unlink()
    for extension in EXTENSIONS:
        path = shapes / f"bad{extension}"
        path.write_bytes(b"x")
        rejected(pretrain_jepa.main, argv, (path.name,), capsys, out, shapes)
        path.unlink()
    for content in (b"", b"text", rng.bytes(300), pickle.dumps(Planted())):
        (out / "e.last.pt").write_bytes(content)
        rejected(pretrain_jepa.main, [*argv, "--resume"], ("e.last.pt",), capsys, out)
    for content in ({}, [1], {"settings": {}}):
        torch.save(content, out / "e.last.pt")
        rejected(pretrain_jepa.main, [*argv, "--resume"], ("e.last.pt",), capsys, out)
    pool = tmp_path / "data" / "pretraining" / f"v{roots.VERSION}-4x64-z-seed0-all.npy"
    pool.parent.mkdir(parents=True)
    (out / "e.last.pt").unlink()
    monkeypatch.chdir(tmp_path)
    for content in (b"", pickle.dumps(Planted())):
        pool.write_bytes(content)
        rejected(pretrain_jepa.main, ["--num-clouds", 4, *tiny], (pool.name,), capsys, out)
