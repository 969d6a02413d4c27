"""controls.py, `--pool centers` and the input of the paper itself, each against what it says to be."""

import dataclasses
import shutil

import pytest
import torch
from conftest import fails, training
from samples import TINY, save_encoder

import controls
import model
import train
from files.checkpoints import load_encoder, load_run
from files.writing import read_json, write_json
from loop.comparisons import check_oracle
from splits import HELD_OUT


def flags(box_root, runs, *more):
    return training(box_root, runs, "--steps", 8, "--eval-every", 4, *more)


@pytest.fixture(scope="module")
def labelled(box_root, tmp_path_factory):
    """A run with all labels."""
    runs = tmp_path_factory.mktemp("runs")
    train.main(flags(box_root, runs, "--name", "all", "--budget", 1, "--lr-backbone", 1e-2))
    return runs / "all"


def random_encoder(seed=0):
    torch.manual_seed(seed)
    return model.PointEncoder(TINY)


def test_calibrated_statistics_are_those_of_the_points(boxes):
    """Against the mean and variance over all points of one batch that holds every cloud."""
    data, _ = boxes
    clouds = torch.from_numpy(data.clouds[:12])
    encoder = controls.calibrate(random_encoder(), clouds, batch=12)
    patches, _ = encoder.group(model.normalize_clouds(clouds, TINY)[0])
    first = encoder.embed.first[0](patches.flatten(0, 2))  # what the first BatchNorm sees
    layer = encoder.embed.first[1]
    torch.testing.assert_close(layer.running_mean, first.mean(0))
    torch.testing.assert_close(layer.running_var, first.var(0))
    assert not encoder.training and not layer.training
    batches = controls.calibrate(random_encoder(), clouds, batch=4).embed.first[1]
    points = encoder.embed.first[0](patches.flatten(1, 2)).unflatten(0, (3, 4)).flatten(1, 2)  # (3, 4·G·S, w1)
    torch.testing.assert_close(batches.running_mean, points.mean(1).mean(0))
    torch.testing.assert_close(batches.running_var, points.var(1).mean(0))


def test_a_random_encoder_stays_as_it_was_calibrated(box_root, boxes, tmp_path):
    data, split = boxes
    train.main(flags(box_root, tmp_path, "--init", "random", "--name", "a", "--budget", 0.5))
    trained = load_run(tmp_path / "a").encoder
    own = train.parse(flags(box_root, tmp_path, "--init", "random", "--budget", 0.5))
    assert own.lr_backbone == 0
    fresh = train.build_model(train.resolve_network(own)[0], None, data, split.rows["train"], own).encoder
    pool = [place for place, name in enumerate(data.object_of_scene) if name in set(split.pool)]
    controls.calibrate(fresh, torch.from_numpy(data.clouds[pool]))
    for name, weights in fresh.state_dict().items():
        assert torch.equal(weights, trained.state_dict()[name]), name


def test_a_shuffled_encoder_keeps_its_numbers_and_nothing_else(box_root, tmp_path):
    path = tmp_path / "encoder.pt"
    encoder = save_encoder(path)
    starts = []
    for seed in (0, 0, 1):
        argv = flags(box_root, tmp_path, "--init", "shuffled", "--jepa-ckpt", path, "--seed", seed)
        starts.append(train.resolve_network(train.parse(argv))[1].state_dict())
    for name, weights in encoder.state_dict().items():
        first, again, other = (start[name] for start in starts)
        assert torch.equal(first, again)
        assert torch.equal(first.flatten().sort().values, weights.flatten().sort().values)
        if weights.numel() > 1 and weights.std() > 0:
            assert not torch.equal(first, weights) and not torch.equal(first, other)


