"""lab/published.py: splits as the published code draws them, scatter against plain loops, the sweep from its files."""

import math
import re

import numpy as np
import pytest
from conftest import fails, interrupted

import sweep
from cli.errors import UserError
from data import load_dataset
from lab import published
from lab.rows import write_rows
from lab.table1 import write_errors
from loop.runs import load_last
from loop.pace import warmup_cosine
from splits import HELD_OUT


@pytest.fixture(scope="module")
def boxes(box_root):
    return load_dataset(box_root, 64, quiet=True)


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_a_draw_is_split_as_the_published_code_does(boxes, budget):
    split = published.published_split(boxes, budget, 3)
    eligible = [name for name in set(boxes.object_of_scene) if name.split("/")[0] not in HELD_OUT]
    count = math.ceil(budget * len(eligible))
    share = math.ceil(count / 10)
    sizes = {suite: len(split.suites[suite]) for suite in ("val", "test", "train")}
    assert sizes == {"val": share, "test": share, "train": count - 2 * share}
    together = [name for suite in sizes for name in split.suites[suite]]
    assert len(set(together)) == count and set(together) <= set(eligible)
    objects = boxes.object_of_grasp
    for name in split.suites["train"]:
        mine = np.flatnonzero(objects == name)
        trains = np.intersect1d(mine, split.rows["train"])
        assert len(trains) == len(mine) - math.ceil(0.1 * len(mine))
    assert set(objects[split.rows["val"]]) == set(split.suites["val"])


def test_draws_differ_and_repeat(boxes):
    first, again, other = (published.published_split(boxes, 0.5, draw) for draw in (0, 0, 1))
    assert first.suites == again.suites and np.array_equal(first.rows["train"], again.rows["train"])
    assert first.suites != other.suites
    quarter = published.published_split(boxes, 0.25, 0)
    assert set(quarter.suites["train"]) - set(first.suites["train"])  # drawn anew for every budget, not nested


def test_warm_up_is_the_published_one():
    """The numbers of the published code: some 370 steps of 25,000 at 1 %, 3,850 at 10 %, more than all at 100 %."""
    assert published.warmup_share(37 * 64) == pytest.approx(370 / 25000)
    assert published.warmup_share(385 * 64) == pytest.approx(3850 / 25000)
    share = published.warmup_share(3900 * 64)
    rates = [warmup_cosine(step + 1, 1001, round(1000 * share)) for step in range(1000)]
    assert share == pytest.approx(1.56) and max(rates) == rates[-1] == pytest.approx(0.64, abs=0.002)


def row(draw, budget, arm, rmse):
    return {"command": f"{draw} {budget} {arm}", "draw": draw, "budget": budget, "arm": arm, "top_logit_rmse": rmse,
            "val_objects": {0.01: 2, 0.25: 36}[budget]}  # fmt: skip


def table1_errors(folder, **more):
    """Errors of a table1 in which jepa's are half of scratch's, and a quarter in what `more` adds."""
    names, grasps = [f"o{i}" for i in range(9)], np.arange(1, 10)
    start = "python train.py --pack A --budget 0.1 --init"
    errors = {(f"{start} {init} --lr-head {head} --seed {seed}", "test"): (names, grasps, np.full(9, value + seed))
              for init, value, head in (("scratch", 0.4, 1), ("jepa", 0.2, 2)) for seed in (0, 1)}  # fmt: skip
    errors["python train.py --pack A --budget 1 --init jepa --lr-head 2 --seed 0", "test"] = (names, grasps, np.ones(9))
    errors |= {(f"{start} jepa {flags} --seed 0", "test"): (names, grasps, np.ones(9)) for flags in more.values()}
    write_errors(folder, errors)
    return folder


def test_improvements_by_hand(tmp_path):
    rows = [row(0, 0.01, "scratch", 0.4), row(0, 0.01, "jepa", 0.3), row(1, 0.01, "scratch", 0.5)]
    rows += [row(1, 0.01, "jepa", 0.55), row(2, 0.01, "jepa", 0.1), row(0, 0.25, "scratch", 0.2)]
    assert published.improvements(rows, "jepa", "scratch")[0.01] == pytest.approx([25, -10])
    rows.append(row(5, 0.01, "jepa", "") | {"failed": "diverged"})
    text = published.published_text(rows, table1_errors(tmp_path))
    assert "| jepa over scratch | 0.01 | 2 | 7.5 | 24.7 | -9.1 to 24.1 | -10.0 to 25.0 | 7.7 |" in text


