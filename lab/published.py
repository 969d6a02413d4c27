"""The published code's protocol emulated: how far does its "relative improvement" scatter between equal models?

It draws p % of the objects first and splits those: a tenth validates, a tenth tests, the rest trains. So a budget of
1 % is scored on 2 objects, one of 10 % on 15, one of 25 % on 36, each on others, once, after the last step. Here that
is drawn twenty times, each time for two runs from scratch that differ in their seed alone and for one from the
pretrained encoder; a draw has a seed of its own, as a pack has there.

Not the published protocol: preset small, 1,000 steps for 25,000 (with the warm-up shortened alike), no fp16, and the
64 grasps of a batch are of 16 clouds, since drawn one by one they would be of up to 64, at four times the cost.
Network and loss are ours, as the lab report's list of departures has them.
"""

import itertools
import math
import shutil

import numpy as np

import train
from cli.errors import UserError, command, refuse
from files.writing import stable_seed
from lab.rows import PUBLISHED, split_command
from lab.runner import PlannedRun, open_data, plan_runs, refuse_flags, run_all
from lab.tables import markdown
from loop.machine import set_up_torch
from splits import HELD_OUT, Split, suite_rows, synset_of

DRAWS = 20
PAPER = {"0.01": 7.7, "0.1": 9.6, "0.25": 25.9}  # improvement in % by budget, Table I
ARMS = {"scratch": ("scratch", 0), "scratch again": ("scratch", 1), "jepa": ("jepa", 0)}  # --init, what --seed adds
COMPARED = {"scratch again": "scratch against itself, other seed", "jepa": "jepa over scratch"}  # arm over scratch
PUBLISHED_STEPS, BATCH, WARMUP_EPOCHS = 25_000, 64, 10
FLAGS = {
    "--steps": "1000", "--lr-backbone": "1.5e-5", "--lr-head": "1.5e-3", "--objects-per-batch": "16",
    "--grasps-per-object": "4",
}  # fmt: skip
OWN = ("--init", "--pack", "--budget", "--held-out", "--warmup", "--eval-every")  # what the protocol decides


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
class PublishedRun(PlannedRun):
    """A training on a split of the published code, scored once, after the last step."""

    start = PUBLISHED
    not_of_train = ("--draw",)

    def train(self):
        command(self.train_on_draw)([*self.words, "--quiet"])

    def train_on_draw(self, words):
        args = train.parse(words)
        data, _ = open_data(self.settings)
        split = published_split(data, args.budget, int(self.flags["--draw"]))
        args.warmup, args.eval_every = warmup_share(len(split.rows["train"])), args.steps
        train.train_one(args, set_up_torch(args.device, args.threads), *train.resolve_network(args), data, split)


def run_published(names, given, args):
    """Train every arm on every draw; -> rows. With --smoke two draws of the largest budget."""
    refuse_flags(given, OWN, "published")
    refuse(any("," in value for value in given.values()), "published: one value per flag; give each its own --out")
    draws, budgets = (2, ["0.25"]) if args.smoke else (DRAWS, PAPER)
    planned = []
    for draw, budget, (init, more) in itertools.product(range(draws), budgets, ARMS.values()):
        own = {"--budget": budget, "--init": init}
        for flags in plan_runs(FLAGS, given | own, [str(draw + more)], args):
            planned.append(flags | {"--draw": str(draw)})
    return run_all(planned, args.out / "rows.csv", args, keep=[remove], kind=PublishedRun)


def remove(out, run, predictions):
    """Remove a run's folder: its config.json names a pack, but the split was another one."""
    shutil.rmtree(run.folder)


# ---------------------------------------------------------------- what it says
def improvements(rows, of):
    """Budget -> relative improvements in % of one arm over scratch, one per draw that has both."""
    values = {place_of(row): float(row["top_logit_rmse"]) for row in rows if row["top_logit_rmse"]}
    found = {budget: [] for budget in sorted({place_of(row)[0] for row in rows})}
    for (budget, draw, arm), value in values.items():
        if arm == of and (budget, draw, "scratch") in values:
            found[budget].append(100 * (1 - value / values[budget, draw, "scratch"]))
    return found


def place_of(row):
    """Budget, draw and arm of a row."""
    flags = split_command(row["command"])[1]
    arm = flags["--init"] + " again" * (flags["--seed"] != flags["--draw"])
    return flags["--budget"], flags["--draw"], arm


def spread_cells(values):
    """Mean, SD, the middle 95 % and the extremes of some percentages."""
    low, high = np.percentile(values, (2.5, 97.5))
    extremes = f"{min(values):.1f} to {max(values):.1f}"
    return [f"{np.mean(values):.1f}", f"{np.std(values, ddof=1):.1f}", f"{low:.1f} to {high:.1f}", extremes]


def published_text(rows, args):
    """Markdown: improvements over the draws."""
    header = ["comparison", "budget", "draws", "mean %", "SD", "middle 95 %", "extremes", "paper's Table I, %"]
    lines = []
    for arm, name in COMPARED.items():
        for budget, values in improvements(rows, arm).items():
            if len(values) > 1:
                lines.append([name, budget, len(values), *spread_cells(values), PAPER[budget]])
    return "## Relative improvement over the draws\n\n" + markdown(header, lines)
