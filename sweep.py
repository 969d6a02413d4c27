"""The evidence: grids of trainings, resumed where they stopped, then tables and figures from their rows.

    python sweep.py table1                 label efficiency: budgets, initialisations, rates, packs and seeds (Table I)
    python sweep.py lr-grid                learning rates for both initialisations (Sec. IV-C)
    python sweep.py k | pool | loss        number of hypotheses, pooling, loss
    python sweep.py benchmark              is the open benchmark a good one? baselines and linear probes
    python sweep.py encoders A.pt B.pt     pretrained encoders: probes, effective ranks, fine-tuning on val
    python sweep.py grid --k 1,5 --pool attention,hand --seeds 0,1,2      any grid of train.py's flags

Any flag of train.py may follow, with values separated by commas; it beats the sweep's own. A finished run is one row
of OUT.csv, and what has a row is not run again; a run that diverges keeps its row, marked as failed. OUT.md and OUT*.png
are made from the rows alone (`--tables` does only that). The sweeps' own data is data/full, grid's is train.py's.
Everything is chosen on val; table1 also evaluates the best step of every run once on the test suites.
"""

import contextlib
import csv
import hashlib
import itertools
import math
import multiprocessing
import os
import shlex
import signal
import statistics
import sys
import textwrap
import time
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import evaluate
import train
from plumbing.common import Parser, UserError, atomic, command, number, read_json, set_up_torch, stable_seed, write_csv
from data import load_dataset, read_bytes
from model import CHOICES, NO_ENCODER, PRESETS, PointEncoder, load_encoder, save_checkpoint
from splits import make_split
from plumbing.roots import ensure_root

METRICS = ("top_logit_rmse", "best_of_k_rmse", "selection_gap", "coverage_15", "selector_accuracy")
SUITES = ("val", "test", "test_grasp", "test_category")  # of table1
PAPER = ("1e-5", "1e-3")  # learning rates of backbone and head, Sec. IV-C
PACKS = {"A": "0.01,0.1,0.25,1", "B": "0.1,0.25,1"}  # table1's budgets
TENTH = {"--budget": "0.1", "--init": "jepa"}
AXES = {  # what each sweep varies; a list of grids
    "grid": [{}],
    # the paper's six choices, a frozen backbone, and higher rates so that scratch's best is not at the edge
    "lr-grid": [TENTH | {"--init": "jepa,scratch", "--lr-backbone": "0,1e-5,7e-5,1e-4,3e-4,1e-3", "--lr-head": "1e-3,2e-3"}],
    "k": [TENTH | {"--k": "1,2,3,5,8,16"}],
    "pool": [TENTH | {"--pool": ",".join(CHOICES["pool"])}],
    "loss": [TENTH | {"--loss": ",".join(CHOICES["loss"])}],
    "benchmark": [{"--budget": "0.1,1", "--pool": "none"}, {"--budget": "0.1,1", "--init": "jepa", "--pool": "attention,hand", "--k": "5,1"}],
    "encoders": [TENTH],
}  # fmt: skip
SEEDS = {"table1": "0,1,2", "benchmark": "0,1", "encoders": "0,1"}  # others: 0
DATA_FLAGS = ("--data", "--pack", "--budget", "--held-out", "--min-score", "--cache-dir")
SMOKE = {"--preset": "tiny", "--steps": "2", "--objects-per-batch": "4", "--threads": "1"}


def build_parser():
    parser = Parser(__doc__)
    parser.add_argument("kind", choices=("table1", *AXES), help="which sweep")
    parser.add_argument("--seeds", type=numbers, metavar="N,N", help="training seeds (default: 0; table1 0,1,2; benchmark and encoders 0,1)")
    parser.add_argument("--budgets", metavar="F,F", help="the same as --budget F,F")
    parser.add_argument("--out", metavar="NAME", help="writes NAME.csv, NAME.md, NAME.png … (default: results/KIND; with --smoke runs/smoke/KIND)")
    parser.add_argument("--runs", default="runs/sweep", metavar="DIR", help="folder of the runs and their logs")
    parser.add_argument("--jobs", type=number(int, 1), default=1, metavar="N", help="runs side by side, each in a process of its own if over 1")
    parser.add_argument("--rates", metavar="NAME", help="table1: where the trials of its learning rates lie (default: lr-grid beside --out)")
    parser.add_argument("--against", metavar="NAME", help="table1: another table1, to be compared with object by object")
    parser.add_argument("--tables", action="store_true", help="run nothing: tables and figures from the rows that are there")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, two steps, at most two values per flag, one seed: does it work?")
    return parser


