import csv

import pytest
from conftest import fails

import sweep
import train


def arguments(box_root, tmp_path, *more):
    return ["grid", "--smoke", "--out", str(tmp_path / "grid"), "--runs", str(tmp_path / "runs"), "--data", str(box_root), *map(str, more)]


def test_expand():
    assert sweep.expand(["--k", "1,5", "--pool", "none"]) == [{"--k": "1", "--pool": "none"}, {"--k": "5", "--pool": "none"}]


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
    assert [row["command"] for row in saved] == [row["command"] for row in rows]
    text = (tmp_path / "grid.md").read_text()
    first, second = (float(row["top_logit_rmse"]) for row in saved[:2])
    assert f"{(first + second) / 2:.4f} ± {abs(first - second) / 2**0.5:.4f}" in text
    assert len(sweep.main(argv)) == 4 and len(calls) == 5


def test_errors(box_root, tmp_path, capsys):
    assert "pairs" in fails(sweep.main, arguments(box_root, tmp_path, "--k"), capsys)
    assert "--k" in fails(sweep.main, arguments(box_root, tmp_path, "--k", "0"), capsys)
    assert "--seeds" in fails(sweep.main, arguments(box_root, tmp_path, "--seeds", "x"), capsys)
