"""Kills, full disks, Ctrl-C, two processes, NaN: no finished work is lost, and the result is the undisturbed one."""

import contextlib
import csv
import errno
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Planted, fails, write_root
from rules import same
from tqdm import tqdm

import data
import evaluate
import model
import pretrain_jepa
import splits
import synthesize
import train
from benchmark import roots
from cli import processes
from files import checkpoints
from files.writing import locked

slow = pytest.mark.slow
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, so that imports are paid once")
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full stands for a full disk")


# ---------------------------------------------------------------- children


def start(action, log):
    """Fork a child that runs `action()` in a process group of its own, its output in the file `log`; -> its id."""
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # the child does the same: whoever comes first
            os.setpgid(child, child)
        return child
    code = 99
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.set_lock(threading.RLock())  # its own is shared with forks: a child killed in it would lock out all others
        sys.stdout = sys.stderr = open(log, "a", buffering=1)
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


def kill_at_random(action, log, kills, reset, seed, finished=lambda: False):
    """Start `action` again and again, and kill -9 it `kills` times at random moments of its work.

    `finished()` says whether all files are there: a kill after that, just before the child exits, does not count.
    """
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    assert end(start(action, log)) == 0, log.read_text()  # how long it takes when undisturbed
    duration = time.perf_counter() - began
    reset()
    done = 0
    for _ in range(10 * kills):
        child = start(action, log)
        time.sleep(rng.uniform(0, 0.7 * duration))
        os.killpg(child, signal.SIGKILL)
        code = end(child)
        assert code in (0, -signal.SIGKILL), log.read_text()
        if code == 0 or finished():
            reset()  # begin anew
        else:
            done += 1
        if done == kills:
            return
    raise AssertionError("could not kill it often enough")


# ---------------------------------------------------------------- the four that do long work


def training(root, runs, *more):
    """train.py's arguments for a run of 24 steps."""
    flags = "--name run --preset tiny --steps 24 --objects-per-batch 4 --grasps-per-object 3 --k 1 --lr-backbone 1e-3"
    rhythm = "--eval-every 12 --save-every 5 --keep-last --no-baseline --quiet --threads 1"
    return [*f"--data {root} --runs {runs} {flags} {rhythm}".split(), *map(str, more)]


def rows_of(path, time):
    """The rows of a curve without the column that tells times."""
    with open(path) as file:
        return [row | {time: None} for row in csv.DictReader(file)]


def weights_of(path, key):
    return {name: value.tolist() for name, value in checkpoints.read_checkpoint(path)[key].items()}


def trained(runs):
    """What must not change between equal runs: curve and result without times, the weights of both checkpoints."""
    folder = runs / "run"
    result = json.loads((folder / "result.json").read_text()) | dict.fromkeys(("seconds", "ms_per_step", "memory_mb"))
    weights = [weights_of(folder / f"{name}.pt", "model") for name in ("best", "last")]
    return rows_of(folder / "metrics.csv", "seconds"), result, weights


def pretraining(shapes, folder, *more):
    """pretrain_jepa.py's arguments for a run of 24 steps."""
    flags = "--preset tiny --steps 24 --batch 6 --log-every 10 --save-every 5 --quiet --threads 1"
    return ["--clouds", str(shapes), "--out", str(folder / "e.pt"), *flags.split(), *map(str, more)]


def pretrained(folder):
    """The same of equal pretrainings."""
    card = json.loads((folder / "e.json").read_text()) | {"command": None, "seconds": None, "curve": None}
    return rows_of(folder / "e.csv", "clouds_per_s"), card, weights_of(folder / "e.pt", "encoder")


def visible_files(root):
    """Contents of all files but hidden ones, by path."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for i in range(24):
        np.save(folder / f"{i:02d}.npy", (rng.normal(size=(80, 3)) * rng.uniform(0.02, 0.1, 3)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def undisturbed(box_root, shapes, tmp_path_factory):
    """Folders of a training and of a pretraining that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train.main(training(box_root, folder))["best_step"] == 24  # best.pt is written again after every stop
    pretrain_jepa.main(pretraining(shapes, folder))
    return folder


