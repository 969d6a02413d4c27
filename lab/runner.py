"""Runs of train.py, planned from grids of its flags, started side by side, resumed where they stopped.

A finished run is one row of a CSV file, and what has a row there is not run again; a run that diverges keeps its row,
marked as failed. Several sweeps may share runs and rows: each run is one process's at a time, the others wait for it.
`args` are sweep.py's own arguments throughout.
"""

import collections
import contextlib
import dataclasses
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
from typing import NamedTuple

import torch
from tqdm import tqdm

import evaluate
import train
from benchmark.roots import DEFAULT_ROOTS, ensure_root, recorded
from cli.errors import UserError
from data import load_dataset
from files.checkpoints import save_checkpoint, shipped_encoder
from files.reading import read_bytes
from files.writing import locked, read_json, stable_seed
from lab.rows import (
    COSTS,
    DEFAULTS,
    HOLDS,
    METRICS,
    TRAINING,
    as_words,
    command_of,
    dataset_of,
    read_rows,
    write_rows,
)  # fmt: skip
from model import PRESETS, PointEncoder
from splits import make_split

SMOKE = {"--preset": "tiny", "--steps": "2", "--objects-per-batch": "4", "--threads": "1"}
DATA_FLAGS = ("--data", "--pack", "--budget", "--held-out", "--min-score", "--cache-dir")
PRETRAINED = ("jepa", "oracle")  # values of --init that start from a file
INTERRUPTED, BUSY = 130, 75  # exit codes of a run: after Ctrl-C; another process has it
PAUSE = 2  # s between looks at whether another sweep has ended a run
BUSY_PAUSE = 30  # s before a run is tried again that somebody trains without a sweep


# ---------------------------------------------------------------- which runs


def expand(axes, smoke=False):
    """{"--k": "1,5", "--pool": "hand"} -> [{"--k": "1", "--pool": "hand"}, {"--k": "5", "--pool": "hand"}]."""
    choices = [value.split(",") for value in axes.values()]
    if smoke:  # the first and the last
        choices = [values[:1] + values[1:][-1:] for values in choices]
    return [dict(zip(axes, choice)) for choice in itertools.product(*choices)]


def plan_runs(grids, given, seeds, args):
    """Flags of every run of some grids (dicts of flag -> values): given flags beat the grid's own, seeds come last.

    `args.own` are the flags that the sweep gives all of its runs.
    """
    smoke = SMOKE if args.smoke else {}
    planned = []
    for grid in grids:
        for flags in expand(smoke | args.own | grid | given | smoke, args.smoke):
            if args.smoke and flags.get("--init") == "jepa":
                flags.setdefault("--jepa-ckpt", str(random_encoder(PRESETS["tiny"], args.runs)))
            if flags.get("--init") not in PRETRAINED:
                flags.pop("--jepa-ckpt", None)
            planned += [flags | {"--seed": seed} for seed in seeds]
    return planned


def choose(names, known, kind):
    """The entries of a dict that are named on the command line, all for no names."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{kind}: no {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: dict(flags) for name, flags in known.items() if not names or name in names}


def refuse_flags(given, flags, kind):
    """Stop where flags are given that the sweep sets itself."""
    wrong = [flag for flag in flags if flag in given]
    if wrong:
        raise UserError(f"{kind}: the sweep sets {', '.join(wrong)} for every run; leave that out")


# ---------------------------------------------------------------- what a run starts from


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
    return flags.get("--jepa-ckpt") or shipped_encoder(flags.get("--preset", "small"))


def file_tag(path):
    """Eight digits of the content of a file."""
    return hashlib.sha256(read_bytes(path)).hexdigest()[:8]


def encoder_tag(flags):
    """`file_tag` of the encoder that a run starts from; "" for scratch, and for poolings without an encoder."""
    if flags.get("--init") not in PRETRAINED or not train.sees_tokens(flags.get("--pool", "attention")):
        return ""
    return file_tag(encoder_file(flags))


class Dataset(NamedTuple):
    """What lies under --data, now."""

    name: str  # its identity, the same on every machine
    fingerprint: str  # of the files as they are here


UNSEEN = Dataset("", "")  # a default root that is not there, and that nothing needs


def open_data(flags, points=None):
    """`GraspData` and `Split` that a run with these flags would see; points per cloud, the run's own by default."""
    settings = train.parse(as_words(flags))
    root = ensure_root(settings.data, settings.quiet)
    points = points or train.resolve_network(settings)[0].points
    data = load_dataset(root, points, settings.min_score, settings.skip_bad, settings.cache_dir, settings.quiet)
    return data, make_split(data, settings.pack, settings.budget, settings.held_out)


