import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails, write_box

import model
import pretrain_jepa
import synthesize
import train

STEPS = 14


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of 24 random .npy clouds and two meshes."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for i in range(24):
        np.save(folder / f"{i:02d}.npy", (rng.normal(size=(80, 3)) * rng.uniform(0.02, 0.1, 3)).astype(np.float32))
    (folder / "meshes").mkdir()
    for i in range(2):
        write_box(folder / "meshes" / f"box {i}.obj", np.array([0.1, 0.1, 0.1 + i / 10]))
    return folder


def arguments(shapes, out, *more):
    flags = f"--preset tiny --steps {STEPS} --batch 6 --log-every 2 --save-every 4 --quiet --threads 1".split()
    return ["--clouds", str(shapes), "--out", str(out), *flags, *map(str, more)]


@pytest.fixture(scope="module")
def pretrained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "encoder.pt"
    pretrain_jepa.main(arguments(shapes, out))
    return out


def outcome(out):
    """Weights and curve, without times."""
    rows = [{k: v for k, v in row.items() if k != "clouds_per_s"} for row in csv.DictReader(open(out.with_suffix(".csv")))]
    return rows, {k: v.tolist() for k, v in model.read_checkpoint(out)["encoder"].items()}


def test_checkpoint_card_and_fine_tuning(pretrained, box_root, tmp_path):
    card = json.loads(pretrained.with_suffix(".json").read_text())
    assert card["shapes"] == 26 and card["clouds_seen"] == STEPS * 6 and card["settings"]["seed"] == 0 and card["curve"]
    content = torch.load(pretrained, weights_only=True)
    assert set(content) == {"config", "encoder", "step"}
    assert not pretrained.with_suffix(".last.pt").exists()
    argv = f"--data {box_root} --runs {tmp_path} --init jepa --jepa-ckpt {pretrained} --steps 2 --quiet".split()
    assert np.isfinite(train.main(argv)["suites"]["val"]["top_logit_rmse"])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_resumed_equals_undisturbed(shapes, pretrained, tmp_path, stop):
    argv = arguments(shapes, tmp_path / "encoder.pt")
    code = (
        "import os, sys, pretrain_jepa\n"
        "calls, original = [], pretrain_jepa.PointJEPA.update_target\n"
        "def update(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 10: os.kill(os.getpid(), {int(stop)})\n"
        "    return original(*args)\n"
        "pretrain_jepa.PointJEPA.update_target = update\n"
        "pretrain_jepa.main(sys.argv[1:])\n"
    )
    child = subprocess.run([sys.executable, "-c", code, *argv], cwd=Path(train.__file__).parent, capture_output=True, text=True)
    assert child.returncode == (130 if stop == signal.SIGINT else -9), child.stderr
    assert model.read_checkpoint(tmp_path / "encoder.last.pt")["step"] == (10 if stop == signal.SIGINT else 8)
    pretrain_jepa.main([*argv, "--resume"])
    assert outcome(tmp_path / "encoder.pt") == outcome(pretrained)


def test_synthetic_shapes_are_made_once_and_named_by_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = "--clouds synthetic --num-clouds 6 --preset tiny --steps 2 --batch 3 --quiet --threads 1 --out a.pt".split()
    pretrain_jepa.main(argv)
    (pool,) = (tmp_path / "data" / "pretraining").glob("*.npy")
    clouds = np.load(pool)
    assert clouds.shape == (6, 64, 3) and 0.02 < np.ptp(clouds, axis=1).max() < 0.3  # metres
    assert np.array_equal(clouds[4], synthesize.pretraining_cloud(0, 4, 64))
    before = pool.stat().st_mtime_ns
    pretrain_jepa.main([*argv, "--overwrite"])
    assert pool.stat().st_mtime_ns == before


def test_nothing_is_overwritten_unasked(shapes, pretrained, tmp_path, capsys):
    assert "--overwrite" in fails(pretrain_jepa.main, arguments(shapes, pretrained), capsys)
    (tmp_path / "encoder.last.pt").write_bytes(b"")
    assert "--resume" in fails(pretrain_jepa.main, arguments(shapes, tmp_path / "encoder.pt"), capsys)


