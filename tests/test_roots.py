"""benchmark/roots.py: which roots are made on first use, and what is said about the others."""

import json
from pathlib import Path

import pytest

from benchmark import progress, roots
from cli.errors import UserError

SETTINGS = {"preset": "full", "objects": 4, "scenes": None, "rescale": True, "quick": False}


def test_a_default_root_of_other_settings_is_refused(tmp_path, monkeypatch):
    """Whoever reads a number of the README must have its data."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data/synthetic"
    root.mkdir(parents=True)
    objects, grasps, scenes = roots.SIZES["mini"]
    settings = {"preset": "mini", "objects": objects, "grasps": grasps, "scenes": scenes, "seed": 0, "meshes": None}
    head = {"version": roots.VERSION, "complete": True}
    (root / "dataset.json").write_text(json.dumps(head | {"settings": settings}))
    assert roots.ensure_root("data/synthetic") == Path("data/synthetic")
    for name, value in (("grasps", grasps + 1), ("seed", 1), ("meshes", "mine"), ("preset", "full")):
        (root / "dataset.json").write_text(json.dumps(head | {"settings": settings | {name: value}}))
        with pytest.raises(UserError, match=f"{name} {value}, .* remove it and run: python synthesize.py .*mini"):
            roots.ensure_root("data/synthetic")
        assert roots.ensure_root(root) == root  # under another name it is a root like any other


def test_the_command_that_makes_a_root():
    assert progress.command_line("x", SETTINGS) == "python synthesize.py --out x --preset full --objects 4 --rescale"


def test_roots_of_all_kinds(tmp_path):
    with pytest.raises(UserError, match="no such root; make it with: python synthesize.py --out .* --preset mini"):
        roots.ensure_root(tmp_path / "nothing")
    mine = tmp_path / "mine"
    (mine / "03797390").mkdir(parents=True)
    assert roots.ensure_root(mine) == mine  # somebody's own data

    made = tmp_path / "made"
    made.mkdir()
    head = {"version": roots.VERSION, "settings": SETTINGS}
    (made / "dataset.json").write_text(json.dumps(head | {"complete": True}))
    assert roots.ensure_root(made) == made and roots.recorded(made)["complete"]
    (made / "dataset.json").write_text(json.dumps(head | {"version": 99}))
    with pytest.raises(UserError, match="made by generator version 99, this is .* remove it and run: python synth"):
        roots.ensure_root(made)

    (made / "dataset.json").unlink()
    (made / roots.LOG).write_text(json.dumps(head) + "\n" + json.dumps({"object": "a/b"}) + "\n" + '{"object": "a/')
    assert progress.read_log(made) == [head, {"object": "a/b"}]  # without the half line of a killed run
    with pytest.raises(UserError, match="is unfinished; make it with: .* --preset full --objects 4 --rescale"):
        roots.ensure_root(made)
