"""The evidence: grids of trainings, resumed where they stopped, then tables and figures from their rows.

    python sweep.py table1                 label efficiency: budgets, initialisations, rates, packs and seeds (Table I)
    python sweep.py lr-grid                learning rates for both initialisations (Sec. IV-C)
    python sweep.py k | pool | loss        number of hypotheses, pooling, loss
    python sweep.py benchmark              is the open benchmark a good one? baselines and linear probes
    python sweep.py encoders A.pt B.pt     pretrained encoders: probes, effective ranks, fine-tuning on val
    python sweep.py grid --k 1,5 --pool attention,hand --seeds 0,1,2      any grid of train.py's flags

Any flag of train.py may follow, with values separated by commas; it beats the sweep's own. A finished run is one row
of OUT/rows.csv, and what has a row is not run again; a run that diverges keeps its row, marked as failed. OUT/table.md
and the figures beside it are made from the rows alone (`--tables` does only that). The sweeps' own data is data/full,
grid's is train.py's. Everything is chosen on val; table1 also evaluates the best step of every run once on the test
suites.
"""

import functools
import itertools
import shlex
import signal
from pathlib import Path

import train
from lab.baselines import add_baselines, probes_text
from lab.encoders import run_encoders
from lab.rows import read_rows
from lab.runner import plan_runs, run_all
from lab.table1 import SUITES, arms, keep_details, plan_table1, rates_of_table1, table1_text
from lab.tables import columns_table, configurations_table
from model import CHOICES, POOLS
from plumbing.common import Parser, UserError, atomic, command, number
from plumbing.training import set_precision, set_up_torch

TENTH = {"--budget": "0.1", "--init": "jepa"}
RATES = {"--lr-backbone": "0,1e-5,7e-5,1e-4,3e-4,1e-3", "--lr-head": "1e-3,2e-3"}
GRIDS = {  # what each sweep varies: a list of grids
    "grid": [{}],
    # the paper's six choices, a frozen backbone, and higher rates so that scratch's best is not at the edge
    "lr-grid": [TENTH | {"--init": "jepa,scratch"} | RATES],
    "k": [TENTH | {"--k": "1,2,3,5,8,16"}],
    "pool": [TENTH | {"--pool": ",".join(POOLS)}],
    "loss": [TENTH | {"--loss": ",".join(CHOICES["loss"])}],
    "benchmark": [
        {"--budget": "0.1,1", "--pool": "none"},
        {"--budget": "0.1,1", "--init": "jepa", "--pool": "attention,hand", "--k": "5,1"},
    ],
    "encoders": [TENTH],
}
SEEDS = {"table1": "0,1,2", "benchmark": "0,1", "encoders": "0,1"}  # others: 0


# ---------------------------------------------------------------- command line


def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("kind", choices=("table1", *GRIDS), help="which sweep")
    seeds = "training seeds (default: 0; table1 0,1,2; benchmark and encoders 0,1)"
    flag("--seeds", type=whole_numbers, metavar="N,N", help=seeds)
    flag("--budgets", metavar="F,F", help="the same as --budget F,F")
    out = "folder of rows.csv, table.md and figures (default: results/KIND; with --smoke runs/smoke/KIND)"
    flag("--out", metavar="FOLDER", help=out)
    flag("--runs", default="runs/sweep", metavar="DIR", help="folder of the runs and their logs")
    jobs = "runs side by side, each in a process of its own if over 1"
    flag("--jobs", type=number(int, 1), default=1, metavar="N", help=jobs)
    rates = "table1: where the trials of its learning rates lie (default: lr-grid beside --out)"
    flag("--rates", metavar="FOLDER", help=rates)
    flag("--against", metavar="FOLDER", help="table1: another table1, to be compared with object by object")
    flag("--tables", action="store_true", help="run nothing: tables and figures from the rows that are there")
    smoke = "tiny networks, two steps, at most two values per flag, one seed: does it work?"
    flag("--smoke", action="store_true", help=smoke)
    return parser


def whole_numbers(text):
    """An argparse type: whole numbers separated by commas, as strings again."""
    return [str(number(int, 0)(part)) for part in text.split(",")]


def pair_up(words):
    """["--k", "1,5", "--pool", "hand"] -> {"--k": "1,5", "--pool": "hand"}."""
    flags, values = words[::2], words[1::2]
    if len(words) % 2 or not all(flag.startswith("--") for flag in flags):
        raise UserError(
            f"{shlex.join(words)}: after sweep.py's own flags come pairs of a flag of train.py and its values"
        )
    for flag in flags:
        if flag[2:] in ("seed", *train.NOT_SETTINGS):
            raise UserError(f"{flag}: the sweep sets it for every run; leave it out (--seeds gives the seeds)")
    return dict(zip(flags, values))


def parse(argv):
    """sweep.py's own arguments, the encoders that are named, and the given flags of train.py: flag -> values."""
    args, words = build_parser().parse_known_args(argv)
    files = []
    if args.kind == "encoders":
        files = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    given = pair_up(words[len(files) :])
    if args.kind != "table1" and (args.rates or args.against):
        raise UserError("--rates and --against go with table1; leave them out")
    if args.budgets:
        given["--budget"] = args.budgets
    args.seeds = args.seeds or ("0" if args.smoke else SEEDS.get(args.kind, "0")).split(",")
    folder = "runs/smoke" if args.smoke else "results"
    args.out = Path(args.out or f"{folder}/{'pretraining' if args.kind == 'encoders' else args.kind}")
    return args, files, given


# ---------------------------------------------------------------- running and publishing


def run(args, files, given):
    """Run what has no row yet; -> all rows of OUT/rows.csv."""
    if args.kind == "encoders":
        return run_encoders(files, GRIDS["encoders"], given, args)
    path = args.out / "rows.csv"
    if args.kind == "table1":
        planned = plan_table1(given, rates_of_table1(given, GRIDS["lr-grid"], args), args)
        return run_all(planned, path, args, SUITES, functools.partial(keep_details, args.out))
    planned = plan_runs(GRIDS[args.kind], given, args.seeds, args)
    rows = run_all(planned, path, args)
    return add_baselines(planned, args.out, args) if args.kind == "benchmark" else rows


def publish(rows, args):
    """Write and print the table, and draw the figures, from rows alone."""
    from lab.figures import draw_configurations, draw_table1  # here, since only figures need matplotlib

    out = args.out
    if args.kind == "encoders":
        text = columns_table(rows, hidden=["encoder"])
    elif args.kind == "table1":
        text = table1_text(rows, out, args.against and Path(args.against))
        draw_table1(arms(rows), read_rows(out / "curves.csv"), out)
    else:
        text = configurations_table(rows)
        if args.kind == "benchmark":
            text += probes_text(out)
        draw_configurations(rows, out / "figure.png")
    with atomic(out / "table.md") as temporary:
        temporary.write_text(text)
    print(text)


@command
def main(argv=None):
    args, files, given = parse(argv)
    for signum in (signal.SIGTERM, signal.SIGHUP):  # a killed sweep stops its runs too; nohup's choice stands
        if args.jobs > 1 and signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, signal.default_int_handler)
    if args.tables:
        rows = read_rows(args.out / "rows.csv", "file" if args.kind == "encoders" else "command")
    else:
        if "bf16" in given.get("--precision", "").split(","):  # its warning: the runs' own go to their logs
            set_precision("bf16", set_up_torch(given.get("--device", "auto")), width=0)
        rows = run(args, files, given)
    if rows:
        publish(rows, args)
    return rows


if __name__ == "__main__":
    main()
