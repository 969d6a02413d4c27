"""walkthrough.py: what it prints and draws against what the network itself does."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import fails, write_box, write_root

import train
import walkthrough
from files.checkpoints import read_checkpoint, save_checkpoint
from hand.kinematics import JOINT_NAMES
from model import POOLS, PRESETS, GraspModel, PointEncoder, PointJEPA, from_z_up, load_run, normalize_clouds
from pictures import draw, photo, sheet
from variants import SPREADS

TINY = PRESETS["tiny"]


def with_statistics(module):
    """Its BatchNorms as after a training: mean 0 and variance 1 would hide a forgotten eval mode."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The file of a tiny encoder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "tiny.pt"
    weights = with_statistics(PointEncoder(TINY)).state_dict()
    save_checkpoint(path, {"config": dataclasses.asdict(TINY), "encoder": weights})
    return path


@pytest.fixture
def drawn(monkeypatch):
    """Panels of the sheets that would have been drawn, a list per sheet."""
    sheets = []
    monkeypatch.setattr(sheet, "draw", lambda panels, path: sheets.append(panels))
    return sheets


@pytest.fixture
def coarse(monkeypatch):
    """Few points and one view, where the picture is not looked at."""
    for module in (sheet, draw):
        monkeypatch.setattr(module, "sample_lit", lambda *args: photo.sample_lit(*args[:2], 2_000))
    monkeypatch.setattr(walkthrough, "view_of_hand", lambda *args: sheet.VIEW)


def walk(argv, capsys):
    """Run the command -> its stages {number: [name, shape, sentence]}, a line without one as number + 0.5; text."""
    capsys.readouterr()
    walkthrough.main([str(word) for word in argv])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    stages, last = {}, 0
    for line in text.splitlines():
        found = re.fullmatch(r"( ?\d+|  )  (.*?) +(\(.*?\)) +(\S.*)", line)
        if found and line[:4].strip():
            last = int(found[1])
        if found and found[3].strip("(), 0123456789") == "":
            stages[last + 0.5 * (not found[1].strip())] = found[2], found[3], found[4]
    return stages, text


def shape(tensor):
    return str(tuple(tensor.shape))


# ---------------------------------------------------------------- one object


def test_shapes_and_loss_are_those_of_a_direct_forward(encoder, drawn, coarse, capsys):
    stages, text = walk(["--encoder", encoder, "--shape", "bottle", "--seed", 3], capsys)
    thing = walkthrough.made_thing("bottle", TINY.points, 3)
    jepa, trained = walkthrough.open_jepa(encoder, 3)
    stored = read_checkpoint(encoder)["encoder"]
    assert all(torch.equal(weights, stored[name]) for name, weights in jepa.encoder.state_dict().items())
    assert all(torch.equal(w, stored[f"transformer.{name}"]) for name, w in jepa.target.state_dict().items())
    units, _, _ = normalize_clouds(thing.cloud, TINY)
    assert not trained and "untrained" in text and "a bottle" in stages[1][2]
    patches, centers = jepa.encoder.group(units)
    features, _ = jepa.encoder(units)
    torch.manual_seed(3)  # without a generator, forward draws the blocks from here
    loss, targets, predictions = jepa(units)
    hidden, visible = jepa.sample_blocks(torch.Generator().manual_seed(3))
    expected = {
        1: thing.vertices, 2: thing.cloud, 3: units, 4: centers, 5: patches, 6: patches[0, 0],
        7: jepa.encoder.embed(patches), 8: jepa.encoder.position(centers), 9: features, 10: features[:, :, 0],
        11: hidden, 11.5: visible, 12: targets, 13: features[:, : len(visible)], 14: predictions, 15: loss,
    }  # fmt: skip
    assert {number: found[1] for number, found in stages.items()} == {n: shape(x) for n, x in expected.items()}
    assert f"loss {loss:.4f};" in stages[15][2]
    assert stages[14][0] == "Predictor" and stages[7][0] == "PatchEmbed"


