"""Runs of train.py, planned from grids of its flags, started side by side, resumed where they stopped.

A finished run is one row of a CSV file, and what has a row there is not run again; a run that diverges keeps its row,
marked as failed. Several sweeps may share runs and rows: each run is one process's at a time.
`args` are sweep.py's own arguments throughout.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch
from tqdm import tqdm

import evaluate
import train
from benchmark.shipped import ensure_root
from cli.errors import command, refuse
from cli.processes import hearing, start_worker
from data import load_dataset
from files.checkpoints import file_hash, load_encoder, load_run, save_checkpoint, shipped_encoder
from files.writing import locked, read_json, stable_seed
from lab.rows import METRICS, OF_VAL, TRAINING, as_words, command_of, read_rows, write_rows
from loop.flags import SIZE_FIELDS
from loop.machine import set_up_torch
from model import PRESETS, PointEncoder
from splits import make_split

SMOKE = {"--preset": "tiny", "--steps": "2", "--objects-per-batch": "4", "--threads": "1"}
NETWORK = (  # fields of ModelConfig that two runs share whose initialisations are compared
    *SIZE_FIELDS, "points", "patches", "patch_size", "group", "radius", "normalize", "scale",
)  # fmt: skip
ERROR, INTERRUPTED = 2, 130  # exit codes of a run, the second one after Ctrl-C
GO_ON = "the same command goes on, with a lower --jobs where memory is short"
PAUSE = 10  # s between two looks for a run that no other process has


# ---------------------------------------------------------------- which runs
def choices_of(flag, text):
    """The values of a flag, separated by commas but in the name of what is there; one spelling for each root."""
    there = flag in ("--data", "--jepa-ckpt", "--cache-dir") and Path(text).exists()
    values, here = [text] if there else text.split(","), Path.cwd()
    if flag == "--data":  # from here where it lies below: a row is known by its command
        values = [Path(os.path.abspath(value)) for value in values]
        values = [(root.relative_to(here) if root.is_relative_to(here) else root).as_posix() for root in values]
    return values


def expand(axes, smoke=False):
    """{"--k": "1,5", "--pool": "hand"} -> [{"--k": "1", "--pool": "hand"}, {"--k": "5", "--pool": "hand"}]."""
    choices = [choices_of(flag, text) for flag, text in axes.items()]
    if smoke:  # the first and the last
        choices = [values[:1] + values[1:][-1:] for values in choices]
    return [dict(zip(axes, choice)) for choice in itertools.product(*choices)]


def plan_runs(grid, given, seeds, args):
    """Flags of every run of a grid (flag -> values): given flags beat the grid's own, seeds come last.

    `args.own` are the flags that the sweep gives all of its runs.
    """
    planned = []
    for flags in expand(args.own | grid | given | (SMOKE if args.smoke else {}), args.smoke):
        if args.smoke and flags.get("--init") in ("jepa", "shuffled"):
            flags.setdefault("--jepa-ckpt", str(random_encoder(PRESETS["tiny"], args.runs)))
        if flags.get("--init") not in train.STORED and (path := flags.pop("--jepa-ckpt", None)):
            check_same_network(flags, path)
        planned += [flags | {"--seed": seed} for seed in seeds]
    return planned


def check_same_network(flags, path):
    """Stop where the encoder at `path` has another network than a run with these flags has from scratch."""
    ours, theirs = train.resolve_network(train.parse(as_words(flags)))[0], load_encoder(path).config
    pairs = {name: (getattr(theirs, name), getattr(ours, name)) for name in NETWORK}
    other = "; ".join(f"{name} {their}, not {our}" for name, (their, our) in pairs.items() if their != our)
    mend = "give --preset and flags that make them alike, or sweep each by itself"
    refuse(other, f"{path}: another network than runs from scratch have here ({other}); {mend}")


def choose(names, known, kind):
    """The names that are given on the command line, all that are known for none."""
    unknown = [name for name in names if name not in known]
    refuse(unknown, f"{kind}: no {', '.join(unknown)}; there are {', '.join(known)}")
    return names or list(known)


def refuse_flags(given, flags, kind):
    """Stop where flags are given that the sweep sets itself."""
    wrong = [flag for flag in flags if flag in given]
    refuse(wrong, f"{kind}: the sweep sets {', '.join(wrong)} for every run; leave that out")


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


def encoder_tag(flags):
    """Eight digits of the encoder that a run starts from; "" for scratch, and for poolings without an encoder."""
    if flags.get("--init") not in train.STORED or not train.sees_tokens(flags.get("--pool", "attention")):
        return ""
    return file_hash(encoder_file(flags))[:8]


def open_data(flags, points=None):
    """`GraspData` and `Split` that a run with these flags would see; points per cloud, the run's own by default."""
    settings = train.parse(as_words(flags))
    root = ensure_root(settings.data, settings.quiet)
    points = points or train.resolve_network(settings)[0].points
    data = load_dataset(root, points, settings.min_score, settings.skip_bad, settings.cache_dir, settings.quiet)
    return data, make_split(data, settings.pack, settings.budget, settings.held_out)


