"""What needs a CUDA device, each path once; skipped without one (fixture gpu). `python -m pytest -k gpu` runs these."""

import contextlib
import csv
import dataclasses
import functools
import gc
import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import fails, interrupted

import evaluate
import model
import pretrain_jepa
import sweep
import train
from cli.errors import UserError
from data import padded
from files.checkpoints import read_checkpoint
from files.writing import write_json
from lab import gpu as gpu_lab
from lab import runner, speed
from loop.graphs import WARM, Graphs
from loop.machine import set_precision
from loop.pace import set_rate
from model import PRESETS, GraspModel
from variants import surface_distances

STEPS = 50


def small_run(root, runs, *flags):
    """Flags of a short training on the GPU."""
    flags = [str(flag) for flag in flags]
    own = ["--data", str(root), "--preset", "tiny", "--runs", str(runs), "--quiet", "--no-baseline"]
    return [*own, "--device", "cuda", *flags]


def curve(folder):
    """The rows of a run's metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_gpu_train_evaluate_and_predict(gpu, box_root, tmp_path, capsys):
    result = train.main(small_run(box_root, tmp_path, "--steps", 12, "--name", "a"))
    assert result["device"] == "cuda" and result["precision"] == "tf32"
    again = evaluate.main([str(tmp_path / "a"), "--device", "cuda", "--quiet"])
    on_cpu = evaluate.main([str(tmp_path / "a"), "--device", "cpu", "--quiet"])
    first = result["suites"]["val"]["top_logit_rmse"]
    assert again["suites"]["val"]["top_logit_rmse"] == pytest.approx(first, abs=1e-6)
    assert on_cpu["suites"]["val"]["top_logit_rmse"] == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_gpu_every_precision_trains(gpu, box_root, tmp_path, precision):
    result = train.main(small_run(box_root, tmp_path, "--steps", 12, "--precision", precision))
    assert result["precision"] == precision
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])


@pytest.mark.parametrize("pool", ["hand", "surface", "attention_surface", "mean_max", "size", "none"])
def test_gpu_every_pooling_trains(gpu, box_root, tmp_path, pool):
    result = train.main(small_run(box_root, tmp_path, "--steps", 12, "--pool", pool))
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])


VARIANTS = [
    "--loss mdn", "--loss hedged", "--loss relaxed", "--loss annealed", "--lora 2", "--lora 2 --precision bf16",
    "--schedule layerwise", "--schedule constant", "--lr-backbone 0", "--group ball --radius 0.4", "--k 1",
    "--patching curvature", "--patching multiscale --precision bf16", "--tokenizer geometric --precision bf16",
]  # fmt: skip


@pytest.mark.parametrize("flags", VARIANTS)
def test_gpu_every_variant_trains_as_a_graph(gpu, box_root, tmp_path, flags):
    result = train.main(small_run(box_root, tmp_path, "--steps", 30, "--objects-per-batch", 4, *flags.split()))
    assert result["eager_steps"] < 30
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])


def test_gpu_compiled_model_trains(gpu, box_root, tmp_path):
    result = train.main(small_run(box_root, tmp_path, "--steps", 8, "--compile"))
    assert result["eager_steps"] < 8
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])


def test_gpu_graphs_run_nearly_all_steps(gpu, box_root, tmp_path):
    result = train.main(small_run(box_root, tmp_path, "--steps", 60, "--objects-per-batch", 4))
    assert result["eager_steps"] <= 4 * WARM  # at most so many shapes of a batch: 1 to 4 clouds


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_gpu_equal_seeds_give_equal_runs(gpu, box_root, tmp_path, precision):
    flags = ("--steps", 30, "--precision", precision)
    first, second = (train.main(small_run(box_root, tmp_path, *flags, "--name", name)) for name in "ab")
    assert first["suites"] == second["suites"]


def test_gpu_resumed_training_repeats_the_undisturbed_one(gpu, box_root, tmp_path):
    flags = ("--steps", 24, "--save-every", 12, "--eval-every", 12, "--precision", "fp32")
    train.main(small_run(box_root, tmp_path, *flags, "--name", "whole"))
    interrupted(train.main, small_run(box_root, tmp_path, *flags, "--name", "cut", "--no-graph"), 16)
    train.main(small_run(box_root, tmp_path, *flags, "--name", "cut", "--resume", "--no-graph"))
    whole, cut = curve(tmp_path / "whole"), curve(tmp_path / "cut")
    for a, b in zip(whole, cut, strict=True):
        assert float(a["val_top_logit_rmse"]) == pytest.approx(float(b["val_top_logit_rmse"]), abs=1e-4)


def losses(device, graph, pad, steps):
    """Losses of a training without dropout, step by step, on batches of 2 to 4 clouds with uneven numbers of grasps."""
    args = train.parse("--preset tiny --objects-per-batch 4 --grasps-per-object 8 --lr-backbone 1e-3".split())
    set_precision("fp32", device)
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["tiny"], dropout=0.0, attention_dropout=0.0, drop_path=0.0)
    run = speed.random_run(args, config, device, graph=graph)
    for group in run.optimizer.param_groups:
        set_rate(group, 1e-3)
    for module in run.model.modules():
        if hasattr(module, "rate"):
            module.rate = 0.0
    rows = np.flatnonzero(np.random.default_rng(0).random(len(run.data.scene)) < 0.08)
    rows = rows[run.data.scene[rows] < 14]  # scenes that fill no whole number of batches
    stream = train.training_batches(run.data, rows, args, 0, device, pad=pad)
    step, found = Graphs(functools.partial(train.training_step, run), graph), []
    for _ in range(steps):
        scenes, *batch = next(stream)
        starts = model.start_points(run.generator, len(scenes), run.clouds.shape[1], device)
        loss, finite = step(scenes, *batch, starts)
        assert finite.item()
        found.append(loss.item())
    return found, step


def test_gpu_graph_has_the_losses_of_single_operations(gpu):
    expected, _ = losses(gpu, False, False, STEPS)
    found, step = losses(gpu, True, True, STEPS)
    assert step.eager == 2 * WARM  # batches of four clouds, and those of two
    assert found == pytest.approx(expected, abs=1e-4)


def test_padded_steps_have_the_losses_of_the_real_grasps():
    expected, _ = losses(torch.device("cpu"), False, False, 12)
    found, _ = losses(torch.device("cpu"), False, True, 12)
    assert found == pytest.approx(expected, abs=1e-4) and len(set(expected)) == 12


def test_gpu_surface_distances_are_those_of_the_cpu(gpu):
    generator = torch.Generator().manual_seed(0)
    clouds, poses = torch.rand(3, 64, 3, generator=generator), torch.randn(7, 7, generator=generator)
    poses[:, 3:] /= poses[:, 3:].norm(dim=1, keepdim=True)
    index = torch.arange(7) % 3
    expected = surface_distances(clouds, index, poses)
    found = surface_distances(clouds.to(gpu), index.to(gpu), poses.to(gpu)).cpu()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.fixture
def clouds(tmp_path):
    folder = tmp_path / "clouds"
    folder.mkdir()
    for i in range(16):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).normal(size=(64, 3)))
    return folder


def test_gpu_resumed_pretraining_draws_the_same_dropout(gpu, clouds, tmp_path):
    flags = f"--clouds {clouds} --preset tiny --steps 20 --batch 8 --save-every 10 --log-every 5 --quiet --no-graph"
    flags = [*flags.split(), "--precision", "fp32", "--device", "cuda"]
    pretrain_jepa.main([*flags, "--out", str(tmp_path / "whole.pt")])
    interrupted(pretrain_jepa.main, [*flags, "--out", tmp_path / "cut.pt"], 14)
    pretrain_jepa.main([*flags, "--out", str(tmp_path / "cut.pt"), "--resume"])
    whole, cut = (read_checkpoint(tmp_path / f"{name}.pt")["encoder"] for name in ("whole", "cut"))
    for name, weights in whole.items():
        torch.testing.assert_close(cut[name], weights, atol=1e-5, rtol=1e-4)


def test_gpu_pretraining_as_graphs_learns_the_same(gpu, clouds, tmp_path):
    flags = f"--clouds {clouds} --preset tiny --steps 40 --batch 8 --log-every 1 --quiet --precision fp32".split()
    seen = {}
    for name, more in (("graph", []), ("single", ["--no-graph"])):
        pretrain_jepa.main([*flags, *more, "--device", "cuda", "--out", str(tmp_path / f"{name}.pt")])
        with open(tmp_path / f"{name}.csv", newline="") as file:
            seen[name] = [float(row["loss"]) for row in csv.DictReader(file)]
    assert seen["graph"][:WARM] == pytest.approx(seen["single"][:WARM], abs=1e-4)
    assert np.mean(seen["graph"][-10:]) == pytest.approx(np.mean(seen["single"][-10:]), rel=0.1)


def test_gpu_encoder_has_the_features_of_the_cpu(gpu):
    encoder = model.load_encoder("checkpoints/small.pt")
    clouds = torch.rand(2, encoder.config.points, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(clouds)[0]
        found = encoder.to(gpu)(clouds.to(gpu))[0].cpu()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


class Recorded:
    """Stands in for a CUDA graph: its replay runs what was recorded once more, into the same outputs."""

    def replay(self):
        for into, again in zip(self.outputs, self.step(*self.held)):
            into.copy_(again)


@pytest.fixture
def graphs_on_a_cpu(monkeypatch):
    """`Graphs` that can be used without a GPU, as far as Python goes."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: contextlib.nullcontext())
    capture = Graphs.capture

    def recorded(graphs, inputs):
        graph, graph.held, graph.outputs = found = capture(graphs, inputs)
        graph.step = graphs.step
        return found

    monkeypatch.setattr(Graphs, "capture", recorded)


