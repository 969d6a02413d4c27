"""pretrain_jepa.py: the loop, its augmentation and schedules, going on from other files."""

import csv
import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails, interrupted, write_box
from official import official_file

import model
import pretrain_jepa
import train
from benchmark.shapes import pretraining_cloud
from cli.errors import UserError
from files import checkpoints

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
    with open(out.with_suffix(".csv")) as file:
        rows = [row | {"clouds_per_s": None} for row in csv.DictReader(file)]
    return rows, {k: v.tolist() for k, v in checkpoints.read_checkpoint(out)["encoder"].items()}


def test_checkpoint_card_and_fine_tuning(pretrained, box_root, tmp_path):
    card = json.loads(pretrained.with_suffix(".json").read_text())
    assert card["shapes"] == 26 and card["clouds_seen"] == STEPS * 6 and card["settings"]["seed"] == 0 and card["curve"]
    content = torch.load(pretrained, weights_only=True)
    assert set(content) == {"config", "encoder", "step"}
    assert not pretrained.with_suffix(".last.pt").exists()
    argv = f"--data {box_root} --runs {tmp_path} --init jepa --jepa-ckpt {pretrained} --steps 2 --no-baseline --quiet"
    assert np.isfinite(train.main(argv.split())["suites"]["val"]["top_logit_rmse"])


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_stopped_and_resumed_equals_undisturbed(shapes, pretrained, tmp_path, stop, capsys):
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
    words = [sys.executable, "-c", code, *argv]
    child = subprocess.run(words, cwd=Path(train.__file__).parent, capture_output=True, text=True)
    assert child.returncode == (130 if stop == signal.SIGINT else -9), child.stderr
    last = checkpoints.read_checkpoint(tmp_path / "encoder.last.pt")
    assert last["step"] == (10 if stop == signal.SIGINT else 8)
    assert (last["device"], last["precision"]) == ("cpu", "fp32")
    pretrain_jepa.main([*argv, "--resume"])
    assert "goes on on" not in capsys.readouterr().err
    assert outcome(tmp_path / "encoder.pt") == outcome(pretrained)


def test_a_run_follows_the_schedules(shapes, tmp_path, monkeypatch):
    """AdamW on all that trains, weight decay 0.05, no clipping; rate and EMA momentum of every step as scheduled."""
    rates, taus, made, norms = [], [], [], []
    adamw, update, backward = torch.optim.AdamW, pretrain_jepa.PointJEPA.update_target, torch.Tensor.backward

    def gradient_norm():
        parameters = made[0].param_groups[0]["params"]
        return math.sqrt(sum(p.grad.square().sum().item() for p in parameters if p.grad is not None))

    def look(optimizer, *_):
        rates.append(optimizer.param_groups[0]["lr"])
        assert gradient_norm() == norms[-1] > 10  # as the backward pass left it, though large

    def build(parameters, **options):
        made.append(adamw(parameters, **options))
        made[0].register_step_pre_hook(look)
        return made[0]

    def run_backward(loss):
        backward(1000 * loss)
        norms.append(gradient_norm())

    def follow(jepa, tau):
        taus.append(tau)
        assert len(taus) == len(rates)  # after the optimiser's step
        update(jepa, tau)

    monkeypatch.setattr(torch.optim, "AdamW", build)
    monkeypatch.setattr(torch.Tensor, "backward", run_backward)
    monkeypatch.setattr(pretrain_jepa.PointJEPA, "update_target", follow)
    pretrain_jepa.main(arguments(shapes, tmp_path / "encoder.pt", "--lr", 1e-3, "--tau", 0.9))
    assert rates == [pretrain_jepa.rate_at(step, STEPS, 1e-3) for step in range(STEPS)]
    assert taus == [pretrain_jepa.tau_at(step, STEPS, 0.9) for step in range(STEPS)]
    (group,) = made[0].param_groups
    trained = [p for p in model.PointJEPA(model.PRESETS["tiny"]).parameters() if p.requires_grad]
    assert group["weight_decay"] == 0.05 and [p.shape for p in group["params"]] == [p.shape for p in trained]
    rows = list(csv.DictReader(open(tmp_path / "encoder.csv")))
    assert [float(row["lr"]) for row in rows] == rates[1::2] and [float(row["tau"]) for row in rows] == taus[1::2]


