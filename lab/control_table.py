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
TRAINED = ("scratch", "jepa", "oracle")  # whose encoder trains, at one of BACKBONES
BACKBONES, HEADS = "1e-5,1e-4", "1e-3,2e-3"
BUDGETS = "0.1,0.01,1"
SHARED = {"--pack": "A", "--steps": "1000"}
ORACLE = {  # the run whose encoder is the oracle's
    "--pack": "A", "--budget": "1", "--steps": "8000", "--init": "scratch", "--lr-backbone": "1e-4",
    "--lr-head": "2e-3",
}  # fmt: skip
SUITES = ("val", "test")


# ---------------------------------------------------------------- runs
def run_controls(names, given, args):
    """Train the oracle's encoder, the trials of rates, then all arms at the rates that were best on val; -> rows.

    names: of arms, all for none.
    """
    refuse_flags(given, ("--pool", "--init"), "controls")
    arms = choose(names, ARMS, "controls")
    if "jepa" in arms and "--jepa-ckpt" in given:
        arms["jepa"]["--jepa-ckpt"] = given["--jepa-ckpt"]
    given = {flag: value for flag, value in given.items() if flag != "--jepa-ckpt"}
    if "oracle" in arms:
        arms["oracle"]["--jepa-ckpt"] = str(train_oracle(given, args) / "best.pt")
    trials = run_first(plan_trials(arms, given, args), args.out / "trials.csv", args)
    planned = plan_arms(arms, best_rates(trials, place_of), given, args)
    return run_all(planned, args.out / "rows.csv", args, SUITES, [keep_errors])


def train_oracle(given, args):
    """The folder of the run with all labels whose encoder the oracle starts from."""
    of_arms = ("--budget", "--k", "--steps", *RATE_FLAGS)
    kept = {flag: value for flag, value in given.items() if flag not in of_arms}
    planned, path = plan_runs([ORACLE], kept, ["0"], args), args.out / "oracle.csv"
    run_first(planned, path, args)
    (run,) = with_origins(planned, path, args)
    gone = not (run.folder / "best.pt").exists()
    refuse(gone, f"{run.folder}: this run has a row in {path}, but is gone; remove that file to train it again")
    return run.folder


def plan_trials(arms, given, args):
    """One run per arm, budget and pair of rates, at K = 5 and the first seed."""
    own = {flag: value for flag, value in given.items() if flag not in ("--k", *RATE_FLAGS)}
    planned = []
    for name, flags in arms.items():
        rates = {"--lr-head": given.get("--lr-head", HEADS)}
        if name in TRAINED:
            rates |= {"--lr-backbone": given.get("--lr-backbone", BACKBONES)}
        grid = SHARED | {"--budget": BUDGETS, "--k": "5"} | flags | rates
        planned += plan_runs([grid], own, args.seeds[:1], args)
    return planned


def plan_arms(arms, best, given, args):
    """Every arm at each budget with its own best rates, K = 5 and 1, all of a seed before the next."""
    own = {flag: value for flag, value in given.items() if flag not in RATE_FLAGS}
    planned = []
    for name, flags in arms.items():
        for budget in own.get("--budget", BUDGETS).split(","):
            if (name, budget) in best:
                grid = SHARED | {"--budget": budget, "--k": "5,1"} | flags | best[name, budget]
                planned += plan_runs([grid], own | {"--budget": budget}, args.seeds, args)
    return seed_by_seed(planned, args)


def arm_of(flags):
    pool = {"none": "pose", "size": "size", "centers": "centers"}.get(flags.get("--pool"))
    return pool or flags.get("--init", "scratch")


def place_of(flags):
    """Arm and budget of a run's flags."""
    return arm_of(flags), flags["--budget"]


# ---------------------------------------------------------------- the table
def with_random(flags, other):
    """Pooling, start and rates are what an arm is, and none without an encoder has --preset."""
    same = alike(flags, other, ("--pool", "--init", "--jepa-ckpt", "--preset", *RATE_FLAGS))
    return same and arm_of(other) == "random"


def controls_text(rows, args):
    """Markdown: all arms on val and test, and by how much they are better than random weights that stay as they are."""
    errors = read_errors(args.out)
    return arms_table(rows, errors, [Comparison("better than random, %", with_random, rows, errors)])
