"""Random inputs and tiny networks that several test files share."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

import model
from files.checkpoints import save_checkpoint
from model import PRESETS, GraspModel, PointEncoder, PointJEPA

TINY = PRESETS["tiny"]
TINY_JEPA = dataclasses.replace(TINY, patches=16, dropout=0.0, attention_dropout=0.0, drop_path=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds_of(count, points=64, seed=0):
    """Clouds (count, points, 3) in m, within a cube of 20 cm."""
    return torch.rand(count, points, 3, generator=seeded(seed)) * 0.2


def unit_clouds(count, points=64, seed=0):
    """Clouds (count, points, 3) in the unit sphere, as the encoder sees them."""
    return model.normalize_clouds(torch.randn(count, points, 3, generator=seeded(seed)), TINY)[0]


def poses_of(count, seed=0):
    """Wrist poses (count, 7): m, unit quaternion xyzw."""
    poses = torch.randn(count, 7, generator=seeded(seed))
    return torch.cat([0.1 * poses[:, :3], F.normalize(poses[:, 3:])], 1)


def grasp_model(**changes):
    """A tiny GraspModel in eval mode, the same weights every time."""
    torch.manual_seed(0)
    return GraspModel(dataclasses.replace(TINY, **changes)).eval()


def jepa_of(**changes):
    """A tiny PointJEPA in train mode without dropout, the same weights every time."""
    torch.manual_seed(0)
    return PointJEPA(dataclasses.replace(TINY_JEPA, **changes))


def save_encoder(path, config=TINY):
    """A file of an encoder with random weights, the same every time; -> the encoder."""
    torch.manual_seed(0)
    encoder = PointEncoder(config).eval()
    save_checkpoint(path, {"config": vars(config), "encoder": encoder.state_dict()})
    return encoder


def brute_sequence(centers):
    """The sequencer on one list of centers, by plain loops."""
    rest = list(range(len(centers)))
    order = [min(rest, key=lambda i: sum(centers[i]))]
    rest.remove(order[0])
    while rest:
        order.append(min(rest, key=lambda i: math.dist(centers[order[-1]], centers[i])))
        rest.remove(order[-1])
    return order


def random_predictions(seed, n=60, k=4, j=3, objects=10):
    """What evaluate.predict_grasps returns, made up: n grasps of a few objects of two synsets."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 0.4, (n, j))
    return {
        "joints_pred": joints[:, None] + rng.normal(0, 0.3, (n, k, j)),
        "logits": rng.normal(size=(n, k)),
        "joints_true": joints,
        "object": np.array([f"s{i % objects % 2}/o{i % objects}" for i in range(n)]),
        "synset": np.array([f"s{i % objects % 2}" for i in range(n)]),
    }