def test_augmentation_in_order_and_each_sample_its_own():
    config = model.PRESETS["tiny"]
    cloud = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(1)) * 0.05 + 0.3
    out = pretrain_jepa.augment(cloud.expand(500, -1, -1), config, torch.Generator().manual_seed(0))
    assert torch.allclose(out.mean(1), torch.zeros(500, 3), atol=1e-5)
    assert torch.allclose(out.norm(dim=2).amax(1), torch.ones(500), atol=1e-5)
    centred = cloud[0] - cloud[0].mean(0)
    scales, angles = [], []
    for sample in out:
        # what maps the centred cloud to the sample is radius⁻¹ · rotation about z · diag(scale)
        matrix = torch.linalg.lstsq(centred, sample).solution.T
        assert torch.allclose(centred @ matrix.T, sample, atol=1e-4)
        assert matrix[2, :2].abs().max() < 1e-4 and matrix[:2, 2].abs().max() < 1e-4
        ratios = torch.stack([matrix[:2, 0].norm(), matrix[:2, 1].norm(), matrix[2, 2]])
        assert torch.dot(matrix[:2, 0], matrix[:2, 1]).abs() < 1e-4
        scales.append(ratios / ratios.max())
        angles.append(math.atan2(matrix[1, 0], matrix[0, 0]))
    assert torch.stack(scales).min() >= 0.8 / 1.2 - 1e-3 and torch.stack(scales).min() < 0.75
    assert np.histogram(angles, bins=4, range=(-math.pi, math.pi))[0].min() > 80  # 125 expected in each quarter


def test_up_axis_is_the_one_that_stays():
    config = model.dataclasses.replace(model.PRESETS["tiny"], up="y")
    cloud = torch.rand(1, 64, 3)
    out = pretrain_jepa.augment(cloud.expand(20, -1, -1), config, torch.Generator().manual_seed(0))
    order = cloud[0, :, 1].argsort()
    assert all((sample[order, 1].diff() >= -1e-6).all() for sample in out)


def test_schedules():
    assert pretrain_jepa.first_tau(40_500) == 0.9995 and pretrain_jepa.first_tau(100_000) == 0.9995
    assert pretrain_jepa.first_tau(4050) == pytest.approx(0.995) and pretrain_jepa.first_tau(10) == 0
    assert pretrain_jepa.tau_at(0, 100, 0.9995) == 0.9995 and pretrain_jepa.tau_at(100, 100, 0.9995) == pytest.approx(0.99999)
    assert pretrain_jepa.tau_at(50, 100, 0.9) == pytest.approx((0.9 + 0.99999) / 2)
    rates = [pretrain_jepa.rate_at(step, 500, 1e-3) for step in range(501)]
    assert rates[0] == pytest.approx(1e-5) and rates[30] == pytest.approx(1e-3) and rates[500] == pytest.approx(1e-6)
    assert rates[15] == pytest.approx((1e-5 + 1e-3) / 2)
    assert rates[265] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 2)


def test_spread_and_collapse_warning(shapes, tmp_path, monkeypatch, capsys):
    features = torch.randn(40, 30, 8)
    assert pretrain_jepa.spread(features).item() == pytest.approx(features.reshape(-1, 8).numpy().std(0, ddof=1).mean(), rel=1e-5)
    monkeypatch.setattr(pretrain_jepa, "spread", lambda features: torch.tensor(0.01))
    pretrain_jepa.main(arguments(shapes, tmp_path / "encoder.pt"))
    assert "collapse" in capsys.readouterr().err


def test_batches_are_epochs_and_can_start_anywhere():
    args = pretrain_jepa.build_parser().parse_args(["--batch", "4"])
    stream = pretrain_jepa.batches(10, args, 0)
    first = [next(stream).tolist() for _ in range(6)]
    assert all(len(set(first[i] + first[i + 1])) == 8 for i in (0, 2, 4))
    for start in range(5):
        assert next(pretrain_jepa.batches(10, args, start)).tolist() == first[start]


def test_errors(tmp_path, shapes, capsys):
    (tmp_path / "empty").mkdir()
    assert "no meshes" in fails(pretrain_jepa.main, arguments(tmp_path / "empty", tmp_path / "e.pt"), capsys)
    assert "--batch" in fails(pretrain_jepa.main, arguments(shapes, tmp_path / "e.pt", "--batch", 100), capsys)
    assert "--lr" in fails(pretrain_jepa.main, arguments(shapes, tmp_path / "e.pt", "--lr", "nan"), capsys)
    np.save(tmp_path / "empty" / "few.npy", np.zeros((5, 3)))
    assert "few.npy" in fails(pretrain_jepa.main, arguments(tmp_path / "empty", tmp_path / "e.pt"), capsys)
