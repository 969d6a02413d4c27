"""loop/: the machine, the pace of a loop, flags that must agree with a checkpoint."""

import dataclasses
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from samples import TINY

from cli.errors import UserError
from loop import fast, flags, machine, pace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


# ---------------------------------------------------------------- the machine
@pytest.fixture
def matmul_precision():
    """What products are computed in is a setting of the whole process: leave it as it was."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_precision_by_device(matmul_precision):
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
def test_bf16_without_instructions_is_announced(monkeypatch, capsys, matmul_precision, here):
    monkeypatch.setattr(fast, "BF16", here)  # which processor runs the test must not matter
    for precision in ("auto", "fp32"):
        machine.set_precision(precision, CPU)
    assert capsys.readouterr().err == ""
    machine.set_precision("bf16", CPU)
    assert ("warning: --precision bf16" in capsys.readouterr().err) == (not here)


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"), reason="a PyTorch without oneDNN")
@pytest.mark.parametrize("features, expected", [
    ("", False), ("avx512_f", False), ("avx512_f avx512_bf16", True), ("avx512_f avx512_bf16 amx_bf16", True),
])  # fmt: skip
def test_bf16_by_the_processors_features(monkeypatch, features, expected):
    """oneDNN says yes wherever there is AVX-512; without that it says what it finds."""
    known = ("avx512_f", "avx512_bf16", "amx_bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: name in features.split() for name in known})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: "avx512_f" in features)
    assert fast.has_bf16() == expected


def test_a_cpu_keeps_its_fused_attention(monkeypatch):
    """The switch of FlashAttention, which a GPU does without, is also the one of the only fused form on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, flash in (("cuda", False), ("cpu", True)):
        assert machine.set_up_torch(device).type == device
        assert torch.backends.cuda.flash_sdp_enabled() == flash
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_peak_memory_counts_what_was_freed():
    if not machine.peak_memory(CPU):
        pytest.skip("this system does not tell")
    machine.reset_peak_memory(CPU)
    before = machine.peak_memory(CPU)
    torch.ones(25_000_000)  # 100 MB
    assert machine.peak_memory(CPU) > before + 80e6


# ---------------------------------------------------------------- the pace
def test_warmup_cosine_against_the_formula():
    values = [pace.warmup_cosine(step, 100, 10, start=0.1, end=0.02) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and values[5] == pytest.approx(0.55) and values[10] == pytest.approx(1)
    assert values[55] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert values[100] == pytest.approx(0.02)
    assert all(a > b for a, b in zip(values[10:], values[11:]))


def test_a_loop_counts_hears_ctrl_c_after_its_step_and_tells_a_bad_one():
    before, progress = signal.getsignal(signal.SIGINT), pace.LoopProgress(step=3)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 6; .* --resume"):
        with pace.paced(progress, 9, "counting", CPU, silent=True) as clock:
            while clock.goes_on():
                if progress.step == 5:
                    os.kill(os.getpid(), signal.SIGINT)
                clock.count(torch.tensor(progress.step != 4))
            pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is before and progress.seconds > 0
    with pytest.raises(UserError, match=r"not finite at step 4 \(batch of a mug\); x.pt holds .* lower --lr"):
        clock.look(lambda step: "a mug", "x.pt", "--lr")
    with pace.paced(progress, 9, "counting", CPU, silent=True) as clock:
        due = []
        while clock.goes_on():
            clock.count(torch.tensor(True))
            due.append((progress.step, clock.due(4)))
        clock.look(lambda step: "nothing", "x.pt", "--lr")
        assert clock.speed() > 0
    assert due == [(7, False), (8, True), (9, True)]  # the last step always is


# ---------------------------------------------------------------- flags
def test_flags_must_agree_with_a_checkpoint():
    flags.check_network_flags({"patches": TINY.patches}, "tiny", TINY, "x.pt")
    with pytest.raises(UserError, match="x.pt: was pretrained with patch_size 8, not 4; leave --patch-size out"):
        flags.check_network_flags({"patches": TINY.patches, "patch_size": 4}, None, TINY, "x.pt")
    flags.check_network_flags({}, "tiny", dataclasses.replace(TINY, patches=4), "x.pt")  # no part of its size
    with pytest.raises(UserError, match="x.pt: is not of --preset small"):
        flags.check_network_flags({}, "small", TINY, "x.pt")
