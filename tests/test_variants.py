"""variants.py: poolings that know where the hand is and two losses, against plain forms written here."""

import math

import pytest
import torch
from samples import clouds_of, poses_of, seeded
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import variants
from synthetic import hand


def test_rotation_matrix_against_scipy():
    poses = poses_of(10)
    expected = torch.from_numpy(Rotation.from_quat(poses[:, 3:].numpy()).as_matrix()).float()
    torch.testing.assert_close(variants.rotation_matrix(poses[:, 3:]), expected, atol=1e-6, rtol=0)


def test_hand_pool_by_hand():
    torch.manual_seed(0)
    pool = variants.HandPool(16, 0.05)
    tokens, centers, poses = torch.randn(2, 5, 16), torch.rand(2, 5, 3) * 0.2, poses_of(4)
    objects = torch.tensor([1, 0, 1, 1])
    out = pool(tokens, centers, objects, poses)
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


def test_hand_pool_sees_only_relative_positions():
    pool, shift = variants.HandPool(16, 0.05), torch.tensor([0.3, -0.2, 0.1])
    tokens, centers = torch.randn(2, 5, 16), torch.rand(2, 5, 3)
    poses, objects = poses_of(4), torch.tensor([0, 1, 0, 1])
    moved = poses.clone()
    moved[:, :3] += shift
    left, right = pool(tokens, centers, objects, poses), pool(tokens, centers + shift, objects, moved)
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


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


def test_probes_fill_the_room_in_which_a_hand_closes():
    """The grid lies within 1 cm of the fingers' reach: every tip sphere of random postures is near some probe."""
    low, high = torch.tensor(hand.LIMITS).T
    joints = low + torch.rand(200, 12, generator=seeded()) * (high - low)
    centers = torch.from_numpy(hand.finger_spheres(joints.numpy())[0]).float().flatten(0, 2)
    nearest = (centers[:, None] - variants.PROBES).norm(dim=2).amin(1)
    assert (nearest < variants.PROBE_REACH).float().mean() > 0.9


def test_surface_features_end_at_the_reach(monkeypatch):
    distances = torch.tensor([[0.0, 0.03, 0.06, 0.5]])
    monkeypatch.setattr(variants, "surface_distances", lambda *arguments: distances)
    torch.testing.assert_close(variants.surface_features(None, None, None), torch.tensor([[-1.0, 0.5, 2.0, 2.0]]))


# ---------------------------------------------------------------- losses


def test_hedged_loss_by_hand():
    torch.manual_seed(0)
    joints_hat, logits = torch.randn(6, 5, 12, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    joints = torch.randn(6, 12)
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


def test_hedged_loss_finds_average_and_modes():
    """Two equally likely poses, 0 and 1, of which nothing tells: the choice is their average, and both are covered."""
    torch.manual_seed(0)
    joints_hat = (0.5 + 0.1 * torch.randn(3, 12)).requires_grad_()
    logits = torch.zeros(3, requires_grad=True)
    joints = (torch.arange(64) % 2).float()[:, None].expand(-1, 12)
    optimizer = torch.optim.Adam([joints_hat, logits], lr=0.05)
    for _ in range(300):
        loss = variants.hedged_loss(joints_hat.expand(64, -1, -1), logits.expand(64, -1), joints, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits.argmax() == 0
    torch.testing.assert_close(joints_hat[0], torch.full((12,), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(joints_hat[1:].mean(1).sort().values, torch.tensor([0.0, 1.0]), atol=0.02, rtol=0)


def test_mdn_loss_against_torch_distributions():
    joints_hat, logits = torch.randn(6, 5, 12), torch.randn(6, 5)
    joints, log_sigma = torch.randn(6, 12), torch.randn(12)
    normal = torch.distributions.Normal(joints_hat, log_sigma.exp())
    choice = torch.distributions.Categorical(logits=logits)
    mixture = torch.distributions.MixtureSameFamily(choice, torch.distributions.Independent(normal, 1))
    expected = -mixture.log_prob(joints).mean() / 12
    torch.testing.assert_close(variants.mdn_loss(joints_hat, logits, joints, log_sigma), expected)


@pytest.mark.parametrize("loss", ["mdn", "hedged"])
def test_padding_of_weight_zero_changes_no_loss(loss):
    """A batch filled up with copies of its first grasp, as a captured training step wants it."""
    joints_hat, logits, joints = torch.randn(4, 5, 12), torch.randn(4, 5), torch.randn(4, 12)
    last = torch.randn(12) if loss == "mdn" else 0.3
    function = getattr(variants, f"{loss}_loss")
    padded = [torch.cat([x, x[:1], x[:1]]) for x in (joints_hat, logits, joints)]
    weights = torch.tensor([0.25] * 4 + [0.0] * 2)
    torch.testing.assert_close(function(*padded, last, weights), function(joints_hat, logits, joints, last))
