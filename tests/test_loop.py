"""loop/: the machine, what a curve says."""

import pytest
import torch
import torch.nn.functional as F

from cli.errors import UserError
from loop import fast, machine, report

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


# ---------------------------------------------------------------- the machine
def test_precision_by_device():
    for device, fastest, expected in ((CPU, "bf16", "fp32"), (CUDA, "tf32", "tf32"), (CUDA, "bf16", "bf16")):
        assert machine.set_precision("auto", device, fastest) == expected
    for precision, products in (("fp32", "highest"), ("tf32", "high")):
        assert machine.set_precision(precision, CUDA) == precision
        assert torch.get_float32_matmul_precision() == products
    with fast.exact_products():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(UserError, match="--precision tf32"):
        machine.set_precision("tf32", CPU)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_precision_of_the_forward_pass(precision):
    with machine.autocast(CPU, precision):
        expected = torch.bfloat16 if precision == "bf16" else torch.float32
        assert F.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == expected


@pytest.mark.parametrize("here", [True, False])
def test_bf16_without_instructions_is_fp32_and_said(monkeypatch, capsys, here):
    monkeypatch.setattr(machine, "has_bf16", lambda: here)  # which processor runs the test must not matter
    for precision in ("auto", "fp32"):
        machine.set_precision(precision, CPU)
    assert capsys.readouterr().err == ""
    assert machine.set_precision("bf16", CPU) == ("bf16" if here else "fp32")
    assert ("warning: --precision bf16" in capsys.readouterr().err) == (not here)


# ---------------------------------------------------------------- what a curve says
FALLING, FLAT, LOSS = [0.45, 0.40, 0.36, 0.34, 0.33, 0.32, 0.31, 0.30], [0.30] * 8, [8, 7, 6, 5, 4, 3, 2, 1]
RISING = [0.21, 0.20, 0.20, 0.20, 0.21, 0.21, 0.22, 0.22]
CURVES = {  # name -> top-logit RMSE, best-of-K, training loss at eight validations, and how each sentence begins
    "it flattens": ([*FALLING[:6], 0.318, 0.318], FLAT, LOSS, []),
    "still falling": (FALLING, FLAT, LOSS, ["Still falling: the last quarter of the steps lowered the RMSE by 6 %"]),
    "best of K overfits, as the top logit gets better": (
        FALLING, RISING, LOSS, ["Still", "Overfitted: best-of-K was lowest at step 20 and ended 10 % higher"]),
    "worse as the loss is": (FLAT, RISING, [1] * 8, []),
    "worse by less than 2 %": (FLAT, [0.40, 0.36, 0.34, 0.34, 0.345, 0.345, 0.345, 0.345], LOSS, []),
    "worse late": (FLAT, [0.40, 0.36, 0.35, 0.35, 0.34, 0.35, 0.35, 0.35], LOSS, []),
    "the hypotheses part": ([0.37] + [0.5] * 7, [0.32, 0.29, 0.25, 0.23] + [0.21] * 4, LOSS, []),
    "one validation": ([0.4], [0.3], [1], []),
}  # fmt: skip


@pytest.mark.parametrize("top, best, loss, expected", CURVES.values(), ids=CURVES)
def test_what_a_curve_says(top, best, loss, expected):
    names = ("step", "val_top_logit_rmse", "val_best_of_k_rmse", "train_loss")
    said = report.remarks([dict(zip(names, row)) for row in zip(range(10, 90, 10), top, best, loss)])
    assert len(said) == len(expected) and all(line.startswith(begin) for line, begin in zip(said, expected)), said
    assert all(len(line) <= 100 for line in said)


def test_the_table_says_of_how_many_grasps_a_share_that_holds_is():
    rows = {f"of {count}": {"holds": 0.1, "grasps_closed": count} for count in (1000, 9)}
    assert report.how_to_read(rows)[-1].endswith("; of 9 or 1000 grasps")
