"""What a root that synthesize.py makes says of itself: its log while it is unfinished, then its dataset.json."""

import contextlib
import json

from tqdm import tqdm

from cli.errors import UserError, refuse
from cli.processes import map_in_processes
from files.writing import atomic, read_json, write_json

VERSION = 2  # of the benchmark: a root made by another one must be made again
DEFAULT_ROOT = "data/synthetic"
LOG = "progress.jsonl"  # first the settings, then a line per finished object; dataset.json replaces it in the end


def read_log(root):
    """The whole lines of the log of an unfinished root, [] where there are none."""
    lines = (root / LOG).read_text(encoding="utf-8").splitlines(keepends=True) if (root / LOG).exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def recorded(root):
    """What a root's dataset.json says or, where it is unfinished, the head of its log; {} where neither is there."""
    finished = (root / "dataset.json").exists()
    content = read_json(root / "dataset.json") if finished else (read_log(root) or [{}])[0]
    if content.get("settings") and content.get("version") != VERSION:  # not where only a hand is kept
        again = command_line(root, content.get("settings", {}))
        made = f"{root}: made by version {content.get('version')} of the benchmark, this is {VERSION}"
        raise UserError(f"{made}; remove it and run: {again}")
    return content


def command_line(root, settings):
    """The command that makes a root."""
    if settings.get("shipped"):
        return "python synthesize.py"
    given = {key: value for key, value in settings.items() if key != "hand_sha256" and value is not None}
    flags = [f"--{key}" if value is True else f"--{key} {value}" for key, value in given.items() if value is not False]
    return " ".join(["python synthesize.py --out", str(root), *flags])


def finished(root, settings):
    """The dataset.json of a root that these settings have made, {} where they are to make it, wholly or in part.

    Stops where something else lies there.
    """
    old = recorded(root).get("settings", settings)
    changed = [key for key in old | settings if old.get(key) != settings.get(key)]
    changes = [f"{key} {old.get(key)} there, {settings.get(key)} here" for key in changed]
    refuse(changes, f"{root}: was made with other settings ({', '.join(changes)}); name another --out or remove it")
    # in this order: another process that makes the same root writes its log first and removes it last
    foreign = root.exists() and any(root.iterdir()) and not (root / LOG).exists()
    content = recorded(root)
    complete = content.get("complete")
    refuse(foreign and not complete, f"{root}: is not empty and not a root of synthesize.py; name another --out")
    return content if complete else {}


def open_log(root, settings):
    """Begin the log of a root, or leave that of an interrupted run; -> its records of finished objects."""
    root.mkdir(parents=True, exist_ok=True)
    (root / LOG).touch()  # before the temporary file: a root with nothing but that would belong to nobody
    head, *records = read_log(root) or [{"version": VERSION, "settings": settings}]
    with atomic(root / LOG) as temporary:  # without the half line that a killed run may have left
        text = "".join(json.dumps(line) + "\n" for line in (head, *records))
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return records


def fill(root, settings, sources, make, workers, quiet):
    """What make(source) says of every object, a dict, in order: computed by `workers`, or read from the root's log.

    sources: {name of an object: what `make` needs}; `make` writes the object's files.
    """
    done = {record["object"]: record for record in open_log(root, settings)}
    todo = [source for name, source in sources.items() if name not in done]
    with (
        open(root / LOG, "a", encoding="utf-8") as file,
        contextlib.closing(map_in_processes(make, todo, workers)) as made,
    ):
        for record in progress_bar(made, root, len(sources), quiet, len(done)):
            done[record["object"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
    return [done[name] for name in sources]


def progress_bar(made, root, count, quiet, done=0):
    """The objects of a root while they are made."""
    return tqdm(made, f"making {root}", count, unit="object", initial=done, disable=quiet or None)


def finish(root, settings, **content):
    """Write the dataset.json of a complete root; -> its content."""
    head = {"generator": "synthesize.py", "version": VERSION, "complete": True, "settings": settings}
    write_json(root / "dataset.json", head | content)
    (root / LOG).unlink(missing_ok=True)  # another process that made the same root may have been faster
    return head | content