@slow
@needs_fork
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_training_ends_as_undisturbed(box_root, undisturbed, tmp_path, seed):
    run, argv = tmp_path / "run", training(box_root, tmp_path, "--resume")
    finished = (run / "result.json").exists
    kill_at_random(lambda: train.main(argv), tmp_path / "log", 6, lambda: shutil.rmtree(run), seed, finished)
    train.main(argv)
    assert trained(tmp_path) == trained(undisturbed)


@slow
@needs_fork
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_pretraining_ends_as_undisturbed(shapes, undisturbed, tmp_path, seed):
    out = tmp_path / "out"
    argv = pretraining(shapes, out, "--resume")

    def finished():
        return (out / "e.json").exists() and not (out / "e.last.pt").exists()

    kill_at_random(lambda: pretrain_jepa.main(argv), tmp_path / "log", 6, lambda: shutil.rmtree(out), seed, finished)
    pretrain_jepa.main(argv)
    assert pretrained(out) == pretrained(undisturbed) and not (out / "e.last.pt").exists()


@slow
@needs_fork
def test_killed_cache_building_leaves_a_good_root(tmp_path):
    root = write_root(tmp_path / "root", {"a": 60})
    expected = data.load_dataset(root, 64, quiet=True, cache_dir=tmp_path / "elsewhere")
    cache = root / ".cache" / "points-64.npz"
    for seed in (4, 5, 6):
        read, reset = lambda: data.main([str(root), "--points", "64"]), lambda: cache.unlink(missing_ok=True)
        kill_at_random(read, tmp_path / "log", 3, reset, seed)
        assert same(data.load_dataset(root, 64, quiet=True), expected)
        assert same(data.load_dataset(root, 64, quiet=True), expected)  # from the cache now
        cache.unlink()


def synthesis(root, workers=2):
    """Make a tiny root with forked workers, which need no imports; for a child process only."""
    context = multiprocessing.get_context("fork")
    processes.multiprocessing.get_context = lambda method: context
    synthesize.main(f"--out {root} --objects 3 --grasps 6 --seed 1 --quiet --workers {workers}".split())


@pytest.fixture(scope="module")
def made_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    assert end(start(lambda: synthesis(folder / "root"), folder / "log")) == 0, (folder / "log").read_text()
    return visible_files(folder / "root")


@slow
@needs_fork
def test_killed_synthesis_ends_as_undisturbed(made_root, tmp_path):
    root = tmp_path / "root"
    kill_at_random(lambda: synthesis(root), tmp_path / "log", 6, lambda: shutil.rmtree(root), 7)
    assert end(start(lambda: synthesis(root), tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    assert visible_files(root) == made_root


def wait_for_objects(root, count):
    """Wait until the log of an unfinished root lists so many objects."""
    log, deadline = root / roots.LOG, time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) <= count:
        assert time.monotonic() < deadline, "made no progress"
        time.sleep(0.005)


@slow
@needs_fork
def test_interrupted_synthesis_can_be_resumed(made_root, tmp_path):
    child = start(lambda: synthesis(tmp_path / "root", 1), tmp_path / "log")
    wait_for_objects(tmp_path / "root", 1)  # an exception while a worker is forked would be swallowed by Python
    os.killpg(child, signal.SIGINT)
    assert end(child) == 130, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert end(start(lambda: synthesis(tmp_path / "root"), tmp_path / "log")) == 0
    assert visible_files(tmp_path / "root") == made_root


@slow
@needs_fork
def test_workers_end_with_their_parent(tmp_path):
    child = start(lambda: synthesis(tmp_path / "root"), tmp_path / "log")
    wait_for_objects(tmp_path / "root", 1)
    os.kill(child, signal.SIGKILL)
    assert end(child) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    try:
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(child, 0)
                time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


# ---------------------------------------------------------------- two at once


@slow
@needs_fork
def test_two_processes_make_one_root(made_root, tmp_path):
    children = [start(lambda: synthesis(tmp_path / "root", 1), tmp_path / "log") for _ in range(2)]
    assert [end(child) for child in children] == [0, 0], (tmp_path / "log").read_text()
    assert visible_files(tmp_path / "root") == made_root


@needs_fork
def test_two_processes_make_one_cache(tmp_path):
    root = write_root(tmp_path / "root", {"a": 30})
    expected = data.load_dataset(root, 64, quiet=True, cache_dir=tmp_path / "elsewhere")

    def load():
        assert same(data.load_dataset(root, 64, quiet=True), expected)

    for _ in range(3):
        children = [start(load, tmp_path / "log") for _ in range(2)]
        assert [end(child) for child in children] == [0, 0], (tmp_path / "log").read_text()
        load()
        assert os.listdir(root / ".cache") == ["points-64.npz"]
        shutil.rmtree(root / ".cache")


def test_one_process_trains_a_run(box_root, shapes, tmp_path, capsys):
    """The lock is the operating system's: whoever holds it, another process or this one, keeps all others out."""
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / ".lock") as mine, locked(tmp_path / ".e.pt.lock") as its:
        assert mine and its
        assert "another process" in fails(train.main, training(box_root, tmp_path), capsys)
        assert "another process" in fails(pretrain_jepa.main, pretraining(shapes, tmp_path), capsys)
    assert not contents(tmp_path)
    train.main(training(box_root, tmp_path))  # the locks are free again


