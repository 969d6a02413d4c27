"""lab/encoders.py: probes of an encoder against loops and made-up features; lab/baselines.py: the nearest grasp."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from lab import baselines, encoders
from model import PRESETS, GraspModel


def test_nearest_grasp_against_a_loop(boxes):
    data, split = boxes
    found = baselines.nearest_predictions(data, split.rows["train"], split.rows["val"])
    for joints, row in zip(found["joints_pred"], split.rows["val"]):
        best = None
        for other in split.rows["train"]:
            if data.scenes[data.scene[other]].split("/")[0] == data.scenes[data.scene[row]].split("/")[0]:
                a, b = data.poses[row].astype(float), data.poses[other].astype(float)
                turn = Rotation.from_quat(a[3:]).inv() * Rotation.from_quat(b[3:])
                distance = math.dist(a[:3], b[:3]) / 0.05 + turn.magnitude()
                best = min(best or (distance, other), (distance, other))
        assert np.array_equal(joints[0], data.joints[best[1]])
    itself = baselines.nearest_predictions(data, split.rows["train"], split.rows["train"])
    assert np.array_equal(itself["joints_pred"][:, 0], data.joints[split.rows["train"]])


def scenes(classes=4, objects=12, per_object=2):
    """Synset, object, pool and val of made-up scenes: the last three objects of a category are val."""
    synsets = np.repeat([f"s{i}" for i in range(classes)], objects * per_object)
    number = np.tile(np.repeat(np.arange(objects), per_object), classes)
    names = np.array([f"{s}/{i}" for s, i in zip(synsets, number)])
    return synsets, names, number < objects - 3, number >= objects - 3


def test_probe_separates_what_is_separable_and_guesses_where_labels_are_shuffled():
    synsets, objects, pool, val = scenes()
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 20)) * 3  # of the four categories
    features = centers[np.unique(synsets, return_inverse=True)[1]] + rng.normal(0, 0.3, (len(synsets), 20))
    assert encoders.few_shot_accuracy(features, synsets, objects, pool, val, 5) == (1.0, 4)
    noise = rng.normal(size=(len(synsets), 20))
    guessed, _ = encoders.few_shot_accuracy(noise, synsets, objects, pool, val, 5, draws=50)
    assert guessed == pytest.approx(0.25, abs=0.12)
    short = pool & ~((synsets == "s2") & ~np.char.endswith(objects, "/0"))  # one pool object left in s2
    assert encoders.few_shot_accuracy(features, synsets, objects, short, val, 2) == (1.0, 3)
    accuracy, count = encoders.few_shot_accuracy(features, synsets, objects, pool, val, 10)
    assert math.isnan(accuracy) and count == 0


def test_probe_ignores_test_objects_and_feeds_the_encoder_as_the_model_does(boxes):
    data, split = boxes
    torch.manual_seed(0)
    model = GraspModel(PRESETS["tiny"]).eval()
    with torch.no_grad():
        tokens = model.encode(torch.from_numpy(data.clouds))[0].numpy()
    assert np.array_equal(encoders.encode_scenes(model.encoder, data.clouds), tokens)
    result = encoders.probe(model.encoder, data, split, shots=(2, 3), counts=(3,))
    assert 0 <= result["probe_2"] <= 1 and result["categories_2"] == 2
    assert result["shape_3"] <= 1
    clouds = data.clouds.copy()
    away = np.isin(data.object_of_scene, split.suites["test"] + split.suites["test_category"])
    clouds[away] = np.random.default_rng(0).normal(size=clouds[away].shape)
    others = dataclasses.replace(data, clouds=clouds)
    assert encoders.probe(model.encoder, others, split, shots=(2, 3), counts=(3,)) == result


def test_slab_widths_against_a_loop():
    clouds = np.random.default_rng(0).normal(size=(5, 200, 3)) * [0.03, 0.05, 0.1] + 0.2
    clouds[0, :, 2] = np.where(clouds[0, :, 2] > 0.2, 0.4, 0.0)  # nothing in the slabs between
    for cloud, widths in zip(clouds, encoders.slab_widths(clouds)):
        radius = np.sqrt(((cloud - cloud.mean(0)) ** 2).sum(1)).max()
        edges = np.linspace(cloud[:, 2].min(), cloud[:, 2].max(), 5)
        for i in range(4):
            slab = cloud[(cloud[:, 2] >= edges[i]) & ((cloud[:, 2] < edges[i + 1]) | (i == 3))]
            expected = np.ptp(slab[:, :2], axis=0) / radius if len(slab) else [0, 0]
            assert np.allclose(widths[2 * i : 2 * i + 2], expected)


def test_shape_probe_explains_what_is_linear_and_nothing_of_noise():
    _, objects, pool, val = scenes()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(objects), 6))
    linear = features @ rng.normal(size=(6, 3)) + 1
    assert encoders.few_object_fit(features, linear, objects, pool, val, 30) > 0.98
    assert encoders.few_object_fit(features, rng.normal(size=(len(objects), 3)), objects, pool, val, 30) < 0.2
    assert math.isnan(encoders.few_object_fit(features, linear, objects, pool, val, 37))
