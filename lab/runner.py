"""Runs of train.py, planned from grids of its flags, started side by side, resumed where they stopped.

A finished run is one row of a CSV file, and what has a row there is not run again; a run that diverges keeps its row,
marked as failed. `args` are sweep.py's own arguments throughout.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import shlex
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch
from tqdm import tqdm

import evaluate
import train
from data import load_dataset
from lab.rows import METRICS, as_words, command_of, read_rows, write_rows
from model import POOLS, PRESETS, PointEncoder
from plumbing.checkpoint import save_checkpoint
from plumbing.common import UserError, read_json, stable_seed
from plumbing.reading import read_bytes
from plumbing.roots import ensure_root
from splits import make_split

SMOKE = {"--preset": "tiny", "--steps": "2", "--objects-per-batch": "4", "--threads": "1"}
DATA_FLAGS = ("--data", "--pack", "--budget", "--held-out", "--min-score", "--cache-dir")
INTERRUPTED = 130  # exit code after Ctrl-C


# ---------------------------------------------------------------- which runs


def expand(axes, smoke=False):
    """{"--k": "1,5", "--pool": "hand"} -> [{"--k": "1", "--pool": "hand"}, {"--k": "5", "--pool": "hand"}]."""
    choices = [value.split(",") for value in axes.values()]
    if smoke:  # the first and the last
        choices = [values[:1] + values[1:][-1:] for values in choices]
    return [dict(zip(axes, choice)) for choice in itertools.product(*choices)]


def plan_runs(grids, given, seeds, args):
    """Flags of every run of some grids (dicts of flag -> values): given flags beat the grid's own, seeds come last."""
    smoke = SMOKE if args.smoke else {}
    own = {}
    if args.kind != "grid":  # one thread: equal results however many jobs
        own = {"--data": "data/synthetic" if args.smoke else "data/full", "--threads": "1"}
    planned = []
    for grid in grids:
        for flags in expand(smoke | own | grid | given | smoke, args.smoke):
            if args.smoke and flags.get("--init") == "jepa":
                flags.setdefault("--jepa-ckpt", str(random_encoder(PRESETS["tiny"], args.runs)))
            if flags.get("--init") != "jepa":
                flags.pop("--jepa-ckpt", None)
            planned += [flags | {"--seed": seed} for seed in seeds]
    return planned


# ---------------------------------------------------------------- encoders


def random_encoder(config, runs):
    """Path of an encoder checkpoint of this configuration with random weights, made where it is missing."""
    path = Path(runs) / f"random-{hashlib.sha256(repr(config).encode()).hexdigest()[:6]}.pt"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed("random-encoder"))
            save_checkpoint(path, {"config": vars(config), "encoder": PointEncoder(config).state_dict()})
    return path


def encoder_file(flags):
    """Path of the encoder that a run with --init jepa starts from."""
    return flags.get("--jepa-ckpt") or train.shipped_encoder(flags.get("--preset", "small"))


def file_tag(path):
    """Eight digits of the content of a file."""
    return hashlib.sha256(read_bytes(path)).hexdigest()[:8]


def encoder_tag(flags):
    """`file_tag` of the encoder that a run starts from; "" for scratch, and for poolings without an encoder."""
    pool = POOLS.get(flags.get("--pool", "attention"))
    if flags.get("--init") != "jepa" or (pool and pool.build is None):
        return ""
    return file_tag(encoder_file(flags))


# ---------------------------------------------------------------- rows


def finished_row(flags, folder, suites):
    """The row of a finished run: its command, metrics with intervals, the baseline, time, device, origins."""
    result = read_json(folder / "result.json", "suites", "training_mean")
    summaries = {"": result["suites"]["val"]}
    if suites:
        found = read_json(folder / "suites.json", "suites")["suites"]
        summaries |= {f"{suite}_": summary for suite, summary in found.items() if suite != "val"}
    row = {"command": command_of(flags)}
    for prefix, summary in summaries.items():
        low, high = summary.get("interval_95", {}).get("top_logit_rmse", ("", ""))
        row |= {prefix + name: summary[name] for name in METRICS}
        row |= {prefix + "low_95": low, prefix + "high_95": high}
    return row | {
        "training_mean": result["training_mean"]["top_logit_rmse"],
        "best_step": result["best_step"],
        "train_objects": result["train_objects"],
        "seconds": result["seconds"],
        "device": result["device"],
        "threads": result["threads"],
        "encoder": encoder_tag(flags),
        "fingerprint": read_json(folder / "config.json")["fingerprint"],
        "failed": "",
    }


def failed_row(flags, folder, code):
    """The row of a run that diverged; any other failure is a `UserError` that names its log."""
    log = Path(f"{folder}.log")
    last = (log.read_text().strip().splitlines() or ["nothing in it"])[-1].removeprefix("error: ")
    if "is not finite" not in last:
        raise UserError(f"{log}: a run ended with code {code}: {last}")
    row = {"command": command_of(flags)} | dict.fromkeys(METRICS, "")
    return row | {"encoder": encoder_tag(flags), "failed": "diverged: " + last.partition("; ")[0]}


def save_row(path, row, order):
    """Add a row to a CSV file, in the planned order whatever ends first; order: command -> place in it."""
    rows = {old["command"]: old for old in read_rows(path)}  # read again: another sweep may have written meanwhile
    rows[row["command"]] = row
    write_rows(path, sorted(rows.values(), key=lambda row: order.get(row["command"], -1)))