# ---------------------------------------------------------------- Ctrl-C


def press_at(monkeypatch, owner, name, call):
    """Ctrl-C in the middle of the `call`-th call of owner.name."""
    calls, original = [], getattr(owner, name)

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def interrupted(main, argv, advice="--resume"):
    """Run a command that must end with exit code 130, without a traceback and with what to do now."""
    with pytest.raises(SystemExit) as stop, contextlib.redirect_stderr(io.StringIO()) as err:
        main([str(a) for a in argv])
    assert stop.value.code == 130 and "Traceback" not in err.getvalue() and advice in err.getvalue()


@pytest.fixture(scope="module")
def stopped_once(box_root, shapes, tmp_path_factory):
    """A folder with a training and a pretraining that Ctrl-C stopped after 17 of 24 steps."""
    folder = tmp_path_factory.mktemp("stopped") / "here"
    with pytest.MonkeyPatch.context() as patch:
        press_at(patch, torch.nn.utils, "clip_grad_norm_", 17)
        interrupted(train.main, training(box_root, folder))
    with pytest.MonkeyPatch.context() as patch:
        press_at(patch, model.PointJEPA, "update_target", 17)
        interrupted(pretrain_jepa.main, pretraining(shapes, folder))
    assert checkpoints.read_checkpoint(folder / "run" / "last.pt")["progress"]["step"] == 17
    assert checkpoints.read_checkpoint(folder / "e.last.pt")["step"] == 17
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    return shutil.copytree(stopped_once, tmp_path / "stopped")


def test_ctrl_c_can_be_resumed(box_root, shapes, undisturbed, stopped):
    train.main(training(box_root, stopped, "--resume"))
    pretrain_jepa.main(pretraining(shapes, stopped, "--resume"))
    assert trained(stopped) == trained(undisturbed) and pretrained(stopped) == pretrained(undisturbed)


def test_a_run_is_not_resumed_on_other_data(stopped, tmp_path, box_root, capsys):
    root = shutil.copytree(box_root, tmp_path / "root")
    config, last = (
        json.loads((stopped / "run/config.json").read_text()),
        checkpoints.read_checkpoint(stopped / "run/last.pt"),
    )
    for content in (config, last):
        content["settings"]["data"] = str(root)  # as if it had been started there
    (stopped / "run/config.json").write_text(json.dumps(config))
    checkpoints.save_checkpoint(stopped / "run/last.pt", last)
    next(root.rglob("mesh.obj")).write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nf 1 2 3\n")
    before = contents(stopped)
    assert "has changed" in fails(train.main, training(root, stopped, "--resume"), capsys)
    assert contents(stopped) == before