def test_nothing_is_overwritten_unasked(shapes, pretrained, tmp_path, capsys):
    assert "--overwrite" in fails(pretrain_jepa.main, arguments(shapes, pretrained), capsys)
    (tmp_path / "encoder.last.pt").write_bytes(b"")
    assert "--resume" in fails(pretrain_jepa.main, arguments(shapes, tmp_path / "encoder.pt"), capsys)


def test_up_and_normalize_travel_with_the_checkpoint(shapes, box_root, tmp_path, capsys):
    out = tmp_path / "encoder.pt"
    flags = "--up y --normalize metric --patches 10 --width 24 --depth 1".split()
    pretrain_jepa.main(arguments(shapes, out, *flags))
    config = model.load_encoder(out).config
    assert (config.up, config.normalize, config.patches, config.width, config.depth) == ("y", "metric", 10, 24, 1)
    flags = f"--init jepa --jepa-ckpt {out} --steps 2 --no-baseline --quiet"
    train.main(f"--data {box_root} --runs {tmp_path} --name run {flags}".split())
    network = model.load_run(tmp_path / "run").config
    assert network == dataclasses.replace(config, **model.FINE_TUNING)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["network"]["up"] == "y"


# ---------------------------------------------------------------- clouds


def test_synthetic_shapes_are_made_once_and_named_by_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = "--clouds synthetic --num-clouds 6 --preset tiny --steps 2 --batch 3 --quiet --threads 1 --out a.pt".split()
    pretrain_jepa.main(argv)
    (pool,) = (tmp_path / "data" / "pretraining").glob("*.npy")
    clouds = np.load(pool)
    assert clouds.shape == (6, 64, 3) and 0.02 < np.ptp(clouds, axis=1).max() < 0.3  # metres
    assert np.array_equal(clouds[4], pretraining_cloud(0, 4, 64))
    before = pool.stat().st_mtime_ns
    pretrain_jepa.main([*argv, "--overwrite"])
    assert pool.stat().st_mtime_ns == before
    pretrain_jepa.main([*argv, "--overwrite", "--up", "y"])
    (pool,) = (tmp_path / "data" / "pretraining").glob("*-y-*.npy")
    assert np.array_equal(np.load(pool)[4], pretraining_cloud(0, 4, 64, up="y"))


def test_pools_of_other_categories_are_other_pools(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    everything = list(pretrain_jepa.TRAIN_SYNSETS)
    some = [pretrain_jepa.NO_SYNSET, *everything[1:]]
    choices = (everything, everything[::-1], some, some[:1])
    pools = [pretrain_jepa.synthetic_pool(6, 16, 0, "z", synsets, True) for synsets in choices]
    assert np.array_equal(pools[0], pools[1]) and not any(np.array_equal(pools[0], pool) for pool in pools[2:])
    assert len(list(tmp_path.glob("data/pretraining/*.npy"))) == 3


@pytest.mark.slow
def test_a_pool_is_the_same_whoever_makes_it(tmp_path, monkeypatch):
    """By one process, and by two that take turns."""
    pools = []
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        monkeypatch.chdir(tmp_path / str(count))
        monkeypatch.setattr(pretrain_jepa, "cores", lambda: 2)
        monkeypatch.setattr(pretrain_jepa, "FEW_SHAPES", 1000 if count == 1 else 0)
        pools.append(pretrain_jepa.synthetic_pool(120, 16, 0, "z", list(pretrain_jepa.TRAIN_SYNSETS), True))
    assert pools[0].tobytes() == pools[1].tobytes()


@pytest.mark.parametrize("normalize", ["unit_sphere", "metric"])
@pytest.mark.parametrize("up", ["z", "y"])
def test_augmentation_in_order_and_each_sample_its_own(up, normalize):
    config = dataclasses.replace(model.PRESETS["tiny"], up=up, normalize=normalize, scale=0.5)
    cloud = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(1)) * 0.05 + 0.3
    scale, angle = pretrain_jepa.draw_augmentation(500, torch.Generator().manual_seed(0))
    out = pretrain_jepa.augment(cloud.expand(500, -1, -1), config, scale, angle)
    assert torch.allclose(out.mean(1), torch.zeros(500, 3), atol=1e-5)
    if normalize == "unit_sphere":
        assert torch.allclose(out.norm(dim=2).amax(1), torch.ones(500), atol=1e-5)
    # in z-up axes, where a turn about the up axis is one about z
    centred, out = model.to_z_up(cloud[0] - cloud[0].mean(0), up), model.to_z_up(out, up)
    scales, angles = [], []
    for sample in out:
        # what maps the centred cloud to the sample is radius⁻¹ · rotation about z · diag(scale)
        matrix = torch.linalg.lstsq(centred, sample).solution.T
        assert torch.allclose(centred @ matrix.T, sample, atol=1e-4)
        assert matrix[2, :2].abs().max() < 1e-4 and matrix[:2, 2].abs().max() < 1e-4
        assert torch.dot(matrix[:2, 0], matrix[:2, 1]).abs() < 1e-4 and torch.linalg.det(matrix) > 0
        scales.append(torch.stack([matrix[:2, 0].norm(), matrix[:2, 1].norm(), matrix[2, 2]]))
        angles.append(math.atan2(matrix[1, 0], matrix[0, 0]))
    scales = torch.stack(scales)  # (500, 3)
    if normalize == "metric":  # 0.5 m are one unit: the scales themselves
        quarters = torch.histc(scales * 0.5, 4, 0.8 - 1e-4, 1.2 + 1e-4)
        assert quarters.sum() == 1500 and quarters.min() > 300  # 375 expected in each
        assert torch.corrcoef(scales.T).fill_diagonal_(0).abs().max() < 0.15  # every axis by itself
    ratios = scales / scales.amax(1, keepdim=True)
    assert ratios.min() >= 0.8 / 1.2 - 1e-3 and ratios.min() < 0.75
    assert np.histogram(angles, bins=4, range=(-math.pi, math.pi))[0].min() > 80  # 125 expected in each quarter


