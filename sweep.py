"""The evidence: grids of trainings, resumed where they stopped, then tables and figures from their rows.

    python sweep.py table1                 label efficiency: budgets, initialisations, rates, packs and seeds (Table I)
    python sweep.py lr-grid                learning rates for both initialisations (Sec. IV-C)
    python sweep.py k | pool | loss | budget | init      one choice, all else equal
    python sweep.py k --quick              the same on data/synthetic in a few minutes: exercises (all five of these)
    python sweep.py future [VARIANT ...]   the paper's Section VI: losses, patches, tokenizer, adapters, schedules
    python sweep.py controls [ARM ...]     the initialisations between controls: no shape, random, all labels
    python sweep.py published              the published code's protocol: how far does an improvement scatter?
    python sweep.py benchmark              is the open benchmark a good one? baselines and linear probes
    python sweep.py encoders A.pt B.pt     pretrained encoders: probes, effective ranks, fine-tuning on val
    python sweep.py grid --k 1,5 --pool attention,hand --seeds 0,1,2      any grid of train.py's flags

Any flag of train.py may follow, with values separated by commas; it beats the sweep's own. A finished run is one row
of OUT/rows.csv, and what has a row is not run again; a run that diverges keeps its row, marked as failed. OUT/table.md
and the figures beside it are made from the rows alone (`--tables` does only that). The sweeps' own data is data/full,
grid's is train.py's. Everything is chosen on val; table1, future and controls also evaluate the best step of every run
once on test suites. `--list` prints the commands that are left, for several machines; the same sweep without it then
takes what they leave behind into its rows:

    python sweep.py k --list | tr '\\n' '\\0' | xargs -0 -n 1 -P 4 sh -c       or GNU parallel, or an array of jobs
"""

import contextlib
import functools
import itertools
import shlex
import signal
import sys
from pathlib import Path

from cli.errors import UserError, command
from cli.flags import Parser, number
from files.writing import atomic
from lab.baselines import add_baselines, probes_text
from lab.control_table import controls_text, run_controls
from lab.encoders import run_encoders
from lab.future import SUITES as FUTURE_SUITES
from lab.future import future_text, plan_future, pretrain_missing
from lab.published import published_text, run_published
from lab.rows import DEFAULTS, command_of, differences, lengths, read_rows
from lab.runner import plan_runs, run_all
from lab.table1 import TABLE_SUITES, arms, check_alike, keep_details, plan_table1, rates_of_table1, table1_text
from lab.tables import columns_table, configurations_table
from loop.machine import set_precision, set_up_torch
from loop.runs import NOT_SETTINGS
from model import POOLS

ERRORS = "results/table1_long"  # errors by object, whose scatter `published` looks at
TABLES = "runs/tables"  # of all tables that no --out places elsewhere; the committed ones lie in results/
TENTH = {"--budget": "0.1", "--init": "jepa"}
RATES = {"--lr-backbone": "0,1e-5,7e-5,1e-4,3e-4,1e-3", "--lr-head": "1e-3,2e-3"}
GRIDS = {  # what each sweep varies: a list of grids
    "grid": [{}],
    # the paper's six choices, a frozen backbone, and higher rates so that scratch's best is not at the edge
    "lr-grid": [TENTH | {"--init": "jepa,scratch"} | RATES],
    "k": [TENTH | {"--k": "1,2,3,5,8,16"}],
    "pool": [TENTH | {"--pool": ",".join(POOLS)}],
    "loss": [TENTH | {"--loss": "wta,mdn,hedged"}],
    "budget": [{"--init": "jepa", "--budget": "0.01,0.1,0.25,1"}],
    "init": [{"--budget": "0.1", "--init": "scratch,jepa"}],
    "benchmark": [
        {"--budget": "0.1,1", "--pool": "none"},
        {"--budget": "0.1,1", "--init": "jepa", "--pool": "attention,hand", "--k": "5,1"},
    ],
    "encoders": [TENTH],
}
QUICK = {  # what --quick makes of a sweep: fewer values and steps, so that two cores take one to three minutes
    "k": {"--k": "1,5,16", "--steps": "500"},
    "pool": {"--pool": "none,mean,attention,hand,surface", "--steps": "500"},
    "loss": {"--loss": "wta,mdn,hedged", "--steps": "500"},
    "budget": {"--budget": "0.01,0.1,1", "--steps": "500"},
    "init": {"--init": "scratch,jepa", "--steps": "500"},
}
SEEDS = {"table1": "0,1,2", "future": "0,1,2", "controls": "0,1,2", "benchmark": "0,1", "encoders": "0,1"}  # others: 0


