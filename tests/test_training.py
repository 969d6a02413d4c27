"""loop/: schedule, Ctrl-C, precision, what a checkpoint must agree on."""

import dataclasses
import math
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from samples import TINY, seeded

from cli.errors import UserError
from loop import fast
from loop import flags
from loop import last
from loop import machine
from loop import pace

# ---------------------------------------------------------------- the machine


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def matmul_precision():
    """What products are computed in is a setting of the whole process: leave it as it was."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_precision_by_device(matmul_precision):
    resolved = {(device.type, fastest): machine.set_precision("auto", device, fastest)
                for device in (CPU, CUDA) for fastest in ("tf32", "bf16")}  # fmt: skip
    expected = {("cpu", "tf32"): "fp32", ("cpu", "bf16"): "fp32", ("cuda", "tf32"): "tf32", ("cuda", "bf16"): "bf16"}
    assert resolved == expected
    for precision, products in (("tf32", "high"), ("fp32", "highest")):
        assert machine.set_precision(precision, CUDA) == precision
        assert torch.get_float32_matmul_precision() == products
    machine.set_precision("tf32", CUDA)
    with fast.exact_products():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(UserError, match="--precision tf32"):
        machine.set_precision("tf32", CPU)


def test_a_cpu_keeps_its_fused_attention(monkeypatch):
    """The switch of FlashAttention, which a GPU does without, is also the one of the only fused form on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, flash in (("cuda", False), ("cpu", True)):
        assert machine.set_up_torch(device).type == device
        assert torch.backends.cuda.flash_sdp_enabled() == flash
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_of_the_forward_pass(precision, dtype):
    with machine.autocast(CPU, precision):
        assert F.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == dtype


def test_bf16_without_instructions_is_announced(monkeypatch, capsys, matmul_precision):
    """Which processor runs the test must not matter."""
    monkeypatch.setattr(machine, "computes_bf16", lambda device: False)
    for precision in ("auto", "fp32"):
        machine.set_precision(precision, CPU)
    assert capsys.readouterr().err == ""
    machine.set_precision("bf16", CPU)
    assert "warning: --precision bf16" in capsys.readouterr().err
    monkeypatch.setattr(machine, "computes_bf16", lambda device: True)
    machine.set_precision("bf16", CPU)
    assert capsys.readouterr().err == ""


def test_bf16_pays_where_it_is_said_to():
    """PyTorch's own product in software takes seven times as long as in float32 or more; else as long or less."""

    def fastest(dtype):
        square, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(5):
            begun = time.perf_counter()
            F.linear(square, square)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert machine.computes_bf16(CPU) == (fastest(torch.bfloat16) < 3 * fastest(torch.float32))
    assert machine.computes_bf16(CUDA)


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


# ---------------------------------------------------------------- the loop


def test_warmup_cosine_against_the_formula():
    values = [pace.warmup_cosine(step, 100, 10, start=0.1, end=0.02) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and values[5] == pytest.approx(0.55) and values[10] == pytest.approx(1)
    assert values[55] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert values[100] == pytest.approx(0.02)
    assert all(a > b for a, b in zip(values[10:], values[11:]))


def test_deferred_interrupt_waits_for_the_loop():
    before = signal.getsignal(signal.SIGINT)
    with pace.deferred_interrupt() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_first_step_that_was_not_finite_is_kept():
    bad_step = torch.tensor(-1)
    for step, finite in enumerate((True, True, False, True, False)):
        bad_step = pace.first_not_finite(bad_step, torch.tensor(finite), step)
        assert bad_step == (-1 if step < 2 else 2)


# ---------------------------------------------------------------- checkpoints


@dataclasses.dataclass
class Progress:
    """What a loop has reached."""

    step: int = 0
    history: list = dataclasses.field(default_factory=list)


def learner():
    """A layer after two steps of AdamW, its optimiser and a generator."""
    torch.manual_seed(0)
    layer, generator = torch.nn.Linear(3, 2), seeded(5)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(2):
        learn(layer, optimizer, generator)
    return layer, optimizer, generator


def learn(layer, optimizer, generator):
    """A step on random numbers of both kinds: the loop's generator and torch's own, which draws dropout."""
    optimizer.zero_grad()
    layer(torch.randn(4, 3, generator=generator) + torch.rand(4, 3)).square().sum().backward()
    optimizer.step()


def test_last_checkpoint_goes_on_to_the_bit(tmp_path):
    path, settings = tmp_path / "last.pt", {"steps": 9}
    layer, optimizer, generator = learner()
    content = {"model": layer.state_dict(), "settings": settings}
    reached = Progress(2, [{"loss": 0.5}])
    last.save_last(path, content, optimizer, generator, dataclasses.asdict(reached))
    learn(layer, optimizer, generator)

    again, its_optimizer, its_generator = learner()
    learn(again, its_optimizer, its_generator)  # somewhere else by now
    assert last.load_last(path, settings, "model", again, its_optimizer, its_generator, Progress()) == reached
    learn(again.train(), its_optimizer, its_generator)
    assert torch.equal(again.weight, layer.weight) and torch.equal(again.bias, layer.bias)

    other_layer, other_optimizer = torch.nn.BatchNorm1d(2), torch.optim.AdamW([torch.zeros(1)])
    for message, arguments in (
        (r"was started with other settings \(steps\)", ({"steps": 10}, "model", again, its_optimizer)),
        ("missing keys", (settings, "model", other_layer, its_optimizer)),
        ("is not of this run", (settings, "model", again, other_optimizer)),
    ):
        with pytest.raises(UserError, match=f"last.pt: {message}"):
            last.load_last(path, *arguments, its_generator, Progress())
    for progress in ({"step": 2}, {"step": 2, "history": [], "more": 1}, [2], 2):
        last.save_last(path, content, optimizer, generator, progress)
        with pytest.raises(UserError, match="last.pt: is not of this run"):
            last.load_last(path, settings, "model", again, its_optimizer, its_generator, Progress())


def test_flags_must_agree_with_a_checkpoint():
    flags.check_flags({"patches": TINY.patches}, TINY, "x.pt", ("tiny", TINY))
    with pytest.raises(UserError, match="x.pt: was pretrained with patch_size 8, not 4; leave --patch-size out"):
        flags.check_flags({"patches": TINY.patches, "patch_size": 4}, TINY, "x.pt")
    flags.check_flags({}, TINY, "x.pt", ("other", dataclasses.replace(TINY, patches=4)))  # no part of its size
    with pytest.raises(UserError, match="x.pt: is not of --preset wide"):
        flags.check_flags({}, TINY, "x.pt", ("wide", dataclasses.replace(TINY, width=64)))
