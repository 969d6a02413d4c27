"""lab/speed.py: operation counts against formulas and against a step with values, the stopwatch, both --benchmark."""

import ast
import dataclasses
import functools
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import fails
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import model
import pretrain_jepa
import train
from cli.errors import UserError
from lab import counts, speed
from loop import fast, graphs
from loop.machine import computes_bf16
from variants import PROBES

TINY = model.PRESETS["tiny"]
CPU = torch.device("cpu")
ROOT = Path(train.__file__).parent


# ---------------------------------------------------------------- operation counts, worked out by hand


def linear_flops(rows, *widths):
    """Linear layers one after another, forward; each of their two gradients takes as much."""
    return sum(2 * rows * left * right for left, right in pairwise(widths))


def transformer_flops(sequences, tokens, width, depth):
    """Blocks: qkv, projection, MLP of ratio 4, and the two products of attention, forward."""
    rows = sequences * tokens
    layers = linear_flops(rows, width, 3 * width) + linear_flops(rows, width, width)
    return depth * (layers + linear_flops(rows, width, 4 * width, width) + 2 * 2 * rows * tokens * width)


def tokenizer_flops(config, clouds):
    """The mini-PointNet, the pooled half of whose second stage runs once per patch -> forward, backward."""
    patches, points = clouds * config.patches, clouds * config.patches * config.patch_size
    forward = linear_flops(points, 3, config.w1, config.w2) + linear_flops(patches, config.w2, config.w3)
    forward += linear_flops(points, config.w2, config.w3, config.width)
    return forward, 2 * forward - linear_flops(points, 3, config.w1)  # coordinates need no gradient


def position_flops(rows, width):
    """The positional encoding -> forward, backward."""
    forward = linear_flops(rows, 3, model.POSITION_HIDDEN, width)
    return forward, 2 * forward - linear_flops(rows, 3, model.POSITION_HIDDEN)


def pooling_flops(network, objects, grasps, trained):
    """Attention or hand pooling of a GraspModel, behind a trained encoder or a frozen one -> forward, backward."""
    width, tokens = network.config.width, objects * network.config.patches
    if network.config.pool.startswith("attention"):
        forward = linear_flops(tokens, width, 2 * width)  # keys and values
        forward += 2 * linear_flops(objects, width, width) + 2 * 2 * tokens * width  # query and out; the two products
        return forward, 2 * forward - (not trained) * linear_flops(tokens, width, 2 * width)
    if network.config.pool in ("hand", "centers"):
        rows, hidden = grasps * network.config.patches, network.pool.score.in_features
        heads = network.pool.score.out_features
        inputs = linear_flops(rows, 4, hidden) + linear_flops(grasps, 9, hidden)  # coordinates: no gradient
        of_tokens = linear_flops(tokens, width, hidden) if network.config.pool == "hand" else 0
        forward = inputs + of_tokens + linear_flops(rows, hidden, hidden, heads)
        forward += 2 * rows * hidden * heads + linear_flops(grasps, heads * hidden, width)
        backward = 2 * forward - inputs - (not trained) * of_tokens
        return forward + 2 * rows * 9, backward  # centers turned into the hand's frame: 3 x 3 each
    return 0, 0


def training_flops(network, objects, grasps):
    """A fine-tuning step of a GraspModel; a frozen encoder has no backward pass."""
    config = network.config
    layers = [layer for layer in network.head if isinstance(layer, torch.nn.Linear)]
    head = linear_flops(grasps, layers[0].in_features, *[layer.out_features for layer in layers])
    trained = any(parameter.requires_grad for parameter in network.encoder.parameters())
    total = sum(pooling_flops(network, objects, grasps, trained)) + 3 * head
    if "surface" in config.pool:  # points turned into the hand's frame, and their products with the probes
        total += 2 * grasps * config.points * (9 + 3 * len(PROBES))
    if network.pool is None:
        return total - linear_flops(grasps, layers[0].in_features, layers[0].out_features)  # coordinates: no gradient
    if not model.POOLS[config.pool].encoder:
        return total
    parts = [tokenizer_flops(config, objects), position_flops(objects * config.patches, config.width)]
    blocks = transformer_flops(objects, config.patches, config.width, config.depth)
    total += blocks + sum(forward for forward, _ in parts)
    return total + trained * (2 * blocks + sum(backward for _, backward in parts))