def test_ctrl_c_while_a_root_is_read(tmp_path, monkeypatch):
    root = write_root(tmp_path / "root", {"a": 4})
    with monkeypatch.context() as patch:
        press_at(patch, data, "read_scene", 3)
        interrupted(data.main, [root], "interrupted")
    with monkeypatch.context() as patch:
        press_at(patch, np, "savez", 1)  # while the cache is written
        interrupted(data.main, [root], "interrupted")
    assert not list((root / ".cache").glob("*")) and not list((root / ".cache").glob(".*"))
    data.main([str(root)])


# ---------------------------------------------------------------- a full disk


@contextlib.contextmanager
def full_disk(monkeypatch, path, how):
    """Writing `path` fails for lack of space: in the middle of the content, or when the file takes its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replace = os.replace

    def fail(source, target):
        if Path(target) == path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))
        return replace(source, target)

    with monkeypatch.context() as patch:
        if how == "content":
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.symlink_to("/dev/full")
        else:
            patch.setattr(os, "replace", fail)
        yield
    temporary.unlink(missing_ok=True)


def contents(folder):
    """Bytes of all files in a folder but locks, which are empty."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.match(".*lock")}


OUTPUTS = ["run/last.pt", "run/best.pt", "e.last.pt", "e.pt"]
OUTPUTS += [pytest.param(name, marks=slow) for name in ("run/metrics.csv", "run/result.json", "e.csv", "e.json")]


@needs_full
@pytest.mark.parametrize("how", ["content", pytest.param("name", marks=slow)])
@pytest.mark.parametrize("name", OUTPUTS)
def test_full_disk_while_learning(box_root, shapes, undisturbed, stopped, monkeypatch, capsys, name, how):
    path, before = stopped / name, contents(stopped)
    if "run" in name:
        main, argv, last = train.main, training(box_root, stopped, "--resume"), stopped / "run/last.pt"
    else:
        main, argv, last = pretrain_jepa.main, pretraining(shapes, stopped, "--resume"), stopped / "e.last.pt"
    with full_disk(monkeypatch, path, how):
        error = fails(main, argv, capsys)
    assert f"{path}: No space left on device" in error
    assert path.exists() == (path in before) and (path not in before or path.read_bytes() == before[path])
    assert checkpoints.read_checkpoint(last) and not list(stopped.rglob(".*.tmp"))
    main(argv)
    outcome = trained if "run" in name else pretrained
    assert outcome(stopped) == outcome(undisturbed)


@needs_full
@pytest.mark.parametrize("how", ["content", "name"])
def test_full_disk_elsewhere(box_root, undisturbed, tmp_path, monkeypatch, capsys, how):
    run = undisturbed / "run"
    outputs = {
        "split.json": (splits.main, ["--data", box_root, "--json", tmp_path / "split.json"]),
        "metrics.json": (evaluate.main, [run, "--quiet", "--json", tmp_path / "metrics.json"]),
        "predictions.npz": (evaluate.main, [run, "--quiet", "--save-predictions", tmp_path / "predictions.npz"]),
        "run/config.json": (train.main, training(box_root, tmp_path)),
    }
    for name, (main, argv) in outputs.items():
        with full_disk(monkeypatch, tmp_path / name, how):
            assert f"{name}: No space left on device" in fails(main, argv, capsys)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    # a dataset's cache is a convenience: without room for it, the arrays stay in memory
    root = write_root(tmp_path / "root", {"a": 2})
    expected = data.load_dataset(root, 64, quiet=True, cache_dir=tmp_path / "elsewhere")
    with full_disk(monkeypatch, root / ".cache" / "points-64.npz", how):
        assert same(data.load_dataset(root, 64, quiet=True), expected)
    assert not list((root / ".cache").iterdir())


def test_no_room_for_the_first_file(box_root, tmp_path, capsys):
    """Where folders cannot be made at all, the error names them."""
    (tmp_path / "file").write_text("")
    assert "file" in fails(train.main, training(box_root, tmp_path / "file"), capsys)
    assert "file" in fails(splits.main, ["--data", box_root, "--json", tmp_path / "file" / "split.json"], capsys)
    assert (tmp_path / "file").read_text() == ""


# ---------------------------------------------------------------- NaN, out of memory


