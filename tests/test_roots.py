"""benchmark/roots.py: the root that is made on first use, and what is said about the others."""

import json
from pathlib import Path

import pytest

from benchmark import roots
from benchmark.shipped import SETTINGS
from cli.errors import UserError

OTHER = {"objects": 4, "scenes": None, "rescale": True, "quick": False}
ONE = {"preset": "full", "objects": 1500, "seed": 0, "meshes": None}  # settings of version 1


def claim(root, version=roots.VERSION, **settings):
    """Let a root say that it was made with these settings."""
    root.mkdir(parents=True, exist_ok=True)
    content = {"version": version, "complete": True, "settings": settings}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def refused(path):
    with pytest.raises(UserError) as error:
        roots.ensure_root(path)
    return str(error.value)


def test_roots_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/03797390").mkdir(parents=True)
    for root in (tmp_path / "mine", claim(Path("made"), **OTHER), claim(Path("data/synthetic"), **SETTINGS)):
        assert roots.ensure_root(root) == root


def test_roots_that_must_be_made_again(tmp_path, monkeypatch):
    """Whoever reads a number of the README must have its data."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/synthetic", "data/full"):
        made = "made by version 1 of the benchmark, this is 2"
        message = refused(claim(Path(name), version=1, **ONE))
        assert f"{name}: {made}; remove it and run: python synthesize.py" in message
    message = refused(claim(Path("mine"), version=1, **ONE | {"objects": None, "meshes": "m", "grasps": 5}))
    assert "remove it and run: python synthesize.py --out mine --seed 0 --meshes m --grasps 5" in message
    assert "settings of its own" in refused(claim(Path("data/synthetic"), **SETTINGS | {"seed": 1}))