# ---------------------------------------------------------------- planned runs
@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of train.py with its origins, and its folder under --runs."""

    start = TRAINING  # of its command
    not_of_train = ()  # flags in its command that train.py does not have

    flags: dict
    runs: str
    encoder: str = ""  # its tag
    dataset: str = ""  # fingerprint of what lies under --data
    closed: int = evaluate.CLOSED  # grasps of val, to see what share holds

    @property
    def command(self):
        return command_of(self.flags, self.start)

    @property
    def settings(self):
        """Its flags of train.py."""
        return {flag: value for flag, value in self.flags.items() if flag not in self.not_of_train}

    @property
    def folder(self):
        """Its flags, shortened, and a hash of them and of what the run starts from: files change, flags do not."""
        name = "_".join(f"{flag[2:]}-{Path(value).name}" for flag, value in self.flags.items())
        identity = self.command + self.encoder + self.dataset
        return Path(self.runs) / f"{name[:100]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    @property
    def log(self):
        """Both the run's output and what a sweep locks while it has the run."""
        return Path(f"{self.folder}.log")

    @property
    def words(self):
        """The arguments of train.py that make this run, or go on with it; the sweep has its own baselines."""
        place = ["--runs", str(self.folder.parent), "--name", self.folder.name]
        others = ["--resume", "--no-baseline", "--no-pictures", "--closed", str(self.closed)]
        return [*as_words(self.settings), *place, *others]

    def train(self):
        train.main(self.words)


def with_origins(planned, args, kind=PlannedRun):
    """Runs of a `kind` from the flags of each, no command twice; every mistake in these shows here."""
    found, datasets = {}, {}  # datasets: by the flags that they depend on
    for flags in planned:
        run = kind(flags, args.runs, encoder_tag(flags), closed=args.closed)
        train.parse(run.words)
        key = tuple(flags.get(flag) for flag in ("--data", "--min-score", "--cache-dir"))
        if key not in datasets:
            datasets[key] = open_data(run.settings)[0].fingerprint
        found[run.command] = dataclasses.replace(run, dataset=datasets[key])
    return list(found.values())


# ---------------------------------------------------------------- one run
def make_row(run, suites):
    """Train one configuration, or go on with it, then evaluate its best step on `suites`; both write to its log.

    -> its row, and its predictions by suite. A run that diverges has a row that says so.
    """
    with open(run.log, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            if not (run.folder / "result.json").exists():
                run.train()
            summaries, predictions = evaluate_best(run, suites) if suites else ({}, {})
            return finished_row(run, summaries), predictions
        except SystemExit as stop:
            code = stop.code
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return failed_row(run, code), {}


def evaluate_best(run, suites):
    """Summaries and predictions of a finished run's best step, two dicts by suite."""
    settings = train.parse(run.words)
    device = set_up_torch(settings.device, settings.threads)
    model = load_run(run.folder).to(device)
    data, split = evaluate.open_run(run.folder, quiet=True, model=model)
    return evaluate.evaluate_suites(model, data, split, suites, device, quiet=True, run=run.folder)


def finished_row(run, summaries):
    """The row of a finished run: its command, metrics with intervals, the baseline, time, device, origins."""
    result = read_json(run.folder / "result.json", "suites", "training_mean")
    val, row = result["suites"]["val"], {"command": run.command}
    others = {f"{suite}_": summary for suite, summary in summaries.items() if suite != "val"}
    for prefix, summary in ({"": val} | others).items():
        low, high = summary.get("interval_95", {}).get("top_logit_rmse", ("", ""))
        row |= {prefix + name: summary[name] for name in METRICS}
        row |= {prefix + "low_95": low, prefix + "high_95": high}
    row |= {name: val.get(name, "") for name in OF_VAL}
    row["training_mean"] = result["training_mean"]["top_logit_rmse"]
    row |= {name: result[name] for name in ("best_step", "train_objects", "seconds", "device", "threads")}
    return row | {"precision": result["precision"], "encoder": run.encoder, "dataset": run.dataset, "failed": ""}


def failed_row(run, code):
    """The row of a run that diverged; any other failure is a `UserError` that names its log."""
    last = run.log.read_text(encoding="utf-8").strip().rpartition("\n")[-1].removeprefix("error: ")
    refuse("is not finite" not in last, f"{run.log}: a run ended with code {code}: {last}")
    row = {"command": run.command} | dict.fromkeys(METRICS, "")
    failed = "diverged: " + last.partition("; ")[0]
    return row | {"encoder": run.encoder, "dataset": run.dataset, "failed": failed}


# ---------------------------------------------------------------- many runs
def without_rows(runs, path):
    """Those of some runs that have no row in the CSV file `path`."""
    there = {row["command"] for row in read_rows(path)}
    return [run for run in runs if run.command not in there]


def run_free(runs, path, suites, keep, look=lambda: None):
    """Run what has no row and no other process has, all of a seed before the next; -> the runs that others have.

    `look()` is called after each.
    """
    others, order = [], [run.command for run in runs]
    for run in sorted(without_rows(runs, path), key=lambda run: int(run.flags["--seed"])):
        with locked(run.log) as mine:
            if not mine:
                others.append(run)
            elif without_rows([run], path):  # its row may have come before the lock
                row, predictions = make_row(run, suites)
                kept = [functools.partial(one, path.parent, run, predictions) for one in keep if not row["failed"]]
                add_row(row, path, run.runs, order, kept)
                look()
    return others


def add_row(row, path, runs, order=(), keep=()):
    """Write a row into the CSV file `path`, in the order of some commands whatever ends first.

    One process at a time of those that share the folder `runs` reads, adds and writes; keep: to be called before that.
    """
    place = {command: i for i, command in enumerate(order)}
    with locked(Path(runs) / "rows.lock", wait=True):
        for keep_more in keep:
            keep_more()
        rows = {old["command"]: old for old in read_rows(path)} | {row["command"]: row}
        write_rows(path, sorted(rows.values(), key=lambda row: place.get(row["command"], -1)))


def as_ctrl_c(number, frame):
    """A signal's handler: it is what Ctrl-C would be now, so that a training is saved; once, since some come twice."""
    signal.signal(number, signal.SIG_IGN)
    heard = signal.getsignal(signal.SIGINT)
    (heard if callable(heard) else signal.default_int_handler)(number, frame)  # a shell may have it ignored


@command
def run_in_child(work):
    """`work()` in a process of its own, out of the terminal's reach: the parent's SIGTERM is its Ctrl-C."""
    if hasattr(os, "setsid"):
        os.setsid()
    start_worker()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, as_ctrl_c)
    try:
        work()
    except KeyboardInterrupt:  # the parent says so
        raise SystemExit(INTERRUPTED) from None


