"""variants.py: poolings that know where the hand is and two losses, against plain forms written here."""

import copy
import dataclasses
import math

import pytest
import torch
from samples import clouds_of, poses_of, seeded
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import variants
from model import LOSSES, PRESETS, Encoded, TransformerEncoder


METRIC = dataclasses.replace(PRESETS["tiny"], width=16, normalize="metric")


def encoded(tokens, centers):
    """`Encoded` clouds of which these alone count."""
    return Encoded(tokens, centers, centers[:, 0], centers[:, 0, :1], centers)


def test_hand_pool_by_hand():
    torch.manual_seed(0)
    pool = variants.HandPool(METRIC)
    tokens, centers, poses = torch.randn(2, 5, 16), torch.rand(2, 5, 3) * 0.2, poses_of(4)
    objects = torch.tensor([1, 0, 1, 1])
    out = pool(encoded(tokens, centers), objects, poses)
    for b in range(4):
        matrix = torch.from_numpy(Rotation.from_quat(poses[b, 3:].numpy()).as_matrix()).float()
        hidden = []
        for g in range(5):
            seen = matrix.T @ (centers[objects[b], g] - poses[b, :3]) / 0.05  # mesh frame -> hand frame
            joined = torch.cat([tokens[objects[b], g], seen, seen.norm()[None], matrix.flatten()])
            weight = torch.cat([pool.from_token.weight, pool.from_center.weight, pool.from_rotation.weight], 1)
            hidden.append(pool.mix(weight @ joined + pool.from_token.bias))
        hidden = torch.stack(hidden)  # (5, 64)
        share = pool.score(hidden).softmax(0)  # (5, 4)
        expected = pool.out(torch.cat([share[:, head] @ hidden for head in range(4)]))
        torch.testing.assert_close(out[b], expected, atol=1e-5, rtol=1e-4)


def test_surface_distances_by_a_tree():
    clouds, poses, objects = clouds_of(3), poses_of(40), torch.arange(40) % 3
    distances = variants.surface_distances(clouds, objects, poses)
    assert distances.shape == (40, len(variants.PROBES)) and distances.dtype == torch.float32
    for b in range(40):
        turn, wrist = Rotation.from_quat(poses[b, 3:].numpy()), poses[b, :3].numpy()
        probes = turn.apply(variants.PROBES.numpy()) + wrist  # mesh frame
        expected, _ = cKDTree(clouds[objects[b]].numpy()).query(probes)
        torch.testing.assert_close(distances[b], torch.from_numpy(expected).float(), atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(variants.surface_distances(clouds, objects, poses), distances)


# ---------------------------------------------------------------- losses


def hypotheses(grasps=6):
    """Random joints_hat (B, K, J), logits (B, K), joints (B, J)."""
    generator = seeded()
    return [torch.randn(shape, generator=generator) for shape in ((grasps, 5, 12), (grasps, 5), (grasps, 12))]


def test_hedged_loss_by_hand():
    joints_hat, logits, joints = hypotheses()
    joints_hat.requires_grad_()
    total, winners = 0.0, []
    for b in range(6):
        errors = [sum((joints_hat[b, k, j] - joints[b, j]).item() ** 2 for j in range(12)) / 12 for k in range(5)]
        winners.append(1 + errors[1:].index(min(errors[1:])))
        chances = [math.exp(value) for value in logits[b].tolist()]
        expected = sum(c * e for c, e in zip(chances, errors)) / sum(chances)
        total += (errors[0] + errors[winners[-1]] + 0.3 * expected) / 6
    loss = variants.hedged_loss(joints_hat, logits, joints, 0.3)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    moved = joints_hat.grad.abs().sum(2) > 0
    assert moved.nonzero().tolist() == [[b, k] for b, winner in enumerate(winners) for k in (0, winner)]


def test_mdn_loss_against_torch_distributions():
    (joints_hat, logits, joints), log_sigma = hypotheses(), torch.randn(12)
    normal = torch.distributions.Normal(joints_hat, log_sigma.exp())
    choice = torch.distributions.Categorical(logits=logits)
    mixture = torch.distributions.MixtureSameFamily(choice, torch.distributions.Independent(normal, 1))
    expected = -mixture.log_prob(joints).mean() / 12
    loss = variants.MixtureLoss(PRESETS["tiny"])
    loss.log_sigma.data.copy_(log_sigma)
    torch.testing.assert_close(loss(joints_hat, logits, joints, 0.1), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_of_weight_zero_changes_no_loss(loss):
    """A batch filled up with copies of its first grasp, as a captured training step wants it."""
    joints_hat, logits, joints = hypotheses(grasps=4)
    function = LOSSES[loss](PRESETS["tiny"]) if isinstance(LOSSES[loss], type) else LOSSES[loss]
    padded = [torch.cat([x, x[:1], x[:1]]).requires_grad_() for x in (joints_hat, logits, joints)]
    found = function(*padded, 0.3, torch.tensor([0.25] * 4 + [0.0] * 2))
    torch.testing.assert_close(found, function(joints_hat, logits, joints, 0.3))
    assert not torch.autograd.grad(found, padded[0])[0][4:].any()


# ---------------------------------------------------------------- adapters


def adapted():
    """A tiny transformer, and a copy with adapters that have learnt something."""
    torch.manual_seed(0)
    plain = TransformerEncoder(32, 2, 2)
    changed = copy.deepcopy(plain)
    trained = variants.add_lora(changed, 3)
    return plain.eval(), changed.eval(), trained


def test_adapters_change_nothing_at_first_and_train_alone():
    plain, changed, trained = adapted()
    x = torch.randn(2, 5, 32)
    assert torch.equal(plain(x), changed(x))
    assert sum(p.numel() for p in trained) == 2 * 3 * ((32 + 96) + (32 + 32))
    changed(x).square().sum().backward()
    frozen = [p for name, p in changed.named_parameters() if ".layer." in name]
    assert frozen and all(p.grad is None for p in frozen)


def test_merged_adapters_are_the_adapted_network():
    plain, changed, trained = adapted()
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(0, 0.1)
    x = torch.randn(2, 5, 32)
    before = plain(x)
    plain.load_state_dict(variants.merged(changed.state_dict()))
    torch.testing.assert_close(plain(x), changed(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain(x), before)