def test_scatter_of_small_validation_sets_against_a_loop(tmp_path):
    rng = np.random.default_rng(0)
    grasps, scratch = rng.integers(5, 40, 30), rng.uniform(0.02, 0.3, (2, 30))
    jepa = scratch * rng.uniform(0.5, 1.5, (2, 30))
    rmse, better = published.subset_scatter((grasps, scratch, jepa), 3, subsets=4000)
    loop = []
    for _ in range(4000):
        i = rng.choice(30, 3, replace=False)
        one, other = scratch[rng.integers(2)], jepa[rng.integers(2)]
        a, b = (math.sqrt((grasps[i] * e[i]).sum() / grasps[i].sum()) for e in (one, other))
        loop.append((a, 100 * (1 - b / a)))
    for found, expected in zip((rmse, better), np.transpose(loop)):
        middle = np.percentile(expected, (10, 50, 90))
        assert np.percentile(found, (10, 50, 90)) == pytest.approx(middle, rel=0.1, abs=1)
    whole, _ = published.subset_scatter((grasps, scratch, jepa), 30, subsets=50)
    expected = {round(math.sqrt((grasps * one).sum() / grasps.sum()), 9) for one in scratch}
    assert {round(float(value), 9) for value in whole} == expected


def test_errors_of_a_table1(tmp_path, capsys):
    found = published.errors_of(table1_errors(tmp_path / "a"))
    assert list(found) == ["0.1"]
    grasps, scratch, jepa = found["0.1"]
    assert grasps[0] == 1 and scratch[:, 0].tolist() == [0.4, 1.4] and jepa[:, 0].tolist() == [0.2, 1.2]
    (line,) = published.scatter_lines({"0.01": (np.ones(5), np.full((3, 5), 0.16), np.full((3, 5), 0.09))})
    assert line == ["0.01", 2, "0.400", "0.400 to 0.400", "25.0 %", "25.0 to 25.0 %"]
    for more, what in (({"rates": "--lr-head 7"}, "learning rates"), ({"k": "--lr-head 2 --k 3"}, "--k")):
        with pytest.raises(UserError, match=what):
            published.errors_of(table1_errors(tmp_path / what, **more))
    with pytest.raises(UserError, match="no objects.npz"):
        published.errors_of(tmp_path / "nowhere")


def arguments(box_root, tmp_path, *more):
    places = ["--out", tmp_path / "table", "--runs", tmp_path / "runs", "--data", box_root]
    return [str(word) for word in ("published", "--smoke", *places, *more)]


def test_smoke(box_root, tmp_path, monkeypatch, capsys):
    """All arms of two draws; stopped half way the rest is run, and nothing twice."""
    argv = arguments(box_root, tmp_path, "--against", table1_errors(tmp_path / "errors"))
    rows = sweep.main(argv)
    assert len(rows) == 6 and {row["arm"] for row in rows} == set(published.ARMS)
    text = capsys.readouterr().out
    assert "against itself" in text and "Trainings of 2 steps: **unconverged**." in text
    for scratch, again, jepa in zip(rows[::3], rows[1::3], rows[2::3]):
        assert scratch["val_objects"] == again["val_objects"] == jepa["val_objects"]
        assert len({row["top_logit_rmse"] for row in (scratch, again, jepa)}) == 3
        assert scratch["encoder"] == again["encoder"] == "" != jepa["encoder"]
        draw, seeds = int(scratch["draw"]), [re.search(r"--seed (\d+)", row["command"])[1] for row in rows]
        assert f"draw {draw}," in jepa["command"] and seeds[3 * draw :][:3] == [str(draw + more) for more in (0, 1, 0)]
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    write_rows(tmp_path / "table" / "rows.csv", rows[:4])
    again = sweep.main(argv)
    assert "4 rows found, 2 to run" in capsys.readouterr().err
    timed = dict.fromkeys(("seconds",))
    assert [row | timed for row in again] == [row | timed for row in rows]
    assert (tmp_path / "table" / "figure.png").stat().st_size > 1000
    elsewhere = [rows[0] | {"fingerprint": "rounded otherwise"}, *rows[1:]]
    write_rows(tmp_path / "table" / "rows.csv", elsewhere)
    assert sweep.main(argv) == elsewhere  # the last digits of another processor
    assert "several fingerprints" in (tmp_path / "table" / "table.md").read_text()
    for what in ("encoder", "dataset"):
        write_rows(tmp_path / "table" / "rows.csv", [row | {what: "another"} for row in rows])
        assert f"another {what}" in fails(sweep.main, argv, capsys)


def test_an_unfinished_draw_goes_on_and_a_diverged_one_has_a_row(box_root, tmp_path, monkeypatch, capsys):
    argv = arguments(box_root, tmp_path, "--against", table1_errors(tmp_path / "errors"), "--save-every", 1)
    interrupted(sweep.main, argv, 1)
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if (path / "last.pt").exists())
    resumed = []
    monkeypatch.setattr("loop.runs.load_last", lambda run, *more: resumed.append(run.last) or load_last(run, *more))
    rows = sweep.main(argv)
    assert resumed == [folder / "last.pt"] and len(rows) == 6 and not folder.exists()
    bad = sweep.main([*argv[:-2], "--lr-head", "1e30", "--out", str(tmp_path / "bad")])
    assert {row["failed"] for row in bad} == {"diverged"}


def test_what_the_protocol_decides_cannot_be_given(box_root, tmp_path, capsys):
    refused = ("--pack", "B"), ("--list",), ("--seeds", "5")
    for more, what in (*((more, more[0]) for more in refused), (("--k", "1,5"), "one value")):
        assert what in fails(sweep.main, arguments(box_root, tmp_path, *more), capsys)
