"""lab/table1.py: which runs, the table by hand, intervals against plain resampling, everything from its files."""

import csv
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from samples import random_predictions
from sweeps import arguments, parsed

import sweep
import train
from cli.errors import UserError
from lab import figures, table1
from lab.rows import METRICS, command_of, flags_of, read_rows, write_rows

PAPER = table1.PAPER_RATES

# ---------------------------------------------------------------- which runs


def test_planned_runs():
    args = parsed("table1")
    rates = {"jepa": [PAPER, ("1e-4", "1e-3")], "scratch": [PAPER, ("3e-4", "2e-3")]}
    planned = table1.plan_table1({}, rates, args)
    assert len({command_of(flags) for flags in planned}) == len(planned) == (4 + 3) * 2 * 2 * 3
    backbones = {(flags["--init"], flags["--lr-backbone"]) for flags in planned}
    assert backbones == {("jepa", "1e-5"), ("jepa", "1e-4"), ("scratch", "1e-5"), ("scratch", "3e-4")}
    seeds = [flags["--seed"] for flags in planned]
    assert seeds == sorted(seeds)
    one_serves_both = table1.plan_table1({}, {"jepa": [PAPER], "scratch": [PAPER]}, args)
    assert len(one_serves_both) == 42
    given = {"--init": "jepa", "--jepa-ckpt": "x.pt", "--budget": "0.1", "--pack": "A"}
    ours = table1.plan_table1(given, rates, args)
    assert len(ours) == 6 and all(flags["--jepa-ckpt"] == "x.pt" for flags in ours)
    both = table1.plan_table1({"--jepa-ckpt": "x.pt"}, rates, args)
    assert all(("--jepa-ckpt" in flags) == (flags["--init"] == "jepa") for flags in both)


def test_given_rates_run_no_trials(box_root, tmp_path):
    given = {"--lr-backbone": "0", "--lr-head": "2e-3"}
    pair = [("0", "2e-3")]
    assert table1.rates_of_table1(given, [], parsed("table1")) == {"jepa": pair, "scratch": pair}
    assert table1.rates_of_table1(given | {"--init": "jepa"}, [], parsed("table1")) == {"jepa": pair}
    words = "--pack A --budget 1 --lr-backbone 0 --lr-head 2e-3".split()
    rows = sweep.main(arguments(box_root, tmp_path, *words, kind="table1"))
    assert len(rows) == 2 and not (tmp_path / "table" / "trials.csv").exists()
    text = (tmp_path / "table" / "table.md").read_text()
    assert "Own best rates (backbone, head): jepa 0, 2e-3; scratch 0, 2e-3" in text


def trial(init, backbone, head, rmse):
    flags = {"--pack": "A", "--budget": "0.1", "--init": init, "--lr-backbone": backbone, "--lr-head": head}
    return {"command": command_of(flags | {"--seed": "0"}), "top_logit_rmse": rmse}


def test_best_rates():
    rows = [trial("jepa", "0", "1e-3", "0.4"), trial("jepa", "1e-4", "2e-3", "0.3")]
    rows += [trial("jepa", "1e-3", "1e-3", ""), trial("scratch", "1e-5", "1e-3", "0.5")]
    assert table1.best_rates(rows) == {"jepa": ("1e-4", "2e-3"), "scratch": ("1e-5", "1e-3")}
    assert table1.best_rates([]) == {}


# ---------------------------------------------------------------- errors by object


def test_paired_improvement():
    rng = np.random.default_rng(0)
    old, grasps, objects = rng.uniform(0.1, 1, 20), rng.integers(1, 50, 20), np.array([f"o{i}" for i in range(20)])
    half_the_rmse = table1.paired_improvement(old / 4, old, grasps, objects)
    assert half_the_rmse == pytest.approx((0.5, 0.5, 0.5))
    new = old * rng.uniform(0.3, 1.2, 20)
    gain, low, high = table1.paired_improvement(new, old, grasps, objects, seed=1)
    assert gain == pytest.approx(1 - math.sqrt((grasps * new).sum() / (grasps * old).sum()))
    values = []
    for _ in range(2000):
        i = rng.integers(0, 20, 20)
        values.append(1 - math.sqrt((grasps[i] * new[i]).sum() / (grasps[i] * old[i]).sum()))
    assert [low, high] == pytest.approx(np.percentile(values, (2.5, 97.5)).tolist(), abs=0.01)
    twice = table1.paired_improvement(*(np.tile(a, 2) for a in (new, old, grasps, objects)), seed=1)
    assert twice == pytest.approx((gain, low, high))  # an object in two packs is drawn as one
    assert math.isnan(table1.paired_improvement(new[:7], old[:7], grasps[:7], objects[:7])[1])


