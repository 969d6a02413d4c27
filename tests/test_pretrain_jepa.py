"""pretrain_jepa.py: the loop, its augmentation and schedules."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import interrupted, read_csv
from scipy.spatial.transform import Rotation
from torch.optim.optimizer import register_optimizer_step_pre_hook

import model
import pretrain_jepa
import train
from benchmark.shapes import pretraining_cloud
from files.checkpoints import load_encoder, load_run, read_checkpoint
from files.writing import read_json, stable_seed

STEPS = 14


def arguments(shapes, out, *more):
    flags = f"--preset tiny --steps {STEPS} --batch 6 --log-every 2 --save-every 4 --quiet --threads 1".split()
    return ["--clouds", str(shapes), "--out", str(out), *flags, *map(str, more)]


@pytest.fixture(scope="module")
def pretrained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "encoder.pt"
    pretrain_jepa.main(arguments(shapes, out))
    return out


# ---------------------------------------------------------------- a run and its files
def test_checkpoint_and_card(pretrained):
    card = read_json(pretrained.with_suffix(".json"))
    assert card["shapes"] == 26 and card["clouds_seen"] == STEPS * 6 and card["settings"]["seed"] == 0 and card["curve"]
    assert set(torch.load(pretrained, weights_only=True)) == {"config", "encoder", "step"}
    assert not pretrained.with_suffix(".last.pt").exists()


def test_a_run_follows_the_schedules(shapes, tmp_path):
    """AdamW on all that trains, weight decay 0.05; rate and EMA momentum of every step as scheduled."""
    groups = []
    with register_optimizer_step_pre_hook(lambda optimizer, *_: groups.append(dict(optimizer.param_groups[0]))):
        pretrain_jepa.main(arguments(shapes, tmp_path / "a.pt", "--tau", 0.9, "--log-every", 1))
    rates = [pretrain_jepa.rate_at(step, STEPS, 1e-3) for step in range(STEPS)]
    taus = [pretrain_jepa.tau_at(step, STEPS, 0.9) for step in range(STEPS)]
    assert [group["lr"] for group in groups] == [float(row["lr"]) for row in read_csv(tmp_path / "a.csv")] == rates
    assert [float(row["tau"]) for row in read_csv(tmp_path / "a.csv")] == taus
    trained = [p for p in model.PointJEPA(model.PRESETS["tiny"]).parameters() if p.requires_grad]
    assert groups[0]["weight_decay"] == 0.05 and [p.shape for p in groups[0]["params"]] == [p.shape for p in trained]


def test_the_target_encoder_follows_by_tau(shapes, tmp_path):
    """After one step, from the weights of the seed."""
    argv = arguments(shapes, tmp_path / "a.pt", "--tau", 0.9)
    interrupted(pretrain_jepa.main, argv, 1)
    torch.manual_seed(stable_seed("pretrain-weights", 0))
    before = pretrain_jepa.build_jepa(pretrain_jepa.parse(argv)).state_dict()
    after = read_checkpoint(tmp_path / "a.last.pt")["jepa"]
    for name in (name for name in before if name.startswith("target.")):
        online = after[name.replace("target.", "encoder.transformer.")]
        torch.testing.assert_close(after[name], torch.lerp(online, before[name], 0.9), rtol=0, atol=1e-7)


def test_up_and_normalize_travel_with_the_checkpoint(shapes, box_root, tmp_path):
    out = tmp_path / "encoder.pt"
    flags = "--up y --normalize metric --patches 10 --width 24 --depth 1".split()
    pretrain_jepa.main(arguments(shapes, out, *flags))
    config = load_encoder(out).config
    assert (config.up, config.normalize, config.patches, config.width, config.depth) == ("y", "metric", 10, 24, 1)
    flags = f"--init jepa --jepa-ckpt {out} --steps 2 --no-baseline --no-pictures --quiet"
    train.main(f"--data {box_root} --runs {tmp_path} --name run {flags}".split())
    assert load_run(tmp_path / "run").config == dataclasses.replace(config, **model.FINE_TUNING)


def test_schedules():
    first_tau, tau_at = pretrain_jepa.first_tau, pretrain_jepa.tau_at
    assert [first_tau(steps) for steps in (100_000, 40_500, 4050, 10)] == pytest.approx([0.9995, 0.9995, 0.995, 0])
    assert [tau_at(step, 100, 0.9) for step in (0, 50, 100)] == pytest.approx([0.9, (0.9 + 0.99999) / 2, 0.99999])
    rates = [pretrain_jepa.rate_at(step, 500, 1e-3) for step in (0, 15, 30, 265, 500)]
    assert rates == pytest.approx([1e-5, (1e-5 + 1e-3) / 2, 1e-3, 1e-6 + (1e-3 - 1e-6) / 2, 1e-6])


def test_spread_and_collapse_warning(shapes, tmp_path, capsys):
    features = torch.randn(40, 30, 8)
    by_hand = features.reshape(-1, 8).numpy().std(0, ddof=1).mean()
    assert pretrain_jepa.spread(features).item() == pytest.approx(by_hand, rel=1e-5)
    pretrain_jepa.main(arguments(shapes, tmp_path / "encoder.pt"))
    assert "collapse" not in capsys.readouterr().err
    # a decay that leaves of the weights what the last step made
    pretrain_jepa.main(arguments(shapes, tmp_path / "small.pt", "--weight-decay", 1000))
    assert "features collapse" in capsys.readouterr().err


# ---------------------------------------------------------------- clouds
def test_synthetic_shapes_are_made_once_and_named_by_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = "--clouds synthetic --num-clouds 6 --preset tiny --steps 2 --batch 3 --quiet --threads 1 --out a.pt".split()
    pretrain_jepa.main(argv)
    (kept,) = (tmp_path / "data" / "pretraining").glob("*.npy")
    clouds = np.load(kept)
    assert clouds.shape == (6, 64, 3) and 0.02 < np.ptp(clouds, axis=1).max() < 0.3  # metres
    assert np.array_equal(clouds[4], pretraining_cloud(0, 4, 64))
    before = kept.stat().st_mtime_ns
    pretrain_jepa.main([*argv, "--overwrite"])
    assert kept.stat().st_mtime_ns == before
    pretrain_jepa.main([*argv, "--overwrite", "--up", "y"])
    (kept,) = (tmp_path / "data" / "pretraining").glob("*-y-*.npy")
    assert np.array_equal(np.load(kept)[4], pretraining_cloud(0, 4, 64, up="y"))


@pytest.mark.parametrize("normalize", ["unit_sphere", "metric"])
@pytest.mark.parametrize("up", ["z", "y"])
def test_augmentation_scales_centres_normalises_and_turns_in_this_order(up, normalize):
    config = dataclasses.replace(model.PRESETS["tiny"], up=up, normalize=normalize, scale=0.5)
    clouds = torch.randn(20, 64, 3, generator=torch.Generator().manual_seed(1)) * 0.05 + 0.3
    scale, angle = pretrain_jepa.draw_augmentation(20, torch.Generator().manual_seed(0))
    found = pretrain_jepa.augment(clouds, config, scale, angle)
    for cloud, factors, turn, ours in zip(clouds.numpy(), scale.numpy(), angle.numpy(), found.numpy()):
        centred = cloud * factors - (cloud * factors).mean(0)
        unit = 0.5 if normalize == "metric" else np.linalg.norm(centred, axis=1).max()
        turned = Rotation.from_euler(up, turn).apply(centred / unit)
        np.testing.assert_allclose(ours, turned, atol=1e-5)


def test_every_sample_and_axis_is_augmented_by_itself():
    scale, angle = pretrain_jepa.draw_augmentation(500, torch.Generator().manual_seed(0))
    quarters = torch.histc(scale, 4, 0.8, 1.2)
    assert quarters.sum() == 1500 and quarters.min() > 300  # 375 expected in each
    assert torch.corrcoef(scale[:, 0].T).fill_diagonal_(0).abs().max() < 0.15
    assert torch.histc(angle, 4, 0, 2 * math.pi).min() > 80  # 125 expected


def test_batches_are_epochs_and_can_start_anywhere():
    args = pretrain_jepa.parse(["--batch", "4"])
    stream = pretrain_jepa.cloud_batches(10, args, 0)
    first = [next(stream).tolist() for _ in range(6)]
    assert all(len(set(first[i] + first[i + 1])) == 8 for i in (0, 2, 4))
    for start in range(5):
        assert next(pretrain_jepa.cloud_batches(10, args, start)).tolist() == first[start]