def test_jitter_is_a_setting():
    config = dataclasses.replace(model.PRESETS["tiny"], normalize="metric", scale=1.0)
    cloud = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(1))
    centred = cloud - cloud.mean(1, keepdim=True)

    def vertical_scales(jitter):
        """What the vertical axis is scaled by in 200 draws, (200,)."""
        drawn = pretrain_jepa.draw_augmentation(200, torch.Generator().manual_seed(0), jitter)
        out = pretrain_jepa.augment(cloud.expand(200, -1, -1), config, *drawn)
        return (out[..., 2] / centred[..., 2]).median(1).values

    assert torch.allclose(vertical_scales(0), torch.ones(200), atol=1e-5)
    half = vertical_scales(0.5)
    assert 0.5 <= half.min() < 0.55 and 1.45 < half.max() <= 1.5


def test_batches_are_epochs_and_can_start_anywhere():
    args = pretrain_jepa.build_parser().parse_args(["--batch", "4"])
    stream = pretrain_jepa.cloud_batches(10, args, 0)
    first = [next(stream).tolist() for _ in range(6)]
    assert all(len(set(first[i] + first[i + 1])) == 8 for i in (0, 2, 4))
    for start in range(5):
        assert next(pretrain_jepa.cloud_batches(10, args, start)).tolist() == first[start]


# ---------------------------------------------------------------- going on from a pretraining


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """An official file of the size of --preset tiny, for clouds of 70 points, y up as all of them are."""
    path = tmp_path_factory.mktemp("official") / "official.ckpt"
    hyper = {"encoder_heads": 2, "predictor_heads": 2, "tokenizer_num_groups": 12, "tokenizer_group_size": 8}
    hyper |= {"transformation_subsample_points": 70}
    official_file(path, hyper, width=32, w1=16, w2=16, w3=32, predictor_width=16, predictor_depth=1)
    return path


def test_start_from_the_official_file(shapes, official, tmp_path, monkeypatch, capsys):
    """Network, predictor and EMA of the file, a fresh optimiser, and the momentum that 40,500 steps had come to."""
    out, taus, first = tmp_path / "encoder.pt", [], []
    update, forward = pretrain_jepa.PointJEPA.update_target, pretrain_jepa.PointJEPA.forward

    def follow(jepa, tau):
        taus.append(tau)
        update(jepa, tau)

    def remember(jepa, clouds, *drawn):
        if not first:
            first.append({name: value.clone() for name, value in jepa.state_dict().items()})
        assert jepa.training and not jepa.target.training and clouds.shape[1:] == (70, 3)
        return forward(jepa, clouds, *drawn)

    monkeypatch.setattr(pretrain_jepa.PointJEPA, "update_target", follow)
    monkeypatch.setattr(pretrain_jepa.PointJEPA, "forward", remember)
    card = pretrain_jepa.main(arguments(shapes, out, "--start", official))
    loaded = model.load_jepa(official)
    assert all(torch.equal(value, first[0][name]) for name, value in loaded.state_dict().items())
    assert taus == pytest.approx([0.99999] * STEPS, abs=1e-12) and card["settings"]["tau"] == taus[0]
    encoder = model.load_encoder(out)
    assert encoder.config == loaded.config
    assert encoder.config.up == "y" and "step 40500" in capsys.readouterr().out
    agreeing = "--preset tiny --up y --points 70 --patches 12 --patch-size 8 --normalize unit_sphere --tau 0.5".split()
    taus.clear()
    pretrain_jepa.main(arguments(shapes, tmp_path / "again.pt", "--start", official, *agreeing))
    assert taus == [pretrain_jepa.tau_at(step, STEPS, 0.5) for step in range(STEPS)]