def test_per_object():
    p = random_predictions(2)
    ids, grasps, squared = table1.per_object(p)
    assert grasps.sum() == len(p["logits"])
    top = p["joints_pred"][np.arange(len(p["logits"])), p["logits"].argmax(1)]
    naive = ((top - p["joints_true"]) ** 2).mean(1)
    for name, count, value in zip(ids, grasps, squared):
        rows = np.flatnonzero(p["object"] == name)
        assert count == len(rows) and value == pytest.approx(naive[rows].mean(), abs=1e-6)


# ---------------------------------------------------------------- the table from handmade rows


def handmade_row(pack, budget, init, seed, rmse, backbone="1e-5"):
    values = {}
    for prefix in ("", "test_"):
        for i, name in enumerate(METRICS):
            values[prefix + name] = str(rmse + i / 10)
    flags = {"--pack": pack, "--budget": budget, "--init": init, "--lr-backbone": backbone, "--lr-head": "1e-3"}
    return {"command": command_of(flags | {"--seed": str(seed)}), "failed": ""} | values


def handmade():
    """Rows and errors: jepa has a quarter of scratch's squared error for every object, so half its RMSE."""
    rows = []
    for pack, budget in (("A", "0.01"), ("A", "0.1"), ("B", "0.1")):
        for init in ("jepa", "scratch"):
            for seed in (0, 1):
                rows.append(handmade_row(pack, budget, init, seed, 0.1 * seed + (0.3 if pack == "A" else 0.5)))
    rows.append(handmade_row("A", "0.1", "jepa", 0, 0.25, backbone="1e-4"))
    errors = {}
    for row in rows:
        names = np.array([f"{flags_of(row)['--pack']}/{i}" for i in range(12)])
        seed = int(row["command"][-1])
        scratch = np.arange(1, 13) * (1 + seed) / 100
        squared = scratch / (4 if "jepa" in row["command"] else 1)
        for suite in ("val", "test"):
            errors[row["command"], suite] = names, np.arange(5, 17), squared
    return rows, errors


def test_table_by_hand(tmp_path):
    rows, errors = handmade()
    table1.write_errors(tmp_path, errors)
    text = table1.table1_text(rows, tmp_path)
    assert "jepa 1e-4, 1e-3; scratch 1e-5, 1e-3" in text
    val = text.split("## test\n")[0]
    # A: 0.3 and 0.4; B: 0.5 and 0.6; SD of two values is their distance / sqrt(2)
    assert f"| A | 0.1 | paper's | jepa | 2 | 0.3500 ± {0.1 / math.sqrt(2):.4f} | 0.4500 ±" in val
    sd = math.sqrt((0.15**2 + 0.05**2) * 2 / 3)
    assert f"| A and B | 0.1 | paper's | scratch | 4 | 0.4500 ± {sd:.4f} |" in val
    assert "| A | 0.1 | own best | jepa | 1 | 0.2500 | 0.3500 | 0.4500 | 0.550 |" in val  # 1e-4
    assert "| A | 0.1 | own best | scratch | 2 | 0.3500" in val  # the paper's were best
    assert "| A and B | 0.01 |" not in text
    gain = text.split("## Relative")[1]
    assert "| test | A and B | 0.1 | paper's | jepa | 50.0 | 50.0 to 50.0 |" in gain and "scratch |" not in gain
    # own best: jepa has seed 0 only, scratch the mean of seeds 0 and 1, 1.5 times as much: 1 - sqrt(1/4/1.5)
    assert f"| val | A | 0.1 | own best | jepa | {100 * (1 - math.sqrt(1 / 6)):.1f} |" in gain


