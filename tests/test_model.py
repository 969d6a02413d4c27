"""model.py, the grasp model: geometry, encoder, pooling, losses and checkpoints against oracles written here."""

import dataclasses
import math
import os

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch import nn

import hand
import model
from common import UserError
from model import PRESETS, GraspModel, ModelConfig, PatchEmbed, PointEncoder, TransformerEncoder

TINY = PRESETS["tiny"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds_of(count, points=64, seed=0):
    return torch.rand(count, points, 3, generator=seeded(seed)) * 0.2


def poses_of(count, seed=0):
    poses = torch.randn(count, 7, generator=seeded(seed))
    return torch.cat([0.1 * poses[:, :3], F.normalize(poses[:, 3:])], 1)


def grasp_model(**changes):
    torch.manual_seed(0)
    return GraspModel(dataclasses.replace(TINY, **changes)).eval()


# ---------------------------------------------------------------- configuration
def test_presets():
    encoder = sum(p.numel() for p in PointEncoder(PRESETS["paper"]).parameters())
    assert round(encoder / 1e6, 1) == 21.8  # as published
    assert 1e6 < sum(p.numel() for p in PointEncoder(PRESETS["small"]).parameters()) < 2e6
    assert ModelConfig() == PRESETS["small"]
    assert set(model.ENCODER_FIELDS) < {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize(
    "changes",
    [{"group": "box"}, {"heads": 5}, {"patches": 0}, {"patches": 65}, {"group": "ball"}, {"scale": -1.0},
     {"width": "64"}, {"dropout": 1.0}, {"radius": math.nan, "group": "ball"}, {"pool": "sum"}],
)  # fmt: skip
def test_config_refuses(changes):
    with pytest.raises(UserError):
        dataclasses.replace(TINY, **changes)


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


def test_smallest_and_squared_distances():
    left, right = torch.randn(2, 5, 3), torch.randn(2, 40, 3)
    distances = model.squared_distances(left, right)
    torch.testing.assert_close(distances, (left[:, :, None] - right[:, None]).square().sum(3))
    for count in (1, 7, 40):
        index = model.smallest(distances, count)
        assert torch.equal(index.sort(2).values, distances.argsort(2)[..., :count].sort(2).values)


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
    _, centers, centroid, radius, _ = network.encode(clouds_of(2))
    metres = centers * radius[:, None] + centroid[:, None]
    first = clouds_of(2)[:, 0]  # sampling starts at point 0
    torch.testing.assert_close(metres[:, 0], first)
    # a y-up encoder sees z-up data turned: its tokens are those of the same weights on clouds that are y up
    upright = grasp_model(up="z")
    upright.load_state_dict(network.state_dict())
    tokens, expected = network.eval().encode(clouds_of(2))[0], upright.eval().encode(model.from_z_up(clouds_of(2), "y"))[0]
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tokens, upright.encode(clouds_of(2))[0], atol=1e-2)


def test_rotation_matrix_against_scipy():
    poses = poses_of(10)
    expected = torch.from_numpy(Rotation.from_quat(poses[:, 3:].numpy()).as_matrix()).float()
    torch.testing.assert_close(model.rotation_matrix(poses[:, 3:]), expected, atol=1e-6, rtol=0)


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


def test_max_over_points_gives_the_gradient_to_the_winners():
    features = torch.randn(5, 7, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 4, dtype=torch.float64)
    results = [model.max_over_points(features), features.max(1).values]
    gradients = [torch.autograd.grad((result * weights).sum(), features)[0] for result in results]
    assert torch.equal(*results) and torch.equal(*gradients)


@pytest.mark.skipif(not model.ONEDNN, reason="this PyTorch is built without oneDNN")
@pytest.mark.parametrize("shape", [(9, 6), (2, 5, 6), (2500, 6)])  # the last one's gradient is made in pieces
def test_linear_by_onednn_equals_the_plain_one_gradients_included(shape):
    """float32 is all that it does: compared with float64, to float32's precision."""
    torch.manual_seed(0)
    wide = torch.randn(4, 12)
    inputs = [torch.randn(shape), wide[:, 6:], torch.randn(4)]  # half of a weight, as the tokenizer uses it
    weights, results = torch.randn(*shape[:-1], 4), []
    for dtype, bias in [(dtype, bias) for bias in (True, False) for dtype in (torch.float32, torch.float64)]:
        own = [tensor.to(dtype).requires_grad_() for tensor in inputs[: 2 + bias]]
        out = model.linear(*own)
        assert type(out.grad_fn).__name__.startswith("OneDnn") == (dtype is torch.float32)
        results.append([out, *torch.autograd.grad((out * weights.to(dtype)).sum(), own)])
    for ours, theirs in (results[:2], results[2:]):
        for left, right in zip(ours, theirs):
            torch.testing.assert_close(left.double(), right, atol=1e-4, rtol=1e-5)


def naive_block(block, x, heads):
    size = x.shape[2] // heads
    hidden = F.layer_norm(x, x.shape[2:], block.norm1.weight, block.norm1.bias, 1e-5)
    query, key, value = F.linear(hidden, block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, dim=2)
    parts = []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        scores = torch.einsum("bgd,bhd->bgh", query[..., cut], key[..., cut]) / math.sqrt(size)
        parts.append(scores.softmax(2) @ value[..., cut])
    x = x + F.linear(torch.cat(parts, 2), block.attn.proj.weight, block.attn.proj.bias)
    hidden = F.layer_norm(x, x.shape[2:], block.norm2.weight, block.norm2.bias, 1e-5)
    hidden = F.linear(hidden, block.mlp[0].weight, block.mlp[0].bias)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + F.linear(hidden, block.mlp[3].weight, block.mlp[3].bias)


def test_transformer_adds_positions_before_every_block_and_norms_once():
    torch.manual_seed(0)
    network = TransformerEncoder(24, 3, 4).double()
    x, position = torch.randn(2, 2, 7, 24, dtype=torch.float64)
    expected = x
    for block in network.blocks:
        expected = naive_block(block, expected + position, 4)
    torch.testing.assert_close(network.residual(x, position), expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(network(x, position), network.norm(expected), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(network(x), network(x, torch.zeros_like(x)), atol=0, rtol=0)
    assert network.norm.eps == 1e-5


def test_both_forms_of_attention_agree_gradients_included():
    torch.manual_seed(0)
    attention = model.Attention(24, 4, dropout=1e-9).double()  # so small that every weight is kept
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 7, 24, dtype=torch.float64)
    results = []
    for training in (True, False):
        out = attention.train(training)(x)
        results.append([out, *torch.autograd.grad((out * weights).sum(), [x, *attention.parameters()])])
    for left, right in zip(*results):
        torch.testing.assert_close(left, right, atol=1e-7, rtol=1e-7)


def test_dropout_rate_scale_and_gradient():
    torch.manual_seed(0)
    dropout = model.Dropout(0.1)
    x = torch.ones(400, 1001, requires_grad=True)
    out = dropout(x)
    assert abs((out == 0).float().mean().item() - 0.1) < 0.002
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / 0.9]))
    columns = (out == 0).float().view(-1)[: 400 * 1000].view(-1, 4).mean(0)  # four values share one draw of bits
    assert (columns - 0.1).abs().max() < 0.004
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert dropout.eval()(x) is x


