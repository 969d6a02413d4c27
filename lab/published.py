"""The published code's protocol emulated: how far does its "relative improvement" scatter between equal models?

It draws p % of the objects first and splits those: a tenth validates, a tenth tests, the rest trains. So a budget of
1 % is scored on 2 objects, one of 10 % on 15, one of 25 % on 36, each on others, once, after the last step. Here that
is drawn twenty times, each time for two runs from scratch that differ in their seed alone and for one from the
pretrained encoder; a draw has a seed of its own, as a pack has there. And the errors per object that a table1 holds
tell how much validation sets of these sizes scatter.

Not the published protocol: preset small, 1,000 steps for 25,000 (with the warm-up shortened alike), no fp16, and the
64 grasps of a batch are of 16 clouds, since drawn one by one they would be of up to 64, at four times the cost.
Network and loss are ours, as the lab report's list of departures has them.
"""

import contextlib
import functools
import itertools
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import train
from cli.errors import UserError
from cli.processes import map_in_processes
from files.writing import locked, stable_seed
from lab.rows import PUBLISHED, as_words, check_one_setting, differences, read_rows, split_command, write_rows
from lab.runner import (
    DATA_FLAGS,
    Dataset,
    check_origins,
    encoder_tag,
    identify,
    open_data,
    random_encoder,
    refuse_flags,
)  # fmt: skip
from lab.table1 import read_errors
from lab.tables import markdown
from model import PRESETS
from splits import HELD_OUT, Split, suite_rows, synset_of

BUDGETS = (0.01, 0.1, 0.25)
DRAWS = 20
# --init, and what --seed is more than the number of the draw
ARMS = {"scratch": ("scratch", 0), "scratch again": ("scratch", 1), "jepa": ("jepa", 0)}
PUBLISHED_STEPS, BATCH, WARMUP_EPOCHS = 25_000, 64, 10
VALIDATED = {"0.01": 2, "0.1": 15, "0.25": 36}  # objects that validate there, by budget
FLAGS = {
    "--steps": "1000", "--lr-backbone": "1.5e-5", "--lr-head": "1.5e-3", "--objects-per-batch": "16",
    "--grasps-per-object": "4",
}  # fmt: skip
OWN = ("--init", "--pack", "--budget", "--held-out", "--warmup", "--eval-every")  # what the protocol decides
PAPER = {0.01: 7.7, 0.1: 9.6, 0.25: 25.9}  # %, Table I
RATE_FLAGS = ("--lr-backbone", "--lr-head")
SUBSETS = 10_000  # random validation sets of each size


# ---------------------------------------------------------------- the protocol


def published_split(data, budget, draw):
    """The `Split` of one draw: ⌈p·n⌉ objects outside the held-out synsets, shuffled and cut.

    ⌈10 %⌉ of them are val, ⌈10 %⌉ test.
    Of every training object ⌈10 %⌉ of the grasps, over all its scenes, do not train.
    """
    rng = np.random.default_rng(stable_seed("published", draw, budget))
    names = sorted(name for name in set(data.object_of_scene) if synset_of(name) not in HELD_OUT)
    chosen = rng.permutation(names)[: math.ceil(budget * len(names))].tolist()
    share = math.ceil(0.1 * len(chosen))
    suites = {"val": chosen[:share], "test": chosen[share : 2 * share], "train": chosen[2 * share :]}
    suites = {suite: sorted(found) for suite, found in suites.items()} | {"test_category": []}
    if not suites["train"]:
        raise UserError(f"{data.root}: {len(names)} objects are too few for a budget of {budget:g}")
    objects = data.object_of_grasp
    held_back = np.zeros(len(objects), dtype=bool)
    for name in suites["train"]:
        rows = np.flatnonzero(objects == name)
        held_back[rng.choice(rows, math.ceil(0.1 * len(rows)), replace=False)] = True
    rows = suite_rows(data, suites, held_back)
    return Split(f"draw {draw}", budget, data.fingerprint, suites, suites["train"], {}, [], rows)


def warmup_share(grasps):
    """Ten epochs as a share of the published 25,000 steps; over 1 where the rate never comes to its peak."""
    return WARMUP_EPOCHS * math.ceil(grasps / BATCH) / PUBLISHED_STEPS


# ---------------------------------------------------------------- runs


