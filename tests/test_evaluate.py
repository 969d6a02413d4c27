import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import fails, write_box
from scipy.spatial.transform import Rotation

import evaluate
import train
from data import load_dataset
from model import PRESETS, GraspModel, load_run
from splits import make_split


def random_predictions(seed, n=60, k=4, j=3, objects=10):
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 0.4, (n, j))
    return {
        "joints_pred": joints[:, None] + rng.normal(0, 0.3, (n, k, j)), "logits": rng.normal(size=(n, k)), "joints_true": joints,
        "object": np.array([f"s{i % objects % 2}/o{i % objects}" for i in range(n)]),
        "synset": np.array([f"s{i % objects % 2}" for i in range(n)]),
    }  # fmt: skip


def naive_metrics(joints_pred, logits, joints_true):
    """Every metric by loops over samples, hypotheses and joints."""
    n, k, j = joints_pred.shape
    totals = dict.fromkeys(("top", "best", "c10", "c15", "c20", "strict", "diversity", "selector"), 0.0)
    for i in range(n):
        mse = [sum((joints_pred[i, a, b] - joints_true[i, b]) ** 2 for b in range(j)) / j for a in range(k)]
        top, winner = max(range(k), key=lambda a: logits[i, a]), min(range(k), key=lambda a: mse[a])
        totals["top"] += mse[top]
        totals["best"] += mse[winner]
        totals["selector"] += top == winner
        for degrees in (10, 15, 20):
            totals[f"c{degrees}"] += any(math.degrees(math.sqrt(m)) < degrees for m in mse)
        totals["strict"] += any(all(math.degrees(abs(joints_pred[i, a, b] - joints_true[i, b])) < 15 for b in range(j)) for a in range(k))
        pairs = [(a, b) for a in range(k) for b in range(a)]
        rms = [math.sqrt(sum((joints_pred[i, a, c] - joints_pred[i, b, c]) ** 2 for c in range(j)) / j) for a, b in pairs]
        totals["diversity"] += sum(rms) / len(pairs) if pairs else 0.0
    mean = {name: value / n for name, value in totals.items()}
    top, best = math.sqrt(mean["top"]), math.sqrt(mean["best"])
    return {
        "top_logit_rmse": top, "best_of_k_rmse": best, "selection_gap": top - best, "coverage_10": mean["c10"],
        "coverage_15": mean["c15"], "coverage_20": mean["c20"], "coverage_15_all_joints": mean["strict"],
        "diversity": mean["diversity"], "selector_accuracy": mean["selector"],
    }  # fmt: skip


@pytest.mark.parametrize("k", [1, 2, 5])
def test_metrics_against_loops(k):
    p = random_predictions(k, k=k)
    ours = evaluate.metrics(*(torch.from_numpy(p[name]) for name in ("joints_pred", "logits", "joints_true")))
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
    statistics = evaluate.sample_statistics(*(torch.from_numpy(p[name]) for name in ("joints_pred", "logits", "joints_true")))
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
    wide = evaluate.report(p)["interval_95"]["top_logit_rmse"]
    again = evaluate.report({name: np.concatenate([value] * 10) for name, value in p.items()})["interval_95"]["top_logit_rmse"]
    assert again == pytest.approx(wide)