def numbers(text):
    """An argparse type: whole numbers separated by commas, as strings again."""
    return [str(number(int, 0)(part)) for part in text.split(",")]


# ---------------------------------------------------------------- which runs


def pairs(words):
    """["--k", "1,5", "--pool", "hand"] -> {"--k": "1,5", "--pool": "hand"}."""
    flags, values = words[::2], words[1::2]
    if len(words) % 2 or not all(flag.startswith("--") for flag in flags):
        raise UserError(f"{shlex.join(words)}: after sweep.py's own flags come pairs of a flag of train.py and its values")
    for flag in flags:
        if flag[2:] in ("seed", *train.NOT_SETTINGS):
            raise UserError(f"{flag}: the sweep sets it for every run; leave it out (--seeds gives the seeds)")
    return dict(zip(flags, values))


def expand(axes, smoke=False):
    """{"--k": "1,5", "--pool": "hand"} -> [{"--k": "1", "--pool": "hand"}, {"--k": "5", "--pool": "hand"}]."""
    choices = [value.split(",") for value in axes.values()]
    if smoke:
        choices = [values[:1] + values[1:][-1:] for values in choices]
    return [dict(zip(axes, choice)) for choice in itertools.product(*choices)]


def plan(grids, given, seeds, args):
    """Flags of every run of some grids (dicts of flag -> values): given flags beat the sweep's own, seeds come last."""
    smoke = SMOKE if args.smoke else {}
    data = "data/synthetic" if args.smoke else "data/full"
    own = {} if args.kind == "grid" else {"--data": data, "--threads": "1"}  # one thread: equal results however many jobs
    found = []
    for axes in grids:
        for flags in expand(smoke | own | axes | given | smoke, args.smoke):
            if args.smoke and flags.get("--init") == "jepa":
                flags.setdefault("--jepa-ckpt", str(random_encoder(PRESETS["tiny"], args.runs)))
            if flags.get("--init") != "jepa":
                flags.pop("--jepa-ckpt", None)
            found += [flags | {"--seed": seed} for seed in seeds]
    return found


def plan_table1(given, rates, args):
    """table1's runs at `rates` (init -> pairs); --init and --pack choose among its own; every seed of the first before the next."""
    found = []
    for pack in given.get("--pack", "A,B").split(","):
        for init in given.get("--init", "jepa,scratch").split(","):
            for backbone, head in rates[init]:
                own = {"--pack": pack, "--init": init, "--lr-backbone": backbone, "--lr-head": head}
                found += plan([{"--budget": PACKS.get(pack, "1")}], given | own, args.seeds, args)
    return sorted(found, key=lambda flags: args.seeds.index(flags["--seed"]))


def rates_in(row):
    """Initialisation of a row, and its rates (backbone, head) as they are spelt."""
    flags = flags_of(row)
    return flags["--init"], (flags["--lr-backbone"], flags["--lr-head"])


def best_rates(rows):
    """Initialisation -> rates of its trial with the lowest val RMSE; nothing without trials."""
    finished = [row for row in rows if row["top_logit_rmse"]]
    return dict(rates_in(row) for row in sorted(finished, key=lambda row: -float(row["top_logit_rmse"])))  # the last wins


def rates_of_table1(given, out, args):
    """Initialisation -> its pairs of rates: the given one, or the paper's and the best of its trials, which run here."""
    inits, fixed = given.get("--init", "jepa,scratch").split(","), [given.get(flag) for flag in ("--lr-backbone", "--lr-head")]
    if any(fixed):
        if not all(fixed) or "," in "".join(fixed):
            raise UserError("table1 takes one --lr-backbone and one --lr-head, or neither and runs its trials")
        return {init: [tuple(fixed)] for init in inits}
    shared = {flag: value for flag, value in given.items() if flag not in ("--budget", "--pack")}
    trials = plan(AXES["lr-grid"], shared, args.seeds[:1], args)
    done = run_all(trials, args.rates or str(Path(out).with_name("lr-grid")), args)
    best = best_rates([row for row in done if row["command"] in {spelt(flags) for flags in trials}])
    return {init: list(dict.fromkeys((PAPER, best.get(init, PAPER)))) for init in inits}


def random_encoder(config, runs):
    """Path of an encoder checkpoint of this configuration with random weights, made where it is missing."""
    path = Path(runs) / f"random-{hashlib.sha256(repr(config).encode()).hexdigest()[:6]}.pt"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed("random-encoder"))
            save_checkpoint(path, {"config": vars(config), "encoder": PointEncoder(config).state_dict()})
    return path


# ---------------------------------------------------------------- rows