def test_a_pretraining_checkpoint_brings_its_predictor(tmp_path, drawn, coarse, capsys):
    torch.manual_seed(1)
    jepa = with_statistics(PointJEPA(TINY))
    for weights in jepa.target.parameters():
        weights.data.mul_(1.1)  # a target encoder of its own
    content = {"config": dataclasses.asdict(TINY), "jepa": jepa.state_dict(), "step": 7}
    save_checkpoint(tmp_path / "jepa.pt", content)
    stages, text = walk(["--encoder", tmp_path / "jepa.pt", "--seed", 5], capsys)
    units, _, _ = normalize_clouds(walkthrough.made_thing("mug", TINY.points, 5).cloud, TINY)
    torch.manual_seed(5)
    assert f"loss {jepa.eval()(units)[0]:.4f};" in stages[15][2] and "untrained" not in text


@pytest.mark.parametrize(
    "changes",
    [{}, {"up": "y"}, {"group": "ball", "radius": 0.03, "normalize": "metric", "scale": 0.1},
     {"group": "ball", "radius": 0.4, "up": "y"}],
)  # fmt: skip
def test_features_are_the_encoders_to_the_bit(changes, capsys):
    config = dataclasses.replace(TINY, **changes)
    torch.manual_seed(2)
    encoder = with_statistics(PointEncoder(config))
    cloud = walkthrough.made_thing("hammer", config.points, 1).cloud
    seen = walkthrough.walk_encoder(encoder, cloud)
    units, centroid, radius = normalize_clouds(cloud, config)
    features, centers = encoder(from_z_up(units, config.up))
    assert torch.equal(seen.features, features) and torch.equal(seen.centers, centers)
    index = (seen.centers_m[:, None] - cloud).norm(dim=2).min(1)
    assert index.values.max() < 1e-6 and len(index.indices.unique()) == config.patches  # points of the cloud, in metres


def test_patchings_of_an_object(encoder, drawn, coarse, capsys):
    stages, _ = walk(["--encoder", encoder, "--patchings", "--shape", "camera"], capsys)
    size = str((1, TINY.patches, TINY.patch_size, 3))
    names = ["fps", "curvature", "overlap", "multiscale"]
    assert set(names) == set(SPREADS) and len(drawn[0]) == 4
    assert stages[3][:2] == ("local_shape", str((1, TINY.points)))
    assert [stages[number][:2] for number in range(4, 8)] == [(name, size) for name in names]
    cloud = walkthrough.made_thing("camera", TINY.points, 13).cloud
    variation, found = walkthrough.walk_patchings(TINY, cloud)
    assert variation.shape == (TINY.points,) and variation.min() >= 0
    reach = {}
    for name, (centers, patches) in found.items():
        points = (centers[:, None] + patches).flatten(0, 1)  # of the cloud, in metres
        assert (points[:, None] - cloud).norm(dim=2).amin(1).max() < 1e-6, name
        reach[name] = patches.norm(dim=2).amax(1)  # (G,)
    assert torch.equal(found["fps"][0], found["overlap"][0]) and not torch.equal(found["fps"][0], found["curvature"][0])
    assert (reach["overlap"] > reach["fps"]).all() and (reach["multiscale"][1::2] > reach["overlap"][1::2]).all()
    assert torch.equal(found["multiscale"][1][::2].norm(dim=2).amax(1), reach["fps"][::2])


def test_objects_of_ones_own(encoder, drawn, coarse, tmp_path, capsys):
    write_box(tmp_path / "box.obj", np.array([0.1, 0.2, 0.05]))
    stages, _ = walk(["--encoder", encoder, "--mesh", tmp_path / "box.obj"], capsys)
    assert stages[1] == ("vertices", "(8, 3)", "box.obj, 10.0 x 20.0 x 5.0 cm, z up")
    points = np.random.default_rng(0).normal(size=(100, 3)) * 0.03
    np.save(tmp_path / "cloud.npy", points)
    stages, _ = walk(["--encoder", encoder, "--mesh", tmp_path / "cloud.npy"], capsys)
    assert stages[1][1] == "(100, 3)" and stages[2][1] == "(1, 64, 3)"
    assert [len(panels) for panels in drawn] == [8, 8]


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def named_root(tmp_path_factory):
    """A dataset whose joints have the names of the hand that can be drawn."""
    root = write_root(tmp_path_factory.mktemp("named") / "root", {"03797390": 5})
    for path in root.rglob("recording.npz"):
        np.savez(path, **np.load(path), joint_names=np.array(JOINT_NAMES))
    return root


def train_tiny(root, folder):
    base = f"--data {root} --preset tiny --steps 2 --objects-per-batch 4 --k 3 --quiet"
    train.main([*base.split(), "--runs", str(folder.parent), "--name", folder.name])
    return folder


