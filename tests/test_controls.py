"""controls.py, `--pool centers` and the input of the paper itself, each against what it says to be."""

import dataclasses

import torch
from conftest import training
from samples import TINY, save_encoder

import controls
import model
import train
from files.checkpoints import load_run


def flags(box_root, runs, *more):
    return training(box_root, runs, "--steps", 8, "--eval-every", 4, *more)


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