def test_stochastic_depth_is_per_sample_and_rises_linearly():
    network = TransformerEncoder(8, 5, 2, drop_path=(0.0, 0.4))
    assert [round(block.drop_path, 6) for block in network.blocks] == [0, 0.1, 0.2, 0.3, 0.4]
    torch.manual_seed(0)
    kept = network.blocks[4].keep(torch.ones(4000, 3, 8))
    per_sample = kept.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert abs((per_sample[:, 0] == 0).float().mean().item() - 0.4) < 0.03
    torch.testing.assert_close(per_sample[:, 0].unique(), torch.tensor([0, 1 / 0.6]))
    assert torch.equal(network.eval().blocks[4].keep(kept), kept)


def test_encoder_shapes_and_determinism():
    torch.manual_seed(0)
    encoder = PointEncoder(TINY).eval()
    clouds, _, _ = model.normalize_clouds(clouds_of(3), TINY)
    tokens, centers = encoder(clouds)
    assert tokens.shape == (3, TINY.patches, TINY.width) and centers.shape == (3, TINY.patches, 3)
    again, _ = encoder(clouds)
    assert torch.equal(tokens, again)  # to the bit
    alone, _ = encoder(clouds[1:2])
    torch.testing.assert_close(alone, tokens[1:2], atol=1e-5, rtol=0)  # clouds do not see each other