def identify(data):
    """The `Dataset` of a `GraspData`.

    A generated root is known by what it was generated with, since processors round differently; one from the user's
    own meshes, or of any other origin, by its fingerprint.
    """
    origin = recorded(Path(data.root))
    settings = origin.get("settings", {})
    if not origin.get("complete") or settings.get("meshes"):
        return Dataset(f"fingerprint {data.fingerprint}", data.fingerprint)
    shown = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None and value is not False)
    return Dataset(f"generator {origin['version']}: {shown}", data.fingerprint)


# ---------------------------------------------------------------- planned runs


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of train.py with its origins, and its folder under --runs."""

    flags: dict
    encoder: str
    dataset: Dataset
    runs: str

    @property
    def command(self):
        return command_of(self.flags)

    @property
    def folder(self):
        """Its flags, shortened, and a hash of them and of what the run starts from: files change, flags do not."""
        name = "_".join(f"{flag[2:]}-{Path(value).name}" for flag, value in self.flags.items())
        identity = self.command + self.encoder + "".join(self.dataset)
        return Path(self.runs) / f"{name[:100]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    @property
    def log(self):
        """Both the run's output and what a sweep locks while it has the run."""
        return Path(f"{self.folder}.log")

    @property
    def finished(self):
        return (self.folder / "result.json").exists()

    @property
    def words(self):
        """The arguments of train.py that make this run, or go on with it; the sweep has its own baselines."""
        place = ["--runs", str(self.folder.parent), "--name", self.folder.name]
        return [*as_words(self.flags), *place, "--resume", "--no-baseline"]


def with_origins(planned, path, args):
    """`PlannedRun`s of flags; every mistake in these shows here. path: of the rows, which may have them all already.

    The data is read only if a run needs it, or if it is there; --list makes none.
    """
    for flags in planned:
        train.parse(as_words(flags))
    rows = {row["command"] for row in read_rows(path)}
    needed = any(command_of(flags) not in rows for flags in planned)
    datasets = {}  # by the flags that it depends on
    found = []
    for flags in {command_of(flags): flags for flags in planned}.values():
        key = tuple(flags.get(flag) for flag in ("--data", "--min-score", "--cache-dir"))
        if key not in datasets:
            root = Path(flags.get("--data", DEFAULTS["--data"]))
            wanted = needed and not (args.list and root.as_posix() in DEFAULT_ROOTS)
            datasets[key] = identify(open_data(flags)[0]) if root.exists() or wanted else UNSEEN
        found.append(PlannedRun(flags, encoder_tag(flags), datasets[key], args.runs))
    return found


def check_origins(run, row, path):
    """A row that was found must start from what is there now, or results of two things would stand in one table."""
    here = run.dataset.name
    there = dataset_of(row)
    for what, old, new in (("encoder", row.get("encoder"), run.encoder), ("dataset", there, here)):
        if old and new and old != new:
            raise UserError(
                f"{path}: '{run.command}' was run with another {what} ({old}) than the one that is there now ({new}); "
                "give another --out, or move the file away"
            )


# ---------------------------------------------------------------- rows


