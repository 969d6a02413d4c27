"""pictures/sheet.py: like features have like colours, and every point belongs to the nearest patch."""

from types import SimpleNamespace

import numpy as np
import torch

from pictures import sheet


def test_like_features_have_like_colours():
    """Three groups of tokens far apart in feature space: three colours, each group its own."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 20, 32, generator=generator) + 50 * torch.eye(3, 32)[:, None]
    colours = sheet.feature_colours(features.flatten(0, 1))
    assert colours.shape == (60, 3) and 0 <= colours.min() and colours.max() <= 1
    middle = colours.reshape(3, 20, 3).mean(1)
    apart = np.linalg.norm(middle[:, None] - middle[None], axis=2)
    assert apart[np.triu_indices(3, 1)].min() > 0.3
    again = sheet.feature_colours(features.flatten(0, 1) * 7 + 3)  # a shift and a scale are no difference
    assert np.allclose(again, colours)


def test_points_belong_to_the_nearest_center():
    rng = np.random.default_rng(0)
    points, centers = rng.normal(size=(200, 3)), rng.normal(size=(9, 3))
    found = sheet.nearest_patch(SimpleNamespace(points=points), SimpleNamespace(centers_m=torch.from_numpy(centers)))
    assert np.array_equal(found, np.linalg.norm(points[:, None] - centers, axis=2).argmin(1))