def test_against_another(tmp_path):
    """An encoder without a scratch of its own: half the RMSE of the other table's jepa, a quarter of its scratch."""
    rows, errors = handmade()
    new, old = tmp_path / "new", tmp_path / "old"
    write_rows(old / "rows.csv", rows)
    table1.write_errors(old, errors)
    table1.write_errors(new, {key: (ids, grasps, squared / 4) for key, (ids, grasps, squared) in errors.items()})
    text = table1.table1_text([row for row in rows if "--init jepa" in row["command"]], new, old)
    _, over, scratch = text.split("## Relative")
    assert "RMSE over old" in over and "| test | B | 0.1 | paper's | jepa | 50.0 | 50.0 to 50.0 |" in over
    assert "jepa over scratch of old" in scratch
    assert "| test | B | 0.1 | paper's | jepa | 75.0 | 75.0 to 75.0 |" in scratch
    with pytest.raises(UserError, match="none: no rows.csv"):
        table1.table1_text(rows, new, tmp_path / "none")


def test_rows_that_the_table_does_not_tell_apart(tmp_path):
    rows, _ = handmade()
    table1.check_alike(rows, "rows.csv")
    threads = rows[0]["command"].replace("--seed", "--threads 2 --seed")
    table1.check_alike([*rows, {"command": threads}], "rows.csv")
    others = (("--seed", "--steps 9 --seed", "--steps"), ("--seed", "--jepa-ckpt x.pt --seed", "--jepa-ckpt"))
    for old, new, named in (*others, ("--lr-backbone 1e-5", "--lr-backbone 1e-3", "rates of jepa")):
        with pytest.raises(UserError, match=f"rows.csv: rows of one table1 differ in .*{named}"):
            table1.check_alike([*rows, {"command": rows[0]["command"].replace(old, new)}], "rows.csv")


def test_figures_from_rows(tmp_path):
    rows, _ = handmade()
    curves = [{"command": rows[0]["command"], "step": str(i), "val_top_logit_rmse": "0.3"} for i in range(3)]
    figures.draw_table1(table1.arms(rows), curves, tmp_path)
    for name in ("efficiency.png", "coverage_gap.png", "curves.png"):
        assert (tmp_path / name).stat().st_size > 5000


# ---------------------------------------------------------------- end to end


def test_end_to_end_and_made_again_from_its_files(box_root, tmp_path):
    out = tmp_path / "table"
    rows = sweep.main(arguments(box_root, tmp_path, "--pack", "A", "--budget", "1", kind="table1"))
    assert len(rows) == 4
    for name in ("test_top_logit_rmse", "test_grasp_coverage_15", "test_category_selection_gap"):
        assert all(row[name] for row in rows)
    trials = list(csv.DictReader(open(out / "trials.csv")))
    assert len(trials) == 8 and "test_top_logit_rmse" not in trials[0]
    errors = table1.read_errors(out)
    for row in rows:  # errors by object agree with the metrics of evaluate.py
        for suite, prefix in (("val", ""), ("test", "test_"), ("test_category", "test_category_")):
            objects, grasps, squared = errors[row["command"], suite]
            rmse = math.sqrt((grasps * squared).sum() / grasps.sum())
            assert rmse == pytest.approx(float(row[prefix + "top_logit_rmse"]), abs=1e-6)
            assert len(set(objects)) == len(objects)
    assert {row["command"] for row in read_rows(out / "curves.csv")} == {row["command"] for row in rows}
    assert not list(tmp_path.glob("runs/*/predictions.npz"))
    names = ["table.md", "efficiency.png", "coverage_gap.png", "curves.png"]
    text = (out / "table.md").read_text()
    for name in names:
        (out / name).unlink()
    sweep.main(arguments(box_root, tmp_path, "--tables", "--runs", tmp_path / "none", kind="table1"))
    assert (out / "table.md").read_text() == text and all((out / name).exists() for name in names)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_listed_trials_come_first(box_root, tmp_path, capsys):
    argv = arguments(box_root, tmp_path, "--pack", "A", "--budget", "1", "--list", kind="table1")
    for runs in (8, 4):  # trials, then the table's own
        assert sweep.main(argv) == []
        commands = capsys.readouterr().out.splitlines()
        assert len(commands) == runs
        for command in commands:
            train.main(shlex.split(command)[2:])
        capsys.readouterr()
    assert sweep.main(argv) == [] and capsys.readouterr().out == ""
    rows = sweep.main([word for word in argv if word != "--list"])
    assert len(rows) == 4 and all(row["test_top_logit_rmse"] for row in rows)


def test_errors(box_root, tmp_path):
    (tmp_path / "objects.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="objects.npz"):
        table1.read_errors(tmp_path)
    assert table1.read_errors(Path(tmp_path / "none")) == {}