def pretraining_flops(config, clouds, context, blocks, length):
    """A pretraining step with C context tokens and M target blocks of T tokens."""
    width, rows, hidden = config.predictor_width, clouds * context, clouds * blocks * length
    both = [
        tokenizer_flops(config, clouds), position_flops(clouds * config.patches, config.width),
        position_flops(rows, width), position_flops(hidden, width),
    ]  # fmt: skip
    trained = transformer_flops(clouds, context, config.width, config.depth)
    trained += linear_flops(rows, config.width, width) + linear_flops(hidden, width, config.width)
    trained += transformer_flops(clouds * blocks, context + length, width, config.predictor_depth)
    targets = transformer_flops(clouds, config.patches, config.width, config.depth)
    rotation = 2 * clouds * config.points * 3 * 3  # of the augmentation
    return 3 * trained + targets + rotation + sum(forward + backward for forward, backward in both)


def training_run(*flags):
    """A train.Run on random data."""
    args = train.parse(["--preset", "tiny", *flags])
    return speed.random_run(args, train.resolve_network(args)[0], CPU)


def pretraining_run(*flags):
    """A pretrain_jepa.Pretraining on random clouds."""
    args = pretrain_jepa.parse(["--preset", "tiny", *flags])
    return speed.random_pretraining(args, pretrain_jepa.resolve_config(args), CPU)


OTHERS = (
    "--loss mdn", "--loss hedged", "--loss relaxed", "--loss annealed", "--k 1",
    "--lr-backbone 0", "--lr-backbone 0 --pool hand",
    "--group ball --radius 0.5", "--preset small", "--preset paper",
)  # fmt: skip


@pytest.mark.parametrize("flags", (*(f"--pool {pool}" for pool in model.POOLS), *OTHERS))
def test_flops_of_a_training_step(flags):
    run = training_run(*flags.split())
    assert counts.training_work(run)(4, 12).flops == training_flops(run.model, 4, 12) > 0


SIZES = (("tiny", 3, 1), ("tiny", 5, 2), ("small", 14, 5), ("paper", 30, 11))


@pytest.mark.parametrize("preset, context, length", SIZES)
def test_flops_of_a_pretraining_step(preset, context, length):
    run = pretraining_run("--preset", preset, "--batch", "3")
    found = counts.pretraining_work(run)(context, 4, length).flops
    assert found == pretraining_flops(run.jepa.config, 3, context, 4, length)


SHAPES = ((5, 3), (3, 8), (8, 4))


def test_bytes_of_a_layer_by_hand():
    """Two products and a ReLU, forward and backward; views, reserved memory and what only broadcasts are free."""
    x, left, right = (torch.zeros(*shape, device="meta", requires_grad=i > 0) for i, shape in enumerate(SHAPES))

    def step():
        (((x @ left).relu() @ right).T.reshape(-1)).backward(torch.ones(20, device="meta"))

    rows, widths = 5, (3, 8, 4)
    numbers = [rows * width for width in widths] + [3 * 8, 8 * 4]
    x_, hidden, out, left_, right_ = numbers
    forward = (x_ + left_ + hidden) + 2 * hidden + (hidden + right_ + out)
    reshaped = 2 * out  # the transposed result is copied
    backward = (hidden + out + right_) + (out + right_ + hidden) + 3 * hidden + (x_ + hidden + left_)
    ones = out  # filled
    found = counts.count(step, [left, right])
    assert found.flops == 2 * rows * (2 * 3 * 8 + 3 * 8 * 4)
    assert found.bytes == 4 * (forward + reshaped + ones + backward) + 28 * (left_ + right_)


def test_bytes_grow_with_the_step():
    work = counts.training_work(training_run())
    (few, many), (_, more) = (work(objects, 8).bytes for objects in (4, 8)), (0, work(8, 64).bytes)
    assert few < many < 2 * few and many < more
    parameters = sum(p.numel() for p in training_run().model.parameters())
    assert few > 28 * parameters


def test_flops_are_those_of_a_step_with_values(monkeypatch):
    monkeypatch.setattr(fast, "library", "plain")
    run, jepa_run = training_run("--pool", "attention_surface"), pretraining_run("--batch", "3")
    count, count_jepa = counts.training_work(run), counts.pretraining_work(jepa_run)
    kind = speed.training_steps(run, functools.partial(train.training_step, run), 16, count, None)
    jepa_kind = speed.pretraining_steps(jepa_run, count_jepa, None)
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know a processor's fused attention
        for steps in (kind, jepa_kind):
            with FlopCounterMode(display=False) as counter:
                _, sizes = steps.take()
            assert counter.get_total_flops() == steps.work(*sizes).flops > 0


# ---------------------------------------------------------------- watching


