"""files/checkpoints.py: our own files and the official one, read exactly or refused in one line, never run."""

import collections
import dataclasses
import hashlib
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Planted
from official import official_file, official_state
from samples import TINY, TINY_JEPA, brute_sequence, jepa_of, save_encoder, seeded, unit_clouds

import model
from cli.errors import UserError
from files import checkpoints
from loop.fast import speed_up
from model import PRESETS, PointJEPA

SHIPPED = Path(model.__file__).parent / "checkpoints/small.pt"
SHIPPED_SHA256 = "886adb7d420b7718358470683406a35410921704cb73fc47732391008335aa38"


# ---------------------------------------------------------------- our own checkpoints


def test_jepa_round_trip(tmp_path):
    jepa = speed_up(jepa_of())
    with torch.no_grad():
        jepa.target.norm.bias.add_(1)
    content = {"config": dataclasses.asdict(jepa.config), "jepa": jepa.state_dict(), "step": 12}
    checkpoints.save_checkpoint(tmp_path / "jepa.pt", content)
    assert os.listdir(tmp_path) == ["jepa.pt"]  # nothing temporary stays
    torch.load(tmp_path / "jepa.pt", weights_only=True)
    (_, loaded), clouds = checkpoints.load_with_predictor(tmp_path / "jepa.pt"), unit_clouds(2)
    assert loaded.config == TINY_JEPA
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in jepa.state_dict().items())
    encoder = checkpoints.load_encoder(tmp_path / "jepa.pt")
    assert torch.equal(encoder(clouds)[0], jepa.eval().encoder(clouds)[0]) and not encoder.training
    encoder = speed_up(save_encoder(tmp_path / "encoder.pt"))
    assert torch.equal(checkpoints.load_encoder(tmp_path / "encoder.pt")(clouds)[0], encoder(clouds)[0])


def test_the_shipped_encoder_is_whole():
    """The bytes that the numbers in results/ were made with; a new encoder means a new line above and new numbers."""
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == SHIPPED_SHA256
    assert checkpoints.load_encoder(SHIPPED).config == dataclasses.replace(PRESETS["small"], **model.PRETRAINING)


def test_every_field_of_the_network_is_needed_and_known(tmp_path):
    """A former field may be there where its value is what is done anyway."""
    path, config = tmp_path / "e.pt", dataclasses.asdict(TINY)
    content = {"encoder": save_encoder(path).state_dict(), "config": config | {"patching": "fps"}}
    checkpoints.save_checkpoint(path, content)
    assert checkpoints.load_encoder(path).config == TINY
    wrong = [(name, {k: v for k, v in config.items() if k != name}) for name in config]
    wrong += [(name, config | {name: "curvature"}) for name in ("embedding", "patching")]
    for name, fields in wrong:
        checkpoints.save_checkpoint(path, content | {"config": fields})
        with pytest.raises(UserError, match=f"e.pt: its config has missing or unknown fields: {name};"):
            checkpoints.load_encoder(path)


# ---------------------------------------------------------------- the official file, and a naive network on it


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


CASES = [  # hyper-parameters, sizes of the tensors, what must come out
    (None, {}, {"heads": 6, "patches": 64, "patch_size": 32, "group": "knn"}),
    ({"encoder_heads": 4, "tokenizer_num_groups": 8, "tokenizer_group_size": 5, "tokenizer_group_radius": None,
      "encoder_depth": 3, "predictor_heads": 3}, {"width": 32, "depth": 3, "w1": 4}, {"heads": 4, "depth": 3}),
    ({"encoder_heads": 2, "tokenizer_num_groups": 12, "tokenizer_group_size": 6, "tokenizer_group_radius": 0.6,
      "transformation_subsample_points": 100}, {"w2": 7, "predictor_width": 18}, {"group": "ball", "points": 100}),
]  # fmt: skip


