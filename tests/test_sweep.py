"""sweep.py and lab/runner.py: planned runs, resuming, rows of all kinds, several sweeps at once, what goes wrong."""

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import fails, write_root
from sweeps import arguments, parsed

import sweep
import train
from benchmark.roots import VERSION
from files.writing import locked
from lab import runner
from lab.rows import OLD_DATASETS, command_of, dataset_of, differences, flags_of, lengths, read_rows, write_rows
from model import POOLS, PRESETS

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


def planned(*words):
    """The commands of the runs of a sweep of grids."""
    args = parsed(*words)
    return [command_of(flags) for flags in runner.plan_runs(sweep.grids_of(args), {}, args.seeds, args)]


@pytest.mark.parametrize(
    "kind, runs",
    [("lr-grid", 24), ("k", 6), ("pool", len(POOLS)), ("loss", 3), ("budget", 4), ("init", 2), ("benchmark", 20)],
)
def test_planned_runs(kind, runs):
    commands = planned(kind)
    assert len(set(commands)) == len(commands) == runs
    assert all("--data data/full --threads 1" in command for command in commands)


@pytest.mark.parametrize("kind, runs", [("k", 3), ("pool", 5), ("loss", 3), ("budget", 3), ("init", 2)])
def test_exercises_are_short(kind, runs):
    commands = planned(kind, "--quick")
    assert len(set(commands)) == len(commands) == runs
    assert all("--data data/synthetic" in command and command.endswith("--seed 0") for command in commands)
    steps = {flags_of({"command": command})["--steps"] for command in commands}
    assert len(steps) == 1 and int(*steps) <= train.build_parser().get_default("steps")


def test_tables_go_where_nothing_is_committed(tmp_path):
    assert parsed("k").out == Path("runs/tables/k") and parsed("encoders").out == Path("runs/tables/encoders")
    assert parsed("k", "--quick").out == Path("runs/tables/k_quick")
    assert parsed("table1", "--smoke").out == Path("runs/smoke/table1")
    assert parsed("k", "--out", "results/k").out == Path("results/k")


# ---------------------------------------------------------------- running


def test_grid_resumes_where_it_stopped(box_root, tmp_path, monkeypatch, capsys):
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
    error = capsys.readouterr().err
    assert stop.value.code == 130 and "the same command goes on" in error and "--resume" not in error
    assert "grid: 0 rows found, 4 to run" in error
    rows = sweep.main(argv)
    assert "grid: 2 rows found, 2 to run" in capsys.readouterr().err
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


