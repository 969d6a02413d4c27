"""cli/: one-line errors, flags, work in processes, terminals, libraries."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.errors import UserError, command
from cli.flags import Parser, as_flags, number, told
from cli.processes import map_in_processes

ROOT = Path(__file__).parent.parent
FAILURES = {  # what main raises -> exit code, what stderr says
    UserError("file.npz: broken\nin two lines"): (2, "error: file.npz: broken in two lines\n"),
    OSError(28, "No space left on device", "out.pt"): (2, "error: out.pt: No space left on device; mend that"),
    MemoryError(): (2, "error: out of memory; "),
    RuntimeError("CUDA out of memory. Tried to"): (2, "error: out of memory; "),
    KeyboardInterrupt(): (130, "interrupted\n"),
    KeyboardInterrupt("stopped; the same command goes on"): (130, "stopped; the same command goes on\n"),
}


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_command_ends_with_one_line(failure, capsys):
    @command
    def main(argv=None):
        raise failure

    code, said = FAILURES[failure]
    with pytest.raises(SystemExit) as stop:
        main([])
    err = capsys.readouterr().err
    assert stop.value.code == code and err.startswith(said) and err.count("\n") == 1


def test_a_fault_of_ours_is_not_hidden():
    @command
    def main(argv=None):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        main([])


def test_settings_as_flags_are_the_settings_again():
    parser = Parser("doc")
    parser.add_argument("--rate", type=number(float))
    parser.add_argument("--held-out", nargs="*")
    parser.add_argument("--switch", action="store_true")
    for argv in (["--rate=-1e-3", "--held-out", "a", "b"], ["--held-out"], ["--switch"], []):
        settings = vars(parser.parse_args(argv))
        assert vars(parser.parse_args(as_flags(settings))) == settings


def test_help_without_docstrings():
    """As `python -OO` leaves them out."""
    assert "usage" in Parser(None).format_help() and told({"one": type("One", (), {})}) == "one: "


def test_results_in_order_whatever_the_number_of_workers():
    before, numbers = dict(os.environ), [float(i * i) for i in range(20)]
    for workers, chunk in ((1, 1), (2, 7)):
        assert list(map_in_processes(math.sqrt, numbers, workers, chunk)) == [float(i) for i in range(20)]
    assert dict(os.environ) == before  # the threads of the workers are no setting of this process


def test_whoever_stops_early_leaves_no_work_behind():
    made = map_in_processes(os.getenv, ["OMP_NUM_THREADS"] * 50, workers=2)
    assert next(made) == "1"  # as many workers as cores, so one thread each
    made.close()  # as contextlib.closing does after Ctrl-C
    assert list(made) == []


# ---------------------------------------------------------------- terminals and pipes
def script(code):
    """A process whose main does what `code` says, as a command of ours."""
    head = "from cli.errors import UserError, command\n@command\ndef main(argv=None):\n    "
    return [sys.executable, "-c", f"{head}{code}\nmain()"]


def test_closed_pipe_is_no_error():
    words = script("print('a line\\n' * 100000)")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_poor_terminals_see_question_marks():
    words = script("print('15° α → ✓')\n    raise UserError('größe ✗')")
    done = subprocess.run(words, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 2 and done.stdout.strip() == "15° α → ✓".encode("cp1252", "replace")
    assert done.stderr.strip() == "error: größe ✗".encode("cp1252", "replace")


def test_constraints_name_a_version_of_each_that_is_new_enough():
    lines = re.findall(r"^(\w+)>=([\d.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), flags=re.M)
    bounds = {name: tuple(map(int, bound.split("."))) for name, bound in reversed(lines)}  # numpy: the first line
    pins = re.findall(r"^(\w+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    assert dict(pins).keys() == bounds.keys()
    assert all(tuple(map(int, pin.split("."))) >= bounds[name] for name, pin in pins)


def test_a_library_that_is_missing_or_too_old_is_one_line():
    for code, said in (
        ("import nowhere", "No module named 'nowhere'"),
        ("from numpy import x", "cannot import name 'x'"),
    ):
        words = [sys.executable, "-c", f"import cli; {code}"]
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 2 and ended.stderr.startswith(f"error: {said}") and ended.stderr.count("\n") == 1
        assert ended.stderr.endswith("; pip install -r requirements.txt\n")
