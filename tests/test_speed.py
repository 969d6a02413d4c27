"""lab/speed.py: both commands; and how the threads of OpenMP wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fails

import train
from lab import speed

TINY = "--preset tiny --quiet --precision fp32 --threads 1".split()


@pytest.mark.parametrize("words, unit, seen", [("train", "grasps", 16 * 32), ("pretrain --batch 4", "clouds", 4)])
def test_a_step_is_timed(words, unit, seen, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "SECONDS", 0.1)
    content = speed.main([*words.split(), *TINY, "--json", str(tmp_path / "speed.json")])
    assert content == json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    (row,) = content["rows"]
    assert row["steps"] >= 20 and content["peak_memory_mb"] > 50
    assert 0.5 < row[f"{unit}_per_s"] * row["ms_per_step"] / 1000 / seen < 2
    assert f"{row['ms_per_step']:.1f} ms a step" in capsys.readouterr().out


def test_time_on_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 1)
    for words in ("train", "pretrain --batch 4"):
        rows = speed.main([*words.split(), *"--device cuda --preset tiny --quiet --precision tf32".split()])["rows"]
        assert [row["step"] for row in rows] == ["eager", "graph"] and all(row["ms_per_step"] > 0 for row in rows)


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