class Draw(NamedTuple):
    """One run: an arm on one draw of the objects."""

    flags: dict  # of train.py, all that its numbers depend on but the split
    arm: str
    budget: float
    draw: int
    runs: str
    encoder: str  # its tag, "" without one
    dataset: Dataset

    @property
    def command(self):
        """What tells its row from all others."""
        words = shlex.join(as_words(self.flags))
        return f"{PUBLISHED} {words}: draw {self.draw}, budget {self.budget:g}, {self.arm}"

    @property
    def folder(self):
        return Path(self.runs) / f"published-{stable_seed(self.command, self.encoder, *self.dataset):016x}"


def plan_published(given, args):
    """All runs, draw by draw: with --smoke two draws of the largest budget."""
    refuse_flags(given, OWN, "published")
    draws, budgets = (2, BUDGETS[-1:]) if args.smoke else (DRAWS, BUDGETS)
    shared = FLAGS | args.own | {flag: value for flag, value in given.items() if flag != "--jepa-ckpt"}
    if any("," in value for value in shared.values()):
        raise UserError("published: one value per flag; give each of several its own --out")
    if args.smoke:
        shared |= {"--preset": "tiny", "--steps": "2"}
    file = given.get("--jepa-ckpt") or (args.smoke and str(random_encoder(PRESETS["tiny"], args.runs)))
    dataset, planned = identify(opened(tuple(shared.items()))), []
    for draw, budget, arm in itertools.product(range(draws), budgets, ARMS):
        init, more = ARMS[arm]
        flags = shared | {"--init": init, "--seed": str(draw + more)}
        flags |= {"--jepa-ckpt": file} if init == "jepa" and file else {}
        planned.append(Draw(flags, arm, budget, draw, args.runs, encoder_tag(flags), dataset))
    return planned


def run_published(given, args):
    """Train what OUT/rows.csv lacks, `args.jobs` at a time; -> all rows, one per draw, budget and arm."""
    path, planned = args.out / "rows.csv", plan_published(given, args)
    with locked(args.out / "rows.lock") as mine:
        if not mine:
            raise UserError(f"{args.out}: another sweep writes here; wait for it, or give another --out")
        rows = {row["command"]: row for row in read_rows(path)}
        for run in planned:
            if run.command in rows:
                check_origins(run, rows[run.command], path)
        waiting = [run for run in planned if run.command not in rows]
        print(f"published: {len(planned) - len(waiting)} rows found, {len(waiting)} to run", file=sys.stderr)
        ended = map_in_processes(train_draw, waiting, min(args.jobs, len(waiting)) or 1)
        done = len(planned) - len(waiting)
        for row in tqdm(ended, desc="published", total=len(planned), initial=done, disable=None):
            rows[row["command"]] = row
            write_rows(path, list(rows.values()))
    return read_rows(path)


@functools.cache
def opened(words):
    """The `GraspData` that these flags name, read once per process."""
    return open_data(dict(words))[0]


def train_draw(run):
    """Train one arm on one draw; -> its row. RMSE is of the last step, on the draw's own validation objects."""
    of_data = (*DATA_FLAGS, "--preset", "--points", "--threads")
    data = opened(tuple((flag, run.flags[flag]) for flag in of_data if flag in run.flags))
    split = published_split(data, run.budget, run.draw)
    args = train.parse([*as_words(run.flags), "--budget", str(run.budget), "--quiet", "--no-baseline"])
    args.runs, args.name = str(run.folder.parent), run.folder.name
    args.warmup, args.eval_every = warmup_share(len(split.rows["train"])), args.steps
    args.resume = (run.folder / "config.json").exists()
    row = {
        "command": run.command, "draw": run.draw, "budget": run.budget, "arm": run.arm,
        "train_objects": len(split.suites["train"]), "val_objects": len(split.suites["val"]),
        "warmup": round(args.warmup, 4), "encoder": run.encoder, "dataset": run.dataset.name,
        "fingerprint": run.dataset.fingerprint,
    }  # fmt: skip
    device = train.set_up_torch(args.device, args.threads)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run.folder}.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            result = train.train_one(args, device, *train.resolve_network(args), data, split)
        except UserError as error:
            if "not finite" not in str(error):
                raise
            return row | {"top_logit_rmse": "", "failed": "diverged"}
    shutil.rmtree(run.folder)  # its config.json names a pack, but the split was another one
    return row | {
        "top_logit_rmse": result["suites"]["val"]["top_logit_rmse"],
        "training_mean": result["training_mean"]["top_logit_rmse"], "seconds": result["seconds"],
        "device": result["device"], "precision": result["precision"], "failed": "",
    }  # fmt: skip