@pytest.mark.parametrize("hyper, sizes, expected", CASES)
def test_official_encoder_features(tmp_path, hyper, sizes, expected):
    state = official_file(tmp_path / "official.ckpt", hyper, **sizes)
    encoder = checkpoints.load_encoder(tmp_path / "official.ckpt")
    config = encoder.config
    for name, value in expected.items():
        assert getattr(config, name) == value
    assert (config.normalize, config.up) == ("unit_sphere", "y") and not encoder.training
    clouds = unit_clouds(2, 100)
    radius = (hyper or {}).get("tokenizer_group_radius")
    tokens, centers = naive_tokens(state, clouds, config.patches, config.patch_size, radius)
    positions = [naive_position(state, "positional_encoding", centers)] * config.depth
    features = naive_transformer(state, "student", config.depth, config.heads, tokens, positions)
    ours, our_centers = encoder(clouds)
    assert torch.equal(our_centers, centers)
    torch.testing.assert_close(ours, naive_norm(state, "student.norm", features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "heads, predictor_heads, sizes",
    [(6, 6, {}), (4, 3, {"width": 32, "depth": 3, "predictor_depth": 1, "predictor_width": 18})],
)
def test_official_predictor_and_targets(tmp_path, monkeypatch, heads, predictor_heads, sizes):
    """The whole step against the naive network: order, EMA targets before the norm, predictions, loss."""
    hyper = {"tokenizer_num_groups": 16, "tokenizer_group_size": 6}
    hyper |= {"encoder_heads": heads, "predictor_heads": predictor_heads}
    state = official_file(tmp_path / "official.ckpt", hyper, **sizes)
    _, jepa = checkpoints.load_with_predictor(tmp_path / "official.ckpt")
    depth, predictor_depth = jepa.config.depth, jepa.config.predictor_depth
    assert not jepa.training
    clouds, blocks = unit_clouds(2, 100), model.sample_blocks(16, seeded(1))
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
    state = official_state(384, 12, 128, 256, 512, predictor_width=192, predictor_depth=6, gain=0)
    assert len(state) == 546
    config = dataclasses.replace(PRESETS["paper"], up="y", **model.PRETRAINING)
    found = checkpoints.official_config({"state_dict": state}, "file")
    assert {name: getattr(config, name) for name in found} == found
    free = {"scale", "dropout", "attention_dropout", "drop_path", "k", "joints", "pool", "loss"}
    assert set(vars(config)) - set(found) == free
    with torch.device("meta"):
        expected = PointJEPA(config).state_dict()
    ours = checkpoints.official_weights(state, expected, "file")  # complains about any difference in names
    assert [(name, value.shape) for name, value in ours.items()] == [(n, v.shape) for n, v in expected.items()]


def test_official_file_errors_name_what_is_wrong(tmp_path):
    path, whole = tmp_path / "official.ckpt", official_state()

    def without(name):
        return {key: value for key, value in whole.items() if key != name}

    cases = [
        ("missing keys: student.blocks.1.attn.qkv.bias", without("student.blocks.1.attn.qkv.bias"), {}),
        ("missing student.norm.weight", without("student.norm.weight"), {}),
        ("leftover keys: cls_head.weight", {**whole, "cls_head.weight": torch.zeros(3)}, {}),
        ("shapes contradict", {**whole, "positional_encoding.0.bias": torch.zeros(64)}, {}),
        ("shapes contradict", {**whole, "teacher.ema_model.norm.bias": torch.zeros(25)}, {}),
        ("missing keys: predictor.predictor_proj.bias", without("predictor.predictor_proj.bias"), {}),
        ("missing student.norm.weight", {**whole, "student.norm.weight": torch.tensor(1.0)}, {}),
        ("not a dict of tensors", {**whole, 3: torch.zeros(3)}, {}),
        ("hyper_parameters are a list", whole, [1]),
        ("encoder_add_pos_at_every_layer is False", whole, {"encoder_add_pos_at_every_layer": False}),
        ("predictor_add_pos_at_every_layer is True", whole, {"predictor_add_pos_at_every_layer": True}),
        ("heads must divide", whole, {"encoder_heads": 5}),
        ("patches must be a", whole, {"tokenizer_num_groups": "64"}),
    ]
    for message, state, hyper in cases:
        official_file(path, hyper, state)
        with pytest.raises(UserError, match=message) as error:
            checkpoints.load_encoder(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="official.ckpt"):
        checkpoints.load_encoder(path)


@pytest.fixture
def foreign(monkeypatch):
    """A class of a package that is gone when the file is read; it is a dict, as Lightning's settings may be."""
    package = types.ModuleType("gone_package")
    package.Thing = type("Thing", (), {"__module__": "gone_package"})
    package.Settings = type("Settings", (dict,), {"__module__": "gone_package"})
    sys.modules["gone_package"] = package
    yield package
    sys.modules.pop("gone_package", None)


def test_official_file_with_foreign_classes_and_code(tmp_path, capsys, foreign, planted):
    path, thing = tmp_path / "official.ckpt", foreign.Thing()
    thing.secret = torch.ones(3)
    things = {"modelnet": thing, "deep": [1, Planted()]}
    hyper = foreign.Settings(encoder_heads=4, svm_validation=things, kind=foreign.Thing)
    state = collections.OrderedDict(official_state())
    state._metadata = {"": {"version": 1}}
    state["predictor.mask_token"] = torch.nn.Parameter(state["predictor.mask_token"])
    state["student.norm.weight"] = torch.arange(48.0).view(24, 2)[:, 1]  # a view with strides
    state["student.norm.bias"] = state["student.norm.bias"].half()
    official_file(path, hyper, state)
    torch.load(path, weights_only=False)  # the trap is real
    planted.unlink()
    del sys.modules["gone_package"]
    encoder = checkpoints.load_encoder(path)
    assert encoder.config.heads == 4
    assert torch.equal(encoder.transformer.norm.weight, torch.arange(1.0, 48, 2))
    assert torch.equal(encoder.transformer.norm.bias, state["student.norm.bias"].float())
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and warning.startswith("warning:")
    assert "gone_package.Thing" in warning and ".exec" in warning and str(path) in warning
    content = checkpoints.read_checkpoint(path)
    assert content["hyper_parameters"] == {"encoder_heads": 4, "svm_validation": {"deep": [1]}}
    assert type(content["state_dict"]) is dict and "gone_package" not in sys.modules
    sys.modules["gone_package"] = foreign
    official_file(path, {}, {**official_state(), "mask_token": foreign.Thing()})
    with pytest.raises(UserError, match="state_dict holds other things than tensors"):
        checkpoints.load_encoder(path)