@pytest.fixture(scope="module")
def run(named_root, tmp_path_factory):
    return train_tiny(named_root, tmp_path_factory.mktemp("runs") / "run")


def run_with(run, folder, **changes):
    """A run folder whose model has other settings, and drawn weights."""
    torch.manual_seed(0)
    model = with_statistics(GraspModel(dataclasses.replace(load_run(run).config, **changes)))
    folder.mkdir()
    shutil.copy(run / "config.json", folder)
    save_checkpoint(folder / "best.pt", model.content())
    return folder


@pytest.mark.parametrize("pool", POOLS)
def test_a_run_of_each_pooling(pool, run, tmp_path, drawn, coarse, capsys):
    loss = {"hand": "mdn", "surface": "hedged", "mean": "relaxed", "max": "annealed"}.get(pool, "wta")
    folder = run_with(run, tmp_path / "run", pool=pool, loss=loss)
    stages, text = walk([folder, "--seed", 4], capsys)
    model, alpha, thing, pose, joints, _ = walkthrough.open_grasp(folder, 4)
    with torch.no_grad():
        joints_hat, logits = model(thing.cloud, torch.zeros(1, dtype=torch.long), pose)
        expected = model.loss(joints_hat, logits, joints, alpha).item()
        terms = walkthrough.loss_terms(model, joints_hat, logits, joints, alpha)
    assert alpha == 0.1 and stages[21][0] == f"{loss}_loss" and f"loss {expected:.4f}," in stages[21][2]
    assert sum(value.item() for value, _ in terms) == pytest.approx(expected, abs=1e-6)
    assert all(f"{value:.4f}  {what}" in text for value, what in terms)
    assert stages[19][1] == shape(joints_hat) and stages[19.5][1] == shape(logits)
    assert stages[18][1] == f"(1, {sum(int(part.split()[0]) for part in stages[18][2].split(' + '))})"
    attends = pool in ("attention", "attention_surface", "hand", "centers")
    assert (17 in stages) == attends and (9 in stages) == POOLS[pool].encoder
    (panels,) = drawn
    numbers = [int(title.split()[0]) for title, _ in panels]
    assert numbers == sorted(numbers) and set(numbers) <= set(stages)
    assert numbers.count(19) == 3 and (17 in numbers) == (attends and POOLS[pool].encoder)
    hands = [title for title, _ in panels if title.startswith("19")]
    chances = [float(re.search(r"probability ([\d.]+)", title)[1]) for title in hands]
    assert chances == sorted(chances, reverse=True)
    (winner,) = (title for title in hands if "the winner" in title)
    assert f"the winner is {winner.split()[2].strip(',')} " in stages[20][2]


def test_weights_are_those_that_the_pooling_uses(run):
    """The more a patch counts, the more the embedding changes with its token: it is linear in the values."""
    model = load_run(run)
    model.pool.query.data.normal_()  # one near zero weighs all alike
    model.pool.attention.num_heads, model.pool.attention.head_dim = 1, TINY.width  # one head: one weight per patch
    encoded = model.encode(torch.rand(1, TINY.points, 3))
    encoded = encoded._replace(tokens=torch.randn(1, TINY.patches, TINY.width))
    weights = walkthrough.patch_weights(model, encoded, None)
    values = torch.nn.functional.linear(encoded.tokens, *(part.chunk(3)[2] for part in (
        model.pool.attention.in_proj_weight, model.pool.attention.in_proj_bias)))  # fmt: skip
    embedding = model.pool.attention.out_proj((weights[..., None] * values).sum(1))
    assert weights.shape == (1, TINY.patches) and weights.std() > 0.01
    assert torch.allclose(embedding, model.pool(encoded.tokens), atol=1e-5)


def test_hand_weights_are_those_that_the_pooling_uses(run, tmp_path):
    """One weight per patch, wherever it stands in the list, and another one for another hand."""
    model = load_run(run_with(run, tmp_path / "run", pool="hand"))
    encoded = model.encode(torch.rand(1, TINY.points, 3) * 0.1)
    pose = torch.tensor([[0.0, 0, 0.1, 0, 0, 0, 1]])
    weights = walkthrough.patch_weights(model, encoded, pose)
    assert weights.shape == (1, TINY.patches) and weights.sum().item() == pytest.approx(1, abs=1e-5)
    order = torch.arange(TINY.patches).flip(0)
    flipped = encoded._replace(tokens=encoded.tokens[:, order], centers=encoded.centers[:, order])
    assert torch.allclose(walkthrough.patch_weights(model, flipped, pose), weights[:, order], atol=1e-6)
    assert not torch.allclose(walkthrough.patch_weights(model, encoded, pose + 0.05), weights, atol=1e-3)
    assert not model.pool.score._forward_hooks  # it is looked at, not changed


