"""Initialisations between their controls: what no shape, bare centers, random features and all labels would give.

A comparison of pretraining with random weights says something about pretraining only where features that know more
would help. The oracle, an encoder that saw all labels of the training pool, tells whether they would.
"""

from cli.errors import refuse
from lab.by_object import keep_errors, read_errors
from lab.rows import RATE_FLAGS, best_rates
from lab.runner import choose, plan_runs, refuse_flags, run_all, run_first, seed_by_seed, with_origins
from lab.tables import Comparison, alike, arms_table

ARMS = {  # name -> flags
    "pose": {"--pool": "none"},
    "size": {"--pool": "size"},
    "centers": {"--pool": "centers"},
    "scratch": {"--init": "scratch"},
    "random": {"--init": "random"},
    "jepa": {"--init": "jepa"},
    "oracle": {"--init": "oracle"},
}
RATES = {"--lr-backbone": "1e-5,1e-4", "--lr-head": "1e-3,2e-3"}  # to try, the first where the encoder trains
TRAINED = ("scratch", "jepa", "oracle")
BUDGETS = "0.1,0.01,1"
SHARED = {"--pack": "A", "--steps": "1000"}
ORACLE = {  # the run whose encoder is the oracle's
    "--pack": "A", "--budget": "1", "--steps": "8000", "--init": "scratch", "--lr-backbone": "1e-4",
    "--lr-head": "2e-3",
}  # fmt: skip


# ---------------------------------------------------------------- runs
def run_controls(names, given, args):
    """Train the oracle's encoder, the trials of rates, then all arms at the rates that were best on val; -> rows.

    names: of arms, all for none. Trials are at K = 5, the first budget and the first seed.
    """
    refuse_flags(given, ("--pool", "--init"), "controls")
    arms = choose(names, ARMS, "controls")
    if "jepa" in arms and "--jepa-ckpt" in given:
        arms["jepa"]["--jepa-ckpt"] = given["--jepa-ckpt"]
    given = {flag: value for flag, value in given.items() if flag != "--jepa-ckpt"}
    if "oracle" in arms:
        arms["oracle"]["--jepa-ckpt"] = str(train_oracle(given, args) / "best.pt")
    own = {flag: value for flag, value in given.items() if flag not in RATE_FLAGS}
    first = {"--budget": own.get("--budget", BUDGETS).split(",")[0], "--k": "5"}
    trials, planned = [], []
    for name, flags in arms.items():
        rates = {flag: given.get(flag, some) for flag, some in RATES.items() if flag == "--lr-head" or name in TRAINED}
        trials += plan_runs(SHARED | flags | rates, own | first, args.seeds[:1], args)
    best = best_rates(run_first(trials, args.out / "trials.csv", args), place_of)
    for flags in arms.values():
        rates = best.get(place_of(flags), {})  # none where all trials diverged
        planned += plan_runs(SHARED | {"--budget": BUDGETS, "--k": "5,1"} | flags | rates, own, args.seeds, args)
    return run_all(seed_by_seed(planned, args), args.out / "rows.csv", args, ("val", "test"), [keep_errors])


def train_oracle(given, args):
    """The folder of the run with all labels whose encoder the oracle starts from."""
    of_arms = ("--budget", "--k", "--steps", *RATE_FLAGS)
    kept = {flag: value for flag, value in given.items() if flag not in of_arms}
    planned, path = plan_runs(ORACLE, kept, ["0"], args), args.out / "oracle.csv"
    run_first(planned, path, args)
    (run,) = with_origins(planned, args)
    gone = not (run.folder / "best.pt").exists()
    refuse(gone, f"{run.folder}: this run has a row in {path}, but is gone; remove that file to train it again")
    return run.folder


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
