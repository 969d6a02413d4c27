"""walkthrough.py: what it prints and draws against what the network itself does."""

import dataclasses
import re
import shutil

import pytest
import torch
from conftest import fails, write_box
from samples import TINY, save_encoder

import pretrain_jepa
import walkthrough
from files.checkpoints import load_run, load_with_predictor, predictor_path, run_content, save_checkpoint
from model import GraspModel, PointEncoder, PointJEPA, from_z_up, normalize_clouds
from pictures import draw, panels, photo


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Pictures of few points."""
    monkeypatch.setattr(draw, "SURFACE_POINTS", 2_000)
    monkeypatch.setattr(photo, "BALL_POINTS", 2e4)
    monkeypatch.setattr(panels, "DPI", 20)


def with_statistics(module):
    """Its BatchNorms as after a training: mean 0 and variance 1 would hide a forgotten eval mode."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.fixture
def walk(tmp_path, capsys):
    """Runs the command -> its stages {number: [name, shape, sentence]}, a line without one as number + 0.5; its text;
    the numbers and titles of its pictures."""

    def run(*argv, drawn=True):
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if not drawn:
                patch.setattr(walkthrough, "write_panels", lambda panels, path: None)
            titles = walkthrough.main([*map(str, argv), "--out", str(tmp_path / "drawn.png")])
        assert not drawn or (tmp_path / "drawn.png").read_bytes()[:4] == b"\x89PNG"
        text, stages, last = capsys.readouterr().out, {}, 0
        assert max(len(line) for line in text.splitlines() if not line.startswith("drawn: ")) <= 120
        for line in text.splitlines():
            found = re.fullmatch(r"( ?\d+|  )  (.*?) +(\([\d, ]*\)) +(\S.*)", line)
            if found:
                last = int(found[1]) if found[1].strip() else last + 0.5
                stages[last] = found[2], found[3], found[4]
        numbers = [int(title.split()[0]) for title in titles]
        assert numbers == sorted(numbers) and set(numbers) <= set(stages)
        return stages, text, titles, numbers

    return run


def shape(tensor):
    return str(tuple(tensor.shape))


# ---------------------------------------------------------------- one object


def test_shapes_and_loss_are_those_of_a_direct_forward(walk, tmp_path, capsys, monkeypatch):
    """An encoder with the predictor that pretraining kept beside it."""
    monkeypatch.chdir(tmp_path)  # shapes are kept below data/
    encoder = tmp_path / "tiny.pt"
    flags = "--preset tiny --num-clouds 4 --batch 4 --steps 3 --threads 1 --precision fp32 --quiet"
    pretrain_jepa.main([*flags.split(), "--out", str(encoder)])
    stages, text, titles, numbers = walk("--encoder", encoder, "--shape", "bottle", "--seed", 3)
    thing = walkthrough.made_thing("bottle", TINY.points, 3)
    _, jepa = load_with_predictor(encoder)
    units, _, _ = normalize_clouds(thing.cloud, TINY)
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
    assert f"loss {loss:.4f};" in stages[15][2] and "a bottle" in stages[1][2]
    assert stages[14][0] == "Predictor" and stages[7][0] == "PatchEmbed"
    assert numbers == [2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15] and f"{loss:.3f}" in titles[-1]


def test_predictors_belong_to_their_encoder(walk, tmp_path, capsys):
    """One in the same file is taken, one of another encoder is an error, without one nothing is said of pretraining."""
    torch.manual_seed(1)
    jepa = with_statistics(PointJEPA(TINY))
    for weights in jepa.target.parameters():
        weights.data.mul_(1.1)  # a target encoder of its own
    content = {"config": dataclasses.asdict(TINY), "jepa": jepa.state_dict(), "step": 7}
    save_checkpoint(tmp_path / "jepa.pt", content)
    stages, *_ = walk("--encoder", tmp_path / "jepa.pt", "--seed", 5, drawn=False)
    units, _, _ = normalize_clouds(walkthrough.made_thing("mug", TINY.points, 5).cloud, TINY)
    torch.manual_seed(5)
    assert f"loss {jepa.eval()(units)[0]:.4f};" in stages[15][2]
    encoder = tmp_path / "tiny.pt"
    save_encoder(encoder)
    stages, text, *_ = walk("--encoder", encoder, drawn=False)
    assert max(stages) == 9 and "kept without its predictor" in text
    save_checkpoint(predictor_path(encoder), {"predictor": jepa.predictor.state_dict(), "encoder_sha256": "0"})
    assert "another encoder" in fails(walkthrough.main, ["--encoder", encoder], capsys)


