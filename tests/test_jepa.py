"""model.py, the pretraining: sequencer, blocks, targets, gradients, and the official checkpoint read exactly."""

import collections
import dataclasses
import math
import os
import sys
import types

import pytest
import torch
import torch.nn.functional as F

import model
from common import UserError
from model import PRESETS, PointJEPA

QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}
TINY = dataclasses.replace(PRESETS["tiny"], patches=16, **QUIET)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds_of(count, points=64, seed=0):
    clouds = torch.randn(count, points, 3, generator=seeded(seed))
    return model.normalize_clouds(clouds, TINY)[0]


def jepa_of(**changes):
    torch.manual_seed(0)
    return PointJEPA(dataclasses.replace(TINY, **changes))


# ---------------------------------------------------------------- sequencer and blocks
def brute_sequence(centers):
    rest = list(range(len(centers)))
    order = [min(rest, key=lambda i: sum(centers[i]))]
    rest.remove(order[0])
    while rest:
        order.append(min(rest, key=lambda i: math.dist(centers[order[-1]], centers[i])))
        rest.remove(order[-1])
    return order


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
    assert all(targets.shape == (4, 1) and len(context) >= 1 for targets, context in small)  # int(5 · 0.2) is 1, or 0 below
    with pytest.raises(UserError):
        [model.sample_blocks(4, seeded(seed)) for seed in range(100)]


# ---------------------------------------------------------------- training step
def test_gradient_reaches_the_tokenizer_through_context_only():
    jepa, outputs = jepa_of(context_low=0.4, context_high=0.75), []

    def remember(module, inputs, output):
        output.retain_grad()
        outputs.append(output)

    jepa.encoder.embed.register_forward_hook(remember)
    jepa.encoder.position.register_forward_hook(remember)
    generator = seeded(4)
    model.farthest_point_sample(clouds_of(3), 2, generator)  # the same draws as in the step below
    _, context = model.sample_blocks(16, generator)
    loss, _, _ = jepa(clouds_of(3), seeded(4))
    loss.backward()
    assert len(outputs) == 2
    for output in outputs:
        moved = output.grad.abs().sum((0, 2)) > 0  # (G,)
        assert moved.nonzero()[:, 0].tolist() == context.tolist()
    assert all(p.grad.abs().sum() > 0 for p in jepa.encoder.embed.parameters() if p.ndim > 1)


def test_target_is_an_ema_copy_without_gradient_or_dropout():
    jepa = jepa_of(dropout=0.5, drop_path=0.5)
    assert not jepa.target.training and not jepa.train().target.training and jepa.encoder.transformer.training
    pairs = list(zip(jepa.target.parameters(), jepa.encoder.transformer.parameters()))
    assert all(torch.equal(ours, theirs) and ours is not theirs for ours, theirs in pairs)
    loss, targets, predictions = jepa(clouds_of(3), seeded())
    loss.backward()
    assert not targets.requires_grad and predictions.requires_grad
    assert all(ours.grad is None and not ours.requires_grad for ours, _ in pairs)

    before = [ours.clone() for ours, _ in pairs]
    with torch.no_grad():
        for _, theirs in pairs:
            theirs.add_(torch.randn_like(theirs))
    jepa.update_target(0.9)
    for old, (ours, theirs) in zip(before, pairs):
        torch.testing.assert_close(ours, 0.9 * old + 0.1 * theirs)
    before = [ours.clone() for ours, _ in pairs]
    jepa.update_target(1.0)
    assert all(torch.equal(ours, old) for old, (ours, _) in zip(before, pairs))