# ---------------------------------------------------------------- command line


def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("kind", choices=("table1", "future", "controls", "published", *GRIDS), help="which sweep")
    seeds = "training seeds (default: 0; table1, future and controls 0,1,2; benchmark and encoders 0,1)"
    flag("--seeds", type=whole_numbers, metavar="N,N", help=seeds)
    flag("--budgets", metavar="F,F", help="the same as --budget F,F")
    out = f"folder of rows.csv, table.md and figures (default: {TABLES}/KIND; runs/smoke/KIND with --smoke)"
    flag("--out", metavar="FOLDER", help=out)
    flag("--runs", default="runs/sweep", metavar="DIR", help="folder of the runs and their logs")
    jobs = "runs side by side, each in a process of its own if over 1"
    flag("--jobs", type=number(int, 1), default=1, metavar="N", help=jobs)
    rates = "table1: take the trials of its learning rates from this sweep (default: OUT/trials.csv)"
    flag("--rates", metavar="FOLDER", help=rates)
    against = (
        f"table1: another table1, to be compared with object by object; published: whose errors it takes ({ERRORS})"
    )
    flag("--against", metavar="FOLDER", help=against)
    flag("--tables", action="store_true", help="run nothing: tables and figures from the rows that are there")
    flag("--list", action="store_true", help="run nothing: print the commands of the runs that are left, one a line")
    quick = f"{', '.join(QUICK)}: fewer values and steps, on {DEFAULTS['--data']}, one seed: an exercise of minutes"
    flag("--quick", action="store_true", help=quick)
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
        if flag[2:].replace("-", "_") in ("seed", "from", *NOT_SETTINGS):
            raise UserError(f"{flag}: the sweep sets it for every run; leave it out (--seeds gives the seeds)")
    return dict(zip(flags, values))


def parse(argv):
    """sweep.py's own arguments, the files, variants or arms that are named, and train.py's flags: flag -> values."""
    args, words = build_parser().parse_known_args(argv)
    files = []  # of encoders, or names of variants or arms
    if args.kind in ("encoders", "future", "controls"):
        files = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    given = pair_up(words[len(files) :])
    if (args.rates and args.kind != "table1") or (args.against and args.kind not in ("table1", "published")):
        raise UserError("--rates goes with table1, --against with table1 and published; leave them out")
    if args.list and args.kind == "published":
        raise UserError("--list: the runs of published are no commands of train.py; leave it out")
    if args.seeds and args.kind == "published":
        raise UserError("--seeds: published gives every draw a seed of its own; leave it out")
    if args.budgets and "--budget" in given:
        raise UserError("--budgets is the same as --budget; give one of them")
    if args.budgets:
        given["--budget"] = args.budgets
    if args.tables and args.list:
        raise UserError("--tables does not go with --list; leave one out")
    if args.quick and args.kind not in QUICK:
        raise UserError(f"--quick goes with {', '.join(QUICK)}; leave it out")
    short = args.smoke or args.quick
    args.seeds = args.seeds or ("0" if short else SEEDS.get(args.kind, "0")).split(",")
    args.own = own_flags(args.kind, short)
    folder = "runs/smoke" if args.smoke else TABLES
    args.out = Path(args.out or f"{folder}/{args.kind}{'_quick' if args.quick else ''}")
    return args, files, given


def own_flags(kind, short):
    """Flags that a sweep gives all of its runs; one thread: equal results however many jobs."""
    if kind == "grid":
        return {}
    return {"--data": DEFAULTS["--data"] if short else "data/full", "--threads": "1"}


def grids_of(args):
    """The grids of a sweep's kind, with --quick its short one."""
    if args.quick:
        return [grid | QUICK[args.kind] for grid in GRIDS[args.kind]]
    return GRIDS[args.kind]