# ---------------------------------------------------------------- what it says


def improvements(rows, of, over):
    """Budget -> relative improvements in % of one arm over another, one per draw that has both."""
    finished = [row for row in rows if row["top_logit_rmse"]]
    values = {(row["budget"], row["draw"], row["arm"]): float(row["top_logit_rmse"]) for row in finished}
    found = {}
    for budget, draw, arm in values:
        if arm == of and (budget, draw, over) in values:
            better = 100 * (1 - values[budget, draw, of] / values[budget, draw, over])
            found.setdefault(float(budget), []).append(better)
    return found


def subset_scatter(errors, size, subsets=SUBSETS, seed=0):
    """How RMSEs and improvements scatter over validation sets of `size` objects, drawn from those with known errors.

    errors: (grasps (O,), mean squared errors by object of S runs from scratch (S, O), of S runs of jepa (S, O)) of one
    suite. For every set one run of each is drawn, too: the paper has one.
    -> RMSEs of scratch (subsets,), improvements of jepa over it in % (subsets,).
    """
    grasps, *arms = errors
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((subsets, len(grasps))), axis=1)[:, :size]
    weights = grasps[chosen]  # (subsets, size)
    runs = (squared[rng.integers(len(squared), size=subsets)[:, None], chosen] for squared in arms)
    scratch, jepa = ((weights * squared).sum(1) / weights.sum(1) for squared in runs)
    return np.sqrt(scratch), 100 * (1 - np.sqrt(jepa / scratch))


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
    notes = [note + "\n" for note in differences(rows)]
    sections = [*notes, "## Relative improvement over the draws\n\n" + markdown(header, lines)]
    sections *= bool(lines)
    title = f"## Validation sets of as few objects, drawn from the test objects of {Path(table1).name}\n\n"
    header = ["budget", "objects", "RMSE of scratch, all objects", "middle 95 % of such sets"]
    header += ["jepa over scratch, all objects", "middle 95 % of such sets"]
    return "\n".join([*sections, title + markdown(header, scatter_lines(errors_of(table1)))])


def scatter_lines(errors):
    """A line per budget: what `subset_scatter` makes of the published number of validation objects."""
    lines = []
    for budget, size in VALIDATED.items():
        if budget in errors:
            rmse, better = (np.percentile(values, (2.5, 97.5)) for values in subset_scatter(errors[budget], size))
            grasps, *arms = errors[budget]
            whole = [math.sqrt((grasps * squared.mean(0)).sum() / grasps.sum()) for squared in arms]
            lines.append([
                budget, size, f"{whole[0]:.3f}", f"{rmse[0]:.3f} to {rmse[1]:.3f}",
                f"{100 * (1 - whole[1] / whole[0]):.1f} %", f"{better[0]:.1f} to {better[1]:.1f} %",
            ])  # fmt: skip
    return lines


def errors_of(folder):
    """Budget -> grasps (O,), squared errors by object of test of all runs from scratch and of jepa; of a table1."""
    errors, found = read_errors(Path(folder)), {}
    if not errors:
        raise UserError(f"{folder}: no objects.npz in it; give the --out of a table1 as --against")
    check_one_setting([{"command": command} for command, _ in errors], ("--budget", "--init", *RATE_FLAGS), folder)
    for (command, suite), (_, grasps, squared) in sorted(errors.items()):
        if suite == "test":
            flags = split_command(command)[1]
            arms = found.setdefault(flags["--budget"], {"grasps": grasps, "rates": {}})
            rates = [flags.get(flag) for flag in RATE_FLAGS]
            if arms["rates"].setdefault(flags["--init"], rates) != rates:
                raise UserError(f"{folder}: several learning rates of {flags['--init']}; --against wants one")
            arms.setdefault(flags["--init"], []).append(squared)
    return {
        budget: (arms["grasps"], np.stack(arms["scratch"]), np.stack(arms["jepa"]))
        for budget, arms in found.items() if {"scratch", "jepa"} <= set(arms)
    }  # fmt: skip
