"""Whatever stops a command, no finished work is lost: the same command again ends as if nothing had been.

One table of what may happen to the two scripts that learn (`FAULTS`); then folders and caches of no use, kills, and two
processes at once.
"""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MADE, Planted, after_step, files_in, needs_posix, once_there, outcome, stopped, training
from conftest import write_root
from rules import broken, flipped, listing, same
from torch.nn.modules.module import register_module_forward_hook
from tqdm import tqdm

import data
import pretrain_jepa
import synthesize
import train
from files import cache
from files.checkpoints import read_checkpoint
from files.writing import locked
from model import GraspModel, PointJEPA

slow = pytest.mark.slow
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, so that imports are paid once")
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full stands for a full disk")


# ---------------------------------------------------------------- the two that learn


def twelve_steps(root, runs, *more):
    """train.py's arguments for a run of 12 steps."""
    flags = "--name run --steps 12 --objects-per-batch 4 --grasps-per-object 3 --k 1 --lr-backbone 1e-3 --lr-head 3e-3"
    return training(root, runs, *flags.split(), *"--eval-every 6 --save-every 5 --keep-last".split(), *more)


def pretraining(shapes, folder, *more):
    """pretrain_jepa.py's arguments for a run of 12 steps."""
    flags = "--preset tiny --steps 12 --batch 6 --log-every 10 --save-every 5 --quiet --threads 1"
    return ["--clouds", str(shapes), "--out", str(folder / "e.pt"), *flags.split(), *map(str, more)]


def files_of(folder, which):
    """What must not change between equal runs."""
    names = {"train": "run/metrics.csv run/result.json run/best.pt run/last.pt", "pretrain": "e.csv e.json e.pt"}
    return outcome(*(folder / name for name in names[which].split()))


@pytest.fixture(scope="module")
def learners(box_root, shapes):
    """name -> main, its arguments for a folder, its last checkpoint, the key of the weights there."""
    return {
        "train": (train.main, lambda folder, *more: twelve_steps(box_root, folder, *more), "run/last.pt", "model"),
        "pretrain": (pretrain_jepa.main, lambda folder, *more: pretraining(shapes, folder, *more), "e.last.pt", "jepa"),
    }


@pytest.fixture(scope="module")
def undisturbed(learners, tmp_path_factory):
    """A folder with a training and a pretraining that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for main, argv, *_ in learners.values():
        main(argv(folder))
    result = json.loads((folder / "run/result.json").read_text(encoding="utf-8"))
    assert result["best_step"] == 12  # best.pt is written after the stop
    return folder


def press():
    """Ctrl-C, now."""
    signal.raise_signal(signal.SIGINT)


def in_forward(number, change):
    """Within this, what a network returns in its `number`-th forward pass of the training is changed."""
    count = itertools.count(1)

    def look(module, inputs, returned):
        if isinstance(module, (GraspModel, PointJEPA)) and module.training and next(count) == number:
            return change(returned)

    return register_module_forward_hook(look)


def infinite_gradient(returned):
    returned[0].register_hook(lambda gradient: gradient * float("inf"))


def no_memory(returned):
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@contextlib.contextmanager
def full_disk(path):
    """Writing `path` fails for lack of space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.symlink_to("/dev/full")
    yield
    assert not temporary.is_symlink()  # whoever failed to write it has removed it


FAULTS = {  # what happens: how, in a folder; exit code; what is said; step of the last checkpoint
    "Ctrl-C": (lambda _: after_step(9, press), 130, "--resume", 9),
    "a NaN": (lambda _: in_forward(8, lambda found: (found[0] * np.nan, *found[1:])), 2, "not finite at step 7; ", 5),
    # the loss is finite, but would poison the weights and so the next checkpoint
    "an infinite gradient": (lambda _: in_forward(10, infinite_gradient), 2, "at step 9; ", 5),
    "no memory": (lambda _: in_forward(8, no_memory), 2, "out of memory; ", 5),
}
SLOW = ("pretrain: a NaN", "pretrain: no memory", "train: an infinite gradient")  # happen to the other one below
CASES = [
    pytest.param(which, *FAULTS[name], id=f"{which}: {name}", marks=[slow] * (f"{which}: {name}" in SLOW))
    for which in ("train", "pretrain")
    for name in FAULTS
]
for name, step in {  # of the last checkpoint, when there is no room for the file
    "run/last.pt": None, "run/best.pt": 5, "run/metrics.csv": 5, "run/result.json": 12,
    "e.last.pt": None, "e.pt": 12, "e.csv": 5, "e.json": 12,
}.items():  # fmt: skip
    case = (lambda folder, name=name: full_disk(folder / name)), 2, f"{name}: No space left on device", step
    marks = (needs_full, *([slow] if name not in ("run/best.pt", "e.last.pt") else []))
    CASES.append(pytest.param("train" if "run" in name else "pretrain", *case, id=f"no room for {name}", marks=marks))