def test_each_shape_is_warmed_captured_and_replayed(graphs_on_a_cpu):
    graphs = Graphs(lambda x: (2 * x, x.sum()), use=True)
    collects = gc.isenabled()
    for call in range(3 * WARM):
        for size in (2, 3):
            double, total = graphs(torch.full((size,), float(call)))
            assert double.tolist() == [2.0 * call] * size and total == size * call
    assert graphs.eager == 2 * WARM and len(graphs.captured) == 2 and gc.isenabled() == collects


def test_a_step_that_cannot_be_captured_says_so(graphs_on_a_cpu, monkeypatch):
    calls = []

    @contextlib.contextmanager
    def spoilt(graph, **_):
        assert not gc.isenabled()
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def step(x):
        calls.append(x)
        if len(calls) > WARM:
            raise failure
        return (x,)

    monkeypatch.setattr(torch.cuda, "graph", spoilt)
    for failure, expected, what in (
        (RuntimeError("the step waits"), UserError, "the step waits.*--no-graph"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "out of memory"),
    ):
        graphs, collects = Graphs(step, use=True), gc.isenabled()
        calls.clear()
        for _ in range(WARM):
            graphs(torch.ones(2))
        with pytest.raises(expected, match=what):
            graphs(torch.ones(2))
        assert gc.isenabled() == collects