def test_ball_radius_is_metres_on_metric_clouds():
    config = dataclasses.replace(TINY, normalize="metric", scale=0.5, group="ball", radius=0.05)
    clouds = clouds_of(2)
    patches, centers = PointEncoder(config).group(model.normalize_clouds(clouds, config)[0])
    expected = model.group_points(clouds, centers * 0.5, config.patch_size, "ball", 0.05)
    torch.testing.assert_close(patches, expected)


# ---------------------------------------------------------------- pooling
def test_pools_without_weights():
    tokens = torch.randn(2, 5, 3)
    assert torch.equal(model.pool_tokens(tokens, "mean"), tokens.sum(1) / 5)
    assert torch.equal(model.pool_tokens(tokens, "max"), tokens.max(1).values)
    assert torch.equal(model.pool_tokens(tokens, "mean_max"), torch.cat([tokens.mean(1), tokens.amax(1)], 1))
    assert model.pool_tokens(tokens, "none").shape == (2, 0)


def test_attention_pool_by_hand():
    torch.manual_seed(0)
    pool, tokens = model.AttentionPool(8), torch.randn(3, 5, 8)
    weight, bias = pool.attention.in_proj_weight, pool.attention.in_proj_bias
    query = F.linear(pool.query[0, 0], weight[:8], bias[:8])
    keys, values = F.linear(tokens, weight[8:], bias[8:]).chunk(2, dim=2)
    parts = []
    for head in range(4):
        cut = slice(2 * head, 2 * head + 2)
        share = (keys[..., cut] @ query[cut] / math.sqrt(2)).softmax(1)  # (3, 5)
        parts.append((share[..., None] * values[..., cut]).sum(1))
    torch.testing.assert_close(pool(tokens), pool.attention.out_proj(torch.cat(parts, 1)), atol=1e-6, rtol=1e-5)


def test_hand_pool_by_hand():
    torch.manual_seed(0)
    pool = model.HandPool(16)
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
    pool, shift = model.HandPool(16), torch.tensor([0.3, -0.2, 0.1])
    tokens, centers = torch.randn(2, 5, 16), torch.rand(2, 5, 3)
    poses, objects = poses_of(4), torch.tensor([0, 1, 0, 1])
    moved = poses.clone()
    moved[:, :3] += shift
    left, right = pool(tokens, centers, objects, poses), pool(tokens, centers + shift, objects, moved)
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_surface_distances_by_a_tree():
    clouds, poses, objects = clouds_of(3), poses_of(40), torch.arange(40) % 3
    distances = model.surface_distances(clouds, objects, poses)
    assert distances.shape == (40, len(model.PROBES)) and distances.dtype == torch.float32
    for b in range(40):
        probes = Rotation.from_quat(poses[b, 3:].numpy()).apply(model.PROBES.numpy()) + poses[b, :3].numpy()  # mesh frame
        expected, _ = cKDTree(clouds[objects[b]].numpy()).query(probes)
        torch.testing.assert_close(distances[b], torch.from_numpy(expected).float(), atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.surface_distances(clouds, objects, poses), distances)