def test_nan_stops_pretraining_before_the_next_checkpoint(shapes, tmp_path, monkeypatch, capsys):
    original, calls = model.PointJEPA.forward, []

    def forward(self, *args):
        calls.append(1)
        loss, *rest = original(self, *args)
        return loss * (float("nan") if len(calls) == 8 else 1.0), *rest

    monkeypatch.setattr(model.PointJEPA, "forward", forward)
    error = fails(pretrain_jepa.main, pretraining(shapes, tmp_path), capsys)
    assert "step 7" in error and "e.last.pt" in error
    assert len(calls) == 10  # where a checkpoint would have been written
    assert len(error.split("shapes ")[1].split(")")[0].split()) == 6  # the batch
    saved = checkpoints.read_checkpoint(tmp_path / "e.last.pt")
    assert saved["step"] == 5 and all(torch.isfinite(v).all() for v in saved["jepa"].values())


@pytest.mark.parametrize("where", ["train", "pretrain"])
def test_infinite_gradients_stop_too(box_root, shapes, tmp_path, monkeypatch, capsys, where):
    """A finite loss with an infinite gradient would poison the weights and so the next checkpoint."""
    calls, original = [], torch.Tensor.backward

    def backward(self, *args):
        original(self, *args)
        calls.append(1)
        if len(calls) == 10:
            parameter.grad.fill_(float("inf"))

    make = torch.optim.AdamW.__init__

    def remember(self, groups, *args, **kwargs):
        nonlocal parameter
        parameter = (groups[0]["params"] if isinstance(groups[0], dict) else groups)[-1]
        make(self, groups, *args, **kwargs)

    parameter = None
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.optim.AdamW, "__init__", remember)
    if where == "train":
        main, argv, last, key = train.main, training(box_root, tmp_path), "run/last.pt", "model"
    else:
        main, argv, last, key = pretrain_jepa.main, pretraining(shapes, tmp_path), "e.last.pt", "jepa"
    assert "step 9" in fails(main, argv, capsys) and len(calls) == 10
    saved = checkpoints.read_checkpoint(tmp_path / last)
    assert all(torch.isfinite(value).all() for value in saved[key].values())


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory."),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_is_one_line(box_root, tmp_path, monkeypatch, capsys, error):
    def forward(*args):
        raise error

    monkeypatch.setattr(model.GraspModel, "encode", forward)
    assert "out of memory; " in fails(train.main, training(box_root, tmp_path), capsys)


# ---------------------------------------------------------------- planted code, same numbers


def test_planted_code_beside_good_weights_never_runs(box_root, undisturbed, tmp_path, planted, capsys):
    pickle.loads(pickle.dumps(Planted()))
    assert planted.exists()  # the trap works
    planted.unlink()
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    loaders = {"run/best.pt": lambda path: model.load_run(path.parent), "e.pt": model.load_encoder}
    for name, load in loaders.items():
        content = checkpoints.read_checkpoint(undisturbed / name)
        torch.save(content | {"callbacks": Planted()}, tmp_path / name)
        capsys.readouterr()
        load(tmp_path / name)
        assert capsys.readouterr().err.count("\n") == 1  # one warning names what was left out
    evaluate.main([str(tmp_path / "run"), "--quiet"])
    flags = f"--init jepa --jepa-ckpt {tmp_path}/e.pt --steps 1".split()
    train.main(training(box_root, tmp_path / "tuned", *flags))


def test_same_seed_same_files(box_root, shapes, undisturbed, tmp_path):
    train.main(training(box_root, tmp_path))
    pretrain_jepa.main(pretraining(shapes, tmp_path))
    assert trained(tmp_path) == trained(undisturbed) and pretrained(tmp_path) == pretrained(undisturbed)
    again = f"--from {tmp_path}/run/config.json --runs {tmp_path}/again --name run --keep-last --no-baseline --quiet"
    train.main(again.split())
    assert trained(tmp_path / "again") == trained(undisturbed)
    configs = [json.loads((runs / "run" / "config.json").read_text()) for runs in (tmp_path, tmp_path / "again")]
    assert configs[0] == configs[1]
    pretrain_jepa.main(pretraining(shapes, tmp_path / "other", "--seed", 1))
    assert pretrained(tmp_path / "other")[0] != pretrained(undisturbed)[0]
