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
FLAT = [0.30] * 8
CURVES = {  # name -> top-logit RMSE, best-of-K at eight validations, and how each sentence begins
    "it flattens": ([0.45, 0.40, 0.36, 0.34, 0.32, 0.31, 0.31, 0.31], FLAT, []),
    "still falling": ([0.45, 0.40, 0.36, 0.34, 0.33, 0.32, 0.31, 0.30], FLAT, ["Still falling: the last quarter"]),
    "top logit overfits": ([0.40, 0.36, 0.34, 0.35, 0.36, 0.36, 0.37, 0.37], FLAT,
                           ["Overfitted: top-logit RMSE was lowest at step 30 and ended 9 % higher"]),
    "best of K overfits, as the top logit gets better": (
        [0.45, 0.40, 0.36, 0.34, 0.33, 0.32, 0.31, 0.30], [0.21, 0.20, 0.20, 0.20, 0.21, 0.21, 0.22, 0.22],
        ["Still falling", "Overfitted: best-of-K was lowest at step 20 and ended 10 % higher"]),
    "worse by less than 2 %": ([0.40, 0.36, 0.34, 0.34, 0.345, 0.345, 0.345, 0.345], FLAT, []),
    "one validation": ([0.4], [0.3], []),
}  # fmt: skip


@pytest.mark.parametrize("top, best, expected", CURVES.values(), ids=CURVES)
def test_what_a_curve_says(top, best, expected):
    said = report.remarks(curve_of(top, best))
    assert len(said) == len(expected) and all(line.startswith(begin) for line, begin in zip(said, expected)), said
    assert all(len(line) <= 100 for line in said)


def curve_of(top, best, loss=None):
    """Rows of a metrics.csv at steps 10, 20, …; the loss falls where none is given."""
    steps = range(10, 10 * len(top) + 1, 10)
    names = ("step", "val_top_logit_rmse", "val_best_of_k_rmse", "train_loss")
    return [dict(zip(names, row)) for row in zip(steps, top, best, loss or [1 / step for step in steps])]


def test_a_network_that_was_best_at_the_mean_is_short_and_a_loss_that_rises_is_no_overfitting():
    away, near = [0.37] + [0.5] * 9, [0.32, 0.29, 0.25, 0.23] + [0.21] * 6
    (said,) = report.remarks(curve_of(away, near))
    assert said.startswith("Short: top-logit RMSE was lowest at step 10") and len(said) <= 100
    (said,) = report.remarks(curve_of(away, [0.32] * 10))  # K = 1, or no hypothesis that learnt anything
    assert said.startswith("Overfitted")
    assert report.remarks(curve_of(away, near, loss=[1.0] * 10)) == []