def test_probes_fill_the_room_in_which_a_hand_closes():
    """The grid lies within 1 cm of the fingers' reach: every tip sphere of random postures is near some probe."""
    low, high = torch.tensor(hand.LIMITS).T
    joints = low + torch.rand(200, 12, generator=seeded()) * (high - low)
    centers = torch.from_numpy(hand.finger_spheres(joints.numpy())[0]).float().flatten(0, 2)
    nearest = (centers[:, None] - model.PROBES).norm(dim=2).amin(1)
    assert (nearest < model.REACH).float().mean() > 0.9


# ---------------------------------------------------------------- grasp model
@pytest.mark.parametrize("pool", model.CHOICES["pool"])
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


def test_each_cloud_is_encoded_once_however_many_grasps():
    network, rows = grasp_model(), []
    network.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    network(clouds_of(3), torch.arange(3).repeat_interleave(50), poses_of(150))
    assert rows == [3]


def test_pose_only_has_no_encoder():
    network = grasp_model(pool="none")
    assert not [name for name in network.state_dict() if name.startswith("encoder")]
    index, poses = torch.tensor([0, 1]), poses_of(2)
    left, right = network(clouds_of(2, seed=1), index, poses), network(clouds_of(2, seed=2), index, poses)
    assert torch.equal(left[0], right[0])


def test_unit_sphere_models_see_size_and_place():
    clouds, index, poses = clouds_of(1), torch.tensor([0]), poses_of(1)
    for normalize, sees in (("unit_sphere", True), ("metric", False)):
        network = grasp_model(normalize=normalize, scale=0.1)
        assert network.sees_size == sees
        assert network.head[0].in_features == TINY.width + 7 + 4 * sees
        bigger, _ = network(2 * clouds + 0.1, index, poses)
        assert not torch.allclose(bigger, network(clouds, index, poses)[0], atol=1e-6)


def test_head_sees_lengths_in_its_own_unit_and_the_quaternion():
    network, seen = grasp_model(pool="mean"), []
    network.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    clouds, poses = clouds_of(1), poses_of(2)
    network(clouds, torch.tensor([0, 0]), poses)
    _, _, centroid, radius, _ = network.encode(clouds)
    assert torch.equal(seen[0][:, -4:], poses[:, 3:])
    torch.testing.assert_close(seen[0][:, -7:-4] * 0.05, poses[:, :3])
    torch.testing.assert_close(seen[0][:, -11:-7] * 0.05, torch.cat([centroid, radius], 1).expand(2, -1))


def test_joint_mean_is_added_and_saved():
    mean = torch.linspace(-1, 1, 12)
    torch.manual_seed(0)
    network = GraspModel(TINY, joint_mean=mean).eval()
    joints, _ = network(clouds_of(1), torch.tensor([0]), poses_of(1))
    plain, _ = grasp_model()(clouds_of(1), torch.tensor([0]), poses_of(1))
    torch.testing.assert_close(joints, plain + mean)
    assert torch.equal(network.state_dict()["joint_mean"], mean)


