"""sweep.py and lab/runner.py: planned runs, resuming, rows of all kinds, what goes wrong."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import fails
from sweeps import arguments, parsed

import sweep
import train
from lab import runner
from lab.rows import command_of, flags_of, read_rows
from model import PRESETS

ROOT = Path(__file__).parent.parent
OLD_COLUMNS = (  # of a table written by an earlier version
    "command,top_logit_rmse,best_of_k_rmse,selection_gap,coverage_15,low_95,high_95,"
    "training_mean,best_step,train_objects,seconds,device,threads"
)


# ---------------------------------------------------------------- which runs


def test_expand():
    grid = runner.expand({"--k": "1,5", "--pool": "none"})
    assert grid == [{"--k": "1", "--pool": "none"}, {"--k": "5", "--pool": "none"}]
    assert [flags["--k"] for flags in runner.expand({"--k": "1,2,5"}, smoke=True)] == ["1", "5"]


def test_a_command_and_its_flags():
    flags = {"--k": "5", "--jepa-ckpt": "my encoder.pt", "--seed": "1"}
    command = command_of(flags)
    assert command == "python train.py --k 5 --jepa-ckpt 'my encoder.pt' --seed 1"
    assert flags_of({"command": command}) == {"--k": "5", "--jepa-ckpt": "my encoder.pt"}


@pytest.mark.parametrize("kind, runs", [("lr-grid", 24), ("k", 6), ("pool", 8), ("loss", 3), ("benchmark", 20)])
def test_planned_runs(kind, runs):
    args = parsed(kind)
    commands = [command_of(flags) for flags in runner.plan_runs(sweep.GRIDS[kind], {}, args.seeds, args)]
    assert len(set(commands)) == len(commands) == runs
    assert all("--data data/full --threads 1" in command for command in commands)


# ---------------------------------------------------------------- running


def test_grid_resumes_where_it_stopped(box_root, tmp_path, monkeypatch):
    argv = arguments(box_root, tmp_path, "--k", "1,2", "--seeds", "0,1")
    calls, original, out = [], train.main, tmp_path / "table"

    def main(argv):
        calls.append(argv)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(argv)

    monkeypatch.setattr(train, "main", main)
    with pytest.raises(SystemExit) as stop:
        sweep.main(argv)
    assert stop.value.code == 130
    rows = sweep.main(argv)
    assert len(calls) == 5 and len(rows) == 4  # two, the interrupted one, and that one again with the last
    ends = [row["command"].split(" --k ")[1] for row in rows]
    assert ends == ["1 --seed 0", "1 --seed 1", "2 --seed 0", "2 --seed 1"]
    saved = list(csv.DictReader(open(out / "rows.csv")))
    assert saved == rows
    text = (out / "table.md").read_text()
    first, second = (float(row["top_logit_rmse"]) for row in saved[:2])
    assert f"{(first + second) / 2:.4f} ± {abs(first - second) / 2**0.5:.4f}" in text
    assert len(sweep.main(argv)) == 4 and len(calls) == 5
    (out / "table.md").unlink()
    sweep.main([*argv, "--tables"])
    assert len(calls) == 5 and (out / "table.md").read_text() == text


@pytest.mark.parametrize("kind, runs", [("lr-grid", 8), ("k", 2), ("pool", 2), ("loss", 2)])
def test_smoke(kind, runs, box_root, tmp_path):
    rows = sweep.main(arguments(box_root, tmp_path, kind=kind))
    assert len(rows) == runs and all(0 < float(row["top_logit_rmse"]) < 10 for row in rows)
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"rows.csv", "table.md", "figure.png"}


def test_a_diverged_run_keeps_its_row(box_root, tmp_path):
    argv = arguments(box_root, tmp_path, "--lr-head", "1e-3,1e30")
    good, bad = sweep.main(argv)
    assert good["failed"] == "" and "not finite" in bad["failed"] and bad["top_logit_rmse"] == ""
    assert "1 (1 diverged) | – |" in (tmp_path / "table" / "table.md").read_text()
    assert len(sweep.main(argv)) == 2


def test_a_row_of_another_encoder_is_not_taken(box_root, tmp_path, capsys):
    argv = arguments(box_root, tmp_path, "--init", "jepa,scratch")
    jepa, scratch = sweep.main(argv)
    assert len(jepa["encoder"]) == 8 and scratch["encoder"] == "" and "jepa-ckpt" not in scratch["command"]
    (path,) = (tmp_path / "runs").glob("random-*.pt")
    path.write_bytes(path.read_bytes() + b"x")
    assert "another encoder" in fails(sweep.main, argv, capsys)


def test_rows_of_an_earlier_version_stay(box_root, tmp_path):
    """A CSV with fewer columns than a row has now."""
    out = tmp_path / "table"
    out.mkdir()
    lines = [OLD_COLUMNS]
    for seed, rmse in enumerate((0.38, 0.39, 0.4)):
        command = f"python train.py --budget 1 --pool none --seed {seed}"
        lines.append(f"{command},{rmse},0.2,0.19,0.83,0.391,0.419,0.358,1800,24,13,cpu,1")
    (out / "rows.csv").write_text("\n".join(lines) + "\n")
    rows = sweep.main(arguments(box_root, tmp_path))
    assert len(rows) > 3 and rows[0]["fingerprint"] == "" and rows[-1]["fingerprint"]
    line = "| 3 | 0.3900 ± 0.0100 | 0.391 to 0.419 | 0.2000 ± 0.0000 | 0.1900 ± 0.0000 | 0.830 ± 0.000 | 13 |"
    assert line in (out / "table.md").read_text()


def test_errors(box_root, tmp_path, capsys):
    wrong = [
        (["--k"], "pairs"), (["--k", "0"], "--k"), (["--seeds", "x"], "--seeds"), (["--seed", "1"], "--seeds"),
        (["--against", "x"], "table1"), (["--init", "jepa", "--jepa-ckpt", "none.pt"], "none.pt"),
    ]  # fmt: skip
    for more, message in wrong:
        assert message in fails(sweep.main, arguments(box_root, tmp_path, *more), capsys)
    assert "FILE.pt" in fails(sweep.main, arguments(box_root, tmp_path, kind="encoders"), capsys)
    half = arguments(box_root, tmp_path, "--lr-head", "1e-3", kind="table1")
    assert "--lr-head" in fails(sweep.main, half, capsys)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "rows.csv").write_text("a,b\n1,2\n")
    assert "rows.csv" in fails(sweep.main, arguments(box_root, tmp_path), capsys)


@pytest.mark.slow
def test_two_jobs_end_in_the_rows_of_one(box_root, tmp_path):
    one = sweep.main(arguments(box_root, tmp_path / "one", "--k", "1,2"))
    two = sweep.main([*arguments(box_root, tmp_path / "two", "--k", "1,2"), "--jobs", "2"])
    assert [{**row, "seconds": ""} for row in two] == [{**row, "seconds": ""} for row in one]


@pytest.mark.slow
def test_one_signal_stops_two_jobs_and_the_same_command_goes_on(box_root, tmp_path):
    long = "grid --k 1,2 --preset tiny --steps 100000 --eval-every 100000 --threads 1 --jobs 2"
    places = f"--data {box_root} --out {tmp_path}/table --runs {tmp_path}/runs"
    command = [sys.executable, ROOT / "sweep.py", *long.split(), *places.split()]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("runs/*/last.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # as SIGINT, which a shell may have had ignored
    assert process.wait(timeout=300) == 130
    logs = [path.read_text() for path in tmp_path.glob("runs/*.log")]
    assert len(logs) == 2 and all("stopped at step" in log for log in logs)  # the parent has waited for both
    assert not (tmp_path / "table" / "rows.csv").exists()


# ---------------------------------------------------------------- the others


def test_encoders_and_their_cards(box_root, tmp_path):
    path = runner.random_encoder(PRESETS["tiny"], tmp_path).rename(tmp_path / "mine.pt")
    card = '{"command": "python pretrain_jepa.py --out mine.pt", "seconds": 7, "clouds_seen": 100}'
    path.with_suffix(".json").write_text(card)
    argv = ["encoders", str(path), *arguments(box_root, tmp_path, "--seeds", "0,1", "--budgets", "1")[1:]]
    rows = sweep.main(argv)
    assert [row["file"] for row in rows] == ["random", str(path)]
    assert [row["command"] for row in rows] == ["", "python pretrain_jepa.py --out mine.pt"]
    assert rows[1]["seconds"] == "7"
    runs = read_rows(tmp_path / "table" / "runs.csv")
    values = [float(run["top_logit_rmse"]) for run in runs if "mine.pt" in run["command"]]
    assert len(runs) == 4 and float(rows[1]["rmse_1"]) == pytest.approx(sum(values) / 2)
    assert float(rows[1]["rmse_1_sd"]) == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert 1 <= float(rows[1]["rank_tokens"]) <= 32 and rows[1]["probe_2"]
    table = tmp_path / "table" / "rows.csv"
    before = table.read_text()
    assert sweep.main(argv) == rows and table.read_text() == before
    fewer = [*argv[:2], *arguments(box_root, tmp_path, "--seeds", "1", "--budgets", "1")[1:]]
    assert sweep.main(fewer) == rows and table.read_text() == before


def test_benchmark_has_its_baselines(box_root, tmp_path):
    argv = arguments(box_root, tmp_path, "--budget", "1", kind="benchmark")
    rows = sweep.main(argv)
    text = (tmp_path / "table" / "table.md").read_text()
    assert "(training mean, budget 1)" in text and "(nearest training grasp) `" in text and "Linear probe" in text
    assert len(rows) == 6  # pose only, attention and hand with K of 5 and 1, nearest grasp
    assert sweep.main(argv) == rows