def finished_row(run, suites):
    """The row of a finished run: its command, metrics with intervals, the baseline, time, device, origins."""
    result = read_json(run.folder / "result.json", "suites", "training_mean")
    summaries = {"": result["suites"]["val"]}
    if suites:
        found = read_json(run.folder / "suites.json", "suites")["suites"]
        summaries |= {f"{suite}_": summary for suite, summary in found.items() if suite != "val"}
    row = {"command": run.command}
    for prefix, summary in summaries.items():
        low, high = summary.get("interval_95", {}).get("top_logit_rmse", ("", ""))
        row |= {prefix + name: summary[name] for name in METRICS}
        row |= {prefix + "low_95": low, prefix + "high_95": high}
    row |= {name: result["suites"]["val"].get(name, "") for name in HOLDS}
    row |= {name: result.get(name, "") for name in COSTS}
    return row | {
        "training_mean": result["training_mean"]["top_logit_rmse"],
        "best_step": result["best_step"],
        "train_objects": result["train_objects"],
        "seconds": result["seconds"],
        "device": result["device"],
        "threads": result["threads"],
        "encoder": run.encoder,
        "fingerprint": read_json(run.folder / "config.json")["fingerprint"],
        "failed": "",
        "dataset": run.dataset.name,
        "precision": result.get("precision", ""),
    }


def failed_row(run, code):
    """The row of a run that diverged; any other failure is a `UserError` that names its log."""
    last = last_line(run.log).removeprefix("error: ")
    if "is not finite" not in last:
        raise UserError(f"{run.log}: a run ended with code {code}: {last}")
    row = {"command": run.command} | dict.fromkeys(METRICS, "")
    failed = "diverged: " + last.partition("; ")[0]
    return row | {"encoder": run.encoder, "failed": failed, "dataset": run.dataset.name}


def last_line(log):
    return (log.read_text().strip().splitlines() or ["nothing in it"])[-1]


def save_row(path, row, order):
    """Add a row to a CSV file, in the planned order whatever ends first; order: command -> place in it."""
    rows = {old["command"]: old for old in read_rows(path)}  # read again: another sweep may have written meanwhile
    rows[row["command"]] = row
    write_rows(path, sorted(rows.values(), key=lambda row: order.get(row["command"], -1)))


# ---------------------------------------------------------------- one run


