"""The evidence: grids of trainings, resumed where they stopped, then tables and figures from their rows.

    python sweep.py table1                 label efficiency: budgets, initialisations, rates, packs and seeds (Table I)
    python sweep.py lr-grid                learning rates for both initialisations (Sec. IV-C)
    python sweep.py k | pool | loss | budget | init      one choice, all else equal
    python sweep.py k --quick              the same in a few minutes: exercises (all five of these)
    python sweep.py future                 the paper's Section VI: adapters
    python sweep.py controls [ARM ...]     the initialisations between controls: no shape, random weights
    python sweep.py published              the published code's protocol: how far does an improvement scatter?
    python sweep.py assay [ARM ...]        would better features help? frozen encoders of clouds and of single views
    python sweep.py benchmark              is the open benchmark a good one? baselines and linear probes
    python sweep.py encoders A.pt B.pt     pretrained encoders: probes, fine-tuning on val
    python sweep.py grid --k "1,5" --pool "attention,hand" --seeds "0,1,2"      any grid of train.py's flags

Any flag of train.py may follow, with values separated by commas; it beats the sweep's own. A finished run is one row
of OUT/rows.csv, and what has a row is not run again; a run that diverges keeps its row, marked as failed. OUT/table.md
and the figures beside it are made from the rows alone (`--tables` does only that). Everything is chosen on val; table1,
future and controls also evaluate the best step of every run once on test suites. The same command on several machines
with one folder shares its runs among them.
"""

import contextlib
import importlib.util
import itertools
import shlex
import signal
from pathlib import Path
from typing import Callable, NamedTuple

from cli.errors import UserError, command, refuse
from cli.flags import Parser, number
from cli.processes import hearing
from evaluate import CLOSED
from files.writing import atomic, check_writable
from lab import figures
from lab.arms import controls_text, future_text, run_controls, run_future
from lab.assay import assay_text, run_assay
from lab.baselines import run_benchmark
from lab.encoders import probed_text, run_encoders
from lab.published import published_text, run_published
from lab.rows import DEFAULTS, notes, read_rows
from lab.runner import as_ctrl_c, plan_runs, run_all
from lab.table1 import TRIALS, keep_curve, run_table1, table1_text
from lab.tables import arms_table, short_table
from loop.machine import set_precision, set_up_torch
from loop.runs import NOT_SETTINGS
from model import POOLS

TABLES = "runs/tables"  # of all tables that no --out places elsewhere; the committed ones lie in results/
TENTH = {"--budget": "0.1", "--init": "jepa"}
SELDOM = {"--eval-every": "500"}  # twenty validations take a third of such a run
GRIDS = {  # of the sweeps that are one grid: flag -> its values
    "grid": {},
    "lr-grid": TRIALS,
    "k": TENTH | SELDOM | {"--k": "1,2,3,5,8,16"},
    "pool": TENTH | SELDOM | {"--pool": ",".join(POOLS)},
    "loss": TENTH | SELDOM | {"--loss": "wta,mdn,hedged"},
    "budget": {"--init": "jepa", "--budget": "0.01,0.1,0.25,1"},
    "init": {"--budget": "0.1", "--init": "scratch,jepa,shuffled"},
}
SHORT = {"--steps": "500", "--eval-every": "250"}
QUICK = {
    # what --quick makes of a grid: fewer values and steps, so that two cores take one to three minutes; the run with
    # attention of `pool` is also K = 5, wta, 10 % and jepa, so the others leave it out
    "k": SHORT | {"--k": "1,16"},
    "pool": SHORT | {"--pool": "none,attention,hand,surface"},
    "loss": SHORT | {"--loss": "mdn,hedged"},
    "budget": SHORT | {"--budget": "0.01,1"},
    "init": SHORT | {"--init": "scratch,shuffled"},
}


def run_grid(names, given, args):
    """Train what a sweep's grid has; -> rows."""
    grid = GRIDS[args.kind] | (QUICK[args.kind] if args.quick else {})
    return run_all(plan_runs(grid, given, args.seeds, args), args.out / "rows.csv", args, keep=[keep_curve])


class Sweep(NamedTuple):
    """What one kind of sweep does."""

    run: Callable = run_grid  # (names, flags of train.py, args) -> all rows, once what has none is run
    text: Callable = lambda rows, args: arms_table(rows)  # Markdown
    draw: Callable = lambda rows, args: None  # figures into OUT
    seeds: str = "0"
    names: str = ""  # what may be named before the flags


SWEEPS = {kind: Sweep(draw=figures.draw_grid) for kind in GRIDS} | {
    "table1": Sweep(run_table1, table1_text, figures.draw_table1, seeds="0,1,2"),
    "controls": Sweep(run_controls, controls_text, seeds="0,1,2", names="ARM"),
    "future": Sweep(run_future, future_text, seeds="0,1,2"),
    "published": Sweep(run_published, published_text),
    "assay": Sweep(run_assay, assay_text, names="ARM"),
    "benchmark": Sweep(run_benchmark, probed_text, figures.draw_grid, seeds="0,1"),
    "encoders": Sweep(run_encoders, probed_text, seeds="0,1", names="FILE"),
}