@pytest.fixture(scope="module")
def run(box_root, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    train.main(f"--data {box_root} --preset tiny --steps 12 --objects-per-batch 4 --runs {runs} --name run --quiet".split())
    return runs / "run"


def test_every_suite_twice_to_the_bit_and_from_saved_predictions(run, tmp_path, capsys):
    suites = "--suite train val test test_category test_grasp test_grasp_train".split()
    for name in ("a", "b"):
        evaluate.main([str(run), *suites, "--json", str(tmp_path / f"{name}.json"), "--save-predictions", str(tmp_path / f"{name}.npz")])
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
    assert first == second and list(first["suites"]) == suites[1:]
    a, b = (np.load(tmp_path / f"{name}.npz") for name in ("a", "b"))
    assert all(np.array_equal(a[name], b[name]) for name in a.files)
    evaluate.main(["--predictions", str(tmp_path / "a.npz"), "--json", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    for suite in first["suites"]:
        assert again["suites"][suite]["top_logit_rmse"] == pytest.approx(first["suites"][suite]["top_logit_rmse"], abs=1e-12)
    naive = naive_metrics(a["joints_pred"], a["logits"], a["joints_true"])
    assert {name: again[name] for name in naive} == pytest.approx(naive, abs=1e-6)
    assert "test_category" in capsys.readouterr().out


def test_predictions_without_names(tmp_path, capsys):
    p = random_predictions(0)
    np.savez(tmp_path / "p.npz", **{name: p[name] for name in ("joints_pred", "logits", "joints_true")})
    evaluate.main(["--predictions", str(tmp_path / "p.npz"), "--json", str(tmp_path / "p.json")])
    saved = json.loads((tmp_path / "p.json").read_text())
    assert "suites" not in saved and "interval_95" not in saved and saved["top_logit_rmse"] > saved["best_of_k_rmse"]
    np.savez(tmp_path / "bad.npz", joints_pred=p["joints_pred"], logits=p["logits"][:, :2], joints_true=p["joints_true"])
    assert "bad.npz" in fails(evaluate.main, ["--predictions", tmp_path / "bad.npz"], capsys)
    (tmp_path / "text.npz").write_text("no")
    assert "text.npz" in fails(evaluate.main, ["--predictions", tmp_path / "text.npz"], capsys)


def test_one_object_from_the_command_line(run, tmp_path, capsys):
    write_box(tmp_path / "mug.obj", np.array([0.1, 0.12, 0.15]))
    pose = ["0.01", "-1e-2", "0.2", "0", "0", "0.6", "-0.8"]
    evaluate.main([str(run), "--mesh", str(tmp_path / "mug.obj"), "--pose", *pose])
    printed = json.loads(capsys.readouterr().out)
    hypotheses = printed["predictions"][0]["hypotheses"]
    assert len(hypotheses) == 5 and all(len(h["joints"]) == 12 for h in hypotheses) and len(printed["joint_names"]) == 12
    assert sum(h["probability"] for h in hypotheses) == pytest.approx(1, abs=1e-5)
    assert hypotheses[0]["probability"] == max(h["probability"] for h in hypotheses)
    flipped = pose[:3] + ["0", "0", "-0.6", "0.8"]  # the same rotation
    evaluate.main([str(run), "--mesh", str(tmp_path / "mug.obj"), "--pose", *flipped])
    assert json.loads(capsys.readouterr().out) == printed

    model = load_run(run)
    cloud = evaluate.read_cloud(tmp_path / "mug.obj", model.config.points)
    np.save(tmp_path / "cloud.npy", cloud)
    np.save(tmp_path / "poses.npy", np.array([pose, pose], dtype=float))
    evaluate.main([str(run), "--mesh", str(tmp_path / "cloud.npy"), "--poses", str(tmp_path / "poses.npy")])
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2


def test_picture(run, box_root, tmp_path, monkeypatch):
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
        ([run, "--mesh", tmp_path / "missing.obj", *good], "missing.obj"),
        ([run, "--mesh", tmp_path / "few.npy", *good], "at least"),
        ([run, "--mesh", tmp_path / "box.txt", *good], "box.txt"),
        ([tmp_path / "norun", "--mesh", tmp_path / "box.obj", *good], "norun"),
        ([], "RUN"),
        ([run, "--predictions", "x.npz"], "either"),
    ):
        assert message in fails(evaluate.main, argv, capsys)


# ---------------------------------------------------------------- comparisons, baselines, frozen encoders


def test_paired_improvement():
    rng = np.random.default_rng(0)
    old, grasps, objects = rng.uniform(0.1, 1, 20), rng.integers(1, 50, 20), np.array([f"o{i}" for i in range(20)])
    assert evaluate.paired_improvement(old / 4, old, grasps, objects) == pytest.approx((0.5, 0.5, 0.5))  # half the RMSE for every object
    new = old * rng.uniform(0.3, 1.2, 20)
    gain, low, high = evaluate.paired_improvement(new, old, grasps, objects, seed=1)
    assert gain == pytest.approx(1 - math.sqrt((grasps * new).sum() / (grasps * old).sum()))
    values = []
    for _ in range(2000):
        i = rng.integers(0, 20, 20)
        values.append(1 - math.sqrt((grasps[i] * new[i]).sum() / (grasps[i] * old[i]).sum()))
    assert [low, high] == pytest.approx(np.percentile(values, (2.5, 97.5)).tolist(), abs=0.01)
    twice = evaluate.paired_improvement(*(np.tile(a, 2) for a in (new, old, grasps, objects)), seed=1)
    assert twice == pytest.approx((gain, low, high))  # an object in two packs is drawn as one
    assert math.isnan(evaluate.paired_improvement(new[:7], old[:7], grasps[:7], objects[:7])[1])


def test_per_object():
    p = random_predictions(2)
    ids, grasps, squared = evaluate.per_object(p)
    assert grasps.sum() == 60
    for name, count, value in zip(ids, grasps, squared):
        rows = np.flatnonzero(p["object"] == name)
        naive = np.mean([((p["joints_pred"][i, p["logits"][i].argmax()] - p["joints_true"][i]) ** 2).mean() for i in rows])
        assert count == len(rows) and value == pytest.approx(naive, abs=1e-6)


@pytest.fixture(scope="module")
def boxes(box_root):
    data = load_dataset(box_root, 64, quiet=True)
    return data, make_split(data)


def test_nearest_grasp_against_a_loop(boxes):
    data, split = boxes
    found = evaluate.nearest_predictions(data, split.rows["train"], split.rows["val"], chunk=3)
    for joints, row in zip(found["joints_pred"], split.rows["val"]):
        best = None
        for other in split.rows["train"]:
            if data.scenes[data.scene[other]].split("/")[0] == data.scenes[data.scene[row]].split("/")[0]:
                a, b = data.poses[row].astype(float), data.poses[other].astype(float)
                turn = Rotation.from_quat(a[3:]).inv() * Rotation.from_quat(b[3:])
                distance = math.dist(a[:3], b[:3]) / 0.05 + turn.magnitude()
                best = min(best or (distance, other), (distance, other))
        assert np.array_equal(joints[0], data.joints[best[1]])
    itself = evaluate.nearest_predictions(data, split.rows["train"], split.rows["train"])
    assert np.array_equal(itself["joints_pred"][:, 0], data.joints[split.rows["train"]])


def scenes(classes=4, objects=12, per_object=2):
    """Synset, object, pool and val of made-up scenes: the last three objects of a category are val."""
    synsets = np.repeat([f"s{i}" for i in range(classes)], objects * per_object)
    number = np.tile(np.repeat(np.arange(objects), per_object), classes)
    names = np.array([f"{s}/{i}" for s, i in zip(synsets, number)])
    return synsets, names, number < objects - 3, number >= objects - 3


def test_probe_separates_what_is_separable_and_guesses_where_labels_are_shuffled():
    synsets, objects, pool, val = scenes()
    rng = np.random.default_rng(0)
    features = np.eye(4)[np.unique(synsets, return_inverse=True)[1]] @ rng.normal(size=(4, 20)) * 3 + rng.normal(0, 0.3, (len(synsets), 20))
    assert evaluate.few_shot_accuracy(features, synsets, objects, pool, val, 5) == (1.0, 4)
    noise = rng.normal(size=(len(synsets), 20))
    assert evaluate.few_shot_accuracy(noise, synsets, objects, pool, val, 5, draws=50)[0] == pytest.approx(0.25, abs=0.12)
    short = pool & ~((synsets == "s2") & ~np.char.endswith(objects, "/0"))  # one pool object left in s2
    assert evaluate.few_shot_accuracy(features, synsets, objects, short, val, 2) == (1.0, 3)
    accuracy, count = evaluate.few_shot_accuracy(features, synsets, objects, pool, val, 10)
    assert math.isnan(accuracy) and count == 0


def test_probe_ignores_test_objects_and_feeds_the_encoder_as_the_model_does(boxes):
    data, split = boxes
    torch.manual_seed(0)
    model = GraspModel(PRESETS["tiny"]).eval()
    with torch.no_grad():
        tokens = model.encode(torch.from_numpy(data.clouds))[0].numpy()
    assert np.array_equal(evaluate.encode_scenes(model.encoder, data.clouds, "cpu"), tokens)
    result = evaluate.probe(model.encoder, data, split, shots=(2, 3), counts=(3,))
    assert 0 <= result["probe_2"] <= 1 and result["categories_2"] == 2 and 1 <= result["rank_tokens"] <= 32 and result["shape_3"] <= 1
    clouds = data.clouds.copy()
    away = np.isin(data.objects, split.suites["test"] + split.suites["test_category"])
    clouds[away] = np.random.default_rng(0).normal(size=clouds[away].shape)
    assert evaluate.probe(model.encoder, dataclasses.replace(data, clouds=clouds), split, shots=(2, 3), counts=(3,)) == result


def test_slab_widths_against_a_loop():
    clouds = np.random.default_rng(0).normal(size=(5, 200, 3)) * [0.03, 0.05, 0.1] + 0.2
    clouds[0, :, 2] = np.where(clouds[0, :, 2] > 0.2, 0.4, 0.0)  # nothing in the slabs between
    for cloud, widths in zip(clouds, evaluate.slab_widths(clouds)):
        radius = np.sqrt(((cloud - cloud.mean(0)) ** 2).sum(1)).max()
        edges = np.linspace(cloud[:, 2].min(), cloud[:, 2].max(), 5)
        for i in range(4):
            slab = cloud[(cloud[:, 2] >= edges[i]) & ((cloud[:, 2] < edges[i + 1]) | (i == 3))]
            expected = np.ptp(slab[:, :2], axis=0) / radius if len(slab) else [0, 0]
            assert np.allclose(widths[2 * i : 2 * i + 2], expected)


def test_shape_probe_explains_what_is_linear_and_nothing_of_noise():
    _, objects, pool, val = scenes()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(objects), 6))
    linear = features @ rng.normal(size=(6, 3)) + 1
    assert evaluate.few_object_fit(features, linear, objects, pool, val, 30) > 0.98
    assert evaluate.few_object_fit(features, rng.normal(size=(len(objects), 3)), objects, pool, val, 30) < 0.2
    assert math.isnan(evaluate.few_object_fit(features, linear, objects, pool, val, 37))


def test_effective_rank():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0]
    corners = np.concatenate([np.eye(4), -np.eye(4)])  # centred, four equal singular values
    assert evaluate.effective_rank(corners @ basis[:4]) == pytest.approx(4)
    assert evaluate.effective_rank(np.outer(np.arange(9), basis[0])) == pytest.approx(1)
    share = np.array([3, 1]) / 4
    scaled = np.concatenate([np.diag([3, 1]), -np.diag([3, 1])])
    assert evaluate.effective_rank(scaled + 7.0) == pytest.approx(math.exp(-(share * np.log(share)).sum()))
    assert evaluate.effective_rank(np.ones((5, 3))) == 1