def spelt(flags):
    """The command of a run, which is its identity in the CSV."""
    return "python train.py " + shlex.join(itertools.chain(*flags.items()))


def flags_of(row):
    """The flags in a row's command, without the seed: flag -> value."""
    words = shlex.split(row["command"])
    words = words[next((i for i, word in enumerate(words) if word.startswith("--")), len(words)) :]
    return {flag: value for flag, value in zip(words[::2], words[1::2]) if flag != "--seed"}


def read_rows(path, key="command"):
    """The rows of a sweep's CSV; [] where there is none."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not all(row.get(key) for row in rows):
        raise UserError(f"{path}: not a table that this sweep wrote (no column '{key}'); give another --out")
    return rows


def save_rows(path, rows):
    """Write rows whose columns may differ; a missing value stays empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    write_csv(path, [{name: row.get(name, "") for name in columns} for row in rows])


def encoder_file(flags):
    """Path of the encoder that a run with --init jepa starts from."""
    return flags.get("--jepa-ckpt") or train.shipped_encoder(flags.get("--preset", "small"))


def encoder_tag(flags):
    """Eight digits of the content of the encoder that a run starts from, "" for scratch."""
    if flags.get("--init") != "jepa" or flags.get("--pool") in NO_ENCODER:
        return ""
    return hashlib.sha256(read_bytes(encoder_file(flags))).hexdigest()[:8]


def make_row(flags, folder, suites):
    """What the CSV keeps of a finished run: its command, metrics with intervals, the baseline, time, device, origins."""
    result = read_json(folder / "result.json", "suites", "training_mean")
    reports = {"": result["suites"]["val"]}
    if suites:
        reports |= {f"{s}_": report for s, report in read_json(folder / "suites.json", "suites")["suites"].items() if s != "val"}
    row = {"command": spelt(flags)}
    for prefix, report in reports.items():
        low, high = report.get("interval_95", {}).get("top_logit_rmse", ("", ""))
        row |= {prefix + name: report[name] for name in METRICS} | {prefix + "low_95": low, prefix + "high_95": high}
    return row | {
        "training_mean": result["training_mean"]["top_logit_rmse"], "best_step": result["best_step"],
        "train_objects": result["train_objects"], "seconds": result["seconds"],
        "device": result["device"], "threads": result["threads"],
        "encoder": encoder_tag(flags), "fingerprint": read_json(folder / "config.json")["fingerprint"], "failed": "",
    }  # fmt: skip


def keep_details(out, flags, folder):
    """table1: the run's validation curve into OUT_curves.csv, its errors per object into OUT_objects.npz."""
    name = spelt(flags)
    curve = [{"command": name} | {c: row[c] for c in ("step", "train_loss", "val_top_logit_rmse")} for row in read_rows(folder / "metrics.csv", "step")]
    save_rows(out + "_curves.csv", [row for row in read_rows(out + "_curves.csv") if row["command"] != name] + curve)
    errors = read_errors(out)
    predictions = evaluate.read_predictions(folder / "predictions.npz")
    for suite in ("val", "test", "test_category"):
        part = {key: array[predictions["suite"] == suite] for key, array in predictions.items()}
        if len(part["logits"]):
            errors[name, suite] = evaluate.per_object(part)
    commands, sizes = sorted({run for run, _ in errors}), [len(ids) for ids, _, _ in errors.values()]
    with atomic(out + "_objects.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, commands=commands, run=np.repeat([commands.index(run) for run, _ in errors], sizes),
            suite=np.repeat([suite for _, suite in errors], sizes),
            **{key: np.concatenate([e[i] for e in errors.values()]) for i, key in enumerate(("object", "grasps", "squared_error"))},
        )  # fmt: skip


def read_errors(out):
    """(command, suite) -> (objects, grasps, mean squared errors of the top logit in rad²), of OUT_objects.npz."""
    path = Path(out + "_objects.npz")
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        errors = {}
        for run, suite in sorted(set(zip(arrays["run"].tolist(), arrays["suite"].tolist()))):
            rows = (arrays["run"] == run) & (arrays["suite"] == suite)
            errors[str(arrays["commands"][run]), suite] = tuple(arrays[key][rows] for key in ("object", "grasps", "squared_error"))
        return errors
    except Exception:  # numpy, zipfile and zlib raise whatever they meet
        raise UserError(f"{path}: not what table1 wrote; restore it, or give another --out") from None


# ---------------------------------------------------------------- running


def place(flags, runs):
    """Folder of a run: its flags, shortened, and a hash of them and of the encoder that it starts from."""
    name = "_".join(f"{flag[2:]}-{Path(value).name}" for flag, value in flags.items())
    return Path(runs) / f"{name[:100]}-{hashlib.sha256((spelt(flags) + encoder_tag(flags)).encode()).hexdigest()[:8]}"


