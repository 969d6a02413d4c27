"""train.py: a run and its files, stopped and resumed, the settings of checkpoints, errors."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails

import data
import model
import splits
import train
from files import checkpoints
from loop import fast

BATCHES = "--objects-per-batch 4 --grasps-per-object 3"
TIMED = ("seconds", "ms_per_step", "memory_mb")  # what differs between equal runs
TINY = f"--preset tiny --steps 24 {BATCHES} --eval-every 6 --save-every 4 --no-baseline --quiet --threads 1"


def arguments(box_root, runs, *more):
    return [*f"--data {box_root} --runs {runs}".split(), *TINY.split(), *map(str, more)]


def outcome(folder):
    """What must not change between equal runs: the curve and the result without times, the best weights."""
    with open(folder / "metrics.csv") as file:
        rows = [row | {"seconds": None} for row in csv.DictReader(file)]
    result = json.loads((folder / "result.json").read_text()) | dict.fromkeys(TIMED)
    weights = checkpoints.read_checkpoint(folder / "best.pt")["model"]
    return rows, result, {name: value.tolist() for name, value in weights.items()}


@pytest.fixture(scope="module")
def finished(box_root, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    train.main(arguments(box_root, runs, "--name", "run"))
    return runs / "run"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny encoder checkpoint with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "tiny.pt"
    config = model.PRESETS["tiny"]
    checkpoints.save_checkpoint(path, {"config": vars(config), "encoder": model.PointEncoder(config).state_dict()})
    return path


def test_a_run_and_its_files(finished):
    rows, result, _ = outcome(finished)
    assert [int(row["step"]) for row in rows] == [6, 12, 18, 24]
    val = result["suites"]["val"]
    assert val["top_logit_rmse"] == pytest.approx(min(float(row["val_top_logit_rmse"]) for row in rows), abs=1e-7)
    assert result["training_mean"]["num_grasps"] == val["num_grasps"] and result["train_objects"] == 10
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["steps"] == 24 and config["network"]["width"] == 32 and config["fingerprint"]
    assert model.load_run(finished).joint_names == [f"joint_{i}" for i in range(12)]


def test_training_learns(box_root, tmp_path):
    """On boxes whose size sets the joints, 150 steps must beat the training mean by far."""
    flags = "--preset tiny --steps 150 --objects-per-batch 10 --lr-backbone 1e-3 --k 1 --eval-every 50"
    result = train.main(f"--data {box_root} --runs {tmp_path} {flags} --no-baseline --quiet".split())
    assert result["suites"]["val"]["top_logit_rmse"] < 0.7 * result["training_mean"]["top_logit_rmse"]


def test_same_seed_same_numbers_and_from(box_root, finished, tmp_path):
    train.main(arguments(box_root, tmp_path, "--name", "again"))
    assert outcome(tmp_path / "again") == outcome(finished)
    again = f"--from {finished / 'config.json'} --runs {tmp_path} --no-baseline --quiet"
    train.main(f"{again} --name copy".split())
    assert outcome(tmp_path / "copy") == outcome(finished)
    train.main(f"{again} --name other --seed 1".split())
    assert outcome(tmp_path / "other")[0] != outcome(finished)[0]


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_stopped_and_resumed_equals_undisturbed(box_root, finished, tmp_path, stop):
    argv = arguments(box_root, tmp_path, "--name", "run")
    # the child stops itself in the middle of step 15, after an optimiser step it has not saved
    code = (
        "import os, sys, signal, torch, train\n"
        "calls, original = [], torch.nn.utils.clip_grad_norm_\n"
        "def clip(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 15: os.kill(os.getpid(), {int(stop)})\n"
        "    return original(*args)\n"
        "torch.nn.utils.clip_grad_norm_ = clip\n"
        "train.main(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", code, *argv]
    child = subprocess.run(words, cwd=Path(train.__file__).parent, capture_output=True, text=True)
    assert child.returncode == (130 if stop == signal.SIGINT else -9), child.stderr
    assert "Traceback" not in child.stderr
    step = checkpoints.read_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"]
    assert step == (15 if stop == signal.SIGINT else 12)
    train.main([*argv, "--resume"])
    assert outcome(tmp_path / "run") == outcome(finished)


def test_finished_and_unfinished_runs_are_kept(box_root, finished, tmp_path, capsys):
    argv = arguments(box_root, finished.parent, "--name", "run")
    assert "has finished" in fails(train.main, argv, capsys)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((finished / "config.json").read_text())
    argv = arguments(box_root, tmp_path, "--name", "run")
    assert "--resume" in fails(train.main, argv, capsys)
    assert "seed" in fails(train.main, [*argv, "--resume", "--seed", "5"], capsys)
    train.main([*argv, "--resume"])
    assert outcome(tmp_path / "run") == outcome(finished)


def test_last_checkpoint_is_kept_where_asked(box_root, finished, tmp_path):
    assert not (finished / "last.pt").exists()
    train.main(arguments(box_root, tmp_path, "--name", "run", "--steps", 2, "--keep-last"))
    assert checkpoints.read_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 2


def test_a_run_that_goes_on_elsewhere_says_so(box_root, tmp_path, capsys):
    argv = arguments(box_root, tmp_path, "--name", "run", "--steps", 2, "--keep-last")
    train.main(argv)
    (tmp_path / "run" / "result.json").unlink()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for device, precision in (("cpu", "fp32"), ("cuda", "tf32")):
        (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"device": device, "precision": precision}))
        capsys.readouterr()
        train.main([*argv, "--resume"])
        (tmp_path / "run" / "result.json").unlink()
        assert ("on cuda in tf32 and goes on on cpu in fp32" in capsys.readouterr().err) == (device == "cuda")


def test_the_message_names_the_step_that_was_not_finite(box_root, tmp_path, monkeypatch, capsys):
    """Though the loop looks at it every 50 steps only: the step, and the objects of its batch."""
    step, batches = train.training_step, []

    def spoilt(run, scenes, *more):
        batches.append(sorted({run.data.object_of_scene[i] for i in scenes.tolist()}))
        loss, finite = step(run, scenes, *more)
        return loss, finite & (len(batches) != 8)

    monkeypatch.setattr(train, "training_step", spoilt)
    said = fails(train.main, arguments(box_root, tmp_path, "--name", "run"), capsys)
    assert f"at step 7 (batch of {' '.join(batches[7])})" in said


def test_a_run_goes_on_with_the_library_of_its_start(box_root, tmp_path, monkeypatch):
    monkeypatch.setattr(fast, "ONEDNN", True)
    before = fast.library
    argv = arguments(box_root, tmp_path, "--name", "run", "--steps", 2, "--keep-last")
    train.main(argv)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["product_library"] == fast.product_library(fast.this_processor())
    monkeypatch.setattr(train, "training_loop", lambda run: None)
    try:
        for library in ("plain", "onednn"):
            (tmp_path / "run" / "result.json").unlink()
            (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"product_library": library}))
            train.main([*argv, "--resume"])
            assert fast.library == library
    finally:
        fast.use_library(before)


def test_baseline_is_trained_once(box_root, tmp_path, monkeypatch, capsys):
    """A run without --no-baseline trains `--pool size` beside it, once for all runs on the same data and budget."""
    argv = [flag for flag in arguments(box_root, tmp_path, "--steps", 2) if flag != "--no-baseline"]
    pools, original = [], train.training_loop

    def training_loop(run):
        pools.append(run.args.pool)
        original(run)

    monkeypatch.setattr(train, "training_loop", training_loop)
    for seed in (0, 1):
        train.main([*argv, "--name", f"run{seed}", "--seed", str(seed)])
        printed = capsys.readouterr().out
        assert "pose and size only" in printed and "s since this command was given" in printed
    assert pools == ["attention", "size", "attention"]
    (baseline,) = tmp_path.glob("pose-and-size-*")
    assert json.loads((baseline / "result.json").read_text())["steps"] == 2
    train.main([*argv, "--name", "run2", "--budget", "0.5"])
    assert len(list(tmp_path.glob("pose-and-size-*"))) == 2


def test_ctrl_c_in_the_baseline_shows_the_run_that_is_done(box_root, tmp_path, monkeypatch, capsys):
    argv = [flag for flag in arguments(box_root, tmp_path, "--steps", 2) if flag != "--no-baseline"]

    def pose_and_size(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "pose_and_size", pose_and_size)
        with pytest.raises(SystemExit) as stop:
            train.main([*argv, "--name", "run"])
    told = capsys.readouterr()
    assert stop.value.code == 130 and "this run, step" in told.out and "the next run" in told.err
    train.main([*argv, "--name", "next", "--seed", "1"])
    assert "pose and size only" in capsys.readouterr().out


def test_a_radius_without_balls_is_refused(box_root, tmp_path, capsys):
    for more in ((), ("--group", "knn"), ("--init", "random")):
        assert "--group ball" in fails(train.main, arguments(box_root, tmp_path, "--radius", 0.3, *more), capsys)


def test_a_flag_that_contradicts_the_file_of_from_is_told_with_it(finished, tmp_path, capsys):
    config = json.loads((finished / "config.json").read_text())
    config["settings"] |= {"init": "jepa", "jepa_ckpt": "mine.pt"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = fails(train.main, ["--from", tmp_path / "config.json", "--init", "scratch"], capsys)
    assert f"{tmp_path / 'config.json'}, or a flag beside it: --jepa-ckpt contradicts" in told


def test_each_cloud_is_encoded_once_per_batch(box_root, tmp_path, monkeypatch):
    rows, original = [], model.PointEncoder.forward

    def forward(encoder, clouds, *rest):
        rows.append(len(clouds))
        return original(encoder, clouds, *rest)

    monkeypatch.setattr(model.PointEncoder, "forward", forward)
    train.main(arguments(box_root, tmp_path, "--steps", 1, "--eval-every", 1))
    loaded = data.load_dataset(box_root, 64, quiet=True)
    split = splits.make_split(loaded)
    validation = len(split.suites["val"])  # one scene each
    # 4 objects of up to 3 grasps; the evaluation of the step and of the best
    assert rows == [4, validation, validation]


def test_frozen_backbone_does_not_move(box_root, encoder, tmp_path):
    flags = f"--name run --init jepa --jepa-ckpt {encoder} --lr-backbone 0".split()
    train.main(arguments(box_root, tmp_path, *flags))
    before, after = model.load_encoder(encoder).state_dict(), model.load_run(tmp_path / "run").encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # BatchNorm's statistics too


def test_two_learning_rates_and_their_schedule(box_root, tmp_path):
    args = train.parse(arguments(box_root, tmp_path, "--warmup", 0.25))
    network = model.GraspModel(train.resolve_network(args)[0])
    optimizer = train.build_optimizer(network, args)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    encoder_ids = {id(p) for p in network.encoder.parameters()}
    factors = [train.set_learning_rates(optimizer, step, args) for step in range(24)]
    assert factors[:6] == pytest.approx([i / 6 for i in range(1, 7)]) and 0 < factors[-1] < 0.02
    for group in optimizer.param_groups:
        inside = {id(p) for p in group["params"]} <= encoder_ids
        assert group["lr"] == pytest.approx((1e-5 if inside else 1e-3) * factors[-1])


def test_jepa_settings_come_from_the_checkpoint(box_root, encoder, tmp_path, capsys):
    argv = arguments(box_root, tmp_path, "--init", "jepa", "--jepa-ckpt", encoder)
    config, loaded = train.resolve_network(train.parse(argv))
    assert config.patches == 8 and config.dropout == model.FINE_TUNING["dropout"]
    for flag, value in (("--patches", 4), ("--points", 32), ("--group", "ball"), ("--preset", "small")):
        assert "tiny.pt" in fails(train.main, [*argv, flag, value], capsys)
    assert "presets with weights" in fails(train.main, arguments(box_root, tmp_path, "--init", "jepa"), capsys)


BAD_FLAGS = [
    ("--budget 0", "--budget"), ("--budget 1.1", "--budget"), ("--budget nan", "--budget"), ("--k 0", "--k"),
    ("--steps 0", "--steps"), ("--patches 65", "patches"), ("--patch-size 65", "patch_size"),
    ("--group ball", "radius"), ("--lr-head inf", "--lr-head"), ("--device tpu", "--device"),
    ("--jepa-ckpt x.pt", "--init"), ("--unknown 1", "--unknown"), ("--step 3", "--step"), ("--warmup 2", "--warmup"),
    ("--data /no/such/root", "/no/such/root"), ("--from nothing.json", "nothing.json"),
]  # fmt: skip


@pytest.mark.parametrize("flags, message", BAD_FLAGS)
def test_bad_flags(box_root, tmp_path, flags, message, capsys):
    assert message in fails(train.main, [*arguments(box_root, tmp_path), *flags.split()], capsys)
    assert not list(tmp_path.iterdir())


def test_nan_stops_before_the_next_checkpoint_and_names_its_step(box_root, tmp_path, monkeypatch, capsys):
    original, calls = model.GraspModel.loss, []

    def loss(self, *args):
        calls.append(1)
        return original(self, *args) * (float("nan") if len(calls) == 7 else 1.0)

    monkeypatch.setattr(model.GraspModel, "loss", loss)
    error = fails(train.main, arguments(box_root, tmp_path, "--name", "run"), capsys)
    assert "step 6" in error and "object_" in error and "last.pt" in error
    assert len(calls) == 8  # where a checkpoint would have been written
    saved = checkpoints.read_checkpoint(tmp_path / "run" / "last.pt")
    assert saved["progress"]["step"] == 4 and all(torch.isfinite(v).all() for v in saved["model"].values())


@pytest.mark.parametrize("pool", model.POOLS)
def test_every_pool_and_loss_trains(box_root, tmp_path, pool):
    loss = {"mean": "mdn", "max": "hedged"}.get(pool, "wta")
    result = train.main(arguments(box_root, tmp_path, "--pool", pool, "--loss", loss, "--steps", 2, "--k", 2))
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])


def test_help_is_fast():
    """Of the processor's time, which a busy machine does not stretch; Windows counts no child's."""
    start = sum(os.times()[2:4])
    out = subprocess.run([sys.executable, train.__file__, "--help"], capture_output=True, text=True, check=True).stdout
    assert sum(os.times()[2:4]) - start < 10 and "default: 0.0001" not in out and "--lr-backbone" in out


def test_help_tells_every_pooling(capsys):
    """--pool takes what the table POOLS of model.py has, and --help says of each what the table says."""
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    choices = re.search(r"--pool \{(.*?)\}", text)[1]
    assert choices.split(",") == list(model.POOLS)
    about = "; ".join(f"{name}: {pool.about}" for name, pool in model.POOLS.items())
    assert about in text
    for name in model.POOLS:
        assert train.parse(["--pool", name]).pool == name


@pytest.mark.slow
def test_compiled_run(box_root, tmp_path):
    """To nearly the numbers of the plain run: compiled code rounds otherwise and draws its own dropout."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler here")
    result = train.main(arguments(box_root, tmp_path, "--compile", "--steps", 2, "--eval-every", 2))
    plain = train.main(arguments(box_root, tmp_path, "--steps", 2, "--eval-every", 2))
    compiled, plain = (r["suites"]["val"]["top_logit_rmse"] for r in (result, plain))
    assert compiled == pytest.approx(plain, rel=0.02)
