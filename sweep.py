"""Grids of trainings: one CSV row per finished run, and a table of means over seeds.

    python sweep.py grid --budget 0.1 --init jepa,scratch --seeds 0,1,2 --out results/first
    python sweep.py grid --budget 0.1 --k 1,5 --pool attention,hand --seeds 0,1,2

Any flag of train.py may follow, with several values separated by commas. A sweep that was stopped goes
on where it was; rows that its CSV already has are not run again. OUT.csv and OUT.md are written.
"""

import csv
import itertools
import shlex
import statistics
import sys
import time
from pathlib import Path

import train
from common import Parser, UserError, atomic, command, number, read_json, write_csv

METRICS = ("top_logit_rmse", "best_of_k_rmse", "selection_gap", "coverage_15", "selector_accuracy")
SMOKE = "--preset tiny --steps 2 --objects-per-batch 4 --threads 1".split()  # appended by --smoke


def build_parser():
    parser = Parser(__doc__)
    parser.add_argument("kind", choices=("grid",), help="which sweep")
    parser.add_argument("--seeds", type=numbers, default=["0"], metavar="N,N", help="training seeds, separated by commas")
    parser.add_argument("--out", default="results/grid", metavar="NAME", help="writes NAME.csv and NAME.md")
    parser.add_argument("--runs", default="runs/sweep", metavar="DIR", help="folder of the runs")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and two steps, to see that it works")
    return parser


def numbers(text):
    """An argparse type: whole numbers separated by commas, as strings again."""
    return [str(number(int, 0)(part)) for part in text.split(",")]


def expand(words):
    """["--k", "1,5", "--pool", "hand"] -> [{"--k": "1", "--pool": "hand"}, {"--k": "5", "--pool": "hand"}]."""
    flags, values = words[::2], words[1::2]
    if len(words) % 2 or not all(flag.startswith("--") for flag in flags):
        raise UserError(f"{shlex.join(words)}: after sweep.py's own flags come pairs of a flag of train.py and its values")
    return [dict(zip(flags, choice)) for choice in itertools.product(*(value.split(",") for value in values))]


def read_rows(path):
    """The rows of a sweep's CSV; [] where there is none."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def spelt(flags):
    """The command of a run, which is its identity in the CSV."""
    return "python train.py " + " ".join(f"{flag} {value}" for flag, value in flags.items())


def run_one(flags, runs, smoke):
    """Train one configuration, or read its result if it has finished; -> its result.json."""
    argv = [word for pair in flags.items() for word in pair]
    name = "_".join(f"{flag[2:]}-{Path(value).name}" for flag, value in flags.items())
    done = Path(runs) / name / "result.json"
    if not done.exists():
        train.main([*argv, *(SMOKE if smoke else []), "--runs", str(runs), "--name", name, "--resume"])
    return read_json(done)


def make_row(flags, result):
    """What the CSV keeps of a run: its command, val metrics with interval, the baseline, time and device."""
    val = result["suites"]["val"]
    low, high = val.get("interval_95", {}).get("top_logit_rmse", ("", ""))
    return {
        "command": spelt(flags),
        **{name: val[name] for name in METRICS}, "low_95": low, "high_95": high,
        "training_mean": result["training_mean"]["top_logit_rmse"], "best_step": result["best_step"],
        "train_objects": result["train_objects"], "seconds": result["seconds"],
        "device": result["device"], "threads": result["threads"],
    }  # fmt: skip


def table(rows):
    """Markdown: one line per configuration, mean ± SD (n − 1) over its seeds, all on val."""
    groups = {}
    for row in rows:
        configuration = row["command"].rpartition(" --seed ")[0].removeprefix("python train.py ")
        groups.setdefault(configuration, []).append(row)
    lines = ["| flags of train.py | seeds | top-logit RMSE (rad) | 95 % over objects, first seed | best-of-K | gap | coverage@15° | s per run |", "|---|---|---|---|---|---|---|---|"]
    mean = float(rows[0]["training_mean"])
    lines.append(f"| (training mean) | | {mean:.4f} | | {mean:.4f} | 0 | | |")
    for configuration, group in groups.items():
        cells = [spread([float(row[name]) for row in group], 3 if name == "coverage_15" else 4) for name in METRICS[:4]]
        low, high = group[0]["low_95"], group[0]["high_95"]
        cells.insert(1, f"{float(low):.3f} to {float(high):.3f}" if low else "")
        seconds = statistics.mean(float(row["seconds"]) for row in group)
        lines.append(f"| `{configuration}` | {len(group)} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def spread(values, digits):
    """Mean ± SD of at least two values, the value of one."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


@command
def main(argv=None):
    args, rest = build_parser().parse_known_args(argv)
    todo = [flags | {"--seed": seed} for flags in expand(rest) for seed in args.seeds]
    path = Path(args.out + ".csv")
    rows = read_rows(path)
    done = {row["command"] for row in rows}
    todo = [flags for flags in todo if spelt(flags) not in done]
    started = time.perf_counter()
    for i, flags in enumerate(todo):
        if i:
            left = (time.perf_counter() - started) / i * (len(todo) - i)
            print(f"run {i + 1} of {len(todo)}, about {left / 60:.0f} min left", file=sys.stderr)
        rows.append(make_row(flags, run_one(flags, args.runs, args.smoke)))
        write_csv(path, rows)
        with atomic(args.out + ".md") as temporary:
            temporary.write_text(table(rows))
    if rows:
        print(table(rows))
    return rows


if __name__ == "__main__":
    main()