def test_targets_are_normalised_over_features_and_then_over_the_tokens_of_a_cloud():
    tokens, position = torch.randn(3, 16, 32, generator=seeded()), torch.randn(3, 16, 32, generator=seeded(1))
    original, ours = jepa_of(target_norm="layer"), jepa_of()
    latents = original.target.residual(tokens, position)
    by_hand = (latents - latents.mean(2, keepdim=True)) / (latents.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(original.make_targets(tokens, position), by_hand)
    by_hand = by_hand - by_hand.mean(1, keepdim=True)  # what all tokens of a cloud share is gone
    by_hand = by_hand / (by_hand.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(ours.make_targets(tokens, position), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("low, high", [(0.4, 0.75), (0.85, 1.0)])
def test_context_takes_its_share_of_what_no_target_covers(low, high):
    jepa = jepa_of(context_low=low, context_high=high)
    for seed in range(200):
        targets, context = jepa.sample_blocks(seeded(seed))
        free = 16 - len(set(targets.flatten().tolist()))
        assert max(1, int(low * free)) <= len(context) <= max(1, int(high * free))
    with pytest.raises(UserError, match="context_low"):
        jepa_of(context_low=0.8, context_high=0.5)


def test_every_trained_parameter_gets_a_gradient():
    jepa = jepa_of()
    jepa(clouds_of(3), seeded())[0].backward()
    trained = [name for name, p in jepa.named_parameters() if p.requires_grad]
    assert not any(name.startswith("target") for name in trained)
    assert all(jepa.get_parameter(name).grad is not None for name in trained)


def test_stochastic_depth_rises_in_the_encoder_and_is_constant_in_the_predictor():
    jepa = PointJEPA(dataclasses.replace(PRESETS["paper"], depth=3, **model.PRETRAINING))
    assert [block.drop_path for block in jepa.encoder.transformer.blocks] == [0, 0.125, 0.25]
    assert [block.drop_path for block in jepa.predictor.transformer.blocks] == [0.25] * 6
    assert jepa.predictor.transformer.blocks[0].attn.dropout.rate == 0.05
    assert jepa.predictor.transformer.blocks[0].dropout.rate == 0.1
    assert torch.equal(jepa.predictor.mask_token, torch.zeros(1, 1, 192))


def test_all_blocks_are_one_pass_and_do_not_see_each_other():
    jepa, rows = jepa_of().eval(), []
    jepa.predictor.transformer.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    context, centers, hidden = torch.randn(3, 6, 32), torch.randn(3, 6, 3), torch.randn(3, 4, 2, 3)
    together = jepa.predictor(context, centers, hidden)
    assert rows == [12] and together.shape == (3, 4, 2, 32)
    for block in range(4):
        alone = jepa.predictor(context, centers, hidden[:, block : block + 1])
        torch.testing.assert_close(together[:, block : block + 1], alone, atol=1e-5, rtol=1e-4)


def test_same_seed_same_step():
    results = []
    for _ in range(2):
        jepa = jepa_of(dropout=0.1)
        torch.manual_seed(7)
        results.append(jepa(clouds_of(3), seeded(2)))
    assert all(torch.equal(left, right) for left, right in zip(*results))


# ---------------------------------------------------------------- the official file, and a naive network on it
def official_state(width=24, depth=2, w1=8, w2=12, w3=20, predictor_width=12, predictor_depth=2, seed=0, gain=0.3):
    """A state_dict in the official format with random weights of standard deviation `gain`; 0: without memory."""
    generator, state = seeded(seed), {}

    def put(name, *shape):
        state[name] = gain * torch.randn(*shape, generator=generator) if gain else torch.zeros(()).expand(shape)

    def affine(name, size_out, size_in, *rest):
        put(f"{name}.weight", size_out, size_in, *rest)
        put(f"{name}.bias", size_out)

    def blocks(prefix, size, count):
        for i in range(count):
            for norm in ("norm1", "norm2"):
                put(f"{prefix}.blocks.{i}.{norm}.weight", size), put(f"{prefix}.blocks.{i}.{norm}.bias", size)
            affine(f"{prefix}.blocks.{i}.attn.qkv", 3 * size, size)
            affine(f"{prefix}.blocks.{i}.attn.proj", size, size)
            affine(f"{prefix}.blocks.{i}.mlp.fc1", 4 * size, size)
            affine(f"{prefix}.blocks.{i}.mlp.fc2", size, 4 * size)
        put(f"{prefix}.norm.weight", size), put(f"{prefix}.norm.bias", size)

    affine("positional_encoding.0", 128, 3)
    affine("positional_encoding.2", width, 128)
    pointnet = "tokenizer.embedding.encoder"
    for stage, size_in, middle, size_out in (("first_conv", 3, w1, w2), ("second_conv", 2 * w2, w3, width)):
        put(f"{pointnet}.{stage}.0.weight", middle, size_in, 1)
        for name in ("weight", "bias", "running_mean"):
            put(f"{pointnet}.{stage}.1.{name}", middle)
        state[f"{pointnet}.{stage}.1.running_var"] = torch.rand(middle, generator=generator) + 0.5
        state[f"{pointnet}.{stage}.1.num_batches_tracked"] = torch.tensor(40500)
        affine(f"{pointnet}.{stage}.3", size_out, middle, 1)
    blocks("student", width, depth)
    put("mask_token", width)
    put("predictor.mask_token", 1, 1, predictor_width)
    affine("predictor.predictor_embed", predictor_width, width)
    affine("predictor.positional_encoding.0", 128, 3)
    affine("predictor.positional_encoding.2", predictor_width, 128)
    affine("predictor.predictor_proj", width, predictor_width)
    put("predictor.predictor_norm.weight", predictor_width), put("predictor.predictor_norm.bias", predictor_width)
    blocks("predictor.predictor", predictor_width, predictor_depth)
    state["teacher.initted"], state["teacher.step"] = torch.tensor([True]), torch.tensor([40500])
    blocks("teacher.online_model", width, depth)
    blocks("teacher.ema_model", width, depth)
    return state


def official_file(path, hyper=None, state=None, **sizes):
    state = official_state(**sizes) if state is None else state
    content = {"epoch": 499, "global_step": 40500, "pytorch-lightning_version": "1.9.0", "state_dict": state}
    torch.save(content if hyper is None else {**content, "hyper_parameters": hyper}, path)
    return state


def naive_linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def naive_norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def naive_transformer(state, prefix, depth, heads, x, positions):
    """Residual stream after the last block of a transformer; positions (one per block) are added before blocks."""
    for i in range(depth):
        x, block = x + positions[i], f"{prefix}.blocks.{i}"
        batch, length, width = x.shape
        qkv = naive_linear(state, f"{block}.attn.qkv", naive_norm(state, f"{block}.norm1", x))
        query, key, value = qkv.reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) / math.sqrt(width // heads)).softmax(3)
        x = x + naive_linear(state, f"{block}.attn.proj", (weights @ value).transpose(1, 2).reshape(x.shape))
        hidden = F.gelu(naive_linear(state, f"{block}.mlp.fc1", naive_norm(state, f"{block}.norm2", x)))
        x = x + naive_linear(state, f"{block}.mlp.fc2", hidden)
    return x


def naive_position(state, prefix, centers):
    return naive_linear(state, f"{prefix}.2", F.gelu(naive_linear(state, f"{prefix}.0", centers)))


def naive_tokens(state, clouds, patches, size, radius=None):
    """One cloud and one patch at a time -> tokens, centers in sampling order."""
    pointnet = "tokenizer.embedding.encoder"
    all_tokens, all_centers = [], []
    for cloud in clouds:
        chosen = [0]
        while len(chosen) < patches:
            chosen.append(torch.stack([((cloud - cloud[c]) ** 2).sum(1) for c in chosen]).amin(0).argmax().item())
        for center in cloud[chosen]:
            distance = ((cloud - center) ** 2).sum(1)
            if radius is None:
                patch = cloud[distance.argsort()[:size]] - center
            else:
                inside = (distance < radius**2).nonzero()[:size, 0].tolist()
                patch = (cloud[inside + inside[:1] * (size - len(inside))] - center) / radius
            x = patch.T[None]  # (1, 3, S)
            for stage in ("first_conv", "second_conv"):
                x = F.conv1d(x, state[f"{pointnet}.{stage}.0.weight"])
                names = ("running_mean", "running_var", "weight", "bias")
                x = F.relu(F.batch_norm(x, *(state[f"{pointnet}.{stage}.1.{name}"] for name in names)))
                x = F.conv1d(x, state[f"{pointnet}.{stage}.3.weight"], state[f"{pointnet}.{stage}.3.bias"])
                pooled = x.max(2, keepdim=True).values
                x = torch.cat([pooled.expand_as(x), x], 1)
            all_tokens.append(pooled[0, :, 0])
            all_centers.append(center)
    shape = (len(clouds), patches, -1)
    return torch.stack(all_tokens).view(shape), torch.stack(all_centers).view(shape)


FULL_SIZE = {"width": 384, "depth": 12, "w1": 128, "w2": 256, "w3": 512, "predictor_width": 192, "predictor_depth": 6}
CASES = [  # hyper-parameters, sizes of the tensors, what must come out
    (None, {}, {"heads": 6, "patches": 64, "patch_size": 32, "group": "knn"}),
    ({"encoder_heads": 4, "tokenizer_num_groups": 8, "tokenizer_group_size": 5, "tokenizer_group_radius": None,
      "encoder_depth": 3, "predictor_heads": 3}, {"width": 32, "depth": 3, "w1": 4}, {"heads": 4, "depth": 3}),
    ({"encoder_heads": 2, "tokenizer_num_groups": 12, "tokenizer_group_size": 6, "tokenizer_group_radius": 0.6,
      "transformation_subsample_points": 100}, {"w2": 7, "predictor_width": 18}, {"group": "ball", "points": 100}),
    pytest.param({}, {**FULL_SIZE, "gain": 0.05}, {"points": 1024, "width": 384, "w3": 512}, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("hyper, sizes, expected", CASES)
def test_official_encoder_features(tmp_path, hyper, sizes, expected):
    state = official_file(tmp_path / "official.ckpt", hyper, **sizes)
    encoder = model.load_encoder(tmp_path / "official.ckpt")
    config = encoder.config
    for name, value in expected.items():
        assert getattr(config, name) == value
    assert (config.normalize, config.up) == ("unit_sphere", "y") and not encoder.training
    clouds = clouds_of(2, 100)
    radius = (hyper or {}).get("tokenizer_group_radius")
    tokens, centers = naive_tokens(state, clouds, config.patches, config.patch_size, radius)
    positions = [naive_position(state, "positional_encoding", centers)] * config.depth
    features = naive_transformer(state, "student", config.depth, config.heads, tokens, positions)
    ours, our_centers = encoder(clouds)
    assert torch.equal(our_centers, centers)
    torch.testing.assert_close(ours, naive_norm(state, "student.norm", features), atol=1e-5, rtol=1e-5)
    (tmp_path / "official.ckpt").unlink()  # pytest keeps its folders, and one of these is large


@pytest.mark.parametrize("heads, predictor_heads, sizes", [(6, 6, {}), (4, 3, {"width": 32, "depth": 3, "predictor_depth": 1, "predictor_width": 18})])
def test_official_predictor_and_targets(tmp_path, monkeypatch, heads, predictor_heads, sizes):
    """The whole step against the naive network: order, EMA targets before the norm, predictions, loss."""
    hyper = {"tokenizer_num_groups": 16, "tokenizer_group_size": 6, "encoder_heads": heads, "predictor_heads": predictor_heads}
    state = official_file(tmp_path / "official.ckpt", hyper, **sizes)
    jepa = model.load_jepa(tmp_path / "official.ckpt")
    depth, predictor_depth = jepa.config.depth, jepa.config.predictor_depth
    assert jepa.step == 40500 and not jepa.training
    clouds, blocks = clouds_of(2, 100), model.sample_blocks(16, seeded(1))
    monkeypatch.setattr(model, "sample_blocks", lambda *args, **shares: blocks)
    loss, targets, predictions = jepa(clouds)  # no generator: sampling starts at point 0

    hidden, visible = blocks
    tokens, centers = naive_tokens(state, clouds, 16, 6)
    order = torch.tensor([brute_sequence(sample.tolist()) for sample in centers])
    tokens, centers = (torch.stack([x[i] for x, i in zip(part, order)]) for part in (tokens, centers))
    position = naive_position(state, "positional_encoding", centers)
    everything = naive_transformer(state, "teacher.ema_model", depth, heads, tokens, [position] * depth)
    everything = F.layer_norm(everything, everything.shape[2:])
    context = naive_transformer(state, "student", depth, heads, tokens[:, visible], [position[:, visible]] * depth)
    context = naive_linear(state, "predictor.predictor_embed", naive_norm(state, "student.norm", context))
    where = "predictor.positional_encoding"
    for block in range(4):
        expected = everything[:, hidden[block]]
        torch.testing.assert_close(targets[:, block], expected, atol=1e-5, rtol=1e-5)
        mask = state["predictor.mask_token"] + naive_position(state, where, centers[:, hidden[block]])
        x = torch.cat([context + naive_position(state, where, centers[:, visible]), mask], 1)
        x = naive_transformer(state, "predictor.predictor", predictor_depth, predictor_heads, x, [0] * predictor_depth)
        x = naive_norm(state, "predictor.predictor.norm", x)[:, len(visible) :]
        x = naive_linear(state, "predictor.predictor_proj", x)
        torch.testing.assert_close(predictions[:, block], x, atol=1e-5, rtol=1e-5)
    difference = (predictions - targets).abs()  # smooth L1 with beta 2
    assert 0.01 < (difference > 2).float().mean() < 0.99  # both branches count
    by_hand = torch.where(difference < 2, difference**2 / 4, difference - 1).mean()
    torch.testing.assert_close(loss, by_hand)


def test_paper_preset_has_the_keys_and_shapes_of_the_official_file():
    state = official_state(**FULL_SIZE, gain=0)
    assert len(state) == 546
    shapes = {"first_conv.0.weight": (128, 3, 1), "second_conv.0.weight": (512, 512, 1), "second_conv.3.weight": (384, 512, 1)}
    assert all(state[f"tokenizer.embedding.encoder.{name}"].shape == shape for name, shape in shapes.items())
    config = model.official_config({"state_dict": state}, "file")
    assert config == dataclasses.replace(PRESETS["paper"], up="y", **model.PRETRAINING)
    with torch.device("meta"):
        expected = PointJEPA(config).state_dict()
        ours = model.official_weights(state, PointJEPA(config), "file")  # complains about any difference in names
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in expected.items()}


def test_official_file_errors_name_what_is_wrong(tmp_path):
    path, whole = tmp_path / "official.ckpt", official_state()

    def without(name):
        return {key: value for key, value in whole.items() if key != name}

    cases = [
        ("missing keys: student.blocks.1.attn.qkv.bias", without("student.blocks.1.attn.qkv.bias"), {}),
        ("missing keys: teacher.online_model.norm.bias", without("teacher.online_model.norm.bias"), {}),
        ("missing keys: mask_token", without("mask_token"), {}),
        ("missing student.norm.weight", without("student.norm.weight"), {}),
        ("leftover keys: cls_head.weight", {**whole, "cls_head.weight": torch.zeros(3)}, {}),
        ("shapes contradict", {**whole, "positional_encoding.0.bias": torch.zeros(64)}, {}),
        ("shapes contradict", {**whole, "student.blocks.0.norm1.bias": torch.zeros(24, 1)}, {}),
        ("shapes contradict", {**whole, "teacher.ema_model.norm.bias": torch.zeros(25)}, {}),
        ("shapes contradict", {**whole, "predictor.mask_token": torch.zeros(1, 1, 13)}, {}),
        ("missing keys: predictor.predictor_proj.bias", without("predictor.predictor_proj.bias"), {}),
        ("leftover keys: student.blocks.0.extra", {**whole, "student.blocks.0.extra": torch.zeros(3)}, {}),
        ("missing student.norm.weight", {**whole, "student.norm.weight": torch.tensor(1.0)}, {}),
        ("not a dict of tensors", {**whole, 3: torch.zeros(3)}, {}),
        ("not a dict of tensors", [1], {}),
        ("step is not a number", {**whole, "teacher.step": torch.zeros(2)}, {}),
        ("step is not a number", {**whole, "teacher.step": torch.tensor([float("nan")])}, {}),
        ("hyper_parameters are a list", whole, [1]),
        ("predictor_depth = 6 contradicts", whole, {"predictor_depth": 6}),
        ("encoder_depth = 12 contradicts", whole, {"encoder_depth": 12}),
        ("encoder_dim = 384 contradicts", whole, {"encoder_dim": 384}),
        ("add_pos_at_every_layer = False contradicts", whole, {"encoder_add_pos_at_every_layer": False}),
        ("heads must divide", whole, {"encoder_heads": 5}),
        ("patches must be int", whole, {"tokenizer_num_groups": "64"}),
    ]
    for message, state, hyper in cases:
        official_file(path, hyper, state)
        with pytest.raises(UserError, match=message) as error:
            model.load_encoder(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="official.ckpt"):
        model.load_encoder(path)


class Planted:
    """Unpickling this runs code: it makes the file that the environment names."""

    def __reduce__(self):
        return os.system, ('touch "$PLANTED"',)


def test_code_in_an_official_file_never_runs(tmp_path, monkeypatch, capsys):
    path = tmp_path / "official.ckpt"
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    official_file(path, {"encoder_heads": 4, "callback": Planted()})
    assert model.load_encoder(path).config.heads == 4 and "system" in capsys.readouterr().err
    official_file(path, {}, {**official_state(), "mask_token": Planted()})
    with pytest.raises(UserError, match="other things than tensors"):
        model.load_encoder(path)
    torch.save(Planted(), path)
    with pytest.raises(UserError):
        model.load_encoder(path)
    assert not (tmp_path / "planted").exists()
    with open(path, "rb") as file:  # the trap works
        torch.load(file, weights_only=False)
    assert (tmp_path / "planted").exists()


@pytest.fixture
def foreign(monkeypatch):
    """A class of a package that is gone when the file is read; it is a dict, as Lightning's settings may be."""
    package = types.ModuleType("gone_package")
    package.Thing = type("Thing", (), {"__module__": "gone_package"})
    package.Settings = type("Settings", (dict,), {"__module__": "gone_package"})
    sys.modules["gone_package"] = package
    yield package
    sys.modules.pop("gone_package", None)


def test_official_file_with_foreign_classes(tmp_path, capsys, foreign):
    path, thing = tmp_path / "official.ckpt", foreign.Thing()
    thing.secret = torch.ones(3)
    hyper = foreign.Settings(encoder_heads=4, svm_validation={"modelnet": thing}, kind=foreign.Thing)
    state = collections.OrderedDict(official_state())
    state._metadata = {"": {"version": 1}}
    state["predictor.mask_token"] = torch.nn.Parameter(state["predictor.mask_token"])
    state["student.norm.weight"] = torch.arange(48.0).view(24, 2)[:, 1]  # a view with strides
    state["student.norm.bias"] = state["student.norm.bias"].half()
    official_file(path, hyper, state)
    del sys.modules["gone_package"]
    encoder = model.load_encoder(path)
    assert encoder.config.heads == 4
    assert torch.equal(encoder.transformer.norm.weight, torch.arange(1.0, 48, 2))
    assert torch.equal(encoder.transformer.norm.bias, state["student.norm.bias"].float())
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and warning.startswith("warning:") and "gone_package.Thing" in warning
    content = model.read_checkpoint(path)
    assert content["hyper_parameters"] == {"encoder_heads": 4, "svm_validation": {}}
    assert type(content["state_dict"]) is dict and "gone_package" not in sys.modules


def test_official_file_with_a_foreign_class_among_the_weights(tmp_path, foreign):
    path = tmp_path / "official.ckpt"
    official_file(path, {}, {**official_state(), "mask_token": foreign.Thing()})
    del sys.modules["gone_package"]
    with pytest.raises(UserError, match="state_dict holds other things than tensors"):
        model.load_encoder(path)


# ---------------------------------------------------------------- our own training checkpoint
def test_jepa_round_trip(tmp_path):
    jepa = jepa_of()
    with torch.no_grad():
        jepa.target.norm.bias.add_(1)
    content = {"config": dataclasses.asdict(jepa.config), "jepa": jepa.state_dict(), "step": 12}
    model.save_checkpoint(tmp_path / "jepa.pt", content)
    loaded, clouds = model.load_jepa(tmp_path / "jepa.pt"), clouds_of(2)
    assert loaded.step == 12 and loaded.config == TINY
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in jepa.state_dict().items())
    encoder = model.load_encoder(tmp_path / "jepa.pt")
    assert torch.equal(encoder(clouds)[0], jepa.eval().encoder(clouds)[0])
    model.save_checkpoint(tmp_path / "encoder.pt", {"config": content["config"], "encoder": encoder.state_dict()})
    with pytest.raises(UserError, match="encoder without predictor"):
        model.load_jepa(tmp_path / "encoder.pt")
    del content["jepa"]["predictor.mask_token"]
    model.save_checkpoint(tmp_path / "jepa.pt", content)
    with pytest.raises(UserError, match="missing keys: predictor.mask_token"):
        model.load_jepa(tmp_path / "jepa.pt")