def in_processes(jobs, work, look):
    """Do the same `work()` in so many processes until all have ended, each says how; Ctrl-C stops them.

    `look()` is called every second.
    """
    new = multiprocessing.get_context("spawn").Process
    processes = [new(target=run_in_child, args=(work,), daemon=True) for _ in range(jobs)]
    with hearing(signal.SIG_IGN, "SIGINT"):  # inherited: they hear no Ctrl-C until they are in there
        for process in processes:
            process.start()
    try:
        running = processes
        while running:
            wait([process.sentinel for process in running], timeout=1)
            look()
            running = [process for process in processes if process.is_alive()]
            codes = [process.exitcode for process in processes if process.exitcode]  # after that look: of the last, too
            if ERROR in codes:
                raise SystemExit(ERROR)  # it has said why
            refuse(codes, f"a process of this sweep ended with code {min(codes, default=0)}; {GO_ON}")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def run_all(planned, path, args, suites=(), keep=(), kind=PlannedRun):
    """Run what the CSV file `path` lacks of the planned runs and write a row as each ends; -> all its rows.

    planned: flags of each run, of the given kind; suites: evaluated for each besides val; keep: functions of
    the folder of rows, a run and its predictions by suite that are called before its row is written.
    """
    rows = {row["command"]: row for row in read_rows(path)}
    of_old = any(row.get("commit") for row in rows.values())
    refuse(of_old, f"{path}: its rows are of another commit, so none are added; give another --out")
    runs = with_origins(planned, args, kind)
    for run in runs:
        for what in ("encoder", "dataset") if run.command in rows else ():
            was, new = rows[run.command][what], getattr(run, what)
            mend = "give another --out, or move the file away"
            refuse(was != new, f"{path}: '{run.command}' was run with another {what} ({was}, now {new}); {mend}")
    missing, told = {run.command for run in without_rows(runs, path)}, []
    print(f"{args.kind}: {len(runs) - len(missing)} rows found, {len(missing)} to run", file=sys.stderr)
    work = functools.partial(run_free, runs, path, suites, keep)
    with tqdm(desc=args.kind, total=len(missing), unit="run", disable=None if missing else True) as bar:

        def look():
            """Show the rows that have come, of whatever process."""
            for row in [row for row in read_rows(path) if row["command"] in missing]:
                missing.remove(row["command"])
                rmse = row["failed"] or f"{float(row['top_logit_rmse']):.4f} rad"
                bar.write(f"{len(runs) - len(missing)} of {len(runs)}, {rmse}: {row['command']}", file=sys.stderr)
                bar.update()
            bar.refresh()  # the time

        if args.jobs > 1:
            in_processes(min(args.jobs, len(missing)), work, look)
        while others := work(look):  # alone, also what others had and did not end
            if others != told:
                bar.write(f"waiting for runs that other processes have: {len(others)}", file=sys.stderr)
            told = others
            time.sleep(PAUSE)
            look()
        look()
    return read_rows(path)