def run_one(flags, runs, suites):
    """Train one configuration, or go on with it, then evaluate its best step on `suites`; both write to a log."""
    folder = place(flags, runs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if not (folder / "result.json").exists():
            train.main([*itertools.chain(*flags.items()), "--runs", str(folder.parent), "--name", folder.name, "--resume"])
        files = {"--json": folder / "suites.json", "--save-predictions": folder / "predictions.npz"}
        if suites and not all(path.exists() for path in files.values()):
            machine = {flag: flags[flag] for flag in ("--device", "--threads") if flag in flags}
            evaluate.main([str(folder), "--suite", *suites, *map(str, itertools.chain(*files.items(), *machine.items()))])


def child(*arguments):
    """`run_one` in a process of its own, out of the terminal's reach: the parent passes Ctrl-C on."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_one(*arguments)


def ended(waiting, args, suites):
    """Run everything, `--jobs` at a time, and yield (flags, exit code) as runs end; stops them when it is closed."""
    if args.jobs == 1:
        for flags in waiting:
            code = 0
            try:
                run_one(flags, args.runs, suites)
            except SystemExit as stop:
                code = stop.code
            yield flags, code
        return
    context, queue, running = multiprocessing.get_context("spawn"), list(waiting), []
    try:
        while queue or running:
            while queue and len(running) < args.jobs:
                process = context.Process(target=child, args=(queue[0], args.runs, suites), daemon=True)
                ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a child hears nothing until it is in `child`
                process.start()
                signal.signal(signal.SIGINT, ours)
                running.append((queue.pop(0), process))
            wait([process.sentinel for _, process in running])
            for flags, process in [run for run in running if not run[1].is_alive()]:
                running.remove((flags, process))
                yield flags, process.exitcode
    finally:
        while any(process.is_alive() for _, process in running):  # again and again, for one that was still importing
            for _, process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
            wait([process.sentinel for _, process in running], timeout=10)
            running = [run for run in running if run[1].is_alive()]


def run_all(todo, out, args, suites=()):
    """Run what OUT.csv lacks of `todo` and write a row as each run ends; -> all rows of OUT.csv."""
    path, todo = Path(out + ".csv"), {spelt(flags): flags for flags in todo}
    rows = {row["command"]: row for row in read_rows(path)}
    for name, flags in todo.items():
        train.parse(shlex.split(name)[2:])  # every mistake shows before the first run
        if name in rows and rows[name].get("encoder") not in (None, "", encoder_tag(flags)):
            raise UserError(f"{path}: '{name}' started from another encoder than the one that is there now; give another --out, or move the file away")
    waiting = [] if args.tables else [flags for name, flags in todo.items() if name not in rows]
    for root in dict.fromkeys(flags.get("--data", "data/synthetic") for flags in waiting):
        ensure_root(root)
    order, started = {name: i for i, name in enumerate(todo)}, time.perf_counter()
    bar = tqdm(total=len(todo), initial=len(todo) - len(waiting), desc=path.stem, unit="run", disable=None)
    with bar, contextlib.closing(ended(waiting, args, suites)) as runs:
        for count, (flags, code) in enumerate(runs, 1):
            folder, name = place(flags, args.runs), spelt(flags)
            if code == 130:
                raise KeyboardInterrupt
            if code:
                last = (Path(f"{folder}.log").read_text().strip().splitlines() or ["nothing in it"])[-1]
                if "is not finite" not in last:
                    raise UserError(f"{folder}.log: a run ended with code {code}: {last.removeprefix('error: ')}")
                rows[name] = {"command": name} | dict.fromkeys(METRICS, "") | {"encoder": encoder_tag(flags), "failed": "diverged: " + last.partition("; ")[0].removeprefix("error: ")}
            else:
                if suites:
                    keep_details(out, flags, folder)
                rows[name] = make_row(flags, folder, suites)
            rows = {row["command"]: row for row in read_rows(path)} | rows  # another sweep may have written meanwhile
            rows = dict(sorted(rows.items(), key=lambda item: order.get(item[0], -1)))  # as planned, whatever ends first
            save_rows(path, list(rows.values()))
            (folder / "predictions.npz").unlink(missing_ok=True)  # some 30 MB, and its errors are kept
            bar.update()
            if bar.disable:
                left = (time.perf_counter() - started) / count * (len(waiting) - count) / 60
                print(f"{path.stem}: {len(todo) - len(waiting) + count} of {len(todo)} runs, about {left:.0f} min left", file=sys.stderr)
    return read_rows(path)


# ---------------------------------------------------------------- what is not a training


def open_data(flags, points):
    """`GraspData` and `Split` that a run with these flags would see."""
    settings = train.parse([*itertools.chain(*flags.items())])
    root = ensure_root(settings.data, settings.quiet)
    data = load_dataset(root, points, settings.min_score, settings.skip_bad, settings.cache_dir, settings.quiet)
    return data, make_split(data, settings.pack, settings.budget, settings.held_out)


def probe_row(file, name, flags):
    """A pretrained encoder's row: its linear probe on val and effective ranks; `name` stands for the file."""
    encoder = load_encoder(file)
    data, split = open_data({flag: value for flag, value in flags.items() if flag in DATA_FLAGS}, encoder.config.points)
    return {"file": name, "encoder": encoder_tag({"--init": "jepa", "--jepa-ckpt": str(file)})} | evaluate.probe(encoder, data, split)


def add_baselines(rows, todo, out, args):
    """benchmark's rows without a network, and OUT_probe.csv: the encoder of its runs beside a random one."""
    rows = {row["command"]: row for row in rows}
    for flags in todo:
        own = {flag: value for flag, value in flags.items() if flag in DATA_FLAGS}
        name = "nearest training grasp " + shlex.join(itertools.chain(*own.items()))
        if name not in rows:
            data, split = open_data(own, PRESETS[flags.get("--preset", "small")].points)
            report = evaluate.report(evaluate.nearest_predictions(data, split.rows["train"], split.rows["val"]))
            mean = evaluate.report(evaluate.constant_predictions(data, split.rows["train"], split.rows["val"]))
            low, high = report["interval_95"].get("top_logit_rmse", ("", ""))
            rows[name] = {"command": name} | {metric: report[metric] for metric in METRICS} | {
                "low_95": low, "high_95": high, "training_mean": mean["top_logit_rmse"],
                "train_objects": len(split.suites["train"]), "fingerprint": data.fingerprint,
            }  # fmt: skip
            save_rows(out + ".csv", list(rows.values()))
    encoder_flags = next((flags for flags in todo if encoder_tag(flags)), None)
    if encoder_flags:
        file = encoder_file(encoder_flags)
        random = random_encoder(load_encoder(file).config, args.runs)
        save_rows(out + "_probe.csv", [probe_row(random, "random", encoder_flags), probe_row(file, Path(file).name, encoder_flags)])
    return read_rows(out + ".csv")


def run_encoders(files, given, args, out):
    """Probe and fine-tune every given encoder and a random one; a row of OUT.csv each, with the pretraining's command."""
    if not files:
        raise UserError("encoders: name at least one pretrained encoder, FILE.pt")
    path = out + ".csv"
    for file in [str(random_encoder(load_encoder(files[0]).config, args.runs)), *files]:
        name = file if file in files else "random"
        todo = plan(AXES["encoders"], given | {"--jepa-ckpt": file}, args.seeds, args)
        todo = [{flag: value for flag, value in flags.items() if flag != "--preset"} for flags in todo]  # the file's own
        rows = {(row["file"], row["encoder"]): row for row in read_rows(path, "file")}
        budgets = list(dict.fromkeys(flags["--budget"] for flags in todo))
        old = rows.get((name, encoder_tag(todo[0])), {})
        seen = set(old.get("seeds", "").split())
        if args.tables or seen >= set(args.seeds) and all(old.get(f"rmse_{budget}") for budget in budgets):
            continue
        old = old if seen == set(args.seeds) else {}  # a row's means are all over the same seeds
        card = Path(file).with_suffix(".json")
        card = read_json(card) if name != "random" and card.exists() else {}
        row = old | probe_row(file, name, todo[0]) | {"seeds": " ".join(args.seeds)}
        runs = {row["command"]: row for row in run_all(todo, out + "_runs", args)}
        for budget in budgets:
            values = [runs[spelt(flags)]["top_logit_rmse"] for flags in todo if flags["--budget"] == budget]
            values = [float(value) for value in values if value != ""]
            row[f"rmse_{budget}"] = statistics.mean(values) if values else "diverged"
            row[f"rmse_{budget}_sd"] = statistics.stdev(values) if len(values) > 1 else ""
        row |= {"clouds_seen": card.get("clouds_seen", ""), "seconds": card.get("seconds", ""), "command": card.get("command", "")}
        rows[name, row["encoder"]] = row
        save_rows(path, list(rows.values()))
    return read_rows(path, "file")


# ---------------------------------------------------------------- tables


def spread(values, digits):
    """Mean ± SD (n - 1) of at least two values, the value of one, a dash for none."""
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def cells(rows, prefix=""):
    """Four cells of a table: top-logit RMSE, best-of-K, gap, coverage@15° of runs; diverged ones are left out."""
    ok = [row for row in rows if row.get(prefix + METRICS[0])]
    return [spread([float(row[prefix + name]) for row in ok], 3 if name == "coverage_15" else 4) for name in METRICS[:4]]


def count_runs(rows):
    """How many runs a line stands for, and how many of them diverged."""
    failed = sum(bool(row.get("failed")) for row in rows)
    return f"{len(rows)}" + (f" ({failed} diverged)" if failed else "")


def markdown(header, lines):
    """A Markdown table of cells."""
    rows = [header.split("|"), ["---"] * (header.count("|") + 1), *lines]
    return "\n".join("| " + " | ".join(str(cell).strip() for cell in row) + " |" for row in rows) + "\n"


def rounded(text):
    """A cell of a CSV for the eye: four decimals of what is not whole, other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if value == round(value, 1) or not math.isfinite(value) else f"{value:.4f}"


def configurations(rows):
    """Rows by what their commands do not share, seeds together, and the flags that they all share as text."""
    groups = {}
    for row in rows:
        groups.setdefault((row["command"].partition(" --")[0], tuple(flags_of(row).items())), []).append(row)
    trained = [set(items) for kind, items in groups if kind == "python train.py"]
    shared = set.intersection(*trained) if len(trained) > 1 else set()
    text = " ".join(f"{flag} {value}" for flag, value in flags_of(rows[0]).items() if (flag, value) in shared)
    named = {}
    for (kind, items), group in groups.items():
        own = " ".join(f"{flag} {value}" for flag, value in items if (flag, value) not in shared)
        named[(f"`{own}`" if own else "these") if kind == "python train.py" else f"({kind}) `{own}`"] = group
    return named, text


def table(rows):
    """Markdown: one line per configuration, mean ± SD (n − 1) over its seeds, all on val."""
    groups, shared = configurations(rows)
    lines = []
    means = {(flags_of(row).get("--budget", "1"), f"{float(row['training_mean']):.4f}") for row in rows if row.get("training_mean")}
    for budget, mean in sorted(means):
        lines.append([f"(training mean, budget {budget})", "", mean, "", mean, "0.0000", "", ""])
    for name, group in groups.items():
        low, high = group[0].get("low_95"), group[0].get("high_95")
        rmse, *others = cells(group)
        seconds = [float(row["seconds"]) for row in group if row.get("seconds")]
        interval = f"{float(low):.3f} to {float(high):.3f}" if low else ""
        lines.append([name, count_runs(group), rmse, interval, *others, f"{statistics.mean(seconds):.0f}" if seconds else ""])
    header = "flags of train.py | seeds | top-logit RMSE (rad) | 95 % over objects, first seed | best-of-K | gap | coverage@15° | s per run"
    return (f"All runs: `{shared}`\n\n" if shared else "") + markdown(header, lines)


def own_best(rows):
    """Initialisation -> the rates that table1's rows have besides the paper's; the paper's if those were best."""
    found = sorted(map(rates_in, rows), key=lambda item: item[1] != PAPER)
    return dict(found)  # the last wins


def arms(rows):
    """table1's rows by (pack, budget, rates, init): each pack apart, and both where both have the budget."""
    groups, best = {}, own_best(rows)
    for row in rows:
        flags, (init, rates) = flags_of(row), rates_in(row)
        for label in ["paper's"] * (rates == PAPER) + ["own best"] * (rates == best[init]):
            for pack in (flags["--pack"], "A and B"):
                groups.setdefault((pack, float(flags["--budget"]), label, init), []).append(row)
    both = {key for key, group in groups.items() if len({flags_of(row)["--pack"] for row in group}) > 1}
    keys = [key for key in groups if key[0] != "A and B" or key in both]
    return {key: groups[key] for key in sorted(keys, key=lambda key: (len(key[0]), key[0], key[1], key[2] != "paper's", key[3]))}


def averaged(errors, rows, suite):
    """Objects, grasps and squared errors of some runs: averaged over seeds within a pack, then the packs in a row."""
    packs = {}
    for row in rows:
        if (row["command"], suite) in errors:
            packs.setdefault(flags_of(row)["--pack"], []).append(errors[row["command"], suite])
    parts = [(runs[0][0], runs[0][1], np.mean([run[2] for run in runs], axis=0)) for _, runs in sorted(packs.items())]
    return [np.concatenate(column) for column in zip(*parts)]


def improvement(new, old):
    """Cells for by how much `new` beats `old` (both from `averaged`), in %, with the interval; None if not comparable."""
    if not new or not old or not np.array_equal(new[0], old[0]):
        return None
    percent = [f"{100 * value:.1f}" for value in evaluate.paired_improvement(new[2], old[2], new[1], new[0])]
    return [percent[0], "" if percent[1] == "nan" else f"{percent[1]} to {percent[2]}"]


def scratch_as_jepa(groups):
    """The arms from scratch under the keys of those that they are to be compared with."""
    return {(*key[:3], "jepa"): group for key, group in groups.items() if key[3] == "scratch"}


def table1_text(rows, out, against):
    """table1 as Markdown: a table per suite, then relative improvements with paired intervals."""
    groups, errors = arms(rows), read_errors(out)
    text = ["Own best rates (backbone, head): " + "; ".join(f"{init} {', '.join(pair)}" for init, pair in own_best(rows).items()) + "\n"]
    for suite in SUITES:
        prefix = "" if suite == "val" else f"{suite}_"
        lines = [[pack, f"{budget:g}", label, init, count_runs(group), *cells(group, prefix)] for (pack, budget, label, init), group in groups.items()]
        text.append(f"## {suite}\n\n" + markdown("pack | budget | rates | init | runs | top-logit RMSE (rad) | best-of-K | gap | coverage@15°", lines))
    comparisons = {"jepa over scratch": (errors, scratch_as_jepa(groups))}
    if against:
        others, name = arms(read_rows(against + ".csv")), Path(against).name
        if not others:
            raise UserError(f"--against {against}: no {against}.csv there; give the --out of another table1")
        comparisons[f"over {name}"] = read_errors(against), others
        if not scratch_as_jepa(groups):  # one scratch serves all encoders
            comparisons[f"jepa over scratch of {name}"] = read_errors(against), scratch_as_jepa(others)
    for name, (old_errors, old) in comparisons.items():
        lines = []
        for suite in ("val", "test", "test_category"):
            for key, group in groups.items():
                found = key in old and improvement(averaged(errors, group, suite), averaged(old_errors, old[key], suite))
                if found:
                    pack, budget, label, init = key
                    lines.append([suite, pack, f"{budget:g}", label, init, *found])
        if lines:
            text.append(f"## Relative improvement of top-logit RMSE {name}, %\n\n" + markdown("suite | pack | budget | rates | init | % | 95 % over objects", lines))
    return "\n".join(text)


# ---------------------------------------------------------------- figures


def draw_rows(rows, path):
    """Top-logit and best-of-K RMSE of every configuration, mean ± SD over seeds."""
    from matplotlib.figure import Figure

    groups, shared = configurations(rows)
    figure = Figure(figsize=(9, 2 + 0.4 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for name, marker, color in (("top_logit_rmse", "o", "C0"), ("best_of_k_rmse", "s", "C2")):
        values = [[float(row[name]) for row in group if row[name] != ""] or [math.nan] for group in groups.values()]
        errors = [statistics.stdev(v) if len(v) > 1 else 0 for v in values]
        axes.errorbar([statistics.mean(v) for v in values], range(len(groups)), xerr=errors, fmt=marker, color=color, label=name.replace("_", " "))
    axes.set_yticks(range(len(groups)), [textwrap.fill(name.replace("`", ""), 55, break_on_hyphens=False) for name in groups], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="RMSE on val (rad), mean and SD over seeds")
    figure.suptitle("\n".join(textwrap.wrap(shared, 120)), fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def style(label, init):
    """Line style of one arm of table1."""
    return {"color": "C0" if init == "jepa" else "C1", "linestyle": "--" if label == "paper's" else "-", "label": f"{init}, {label} rates"}


def draw_budgets(groups, columns, path):
    """One row of panels per pack, one panel per (column, title): against the budget, mean ± SD over seeds."""
    from matplotlib.figure import Figure

    packs = sorted({key[0] for key in groups} - {"A and B"})
    figure = Figure(figsize=(5.5 * len(columns), 3.8 * len(packs)), layout="constrained")
    for axes_row, pack in zip(figure.subplots(len(packs), len(columns), squeeze=False), packs):
        for axes, (column, title) in zip(axes_row, columns):
            for label, init in sorted({key[2:] for key in groups}):
                arm = {key[1]: [float(row[column]) for row in group if row.get(column)] for key, group in groups.items() if (key[0], *key[2:]) == (pack, label, init)}
                arm = {100 * budget: values for budget, values in sorted(arm.items()) if values}
                means, sds = map(statistics.mean, arm.values()), [statistics.stdev(v) if len(v) > 1 else 0 for v in arm.values()]
                axes.errorbar(list(arm), list(means), yerr=sds, capsize=3, marker="o", markersize=4, **style(label, init))
            axes.set(xscale="log", xlabel="share of the training objects (%)", ylabel=title, title=f"pack {pack}")
            axes.set_xticks(ticks := sorted({100 * key[1] for key in groups}), [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


def draw_curves(groups, curves, path):
    """Validation RMSE against the step, a panel per pack and budget, a line per run: have they flattened?"""
    from matplotlib.figure import Figure

    points = {}
    for row in curves:
        points.setdefault(row["command"], []).append((int(row["step"]), float(row["val_top_logit_rmse"])))
    packs, budgets = sorted({key[0] for key in groups} - {"A and B"}), sorted({key[1] for key in groups})
    figure = Figure(figsize=(4 * len(budgets), 3.4 * len(packs)), layout="constrained")
    panels, lines = figure.subplots(len(packs), len(budgets), squeeze=False, sharex=True), {}
    for (pack, budget, label, init), group in groups.items():
        if pack in packs:
            axes = panels[packs.index(pack), budgets.index(budget)]
            for row in group:
                (line,) = axes.plot(*zip(*points.get(row["command"], [(0, math.nan)])), linewidth=0.9, **style(label, init))
                lines[line.get_label()] = line
            axes.set(title=f"pack {pack}, {100 * budget:g} %", xlabel="step", ylabel="val top-logit RMSE (rad)")
    for axes in panels.flat:
        axes.set_visible(axes.has_data())
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


# ---------------------------------------------------------------- command line


def publish(rows, out, args):
    """Write and print the tables, and draw the figures, from rows alone."""
    if args.kind == "encoders":
        shown = [name for name in rows[0] if name != "encoder"]
        text = markdown("|".join(shown), [[rounded(row[name]) for name in shown] for row in rows])
    elif args.kind == "table1":
        text, groups = table1_text(rows, out, args.against), arms(rows)
        draw_budgets(groups, [("top_logit_rmse", "val top-logit RMSE (rad)"), ("test_top_logit_rmse", "test top-logit RMSE (rad)")], out + "_efficiency.png")
        draw_budgets(groups, [("test_coverage_15", "test coverage@15°"), ("test_selection_gap", "test selection gap (rad)")], out + "_coverage_gap.png")
        draw_curves(groups, read_rows(out + "_curves.csv"), out + "_curves.png")
    else:
        text = table(rows)
        probes = read_rows(out + "_probe.csv", "file") if args.kind == "benchmark" else []
        if probes:
            lines = [[row["file"], *(f"{float(row[f'probe_{n}']):.3f} ({row[f'categories_{n}']} categories)" for n in (2, 5, 20))] for row in probes]
            text += "\nLinear probe of frozen features for the category, accuracy on val:\n\n" + markdown("encoder | objects per category: 2 | 5 | 20", lines)
        draw_rows(rows, out + ".png")
    with atomic(out + ".md") as temporary:
        temporary.write_text(text)
    print(text)


@command
def main(argv=None):
    args, words = build_parser().parse_known_args(argv)
    files = list(itertools.takewhile(lambda word: not word.startswith("--"), words)) if args.kind == "encoders" else []
    given = pairs(words[len(files) :])
    if args.kind != "table1" and (args.rates or args.against):
        raise UserError("--rates and --against go with table1; leave them out")
    if args.budgets:
        given["--budget"] = args.budgets
    if not args.tables and "bf16" in given.get("--precision", "").split(","):
        set_up_torch(given.get("--device", "auto"), precision="bf16")  # its warning: the runs' own go to their logs
    args.seeds = args.seeds or ("0" if args.smoke else SEEDS.get(args.kind, "0")).split(",")
    out = args.out or (f"runs/smoke/{args.kind}" if args.smoke else f"results/{'pretraining' if args.kind == 'encoders' else args.kind}")
    for signum in (signal.SIGTERM, signal.SIGHUP):  # a killed sweep stops its runs too; nohup's choice stands
        if args.jobs > 1 and signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, signal.default_int_handler)

    if args.kind == "encoders":
        rows = run_encoders(files, given, args, out)
    elif args.kind == "table1":
        rows = run_all(plan_table1(given, rates_of_table1(given, out, args), args), out, args, SUITES)
    else:
        todo = plan(AXES[args.kind], given, args.seeds, args)
        rows = run_all(todo, out, args)
        if args.kind == "benchmark" and not args.tables:
            rows = add_baselines(rows, todo, out, args)
    if rows:
        publish(rows, out, args)
    return rows


if __name__ == "__main__":
    main()
