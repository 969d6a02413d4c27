"""Whatever a command is started in, it works, or says in one line why not: all commands of commands.py, each way."""

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
import pretrain_jepa
import splits
import sweep
import synthesize
import train
import walkthrough

HERE = Path(commands.__file__)


def test_on_windows(tmp_path):
    """As far as it can be had here: what is written is the same."""
    words = [sys.executable, "-X", "utf8=0", str(HERE), str(tmp_path), "windows"]
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
    """However it is spelled: for --resume, finished runs and the baseline beside them."""
    monkeypatch.chdir(tmp_path)
    write_root(tmp_path / "r", {"a": 5})
    argv = "--runs runs --preset tiny --steps 8 --no-pictures --quiet --threads 1 --data".split()
    interrupted(train.main, [*argv, "r"], 2)
    for spelled in ("./r", "r/", f"{tmp_path}/r", f"r/../../{tmp_path.name}/r"):
        interrupted(train.main, [*argv, spelled, "--resume"], 1)
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


# ---------------------------------------------------------------- while libraries load


AT_IMPORT = """
import os, runpy, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == {module!r}:
            {action}
sys.meta_path.insert(0, Finder)
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path({script!r}, run_name="__main__")
"""


def at_import(module, action, script, **environment):
    """Run a script in a process of its own, which does `action` when it comes to import a library."""
    code = AT_IMPORT.format(module=module, action=action, script=f"{script}.py")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    return subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[2], env=clean | environment,
                          capture_output=True, text=True)  # fmt: skip


@pytest.mark.parametrize(
    "script, module", [pytest.param("train", "torch.nn", marks=pytest.mark.slow), ("synthesize", "numpy")]
)
def test_ctrl_c_while_libraries_load(script, module):
    done = at_import(module, "signal.raise_signal(signal.SIGINT)", script)
    assert (done.returncode, done.stderr.splitlines()) == (130, ["interrupted"])


@pytest.mark.parametrize("script, set_before, seen", [
    ("train", {}, "passive 20000 0"), ("sweep", {}, "passive 20000 0"), ("walkthrough", {}, "passive 20000 0"),
    ("train", {"OMP_WAIT_POLICY": "active"}, "active None None"), ("train", {"KMP_BLOCKTIME": "7"}, "passive 20000 7"),
])  # fmt: skip
def test_threads_soon_sleep_unless_the_user_says_how(script, set_before, seen):
    """PyTorch reads this when it is loaded."""
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"
    done = at_import("torch", f"print(*map(os.environ.get, {names}), flush=True); os._exit(0)", script, **set_before)
    assert done.stdout.strip() == seen, done.stderr
