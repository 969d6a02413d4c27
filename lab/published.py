"""The published code's protocol emulated: how far does its "relative improvement" scatter between equal models?

It draws p % of the objects first and splits those: a tenth validates, a tenth tests, the rest trains. So a budget of
1 % is scored on 2 objects, one of 10 % on 15, one of 25 % on 36, each on others, once, after the last step. Here that
is drawn twenty times, for two runs from scratch that differ in their seed alone and for one from the pretrained
encoder; and the errors per object that a table1 holds tell how much validation sets of these sizes scatter.
"""

import contextlib
import functools
import math
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import train
from lab.rows import as_words, read_rows, split_command, write_rows
from lab.runner import open_data
from lab.table1 import read_errors
from lab.tables import markdown
from plumbing.common import UserError, read_json, stable_seed
from plumbing.parallel import map_in_processes
from splits import HELD_OUT, Split, suite_rows, synset_of

BUDGETS = (0.01, 0.1, 0.25)
DRAWS = 20
ARMS = {"scratch": ("scratch", 0), "scratch again": ("scratch", 1), "jepa": ("jepa", 0)}  # --init, --seed
STEPS = 1000
PUBLISHED = {"steps": 25000, "batch": 64, "warmup_epochs": 10}
# 64 grasps a batch, of 16 clouds: drawn one by one they would be of up to 64, at four times the cost
FLAGS = {"--lr-backbone": "1.5e-5", "--lr-head": "1.5e-3", "--objects-per-batch": "16", "--grasps-per-object": "4"}
PAPER = {0.01: 7.7, 0.1: 9.6, 0.25: 25.9}  # %, Table I
SUBSETS = 10_000  # random validation sets of each size


# ---------------------------------------------------------------- the protocol


def published_split(data, budget, draw):
    """The `Split` of one draw: ⌈p·n⌉ objects outside the held-out synsets, shuffled, ⌈10 %⌉ val, ⌈10 %⌉ test.

    Of every training object ⌈10 %⌉ of the grasps, over all its scenes, do not train.
    """
    rng = np.random.default_rng(stable_seed("published", draw, budget))
    names = sorted(name for name in set(data.objects) if synset_of(name) not in HELD_OUT)
    chosen = rng.permutation(names)[: math.ceil(budget * len(names))].tolist()
    share = math.ceil(0.1 * len(chosen))
    suites = {"val": chosen[:share], "test": chosen[share : 2 * share], "train": chosen[2 * share :]}
    suites = {suite: sorted(found) for suite, found in suites.items()} | {"test_category": []}
    if not suites["train"]:
        raise UserError(f"{data.root}: {len(names)} objects are too few for a budget of {budget:g}")
    objects = np.asarray(data.objects)[data.scene]
    held_back = np.zeros(len(objects), dtype=bool)
    for name in suites["train"]:
        rows = np.flatnonzero(objects == name)
        held_back[rng.choice(rows, math.ceil(0.1 * len(rows)), replace=False)] = True
    rows = suite_rows(data, suites, held_back)
    return Split(f"draw {draw}", budget, data.fingerprint, suites, suites["train"], {}, [], rows)


def warmup_share(grasps, steps):
    """Ten epochs of the published 25,000 steps, by the same factor as the steps: share of a run of `steps`."""
    epoch = math.ceil(grasps / PUBLISHED["batch"])
    return min(1.0, PUBLISHED["warmup_epochs"] * epoch / PUBLISHED["steps"])


# ---------------------------------------------------------------- runs


def run_published(given, args):
    """Train what OUT/rows.csv lacks, `args.jobs` at a time; -> all rows, one per draw, budget and arm."""
    path = args.out / "rows.csv"
    draws, budgets = (2, BUDGETS[-1:]) if args.smoke else (DRAWS, BUDGETS)
    given = args.own | given
    if args.smoke:
        given |= {"--preset": "tiny", "--steps": "2"}
    items = [(given, args.runs, args.smoke, draw, budget, arm)
             for draw in range(draws) for budget in budgets for arm in ARMS]  # fmt: skip
    rows = {row["command"]: row for row in read_rows(path)}
    waiting = [item for item in items if command_of(item) not in rows]
    print(f"published: {len(items) - len(waiting)} rows found, {len(waiting)} to run", file=sys.stderr)
    ended = map_in_processes(train_draw, waiting, min(args.jobs, len(waiting)) or 1)
    for row in tqdm(ended, desc="published", total=len(items), initial=len(items) - len(waiting), disable=None):
        rows[row["command"]] = row
        write_rows(path, list(rows.values()))
    return read_rows(path)


def command_of(item):
    """What tells a row from all others: this sweep's command with what it was given, and which run of it this is."""
    given, _, _, draw, budget, arm = item
    words = " ".join(as_words(given))
    return f"python sweep.py published {words}: draw {draw}, budget {budget:g}, {arm}"


@functools.cache
def opened(words):
    """The `GraspData` that these flags name, read once per process."""
    return open_data(dict(words))[0]