def test_the_shipped_predictor_has_learnt(walk):
    """What README shows: its loss on a new mug is far below that of guessing the average."""
    stages, *_ = walk(drawn=False)
    loss, average = map(float, re.findall(r"0\.\d+", stages[15][2]))
    assert loss < 0.5 * average


@pytest.mark.parametrize(
    "changes",
    [{}, {"up": "y"}, {"group": "ball", "radius": 0.03, "normalize": "metric", "scale": 0.1},
     {"group": "ball", "radius": 0.4, "up": "y"}],
)  # fmt: skip
def test_features_are_the_encoders_to_the_bit(changes):
    config = dataclasses.replace(TINY, **changes)
    torch.manual_seed(2)
    encoder = with_statistics(PointEncoder(config))
    cloud = walkthrough.made_thing("hammer", config.points, 1).cloud
    seen = walkthrough.walk_encoder(encoder, cloud)
    features, centers = encoder(from_z_up(normalize_clouds(cloud, config)[0], config.up))
    assert torch.equal(seen.features, features) and torch.equal(seen.centers, centers)
    index = (seen.centers_m[:, None] - cloud).norm(dim=2).min(1)
    assert index.values.max() < 1e-6 and len(index.indices.unique()) == config.patches  # points of the cloud, in metres


def test_objects_of_ones_own(walk, tmp_path):
    save_encoder(tmp_path / "tiny.pt")
    write_box(tmp_path / "box.obj", (0.1, 0.2, 0.05))
    stages, *_ = walk("--encoder", tmp_path / "tiny.pt", "--mesh", tmp_path / "box.obj", drawn=False)
    assert stages[1] == ("vertices", "(8, 3)", "box.obj, 10.0 x 20.0 x 5.0 cm, z up")


# ---------------------------------------------------------------- a run


@pytest.mark.slow
@pytest.mark.parametrize("pool, loss", [("attention", "wta"), ("surface", "hedged")])
def test_a_run(pool, loss, named_run, walk, tmp_path):
    torch.manual_seed(0)
    model = with_statistics(GraspModel(dataclasses.replace(load_run(named_run).config, pool=pool, loss=loss, k=3)))
    (tmp_path / "run").mkdir()
    shutil.copy(named_run / "config.json", tmp_path / "run")
    save_checkpoint(tmp_path / "run" / "best.pt", run_content(model))
    stages, text, titles, numbers = walk(tmp_path / "run", "--seed", 4)
    model, alpha, thing, pose, joints, _ = walkthrough.open_grasp(tmp_path / "run", 4)
    with torch.no_grad():
        joints_hat, logits = model(thing.cloud, torch.zeros(1, dtype=torch.long), pose)
        expected = model.loss(joints_hat, logits, joints, alpha).item()
    assert alpha == 0.1 and stages[21][0] == f"{loss}_loss" and f"loss {expected:.4f}" in stages[21][2]
    assert stages[19][1] == shape(joints_hat) and stages[19.5][1] == shape(logits)
    assert numbers.count(19) == 3 and (17 in numbers) == (pool == "attention") and (9 in numbers) == (pool != "surface")
    hands = [title for title in titles if title.startswith("19")]
    chances = [float(re.search(r"probability ([\d.]+)", title)[1]) for title in hands]
    assert chances == sorted(chances, reverse=True)
    assert [", chosen" in title for title in hands] == [True, False, False]
    errors = (joints_hat - joints[:, None]).square().mean(2)[0]
    (winner,) = (title for title in hands if ", winner" in title)
    assert winner.startswith(f"19  hypothesis {errors.argmin()},") and f"the winner is {errors.argmin()} " in text


def test_joints_of_another_hand_are_not_drawn(walk, tiny_run, box_root):
    stages, text, _, numbers = walk(tiny_run / "run", "--data", box_root, drawn=False)
    assert "No hands in the pictures" in text and numbers == [2, 4, 5, 6, 7, 9, 17]
