import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import fails

import sweep
import train
from common import UserError

ROOT = Path(__file__).parent.parent


def arguments(box_root, tmp_path, *more, kind="grid"):
    return [kind, "--smoke", "--out", str(tmp_path / "grid"), "--runs", str(tmp_path / "runs"), "--data", str(box_root), *map(str, more)]


def parsed(*argv):
    """sweep.py's own arguments as main would settle them."""
    args = sweep.build_parser().parse_args(argv)
    args.seeds = args.seeds or sweep.SEEDS.get(args.kind, "0").split(",")
    return args


# ---------------------------------------------------------------- which runs


def test_expand():
    assert sweep.expand({"--k": "1,5", "--pool": "none"}) == [{"--k": "1", "--pool": "none"}, {"--k": "5", "--pool": "none"}]
    assert [flags["--k"] for flags in sweep.expand({"--k": "1,2,5"}, smoke=True)] == ["1", "5"]


@pytest.mark.parametrize("kind, runs", [("lr-grid", 24), ("k", 6), ("pool", 8), ("loss", 3), ("benchmark", 20)])
def test_planned_runs(kind, runs):
    args = parsed(kind)
    commands = [sweep.spelt(flags) for flags in sweep.plan(sweep.AXES[kind], {}, args.seeds, args)]
    assert len(set(commands)) == len(commands) == runs
    assert all("--data data/full --threads 1" in command for command in commands)


def test_planned_runs_of_table1():
    args = parsed("table1")
    rates = {"jepa": [sweep.PAPER, ("1e-4", "1e-3")], "scratch": [sweep.PAPER, ("3e-4", "2e-3")]}
    todo = sweep.plan_table1({}, rates, args)
    assert len({sweep.spelt(flags) for flags in todo}) == len(todo) == (4 + 3) * 2 * 2 * 3
    assert {(f["--init"], f["--lr-backbone"]) for f in todo} == {("jepa", "1e-5"), ("jepa", "1e-4"), ("scratch", "1e-5"), ("scratch", "3e-4")}
    assert [f["--seed"] for f in todo] == sorted(f["--seed"] for f in todo)
    assert len(sweep.plan_table1({}, {"jepa": [sweep.PAPER], "scratch": [sweep.PAPER]}, args)) == 42  # one run serves both
    ours = sweep.plan_table1({"--init": "jepa", "--jepa-ckpt": "x.pt", "--budget": "0.1", "--pack": "A"}, rates, args)
    assert len(ours) == 6 and all(f["--jepa-ckpt"] == "x.pt" for f in ours)
    both = sweep.plan_table1({"--jepa-ckpt": "x.pt"}, rates, args)
    assert all(("--jepa-ckpt" in f) == (f["--init"] == "jepa") for f in both)


def test_rates_of_table1(box_root, tmp_path):
    given = {"--lr-backbone": "0", "--lr-head": "2e-3"}
    assert sweep.rates_of_table1(given, "x", parsed("table1")) == {"jepa": [("0", "2e-3")], "scratch": [("0", "2e-3")]}  # and nothing runs
    assert sweep.rates_of_table1(given | {"--init": "jepa"}, "x", parsed("table1")) == {"jepa": [("0", "2e-3")]}
    rows = sweep.main(arguments(box_root, tmp_path, "--pack", "A", "--budget", "1", "--lr-backbone", "0", "--lr-head", "2e-3", kind="table1"))
    assert len(rows) == 2 and not (tmp_path / "lr-grid.csv").exists()
    assert "Own best rates (backbone, head): jepa 0, 2e-3; scratch 0, 2e-3" in (tmp_path / "grid.md").read_text()


def trial(init, backbone, head, rmse, **more):
    return {"command": f"python train.py --pack A --budget 0.1 --init {init} --lr-backbone {backbone} --lr-head {head} --seed 0", "top_logit_rmse": rmse} | more


def test_best_rates():
    rows = [trial("jepa", "0", "1e-3", "0.4"), trial("jepa", "1e-4", "2e-3", "0.3"), trial("jepa", "1e-3", "1e-3", ""), trial("scratch", "1e-5", "1e-3", "0.5")]
    assert sweep.best_rates(rows) == {"jepa": ("1e-4", "2e-3"), "scratch": ("1e-5", "1e-3")}
    assert sweep.best_rates([]) == {}


# ---------------------------------------------------------------- running