KINDS = ["k", "loss", "budget", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lr-grid", "pool", "init"))]


@pytest.mark.parametrize("kind", KINDS)
def test_smoke(kind, box_root, tmp_path):
    quick = [] if kind == "lr-grid" else ["--quick"]
    rows = sweep.main(arguments(box_root, tmp_path, *quick, kind=kind))
    assert len(rows) == (8 if kind == "lr-grid" else 2)
    assert all(0 < float(row["top_logit_rmse"]) < 10 for row in rows)
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
        (["--quick"], "--quick"), (["--tables", "--list"], "--list"), (["--from", "x"], "--from"),
        (["--tables"], "no rows"), (["--budgets", "0.1", "--budget", "1"], "same as --budget"),
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
    timed = dict.fromkeys(("seconds", "ms_per_step", "memory_mb"))
    assert [row | timed for row in two] == [row | timed for row in one]


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


# ---------------------------------------------------------------- the dataset


def change_labels(root):
    """Other joints in one recording of a root."""
    path = next(root.glob("*/*/*/recording.npz"))
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["grasps"][:, 7:] *= 0.5
    np.savez(path, **arrays)


def small_root(tmp_path):
    return write_root(tmp_path / "root", {"03797390": 6, "02876657": 6})


def claim_generated(root, **settings):
    """Let a root say that synthesize.py made it with these settings."""
    (root / "dataset.json").write_text(json.dumps({"version": VERSION, "complete": True, "settings": settings}))


def test_changed_labels_bring_no_old_result_back(tmp_path, capsys):
    root = small_root(tmp_path)
    (before,) = sweep.main(arguments(root, tmp_path))
    change_labels(root)
    assert "another dataset" in fails(sweep.main, arguments(root, tmp_path), capsys)
    (after,) = sweep.main([*arguments(root, tmp_path), "--out", str(tmp_path / "new")])
    assert after["command"] == before["command"] and after["dataset"] != before["dataset"]
    assert after["top_logit_rmse"] != before["top_logit_rmse"]


def test_a_generated_dataset_is_known_by_its_settings(tmp_path, capsys):
    """Its files may differ in last digits, so its rows stay; what is run here is what lies here."""
    root = small_root(tmp_path)
    claim_generated(root, preset="mini", seed=0, meshes=None, rescale=False)
    (before,) = sweep.main(arguments(root, tmp_path))
    assert before["dataset"] == f"generator {VERSION}: preset mini, seed 0"
    change_labels(root)
    capsys.readouterr()
    assert sweep.main(arguments(root, tmp_path)) == [before]
    assert "1 rows found, 0 to run" in capsys.readouterr().err
    (after,) = sweep.main([*arguments(root, tmp_path), "--out", str(tmp_path / "new")])
    assert after["dataset"] == before["dataset"] and after["top_logit_rmse"] != before["top_logit_rmse"]
    text = (tmp_path / "table" / "table.md").read_text()
    assert "fingerprint" not in text and "differ" not in text
    write_rows(tmp_path / "table" / "rows.csv", [before, after | {"command": before["command"] + "1"}])
    sweep.main([*arguments(root, tmp_path), "--tables"])
    assert "have several fingerprints" in (tmp_path / "table" / "table.md").read_text()
    claim_generated(root, preset="mini", seed=1)
    assert "seed 1" in fails(sweep.main, arguments(root, tmp_path), capsys)
    claim_generated(root, preset="mini", seed=0, meshes="my_meshes")  # which may change
    assert "fingerprint" in fails(sweep.main, arguments(root, tmp_path), capsys)


def test_rows_from_before_they_named_their_dataset():
    row = {"command": "python train.py --data data/full --seed 0", "fingerprint": "abc"}
    assert dataset_of(row) == OLD_DATASETS["data/full"]
    assert dataset_of(row | {"command": "python train.py --data mine"}) == "fingerprint abc"
    assert dataset_of({"command": "python train.py --data mine"}) == ""
    assert dataset_of(row | {"dataset": "generator 2: preset full"}) == "generator 2: preset full"


def test_what_differs_is_said():
    def row(flags, **more):
        return {"command": f"python train.py {flags}", "device": "cpu", "fingerprint": "a", "dataset": "x"} | more

    alike = [row("--k 1"), row("--k 5 --precision fp32"), row("--steps 2000", failed="diverged")]
    assert differences(alike) == []
    # before rows named their precision, auto on a GPU was bf16
    mixed = [row("--k 1"), row("--k 5", device="cuda"), row("--steps 50", fingerprint="b"), row("--k 1", dataset="y")]
    assert differences(mixed) == [
        "Rows differ in their dataset: x (3 rows), y (1 row).",
        "Rows differ in their precision: bf16 (1 row), fp32 (3 rows).",
        "Rows differ in their number of steps: 2000 (3 rows), 50 (1 row).",
        "Rows of one dataset (x) have several fingerprints, since processors round differently: a (2 rows), b (1 row).",
    ]
    assert differences([row("--k 1"), row("--k 1", device="cuda", precision="fp32")]) == []


def test_what_is_cut_off_is_said():
    rows = [{"command": f"python train.py --steps {steps}"} for steps in (1000, 8000, 500)]
    assert lengths(rows) == ["Trainings of 500 and 1,000 steps: **unconverged**."]
    assert lengths([{"command": "python train.py --k 1"}]) == ["Trainings of 2,000 steps: **unconverged**."]
    assert lengths([rows[1], {"command": "nearest training grasp"}, rows[0] | {"failed": "diverged"}]) == []


# ---------------------------------------------------------------- several at once


def test_listed_commands_leave_what_the_sweep_takes(box_root, tmp_path, monkeypatch, capsys):
    argv = arguments(box_root, tmp_path, "--k", "1,2", "--seeds", "0,1")
    sweep.main([*argv[:-1], "0"])  # two of the four have rows
    capsys.readouterr()
    assert len(sweep.main([*argv, "--list"])) == 2
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2 and all("--seed 1" in command for command in commands)
    for command in commands:
        assert command.startswith("python train.py ")
        train.main(shlex.split(command)[2:])
    capsys.readouterr()
    monkeypatch.setattr(train, "main", None)
    assert len(sweep.main(argv)) == 4
    sweep.main([*argv, "--list"])
    assert capsys.readouterr().out.count("python train.py") == 0


def test_list_makes_no_data(tmp_path, monkeypatch, capsys):
    """A default root that is not there stays away; one of the user's own must be there, or its name is wrong."""
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["k", "--list", "--k", "1,2"]) == []
    assert capsys.readouterr().out.count("python train.py --data data/full") == 2
    assert not (tmp_path / "data").exists()
    assert "no such root" in fails(sweep.main, ["k", "--list", "--data", "mine"], capsys)


