import math
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F

import common
from common import Parser, UserError, atomic, command, deferred_interrupt, number, read_json, stable_seed, warmup_cosine, write_json


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
    import hashlib

    digest = hashlib.sha256(b"dataset/0/7").hexdigest()
    assert stable_seed("dataset", 0, 7) == int(digest[:16], 16) // 2


def test_warmup_cosine_against_the_formula():
    values = [warmup_cosine(step, 100, 10, start=0.1, end=0.02) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and values[5] == pytest.approx(0.55) and values[10] == pytest.approx(1)
    assert values[55] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert values[100] == pytest.approx(0.02)
    assert all(a > b for a, b in zip(values[10:], values[11:]))


def test_deferred_interrupt_waits_for_the_loop():
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_slow_bf16_is_announced(monkeypatch, capsys):
    """Which processor runs the test must not matter."""
    monkeypatch.setattr(common, "computes_bf16", lambda device: False)
    for precision in ("auto", "fp32"):
        common.set_up_torch("cpu", precision=precision)
    assert capsys.readouterr().err == ""
    common.set_up_torch("cpu", precision="bf16")
    assert "warning: --precision bf16" in capsys.readouterr().err
    monkeypatch.setattr(common, "computes_bf16", lambda device: True)
    common.set_up_torch("cpu", precision="bf16")
    assert capsys.readouterr().err == ""


def test_bf16_pays_where_it_is_said_to():
    """A product in software takes seven times as long as in float32 or more; with instructions about as long or less."""

    def fastest(dtype):
        square, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(5):
            begun = time.perf_counter()
            F.linear(square, square)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert common.computes_bf16(torch.device("cpu")) == (fastest(torch.bfloat16) < 3 * fastest(torch.float32))
    assert common.computes_bf16(torch.device("cuda"))
