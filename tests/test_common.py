"""cli/ and files/writing.py: one-line errors, argument types, atomic writing, stable seeds."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.errors import UserError, command
from cli.flags import Parser, number
from files.writing import atomic, read_json, stable_seed, write_json

ROOT = Path(__file__).parent.parent


def test_command_turns_user_errors_into_one_line(capsys):
    @command
    def main(argv=None):
        raise UserError("file.npz: broken\nin two lines")

    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: file.npz: broken in two lines\n"


def test_command_reports_a_full_disk_and_ctrl_c(capsys):
    @command
    def full(argv=None):
        raise OSError(28, "No space left on device", "out.pt")

    @command
    def interrupted(argv=None):
        raise KeyboardInterrupt

    for main, code in ((full, 2), (interrupted, 130)):
        with pytest.raises(SystemExit) as stop:
            main([])
        assert stop.value.code == code
    assert "error: out.pt: No space left on device; " in capsys.readouterr().err


def test_parser_takes_negative_exponents_and_no_abbreviations():
    parser = Parser("doc")
    parser.add_argument("--pose", type=number(float), nargs=2)
    assert parser.parse_args(["--pose", "-1e-3", "-.5"]).pose == [-1e-3, -0.5]
    with pytest.raises(UserError):
        parser.parse_args(["--pos", "1", "2"])


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "2", "x", ""])
def test_number_refuses(text):
    parser = Parser("doc")
    parser.add_argument("--share", type=number(float, 0, 1))
    with pytest.raises(UserError, match="--share"):
        parser.parse_args(["--share", text])


@pytest.mark.parametrize("digits", [10, 20, 401])
def test_huge_whole_numbers_are_refused(digits):
    """Every kind of which something later would break: a conversion to float, to an index, to a number of threads."""
    parser = Parser("doc")
    parser.add_argument("--count", type=number(int, 0))
    for sign in ("", "-"):
        with pytest.raises(UserError, match="at most|at least"):
            parser.parse_args([f"--count={sign}{'9' * digits}"])
    assert parser.parse_args(["--count", str(2**31 - 1)]).count == 2**31 - 1


def test_help_says_a_default_of_zero():
    parser = Parser("doc")
    for name, default in (("zero", 0), ("float", 0.0), ("one", 1)):
        parser.add_argument(f"--{name}", type=number(float), default=default, help=f"a {name}")
    parser.add_argument("--none", help="nothing")
    parser.add_argument("--switch", action="store_true", help="a switch")
    text = " ".join(parser.format_help().split())
    assert all(f"a {name} (default: {default})" in text for name, default in (("zero", 0), ("float", 0.0), ("one", 1)))
    assert text.count("default") == 3


def test_atomic_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "a" / "file.txt"
    with atomic(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError):
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file.txt"]


def test_json_round_trip_and_errors(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert read_json(tmp_path / "x.json") == {"a": [1, None]}
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "missing.json"):
        with pytest.raises(UserError, match=name):
            read_json(tmp_path / name)


def test_stable_seed_is_sha256():
    digest = hashlib.sha256(b"dataset/0/7").hexdigest()
    assert stable_seed("dataset", 0, 7) == int(digest[:16], 16) // 2


# ---------------------------------------------------------------- terminals and pipes


def script(code, tmp_path, **environment):
    """A process whose main prints what `code` says, as a command of ours."""
    path = tmp_path / "script.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom cli.errors import UserError, command\n\n\n"
        f"@command\ndef main(argv=None):\n    {code}\n\n\nmain()\n"
    )
    return [sys.executable, str(path)], os.environ | environment


def test_closed_pipe_is_no_error(tmp_path):
    words, environment = script("print('a line\\n' * 100000)", tmp_path)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_poor_terminals_see_question_marks(encoding, tmp_path):
    words, environment = script(
        "print('15° α → ✓')\n    raise UserError('größe ✗')", tmp_path, PYTHONIOENCODING=encoding
    )
    done = subprocess.run(words, capture_output=True, env=environment)
    expected = "15° α → ✓".encode(encoding, "replace")
    assert done.returncode == 2 and done.stdout.strip() == expected
    assert done.stderr.strip() == "error: größe ✗".encode(encoding, "replace")


def test_interrupt_says_what_to_do_now(tmp_path):
    words, environment = script("raise KeyboardInterrupt('stopped; the same command goes on')", tmp_path)
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (130, "stopped; the same command goes on\n")