def test_stopwatch_gives_every_second_to_one_part():
    watch, layer = speed.Stopwatch(CPU), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    watch.until(layer, "before")
    watch.within(layer, "layer")
    watch.until_optimizer(optimizer, "between")
    watch.start()
    layer(layer(torch.zeros(1, 2))).sum().backward()
    optimizer.step()
    watch.lap("rest")
    seconds, (_, begun), (_, ended) = watch.seconds(), watch.laps[0], watch.laps[-1]
    assert list(seconds) == ["before", "layer", "between", "rest"]
    assert sum(seconds.values()) == pytest.approx(ended - begun) and min(seconds.values()) > 0


class Event:
    """Stands for torch.cuda.Event: recorded one after another, the n-th n² ms after the first."""

    recorded = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = Event.recorded**2
        Event.recorded += 1

    def elapsed_time(self, later):
        return float(later.time - self.time)


def test_stopwatch_on_a_gpu(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(Event.recorded))
    monkeypatch.setattr(Event, "recorded", 0)
    watch = speed.Stopwatch(torch.device("cuda"))
    watch.start()
    for part in ("one", "two", "one"):
        watch.lap(part)
    assert watch.seconds() == pytest.approx({"one": (1 + 5) / 1000, "two": 3 / 1000})
    assert waits == [0, 4]  # before and after, never between


def test_lines_of_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    products = {speed.PRODUCT: 2e9, speed.LARGE_PRODUCT: 8e9}
    parts = {"eager": {"forward": 0.5, "optimiser": 0.5}, "graph": {"graph": 0.25}}
    lines = [
        {"precision": "tf32", "step": step}
        | speed.step_figures([(32, counts.Work(1e9, 2e9), seconds)] * 3, "grasps", products, 8e9, 0.5)
        for step, seconds in parts.items()
    ]
    assert [line["share_of_product"] for line in lines] == pytest.approx([0.5, 2])
    assert [line["share_of_product_8192"] for line in lines] == pytest.approx([0.125, 0.5])
    assert [line["share_of_copy"] for line in lines] == pytest.approx([0.125, 0.5])
    args, gpu = train.parse(["--benchmark", "--json", str(tmp_path / "speed.json")]), torch.device("cuda")
    content = speed.write_times("train.py", TINY, ["--benchmark"], args, gpu, ["no reason"], lines, 7.4)
    speed.show_times(content, "grasps")
    assert (content["card"], content["peak_memory_mb"]) == ("a card", 7)
    assert content == json.loads((tmp_path / "speed.json").read_text())
    times, shares = capsys.readouterr().out.split("shares of the time")
    assert "of product 8192" in times and "graph" in times and "a card" in shares
    assert "50.0 %" in shares and "100.0 %" not in shares and "no reason" in shares


def test_what_a_gpu_is_asked(monkeypatch):
    gpu = torch.device("cuda")
    assert [p for p, _ in speed.machine_settings(train.parse([]), gpu)] == ["fp32", "tf32", "bf16"]
    assert [p for p, _ in speed.machine_settings(train.parse(["--precision", "bf16"]), gpu)] == ["bf16"]
    assert "tf32" not in [p for p, _ in speed.machine_settings(train.parse([]), CPU)]
    assert speed.graphs_to_time(train.parse([]), gpu) == (False, True)
    assert speed.graphs_to_time(train.parse(["--no-graph"]), gpu) == speed.graphs_to_time(train.parse([]), CPU)


def test_a_graph_is_captured_before_it_is_timed():
    calls, failures = [], []
    (kind,) = speed.as_graphs([speed.Steps({}, lambda: calls.append(1), None, None)], failures)
    assert len(calls) > graphs.WARM and kind.last_part == "graph" and not failures


def test_a_capture_that_fails_leaves_the_other_figures(monkeypatch, tmp_path, small):
    """With the CPU as the GPU: the graph's first step fails, the eager ones are timed and written all the same."""

    def fail(*_):
        raise UserError("no capture here")

    settings = {"graphs_to_time": lambda args, device, failures: (False,) if failures else (False, True)}
    settings |= {"random_run": lambda args, config, device, *_: random_run(args, config, device)}
    settings |= {"SECONDS": {"cpu": 0.1, "cuda": 0.1}}
    random_run = speed.random_run
    for name, value in settings.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "Graphs", lambda step, use: fail if use else step)
    words = f"--preset tiny --steps 1 --quiet --threads 1 --precision fp32 --json {tmp_path}/speed.json"
    content = train.main(["--benchmark", *words.split()])
    assert content["not_captured"] == ["no capture here"] and len(content["rows"]) == len(speed.GRASPS)
    assert content == json.loads((tmp_path / "speed.json").read_text())