def test_frozen_encoder_keeps_its_statistics_and_gets_no_gradient():
    network = grasp_model().train()
    network.encoder.requires_grad_(False).eval()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    joints, logits = network(clouds_of(3), torch.tensor([0, 1, 2]), poses_of(3), seeded())
    network.loss(joints, logits, torch.zeros(3, 12), 0.1).backward()
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert network.head[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("pool", model.CHOICES["pool"])
@pytest.mark.parametrize("loss", ("wta", "mdn", "hedged"))
def test_every_parameter_learns(pool, loss):
    network = grasp_model(pool=pool, loss=loss, dropout=0.0, attention_dropout=0.0, drop_path=0.0).train()
    joints, logits = network(clouds_of(4), torch.arange(4).repeat(8), poses_of(32))
    network.loss(joints, logits, torch.randn(32, 12, generator=seeded()), 0.1).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# ---------------------------------------------------------------- losses
def test_wta_loss_by_hand():
    torch.manual_seed(0)
    joints_hat, logits, joints = torch.randn(6, 5, 12, requires_grad=True), torch.randn(6, 5), torch.randn(6, 12)
    total, winners = 0.0, []
    for b in range(6):
        errors = [sum((joints_hat[b, k, j] - joints[b, j]).item() ** 2 for j in range(12)) / 12 for k in range(5)]
        winners.append(errors.index(min(errors)))
        entropy = math.log(sum(math.exp(value) for value in logits[b].tolist())) - logits[b, winners[-1]].item()
        total += (min(errors) + 0.1 * entropy) / 6
    loss = model.wta_loss(joints_hat, logits, joints, 0.1)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    moved = joints_hat.grad.abs().sum(2) > 0  # only the winner of each grasp gets a gradient
    assert moved.nonzero().tolist() == [[b, winner] for b, winner in enumerate(winners)]


def test_wta_loss_of_one_hypothesis_is_the_mean_squared_error():
    joints_hat, joints = torch.randn(6, 1, 12), torch.randn(6, 12)
    loss = model.wta_loss(joints_hat, torch.randn(6, 1), joints, 0.1)
    torch.testing.assert_close(loss, F.mse_loss(joints_hat[:, 0], joints))


def test_hedged_loss_by_hand():
    torch.manual_seed(0)
    joints_hat, logits, joints = torch.randn(6, 5, 12, requires_grad=True), torch.randn(6, 5, requires_grad=True), torch.randn(6, 12)
    total, winners = 0.0, []
    for b in range(6):
        errors = [sum((joints_hat[b, k, j] - joints[b, j]).item() ** 2 for j in range(12)) / 12 for k in range(5)]
        winners.append(1 + errors[1:].index(min(errors[1:])))
        chances = [math.exp(value) for value in logits[b].tolist()]
        total += (errors[0] + errors[winners[-1]] + 0.3 * sum(c * e for c, e in zip(chances, errors)) / sum(chances)) / 6
    loss = model.hedged_loss(joints_hat, logits, joints, 0.3)
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
        loss = model.hedged_loss(joints_hat.expand(64, -1, -1), logits.expand(64, -1), joints, 0.1)
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
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), torch.distributions.Independent(normal, 1)
    )
    expected = -mixture.log_prob(joints).mean() / 12
    torch.testing.assert_close(model.mdn_loss(joints_hat, logits, joints, log_sigma), expected)


# ---------------------------------------------------------------- checkpoints
def saved_encoder(path, **changes):
    torch.manual_seed(3)
    encoder = PointEncoder(TINY)
    content = {"config": dataclasses.asdict(TINY), "encoder": encoder.state_dict(), "step": 7}
    model.save_checkpoint(path, {**content, **changes})
    return encoder.eval()


def test_encoder_round_trip(tmp_path):
    encoder = saved_encoder(tmp_path / "encoder.pt")
    loaded = model.load_encoder(tmp_path / "encoder.pt")
    clouds = clouds_of(2)
    assert loaded.config == TINY and not loaded.training
    assert torch.equal(loaded(clouds)[0], encoder(clouds)[0])
    assert os.listdir(tmp_path) == ["encoder.pt"]  # nothing temporary stays
    torch.load(tmp_path / "encoder.pt", weights_only=True)


@pytest.mark.parametrize("which", ("best", "last"))
def test_run_round_trip(tmp_path, which):
    network = grasp_model(pool="hand", loss="mdn")
    names = [f"joint {j}" for j in range(12)]
    content = {"config": dataclasses.asdict(network.config), "model": network.state_dict(), "joint_names": names}
    model.save_checkpoint(tmp_path / f"{which}.pt", content)
    loaded = model.load_run(tmp_path, which)
    inputs = clouds_of(2), torch.tensor([0, 1, 1]), poses_of(3)
    assert torch.equal(loaded(*inputs)[0], network(*inputs)[0])
    assert loaded.joint_names == names and not loaded.training


