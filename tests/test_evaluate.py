"""evaluate.py: every metric against loops, intervals against plain resampling, the command on a tiny run."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import OBJECTS, fails, write_box, write_root
from samples import random_predictions
from scipy.spatial.transform import Rotation

import evaluate
import train
from files.reading import read_mesh
from hand import kinematics
from model import load_run

ARRAYS = ("joints_pred", "logits", "joints_true")


def naive_metrics(joints_pred, logits, joints_true):
    """Every metric by loops over samples, hypotheses and joints."""
    n, k, j = joints_pred.shape
    totals = dict.fromkeys(("top", "best", "top15", "c10", "c15", "c20", "strict", "diversity", "selector"), 0.0)
    for i in range(n):
        apart = [[abs(joints_pred[i, a, b] - joints_true[i, b]) for b in range(j)] for a in range(k)]
        mse = [sum(d**2 for d in row) / j for row in apart]
        top, winner = max(range(k), key=lambda a: logits[i, a]), min(range(k), key=lambda a: mse[a])
        totals["top"] += mse[top]
        totals["best"] += mse[winner]
        totals["top15"] += math.degrees(math.sqrt(mse[top])) < 15
        totals["selector"] += top == winner
        for degrees in (10, 15, 20):
            totals[f"c{degrees}"] += any(math.degrees(math.sqrt(m)) < degrees for m in mse)
        totals["strict"] += any(all(math.degrees(d) < 15 for d in row) for row in apart)
        pairs = [(joints_pred[i, a], joints_pred[i, b]) for a in range(k) for b in range(a)]
        rms = [math.sqrt(sum((left[c] - right[c]) ** 2 for c in range(j)) / j) for left, right in pairs]
        totals["diversity"] += sum(rms) / len(pairs) if pairs else 0.0
    mean = {name: value / n for name, value in totals.items()}
    top, best = math.sqrt(mean["top"]), math.sqrt(mean["best"])
    return {
        "top_logit_rmse": top, "best_of_k_rmse": best, "selection_gap": top - best, "coverage_10": mean["c10"],
        "coverage_15": mean["c15"], "coverage_20": mean["c20"], "coverage_15_all_joints": mean["strict"],
        "diversity": mean["diversity"], "selector_accuracy": mean["selector"], "top_coverage_15": mean["top15"],
    }  # fmt: skip


@pytest.mark.parametrize("k", [1, 2, 5])
def test_metrics_against_loops(k):
    p = random_predictions(k, k=k)
    ours = evaluate.metrics(*(torch.from_numpy(p[name]) for name in ARRAYS))
    naive = naive_metrics(p["joints_pred"], p["logits"], p["joints_true"])
    assert set(ours) == set(naive)
    for name in naive:
        assert ours[name] == pytest.approx(naive[name], abs=1e-6), name


def test_metrics_by_hand():
    joints_hat = torch.tensor([[[0.3, 0.3], [0.1, 0.1]]])
    m = evaluate.metrics(joints_hat, torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    assert m["top_logit_rmse"] == pytest.approx(0.3) and m["best_of_k_rmse"] == pytest.approx(0.1)
    assert m["coverage_10"] == 1 and m["selector_accuracy"] == 0 and m["diversity"] == pytest.approx(0.2)


def test_bootstrap_draws_objects_with_all_their_grasps():
    p = random_predictions(0, n=200, objects=20)
    statistics = evaluate.sample_statistics(*(torch.from_numpy(p[name]) for name in ARRAYS))
    low, high = evaluate.bootstrap(statistics, p["object"], seed=1)["top_logit_rmse"]
    squared = statistics["top_logit_rmse"].numpy()
    rng, ids, values = np.random.default_rng(5), np.unique(p["object"]), []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(p["object"] == name) for name in rng.choice(ids, len(ids))])
        values.append(math.sqrt(squared[rows].mean()))
    assert [low, high] == pytest.approx(np.percentile(values, (2.5, 97.5)).tolist(), abs=0.004)
    assert evaluate.bootstrap(statistics, np.repeat(["a", "b"], 100)) == {}


def test_intervals_widen_when_grasps_repeat():
    """Copying every grasp ten times adds no objects, so it must not narrow the interval."""
    p = random_predictions(3, n=100, objects=10)
    wide = evaluate.summarize(p)["interval_95"]["top_logit_rmse"]
    copied = evaluate.summarize({name: np.concatenate([value] * 10) for name, value in p.items()})
    assert copied["interval_95"]["top_logit_rmse"] == pytest.approx(wide)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on boxes whose joints have the names of the hand that pictures show."""
    folder = tmp_path_factory.mktemp("runs")
    root = write_root(folder / "root", OBJECTS, names=kinematics.JOINT_NAMES)
    flags = "--preset tiny --steps 12 --objects-per-batch 4 --name run --no-baseline --quiet"
    train.main(["--data", str(root), "--runs", str(folder), *flags.split()])
    return folder / "run"