def test_what_was_timed_is_written_before_the_next_setting(monkeypatch, tmp_path, small):
    """A machine that is lent for minutes may be gone at any time."""
    make, settings = speed.training_steps, []

    def stopped(*args):
        settings.append(args)
        if len(settings) > len(speed.GRASPS):  # those of the second setting
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(speed, "training_steps", stopped)
    words = f"--preset tiny --steps 1 --quiet --precision fp32 --json {tmp_path}/speed.json"
    with pytest.raises(SystemExit):
        train.main(["--benchmark", *words.split()])
    assert {row["threads"] for row in json.loads((tmp_path / "speed.json").read_text())["rows"]} == {1}


def test_time_on_a_gpu(gpu, small, monkeypatch):
    monkeypatch.setattr(speed, "LARGE_PRODUCT", 128)
    monkeypatch.setattr(speed, "SECONDS", {"cpu": 1, "cuda": 1})
    rows = train.main("--benchmark --device cuda --preset tiny --quiet --precision tf32".split())["rows"]
    rows += pretrain_jepa.main("--benchmark --device cuda --preset tiny --batch 4 --quiet --precision bf16".split())[
        "rows"
    ]
    assert [row["step"] for row in rows] == ["eager"] * 3 + ["graph"] * 3 + ["eager", "graph"]
    assert all(row["steps"] >= 20 and row["ms_per_step"] > 0 for row in rows)