SLEEPER = """
import signal, time
signal.signal(signal.SIGINT, signal.{heard})
print("started")
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("so far")
"""


def test_a_part_at_its_limit_may_say_how_far_it_came(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_lab, "GRACE", 1)
    for heard, expected in (("default_int_handler", "started\nso far\n"), ("SIG_IGN", "started\n")):
        words = [sys.executable, "-c", SLEEPER.format(heard=heard)]
        assert gpu_lab.run_part(words, tmp_path / "log", 1) == "over the limit"
        assert (tmp_path / "log").read_text() == expected
    assert gpu_lab.run_part([sys.executable, "-c", "print('all'); raise SystemExit(3)"], tmp_path / "log", 60) == 3


def test_parts_of_the_gpu_script_go_on_with_what_was_done(tmp_path, monkeypatch, capsys):
    """Only the named parts run; the others' results stay; what a training found stands beside its command."""
    monkeypatch.chdir(tmp_path)
    result = {"suites": {"val": {"top_logit_rmse": 0.123456789}}, "device": "cuda", "ms_per_step": 2.0, "more": 1}
    write_json(tmp_path / "runs" / "gpu-again" / "result.json", result)
    ran = []
    monkeypatch.setattr(gpu_lab, "run_part", lambda words, log, limit: ran.append((words, limit)) or len(ran))
    gpu_lab.main(["tests", "--out", "lab"])
    first, second = gpu_lab.main(["first_command_again", "--out", "lab"])
    assert (first["part"], first["exit"], first["found"]) == ("tests", 1, {})
    assert second["found"] == {"top_logit_rmse": 0.123456789, "device": "cuda", "ms_per_step": 2.0}
    assert [limit for _, limit in ran] == [gpu_lab.LIMITS["tests"], gpu_lab.LIMIT]
    assert json.loads((tmp_path / "lab" / "gpu.json").read_text())["parts"] == [first, second]
    assert "no part nothing" in fails(gpu_lab.main, ["nothing", "--out", "lab"], capsys)


