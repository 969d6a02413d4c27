"""lab/control_table.py: which runs, rates per arm and budget, shares against plain resampling, the sweep as a whole."""

import numpy as np
import pytest
from conftest import fails

import sweep
from cli.errors import UserError
from lab import control_table as controls
from lab import figures
from lab.rows import command_of, flags_of, read_rows

OTHER = {"--pack": "B", "--held-out": "03797390", "--min-score": "1"}


def parsed(*words):
    return sweep.parse(["controls", *words])


def test_trials_are_of_every_arm_and_budget():
    args, _, given = parsed()
    trials = controls.plan_trials(dict(controls.ARMS), given, args)
    rates = {}
    for flags in trials:
        assert flags["--k"] == "5" and flags["--seed"] == "0"
        rates.setdefault(controls.place_of(flags), set()).add((flags.get("--lr-backbone"), flags["--lr-head"]))
    assert len(rates) == 7 * 3
    for (arm, _), tried in rates.items():
        assert len(tried) == (4 if arm in ("scratch", "jepa", "oracle") else 2)


def test_arms_run_at_the_rates_that_were_best_for_them_at_that_budget():
    args, _, given = parsed("size", "scratch", "--budget", "0.1,1", "--seeds", "0,1")
    arms = {name: controls.ARMS[name] for name in ("size", "scratch")}
    rows = []
    for flags in controls.plan_trials(arms, given, args):
        wanted = ("2e-3", "1e-4") if flags["--budget"] == "0.1" else ("1e-3", "1e-5")
        good = (flags["--lr-head"], flags.get("--lr-backbone", wanted[1])) == wanted
        rows.append({"command": command_of(flags), "top_logit_rmse": "0.2" if good else "0.3"})
    rows[0]["top_logit_rmse"] = ""  # diverged
    best = controls.best_rates(rows)
    assert best["scratch", "0.1"] == {"--lr-backbone": "1e-4", "--lr-head": "2e-3"}
    assert best["size", "1"] == {"--lr-head": "1e-3"}
    planned = controls.plan_arms(arms, best, given, args)
    assert len(planned) == 2 * 2 * 2 * 2  # arms, budgets, K, seeds
    assert [flags["--seed"] for flags in planned] == ["0"] * 8 + ["1"] * 8
    for flags in planned:
        assert {f: flags[f] for f in ("--lr-backbone", "--lr-head") if f in flags} == best[controls.place_of(flags)]
    assert {flags["--k"] for flags in planned} == {"1", "5"}


def test_unknown_arms(capsys):
    assert "no posed" in fails(sweep.main, ["controls", "posed"], capsys)
    for flag in ("--pool", "--init"):
        assert flag in fails(sweep.main, ["controls", flag, "hand"], capsys)


def test_the_oracle_is_of_the_arms_split_and_the_file_given_is_jepas(box_root, tmp_path, monkeypatch, capsys):
    """What is given to the arms is given to the oracle's run, but for what is its own."""
    planned = []
    monkeypatch.setattr(controls, "run_all", lambda flags, path, args, *more: planned.append(flags) or [])
    args, _, given = parsed("--steps", "7", "--k", "1", "--budget", "0.1", "--lr-head", "1", *sum(OTHER.items(), ()))
    assert controls.train_oracle(given | {"--data": str(box_root)}, args) is None
    ((oracle,),) = planned
    assert controls.ORACLE.items() <= (oracle | {"--pack": "A"}).items() and OTHER.items() <= oracle.items()
    done = []
    monkeypatch.setattr(controls, "train_oracle", lambda given, args: tmp_path)
    monkeypatch.setattr(controls, "plan_trials", lambda arms, given, args: done.append((arms, given)) or [])
    controls.run_controls(["jepa", "oracle"], {"--jepa-ckpt": "mine.pt"}, args, None)
    ((arms, given),) = done
    assert arms["jepa"]["--jepa-ckpt"] == "mine.pt" and arms["oracle"]["--jepa-ckpt"] == str(tmp_path / "best.pt")
    assert given == {}


def runs_of(rng, level, seeds=3, objects=40):
    """Errors of some seeds that differ in level and by object."""
    names, grasps = [f"o{i}" for i in range(objects)], np.arange(1, objects + 1)
    hard = np.random.default_rng(7).uniform(0.5, 1.5, objects)
    return [(names, grasps, level * rng.uniform(0.9, 1.1) * hard) for _ in range(seeds)]


def test_resampling_objects_and_seeds_against_a_loop():
    runs = runs_of(np.random.default_rng(1), 0.1)
    whole, drawn = controls.resampled(runs, "jepa")
    grasps, squared = runs[0][1], np.stack([errors for _, _, errors in runs])
    assert whole == pytest.approx(np.sqrt(np.mean([(grasps * one).sum() / grasps.sum() for one in squared])))
    rng, loop = np.random.default_rng(2), []
    for _ in range(4000):
        objects, seeds = rng.integers(0, 40, 40), rng.integers(0, 3, 3)
        means = [(grasps[objects] * squared[seed][objects]).sum() / grasps[objects].sum() for seed in seeds]
        loop.append(np.sqrt(np.mean(means)))
    assert np.percentile(drawn, (5, 50, 95)) == pytest.approx(np.percentile(loop, (5, 50, 95)), rel=0.02)
    other = controls.resampled(runs, "scratch")[1]
    assert not np.allclose(drawn, other)  # seeds of two arms are drawn each for itself
    one_seed = [controls.resampled(runs[:1], name)[1] for name in ("jepa", "scratch")]
    assert np.allclose(*one_seed)  # objects are the same