def run_one(run, suites):
    """Train one configuration, or go on with it, then evaluate its best step on `suites`; both write to its log.

    Ends as a process would, by SystemExit, if anything is wrong: with BUSY while another process has the run.
    """
    with locked(run.log) as mine:
        if not mine:
            raise SystemExit(BUSY)
        with open(run.log, "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            if not run.finished:
                train_run(run)
            evaluate_one(run, suites)


def train_run(run):
    try:
        train.main(run.words)
    except SystemExit:
        sys.stderr.flush()  # into the log
        if "another process" in last_line(run.log):  # its command, as --list printed it
            raise SystemExit(BUSY) from None
        raise


def evaluate_one(run, suites):
    files = {"--json": run.folder / "suites.json", "--save-predictions": run.folder / "predictions.npz"}
    if suites and not all(path.exists() for path in files.values()):
        machine = {flag: run.flags[flag] for flag in ("--device", "--threads") if flag in run.flags}
        evaluate.main([str(run.folder), "--suite", *suites, *map(str, as_words(files | machine))])


def is_free(run):
    """Whether at this moment neither another sweep has the run nor a process of train.py, which locks its folder."""
    lock = run.folder / ".lock"
    return can_lock(run.log) and (not lock.exists() or can_lock(lock))


def can_lock(path):
    with locked(path) as mine:
        return mine


# ---------------------------------------------------------------- many runs


def run_in_child(run, suites):
    """`run_one` in a process of its own, out of the terminal's reach: the parent passes Ctrl-C on."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_one(run, suites)


def start_child(run, suites):
    """A started process of `run_in_child`; it hears no Ctrl-C until it is in there, since it inherits that."""
    process = multiprocessing.get_context("spawn").Process(target=run_in_child, args=(run, suites), daemon=True)
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


def next_free(queue, idle):
    """Take the first run out of the queue (a deque) that no other process has, or None; waits for one if `idle`."""
    said = False
    while True:
        for run in list(queue):
            if is_free(run):
                queue.remove(run)
                return run
        if not idle or not queue:
            return None
        if not said:
            others = f" and {len(queue) - 1} more" if len(queue) > 1 else ""
            print(f"waiting for another process, which has {queue[0].folder}{others}", file=sys.stderr)
            said = True
        time.sleep(PAUSE)


def runs_here(waiting, suites):
    """Run one after the other in this process and yield (run, exit code) as they end."""
    queue = collections.deque(waiting)
    while queue:
        run, code = next_free(queue, idle=True), 0
        try:
            run_one(run, suites)
        except SystemExit as stop:
            code = stop.code
        if code == BUSY:
            queue.append(run)
            time.sleep(BUSY_PAUSE)
        else:
            yield run, code


def runs_in_children(waiting, jobs, suites):
    """Run `jobs` at a time and yield (run, exit code) as they end; closing the generator stops them."""
    queue, running = collections.deque(waiting), []  # running: (run, process)
    try:
        while queue or running:
            while len(running) < jobs and (run := next_free(queue, idle=not running)):
                running.append((run, start_child(run, suites)))
            wait([process.sentinel for _, process in running], timeout=PAUSE if queue else None)
            for run, process in [pair for pair in running if not pair[1].is_alive()]:
                running.remove((run, process))
                if process.exitcode == BUSY:
                    queue.append(run)
                    time.sleep(BUSY_PAUSE)
                else:
                    yield run, process.exitcode
    finally:
        stop_children([process for _, process in running if process.is_alive()])


def run_all(planned, path, args, suites=(), keep=None):
    """Run what the CSV file `path` lacks of the planned runs and write a row as each ends; -> all its rows.

    planned: flags of each run; suites: evaluated for each besides val; keep(run): called before its row is written.
    """
    planned = with_origins(planned, path, args)
    rows = {row["command"]: row for row in read_rows(path)}
    for run in planned:
        if run.command in rows:
            check_origins(run, rows[run.command], path)
    waiting = [run for run in planned if run.command not in rows]
    say_what_was_found(planned, waiting, rows, args)
    if args.list:
        waiting = list_commands(waiting, suites)
    ended = runs_here(waiting, suites) if args.jobs == 1 else runs_in_children(waiting, args.jobs, suites)
    order = {run.command: place for place, run in enumerate(planned)}
    found, started = len(planned) - len(waiting), time.perf_counter()
    bar = tqdm(total=len(planned), initial=found, desc=args.kind, unit="run", disable=None if waiting else True)
    with bar, contextlib.closing(ended):
        for count, (run, code) in enumerate(ended, 1):
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            take_into_rows(run, code, path, order, suites, keep)
            bar.update()
            if bar.disable:
                minutes = (time.perf_counter() - started) / count * (len(waiting) - count) / 60
                done = f"{found + count} of {len(planned)} runs"
                print(f"{args.kind}: {done}, about {minutes:.0f} min left", file=sys.stderr)
    return read_rows(path)


def take_into_rows(run, code, path, order, suites, keep):
    """Write the row of a run that has ended; see `run_all` and `save_row`."""
    row = failed_row(run, code) if code else finished_row(run, suites)
    with locked(Path(run.runs) / "rows.lock", wait=True):  # one sweep at a time reads, adds and writes
        if code == 0 and keep:
            keep(run)
        save_row(path, row, order)
    (run.folder / "predictions.npz").unlink(missing_ok=True)  # some 30 MB; `keep` has kept its errors


def say_what_was_found(planned, waiting, rows, args):
    """One line, and another one where rows that were found were made on files that differ from those here."""
    print(f"{args.kind}: {len(planned) - len(waiting)} rows found, {len(waiting)} to run", file=sys.stderr)
    here = {run.command: run.dataset.fingerprint for run in planned if run.command in rows}
    there = {command: rows[command].get("fingerprint") for command in here}
    other = sorted({there[command] for command in here if there[command] and here[command] not in ("", there[command])})
    if other:
        print(
            f"{args.kind}: some rows were made on files that differ from those here (fingerprint {', '.join(other)}): "
            "another processor's last digits, or were they edited?",
            file=sys.stderr,
        )


def list_commands(waiting, suites):
    """Print the commands of the runs that have not finished; -> the finished ones that can become rows at once.

    A run that is still to be evaluated on `suites` is neither: that takes a while, and the sweep itself does it.
    """
    for run in waiting:
        if not run.finished:
            print(TRAINING, shlex.join(run.words))
    return [run for run in waiting if run.finished and not suites and run.dataset != UNSEEN]