def test_start_from_the_official_file_makes_its_kind_of_clouds(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrain_jepa.main(f"--start {official} --num-clouds 4 --steps 1 --batch 2 --quiet --threads 1 --out a.pt".split())
    (pool,) = (tmp_path / "data" / "pretraining").glob("*.npy")
    assert np.array_equal(np.load(pool)[3], pretraining_cloud(0, 3, 70, up="y"))


def test_start_from_a_pretraining_and_resume(shapes, official, tmp_path):
    """From a stopped run's .last.pt, with its momentum there; a stopped continuation ends as an undisturbed one."""
    interrupted(pretrain_jepa.main, arguments(shapes, tmp_path / "old.pt", "--tau", 0.9, "--patches", 10), 7)
    argv = arguments(shapes, tmp_path / "whole.pt", "--start", tmp_path / "old.last.pt", "--patches", 10)
    card = pretrain_jepa.main(argv)
    assert card["settings"]["tau"] == pretrain_jepa.tau_at(7, STEPS, 0.9) and card["network"]["patches"] == 10
    argv[argv.index(str(tmp_path / "whole.pt"))] = str(tmp_path / "parts.pt")
    interrupted(pretrain_jepa.main, argv, 5)
    pretrain_jepa.main([*argv, "--resume"])
    assert outcome(tmp_path / "parts.pt") == outcome(tmp_path / "whole.pt")


def test_start_errors(shapes, pretrained, official, tmp_path, capsys):
    def error(*flags):
        return fails(pretrain_jepa.main, arguments(shapes, tmp_path / "e.pt", *flags), capsys)

    for flags in ("--up z", "--normalize metric", "--points 64", "--patches 8", "--patch-size 4"):
        line = error("--start", official, *flags.split())
        assert str(official) in line and f"leave {flags.split()[0]} out" in line
    assert "leave --preset out" in error("--preset", "small", "--start", official)
    assert "nowhere.ckpt" in error("--start", "nowhere.ckpt")
    assert "holds no predictor" in error("--start", pretrained)
    (tmp_path / "short.ckpt").write_bytes(official.read_bytes()[:-1000])
    assert "short.ckpt" in error("--start", tmp_path / "short.ckpt")
    interrupted(pretrain_jepa.main, arguments(shapes, tmp_path / "old.pt"), 3)
    content = checkpoints.read_checkpoint(tmp_path / "old.last.pt")
    for change in ({"settings": {}}, {"settings": None}, {"step": "three"}):
        torch.save(content | change, tmp_path / "bad.pt")
        assert "bad.pt" in error("--start", tmp_path / "bad.pt")
    own = arguments(shapes, tmp_path / "old.pt", "--start", tmp_path / "old.last.pt", "--overwrite")
    assert "write over" in fails(pretrain_jepa.main, own, capsys)
    interrupted(pretrain_jepa.main, arguments(shapes, tmp_path / "e.pt", "--start", official), 3)
    assert "start" in error("--start", tmp_path / "old.last.pt", "--resume")  # not the file that it was started from


# ---------------------------------------------------------------- schedules, logging, errors


def test_schedules():
    assert pretrain_jepa.first_tau(40_500) == 0.9995 and pretrain_jepa.first_tau(100_000) == 0.9995
    assert pretrain_jepa.first_tau(4050) == pytest.approx(0.995) and pretrain_jepa.first_tau(10) == 0
    assert pretrain_jepa.tau_at(0, 100, 0.9995) == 0.9995
    assert pretrain_jepa.tau_at(100, 100, 0.9995) == pytest.approx(0.99999)
    assert pretrain_jepa.tau_at(50, 100, 0.9) == pytest.approx((0.9 + 0.99999) / 2)
    rates = [pretrain_jepa.rate_at(step, 500, 1e-3) for step in range(501)]
    assert rates[0] == pytest.approx(1e-5) and rates[30] == pytest.approx(1e-3) and rates[500] == pytest.approx(1e-6)
    assert rates[15] == pytest.approx((1e-5 + 1e-3) / 2)
    assert rates[265] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 2)