def test_shares():
    rng = np.random.default_rng(3)
    random, oracle, middle = (controls.resampled(runs_of(rng, level), name)
                              for level, name in ((0.4, "random"), (0.1, "oracle"), (0.225, "jepa")))  # fmt: skip
    (gain, low, high), share = controls.better_cell(random, oracle), controls.share_cell(random, oracle, middle)
    assert 45 < float(gain.split()[0]) < 55 and gain.split()[1:] == [f"({low:.1f}", "to", f"{high:.1f})"]
    expected = (random[0] - middle[0]) / (random[0] - oracle[0])
    assert float(share.split()[0]) == pytest.approx(expected, abs=0.006) and 0.4 < expected < 0.6
    for level, said in ((0.4, "cannot tell"), (0.8, "oracle is worse")):
        other = controls.resampled(runs_of(rng, level), "oracle")
        assert controls.share_cell(random, other, middle) == said
    assert [controls.end_of(value) for value in (-2.34, -0.04, 0.04, 0.06)] == ["-2.3", "-0.04", "0.04", "0.1"]


def test_every_arm_is_compared_with_random_weights():
    """A column per arm that has runs, empty where it has none at a budget; shares where there is an oracle."""
    rng, levels = np.random.default_rng(4), {"random": 0.4, "size": 0.6, "jepa": 0.3, "oracle": 0.1}
    places = [("0.1", name) for name in levels] + [("1", "size"), ("1", "random")]
    words = {name: f"--init {name}" for name in levels} | {"size": "--pool size"}
    rows = [{"command": f"python train.py --budget {budget} {words[name]} --seed 0"} for budget, name in places]
    errors = {(row["command"], suite): runs_of(rng, levels[name])[0]
              for row, (_, name) in zip(rows, places) for suite in controls.SUITES}  # fmt: skip
    lines = [line.split(" | ") for line in controls.shares_section(controls.grouped(rows), errors).splitlines()]
    tables = [line for line in lines if len(line) > 3]
    assert tables[0][3:] == ["random", "size", "jepa", "oracle |"]
    few, many = tables[2], tables[3]
    assert few[1] == "0.1" and float(few[4].split()[0]) < 0 < float(few[5].split()[0]) < float(few[6].split()[0])
    assert many[1] == "1" and many[4] and many[5:] == ["", " |"]
    shares = tables[-2:]
    assert [line[0] for line in shares] == ["| val", "| test"] and all(line[4] == " |" for line in shares)
    assert 0.2 < float(shares[0][3].split()[0]) < 0.6
    only_size = [row for row in rows if "size" in row["command"]]
    assert controls.shares_section(controls.grouped(only_size), errors) == ""


def test_runs_of_other_objects_are_not_averaged():
    runs = runs_of(np.random.default_rng(0), 0.1)
    names, grasps, squared = runs[1]
    with pytest.raises(UserError, match="different objects"):
        controls.resampled([runs[0], (names[::-1], grasps, squared)], "jepa")


def test_figure_has_a_place_for_every_arm(monkeypatch):
    """Means over seeds at the places of ARMS, a panel per K; an arm that diverged leaves its place empty."""
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [
        {"command": f"python train.py --budget {budget} --k {k} {words} --seed {seed}",
         "test_top_logit_rmse": f"{0.3 + 0.01 * i + 0.002 * seed}" if words != "--init random" else ""}
        for budget in ("0.1", "1") for k in (5, 1) for seed in (0, 1)
        for i, words in enumerate(("--init oracle", "--pool none", "--init random"))
    ]  # fmt: skip
    figures.draw_controls(rows, None)
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["K = 5", "K = 1"]
    for panel in panels:
        assert [text.get_text() for text in panel.get_xticklabels()] == ["pose", "random", "oracle"]
        for container in panel.containers:
            np.testing.assert_allclose(np.array(container.lines[0].get_ydata(), float), [0.311, np.nan, 0.301])
        assert len(panel.containers) == 2  # budgets


@pytest.mark.slow
def test_smoke(box_root, tmp_path, capsys):
    """The oracle's run, trials, arms, the table; then nothing is trained again."""
    places = ["--out", tmp_path / "table", "--runs", tmp_path / "runs", "--data", box_root]
    argv = [str(word) for word in ("controls", "size", "random", "jepa", "oracle", "scratch", "--smoke", *places)]
    argv += ["--budget", "0.5,1"]
    assert sweep.main([*argv, "--list"]) == []
    assert len(capsys.readouterr().out.splitlines()) == 1  # everything else waits for the oracle
    rows = sweep.main(argv)
    assert len(rows) == 5 * 2 * 2
    assert {controls.arm_of(flags_of(row)) for row in rows} == {"size", "random", "jepa", "oracle", "scratch"}
    assert all(row["test_top_logit_rmse"] and row["encoder"] for row in rows if "--jepa-ckpt" in row["command"])
    text = (tmp_path / "table" / "table.md").read_text()
    assert "## test" in text and text.count("| suite | budget | K | random | size | scratch | jepa | oracle |") == 1
    assert (tmp_path / "table" / "figure.png").stat().st_size > 1000
    assert {row["command"] for row in read_rows(tmp_path / "table" / "trials.csv")} & {row["command"] for row in rows}
    assert sweep.main(argv) == rows
    assert "20 rows found, 0 to run" in capsys.readouterr().err