@pytest.mark.parametrize("which, happens, code, said, step", CASES)
def test_whatever_stops_learning(learners, undisturbed, tmp_path, which, happens, code, said, step):
    main, argv, last, key = learners[which]
    with happens(tmp_path):
        found, told = stopped(main, argv(tmp_path))
    assert found == code and said in told and told.count("\n") == 1
    assert (tmp_path / last).exists() == (step is not None)
    if step is not None:
        saved = read_checkpoint(tmp_path / last)
        assert saved["progress"]["step"] == step and all(torch.isfinite(value).all() for value in saved[key].values())
    with contextlib.redirect_stderr(io.StringIO()):  # says so where there is nothing to resume
        main(argv(tmp_path, "--resume"))
    assert files_of(tmp_path, which) == files_of(undisturbed, which)


# ---------------------------------------------------------------- folders and caches of no use


def test_without_a_place_for_a_cache_all_stays_in_memory(tmp_path, three_boxes, capsys):
    root = shutil.copytree(three_boxes[0], tmp_path / "root")
    (root / ".cache").write_text("a file where the folder would be", encoding="utf-8")
    before = listing(root)
    for folder in (None, root / ".cache" / "x"):
        assert same(data.load_dataset(root, 32, quiet=True, cache_dir=folder), three_boxes[1])
    assert listing(root) == before and capsys.readouterr().err == ""


def test_a_broken_cache_is_made_again(three_boxes, tmp_path, planted):
    root, rng = shutil.copytree(three_boxes[0], tmp_path / "root"), np.random.default_rng(8)
    data.load_dataset(root, 32, quiet=True)
    path = root / ".cache" / "points-32.npz"
    good = path.read_bytes()
    contents = [content for _, content in broken(good)]
    contents += [flipped(good, at) for at in rng.integers(0, len(good), 12)]
    shapes = {"clouds": (0, 32, 3), "poses": (0, 7), "joints": (0, 12), "scores": (0,)}
    version = cache.VERSION
    for index in ([], {"version": 1}, {"version": version, "scenes": [{}]}, None):
        index = np.array([Planted()]) if index is None else np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
        archive = io.BytesIO()
        np.savez(archive, index=index, **{name: np.zeros(shape) for name, shape in shapes.items()})
        contents.append(archive.getvalue())
    for content in contents:
        path.write_bytes(content)
        assert same(data.load_dataset(root, 32, quiet=True), three_boxes[1])


# ---------------------------------------------------------------- kill -9


def start(action, log):
    """Fork a child that runs `action()`, its output in the file `log`; -> its id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        tqdm.set_lock(threading.RLock())  # its own is shared with forks: a child killed in it would lock out all others
        sys.stdout = sys.stderr = open(log, "a", buffering=1, encoding="utf-8")
        action()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(child):
    """Wait for a child; -> its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def synthesis(root):
    synthesize.main(f"--out {root} {MADE} --workers 1 --quiet".split())


@slow
@needs_fork
def test_killed_synthesis_ends_as_undisturbed(made_root, tmp_path):
    child = start(lambda: synthesis(tmp_path / "root"), tmp_path / "log")
    with once_there(tmp_path, "recording.npz", lambda: os.kill(child, signal.SIGKILL)):
        assert end(child) == -signal.SIGKILL, (tmp_path / "log").read_text(encoding="utf-8")
    synthesis(tmp_path / "root")
    assert files_in(tmp_path / "root") == files_in(made_root)


@slow
@needs_posix
def test_workers_end_with_their_parent(tmp_path):
    words = f"synthesize.py --out {tmp_path}/root --objects 30 --grasps 6 --quiet --workers 2".split()
    here = Path(synthesize.__file__).parent
    parent = subprocess.Popen([sys.executable, *words], cwd=here, start_new_session=True)
    try:
        with once_there(tmp_path, "recording.npz", parent.kill):
            assert parent.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 10
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(parent.pid, 0)
                time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


# ---------------------------------------------------------------- two at once


@slow
@needs_fork
def test_two_processes_make_one_root(made_root, tmp_path):
    children = [start(lambda: synthesis(tmp_path / "root"), tmp_path / "log") for _ in range(2)]
    assert [end(child) for child in children] == [0, 0], (tmp_path / "log").read_text(encoding="utf-8")
    assert files_in(tmp_path / "root") == files_in(made_root)


@needs_fork
def test_two_processes_make_one_cache(tmp_path):
    root = write_root(tmp_path / "root", {"a": 30})
    expected = data.load_dataset(root, 64, quiet=True, cache_dir=tmp_path / "elsewhere")

    def load():
        assert same(data.load_dataset(root, 64, quiet=True), expected)

    children = [start(load, tmp_path / "log") for _ in range(2)]
    assert [end(child) for child in children] == [0, 0], (tmp_path / "log").read_text(encoding="utf-8")
    load()
    assert os.listdir(root / ".cache") == ["points-64.npz"]


@pytest.mark.parametrize("which, lock", [("train", "run/.lock"), ("pretrain", ".e.pt.lock")])
def test_one_process_trains_a_run(learners, tmp_path, which, lock):
    """The lock is the operating system's: whoever holds it, another process or this one, keeps all others out."""
    main, argv, *_ = learners[which]
    with locked(tmp_path / lock) as mine:
        assert mine and "another process" in stopped(main, argv(tmp_path))[1]
    assert not files_in(tmp_path)
    main(argv(tmp_path, "--steps", 1))  # the lock is free again
