"""Whatever a command is started in, it works, or says in one line why not: all commands of commands.py, each way."""

import concurrent.futures
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from conftest import fails, interrupted, write_root
from rules import listing

import evaluate
import model
import pretrain_jepa
import splits
import sweep
import synthesize
import train
import walkthrough

HERE = Path(commands.__file__)


def closed():
    """A stream that can no longer be written to."""
    with open(os.devnull, "w", encoding="utf-8") as file:
        return file


@pytest.mark.slow
@pytest.mark.parametrize("output", [lambda: None, closed], ids=["no output", "closed output"])
def test_in_this_process(output, tmp_path, monkeypatch):
    """And in a thread, where no signal is heard; under a scheduler that says little; without docstrings, as by -OO."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("SLURM_NTASKS", "2")):
        monkeypatch.setenv(name, value)
    modules = [importlib.import_module(path.stem) for path in HERE.parents[2].glob("*.py")]
    for owner in (*modules, *model.POOLS.values(), *model.LOSSES.values()):
        monkeypatch.setattr(owner, "__doc__", None)
    with concurrent.futures.ThreadPoolExecutor(1) as threads, monkeypatch.context() as patch:
        for main, argv in commands.commands_in(tmp_path):
            patch.setattr(sys, "stdout", output())
            patch.setattr(sys, "stderr", output())
            threads.submit(main, argv).result()
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
            assert content.decode() and b"\r" not in content, path


def test_a_path_that_is_not_unicode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for main, argv in commands.commands_in(tmp_path / os.fsdecode(b"caf\xe9")):
        assert "not valid UTF-8; rename" in fails(main, argv, capsys)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- where data lies, and where results go


@pytest.mark.slow
def test_a_root_is_known_by_what_is_in_it(tmp_path, monkeypatch, capsys):
    """However it is spelled: for --resume, finished runs, the baseline beside them and the rows of a sweep."""
    monkeypatch.chdir(tmp_path)
    write_root(tmp_path / "r", {"a": 5})
    argv = "--runs runs --preset tiny --steps 8 --no-pictures --quiet --threads 1 --data".split()
    grid = "grid --smoke --k 1 --runs sweep --out table --data".split()
    interrupted(train.main, [*argv, "r"], 2)
    sweep.main([*grid, "r"])
    for spelled in ("./r", "r/", f"{tmp_path}/r", f"r/../../{tmp_path.name}/r"):
        interrupted(train.main, [*argv, spelled, "--resume"], 1)
        capsys.readouterr()
        sweep.main([*grid, spelled])
        assert "1 rows found, 0 to run" in capsys.readouterr().err
    shutil.move("r", "to/r")
    assert "r: no such root; give" in fails(train.main, [*argv, "r", "--resume"], capsys)
    train.main([*argv, "to/r", "--resume"])
    train.main([*argv, "./to/r"])
    assert "finished before" in capsys.readouterr().out
    train.main([*argv, "to/r", "--name", "other"])
    assert len(list(Path("runs").iterdir())) == 3, list(Path("runs").iterdir())  # two runs and one baseline


def test_who_needs_data_that_has_moved_names_the_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_root(tmp_path / "r", {"a": 5})
    train.main(f"--data r --name run --no-baseline --no-pictures {commands.TINY}".split())
    shutil.move("r", "s")
    for main, argv in (
        (evaluate.main, "runs/run"), (walkthrough.main, "runs/run"), (splits.main, "--data r"),
        (sweep.main, "grid --smoke --data r"), (sweep.main, "grid --smoke --data r,t"),
    ):  # fmt: skip
        said = fails(main, argv.split(), capsys)
        assert "r: no such root; give the folder in which the data lies now as --data" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "s"]
    evaluate.main("runs/run --data s --quiet".split())
    shutil.move("s", "s,t")  # a comma separates values, but not in the name of what is there
    rows = sweep.main("grid --smoke --data s,t".split())
    assert ["--data s,t" in row["command"] for row in rows] == [True]


def test_where_nothing_can_be_written_nothing_is_begun(tmp_path, monkeypatch, capsys):
    """Not after minutes of work: nothing that would be kept of it is there."""
    monkeypatch.chdir(tmp_path)
    write_root(tmp_path / "r", {"a": 5})
    Path("file").write_text("", encoding="utf-8")
    for main, argv in (
        (synthesize.main, "--objects 4 --out file/x/y"), (synthesize.main, "--card r --out file/x"),
        (pretrain_jepa.main, f"--num-clouds 8 --batch 4 {commands.TINY} --out file/e.pt"),
        (train.main, f"--data r {commands.TINY} --runs file"),
        (sweep.main, "grid --smoke --data r --out file/x"), (sweep.main, "grid --smoke --data r --runs file/x"),
    ):  # fmt: skip
        before = listing(tmp_path)
        assert f"{argv.split()[-2]} file" in fails(main, argv.split(), capsys) and listing(tmp_path) == before


def test_a_sweep_without_matplotlib_begins_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in fails(sweep.main, ["grid", "--smoke", "--data", "r"], capsys)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- Ctrl-C while libraries load


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


@pytest.mark.parametrize(
    "script, module", [pytest.param("train", "torch.nn", marks=pytest.mark.slow), ("synthesize", "numpy")]
)
def test_ctrl_c_while_libraries_load(script, module):
    code = PRESSED.format(module=module, script=f"{script}.py")
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[2], capture_output=True)
    assert (done.returncode, done.stderr.decode().splitlines()) == (130, ["interrupted"])


# ---------------------------------------------------------------- how threads wait


AT_TORCH = """
import importlib, os, sys

class AtTorch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
            print(*map(os.environ.get, names), flush=True)
            os._exit(0)

sys.meta_path.insert(0, AtTorch)
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("script, set_before, seen", [
    ("train", {}, "passive 20000 0"), ("sweep", {}, "passive 20000 0"), ("walkthrough", {}, "passive 20000 0"),
    ("train", {"OMP_WAIT_POLICY": "active"}, "active None None"), ("train", {"KMP_BLOCKTIME": "7"}, "passive 20000 7"),
])  # fmt: skip
def test_threads_soon_sleep_unless_the_user_says_how(script, set_before, seen):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", AT_TORCH, script], cwd=HERE.parents[2], text=True,
                          env=clean | set_before, capture_output=True)  # fmt: skip
    assert done.stdout.strip() == seen, done.stderr
