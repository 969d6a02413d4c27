"""model.py: geometry, encoder, pooling, loss, then the pretraining, against plain forms written here."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from samples import TINY, brute_sequence, clouds_of, grasp_model, jepa_of, poses_of, seeded, unit_clouds
from torch import nn

import model
from cli.errors import UserError
from files.config import changed
from model import PRESETS, GraspModel, ModelConfig, PatchEmbed, PointEncoder, PointJEPA, TransformerEncoder

# ---------------------------------------------------------------- configuration


def test_presets():
    encoder = sum(p.numel() for p in PointEncoder(PRESETS["paper"]).parameters())
    assert round(encoder / 1e6, 1) == 21.8  # as published
    assert 1e6 < sum(p.numel() for p in PointEncoder(PRESETS["small"]).parameters()) < 2e6
    assert ModelConfig() == PRESETS["small"]


REFUSED = [
    {"heads": 5}, {"width": 34}, {"patches": 65}, {"patch_size": 65}, {"patches": 1, "patch_size": 1},
    {"group": "ball", "radius": 0.0}, {"group": "ball", "radius": math.nan}, {"pool": "size", "normalize": "metric"},
    {"context_low": 0.8, "context_high": 0.5}, {"context_high": 1.1}, {"loss": "hedged", "k": 1}, {"loss": "l1"},
    {"group": "box"}, {"up": "x"},
]  # fmt: skip


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_a_configuration_that_contradicts_itself_is_refused(changes):
    with pytest.raises(UserError):
        changed(TINY, **changes)


# ---------------------------------------------------------------- geometry


def brute_farthest(cloud, count, start):
    chosen = [start]
    while len(chosen) < count:
        nearest = [min(((p - cloud[c]) ** 2).sum().item() for c in chosen) for p in cloud]
        chosen.append(nearest.index(max(nearest)))  # the first index on ties
    return chosen


def test_farthest_point_sample_against_brute_force():
    clouds = clouds_of(3, 40)
    index = model.farthest_point_sample(clouds, 12)
    assert index.tolist() == [brute_farthest(cloud, 12, 0) for cloud in clouds]
    random = model.farthest_point_sample(clouds, 12, seeded(5))
    assert random.tolist() == [brute_farthest(cloud, 12, start) for cloud, start in zip(clouds, random[:, 0].tolist())]
    assert torch.equal(random, model.farthest_point_sample(clouds, 12, seeded(5)))
    starts = model.farthest_point_sample(clouds_of(200, 40), 1, seeded(1))[:, 0]
    assert starts.unique().numel() > 35  # each cloud has its own start
    drawn = model.start_points(seeded(5), 3, 40, clouds.device)  # before the step, as a captured one needs it
    assert torch.equal(random, model.farthest_point_sample(clouds, 12, drawn))


def test_farthest_point_sample_takes_the_first_of_ties():
    grid = torch.tensor([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])[None]
    assert model.farthest_point_sample(grid, 8)[0].tolist() == brute_farthest(grid[0], 8, 0)
    assert model.farthest_point_sample(torch.zeros(1, 5, 3), 3)[0].tolist() == [0, 0, 0]


def test_knn_against_brute_force():
    clouds = clouds_of(2, 50)
    centers = model.gather_points(clouds, model.farthest_point_sample(clouds, 6))
    patches = model.group_points(clouds, centers, 7)
    assert patches.shape == (2, 6, 7, 3)
    for b in range(2):
        for g in range(6):
            distance = ((clouds[b] - centers[b, g]) ** 2).sum(1)
            nearest = sorted(range(50), key=lambda n: distance[n].item())[:7]
            expected = {tuple((clouds[b, n] - centers[b, g]).tolist()) for n in nearest}
            assert {tuple(point) for point in patches[b, g].tolist()} == expected
            assert (0.0, 0.0, 0.0) in expected


def test_ball_against_brute_force():
    clouds, radius, size = clouds_of(2, 60), 0.06, 5
    centers = model.gather_points(clouds, model.farthest_point_sample(clouds, 10))
    patches = model.group_points(clouds, centers, size, "ball", radius)
    counts = []
    for b in range(2):
        for g in range(10):
            inside = [n for n in range(60) if ((clouds[b, n] - centers[b, g]) ** 2).sum() < radius**2][:size]
            counts.append(len(inside))
            inside += inside[:1] * (size - len(inside))
            torch.testing.assert_close(patches[b, g], (clouds[b, inside] - centers[b, g]) / radius, rtol=0, atol=0)
    assert min(counts) < size and max(counts) == size  # both cases occurred


def test_ball_is_open():
    cloud = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [0, 0.25, 0]]])  # exactly radius and half of it away
    patch = model.group_points(cloud, cloud[:, :1], 3, "ball", 0.5)[0, 0]
    assert patch.tolist() == [[0, 0, 0], [0, 0.5, 0], [0, 0, 0]]


def test_normalize_clouds():
    clouds = clouds_of(3) + 1
    unit, centroid, radius = model.normalize_clouds(clouds, TINY)
    torch.testing.assert_close(centroid, clouds.mean(1))
    torch.testing.assert_close(unit.mean(1), torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit.norm(dim=2).amax(1), torch.ones(3))
    torch.testing.assert_close(unit * radius[:, None] + centroid[:, None], clouds)
    metric, centroid, radius = model.normalize_clouds(clouds, dataclasses.replace(TINY, normalize="metric", scale=0.25))
    assert torch.equal(metric, clouds / 0.25)
    assert centroid.tolist() == [[0, 0, 0]] * 3 and radius.tolist() == [[0.25]] * 3


def test_up_axis():
    points = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
    assert model.from_z_up(points, "y").tolist() == [[0, 1, 0], [1, 3, -2]]  # up is y; still right-handed
    assert torch.equal(model.to_z_up(model.from_z_up(points, "y"), "y"), points)
    assert model.from_z_up(points, "z") is points
    network = grasp_model(up="y")
    centers = network.encode(clouds_of(2)).centers  # m, in the mesh's frame again
    torch.testing.assert_close(centers[:, 0], clouds_of(2)[:, 0])  # sampling starts at point 0
    # a y-up encoder sees z-up data turned: its tokens are those of the same weights on clouds that are y up
    upright = grasp_model(up="z")
    upright.load_state_dict(network.state_dict())
    tokens = network.encode(clouds_of(2)).tokens
    expected = upright.encode(model.from_z_up(clouds_of(2), "y")).tokens
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tokens, upright.encode(clouds_of(2)).tokens, atol=1e-2)


# ---------------------------------------------------------------- encoder


def naive_patch_embed(embed, patches):
    """The same network in its plain form: convolutions over points, an explicit concatenation."""
    batch, num_patches, size, _ = patches.shape
    x = patches.flatten(0, 1).transpose(1, 2)  # (B·G, 3, S)

    def stage(layers, x):
        x = F.conv1d(x, layers[0].weight[:, :, None])
        mean, var = x.mean((0, 2)), x.var((0, 2), unbiased=False)
        x = (x - mean[:, None]) / (var[:, None] + layers[1].eps).sqrt()
        x = (x * layers[1].weight[:, None] + layers[1].bias[:, None]).clamp(min=0)
        return F.conv1d(x, layers[3].weight[:, :, None], layers[3].bias), mean, var

    x, mean1, var1 = stage(embed.first, x)
    x = torch.cat([x.max(2, keepdim=True).values.expand(-1, -1, size), x], 1)  # (B·G, 2·w2, S)
    x, mean2, var2 = stage(embed.second, x)
    return x.max(2).values.view(batch, num_patches, -1), (mean1, var1, mean2, var2)


def test_patch_embed_equals_naive_form_gradients_included():
    torch.manual_seed(0)
    embed = PatchEmbed(16, 24, 40, 12).double()
    for norm in (embed.first[1], embed.second[1]):
        nn.init.uniform_(norm.weight, -1, 1), nn.init.uniform_(norm.bias, -1, 1)
    patches = torch.randn(3, 5, 9, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 5, 12, dtype=torch.float64)

    tokens = embed(patches)
    expected, (mean1, var1, mean2, var2) = naive_patch_embed(embed, patches)
    torch.testing.assert_close(tokens, expected, atol=1e-10, rtol=1e-10)
    inputs = [patches, *embed.parameters()]
    ours = torch.autograd.grad((tokens * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-10)

    count = 3 * 5 * 9  # the statistics are over all points
    for norm, mean, var in ((embed.first[1], mean1, var1), (embed.second[1], mean2, var2)):
        torch.testing.assert_close(norm.running_mean, 0.1 * mean)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var * count / (count - 1))


def test_order_of_points_in_a_patch_changes_nothing():
    embed = PatchEmbed(16, 16, 32, 12).eval()
    patches = torch.randn(2, 3, 8, 3)
    shuffled = patches[:, :, torch.randperm(8, generator=seeded())]
    torch.testing.assert_close(embed(shuffled), embed(patches), atol=1e-6, rtol=0)


def test_stochastic_depth_is_per_sample_and_rises_linearly():
    network = TransformerEncoder(8, 5, 2, drop_path=(0.0, 0.4))
    assert [round(block.drop_path, 6) for block in network.blocks] == [0, 0.1, 0.2, 0.3, 0.4]
    torch.manual_seed(0)
    kept = network.blocks[4].drop_branch(torch.ones(4000, 3, 8))
    per_sample = kept.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert abs((per_sample[:, 0] == 0).float().mean().item() - 0.4) < 0.03
    torch.testing.assert_close(per_sample[:, 0].unique(), torch.tensor([0, 1 / 0.6]))
    assert torch.equal(network.eval().blocks[4].drop_branch(kept), kept)


def test_ball_radius_is_metres_on_metric_clouds():
    config = dataclasses.replace(TINY, normalize="metric", scale=0.5, group="ball", radius=0.05)
    clouds = clouds_of(2)
    patches, centers = PointEncoder(config).group(model.normalize_clouds(clouds, config)[0])
    expected = model.group_points(clouds, centers * 0.5, config.patch_size, "ball", 0.05)
    torch.testing.assert_close(patches, expected)


# ---------------------------------------------------------------- pooling


def test_pools_without_weights():
    tokens = torch.randn(2, 5, TINY.width)
    mean, highest, both = (model.POOLS[name](TINY).embed(tokens) for name in ("mean", "max", "mean_max"))
    torch.testing.assert_close(mean, tokens.sum(1) / 5)
    assert torch.equal(highest, tokens.max(1).values)
    assert torch.equal(both, torch.cat([mean, highest], 1))


def test_attention_pool_by_hand():
    torch.manual_seed(0)
    pool, tokens = model.AttentionPool(dataclasses.replace(TINY, width=8)), torch.randn(3, 5, 8)
    weight, bias = pool.attention.in_proj_weight, pool.attention.in_proj_bias
    query = F.linear(pool.query[0, 0], weight[:8], bias[:8])
    keys, values = F.linear(tokens, weight[8:], bias[8:]).chunk(2, dim=2)
    parts = []
    for head in range(4):
        cut = slice(2 * head, 2 * head + 2)
        share = (keys[..., cut] @ query[cut] / math.sqrt(2)).softmax(1)  # (3, 5)
        parts.append((share[..., None] * values[..., cut]).sum(1))
    torch.testing.assert_close(pool.embed(tokens), pool.attention.out_proj(torch.cat(parts, 1)), atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------- grasp model


@pytest.mark.parametrize("pool", model.POOLS)
@pytest.mark.parametrize("k", (1, 5))
def test_grasp_model_shapes_and_object_index(pool, k):
    network = grasp_model(pool=pool, k=k)
    clouds, poses, index = clouds_of(3), poses_of(6), torch.tensor([2, 0, 1, 1, 0, 2])
    joints, logits = network(clouds, index, poses)
    assert joints.shape == (6, k, 12) and logits.shape == (6, k)
    for b in range(6):  # each grasp by itself, with only its own cloud
        alone, alone_logits = network(clouds[index[b]][None], torch.zeros(1, dtype=torch.long), poses[b : b + 1])
        torch.testing.assert_close(joints[b], alone[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[b], alone_logits[0], atol=1e-5, rtol=1e-4)
    again, _ = network(clouds, index, poses)
    assert torch.equal(joints, again)  # to the bit
    encoded = network.encode(clouds)
    assert torch.equal(network.decode(encoded, index, poses)[0], joints)


def test_head_sees_lengths_in_its_own_unit_and_the_quaternion():
    network, seen = grasp_model(pool="mean"), []
    network.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    clouds, poses = clouds_of(1), poses_of(2)
    network(clouds, torch.tensor([0, 0]), poses)
    encoded = network.encode(clouds)
    assert torch.equal(seen[0][:, -4:], poses[:, 3:])
    torch.testing.assert_close(seen[0][:, -7:-4] * 0.05, poses[:, :3])
    torch.testing.assert_close(
        seen[0][:, -11:-7] * 0.05, torch.cat([encoded.centroid, encoded.radius], 1).expand(2, -1)
    )


def test_joint_mean_is_added_and_saved():
    mean = torch.linspace(-1, 1, 12)
    torch.manual_seed(0)
    network = GraspModel(TINY, joint_mean=mean).eval()
    joints, _ = network(clouds_of(1), torch.tensor([0]), poses_of(1))
    plain, _ = grasp_model()(clouds_of(1), torch.tensor([0]), poses_of(1))
    torch.testing.assert_close(joints, plain + mean)
    assert torch.equal(network.state_dict()["joint_mean"], mean)


@pytest.mark.parametrize("pool", model.POOLS)
@pytest.mark.parametrize("loss", ("wta", "mdn", "hedged"))
def test_every_parameter_learns(pool, loss):
    network = grasp_model(pool=pool, loss=loss, dropout=0.0, attention_dropout=0.0, drop_path=0.0).train()
    joints, logits = network(clouds_of(4), torch.arange(4).repeat(8), poses_of(32))
    network.loss(joints, logits, torch.randn(32, 12, generator=seeded()), 0.1).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["attention", "hand"])
def test_gradients_are_the_same_to_the_bit_with_two_threads(pool):
    """Grasps of all objects mixed: two threads add to the gradient of the same embedding."""
    threads, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    network = grasp_model(pool=pool)
    tokens = torch.randn(8, 8, 32, generator=generator).requires_grad_()
    centers = torch.rand(8, 8, 3, generator=generator)
    encoded = model.Encoded(tokens, centers, torch.zeros(8, 3), torch.ones(8, 1), centers)
    index, poses = torch.randint(0, 8, (2048,), generator=generator), torch.randn(2048, 7, generator=generator)
    try:
        torch.set_num_threads(2)
        seen = set()
        for _ in range(10):
            joints, logits = network.decode(encoded, index, poses)
            seen.add(torch.autograd.grad(joints.square().sum() + logits.square().sum(), tokens)[0].numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1


@pytest.mark.parametrize("k", [1, 5])
def test_wta_loss_by_hand(k):
    torch.manual_seed(0)
    joints_hat, logits, joints = torch.randn(6, k, 12, requires_grad=True), torch.randn(6, k), torch.randn(6, 12)
    total, winners = 0.0, []
    for b in range(6):
        errors = [sum((joints_hat[b, h, j] - joints[b, j]).item() ** 2 for j in range(12)) / 12 for h in range(k)]
        winners.append(errors.index(min(errors)))
        entropy = math.log(sum(math.exp(value) for value in logits[b].tolist())) - logits[b, winners[-1]].item()
        total += (min(errors) + 0.1 * entropy) / 6
    loss = model.wta_loss(joints_hat, logits, joints, 0.1)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    moved = joints_hat.grad.abs().sum(2) > 0  # only the winner of each grasp gets a gradient
    assert moved.nonzero().tolist() == [[b, winner] for b, winner in enumerate(winners)]


# ---------------------------------------------------------------- pretraining: sequencer and blocks


def test_sequencer_against_brute_force():
    centers = torch.randn(6, 20, 3, generator=seeded())
    assert model.sequence_patches(centers).tolist() == [brute_sequence(sample.tolist()) for sample in centers]
    assert model.sequence_patches(torch.zeros(1, 4, 3)).sort(1).values.tolist() == [[0, 1, 2, 3]]


def test_blocks_lengths_starts_and_context():
    """64 patches: int(64 · U(0.15, 0.2)) is 9, 10, 11, 12 with probability .4, 1, 1, .8 over 3.2."""
    generator, lengths, starts, shares, firsts, overlaps = seeded(), [], [], [], [], 0
    for _ in range(4000):
        targets, context = model.sample_blocks(64, generator)
        length = targets.shape[1]
        lengths.append(length)
        assert targets.shape[0] == 4
        assert torch.equal(targets - targets[:, :1], torch.arange(length).expand(4, -1))  # contiguous
        covered = set(targets.flatten().tolist())
        assert not covered & set(context.tolist())  # nothing leaks
        remaining = [i for i in range(64) if i not in covered]
        first = remaining.index(context[0])
        assert context.tolist() == remaining[first : first + len(context)]  # one run of what remains
        assert int(0.4 * len(remaining)) <= len(context) <= int(0.75 * len(remaining))
        shares.append(len(context) / len(remaining))
        firsts.append((first + 0.5) / (len(remaining) - len(context) + 1))
        overlaps += len(covered) < 4 * length
        if length == 10:
            starts += targets[:, 0].tolist()
    for length, probability in {9: 0.125, 10: 0.3125, 11: 0.3125, 12: 0.25}.items():
        assert abs(lengths.count(length) / 4000 - probability) < 0.03
    counts = torch.bincount(torch.tensor(starts), minlength=55)
    assert len(counts) == 55 and (counts - len(starts) / 55).abs().max() < 5 * math.sqrt(len(starts) / 55)
    assert abs(sum(shares) / 4000 - (0.575 - 0.5 / 36)) < 0.01  # int() takes half a token on average
    for values, low, high in ((shares, 0.4 - 0.5 / 36, 0.75 - 0.5 / 36), (firsts, 0, 1)):  # uniform: equal fifths
        counts = torch.histc(torch.tensor(values), 5, low, high)
        assert (counts - 800).abs().max() < 120, counts
    assert overlaps > 2000  # four blocks of 10 among 64 rarely miss each other


def test_blocks_are_reproducible_and_refuse_too_few_patches():
    left, right = model.sample_blocks(64, seeded(3)), model.sample_blocks(64, seeded(3))
    assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
    small = [model.sample_blocks(5, seeded(seed)) for seed in range(50)]
    assert all(len(context) >= 1 for _, context in small)
    assert all(targets.shape == (4, 1) for targets, _ in small)  # int(5 · 0.2) is 1, or 0 below
    with pytest.raises(ValueError):
        [model.sample_blocks(4, seeded(seed)) for seed in range(100)]


@pytest.mark.parametrize("low, high", [(0.4, 0.75), (0.85, 1.0)])
def test_context_takes_its_share_of_what_no_target_covers(low, high):
    jepa = jepa_of(context_low=low, context_high=high)
    for seed in range(200):
        targets, context = jepa.sample_blocks(seeded(seed))
        free = 16 - len(set(targets.flatten().tolist()))
        assert max(1, int(low * free)) <= len(context) <= max(1, int(high * free))


# ---------------------------------------------------------------- pretraining: one step


def test_gradient_reaches_the_tokenizer_through_context_only():
    jepa, outputs = jepa_of(context_low=0.4, context_high=0.75), []

    def remember(module, inputs, output):
        output.retain_grad()
        outputs.append(output)

    jepa.encoder.embed.register_forward_hook(remember)
    jepa.encoder.position.register_forward_hook(remember)
    generator = seeded(4)
    model.farthest_point_sample(unit_clouds(3), 2, generator)  # the same draws as in the step below
    _, context = model.sample_blocks(16, generator)
    loss, _, _ = jepa(unit_clouds(3), seeded(4))
    loss.backward()
    assert len(outputs) == 2
    for output in outputs:
        moved = output.grad.abs().sum((0, 2)) > 0  # (G,)
        assert moved.nonzero()[:, 0].tolist() == context.tolist()
    assert all(p.grad.abs().sum() > 0 for p in jepa.encoder.embed.parameters() if p.ndim > 1)


def test_target_is_a_copy_without_gradient_or_dropout():
    jepa = jepa_of(dropout=0.5, drop_path=0.5)
    assert not jepa.target.training and not jepa.train().target.training and jepa.encoder.transformer.training
    pairs = list(zip(jepa.target.parameters(), jepa.encoder.transformer.parameters()))
    assert all(torch.equal(ours, theirs) and ours is not theirs for ours, theirs in pairs)
    loss, targets, predictions = jepa(unit_clouds(3), seeded())
    loss.backward()
    assert not targets.requires_grad
    copied = {f"target.{name}" for name, _ in jepa.target.named_parameters()}
    for learns in (lambda p: p.requires_grad, lambda p: p.grad is not None):  # all the others do
        assert {name for name, p in jepa.named_parameters() if not learns(p)} == copied


def test_targets_are_normalised_over_features_and_then_over_the_tokens_of_a_cloud():
    tokens, position = torch.randn(3, 16, 32, generator=seeded()), torch.randn(3, 16, 32, generator=seeded(1))
    original, ours = jepa_of(target_norm="layer"), jepa_of()
    by_hand = original.make_targets(tokens, position)  # held against the official network in test_checkpoint.py
    by_hand = by_hand - by_hand.mean(1, keepdim=True)  # what all tokens of a cloud share is gone
    by_hand = by_hand / (by_hand.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(ours.make_targets(tokens, position), by_hand, atol=1e-5, rtol=1e-5)


def test_stochastic_depth_rises_in_the_encoder_and_is_constant_in_the_predictor():
    jepa = PointJEPA(dataclasses.replace(PRESETS["paper"], depth=3, **model.PRETRAINING))
    assert [block.drop_path for block in jepa.encoder.transformer.blocks] == [0, 0.125, 0.25]
    assert [block.drop_path for block in jepa.predictor.transformer.blocks] == [0.25] * 6
    assert jepa.predictor.transformer.blocks[0].attn.rate == 0.05
    assert jepa.predictor.transformer.blocks[0].dropout.p == 0.1
    assert torch.equal(jepa.predictor.mask_token, torch.zeros(1, 1, 192))
