"""Rows of runs: a sweep keeps one row per run in a CSV file, and the run's command is the row's identity."""

import csv
import itertools
import shlex
from pathlib import Path

from plumbing.common import UserError, write_csv

METRICS = ("top_logit_rmse", "best_of_k_rmse", "selection_gap", "coverage_15", "selector_accuracy")
TRAINING = "python train.py"  # how the command of a run of train.py starts; baselines have other commands


def as_words(flags):
    """{"--k": "1", "--pool": "hand"} -> ["--k", "1", "--pool", "hand"]."""
    return list(itertools.chain(*flags.items()))


def command_of(flags):
    """The command of a run with these flags."""
    return f"{TRAINING} {shlex.join(as_words(flags))}"


def split_command(command):
    """What stands before the first flag of a command, and its flags: flag -> value."""
    words = shlex.split(command)
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return " ".join(words[:first]), dict(zip(words[first::2], words[first + 1 :: 2]))


def flags_of(row):
    """The flags in a row's command, without the seed: flag -> value."""
    _, flags = split_command(row["command"])
    return {flag: value for flag, value in flags.items() if flag != "--seed"}


def read_rows(path, identity="command"):
    """The rows of a CSV file that a sweep wrote; [] where there is none. Every row has a value under `identity`."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not all(row.get(identity) for row in rows):
        raise UserError(f"{path}: not a table that this sweep wrote (no column '{identity}'); give another --out")
    return rows


def write_rows(path, rows):
    """Write rows whose columns may differ; a missing value stays empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    write_csv(path, [{name: row.get(name, "") for name in columns} for row in rows])
