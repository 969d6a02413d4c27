"""Does any of it pay? The paper's Section VI as variants.py has it, which today is adapters, against the default."""

from lab.by_object import keep_errors, read_errors
from lab.runner import plan_runs, refuse_flags, run_all
from lab.tables import PREFIXES, Comparison, alike, arms_table

# adapters leave the encoder as it is, so from scratch they start from random weights whose BatchNorm is calibrated
ARMS = {"--init": "scratch,jepa"}, {"--lora": "8", "--init": "random,jepa"}
SHARED = {"--pack": "A", "--budget": "0.1", "--steps": "1000", "--lr-backbone": "1e-4", "--lr-head": "2e-3"}
VARIED = ("--lora", "--loss", "--schedule", "--patching", "--tokenizer")  # all but the first of old rows alone
UNVARIED = {"--loss": "wta", "--schedule": "cosine"}.items()


def run_future(names, given, args):
    """Run default and adapters on every suite, from scratch and with a pretrained encoder; -> rows."""
    refuse_flags(given, (*VARIED, "--init", "--jepa-ckpt", "--preset"), "future")
    planned = [flags for arms in ARMS for flags in plan_runs(SHARED | arms, given, args.seeds, args)]
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
