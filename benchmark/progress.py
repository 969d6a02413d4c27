"""What a root that synthesize.py makes says of itself: its log while it is unfinished, then its dataset.json."""

import json

from cli.errors import UserError
from files.writing import read_json

VERSION = 1  # of the generator: a root made by another one must be made again
LOG = "progress.jsonl"  # first the settings, then a line per finished object; dataset.json replaces it in the end


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
