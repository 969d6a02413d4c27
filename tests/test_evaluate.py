"""evaluate.py: every metric against loops, intervals against plain resampling, the command on a tiny run."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from conftest import OBJECTS, fails, write_root
from samples import random_predictions

import evaluate
import train
import walkthrough
from hand.described import BENCHMARK
from files.writing import read_json
from pictures import draw

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
    ours = evaluate.summarize({name: p[name] for name in ARRAYS})
    naive = naive_metrics(p["joints_pred"], p["logits"], p["joints_true"])
    assert set(ours) == set(naive) | {"num_grasps"}
    for name in naive:
        assert ours[name] == pytest.approx(naive[name], abs=1e-6), name


def test_metrics_of_a_thousand_hypotheses():
    """All pairs at once would be 5 GB of (n, K, K, J)."""
    p = random_predictions(0, n=5, k=1000, j=12)
    distances = [pdist(joints_hat) / math.sqrt(12) for joints_hat in p["joints_pred"]]
    found = evaluate.summarize({name: p[name] for name in ARRAYS})
    assert found["diversity"] == pytest.approx(np.mean(distances), rel=1e-6)


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


# ---------------------------------------------------------------- the command


def test_every_suite_twice_to_the_bit_and_from_saved_predictions(named_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suites = "--suite train val test test_category test_grasp test_grasp_train".split()
    first, second = (
        evaluate.main([str(named_run), *suites, *f"--json json --save-predictions {name}.npz".split()]) for name in "ab"
    )
    assert first == second == read_json(tmp_path / "json") and list(first["suites"]) == suites[1:]
    a, b = (np.load(tmp_path / f"{name}.npz") for name in "ab")
    assert all(np.array_equal(a[name], b[name]) for name in a.files)
    again = evaluate.main(["--predictions", str(tmp_path / "a.npz")])
    for suite, found in first["suites"].items():
        assert again["suites"][suite]["top_logit_rmse"] == pytest.approx(found["top_logit_rmse"], abs=1e-12)
    naive = naive_metrics(a["joints_pred"], a["logits"], a["joints_true"])
    assert {name: again[name] for name in naive} == pytest.approx(naive, abs=1e-6)


def test_saved_predictions_of_any_precision_without_names(tmp_path, capsys):
    p = random_predictions(0)
    for dtype in (np.float16, np.float32, np.float64, np.longdouble):
        np.savez(tmp_path / "p.npz", **{name: p[name].astype(dtype) for name in ARRAYS})
        found = evaluate.main(["--predictions", str(tmp_path / "p.npz")])
        naive = naive_metrics(*(p[name].astype(dtype).astype(float) for name in ARRAYS))
        assert found["top_logit_rmse"] == pytest.approx(naive["top_logit_rmse"], rel=1e-4)
        assert "suites" not in found and "interval_95" not in found


def test_joints_of_another_order_are_not_scored(named_run, tiny_run, tmp_path, capsys):
    """Equal in number, and so accepted by the network; recordings without names cannot be told apart."""
    names, numbered = BENCHMARK.joint_names, [f"joint_{i}" for i in range(12)]
    for run, ours in ((named_run, names), (tiny_run / "run", numbered)):
        turned = write_root(tmp_path / ours[0], {"02876657": 2}, names=ours[::-1])
        said = fails(evaluate.main, [run, "--suite", "all", "--data", turned], capsys)
        assert f"joint 0 is '{ours[-1]}', in the run '{ours[0]}'" in said
    fewer = write_root(tmp_path / "fewer", {"02876657": 2}, num_joints=11, names=names[:-1])
    assert "has 11 joints, the run 12" in fails(evaluate.main, [named_run, "--suite", "all", "--data", fewer], capsys)


def test_clouds_have_the_points_of_the_network(named_run, tmp_path, capsys):
    """Settings of one run beside the weights of another, which takes clouds of any size without a word."""
    copy = shutil.copytree(named_run, tmp_path / "copy")
    config = (copy / "config.json").read_text(encoding="utf-8").replace('"points": 64', '"points": 32')
    (copy / "config.json").write_text(config, encoding="utf-8", newline="\n")
    for main in (evaluate.main, walkthrough.main):
        assert "read with 32 points per cloud, not the network's 64" in fails(main, [copy], capsys)


def test_what_is_no_run_is_told_apart(named_run, tmp_path, capsys):
    assert "holds 1 runs and is none" in fails(evaluate.main, [named_run.parent], capsys)
    shutil.copytree(named_run, tmp_path / "early", ignore=shutil.ignore_patterns("best.pt"))
    assert "first validation" in fails(evaluate.main, [tmp_path / "early"], capsys)
    assert "--keep-last" in fails(evaluate.main, [named_run, "--checkpoint", "last"], capsys)


def test_all_objects_of_another_root(named_run, tmp_path, capsys):
    other = write_root(tmp_path / "other", OBJECTS, seed=1)
    suites = evaluate.main([str(named_run), "--suite", "all", "--data", str(other)])["suites"]
    assert list(suites) == ["all"] and suites["all"]["num_objects"] == 18 and suites["all"]["num_grasps"] == 18 * 9
    own = json.loads((named_run / "config.json").read_text(encoding="utf-8"))["settings"]["data"]
    assert "was trained on it" in fails(evaluate.main, [named_run, "--suite", "all", "--data", own], capsys)
    one = write_root(tmp_path / "one", {"02876657": 1})  # cannot be split
    assert "--suite all" in fails(evaluate.main, [named_run, "--data", one], capsys)


def test_the_table_fits_a_terminal_and_the_picture_has_pairs(named_run, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(evaluate, "draw_grasps", lambda shown, path, hand: drawn.append((shown, path)))
    words = f"{named_run} --suite val test_category --holds --closed 10 --picture {tmp_path}/picture.png"
    evaluate.main(words.split())
    ((shown, path),), told = drawn, capsys.readouterr().out.splitlines()
    assert f"saved {path}" in told and max(map(len, told[:-1])) <= 100
    for name in ("training mean", "this run", "recorded", "mug 03797390", "holds top logit", "holds: "):
        assert any(line.startswith(name) for line in told), name
    assert told[-2].endswith("; of 9 grasps")  # of one scene
    assert len(shown) == 3  # val objects
    for entry in shown:
        (recorded, first), (predicted, _) = draw.panels_of(entry, BENCHMARK)
        error = math.degrees(np.sqrt(np.mean((entry.recorded - entry.hypotheses[entry.chances.argmax()]) ** 2)))
        assert ": recorded" in recorded and f"{error:.1f}°" in predicted


def test_the_same_command_again_prints_the_same_and_evaluate_its_table(named_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "draw_grasps", lambda shown, path, hand: path.write_bytes(b"a picture"))
    places = f"--data {named_run.parent}/root --runs {tmp_path} --name again"
    argv = f"{places} --preset tiny --steps 12 --objects-per-batch 4 --threads 1 --quiet".split()
    printed = []
    for _ in range(2):
        train.main(argv)
        printed.append([line for line in capsys.readouterr().out.splitlines() if "since this command" not in line])
    first, second = printed
    start, again = (lines.index("val of pack A") for lines in printed)
    assert first[start:] == second[again:] and "finished before" in second[0] and "finished" not in first[0]
    assert max(len(line.replace(str(tmp_path), "runs")) for line in first) <= 100
    for name, line in zip(("best.pt", "grasps.png", "curve.png"), first[-3:]):
        assert line.startswith(f"saved {tmp_path / 'again'}") and name in line and (tmp_path / "again" / name).exists()
    evaluate.main([str(tmp_path / "again"), "--suite", "test", "val"])
    told = capsys.readouterr().out.splitlines()
    table = first[start : start + 6]
    assert told[told.index("val of pack A") :][:6] == table and table[3].startswith("pose and size only")
    assert "free holds" in table[1]
    os.utime(tmp_path / "again" / "best.pt", (0, 0))
    assert "other settings (k)" in fails(train.main, [*argv, "--k", "2"], capsys)
    train.main([*argv, "--overwrite", "--no-pictures"])
    assert (tmp_path / "again" / "best.pt").stat().st_mtime > 0
    assert "curve.png" not in capsys.readouterr().out  # an old picture beside a new run would lie