def one_line(error):
    return "\n" not in str(error.value)


def test_load_errors_name_the_file_and_the_key(tmp_path):
    path = tmp_path / "encoder.pt"
    weights = saved_encoder(path).state_dict()
    wider = dataclasses.asdict(dataclasses.replace(TINY, width=64))
    missing = {name: value for name, value in weights.items() if name != "position.0.bias"}
    cases = {
        "missing keys: position.0.bias": {"encoder": missing},
        "leftover keys: extra": {"encoder": {**weights, "extra": torch.zeros(1)}},
        "shapes contradict": {"config": wider},
        "unknown fields: colour": {"config": {**wider, "colour": 1}},
        "unknown fields: width": {"config": {k: v for k, v in wider.items() if k != "width"}},
        "group must be one of": {"config": {**wider, "group": "box"}},
        "not a dict of tensors": {"encoder": {**weights, "position.0.bias": 3}},
    }
    for message, changes in cases.items():
        saved_encoder(path, **changes)
        with pytest.raises(UserError, match=message) as error:
            model.load_encoder(path)
        assert str(path) in str(error.value) and one_line(error)


def test_files_that_are_no_checkpoints(tmp_path):
    saved_encoder(tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for name, content in {"empty.pt": b"", "cut.pt": data[: len(data) // 2], "text.pt": b"hello, world\n" * 9}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as error:
            model.load_encoder(tmp_path / name)
        assert one_line(error)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    for name in ("list.pt", "other.pt", "absent.pt", "."):
        with pytest.raises(UserError) as error:
            model.load_encoder(tmp_path / name)
        assert one_line(error)
    with pytest.raises(UserError, match="not the checkpoint of a training run"):
        torch.save({"weights": 1}, tmp_path / "best.pt")
        model.load_run(tmp_path)


class Attack:
    """Unpickled by an ordinary unpickler, it creates a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def test_a_pickle_with_code_is_not_run(tmp_path, capsys):
    marker, path = tmp_path / "marker", tmp_path / "attack.pt"
    encoder = saved_encoder(path, hidden={"deep": [1, Attack(marker)]})
    loaded = model.load_encoder(path)
    assert torch.equal(loaded.state_dict()["position.0.bias"], encoder.state_dict()["position.0.bias"])
    assert model.read_checkpoint(path)["hidden"] == {"deep": [1]}
    warning = capsys.readouterr().err.splitlines()[0]
    assert warning.startswith("warning:") and "open" in warning and str(path) in warning
    saved_encoder(path, encoder={**encoder.state_dict(), "position.0.bias": Attack(marker)})
    with pytest.raises(UserError):
        model.load_encoder(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert marker.exists()


@pytest.mark.parametrize("pool", ["attention", "mean_max", "hand"])
def test_gradients_are_the_same_to_the_bit_with_two_threads(pool):
    """Grasps of all objects mixed: two threads add to the gradient of the same embedding."""
    threads, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    grasp_model = model.GraspModel(dataclasses.replace(model.PRESETS["tiny"], pool=pool)).eval()
    tokens = torch.randn(8, 8, 32, generator=generator).requires_grad_()
    centers, centroid, radius = torch.rand(8, 8, 3, generator=generator), torch.zeros(8, 3), torch.ones(8, 1)
    index, poses = torch.randint(0, 8, (2048,), generator=generator), torch.randn(2048, 7, generator=generator)
    try:
        torch.set_num_threads(2)
        seen = set()
        for _ in range(20):
            joints, logits = grasp_model.decode((tokens, centers, centroid, radius, centers), index, poses)
            seen.add(torch.autograd.grad(joints.square().sum() + logits.square().sum(), tokens)[0].numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1
