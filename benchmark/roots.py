"""Roots that synthesize.py makes: which are made on first use, whether one is complete, the command that makes it."""

import json
import subprocess
import sys
from pathlib import Path

from cli.errors import UserError
from files.writing import read_json

VERSION = 1  # of the generator: a root made by another one must be made again
LOG = "progress.jsonl"  # first the settings, then a line per finished object; dataset.json replaces it in the end
SIZES = {"mini": (700, 50, 1), "full": (1500, 240, 2)}  # preset -> objects, kept grasps per object, scenes per object
DEFAULT_ROOTS = {"data/synthetic": "mini", "data/full": "full"}
GENERATOR = Path(__file__).parents[1] / "synthesize.py"


def read_log(root):
    """The whole lines of the log of an unfinished root, [] where there are none."""
    lines = (root / LOG).read_text().splitlines(keepends=True) if (root / LOG).exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def recorded(root):
    """What a root's dataset.json says or, where it is unfinished, the head of its log; {} where neither is there."""
    finished = (root / "dataset.json").exists()
    content = read_json(root / "dataset.json") if finished else (read_log(root) or [{}])[0]
    if content and content.get("version") != VERSION:
        again = command_line(root, content.get("settings", {}))
        raise UserError(
            f"{root}: made by generator version {content.get('version')}, this is {VERSION}; remove it and run: {again}"
        )
    return content


def command_line(root, settings):
    """The command that makes a root."""
    flags = [
        f" --{key}" if value is True else f" --{key} {value}"
        for key, value in settings.items()
        if value is not None and value is not False
    ]
    return f"python synthesize.py --out {root}" + "".join(flags)


def check_default(root, preset, settings):
    """Stop where a default root was made with other settings than those of its preset; its numbers would differ."""
    if not preset or not settings:
        return
    wanted = dict(zip(("objects", "grasps", "scenes"), SIZES[preset])) | {"preset": preset, "seed": 0, "meshes": None}
    wrong = [f"{key} {settings.get(key)}" for key, value in wanted.items() if settings.get(key) != value]
    if wrong:
        raise UserError(
            f"{root}: was made with {', '.join(wrong)}, which is not its preset {preset}; remove it and run: "
            + command_line(root, {"preset": preset})
        )


def ensure_root(path, quiet=False):
    """The dataset root `path`; the default roots are made on first use, or finished where they were interrupted."""
    root, preset = Path(path), DEFAULT_ROOTS.get(Path(path).as_posix())
    content, unfinished = recorded(root), (root / LOG).exists()
    check_default(root, preset, content.get("settings", {}))
    if content.get("complete") or root.exists() and not unfinished and any(root.iterdir()):
        return root  # ours, or data of somebody's own
    again = command_line(root, {"preset": preset or "mini"} | content.get("settings", {}))
    if preset is None:
        raise UserError(f"{root}: {'is unfinished' if unfinished else 'no such root'}; make it with: {again}")
    # a process of its own: its workers then load the generator and not the caller's script, which may hold torch
    child = [sys.executable, str(GENERATOR), "--out", str(root), "--preset", preset] + ["--quiet"] * quiet
    if subprocess.run(child, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{root}: could not be made; see above, or run: {again}")
    return root