def test_all_commands_of_the_gpu_script_are_understood():
    for tiny, parts in itertools.product((False, True), (gpu_lab.parts, gpu_lab.paper_parts)):
        for words in parts("somewhere", tiny).values():
            if words[1] == "train.py":
                train.parse(words[2:])
            elif words[1] == "pretrain_jepa.py":
                pretrain_jepa.parse(words[2:])
            elif words[1] == "sweep.py":
                _, _, given = sweep.parse(words[2:])
                for flags in runner.plan_runs([{}], given, ["0"], sweep.parse(words[2:])[0]):
                    train.parse(runner.as_words(flags))
            elif words[2] == "lab.speed":
                script = {"train": train, "pretrain": pretrain_jepa}[words[3]]
                script.parse(["--benchmark", *words[4:]])


def test_graphs_without_a_gpu_call_the_step():
    calls = []

    def step(x, y):
        calls.append(x)
        return (x + (y or 0),)

    graphs = Graphs(step, use=False)
    assert graphs(torch.ones(2), None)[0].tolist() == [1, 1]
    assert graphs.eager == len(calls) == 1


@pytest.mark.parametrize("loss", ["wta", "mdn", "hedged"])
def test_padding_of_weight_zero_changes_neither_loss_nor_gradient(loss):
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["tiny"], loss=loss)
    network = GraspModel(config).eval()
    clouds, joints = torch.rand(3, config.points, 3) * 0.2, torch.randn(5, config.joints)
    poses, index = torch.randn(5, 7), torch.tensor([0, 0, 1, 2, 2])
    seen = []
    for missing in (0, 4):
        rows = np.r_[np.arange(5), np.zeros(missing, int)]
        _, _, again, weights = padded(np.arange(3), np.arange(5), index.numpy(), 5 + missing)
        assert again.tolist() == index[rows].tolist()
        weights = torch.from_numpy(weights)
        network.zero_grad()
        value = network.loss(*network(clouds, index[rows], poses[rows]), joints[rows], 0.1, weights)
        value.backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        seen.append((value, gradients))
    network.zero_grad()
    plain = network.loss(*network(clouds, index, poses), joints, 0.1)
    plain.backward()
    seen.append((plain, [p.grad for p in network.parameters() if p.grad is not None]))
    for value, gradients in seen[1:]:
        torch.testing.assert_close(value, seen[0][0])
        for a, b in zip(gradients, seen[0][1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_what_the_generator_draws_may_be_drawn_before():
    clouds = torch.rand(3, 64, 3)
    drawn = model.start_points(torch.Generator().manual_seed(4), 3, 64, "cpu")
    by_generator = model.farthest_point_sample(clouds, 8, torch.Generator().manual_seed(4))
    assert torch.equal(model.farthest_point_sample(clouds, 8, drawn), by_generator)
