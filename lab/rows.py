"""Rows of runs: a sweep keeps one row per run in a CSV file, and the run's command is the row's identity.

A row also has what its command does not say: the fingerprint of the dataset under --data, the precision that `auto`
was, and in `commit` the version of the code, where that is not this one: no sweep goes on with such rows.
"""

import collections
import csv
import functools
import itertools
import shlex
from pathlib import Path

import train
from cli.errors import UserError
from files.writing import write_csv

METRICS = (
    "top_logit_rmse", "best_of_k_rmse", "selection_gap", "coverage_15", "selector_accuracy", "top_coverage_15",
    "diversity",
)  # fmt: skip
OF_VAL = ("nll", "free", "holds", "holds_best_of_k", "holds_average", "grasps_closed")  # empty where a run has none
TRAINING = "python train.py"  # how the command of a run of train.py starts; baselines have other commands
PUBLISHED = "python sweep.py published"  # and of one that is trained on a split of another kind
TOLD = ("--data", "--steps", "--pack", "--budget", "--lr-backbone")
DEFAULTS = {  # what a command need not say
    flag: str(train.build_parser().get_default(flag[2:].replace("-", "_"))) for flag in TOLD
}
RATE_FLAGS = ("--lr-backbone", "--lr-head")
EQUAL_RESULTS = ("--device", "--cache-dir", "--save-every")  # flags that one mean may mix; `notes` tell the device
CONVERGED = 8000  # steps, after which curves are nearly flat
KEYS = ("command", "file", "step")  # the first column of every table that is read here


# ---------------------------------------------------------------- commands
def as_words(flags):
    """{"--k": "1", "--pool": "hand"} -> ["--k", "1", "--pool", "hand"]."""
    return list(itertools.chain(*flags.items()))


def command_of(flags, start=TRAINING):
    """The command of a run with these flags."""
    return f"{start} {shlex.join(as_words(flags))}"


@functools.cache  # tables ask for the same rows' flags thousands of times
def split_command(command):
    """What stands before the first flag of a command, and its flags: flag -> value."""
    words = shlex.split(command)
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return " ".join(words[:first]), dict(zip(words[first::2], words[first + 1 :: 2]))


def flags_of(row):
    """The flags in a row's command, without the seed: flag -> value."""
    _, flags = split_command(row["command"])
    return {flag: value for flag, value in flags.items() if flag != "--seed"}


def seed_of(row):
    return split_command(row["command"])[1]["--seed"]


# ---------------------------------------------------------------- files
def read_rows(path):
    """The rows of a CSV file that a sweep wrote; [] where there is none."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and next(iter(rows[0])) not in KEYS:
        raise UserError(f"{path}: not a table that this sweep wrote (no column 'command'); give another --out")
    return rows


def write_rows(path, rows):
    """Write rows whose columns may differ; a missing value stays empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    write_csv(path, [{name: row.get(name, "") for name in columns} for row in rows])


# ---------------------------------------------------------------- what rows have in common
def notes(rows):
    """What a table of these rows must say of them: sentences on their commit, short trainings, and differences."""
    commits = sorted({row["commit"] for row in rows if row.get("commit")})
    sentences = [f"Commands run at commit {' and '.join(commits)}."] * bool(commits)
    steps = sorted({int(flags_of(row).get("--steps", DEFAULTS["--steps"])) for row in finished_trainings(rows)})
    short = [f"{count:,}" for count in steps if count < CONVERGED]
    sentences += [f"Trainings of {' and '.join(short)} steps: **unconverged**."] * bool(short)
    return sentences + differences(rows)


def finished_trainings(rows):
    trainings = [row for row in rows if split_command(row["command"])[0] in (TRAINING, PUBLISHED)]
    return [row for row in trainings if not row.get("failed")]


def differences(rows):
    """A sentence for each property in which rows differ that makes their numbers hard to compare; [] for none."""
    runs = finished_trainings(rows)
    columns = {"number of closed hands": "grasps_closed"} | {name: name for name in ("dataset", "precision", "device")}
    values = {what: [row[column] for row in runs if row.get(column)] for what, column in columns.items()}
    values["number of threads"] = [row["threads"] for row in runs if row.get("device") == "cpu" and row.get("threads")]
    values["number of steps"] = [flags_of(row).get("--steps", DEFAULTS["--steps"]) for row in runs]
    sentences = []
    for what, counts in ((what, sorted(collections.Counter(of).items())) for what, of in values.items()):
        counted = ", ".join(f"{value} ({count} row{'s' * (count > 1)})" for value, count in counts)
        sentences += [f"Rows differ in their {what}: {counted}."] * (len(counts) > 1)
    return sentences