def test_every_suite_twice_to_the_bit_and_from_saved_predictions(run, tmp_path, capsys):
    suites = "--suite train val test test_category test_grasp test_grasp_train".split()
    for name in ("a", "b"):
        outputs = f"--json {tmp_path}/{name}.json --save-predictions {tmp_path}/{name}.npz"
        evaluate.main([str(run), *suites, *outputs.split()])
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
    assert first == second and list(first["suites"]) == suites[1:]
    a, b = (np.load(tmp_path / f"{name}.npz") for name in ("a", "b"))
    assert all(np.array_equal(a[name], b[name]) for name in a.files)
    evaluate.main(["--predictions", str(tmp_path / "a.npz"), "--json", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    for suite in first["suites"]:
        rmse = first["suites"][suite]["top_logit_rmse"]
        assert again["suites"][suite]["top_logit_rmse"] == pytest.approx(rmse, abs=1e-12)
    naive = naive_metrics(a["joints_pred"], a["logits"], a["joints_true"])
    assert {name: again[name] for name in naive} == pytest.approx(naive, abs=1e-6)
    assert "test_category" in capsys.readouterr().out


def test_predictions_without_names(tmp_path, capsys):
    p = random_predictions(0)
    np.savez(tmp_path / "p.npz", **{name: p[name] for name in ARRAYS})
    evaluate.main(["--predictions", str(tmp_path / "p.npz"), "--json", str(tmp_path / "p.json")])
    saved = json.loads((tmp_path / "p.json").read_text())
    assert "suites" not in saved and "interval_95" not in saved and saved["top_logit_rmse"] > saved["best_of_k_rmse"]
    bad = {name: p[name] for name in ARRAYS} | {"logits": p["logits"][:, :2]}
    np.savez(tmp_path / "bad.npz", **bad)
    assert "bad.npz" in fails(evaluate.main, ["--predictions", tmp_path / "bad.npz"], capsys)
    (tmp_path / "text.npz").write_text("no")
    assert "text.npz" in fails(evaluate.main, ["--predictions", tmp_path / "text.npz"], capsys)


BAD_ARRAYS = {
    "K = 0": {"joints_pred": np.zeros((60, 0, 3)), "logits": np.zeros((60, 0))},
    "J = 0": {"joints_pred": np.zeros((60, 4, 0)), "joints_true": np.zeros((60, 0))},
    "n = 0": {"joints_pred": np.zeros((0, 4, 3)), "logits": np.zeros((0, 4)), "joints_true": np.zeros((0, 3))},
    "huge": {"joints_true": np.full((60, 3), 1e300)},
    "not a number": {"logits": np.full((60, 4), np.nan)},
    "whole numbers": {"logits": np.zeros((60, 4), int)},
    "suites that are numbers": {"suite": np.arange(60)},
    "objects that are numbers": {"object": np.arange(60.0)},
    "too few suites": {"suite": np.array(["val"])},
}


@pytest.mark.parametrize("bad", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_a_bad_file_of_predictions_is_one_line(tmp_path, capsys, bad):
    p = random_predictions(0)
    np.savez(tmp_path / "bad.npz", **{name: p[name] for name in ARRAYS} | bad)
    assert "bad.npz" in fails(evaluate.main, ["--predictions", tmp_path / "bad.npz"], capsys)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_predictions_of_any_precision(tmp_path, dtype):
    p = random_predictions(0)
    np.savez(tmp_path / "p.npz", **{name: p[name].astype(dtype) for name in ARRAYS})
    found = evaluate.main(["--predictions", str(tmp_path / "p.npz")])
    naive = naive_metrics(*(p[name].astype(dtype).astype(float) for name in ARRAYS))
    assert found["top_logit_rmse"] == pytest.approx(naive["top_logit_rmse"], rel=1e-4)


def copied(root, folder, change):
    """A copy of a root in which `change` has altered the arrays of every recording, a dict each."""
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns(".cache"))
    for path in folder.rglob("recording.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **arrays | change(arrays))
    return folder


def test_joints_of_another_order_are_not_scored(run, box_root, tmp_path, capsys):
    """Equal in number, and so accepted by the network; recordings without names cannot be told apart."""
    turned = copied(
        box_root, tmp_path / "turned", lambda arrays: {"joint_names": np.array(kinematics.JOINT_NAMES[::-1])}
    )
    said = fails(evaluate.main, [run, "--suite", "all", "--data", turned], capsys)
    assert f"joint 0 is '{kinematics.JOINT_NAMES[-1]}', in the run '{kinematics.JOINT_NAMES[0]}'" in said
    fewer = copied(
        box_root,
        tmp_path / "fewer",
        lambda arrays: {"grasps": arrays["grasps"][:, :-1], "joint_names": np.array(kinematics.JOINT_NAMES[:-1])},
    )
    assert "has 11 joints, the run 12" in fails(evaluate.main, [run, "--suite", "all", "--data", fewer], capsys)


def test_what_is_no_run_is_told_apart(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.pt").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "file.pt"):
        assert "no run" in fails(evaluate.main, [path], capsys)
    assert "holds 1 runs and is none" in fails(evaluate.main, [run.parent], capsys)
    shutil.copytree(run, tmp_path / "early", ignore=shutil.ignore_patterns("best.pt"))
    assert "first validation" in fails(evaluate.main, [tmp_path / "early"], capsys)


def test_a_root_that_cannot_be_split_names_the_suite_that_can(run, tmp_path, capsys):
    root = write_root(tmp_path / "one", {"02876657": 1})
    assert "--suite all" in fails(evaluate.main, [run, "--data", root], capsys)


def test_one_object_from_the_command_line(run, tmp_path, capsys):
    write_box(tmp_path / "mug.obj", np.array([0.1, 0.12, 0.15]))
    pose = ["0.01", "-1e-2", "0.2", "0", "0", "0.6", "-0.8"]
    evaluate.main([str(run), "--mesh", str(tmp_path / "mug.obj"), "--pose", *pose])
    printed = json.loads(capsys.readouterr().out)
    hypotheses = printed["predictions"][0]["hypotheses"]
    assert len(hypotheses) == 5 and len(printed["joint_names"]) == 12
    assert all(len(h["joints"]) == 12 for h in hypotheses)
    assert sum(h["probability"] for h in hypotheses) == pytest.approx(1, abs=1e-5)
    assert hypotheses[0]["probability"] == max(h["probability"] for h in hypotheses)
    flipped = pose[:3] + ["0", "0", "-0.6", "0.8"]  # the same rotation
    evaluate.main([str(run), "--mesh", str(tmp_path / "mug.obj"), "--pose", *flipped])
    again = json.loads(capsys.readouterr().out)
    assert again["predictions"][0]["hypotheses"] == hypotheses

    model = load_run(run)
    cloud = evaluate.read_cloud(tmp_path / "mug.obj", model.config.points)
    np.save(tmp_path / "cloud.npy", cloud)
    np.save(tmp_path / "poses.npy", np.array([pose, pose], dtype=float))
    evaluate.main([str(run), "--mesh", str(tmp_path / "cloud.npy"), "--poses", str(tmp_path / "poses.npy")])
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2


def test_up_is_turned_and_the_wrist_with_it(run, tmp_path, capsys):
    """A y-up mesh and a pose in its frame give what the same things give when they stand on z = 0."""
    write_box(tmp_path / "upright.obj", np.array([0.1, 0.12, 0.15]))
    mesh = read_mesh(tmp_path / "upright.obj")
    lying = mesh[0][:, [0, 2, 1]] * (1, 1, -1)  # z up -> y up
    lines = ["v %.6f %.6f %.6f" % tuple(v) for v in lying] + ["f %d %d %d" % tuple(f + 1) for f in mesh[1]]
    (tmp_path / "lying.obj").write_text("\n".join(lines))
    pose = np.array([0.02, -0.05, 0.25, 0, 0.6, 0, 0.8])
    turn = Rotation.from_euler("x", -90, degrees=True)  # z up -> y up
    turned = np.r_[turn.apply(pose[:3]), (turn * Rotation.from_quat(pose[3:])).as_quat()]

    def joints_of(name, pose, *flags):
        evaluate.main([str(run), "--mesh", str(tmp_path / name), "--pose", *map(str, pose), *flags])
        printed = json.loads(capsys.readouterr().out)["predictions"][0]
        assert printed["pose"] == pytest.approx(list(pose))  # as it was given
        return [h["joints"] for h in printed["hypotheses"]]

    upright, as_lying = joints_of("upright.obj", pose), joints_of("lying.obj", turned, "--up", "y")
    unturned = joints_of("lying.obj", turned)  # another question
    # another file is another sample of the surface, so not to the bit
    assert np.abs(np.subtract(upright, as_lying)).max() < 0.1 * np.abs(np.subtract(upright, unturned)).max()


def test_all_objects_of_another_root(run, box_root, tmp_path, capsys):
    evaluate.main([str(run), "--suite", "all", "--data", str(box_root), "--json", str(tmp_path / "all.json")])
    suites = json.loads((tmp_path / "all.json").read_text())["suites"]
    assert list(suites) == ["all"] and suites["all"]["num_objects"] == 18 and suites["all"]["num_grasps"] == 18 * 9
    own = json.loads((run / "config.json").read_text())["settings"]["data"]
    assert "was trained on it" in fails(evaluate.main, [run, "--suite", "all", "--data", own], capsys)


def test_joints_outside_the_limits_are_counted(run, tmp_path, capsys, monkeypatch):
    write_box(tmp_path / "box.obj", np.array([0.1, 0.1, 0.1]))
    argv = [str(run), "--mesh", str(tmp_path / "box.obj"), "--pose", *"0 0 0.2 1 0 0 0".split()]
    result = evaluate.main(argv)
    joints = np.array([h["joints"] for h in result["predictions"][0]["hypotheses"]])  # (K, J)
    outside = (joints < kinematics.LIMITS[:, 0] - 1e-3) | (joints > kinematics.LIMITS[:, 1] + 1e-3)
    assert result["joints_outside_limits"] == outside.sum()
    monkeypatch.setattr(kinematics, "LIMITS", np.tile([5.0, 6.0], (12, 1)))
    assert evaluate.main(argv)["joints_outside_limits"] == joints.size


def test_picture(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluate, "draw_grasps", lambda sheet, path: drawn.append((sheet, path)))
    evaluate.main([str(run), "--picture", str(tmp_path / "picture.png")])
    ((sheet, path),) = drawn
    assert path == str(tmp_path / "picture.png") and len(sheet) == 6  # three val objects, recorded and predicted
    for (_, _, recorded, _), (_, _, predicted, title) in zip(sheet[::2], sheet[1::2]):
        assert np.array_equal(recorded[:7], predicted[:7])
        assert f"{math.degrees(np.sqrt(np.mean((recorded[7:] - predicted[7:]) ** 2))):.1f}°" in title


def test_one_object_errors(run, tmp_path, capsys):
    write_box(tmp_path / "box.obj", np.array([0.1, 0.1, 0.1]))
    np.save(tmp_path / "few.npy", np.zeros((3, 3)))
    good = ["--pose", 0, 0, 0, 0, 0, 0, 1]
    for argv, message in (
        ([run, "--mesh", tmp_path / "box.obj"], "--pose"),
        ([run, "--mesh", tmp_path / "box.obj", "--pose", 0, 0, 0, 0, 0, 0, 2], "norm"),
        ([run, "--mesh", tmp_path / "box.obj", "--pose", 0, 0, "nan", 0, 0, 0, 1], "--pose"),
        ([run, "--mesh", tmp_path / "box.obj", "--pose", 0, 0, 0.7, 0, 0, 0, 1], "0.6 m from the mesh"),
        ([run, "--checkpoint", "last"], "--keep-last"),
        ([run, "--mesh", tmp_path / "missing.obj", *good], "missing.obj"),
        ([run, "--mesh", tmp_path / "few.npy", *good], "at least"),
        ([run, "--mesh", tmp_path / "box.txt", *good], "box.txt"),
        ([tmp_path / "norun", "--mesh", tmp_path / "box.obj", *good], "norun"),
        ([], "RUN"),
        ([run, "--predictions", "x.npz"], "either"),
    ):
        assert message in fails(evaluate.main, argv, capsys)