def test_grid_resumes_where_it_stopped(box_root, tmp_path, monkeypatch):
    argv = arguments(box_root, tmp_path, "--k", "1,2", "--seeds", "0,1")
    calls, original = [], train.main

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
    assert [row["command"].split(" --k ")[1] for row in rows] == ["1 --seed 0", "1 --seed 1", "2 --seed 0", "2 --seed 1"]
    saved = list(csv.DictReader(open(tmp_path / "grid.csv")))
    assert saved == rows
    text = (tmp_path / "grid.md").read_text()
    first, second = (float(row["top_logit_rmse"]) for row in saved[:2])
    assert f"{(first + second) / 2:.4f} ± {abs(first - second) / 2**0.5:.4f}" in text
    assert len(sweep.main(argv)) == 4 and len(calls) == 5
    (tmp_path / "grid.md").unlink()
    sweep.main([*argv, "--tables"])
    assert len(calls) == 5 and (tmp_path / "grid.md").read_text() == text


@pytest.mark.parametrize("kind, runs", [("lr-grid", 8), ("k", 2), ("pool", 2), ("loss", 2)])
def test_smoke(kind, runs, box_root, tmp_path):
    rows = sweep.main(arguments(box_root, tmp_path, kind=kind))
    assert len(rows) == runs and all(0 < float(row["top_logit_rmse"]) < 10 for row in rows)
    assert {path.suffix for path in tmp_path.glob("grid.*")} == {".csv", ".md", ".png"}


def test_a_diverged_run_keeps_its_row(box_root, tmp_path):
    rows = sweep.main(arguments(box_root, tmp_path, "--lr-head", "1e-3,1e30"))
    assert rows[0]["failed"] == "" and "not finite" in rows[1]["failed"] and rows[1]["top_logit_rmse"] == ""
    assert "1 (1 diverged) | – |" in (tmp_path / "grid.md").read_text()
    assert len(sweep.main(arguments(box_root, tmp_path, "--lr-head", "1e-3,1e30"))) == 2


def test_a_row_of_another_encoder_is_not_taken(box_root, tmp_path, capsys):
    argv = arguments(box_root, tmp_path, "--init", "jepa,scratch")
    jepa, scratch = sweep.main(argv)
    assert len(jepa["encoder"]) == 8 and scratch["encoder"] == "" and "jepa-ckpt" not in scratch["command"]
    (path,) = (tmp_path / "runs").glob("random-*.pt")
    path.write_bytes(path.read_bytes() + b"x")
    assert "another encoder" in fails(sweep.main, argv, capsys)


def test_rows_of_an_earlier_version_stay(box_root, tmp_path):
    """A CSV with fewer columns than a row has now."""
    columns = "command,top_logit_rmse,best_of_k_rmse,selection_gap,coverage_15,low_95,high_95,training_mean,best_step,train_objects,seconds,device,threads"
    old = [f"python train.py --budget 1 --pool none --seed {seed},{rmse},0.2,0.19,0.83,0.391,0.419,0.358,1800,24,13,cpu,1" for seed, rmse in enumerate((0.38, 0.39, 0.4))]
    (tmp_path / "grid.csv").write_text("\n".join([columns, *old]) + "\n")
    rows = sweep.main(arguments(box_root, tmp_path))
    assert len(rows) > 3 and rows[0]["fingerprint"] == "" and rows[-1]["fingerprint"]
    assert "| 3 | 0.3900 ± 0.0100 | 0.391 to 0.419 | 0.2000 ± 0.0000 | 0.1900 ± 0.0000 | 0.830 ± 0.000 | 13 |" in (tmp_path / "grid.md").read_text()


def test_errors(box_root, tmp_path, capsys):
    for more, message in (
        (["--k"], "pairs"), (["--k", "0"], "--k"), (["--seeds", "x"], "--seeds"), (["--seed", "1"], "--seeds"),
        (["--against", "x"], "table1"), (["--init", "jepa", "--jepa-ckpt", "none.pt"], "none.pt"),
    ):  # fmt: skip
        assert message in fails(sweep.main, arguments(box_root, tmp_path, *more), capsys)
    assert "FILE.pt" in fails(sweep.main, arguments(box_root, tmp_path, kind="encoders"), capsys)
    assert "--lr-head" in fails(sweep.main, arguments(box_root, tmp_path, "--lr-head", "1e-3", kind="table1"), capsys)
    (tmp_path / "grid.csv").write_text("a,b\n1,2\n")
    assert "grid.csv" in fails(sweep.main, arguments(box_root, tmp_path), capsys)


@pytest.mark.slow
def test_two_jobs_end_in_the_rows_of_one(box_root, tmp_path):
    one = sweep.main(arguments(box_root, tmp_path / "one", "--k", "1,2"))
    two = sweep.main([*arguments(box_root, tmp_path / "two", "--k", "1,2"), "--jobs", "2"])
    assert [{**row, "seconds": ""} for row in two] == [{**row, "seconds": ""} for row in one]


