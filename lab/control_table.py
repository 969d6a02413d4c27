"""Initialisations between their controls: what no shape, bare centers and random features would give."""

from lab.by_object import keep_errors, read_errors
from lab.rows import RATE_FLAGS
from lab.runner import best_rates, choose, plan_runs, refuse_flags, run_all
from lab.tables import Comparison, alike, arms_table

ARMS = {  # name -> flags
    "pose": {"--pool": "none"},
    "size": {"--pool": "size"},
    "centers": {"--pool": "centers"},
    "scratch": {"--init": "scratch"},
    "random": {"--init": "random"},
    "jepa": {"--init": "jepa"},
}
RATES = {"--lr-backbone": "1e-5,1e-4", "--lr-head": "1e-3,2e-3"}  # to try, the first where the encoder trains
TRAINED = ("scratch", "jepa")
BUDGETS = "0.1,0.01,1"
SHARED = {"--pack": "A", "--steps": "1000"}


# ---------------------------------------------------------------- runs
def run_controls(names, given, args):
    """Train the trials of rates, then all arms at the rates that were best on val; -> rows.

    names: of arms, all for none. Trials are at K = 5, the first budget and the first seed.
    """
    refuse_flags(given, ("--pool", "--init"), "controls")
    arms = choose(names, ARMS, "controls")
    own = {flag: value for flag, value in given.items() if flag not in RATE_FLAGS}
    first = {"--budget": own.get("--budget", BUDGETS).split(",")[0], "--k": "5"}
    trials, planned = [], []
    for name, flags in arms.items():
        rates = {flag: given.get(flag, some) for flag, some in RATES.items() if flag == "--lr-head" or name in TRAINED}
        trials += plan_runs(SHARED | flags | rates, own | first, args.seeds[:1], args)
    best = best_rates(trials, args.out / "trials.csv", args, place_of)
    for flags in arms.values():
        rates = best.get(place_of(flags), {})  # none where all trials diverged
        planned += plan_runs(SHARED | {"--budget": BUDGETS, "--k": "5,1"} | flags | rates, own, args.seeds, args)
    return run_all(planned, args.out / "rows.csv", args, ("val", "test"), [keep_errors])


def place_of(flags):
    """What tells arms apart."""
    return flags.get("--pool"), flags.get("--init")


# ---------------------------------------------------------------- the table
def with_random(flags, other):
    """Pooling, start and rates are what an arm is, and none without an encoder has --preset."""
    same = alike(flags, other, ("--pool", "--init", "--jepa-ckpt", "--preset", *RATE_FLAGS))
    return same and other.get("--init") == "random"


def controls_text(rows, args):
    """Markdown: all arms on val and test, and by how much they are better than random weights that stay as they are."""
    errors = read_errors(args.out)
    return arms_table(rows, errors, [Comparison("better than random, %", with_random, rows, errors)])
