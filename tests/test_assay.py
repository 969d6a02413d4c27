"""Single views against what hides what in closed form, and the assay of frozen encoders from end to end."""

import numpy as np
import pytest
import torch

import sweep
from lab import views
from lab.assay import encode_all
from lab.rows import read_rows
from model import PRESETS, GraspModel


def box_cloud(seed, count=views.DENSE):
    """Points (count, 3) m on the surface of a box of some 10 cm."""
    rng = np.random.default_rng(seed)
    points, side = rng.uniform(-1, 1, (count, 3)), rng.integers(0, 3, count)
    points[np.arange(count), side] = np.sign(points[np.arange(count), side])
    return (points * rng.uniform(0.03, 0.07, 3)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_of_a_box_the_sides_that_face_the_camera_are_seen(seed):
    """All of those three but for the edges, and no point of the others but at the edges."""
    cloud, half = box_cloud(seed).astype(float), np.abs(box_cloud(seed)).max(0)
    camera = np.random.default_rng(seed).uniform(0.2, 0.6, 3) * (-1) ** np.arange(seed, seed + 3)
    inside = half - np.abs(cloud)  # (N, 3) m, from each pair of sides; a point lies on the one where that is zero
    axis = inside.argmin(1)
    faces = (np.sign(cloud) == np.sign(camera))[np.arange(len(cloud)), axis]
    far_from_edges = np.sort(inside, axis=1)[:, 1] > 0.01
    seen = np.isin(np.arange(len(cloud)), views.visible_points(cloud, camera))
    assert seen[faces & far_from_edges].all() and not seen[~faces & far_from_edges].any()


def test_a_view_is_of_its_seed_alone_and_off_by_the_noise():
    """From above: nothing of the lower side. Every point lies near one of the cloud, by the noise."""
    cloud = box_cloud(0)
    view = views.single_view((cloud, 1, 1500))
    assert view.shape == (1500, 3) and view.dtype == np.float32  # more than are seen
    assert np.array_equal(view, views.single_view((cloud, 1, 1500)))
    assert not np.array_equal(view, views.single_view((cloud, 2, 1500)))
    assert view[:, 2].min() > cloud[:, 2].min() - 5 * views.NOISE and np.median(view[:, 2]) > 0
    top = cloud[:, 2].max()
    of_top = view[(np.abs(view[:, :2]) < np.abs(cloud[:, :2]).max(0) - 0.02).all(1) & (view[:, 2] > 0)]
    assert (of_top[:, 2] - top).std() == pytest.approx(views.NOISE, rel=0.2)


def test_tokens_are_standardised_and_the_encoder_with_them():
    """What is read out in training is what the changed encoder makes of the same clouds later."""
    torch.manual_seed(0)
    model = GraspModel(PRESETS["tiny"]).eval()
    clouds = np.stack([box_cloud(seed, 64) for seed in range(6)])
    plain = model.encode(torch.from_numpy(clouds))
    encoded = encode_all(model, clouds)
    again = model.encode(torch.from_numpy(clouds))
    tokens = plain.tokens.flatten(0, 1).detach()
    standard = (tokens - tokens.mean(0)) / tokens.std(0)
    torch.testing.assert_close(encoded.tokens.flatten(0, 1), standard, rtol=0, atol=1e-4)
    torch.testing.assert_close(encoded.tokens, again.tokens, rtol=0, atol=1e-4)
    assert torch.equal(encoded.centers, plain.centers)


@pytest.mark.slow
def test_pretraining_on_views(tmp_path):
    for seed in range(8):
        np.save(tmp_path / f"{seed}.npy", box_cloud(seed))
    words = "--preset tiny --batch 4 --steps 40 --log-every 1 --threads 1 --quiet"
    curve = views.main(f"--clouds {tmp_path} --out {tmp_path}/e.pt {words}".split())["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"] and curve[-1]["target_std"] > 0.5


@pytest.mark.slow
def test_assay(box_root, tmp_path, capsys):
    """On clouds and on views, one hypothesis and a mixture; a row that is there is not read out again."""
    places = ["--data", box_root, "--runs", tmp_path / "runs", "--out", tmp_path / "table"]
    argv = [str(word) for word in ("assay", "surface", "jepa", "geometry", "--smoke", *places)]
    rows = sweep.main(argv)
    assert len(rows) == 3 * 2 * 2
    assert all(bool(row["nll"]) == ("--loss mdn" in row["command"]) for row in rows)
    full, view = (
        {row["top_logit_rmse"] for row in rows if f"--input {kind}" in row["command"]} for kind in ("full", "view")
    )
    assert not full & view
    capsys.readouterr()
    assert sweep.main(argv) == rows == read_rows(tmp_path / "table" / "rows.csv")
    assert "--input" not in capsys.readouterr().err
