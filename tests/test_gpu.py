"""What needs a CUDA device, each path once; skipped without one (fixture gpu). `python -m pytest -k gpu` runs these."""

import numpy as np
import pytest
import torch
from conftest import interrupted, read_csv, training
from torch.nn.modules.module import register_module_forward_hook

import evaluate
import pretrain_jepa
import train
from files.checkpoints import read_checkpoint
from loop.graphs import WARM
from model import GraspModel
from variants import surface_distances


def small_run(root, runs, *flags):
    """Flags of a short training on the GPU."""
    return training(root, runs, "--device", "cuda", *flags)


def column(path, name):
    """A column of a .csv as floats."""
    return [float(row[name]) for row in read_csv(path)]


# ---------------------------------------------------------------- fine-tuning
def test_gpu_train_and_evaluate(gpu, box_root, tmp_path):
    result = train.main(small_run(box_root, tmp_path, "--steps", 12, "--name", "a"))
    assert result["device"] == "cuda" and result["precision"] == "tf32"
    first = result["suites"]["val"]["top_logit_rmse"]
    for device, off in (("cuda", 1e-6), ("cpu", 1e-4)):
        again = evaluate.main([str(tmp_path / "a"), "--device", device, "--quiet"])
        assert again["suites"]["val"]["top_logit_rmse"] == pytest.approx(first, abs=off)


VARIANTS = [
    "--precision fp32", "--precision bf16", "--pool hand", "--pool surface", "--pool attention_surface",
    "--pool mean_max", "--pool size", "--pool none", "--loss mdn", "--loss hedged",
    "--lora 2", "--lora 2 --precision bf16", "--lr-backbone 0",
    "--group ball --radius 0.4", "--k 1",
]  # fmt: skip


@pytest.mark.parametrize("flags", VARIANTS)
def test_gpu_every_variant_trains_as_a_graph(gpu, box_root, tmp_path, flags):
    eager = []  # forward passes of training in Python

    def look(module, *_):
        if isinstance(module, GraspModel) and module.training:
            eager.append(module)

    with register_module_forward_hook(look):
        result = train.main(small_run(box_root, tmp_path, "--steps", 30, "--objects-per-batch", 4, *flags.split()))
    assert 0 < len(eager) <= 4 * (WARM + 1)  # so many shapes of a batch at most: 1 to 4 clouds
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_gpu_equal_seeds_give_equal_runs(gpu, box_root, tmp_path, precision):
    flags = ("--steps", 30, "--precision", precision)
    first, second = (train.main(small_run(box_root, tmp_path, *flags, "--name", name)) for name in "ab")
    assert first["suites"] == second["suites"]


def test_gpu_resumed_training_repeats_the_undisturbed_one(gpu, box_root, tmp_path):
    """Begun and gone on with as graphs or not."""
    flags = ("--steps", 24, "--save-every", 12, "--eval-every", 12, "--precision", "fp32")
    train.main(small_run(box_root, tmp_path, *flags, "--name", "whole"))
    interrupted(train.main, small_run(box_root, tmp_path, *flags, "--name", "cut", "--no-graph"), 16)
    train.main(small_run(box_root, tmp_path, *flags, "--name", "cut", "--resume"))
    whole, cut = (column(tmp_path / name / "metrics.csv", "val_top_logit_rmse") for name in ("whole", "cut"))
    assert whole == pytest.approx(cut, abs=1e-4)


def test_gpu_surface_distances_are_those_of_the_cpu(gpu):
    generator = torch.Generator().manual_seed(0)
    clouds, poses = torch.rand(3, 64, 3, generator=generator), torch.randn(7, 7, generator=generator)
    poses[:, 3:] /= poses[:, 3:].norm(dim=1, keepdim=True)
    index = torch.arange(7) % 3
    found = surface_distances(clouds.to(gpu), index.to(gpu), poses.to(gpu)).cpu()
    torch.testing.assert_close(found, surface_distances(clouds, index, poses), atol=1e-3, rtol=0)


# ---------------------------------------------------------------- pretraining
@pytest.fixture
def pretraining(shapes):
    """Flags of a short pretraining on the GPU."""
    flags = "--preset tiny --batch 8 --save-every 10 --log-every 1 --quiet --precision fp32 --device cuda".split()
    return ["--clouds", str(shapes), *flags]


def test_gpu_resumed_pretraining_draws_the_same_dropout(gpu, pretraining, tmp_path):
    flags = [*pretraining, "--steps", "20", "--no-graph"]
    pretrain_jepa.main([*flags, "--out", str(tmp_path / "whole.pt")])
    interrupted(pretrain_jepa.main, [*flags, "--out", str(tmp_path / "cut.pt")], 14)
    pretrain_jepa.main([*flags, "--out", str(tmp_path / "cut.pt"), "--resume"])
    whole, cut = (read_checkpoint(tmp_path / f"{name}.pt")["encoder"] for name in ("whole", "cut"))
    for name, weights in whole.items():
        torch.testing.assert_close(cut[name], weights, atol=1e-5, rtol=1e-4)


def test_gpu_pretraining_as_graphs_learns_the_same(gpu, pretraining, tmp_path):
    for name, more in (("graph", []), ("single", ["--no-graph"])):
        pretrain_jepa.main([*pretraining, "--steps", "40", *more, "--out", str(tmp_path / f"{name}.pt")])
    graph, single = (column(tmp_path / f"{name}.csv", "loss") for name in ("graph", "single"))
    assert graph[:WARM] == pytest.approx(single[:WARM], abs=1e-4)
    assert np.mean(graph[-10:]) == pytest.approx(np.mean(single[-10:]), rel=0.1)
