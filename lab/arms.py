"""Sweeps of named arms, each of which is compared with one of them: controls, and the paper's Section VI."""

from lab.by_object import keep_errors, read_errors
from lab.rows import RATE_FLAGS
from lab.runner import choose, plan_runs, refuse_flags, run_all
from lab.tables import PREFIXES, Comparison, alike, arms_table


# ---------------------------------------------------------------- what no shape and random features would give
CONTROLS = {  # name -> flags; rates of backbones are those that lr-grid found best for each
    "pose": {"--pool": "none"},
    "size": {"--pool": "size"},
    "centers": {"--pool": "centers"},
    "scratch": {"--init": "scratch", "--lr-backbone": "1e-4"},
    "random": {"--init": "random"},
    "jepa": {"--init": "jepa", "--lr-backbone": "1e-5"},
}
OF_CONTROLS = {"--pack": "A", "--steps": "1000", "--budget": "0.1,0.01,1", "--k": "5,1", "--lr-head": "2e-3"}


def run_controls(names, given, args):
    """Train arms, all where no names are given, and evaluate their best steps on val and test; -> rows."""
    refuse_flags(given, ("--pool", "--init"), "controls")
    grids = [OF_CONTROLS | CONTROLS[name] for name in choose(names, CONTROLS, "controls")]
    planned = [flags for grid in grids for flags in plan_runs(grid, given, args.seeds, args)]
    return run_all(planned, args.out / "rows.csv", args, ("val", "test"), [keep_errors])


def with_random(flags, other):
    """Pooling, start and rates are what an arm is, and none without an encoder has --preset."""
    same = alike(flags, other, ("--pool", "--init", "--jepa-ckpt", "--preset", *RATE_FLAGS))
    return same and other.get("--init") == "random"


def controls_text(rows, args):
    """Markdown: all arms on val and test, and by how much they are better than random weights that stay as they are."""
    errors = read_errors(args.out)
    return arms_table(rows, errors, [Comparison("better than random, %", with_random, rows, errors)])


# ---------------------------------------------------------------- does Section VI pay? Today adapters, and the default
# adapters leave the encoder as it is, so from scratch they start from random weights whose BatchNorm is calibrated
FUTURE = {"--init": "scratch,jepa"}, {"--lora": "8", "--init": "random,jepa"}
OF_FUTURE = {"--pack": "A", "--budget": "0.1", "--steps": "1000", "--lr-backbone": "1e-4", "--lr-head": "2e-3"}
VARIED = ("--lora", "--loss", "--schedule", "--patching", "--tokenizer")  # all but the first of old rows alone
UNVARIED = {"--loss": "wta", "--schedule": "cosine"}.items()


def run_future(names, given, args):
    """Train default and adapters, from scratch and with a pretrained encoder, and evaluate on every suite; -> rows."""
    refuse_flags(given, (*VARIED, "--init", "--jepa-ckpt", "--preset"), "future")
    planned = [flags for arm in FUTURE for flags in plan_runs(OF_FUTURE | arm, given, args.seeds, args)]
    return run_all(planned, args.out / "rows.csv", args, PREFIXES, [keep_errors])


def with_default(flags, other):
    """The default is what nothing is varied in; that of adapters on random weights starts from scratch."""
    start = {"--init": flags["--init"].replace("random", "scratch")}
    varied = {(flag, value) for flag, value in other.items() if flag in VARIED}
    return varied <= UNVARIED and alike(flags | start, other, VARIED)


def future_text(rows, args):
    """Markdown: what each variant gives on val and on the test suites."""
    errors = read_errors(args.out)
    return arms_table(rows, errors, [Comparison("better than the default, %", with_default, rows, errors)])
