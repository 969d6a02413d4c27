"""speed.py: operation counts against PyTorch's own counter, the stopwatch, the benchmark of train.py."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import fails
from torch.utils.flop_counter import FlopCounterMode

import model
import pretrain_jepa
import speed
import train
from common import computes_bf16

TINY = model.PRESETS["tiny"]


def counted(step):
    """What PyTorch counts; it does not know the products that `model.linear` makes by oneDNN."""
    with FlopCounterMode(display=False) as counter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "ONEDNN", False)
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("pool", model.CHOICES["pool"])
def test_flops_of_a_training_step(pool):
    args = train.parse(["--preset", "tiny", "--pool", pool])
    network = model.GraspModel(dataclasses.replace(TINY, pool=pool))
    optimizer = train.build_optimizer(network, args)
    train.training_mode(network, args)
    data = train.random_data(4, TINY.points, 12, 3)
    clouds, poses, joints = (torch.from_numpy(array) for array in (data.clouds, data.poses, data.joints))
    batch = next(train.batches(data, np.arange(len(data.scene)), args, 0, torch.device("cpu")))
    assert [len(part) for part in batch] == [4, 12, 12]
    ours = speed.training_flops(network, 4, 12)
    theirs = counted(lambda: train.training_step(network, optimizer, batch, clouds, poses, joints, args, torch.Generator()))
    if pool.startswith("attention"):  # the counter does not know the fused attention of one query on a CPU
        assert theirs <= ours <= theirs + 3 * 2 * 2 * 4 * TINY.patches * TINY.width
    else:
        assert ours == theirs


@pytest.mark.parametrize("seed", range(3))
def test_flops_of_a_pretraining_step(seed):
    torch.manual_seed(0)
    jepa, generator = model.PointJEPA(TINY), torch.Generator().manual_seed(seed)
    args = pretrain_jepa.parse(["--preset", "tiny"])
    optimizer, shapes = pretrain_jepa.build_optimizer(jepa, args), []
    jepa.predictor.register_forward_pre_hook(lambda _, inputs: shapes.extend((inputs[0].shape[1], *inputs[2].shape[1:3])))
    theirs = counted(lambda: pretrain_jepa.pretraining_step(jepa, optimizer, torch.rand(3, TINY.points, 3), 0.9, args, generator))
    rotation = 2 * 3 * TINY.points * 3 * 3  # of the augmentation, which is data, not network
    fused = 2 * 2 * 3 * TINY.depth * TINY.patches**2 * TINY.width  # attention of the targets, unknown to the counter
    assert speed.pretraining_flops(TINY, 3, *shapes) == theirs - rotation + fused


@pytest.mark.parametrize("pool", ("attention", "hand", "attention_surface"))
def test_steps_do_not_wait_for_the_gpu(gpu, pool):
    device, generator = gpu, torch.Generator()
    args, jepa_args = train.parse(["--preset", "tiny"]), pretrain_jepa.parse(["--preset", "tiny"])
    network, jepa = model.GraspModel(dataclasses.replace(TINY, pool=pool)).to(device), model.PointJEPA(TINY).to(device)
    data = train.random_data(4, TINY.points, 12, 3)
    arrays = [torch.from_numpy(array).to(device) for array in (data.clouds, data.poses, data.joints)]
    stream = train.batches(data, np.arange(len(data.scene)), args, 0, device)
    optimizers = train.build_optimizer(network, args), pretrain_jepa.build_optimizer(jepa, jepa_args)
    for mode in ("default", "error"):  # the first steps may wait: libraries load
        batch = next(stream)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            train.training_step(network, optimizers[0], batch, *arrays, args, generator)
            pretrain_jepa.pretraining_step(jepa, optimizers[1], arrays[0], 0.9, jepa_args, generator)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_stopwatch_gives_every_second_to_one_part():
    watch, layer = speed.Stopwatch(torch.device("cpu")), torch.nn.Linear(2, 2)
    watch.around(layer, "before", "layer")
    watch.start()
    begun = watch.last
    layer(torch.zeros(1, 2))
    layer(torch.zeros(1, 2))
    watch.lap("rest")
    assert set(watch.seconds) == {"before", "layer", "rest"}
    assert sum(watch.seconds.values()) == pytest.approx(watch.last - begun) and min(watch.seconds.values()) > 0


@pytest.fixture
def small_product(monkeypatch):
    """At full size a product takes a third of a second in bfloat16 where the processor has no instructions for it."""
    monkeypatch.setattr(speed, "PRODUCT", 64)


def test_benchmark_of_training(tmp_path, capsys, small_product):
    argv = f"--preset tiny --benchmark --steps 1 --quiet --json {tmp_path}/speed.json --runs {tmp_path}/runs --data {tmp_path}/none".split()
    before = torch.get_num_threads()
    report = train.main(argv)
    precisions = ("fp32", "bf16") if computes_bf16(torch.device("cpu")) else ("fp32",)
    assert report == json.loads((tmp_path / "speed.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"] and torch.get_num_threads() == before
    assert [(row["precision"], row["threads"], row["grasps_per_object"]) for row in report["rows"]] == [
        (precision, threads, grasps) for precision in precisions for threads in (1, 2) for grasps in (1, 16, 64)
    ]
    network = model.GraspModel(TINY)
    for row in report["rows"]:
        assert list(row["shares"]) == ["batch", "grouping", "tokenizer", "encoder", "pooling + head", "backward", "optimiser"]
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["gflop_per_step"] == pytest.approx(speed.training_flops(network, 16, 16 * row["grasps_per_object"]) / 1e9)
        assert row["share_of_product"] == pytest.approx(row["gflop_per_s"] / row["product_gflop_per_s"]) and row["grasps_per_s"] > 0
    assert report["peak_memory_mb"] > 50 and "of product" in capsys.readouterr().out
    row, *others = train.main([*argv, "--precision", "bf16", "--threads", "1", "--pool", "none"])["rows"]
    assert len(others) == 2 and "encoder" not in row["shares"]


def test_benchmark_of_pretraining(tmp_path, small_product):
    argv = f"--preset tiny --benchmark --steps 1 --batch 4 --quiet --precision bf16 --json {tmp_path}/speed.json --out {tmp_path}/none.pt".split()
    report = pretrain_jepa.main(argv)
    assert report == json.loads((tmp_path / "speed.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
    assert [(row["precision"], row["threads"], row["batch"]) for row in report["rows"]] == [("bf16", 1, 4), ("bf16", 2, 4)]
    for row in report["rows"]:
        assert list(row["shares"]) == ["data", "grouping", "tokenizer", "targets", "encoder", "predictor", "backward", "optimiser"]
        assert sum(row["shares"].values()) == pytest.approx(1) and row["clouds_per_s"] > 0


def test_benchmark_flags_are_not_settings(tmp_path, capsys):
    for script in (train, pretrain_jepa):
        assert "benchmark" in fails(script.main, ["--json", str(tmp_path / "speed.json")], capsys)
        assert script.settings_of(script.parse(["--benchmark", "--json", "x"])) == script.settings_of(script.parse([]))