def test_watching_changes_no_bit():
    states = []
    for watched in (False, True):
        torch.manual_seed(0)
        run = training_run()
        if watched:
            watch = speed.watch_training(run)
            watch.start()
        torch.manual_seed(1)
        kind = speed.training_steps(run, functools.partial(train.training_step, run), 16, None, None)
        for _ in range(2):
            kind.take()
        states.append(run.model.state_dict())
    assert set(watch.seconds()) == {"batch", "grouping", "tokenizer", "encoder", "pooling + head", "backward"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("pool", ("attention", "hand", "attention_surface"))
def test_steps_do_not_wait_for_the_gpu(gpu, pool):
    args, jepa_args = train.parse(["--preset", "tiny"]), pretrain_jepa.parse(["--preset", "tiny"])
    run = speed.random_run(args, dataclasses.replace(TINY, pool=pool), gpu)
    jepa_run = speed.random_pretraining(jepa_args, TINY, gpu)
    step = functools.partial(train.training_step, run)
    kinds = speed.training_steps(run, step, 16, None, None), speed.pretraining_steps(jepa_run, None, None)
    for mode in ("default", "error"):  # the first steps may wait: libraries load
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for kind in kinds:
                kind.take()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- the commands


@pytest.fixture
def small(monkeypatch):
    """Yardsticks and batches made small."""
    monkeypatch.setattr(speed, "PRODUCT", 64)
    monkeypatch.setattr(speed, "COPIED", 2**20)
    monkeypatch.setattr(speed, "GRASPS", (1, 2, 8))


def test_time_of_training(tmp_path, capsys, small):
    argv = f"--preset tiny --steps 1 --quiet --json {tmp_path}/speed.json --runs {tmp_path}/runs --data {tmp_path}/no"
    argv, before = ["--benchmark", "--objects-per-batch", "4", *argv.split()], torch.get_num_threads()
    content = train.main(argv)
    precisions = ("fp32", "bf16") if computes_bf16(CPU) else ("fp32",)
    assert content == json.loads((tmp_path / "speed.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"] and torch.get_num_threads() == before
    assert [(row["precision"], row["threads"], row["grasps_per_object"]) for row in content["rows"]] == [
        (precision, threads, grasps) for precision in precisions for threads in (1, 2) for grasps in (1, 2, 8)
    ]
    network, parts = model.GraspModel(TINY), "batch, grouping, tokenizer, encoder, pooling + head, backward, optimiser"
    for row in content["rows"]:
        assert list(row["shares"]) == parts.split(", ")
        assert sum(row["shares"].values()) == pytest.approx(1)
        flops = training_flops(network, 4, 4 * row["grasps_per_object"])
        assert row["gflop_per_step"] == pytest.approx(flops / 1e9) and row["grasps_per_s"] > 0
        assert row["share_of_product"] == pytest.approx(row["gflop_per_s"] / row["product_gflop_per_s"])
    assert content["peak_memory_mb"] > 50 and "of product" in capsys.readouterr().out


def test_time_of_pretraining(tmp_path, small):
    argv = f"--preset tiny --steps 1 --batch 4 --quiet --precision bf16 --json {tmp_path}/speed.json"
    content = pretrain_jepa.main(["--benchmark", "--out", f"{tmp_path}/no.pt", *argv.split()])
    assert content == json.loads((tmp_path / "speed.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
    shown = [(row["precision"], row["threads"], row["batch"]) for row in content["rows"]]
    assert shown == [("bf16", 1, 4), ("bf16", 2, 4)]
    parts = ["data", "grouping", "tokenizer", "targets", "encoder", "predictor", "backward", "optimiser"]
    for row in content["rows"]:
        assert list(row["shares"]) == parts
        assert sum(row["shares"].values()) == pytest.approx(1) and row["clouds_per_s"] > 0


def test_a_command_of_its_own_does_the_same(tmp_path, small):
    argv = "--preset tiny --steps 1 --quiet --precision bf16 --threads 1 --pool none".split()
    own, flag = speed.main(["train", *argv]), train.main(["--benchmark", *argv])
    assert own["command"] == flag["command"] == "python train.py --benchmark " + " ".join(argv)
    assert [sorted(row) for row in own["rows"]] == [sorted(row) for row in flag["rows"]] and len(own["rows"]) == 3
    assert list(own["rows"][0]["shares"]) == ["batch", "pooling + head", "backward", "optimiser"]
    own = speed.main(["pretrain", *"--preset tiny --steps 1 --batch 2 --quiet --precision fp32 --threads 1".split()])
    assert [row["batch"] for row in own["rows"]] == [2] and own["command"].startswith("python pretrain_jepa.py")


def test_wrong_commands_are_one_line(capsys):
    assert "script" in fails(speed.main, [], capsys)
    assert "tokenizer" in fails(speed.main, ["tokenizer"], capsys)
    assert "--grasp" in fails(speed.main, ["train", "--grasp", "3"], capsys)
    assert "tf32" in fails(speed.main, ["train", "--preset", "tiny", "--precision", "tf32", "--quiet"], capsys)


def test_flags_about_speed_are_not_settings(tmp_path, capsys):
    for script in (train, pretrain_jepa):
        assert "benchmark" in fails(script.main, ["--json", str(tmp_path / "speed.json")], capsys)
        assert script.settings_of(script.parse(["--benchmark", "--json", "x"])) == script.settings_of(script.parse([]))


def test_nothing_loads_it_with_itself():
    """Only --benchmark does."""
    for path in [
        *ROOT.glob("*.py"),
        *(
            p
            for folder in ("cli", "files", "loop", "hand", "benchmark", "pictures", "lab")
            for p in ROOT.glob(f"{folder}/*.py")
        ),
    ]:
        imports = [
            ast.unparse(node) for node in ast.parse(path.read_text()).body if "import" in type(node).__name__.lower()
        ]
        assert not [line for line in imports if "lab.speed" in line or "lab import speed" in line], path


# ---------------------------------------------------------------- how OpenMP's threads wait

AT_TORCH = """
import importlib, os, sys

def show():
    print(*(os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")), flush=True)
    os._exit(0)

class AtTorch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            show()

sys.meta_path.insert(0, AtTorch)
importlib.import_module(sys.argv[1])
show()  # a script without torch
"""
SCRIPTS = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (*ROOT.glob("*.py"), *ROOT.glob("lab/*.py"))
    if "__main__" in path.read_text()
]


def run_python(program, *argv, **environment):
    """Run a program in a process of its own, with these variables and none of its like set -> stdout + stderr."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], cwd=ROOT, env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_threads_soon_sleep(script):
    """What the environment says when a script comes to load torch, or has come to its end without."""
    assert run_python(AT_TORCH, script).split() == ["passive", "20000", "0"]


def test_own_settings_win():
    assert run_python(AT_TORCH, "train", OMP_WAIT_POLICY="active").split() == ["active", "None", "None"]
    assert run_python(AT_TORCH, "train", KMP_BLOCKTIME="7").split() == ["passive", "20000", "7"]
    assert run_python(AT_TORCH, "train", GOMP_SPINCOUNT="7").split() == ["passive", "7", "0"]


@pytest.mark.skipif(
    sys.platform != "linux", reason="only GNU's OpenMP says how often its threads look before they sleep"
)
def test_openmp_heeds_it():
    shown = run_python("import cli, torch", OMP_DISPLAY_ENV="verbose")
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("torch comes with another OpenMP")
    assert "GOMP_SPINCOUNT = '20000'" in shown
    assert "GOMP_SPINCOUNT = '20000'" not in run_python("import torch", OMP_DISPLAY_ENV="verbose")