@pytest.mark.parametrize("by", ["a sweep", "train.py"])
def test_a_run_that_another_process_has_is_waited_for(by, box_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "PAUSE", 0.05)
    argv, rows = arguments(box_root, tmp_path, "--k", "1,2"), tmp_path / "table" / "rows.csv"
    args, _, given = sweep.parse(argv)
    first, second = runner.with_origins(runner.plan_runs([{}], given, "0", args), rows, args)
    lock = first.log if by == "a sweep" else first.folder / ".lock"
    locking, meanwhile = threading.Event(), []

    def have_the_first_run():
        with locked(lock) as mine:
            assert mine
            locking.set()
            deadline = time.monotonic() + 60
            while not rows.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            meanwhile.extend(row["command"] for row in read_rows(rows))

    other = threading.Thread(target=have_the_first_run)
    other.start()
    locking.wait()
    assert len(sweep.main(argv)) == 2
    other.join()
    assert meanwhile == [second.command]  # the free one first
    assert f"waiting for another process, which has {first.folder}" in capsys.readouterr().err


def test_a_run_that_somebody_trains_is_tried_again(box_root, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "BUSY_PAUSE", 0)
    original, calls = train.main, []

    def main(argv):
        calls.append(argv)
        if len(calls) == 1:
            print("error: another process trains this run", file=sys.stderr)
            raise SystemExit(2)
        return original(argv)

    monkeypatch.setattr(train, "main", main)
    assert len(sweep.main(arguments(box_root, tmp_path))) == 1 and len(calls) == 2


def test_a_lock_ends_with_its_process(tmp_path):
    code = "from files.writing import locked\nwith locked('lock') as mine:\n print(mine, flush=True)\n input()"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=pipe, stdout=pipe)
    assert process.stdout.readline() == b"True\n"
    with locked(tmp_path / "lock") as mine:
        assert not mine
    process.kill()
    process.wait()
    with locked(tmp_path / "lock") as mine:
        assert mine
        with locked(tmp_path / "lock") as twice:
            assert not twice


# ---------------------------------------------------------------- the others


def test_encoders_and_their_cards(box_root, tmp_path):
    path = runner.random_encoder(PRESETS["tiny"], tmp_path).rename(tmp_path / "mine.pt")
    card = '{"command": "python pretrain_jepa.py --out mine.pt", "seconds": 7, "clouds_seen": 100}'
    path.with_suffix(".json").write_text(card)
    argv = ["encoders", str(path), *arguments(box_root, tmp_path, "--seeds", "0,1", "--budgets", "1")[1:]]
    rows = sweep.main(argv)
    assert [row["file"] for row in rows] == ["random", "random, calibrated", str(path)]
    assert [row["command"] for row in rows] == ["", "", "python pretrain_jepa.py --out mine.pt"]
    assert rows[2]["seconds"] == "7"
    runs = read_rows(tmp_path / "table" / "runs.csv")
    values = [float(run["top_logit_rmse"]) for run in runs if "mine.pt" in run["command"]]
    assert len(runs) == 6 and float(rows[2]["rmse_1"]) == pytest.approx(sum(values) / 2)
    assert float(rows[2]["rmse_1_sd"]) == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert 1 <= float(rows[2]["rank_tokens"]) <= 32 and rows[2]["probe_2"]
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