def test_spread_and_collapse_warning(shapes, tmp_path, monkeypatch, capsys):
    features = torch.randn(40, 30, 8)
    by_hand = features.reshape(-1, 8).numpy().std(0, ddof=1).mean()
    assert pretrain_jepa.spread(features).item() == pytest.approx(by_hand, rel=1e-5)
    monkeypatch.setattr(pretrain_jepa, "spread", lambda features: torch.tensor(0.01))
    pretrain_jepa.main(arguments(shapes, tmp_path / "encoder.pt"))
    assert "collapse" in capsys.readouterr().err


def test_errors(tmp_path, shapes, capsys):
    (tmp_path / "empty").mkdir()
    assert "no meshes" in fails(pretrain_jepa.main, arguments(tmp_path / "empty", tmp_path / "e.pt"), capsys)
    assert "--batch" in fails(pretrain_jepa.main, arguments(shapes, tmp_path / "e.pt", "--batch", 100), capsys)
    assert "--lr" in fails(pretrain_jepa.main, arguments(shapes, tmp_path / "e.pt", "--lr", "nan"), capsys)
    np.save(tmp_path / "empty" / "few.npy", np.zeros((5, 3)))
    assert "few.npy" in fails(pretrain_jepa.main, arguments(tmp_path / "empty", tmp_path / "e.pt"), capsys)


def test_out_is_a_file_of_its_own_beside_card_and_curve(tmp_path, shapes, capsys):
    """Else the card would be written over the encoder, or two encoders with a dot in their names share it."""
    (tmp_path / "folder.pt").mkdir()
    for name in ("enc.json", "enc.csv", "tau0.99", "enc", "folder.pt"):
        assert "ends in .pt" in fails(pretrain_jepa.main, arguments(shapes, tmp_path / name), capsys)
    for name in ("tau0.99.pt", "tau0.999.pt"):
        pretrain_jepa.main(arguments(shapes, tmp_path / name, "--steps", 1))
        assert f"--out {tmp_path / name}" in json.loads((tmp_path / name).with_suffix(".json").read_text())["command"]
    assert len(list(tmp_path.glob("tau*"))) == 6


@pytest.mark.parametrize("flags", ["B A", "A B A", "A B"])
def test_synsets_in_any_order_are_the_same(flags):
    names = dict(zip("AB", pretrain_jepa.TRAIN_SYNSETS))
    args = pretrain_jepa.parse(["--synsets", *(names[flag] for flag in flags.split())])
    assert args.synsets == [names["A"], names["B"]]
    assert pretrain_jepa.parse([]).synsets == list(pretrain_jepa.TRAIN_SYNSETS)


def test_resumed_with_other_threads_is_refused(tmp_path, shapes, capsys):
    """Their number is in the last bits of a sum, and in the card."""
    argv = arguments(shapes, tmp_path / "e.pt", "--save-every", 1)
    interrupted(pretrain_jepa.main, argv, 1)
    assert "threads" in fails(pretrain_jepa.main, [*argv, "--resume", "--threads", "2"], capsys)
    pretrain_jepa.main([*argv, "--resume"])


def test_every_width_that_pretrains_can_be_fine_tuned(capsys):
    """The pooling has heads of its own, which must divide the width as well."""
    for width in range(2, 40, 2):  # `tiny` has 2 heads
        args = pretrain_jepa.parse(["--preset", "tiny", "--width", str(width)])
        if width % model.AttentionPool(32).attention.num_heads:
            with pytest.raises(UserError, match="pooling"):
                pretrain_jepa.resolve_config(args)
        else:
            model.GraspModel(pretrain_jepa.resolve_config(args))


def test_pictures_are_the_walkthroughs(shapes, tmp_path, capsys):
    argv = arguments(shapes, tmp_path / "e.pt", "--picture", "look.png")
    assert "python walkthrough.py --out look.png" in fails(pretrain_jepa.main, argv, capsys)
    assert not list(tmp_path.iterdir())