# ---------------------------------------------------------------- running and publishing


def run(args, files, given):
    """Run what has no row yet; -> all rows of OUT/rows.csv."""
    if args.kind == "encoders":
        return run_encoders(files, GRIDS["encoders"], given, args)
    path = args.out / "rows.csv"
    if args.kind == "table1":
        rates = rates_of_table1(given, GRIDS["lr-grid"], args)
        if rates is None:
            print("table1: these are the trials of learning rates; after them --list prints the rest", file=sys.stderr)
            return []
        planned = plan_table1(given, rates, args)
        check_alike([*read_rows(path), *({"command": command_of(flags)} for flags in planned)], path)
        return run_all(planned, path, args, TABLE_SUITES, functools.partial(keep_details, args.out))
    if args.kind == "controls":
        return run_controls(files, given, args, functools.partial(keep_details, args.out))
    if args.kind == "published":
        return run_published(given, args)
    if args.kind == "future":
        planned = plan_future(files, given, args)
        if not pretrain_missing(planned, args):
            print("future: these are the pretrainings; after them --list prints the rest", file=sys.stderr)
            return []
        return run_all(planned, path, args, FUTURE_SUITES, functools.partial(keep_details, args.out))
    planned = plan_runs(grids_of(args), given, args.seeds, args)
    rows = run_all(planned, path, args)
    if args.kind == "benchmark" and not args.list:
        rows = add_baselines(planned, args.out, args)
    return rows


def found_rows(args):
    """The rows that --tables works from."""
    path = args.out / "rows.csv"
    rows = read_rows(path, "file" if args.kind == "encoders" else "command")
    if not rows and args.kind != "published":  # what that says of a table1 needs no rows
        raise UserError(
            f"{path}: no rows to make a table from; run the sweep without --tables first, or name its --out"
        )
    return rows


def publish(rows, args):
    """Write and print the table, and draw the figures, from rows alone."""
    from lab import figures  # here: only these need matplotlib

    out = args.out
    if args.kind == "encoders":
        notes = differences(read_rows(out / "runs.csv"))
        text = "\n\n".join([*notes, columns_table(rows, hidden=["encoder"])])
    elif args.kind == "table1":
        text = table1_text(rows, out, args.against and Path(args.against))
        figures.draw_table1(arms(rows), read_rows(out / "curves.csv"), out)
    elif args.kind == "controls":
        text = "\n\n".join([*differences(rows), controls_text(rows, out)])
        figures.draw_controls(rows, out / "figure.png")
    elif args.kind == "published":
        text = published_text(rows, args.against or ERRORS)
        if rows:
            figures.draw_published(rows, out / "figure.png")
    elif args.kind == "future":
        text = "\n\n".join([*differences(rows), future_text(rows, out)])
    else:
        text = configurations_table(rows)
        if args.kind == "benchmark":
            text += probes_text(out)
        if args.kind in figures.NUMBERS:
            figures.draw_numbers(args.kind, rows, out / "figure.png")
        else:
            figures.draw_configurations(rows, out / "figure.png")
    runs = read_rows(out / "runs.csv") if args.kind == "encoders" else rows
    text = "\n\n".join([*lengths(runs), text])
    with atomic(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


@contextlib.contextmanager
def interruptible(jobs):
    """Say after Ctrl-C how to go on; where there are several jobs a killed sweep stops its runs too."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if jobs > 1 and signal.getsignal(signum) == signal.SIG_DFL:  # else nohup's choice stands
            signal.signal(signum, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        hint = "the same command goes on: finished runs have their rows, others go on from their last checkpoint"
        raise KeyboardInterrupt(f"interrupted; {hint}") from None


@command
def main(argv=None):
    args, files, given = parse(argv)
    with interruptible(args.jobs):
        if args.tables:
            rows = found_rows(args)
        else:
            if "bf16" in given.get("--precision", "").split(","):  # its warning: the runs' own go to their logs
                set_precision("bf16", set_up_torch(given.get("--device", "auto")))
            rows = run(args, files, given)
        if not args.list:
            publish(rows, args)
    return rows


if __name__ == "__main__":
    main()
