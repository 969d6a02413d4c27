"""Rows of runs: a sweep keeps one row per run in a CSV file, and the run's command is the row's identity.

The command does not say what lies under --data, so a row also names its dataset.
"""

import collections
import csv
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
COSTS = ("parameters_trained", "ms_per_step", "memory_mb")  # of a run; empty in older rows
HOLDS = ("free", "holds", "holds_best_of_k", "holds_average")  # of val; empty in older rows and for other hands
TRAINING = "python train.py"  # how the command of a run of train.py starts; baselines have other commands
PUBLISHED = "python sweep.py published"  # and of one that is trained on a split of another kind
DEFAULTS = {flag: str(train.build_parser().get_default(flag[2:])) for flag in ("--data", "--budget", "--k", "--steps")}
EQUAL_RESULTS = ("--device", "--threads", "--cache-dir", "--save-every")  # flags that no number depends on
CONVERGED = 8000  # steps, after which curves are nearly flat
OLD_DATASETS = {  # what the default roots were when rows did not name their dataset yet
    "data/synthetic": "generator 1: preset mini, objects 300, grasps 120, scenes 1, seed 0, up z",
    "data/full": "generator 1: preset full, objects 1500, grasps 240, scenes 2, seed 0, up z",
}


# ---------------------------------------------------------------- commands


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


def is_training(row):
    """Whether a row is of a training."""
    return split_command(row["command"])[0] in (TRAINING, PUBLISHED)


# ---------------------------------------------------------------- files


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


# ---------------------------------------------------------------- what rows have in common


def dataset_of(row):
    """The dataset that a row names; for rows that are older than this column what is known of it, or ""."""
    if row.get("dataset") or not row.get("fingerprint"):
        return row.get("dataset") or ""
    root = flags_of(row).get("--data", DEFAULTS["--data"])
    return OLD_DATASETS.get(root) or f"fingerprint {row['fingerprint']}"


def precision_of(row):
    """The precision that a row's run computed in; rows older than this column took bf16 for `auto` on a GPU."""
    precision = row.get("precision") or flags_of(row).get("--precision", "auto")
    if precision == "auto":
        return "bf16" if row.get("device") == "cuda" else "fp32"
    return precision


def counted(values):
    """ "bf16 (4 rows), fp32 (1 row)": each value and how often it occurs."""
    counts = sorted(collections.Counter(values).items())
    return ", ".join(f"{value} ({count} row{'s' * (count > 1)})" for value, count in counts)


def lengths(rows):
    """A sentence on trainings that are cut off before they converge, which their table must say; [] for none."""
    runs = [row for row in rows if is_training(row) and not row.get("failed")]
    steps = sorted({int(flags_of(row).get("--steps", DEFAULTS["--steps"])) for row in runs})
    short = [f"{count:,}" for count in steps if count < CONVERGED]
    return [f"Trainings of {' and '.join(short)} steps: **unconverged**."] if short else []


def differences(rows):
    """Sentences on what rows that stand together differ in, of what makes numbers hard to compare; [] for nothing.

    Rows that diverged and baselines count only for the dataset: nothing was computed in a precision there.
    """
    runs = [row for row in rows if is_training(row) and not row.get("failed")]
    values = {
        "dataset": [name for name in map(dataset_of, rows) if name],
        "precision": list(map(precision_of, runs)),
        "number of steps": [flags_of(row).get("--steps", DEFAULTS["--steps"]) for row in runs],
    }
    sentences = [f"Rows differ in their {what}: {counted(of)}." for what, of in values.items() if len(set(of)) > 1]
    fingerprints = {}  # of each dataset
    for row in rows:
        if row.get("fingerprint"):
            fingerprints.setdefault(dataset_of(row), []).append(row["fingerprint"])
    for name, found in fingerprints.items():
        if len(set(found)) > 1:
            sentences.append(
                f"Rows of one dataset ({name}) have several fingerprints, since processors round differently: "
                f"{counted(found)}."
            )
    return sentences


def check_one_setting(rows, free, path):
    """Stop where rows that one table averages differ in flags besides the `free` ones; path: of the rows."""
    values = {}
    for row in rows:
        flags = {flag: value for flag, value in flags_of(row).items() if flag not in (*free, *EQUAL_RESULTS)}
        for flag in flags.keys() | values.keys():
            values.setdefault(flag, set()).add(flags.get(flag, "not given"))
    unlike = [f"{flag} ({', '.join(sorted(found))})" for flag, found in sorted(values.items()) if len(found) > 1]
    if unlike:
        raise UserError(f"{path}: rows of one table differ in {' and '.join(unlike)}; give each its own --out")