@pytest.mark.slow
def test_one_signal_stops_two_jobs_and_the_same_command_goes_on(box_root, tmp_path):
    words = f"grid --k 1,2 --preset tiny --steps 100000 --eval-every 100000 --threads 1 --data {box_root} --out {tmp_path}/grid --runs {tmp_path}/runs --jobs 2"
    process = subprocess.Popen([sys.executable, ROOT / "sweep.py", *words.split()], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("runs/*/last.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # as SIGINT, which a shell may have had ignored
    assert process.wait(timeout=300) == 130
    logs = [path.read_text() for path in tmp_path.glob("runs/*.log")]
    assert len(logs) == 2 and all("stopped at step" in log for log in logs)  # the parent has waited for both
    assert not (tmp_path / "grid.csv").exists()


# ---------------------------------------------------------------- table1 from handmade rows


def table1_row(pack, budget, init, seed, rmse, backbone="1e-5"):
    values = {prefix + name: str(rmse + i / 10) for prefix in ("", "test_") for i, name in enumerate(sweep.METRICS)}
    command = f"python train.py --pack {pack} --budget {budget} --init {init} --lr-backbone {backbone} --lr-head 1e-3 --seed {seed}"
    return {"command": command, "failed": ""} | values


def handmade():
    """Rows and errors: jepa has a quarter of scratch's squared error for every object, so half its RMSE."""
    rows = [table1_row(p, b, i, s, 0.1 * s + (0.3 if p == "A" else 0.5)) for p, b in (("A", 0.01), ("A", 0.1), ("B", 0.1)) for i in ("jepa", "scratch") for s in (0, 1)]
    rows.append(table1_row("A", 0.1, "jepa", 0, 0.25, backbone="1e-4"))
    rng, errors = np.random.default_rng(0), {}
    for row in rows:
        names = np.array([f"{sweep.flags_of(row)['--pack']}/{i}" for i in range(12)])
        seed = int(row["command"][-1])
        scratch = np.arange(1, 13) * (1 + seed) / 100
        for suite in ("val", "test"):
            errors[row["command"], suite] = names, np.arange(5, 17), scratch / (4 if "jepa" in row["command"] else 1)
    return rows, errors


def test_table1_by_hand(tmp_path, monkeypatch):
    rows, errors = handmade()
    monkeypatch.setattr(sweep, "read_errors", lambda out: errors)
    text = sweep.table1_text(rows, str(tmp_path / "x"), None)
    assert "jepa 1e-4, 1e-3; scratch 1e-5, 1e-3" in text
    val = text.split("## test\n")[0]
    # A: 0.3 and 0.4; B: 0.5 and 0.6; SD of two values is their distance / sqrt(2)
    assert f"| A | 0.1 | paper's | jepa | 2 | 0.3500 ± {0.1 / math.sqrt(2):.4f} | 0.4500 ±" in val
    assert f"| A and B | 0.1 | paper's | scratch | 4 | 0.4500 ± {math.sqrt((0.15**2 + 0.05**2) * 2 / 3):.4f} |" in val
    assert "| A | 0.1 | own best | jepa | 1 | 0.2500 | 0.3500 | 0.4500 | 0.550 |" in val  # 1e-4
    assert "| A | 0.1 | own best | scratch | 2 | 0.3500" in val  # the paper's were best
    assert "| A and B | 0.01 |" not in text
    gain = text.split("## Relative")[1]
    assert "| test | A and B | 0.1 | paper's | jepa | 50.0 | 50.0 to 50.0 |" in gain and "scratch |" not in gain
    # own best: jepa has seed 0 only, scratch the mean of seeds 0 and 1, 1.5 times as much: 1 - sqrt(1/4/1.5)
    assert f"| val | A | 0.1 | own best | jepa | {100 * (1 - math.sqrt(1 / 6)):.1f} |" in gain


def test_table1_against_another(tmp_path, monkeypatch):
    """Another encoder's arm, without a scratch of its own: half the error of the other table's jepa, a quarter of its scratch."""
    rows, errors = handmade()
    monkeypatch.setattr(sweep, "read_errors", lambda out: errors if Path(out).name == "old" else {key: (*e[:2], e[2] / 4) for key, e in errors.items()})
    sweep.save_rows(tmp_path / "old.csv", rows)
    text = sweep.table1_text([row for row in rows if "--init jepa" in row["command"]], str(tmp_path / "new"), str(tmp_path / "old"))
    _, over, scratch = text.split("## Relative")
    assert "RMSE over old" in over and "| test | B | 0.1 | paper's | jepa | 50.0 | 50.0 to 50.0 |" in over
    assert "jepa over scratch of old" in scratch and "| test | B | 0.1 | paper's | jepa | 75.0 | 75.0 to 75.0 |" in scratch
    with pytest.raises(UserError, match="none.csv"):
        sweep.table1_text(rows, "new", str(tmp_path / "none"))


def test_table1_figures_from_rows(tmp_path):
    rows, _ = handmade()
    groups = sweep.arms(rows)
    sweep.draw_budgets(groups, [("top_logit_rmse", "a"), ("test_coverage_15", "b")], tmp_path / "a.png")
    sweep.draw_curves(groups, [{"command": rows[0]["command"], "step": str(i), "val_top_logit_rmse": "0.3"} for i in range(3)], tmp_path / "b.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.png", "b.png"))


def test_table1_end_to_end_and_rebuilt_from_its_files(box_root, tmp_path):
    rows = sweep.main(arguments(box_root, tmp_path, "--pack", "A", "--budget", "1", kind="table1"))
    assert len(rows) == 4 and all(row["test_top_logit_rmse"] and row["test_grasp_coverage_15"] and row["test_category_selection_gap"] for row in rows)
    trials = list(csv.DictReader(open(tmp_path / "lr-grid.csv")))
    assert len(trials) == 8 and "test_top_logit_rmse" not in trials[0]
    errors = sweep.read_errors(str(tmp_path / "grid"))
    for row in rows:  # errors per object agree with the metrics of evaluate.py
        for suite, prefix in (("val", ""), ("test", "test_"), ("test_category", "test_category_")):
            objects, grasps, squared = errors[row["command"], suite]
            assert math.sqrt((grasps * squared).sum() / grasps.sum()) == pytest.approx(float(row[prefix + "top_logit_rmse"]), abs=1e-6)
            assert len(set(objects)) == len(objects)
    assert {row["command"] for row in sweep.read_rows(tmp_path / "grid_curves.csv")} == {row["command"] for row in rows}
    assert not list(tmp_path.glob("runs/*/predictions.npz"))
    names = ["grid.md", "grid_efficiency.png", "grid_coverage_gap.png", "grid_curves.png"]
    text = (tmp_path / names[0]).read_text()
    for name in names:
        (tmp_path / name).unlink()
    sweep.main(arguments(box_root, tmp_path, "--tables", "--runs", tmp_path / "none", kind="table1"))
    assert (tmp_path / names[0]).read_text() == text and all((tmp_path / name).exists() for name in names)


# ---------------------------------------------------------------- the others


def test_encoders_and_their_cards(box_root, tmp_path):
    path = sweep.random_encoder(sweep.PRESETS["tiny"], tmp_path).rename(tmp_path / "mine.pt")
    path.with_suffix(".json").write_text('{"command": "python pretrain_jepa.py --out mine.pt", "seconds": 7, "clouds_seen": 100}')
    argv = ["encoders", str(path), *arguments(box_root, tmp_path, "--seeds", "0,1", "--budgets", "1")[1:]]
    rows = sweep.main(argv)
    assert [row["file"] for row in rows] == ["random", str(path)]
    assert rows[0]["command"] == "" and rows[1]["command"] == "python pretrain_jepa.py --out mine.pt" and rows[1]["seconds"] == "7"
    runs = sweep.read_rows(tmp_path / "grid_runs.csv")
    values = [float(run["top_logit_rmse"]) for run in runs if "mine.pt" in run["command"]]
    assert len(runs) == 4 and float(rows[1]["rmse_1"]) == pytest.approx(sum(values) / 2)
    assert float(rows[1]["rmse_1_sd"]) == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert 1 <= float(rows[1]["rank_tokens"]) <= 32 and rows[1]["probe_2"]
    before = (tmp_path / "grid.csv").read_text()
    assert sweep.main(argv) == rows and (tmp_path / "grid.csv").read_text() == before
    fewer = [*argv[:2], *arguments(box_root, tmp_path, "--seeds", "1", "--budgets", "1")[1:]]
    assert sweep.main(fewer) == rows and (tmp_path / "grid.csv").read_text() == before


def test_benchmark_has_its_baselines(box_root, tmp_path):
    rows = sweep.main(arguments(box_root, tmp_path, "--budget", "1", kind="benchmark"))
    text = (tmp_path / "grid.md").read_text()
    assert "(training mean, budget 1)" in text and "(nearest training grasp) `" in text and "Linear probe" in text
    assert len(rows) == 6  # pose only, attention and hand with K of 5 and 1, nearest grasp
    assert sweep.main(arguments(box_root, tmp_path, "--budget", "1", kind="benchmark")) == rows
