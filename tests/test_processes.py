"""Pretraining by several processes: two on a CPU over gloo learn what one does, where BatchNorm sees the same."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pretrain_jepa
from files.writing import read_json

ROOT = Path(__file__).parent.parent
# a process of torchrun: no dropout, and every cloud of a batch is augmented alike, so that both shares are the same
CHILD = """
import dataclasses, sys
sys.path.insert(0, {root!r})
import pretrain_jepa
from model import PRETRAINING

PRETRAINING.update(dropout=0.0, attention_dropout=0.0, drop_path=0.0)
draw = pretrain_jepa.draw_step


def alike(run, index, tau):
    scale, angle, starts = pretrain_jepa.draw_augmentation, pretrain_jepa.start_points, None
    pretrain_jepa.draw_augmentation = lambda count, *rest: [part[:1].repeat(count, *[1] * (part.ndim - 1))
                                                            for part in scale(count, *rest)]
    pretrain_jepa.start_points = lambda generator, count, *rest: angle(generator, count, *rest)[:1].repeat(count)
    try:
        return draw(run, index, tau)
    finally:
        pretrain_jepa.draw_augmentation, pretrain_jepa.start_points = scale, angle


pretrain_jepa.draw_step = alike
pretrain_jepa.main()
"""


@pytest.mark.slow
def test_two_processes_on_the_same_clouds_give_the_result_of_one(tmp_path):
    clouds = tmp_path / "clouds"
    clouds.mkdir()
    cloud = np.random.default_rng(0).normal(size=(64, 3))
    for i in range(8):
        np.save(clouds / f"{i}.npy", cloud)
    child = tmp_path / "child.py"
    child.write_text(CHILD.format(root=str(ROOT)))
    flags = (
        f"--clouds {clouds} --preset tiny --steps 6 --batch 4 --log-every 1 --threads 1 --quiet --device cpu".split()
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, start in (("one", [sys.executable]), ("two", launch)):
        words = [*start, str(child), *flags, "--out", str(tmp_path / f"{name}.pt")]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    losses = []
    for name in ("one", "two"):
        with open(tmp_path / f"{name}.csv", newline="") as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    # not the weights: Adam follows the sign of a gradient that is nothing but rounding
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(set(losses[0])) == 6
    cards = [read_json(tmp_path / f"{name}.json") for name in ("one", "two")]
    assert [card["processes"] for card in cards] == [1, 2]
    assert [card["batch_norm"] for card in cards] == ["over the batch", "per process"]
    starts = ["python pretrain_jepa.py", "torchrun --nproc-per-node 2 pretrain_jepa.py"]
    assert all(card["command"].startswith(start) for card, start in zip(cards, starts))


def test_batch_must_be_shared_evenly(monkeypatch, capsys):
    monkeypatch.setattr(pretrain_jepa, "join_processes", lambda device: (0, 3))
    with pytest.raises(SystemExit) as stop:
        pretrain_jepa.main("--preset tiny --batch 4 --device cpu".split())
    assert stop.value.code == 2
    assert "must be a multiple of the 3 processes" in capsys.readouterr().err