@pytest.mark.slow
def test_hands_share_view_and_scale_and_the_file_is_a_picture(run, tmp_path, monkeypatch, capsys):
    taken, real = [], sheet.photograph
    monkeypatch.setattr(sheet, "photograph", lambda *args, **size: taken.append((args, size)) or real(*args, **size))
    walk([run, "--out", tmp_path / "new" / "run.png"], capsys)
    assert (tmp_path / "new" / "run.png").read_bytes()[:4] == b"\x89PNG"
    hands = [args for args, size in taken if not size][1:]  # the first is the object; small ones seek the view
    assert len(hands) == 4
    for lit, view, middle, reach in hands:
        assert np.array_equal(view, hands[0][1]) and np.array_equal(middle, hands[0][2]) and reach == hands[0][3]
        solid = lit.points[(lit.colours != sheet.GREY).any(1)]  # all but the table
        assert (np.abs(solid @ view[:, :2] - middle) <= reach).all()  # nothing of a hand is cut


def test_joints_of_another_hand_are_not_drawn(box_root, tmp_path, drawn, coarse, capsys):
    stages, text = walk([train_tiny(box_root, tmp_path / "run")], capsys)
    assert "No hands in the pictures" in text and 21 in stages
    assert [title.split()[0] for title, _ in drawn[0]] == "2 4 5 6 7 9 10 11 17 21".split()


def test_errors_are_one_line(encoder, box_root, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((9, 3)))
    for argv, message in (
        ([tmp_path / "empty"], "no run"),
        ([tmp_path / "empty", "--shape", "mug"], "--shape"),
        ([tmp_path / "empty", "--encoder", encoder], "--encoder"),
        (["--shape", "teapot"], "teapot"),
        (["--shape", "mug", "--mesh", "a.obj"], "--mesh"),
        (["--encoder", tmp_path / "none.pt"], "none.pt"),
        (["--encoder", encoder, "--mesh", tmp_path / "none.obj"], "none.obj"),
        (["--encoder", encoder, "--mesh", tmp_path / "few.npy"], "at least"),
        (["--seed", "-1"], "--seed"),
    ):
        assert message in fails(walkthrough.main, argv, capsys), argv


# ---------------------------------------------------------------- the camera


def square(height, side):
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * side / 2 + (0, 0, height)
    return corners[[[0, 1, 2], [0, 2, 3]]]


def test_near_surfaces_hide_far_ones():
    """From above, a small red square hides the middle of a larger blue one below it."""
    triangles = np.concatenate((square(0.5, 1), square(0, 2)))
    lit = photo.sample_lit(triangles, np.repeat([[1.0, 0, 0], [0, 0, 1]], 2, axis=0), 40_000)
    view = photo.axes_of_view(-np.pi / 2, np.pi / 2)
    assert np.allclose(view, [[1, 0, 0], [0, 1, 0], [0, 0, -1]], atol=1e-12)
    taken = photo.photograph(lit, view, np.zeros(2), 1.25, size=100)
    red = np.isin(taken.index, np.flatnonzero(lit.colours[:, 0] == 1))
    assert red[35:65, 35:65].all() and not red[:28].any() and (taken.index[:8] == -1).all()
    where, visible = photo.project(taken, np.array([[0.1, 0.2, 0.0], [0.1, 0.2, 0.5], [0.8, 0.2, 0.0]]))
    assert np.allclose(where, [[0.1, 0.2], [0.1, 0.2], [0.8, 0.2]]) and visible.tolist() == [False, True, True]


def test_cameras_stand_where_they_say():
    view = photo.axes_of_view(0.3, 0.4)
    eye = [np.cos(0.4) * np.cos(0.3), np.cos(0.4) * np.sin(0.3), np.sin(0.4)]
    assert np.allclose(view.T @ view, np.eye(3)) and np.allclose(view[:, 2], -np.array(eye)) and view[2, 1] > 0
    assert np.allclose(np.cross(view[:, 0], view[:, 1]), -view[:, 2])  # right, up, towards the eye: not a mirror