# ---------------------------------------------------------------- running


def run_folder(flags, runs):
    """Folder of a run: its flags, shortened, and a hash of them and of the encoder that it starts from."""
    name = "_".join(f"{flag[2:]}-{Path(value).name}" for flag, value in flags.items())
    digest = hashlib.sha256((command_of(flags) + encoder_tag(flags)).encode()).hexdigest()[:8]
    return Path(runs) / f"{name[:100]}-{digest}"


def run_one(flags, runs, suites):
    """Train one configuration, or go on with it, then evaluate its best step on `suites`; both write to a log."""
    folder = run_folder(flags, runs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if not (folder / "result.json").exists():
            train.main([*as_words(flags), "--runs", str(folder.parent), "--name", folder.name, "--resume"])
        files = {"--json": folder / "suites.json", "--save-predictions": folder / "predictions.npz"}
        if suites and not all(path.exists() for path in files.values()):
            machine = {flag: flags[flag] for flag in ("--device", "--threads") if flag in flags}
            evaluate.main([str(folder), "--suite", *suites, *map(str, as_words(files | machine))])


def run_in_child(*arguments):
    """`run_one` in a process of its own, out of the terminal's reach: the parent passes Ctrl-C on."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_one(*arguments)


def start_child(flags, runs, suites):
    """A started process of `run_in_child`; it hears no Ctrl-C until it is in there, since it inherits that."""
    process = multiprocessing.get_context("spawn").Process(target=run_in_child, args=(flags, runs, suites), daemon=True)
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, ours)
    return process


def stop_children(processes):
    """Pass Ctrl-C on until all have ended: again and again, for one that was still importing."""
    while processes:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        wait([process.sentinel for process in processes], timeout=10)
        processes = [process for process in processes if process.is_alive()]


def runs_here(waiting, runs, suites):
    """Run one after the other in this process and yield (flags, exit code) as they end."""
    for flags in waiting:
        code = 0
        try:
            run_one(flags, runs, suites)
        except SystemExit as stop:
            code = stop.code
        yield flags, code


def runs_in_children(waiting, jobs, runs, suites):
    """Run `jobs` at a time and yield (flags, exit code) as they end; closing the generator stops them."""
    queue, running = list(waiting), []  # running: (flags, process)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                flags = queue.pop(0)
                running.append((flags, start_child(flags, runs, suites)))
            wait([process.sentinel for _, process in running])
            for flags, process in [run for run in running if not run[1].is_alive()]:
                running.remove((flags, process))
                yield flags, process.exitcode
    finally:
        stop_children([process for _, process in running if process.is_alive()])


def check_planned(planned, rows, path):
    """Every mistake shows before the first run; planned and rows: command -> flags or row."""
    for name, flags in planned.items():
        train.parse(shlex.split(name)[2:])
        if name in rows and rows[name].get("encoder") not in (None, "", encoder_tag(flags)):
            raise UserError(
                f"{path}: '{name}' started from another encoder than the one that is there now; "
                "give another --out, or move the file away"
            )


def run_all(planned, path, args, suites=(), keep=None):
    """Run what the CSV file `path` lacks of the planned runs and write a row as each ends; -> all its rows.

    suites: evaluated for each run besides val; keep(flags, folder): called before a run's row is written.
    """
    planned = {command_of(flags): flags for flags in planned}
    rows = {row["command"]: row for row in read_rows(path)}
    check_planned(planned, rows, path)
    waiting = [flags for name, flags in planned.items() if name not in rows]
    for root in dict.fromkeys(flags.get("--data", "data/synthetic") for flags in waiting):
        ensure_root(root)
    ended = runs_here(waiting, args.runs, suites)
    if args.jobs > 1:
        ended = runs_in_children(waiting, args.jobs, args.runs, suites)
    order, found, started = (
        {name: i for i, name in enumerate(planned)},
        len(planned) - len(waiting),
        time.perf_counter(),
    )
    bar = tqdm(total=len(planned), initial=found, desc=args.kind, unit="run", disable=None)
    with bar, contextlib.closing(ended):
        for count, (flags, code) in enumerate(ended, 1):
            folder = run_folder(flags, args.runs)
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code == 0 and keep:
                keep(flags, folder)
            row = failed_row(flags, folder, code) if code else finished_row(flags, folder, suites)
            save_row(path, row, order)
            (folder / "predictions.npz").unlink(missing_ok=True)  # some 30 MB; `keep` has kept its errors
            bar.update()
            if bar.disable:
                minutes = (time.perf_counter() - started) / count * (len(waiting) - count) / 60
                done = f"{found + count} of {len(planned)} runs"
                print(f"{args.kind}: {done}, about {minutes:.0f} min left", file=sys.stderr)
    return read_rows(path)


def open_data(flags, points):
    """`GraspData` and `Split` that a run with these flags would see."""
    settings = train.parse(as_words(flags))
    root = ensure_root(settings.data, settings.quiet)
    data = load_dataset(root, points, settings.min_score, settings.skip_bad, settings.cache_dir, settings.quiet)
    return data, make_split(data, settings.pack, settings.budget, settings.held_out)
