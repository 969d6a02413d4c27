"""loop/fast.py: each layer against the plain one whose place it takes, gradients included."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import variants  # noqa: F401 - its poolings
from loop import fast
from model import PRESETS, GraspModel, squared_distances


def with_gradients(function, *inputs):
    """function(*inputs), and the gradients of a random weighting of it with respect to all inputs."""
    own = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*own)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), own)]


def assert_same(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, **tolerance)


def network_of(pool="attention", seed=0):
    """A tiny network with plain layers and without dropout, and a batch for it."""
    torch.manual_seed(seed)
    config = dataclasses.replace(PRESETS["tiny"], pool=pool, dropout=0.0, attention_dropout=1e-9, drop_path=0.0)
    network = GraspModel(config)
    network.head.eval()  # its dropout
    return network, (torch.rand(3, 64, 3), torch.tensor([0, 0, 1, 1, 2, 2, 2]), torch.randn(7, 7))


def joints_and_gradients(network, batch):
    """What a training step sees of a network: joints, logits, gradients by name; head without dropout."""
    network.train().head.eval()
    joints, logits = network(*batch)
    gradients = torch.autograd.grad(joints.square().mean() + logits.square().mean(), [*network.parameters()])
    return [joints.detach(), logits.detach(), *gradients]


@pytest.mark.parametrize("pool", ["attention", "hand"])
def test_a_network_with_fast_layers_is_the_plain_one(pool):
    """Joints, logits and gradients, BatchNorm's statistics; attention in its own form, of a rate near zero."""
    plain, batch = network_of(pool)
    quick = fast.speed_up(copy.deepcopy(plain))
    kinds = {type(layer) for layer in quick.modules()}
    assert kinds >= {fast.FastDropout, fast.FastLayerNorm, fast.FastAttention, fast.FastPatchEmbed}
    assert not kinds & set(fast.FAST) and list(quick.state_dict()) == list(plain.state_dict())
    assert_same(joints_and_gradients(quick, batch), joints_and_gradients(plain, batch), atol=2e-5, rtol=1e-4)
    assert_same([*quick.buffers()], [*plain.buffers()], atol=1e-6, rtol=1e-5)


def test_gpu_layernorm_keeps_bfloat16(gpu):
    """To bfloat16's precision, of values of about one: three digits; gradients of the weights are sums of ten."""
    torch.manual_seed(0)
    theirs, x = torch.nn.LayerNorm(96), 3 * torch.randn(2, 5, 96) + 1
    for values in theirs.parameters():
        torch.nn.init.normal_(values, 1.0, 0.2)
    ours = fast.speed_up(copy.deepcopy(theirs)).to(gpu)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = with_gradients(ours, x.to(gpu, torch.bfloat16))
        exact = ours(x.to(gpu))
    assert found[0].dtype == torch.bfloat16 and exact.dtype == torch.float32
    expected = with_gradients(theirs, x)
    assert_same([values.float().cpu() for values in found], expected, atol=0.05, rtol=0.02)
    assert_same([exact.cpu()], expected[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_rate_scale_and_gradient(rate):
    """Random, so not number by number: zero at the rate, else scaled as nn.Dropout does; the gradient alike."""
    torch.manual_seed(0)
    dropout, plain = fast.FastDropout(rate), torch.nn.Dropout(rate)
    x = torch.ones(400, 1001, requires_grad=True)
    out = dropout(x)
    assert torch.equal(out.unique(), plain(x).unique())
    assert abs((out == 0).float().mean().item() - rate) < 0.003
    columns = (out == 0).float().view(-1)[: 400 * 1000].view(-1, 4).mean(0)  # four values share one draw of bits
    assert (columns - rate).abs().max() < 0.005
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert dropout.eval()(x) is x and fast.FastDropout(0.0)(x) is x


def test_attention_drops_weights_and_scales_the_others():
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 7, 6, dtype=torch.float64)  # (B, H, G, D/H) each
    whole = torch.eye(7, dtype=torch.float64).expand(2, 4, 7, 7)  # of this value, the output is the weights
    weights = F.scaled_dot_product_attention(query, key, whole)
    dropped = torch.stack([fast.FastAttention(24, 4).mix(query, key, whole, 0.25) for _ in range(200)])
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], (weights / 0.75).expand_as(dropped)[kept])
    assert abs(kept.double().mean().item() - 0.75) < 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])  # each has its own way back
def test_max_over_points_gives_the_gradient_to_the_winners(dtype):
    torch.manual_seed(0)
    features = torch.randn(5, 7, 4, dtype=dtype)  # without ties
    ours, theirs = (with_gradients(f, features) for f in (fast.MaxOverPoints.apply, lambda x: x.amax(1)))
    assert all(map(torch.equal, ours, theirs))


def test_squared_distances():
    torch.manual_seed(0)
    left, right = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 40, 3, dtype=torch.float64)
    plain = with_gradients(lambda a, b: torch.cdist(a, b) ** 2, left, right)
    assert_same(with_gradients(squared_distances, left, right), plain)
    far = torch.tensor([[[1000.0, 0, 0], [1000.0, 0, 0.001]]])  # float32: by squares the difference would cancel
    torch.testing.assert_close(squared_distances(far, far)[0, 0, 1].item(), 1e-6, rtol=1e-3, atol=0)
