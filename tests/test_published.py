"""lab/published.py: splits as the published code draws them, scatter against plain loops, the sweep from its files."""

import math

import numpy as np
import pytest

import sweep
from data import load_dataset
from lab import published
from lab.rows import read_rows, write_rows
from lab.table1 import write_errors
from splits import HELD_OUT


@pytest.fixture(scope="module")
def boxes(box_root):
    return load_dataset(box_root, 64, quiet=True)


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_a_draw_is_split_as_the_published_code_does(boxes, budget):
    split = published.published_split(boxes, budget, 3)
    eligible = [name for name in set(boxes.objects) if name.split("/")[0] not in HELD_OUT]
    count = math.ceil(budget * len(eligible))
    share = math.ceil(count / 10)
    sizes = {suite: len(split.suites[suite]) for suite in ("val", "test", "train")}
    assert sizes == {"val": share, "test": share, "train": count - 2 * share}
    together = [name for suite in sizes for name in split.suites[suite]]
    assert len(set(together)) == count and set(together) <= set(eligible)
    objects = np.asarray(boxes.objects)[boxes.scene]
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
    assert published.warmup_share(37 * 64, 1000) == pytest.approx(370 / 25000)
    assert published.warmup_share(385 * 64, 1000) == pytest.approx(3850 / 25000)
    assert published.warmup_share(3900 * 64, 1000) == 1.0


def row(draw, budget, arm, rmse):
    return {"command": f"{draw} {budget} {arm}", "draw": draw, "budget": budget, "arm": arm, "top_logit_rmse": rmse,
            "val_objects": {0.01: 2, 0.25: 36}[budget]}  # fmt: skip


def test_improvements_by_hand(tmp_path):
    rows = [row(0, 0.01, "scratch", 0.4), row(0, 0.01, "jepa", 0.3), row(1, 0.01, "scratch", 0.5)]
    rows += [row(1, 0.01, "jepa", 0.55), row(2, 0.01, "jepa", 0.1), row(0, 0.25, "scratch", 0.2)]
    assert published.improvements(rows, "jepa", "scratch")[0.01] == pytest.approx([25, -10])
    text = published.published_text(rows, tmp_path)
    assert "| jepa over scratch | 0.01 | 2 | 7.5 | 24.7 | -9.1 to 24.1 | -10.0 to 25.0 | 7.7 |" in text


def test_scatter_of_small_validation_sets_against_a_loop(tmp_path):
    rng = np.random.default_rng(0)
    grasps, scratch = rng.integers(5, 40, 30), rng.uniform(0.02, 0.3, 30)
    jepa = scratch * rng.uniform(0.5, 1.5, 30)
    rmse, better = published.subset_scatter((grasps, scratch, jepa), [3], subsets=4000)[3]
    loop = []
    for _ in range(4000):
        i = rng.choice(30, 3, replace=False)
        a, b = (math.sqrt((grasps[i] * e[i]).sum() / grasps[i].sum()) for e in (scratch, jepa))
        loop.append((a, 100 * (1 - b / a)))
    for found, expected in zip((rmse, better), np.transpose(loop)):
        middle = np.percentile(expected, (10, 50, 90))
        assert np.percentile(found, (10, 50, 90)) == pytest.approx(middle, rel=0.1, abs=1)
    whole, _ = published.subset_scatter((grasps, scratch, jepa), [30], subsets=3)[30]
    assert whole == pytest.approx([math.sqrt((grasps * scratch).sum() / grasps.sum())] * 3)


def test_errors_of_a_table1(tmp_path):
    names, grasps = [f"o{i}" for i in range(9)], np.arange(1, 10)
    start = "python train.py --pack A --budget 0.1 --init"
    errors = {(f"{start} {init} --seed {seed}", "test"): (names, grasps, np.full(9, value + seed))
              for init, value in (("scratch", 0.4), ("jepa", 0.2)) for seed in (0, 1)}  # fmt: skip
    errors["python train.py --pack A --budget 1 --init jepa --seed 0", "test"] = (names, grasps, np.ones(9))
    write_errors(tmp_path, errors)
    found = published.errors_of(tmp_path)
    assert list(found) == ["0.1"]
    assert [array[0] for array in found["0.1"]] == pytest.approx([1, 0.9, 0.7])


def test_smoke(box_root, tmp_path, capsys):
    """All arms of two draws; stopped half way the rest is run, and nothing twice."""
    places = ["--out", tmp_path / "table", "--runs", tmp_path / "runs", "--data", box_root]
    argv = [str(word) for word in ("published", "--smoke", *places)]
    rows = sweep.main(argv)
    assert len(rows) == 6 and {row["arm"] for row in rows} == set(published.ARMS)
    assert "against itself" in capsys.readouterr().out
    for first, second in zip(rows[::3], rows[1::3]):
        assert first["val_objects"] == second["val_objects"] and first["top_logit_rmse"] != second["top_logit_rmse"]
    write_rows(tmp_path / "table" / "rows.csv", rows[:4])
    again = sweep.main(argv)
    assert "4 rows found, 2 to run" in capsys.readouterr().err
    assert again == rows == read_rows(tmp_path / "table" / "rows.csv")
    assert (tmp_path / "table" / "figure.png").stat().st_size > 1000
