"""Whatever a command is started in, it works, or says in one line why not: all commands of commands.py, each way."""

import concurrent.futures
import contextlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from conftest import fails

import model

HERE = Path(commands.__file__)


@contextlib.contextmanager
def streams(make):
    """Other standard streams for the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", make())
        patch.setattr(sys, "stderr", make())
        yield


def closed():
    """A stream that can no longer be written to."""
    with open(os.devnull, "w") as file:
        return file


@contextlib.contextmanager
def variables(**values):
    """Other variables of the environment for the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


@contextlib.contextmanager
def no_docstrings():
    """What `python -OO` leaves of our files; its asserts stay."""
    names = [path.stem for path in HERE.parents[2].glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        for owner in (*map(importlib.import_module, names), *model.POOLS.values(), *model.LOSSES.values()):
            patch.setattr(owner, "__doc__", None)
        yield


@contextlib.contextmanager
def a_thread():
    """A thread to submit to, in which no signal can be heard."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        yield lambda main, argv: threads.submit(main, argv).result()


SURROUNDINGS = {  # what a command is started in
    "no output": lambda: streams(lambda: None),
    "closed output": lambda: streams(closed),
    "a scheduler that says little": lambda: variables(WORLD_SIZE="2", LOCAL_RANK="1", SLURM_NTASKS="2"),
    "a thread": a_thread,
    "no docstrings": no_docstrings,
}


@pytest.mark.parametrize("where", SURROUNDINGS)
def test_in_this_process(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SURROUNDINGS[where]() as start:
        for main, argv in commands.commands_in(tmp_path):
            start(main, argv) if start else main(argv)
    assert (tmp_path / "table/figure.png").exists()


OPTIMISED = pytest.param("-OO", "", marks=pytest.mark.slow)  # all libraries are compiled anew


@pytest.mark.parametrize("python, system", [OPTIMISED, ("-X utf8=0", "windows")])
def test_in_a_process(python, system, tmp_path):
    """Without docstrings and asserts; and on Windows, as far as it can be had here: what is written is the same."""
    words = [sys.executable, *python.split(), str(HERE), str(tmp_path), *system.split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and (tmp_path / "table/figure.png").exists(), done.stderr.decode()
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md", ".obj"):
            content = path.read_bytes()
            assert content.decode(), path


def test_a_path_that_is_not_unicode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for main, argv in commands.commands_in(tmp_path / os.fsdecode(b"caf\xe9")):
        assert "not valid UTF-8; rename" in fails(main, argv, capsys)
    assert not list(tmp_path.iterdir())


PRESSED = """
import runpy, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder)
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("script, module", [("train", "torch.nn"), ("synthesize", "numpy"), ("splits", "scipy")])
def test_ctrl_c_while_libraries_load(script, module):
    code = PRESSED.format(module=module, script=f"{script}.py")
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[2], capture_output=True)
    assert (done.returncode, done.stderr.decode().splitlines()) == (130, ["interrupted"])
