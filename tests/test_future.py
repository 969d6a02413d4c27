"""lab/future.py: which runs there are, the encoders they need, and the table against means made by hand."""

import csv
import re

import pytest
from conftest import fails

import sweep
from cli.errors import UserError
from lab import future
from lab.rows import command_of, flags_of, write_rows
from lab.table1 import write_errors


def parsed(*words):
    return sweep.parse(["future", *words])


def planned(*words):
    args, names, given = parsed(*words)
    return future.plan_future(names, given, args)


def test_every_variant_runs_from_scratch_and_pretrained():
    flags = planned("--seeds", "0,1")
    assert len(flags) == 2 * (2 * len(future.VARIANTS) + 1)  # the default has two pretrained encoders
    assert [own["--seed"] for own in flags] == sorted(own["--seed"] for own in flags)
    for own in flags:
        other = {own.get("--patching"), own.get("--tokenizer")} - {None}
        if own["--init"] == "jepa" and other:
            assert own["--jepa-ckpt"] == f"runs/sweep/encoders/{other.pop()}-1000-auto.pt"
        elif "--jepa-ckpt" in own:
            assert own["--jepa-ckpt"] == "runs/sweep/encoders/default-1000-auto.pt" and own["--init"] == "jepa"
    assert len({command_of(own) for own in flags}) == len(flags)
    adapted = [own["--init"] for own in flags if "--lora" in own]
    assert set(adapted) == {"random", "jepa"}  # a frozen encoder of random weights is calibrated


def test_what_made_an_encoder_is_in_its_name():
    names = {own["--jepa-ckpt"] for words in ([], ["--precision", "bf16"], ["--smoke"])
             for own in planned("overlap", *words) if "overlap" in own.get("--jepa-ckpt", "")}  # fmt: skip
    expected = {f"overlap-{made}.pt" for made in ("1000-auto", "1000-bf16", "smoke")}
    assert {name.split("/")[-1] for name in names} == expected


def test_named_variants_come_with_the_default(capsys):
    found = {future.variant_of({"command": command_of(own)}) for own in planned("lora", "geometric")}
    assert found == {"default", "lora", "geometric"}
    assert "no loras" in fails(sweep.main, ["future", "loras"], capsys)
    for more in (("--lora", "16"), ("--init", "jepa"), ("--preset", "paper"), ("--precision", "fp32,tf32")):
        assert more[0] in fails(sweep.main, ["future", *more], capsys)


def row(flags, seed, rmse):
    named = future.SHARED | flags | {"--seed": str(seed)}
    values = {"top_logit_rmse": rmse, "best_of_k_rmse": 0.1, "coverage_15": 0.9, "top_coverage_15": 0.5, "holds": 0.2,
              "selection_gap": 0.05, "diversity": 0.3}  # fmt: skip
    tests = {f"{suite}_top_logit_rmse": rmse + 0.01 for suite in future.SUITES[1:]}
    costs = {"parameters_trained": 2.5e6, "ms_per_step": 50 + 1.4142 * seed, "memory_mb": 900}
    return {"command": command_of(named)} | values | tests | costs


def test_the_table_compares_equal_seeds(tmp_path):
    scratch = {"--init": "scratch"}
    rows = [row(scratch, seed, rmse) for seed, rmse in ((0, 0.30), (1, 0.50))]  # seed 1 has no partner
    rows += [row(scratch | {"--loss": "relaxed"}, 0, 0.27)]
    diverged = row(scratch | {"--loss": "relaxed"}, 1, 9.0)
    write_rows(tmp_path / "rows.csv", rows)
    errors = {
        (one["command"], suite): ([f"o{i}" for i in range(10)], [4] * 10, [one["top_logit_rmse"] ** 2] * 10)
        for one in rows
        for suite in ("val", "test", "test_category")
    }
    write_errors(tmp_path, errors)
    rows.append(diverged | dict.fromkeys(diverged.keys() - {"command"}, "") | {"failed": "diverged"})
    text = future.future_text(rows, tmp_path)
    (line,) = re.findall(r"\| scratch \| relaxed \| 2 \(1 diverged\) \|.*", text)
    assert "0.2700 | 10.0 (10.0 to 10.0) | 0.1000 | 0.0500 | 0.300 | 0.900 | 0.500 | 0.200" in line
    assert "| scratch | default | 2 | 0.4000 ± 0.1414 |  |" in text
    assert "| scratch | default | 2.50 | 51 ± 1 | 900 ± 0 |" in text
    with pytest.raises(UserError, match="--steps"):
        future.future_text([*rows, row(scratch | {"--steps": "7"}, 2, 0.3)], tmp_path)


@pytest.mark.slow
def test_smoke(box_root, tmp_path, capsys):
    """Pretrainings that are missing, trainings, all suites, the table; then nothing is made again."""
    places = ["--out", tmp_path / "table", "--runs", tmp_path / "runs", "--data", box_root]
    argv = [str(word) for word in ("future", "curvature", "lora", "--smoke", "--jobs", 2, *places)]
    assert sweep.main([*argv, "--list"]) == []
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 and all(line.startswith("python pretrain_jepa.py") for line in listed)
    rows = sweep.main(argv)
    assert len(rows) == 3 + 2 + 2
    assert {path.stem for path in (tmp_path / "runs" / "encoders").glob("*.pt")} >= {"default-smoke", "curvature-smoke"}
    assert len({one["encoder"] for one in rows}) == 4  # none, random, and two short ones
    text = (tmp_path / "table" / "table.md").read_text()
    assert "| jepa, short | curvature |" in text and "test_category" in text
    assert sweep.main(argv) == rows
    with open(tmp_path / "table" / "rows.csv") as file:
        assert all(one["test_category_top_logit_rmse"] for one in csv.DictReader(file))
    assert {flags_of(one).get("--lora") for one in rows} == {None, "8"}
