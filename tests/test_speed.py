"""lab/speed.py: the stopwatch, steps that nothing changes, both commands; and how the threads of OpenMP wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import fails

import model
import train
from lab import speed

CPU = torch.device("cpu")
TINY = "--preset tiny --quiet --precision fp32 --threads 1".split()


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


@pytest.mark.parametrize("words, unit, parts", [
    ("train", "grasps", "batch, grouping, tokenizer, encoder, pooling + head, backward, optimiser"),
    ("train --pool none", "grasps", "batch, pooling + head, backward, optimiser"),
    ("pretrain --batch 4", "clouds", "data, grouping, tokenizer, targets, encoder, predictor, backward, optimiser"),
])  # fmt: skip
def test_a_step_is_timed_part_by_part(words, unit, parts, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "SECONDS", 0.1)
    content = speed.main([*words.split(), *TINY, "--json", str(tmp_path / "speed.json")])
    assert content == json.loads((tmp_path / "speed.json").read_text())
    (row,) = content["rows"]
    assert list(row["shares"]) == parts.split(", ") and sum(row["shares"].values()) == pytest.approx(1)
    assert row["steps"] >= 20 and row[f"{unit}_per_s"] > 0 and content["peak_memory_mb"] > 50
    assert f"{row['ms_per_step']:.1f} ms a step" in capsys.readouterr().out


def test_time_on_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 1)
    for words in ("train", "pretrain --batch 4"):
        rows = speed.main([*words.split(), *"--device cuda --preset tiny --quiet --precision tf32".split()])["rows"]
        assert [row["step"] for row in rows] == ["eager", "graph"] and all(row["ms_per_step"] > 0 for row in rows)


def test_watching_changes_no_bit():
    args, states = train.parse(TINY), []
    for watched in (False, True):
        run = speed.random_run(args, model.PRESETS["tiny"], CPU)
        take = speed.training_steps(run, speed.Stopwatch(CPU))
        for part in run.model.modules() if not watched else ():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        torch.manual_seed(1)
        assert [take() for _ in range(2)] == [args.objects_per_batch * args.grasps_per_object] * 2
        states.append(run.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_wrong_commands_are_one_line(capsys):
    for words in ("", "tokenizer", "train --grasp 3", "train --preset tiny --precision tf32 --quiet"):
        assert (words.split() or ["script"])[-1] in fails(speed.main, words.split(), capsys) or "tf32" in words


AT_TORCH = """
import importlib, os, sys

class AtTorch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
            print(*map(os.environ.get, names), flush=True)
            os._exit(0)

sys.meta_path.insert(0, AtTorch)
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("script, set_before, seen", [
    ("train", {}, "passive 20000 0"), ("sweep", {}, "passive 20000 0"), ("lab.speed", {}, "passive 20000 0"),
    ("train", {"OMP_WAIT_POLICY": "active"}, "active None None"), ("train", {"KMP_BLOCKTIME": "7"}, "passive 20000 7"),
])  # fmt: skip
def test_threads_soon_sleep_unless_the_user_says_how(script, set_before, seen):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", AT_TORCH, script], cwd=Path(train.__file__).parent, text=True,
                          env=clean | set_before, capture_output=True)  # fmt: skip
    assert done.stdout.strip() == seen, done.stderr
