"""benchmark/card.py: exact distances to a mesh, and the card of a small root."""

import json

import numpy as np
import pytest
import trimesh

from benchmark import card


def test_closest_points_and_inside_against_a_box():
    box = trimesh.creation.box((0.1, 0.06, 0.04))
    points = np.random.default_rng(0).uniform(-0.08, 0.08, (200, 3))
    half = np.array((0.05, 0.03, 0.02))
    inside = (np.abs(points) < half).all(1)
    triangles = box.vertices[box.faces]
    assert np.array_equal(card.is_inside(points, triangles), inside)
    outside = np.linalg.norm(np.maximum(np.abs(points) - half, 0), axis=1)
    expected = np.where(inside, -(half - np.abs(points)).min(1), outside)
    gaps, nearest = card.sphere_gaps(box.vertices, box.faces, points, np.full(200, 0.01))
    assert inside.any()
    np.testing.assert_allclose(gaps, expected - 0.01, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(points - nearest, axis=1), np.abs(expected), atol=1e-9)


def test_mesh_with_a_hole_has_no_inside():
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    gaps, _ = card.sphere_gaps(box.vertices, box.faces[:-1], np.zeros((1, 3)), np.array([0.01]))
    np.testing.assert_allclose(gaps, 0.04)


@pytest.mark.slow
def test_card(made_root, tmp_path):
    card.write_card(made_root, tmp_path / "card", seed=0, sample=8, mixed=16)
    written = json.loads((tmp_path / "card/card.json").read_text(encoding="utf-8"))
    assert written["grasps_measured"] == 8 and written["kept_grasps"] == 32
    assert written["penetration_mm"]["max"] < 3
    assert written["share_three_links_touch"] == 1 == written["share_thumb_and_finger_touch"]
    assert written["score_spearman_with_hull"] > 0.8
    assert all((tmp_path / "card" / name).stat().st_size > 10000 for name in ("grasps.png", "histograms.png"))