def train_draw(item):
    """Train one arm on one draw; -> its row. RMSE is of the last step, on the draw's own validation objects."""
    given, runs, smoke, draw, budget, arm = item
    init, seed = ARMS[arm]
    flags = {"--steps": str(STEPS)} | FLAGS | given | {"--init": init, "--seed": str(seed)}
    data = opened(tuple(given.items()))
    split = published_split(data, budget, draw)
    args = train.parse([*as_words(flags), "--budget", str(budget), "--quiet", "--no-baseline", "--runs", str(runs)])
    args.name = f"published-{stable_seed(command_of(item)):016x}"
    args.warmup, args.eval_every = warmup_share(len(split.rows["train"]), args.steps), args.steps
    folder = Path(args.runs) / args.name
    args.resume = (folder / "config.json").exists()
    if not (folder / "result.json").exists():
        device = train.set_up_torch(args.device, args.threads)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            train.train_one(args, device, *network_of(args, smoke), data, split)
    result = read_json(folder / "result.json", "suites")
    return {
        "command": command_of(item), "draw": draw, "budget": budget, "arm": arm,
        "train_objects": len(split.suites["train"]), "val_objects": len(split.suites["val"]),
        "warmup": round(args.warmup, 4), "top_logit_rmse": result["suites"]["val"]["top_logit_rmse"],
        "training_mean": result["training_mean"]["top_logit_rmse"], "seconds": result["seconds"],
        "device": result["device"], "precision": result["precision"], "fingerprint": data.fingerprint,
    }  # fmt: skip


def network_of(args, smoke):
    """Configuration and encoder of a run; with --smoke there is no encoder of that size."""
    if smoke:
        args.init = "scratch"
    return train.resolve_network(args)


# ---------------------------------------------------------------- what it says


def improvements(rows, of, over):
    """Budget -> relative improvements in % of one arm over another, one per draw that has both."""
    values = {(row["budget"], row["draw"], row["arm"]): float(row["top_logit_rmse"]) for row in rows}
    found = {}
    for budget, draw, arm in values:
        if arm == of and (budget, draw, over) in values:
            better = 100 * (1 - values[budget, draw, of] / values[budget, draw, over])
            found.setdefault(float(budget), []).append(better)
    return found


def subset_scatter(errors, sizes, subsets=SUBSETS, seed=0):
    """How RMSEs and improvements scatter over validation sets of few objects, drawn from those with known errors.

    errors: (grasps (O,), mean squared errors by object of scratch (O,), of jepa (O,)) of one suite.
    -> size -> (RMSEs of scratch (subsets,), improvements of jepa over it in % (subsets,)).
    """
    grasps, scratch, jepa = errors
    rng, found = np.random.default_rng(seed), {}
    for size in sizes:
        chosen = np.argsort(rng.random((subsets, len(grasps))), axis=1)[:, :size]
        weights = grasps[chosen]
        a, b = ((weights * squared[chosen]).sum(1) / weights.sum(1) for squared in (scratch, jepa))
        found[size] = np.sqrt(a), 100 * (1 - np.sqrt(b / a))
    return found


def spread_cells(values):
    """Mean, SD, the middle 95 % and the extremes of some percentages."""
    low, high = np.percentile(values, (2.5, 97.5))
    extremes = f"{min(values):.1f} to {max(values):.1f}"
    return [f"{np.mean(values):.1f}", f"{np.std(values, ddof=1):.1f}", f"{low:.1f} to {high:.1f}", extremes]


def published_text(rows, table1):
    """Markdown: improvements over the draws, and the scatter of small validation sets; table1: folder with errors."""
    header = ["comparison", "budget", "draws", "mean %", "SD", "middle 95 %", "extremes", "paper's Table I, %"]
    lines = []
    for name, of, over in (
        ("scratch against itself, other seed", "scratch again", "scratch"), ("jepa over scratch", "jepa", "scratch"),
    ):  # fmt: skip
        for budget, values in sorted(improvements(rows, of, over).items()):
            if len(values) > 1:
                lines.append([name, f"{budget:g}", len(values), *spread_cells(values), PAPER[budget]])
    sections = ["## Relative improvement over the draws\n\n" + markdown(header, lines)]
    known = errors_of(table1)
    if known:
        header = [
            "budget there",
            "objects that validate",
            "RMSE of scratch, middle 95 %",
            "jepa over scratch, middle 95 %",
        ]
        lines = []
        for budget, errors in known.items():
            for size, (rmse, better) in subset_scatter(errors, sizes_of(rows)).items():
                cells = [np.percentile(values, (2.5, 97.5)) for values in (rmse, better)]
                lines.append(
                    [budget, size, "{:.3f} to {:.3f}".format(*cells[0]), "{:.1f} to {:.1f} %".format(*cells[1])]
                )
        title = f"## Validation sets of few objects, drawn from the test objects of {Path(table1).name}\n\n"
        sections.append(title + markdown(header, lines))
    return "\n".join(sections)


def sizes_of(rows):
    return sorted({int(row["val_objects"]) for row in rows})


def errors_of(folder):
    """Budget -> grasps, squared errors of scratch and of jepa by object of test, means over seeds; of a table1."""
    errors, found = read_errors(Path(folder)), {}
    for (command, suite), (_, grasps, squared) in sorted(errors.items()):
        if suite == "test":
            flags = split_command(command)[1]
            arms = found.setdefault(flags["--budget"], {"grasps": grasps})
            arms.setdefault(flags["--init"], []).append(squared)
    return {
        budget: (arms["grasps"], np.mean(arms["scratch"], axis=0), np.mean(arms["jepa"], axis=0))
        for budget, arms in found.items() if {"scratch", "jepa"} <= set(arms)
    }  # fmt: skip