def test_an_oracle_starts_from_the_labelled_runs_encoder(box_root, labelled, tmp_path, capsys):
    frozen = ("--lr-backbone", 0, "--budget", 0.5)
    oracle = ("--init", "oracle", "--jepa-ckpt", labelled / "best.pt")
    train.main(flags(box_root, tmp_path, *oracle, "--name", "a", *frozen))
    assert "8 steps with all labels" in capsys.readouterr().err
    theirs, ours = load_run(labelled).encoder, load_run(tmp_path / "a").encoder
    for name, weights in theirs.state_dict().items():
        assert torch.equal(weights, ours.state_dict()[name]), name
    loaded = load_encoder(labelled / "best.pt")
    clouds = torch.randn(2, TINY.points, 3)
    assert torch.equal(loaded(clouds)[0], theirs(clouds)[0]) and not loaded.training


def test_an_oracle_must_have_seen_all_labels_of_the_same_split(box_root, labelled, tmp_path, capsys):
    def refused(*more, folder=labelled):
        argv = flags(box_root, tmp_path, "--init", "oracle", "--jepa-ckpt", folder / "best.pt", *more)
        return fails(train.main, argv, capsys)

    assert "pack" in refused("--pack", "B")
    assert "held_out" in refused("--held-out")
    assert "other data" in refused("--min-score", 0.5)
    train.main(flags(box_root, tmp_path, "--name", "half", "--budget", 0.5))
    assert "budget" in refused(folder=tmp_path / "half")
    train.main(flags(box_root, tmp_path, "--name", "none", "--pool", "size"))
    assert "no encoder" in refused(folder=tmp_path / "none")
    (tmp_path / "none" / "result.json").unlink()
    argv = flags(box_root, tmp_path, "--init", "jepa", "--jepa-ckpt", labelled / "best.pt")
    assert "with labels" in fails(train.main, argv, capsys)
    save_encoder(tmp_path / "none" / "best.pt")
    assert "saw no labels" in refused(folder=tmp_path / "none")
    shutil.copytree(labelled, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    write_json(config, read_json(config) | {"fingerprint": "x"})
    assert "other data" in refused(folder=tmp_path / "other")


@pytest.mark.slow
def test_adapters_are_part_of_an_oracle(box_root, boxes, tmp_path):
    train.main(flags(box_root, tmp_path, "--name", "a", "--lora", 2, "--lr-backbone", 0, "--budget", 1, "--keep-last"))
    merged, last = (load_encoder(tmp_path / "a" / f"{which}.pt") for which in ("best", "last"))
    for name, weights in load_run(tmp_path / "a").encoder.state_dict().items():
        assert torch.equal(weights, merged.state_dict()[name])
        assert torch.equal(last.state_dict()[name], load_run(tmp_path / "a", "last").encoder.state_dict()[name])
    argv = flags(box_root, tmp_path, "--init", "oracle", "--jepa-ckpt", tmp_path / "a" / "best.pt")
    check_oracle(train.parse(argv), boxes[0].fingerprint, HELD_OUT)


def test_centers_are_the_hand_pooling_with_features_of_zero(boxes):
    data, split = boxes
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, pool="centers", joints=data.joints.shape[1])
    network = model.GraspModel(config).eval()
    hand = model.GraspModel(dataclasses.replace(config, pool="hand")).eval()
    weights = network.state_dict()
    weights["pool.from_token.bias"] = weights.pop("pool.from_center.bias")
    weights["pool.from_token.weight"] = torch.randn(64, TINY.width)
    hand.load_state_dict(weights, strict=False)
    clouds, poses = torch.from_numpy(data.clouds[:2]), torch.from_numpy(data.poses[:5])
    index = torch.tensor([0, 0, 1, 1, 0])
    encoder = random_encoder().eval()
    units, centroid, radius = model.normalize_clouds(clouds, TINY)
    _, centers = encoder(units)
    encoded = model.Encoded(torch.zeros(2, TINY.patches, TINY.width), centers * radius[:, None] + centroid[:, None],
                            centroid, radius, clouds)  # fmt: skip
    for ours, theirs in zip(network(clouds, index, poses), hand.decode(encoded, index, poses)):
        torch.testing.assert_close(ours, theirs)
    assert not any(name.startswith("encoder") for name in network.state_dict())