# ---------------------------------------------------------------- command line
def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("kind", choices=tuple(SWEEPS), help="which sweep")
    seeds = "; ".join(f"{kind} {sweep.seeds}" for kind, sweep in SWEEPS.items() if sweep.seeds != "0")
    flag("--seeds", type=whole_numbers, metavar="N,N", help=f"training seeds (default: 0; {seeds})")
    flag("--out", metavar="FOLDER", help=f"for rows, table and figures (default: {TABLES}/KIND, runs/smoke/KIND)")
    flag("--runs", default="runs/sweep", metavar="DIR", help="folder of the runs and their logs")
    flag("--jobs", type=number(int, 1), default=1, metavar="N", help="runs side by side, each a process if over 1")
    flag("--closed", type=number(int, 1), default=CLOSED, metavar="N",
         help="grasps of val that are closed; 1,000 tell the share that holds to 1.3 points")  # fmt: skip
    flag("--against", metavar="FOLDER", help="table1: another table1 to compare with")
    flag("--tables", action="store_true", help="run nothing: tables and figures from the rows that are there")
    flag("--quick", action="store_true", help=f"an exercise of minutes: {', '.join(QUICK)}")
    flag("--smoke", action="store_true", help="tiny networks, two steps, at most two values per flag: does it work?")
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
        own = flag[2:].replace("-", "_") in ("seed", "from", *NOT_SETTINGS)
        refuse(own, f"{flag}: the sweep sets it for every run; leave it out (--seeds gives the seeds)")
    return dict(zip(flags, values))


def parse(argv):
    """sweep.py's own arguments, the files or arms that are named, and train.py's flags: flag -> values."""
    args, words = build_parser().parse_known_args(argv)
    kind = args.kind
    names = list(itertools.takewhile(lambda word: not word.startswith("--"), words)) if SWEEPS[kind].names else []
    given = pair_up(words[len(names) :])
    refuse(args.against and kind != "table1", "--against goes with table1; leave it out")
    refuse(args.seeds and kind == "published", "--seeds: published gives every draw a seed of its own; leave it out")
    refuse(args.quick and kind not in QUICK, f"--quick goes with {', '.join(QUICK)}; leave it out")
    short = args.smoke or args.quick
    args.seeds = args.seeds or ("0" if short else SWEEPS[kind].seeds).split(",")
    # flags of all runs; one thread: equal results however many jobs
    args.own = {"--data": DEFAULTS["--data"], "--threads": "1"} if kind != "grid" else {}
    folder = "runs/smoke" if args.smoke else TABLES
    args.out = Path(args.out or f"{folder}/{kind}{'_quick' if args.quick else ''}")
    return args, names, given


# ---------------------------------------------------------------- from the rows to the table
def table_text(rows, args):
    """Markdown: the notes on a sweep's rows, and its table."""
    return "\n\n".join([*notes(rows), SWEEPS[args.kind].text(rows, args)])


def publish(rows, args):
    """Write the table and draw the figures, from rows alone; print what fits a terminal, and where the rest is."""
    SWEEPS[args.kind].draw(rows, args)
    with atomic(args.out / "table.md") as temporary:
        temporary.write_text(table_text(rows, args), encoding="utf-8", newline="\n")
    figures_drawn = sorted(path.name for path in args.out.glob("*.png"))
    shown = [short_table(rows)] if SWEEPS[args.kind].text is Sweep().text else []
    files = ", ".join(["rows.csv", "table.md", *figures_drawn])
    print("\n\n".join([*notes(rows), *shown, f"saved {args.out}: {files}"]))


@contextlib.contextmanager
def interruptible():
    """Say after Ctrl-C how to go on; a sweep that is killed, or whose terminal is closed, ends like that."""
    try:
        with contextlib.ExitStack() as stack:
            for name in ("SIGTERM", "SIGHUP"):
                known = getattr(signal, name, None)  # Windows has no SIGHUP; nohup lets it be ignored
                if known and signal.getsignal(known) != signal.SIG_IGN:
                    stack.enter_context(hearing(as_ctrl_c, name))
            yield
    except KeyboardInterrupt:
        hint = "the same command goes on: finished runs have their rows, others go on from their last checkpoint"
        raise KeyboardInterrupt(f"interrupted; {hint}") from None


@command
def main(argv=None):
    args, names, given = parse(argv)
    check_writable(args.out, "--out")
    if not args.tables:
        check_writable(args.runs, "--runs")
    refuse(not importlib.util.find_spec("matplotlib"), "figures need matplotlib; run: pip install matplotlib")
    with interruptible():
        if args.tables:
            rows, path = read_rows(args.out / "rows.csv"), args.out / "rows.csv"
            refuse(not rows, f"{path}: no rows to make a table from; run the sweep first, or name its --out")
        else:
            if "bf16" in given.get("--precision", "").split(","):  # its warning: the runs' own go to their logs
                set_precision("bf16", set_up_torch(given.get("--device", "auto")))
            rows = SWEEPS[args.kind].run(names, given, args)
        publish(rows, args)
    return rows


if __name__ == "__main__":
    main()
