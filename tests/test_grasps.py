"""hand/closing.py: distances, grasps and scores, against geometry worked out independently; the benchmark's card."""

import json

import numpy as np
import pytest
import trimesh
from scipy.spatial import ConvexHull
from scipy.stats import spearmanr

from benchmark import card, grasps, shapes
from hand import closing, kinematics
from hand.described import BENCHMARK
from hand.score import contact_wrenches, epsilon


def test_distance_field_on_a_sphere():
    mesh = trimesh.creation.icosphere(4, 0.04)
    points, normals = closing.surface_normals(mesh.vertices, mesh.faces, 12000, np.random.default_rng(0))
    np.testing.assert_allclose(np.sum(points * normals, axis=1), 0.04, atol=2e-4)
    field = closing.DistanceField(points)
    probes = np.random.default_rng(1).uniform(-0.06, 0.06, (4000, 3)).astype(np.float32)
    exact = np.abs(np.linalg.norm(probes, axis=1) - 0.04)
    near = (exact > 0.004) & (exact < 0.016)
    assert np.abs(field(probes)[near] - exact[near]).max() < 0.001
    # further away, at most a lower bound: no step may be too long
    assert (field(probes) < exact + 0.001)[exact > 0.004].all()
    assert np.allclose(field(np.full((1, 3), 0.5, dtype=np.float32)), closing.FIELD_REACH)
    shell = probes[near & (np.linalg.norm(probes, axis=1) > 0.04)]
    inward = -shell / np.linalg.norm(shell, axis=1, keepdims=True)
    assert (np.sum(field.direction(shell) * inward, axis=1) > 0.97).all()


def random_contacts(rng, count):
    """Contacts of a fist around a blob: points and inward normals (count, 3)."""
    outward = rng.standard_normal((count, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    normals = -outward + 0.3 * rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return (0.04 * outward).astype(np.float32), normals.astype(np.float32)


def hull_of_cones(points, normals, edges=16):
    """Epsilon of polyhedral cones, written out without the functions under test."""
    wrenches = []
    for p, n in zip(points.astype(float), normals.astype(float)):
        a = np.linalg.svd(n[None])[2][1:]
        for angle in 2 * np.pi * np.arange(edges) / edges:
            force = n + 0.8 * (np.cos(angle) * a[0] + np.sin(angle) * a[1])
            wrenches.append([*force, *np.cross(p, force) / 0.06])
    return -ConvexHull(wrenches).equations[:, -1].max()


@pytest.mark.slow
def test_epsilon_follows_the_hull_of_linearised_cones():
    rng, count = np.random.default_rng(0), 60
    found, exact = [], []
    for _ in range(count):
        points, normals = random_contacts(rng, int(rng.integers(3, 7)))
        mask = np.ones((1, len(points)), dtype=bool)
        found.append(epsilon(contact_wrenches(points[None], normals[None], np.zeros(3)), mask)[0])
        exact.append(hull_of_cones(points, normals))
        if exact[-1] > 0 and len(exact) <= 8:
            assert np.isclose(exact[-1], card.hull_epsilon(points, normals, np.zeros(3)), atol=0.02)
    found, exact = np.array(found), np.array(exact)
    closed = exact > 0
    assert closed.sum() >= count / 4
    assert (found[closed] > exact[closed] * 0.999).all()  # an upper bound of the inscribed one
    assert spearmanr(found[closed], exact[closed]).statistic > 0.95
    assert ((found > 0) == closed).mean() > 0.85


def test_epsilon_ignores_masked_contacts():
    points, normals = random_contacts(np.random.default_rng(3), 8)
    wrenches = contact_wrenches(points[None], normals[None], np.zeros(3))
    mask = np.arange(8)[None] % 2 == 0
    alone = epsilon(wrenches[:, ::2], mask[:, ::2])
    np.testing.assert_allclose(epsilon(wrenches, mask), alone, atol=1e-5)
    assert len(epsilon(wrenches[:0], mask[:0])) == 0


@pytest.fixture(scope="module")
def cylinder():
    mesh = trimesh.creation.cylinder(0.03, 0.14, sections=48)
    vertices, faces = shapes.settle(np.asarray(mesh.vertices)), np.asarray(mesh.faces)
    return vertices, faces, *grasps.synthesize(vertices, faces, 40, np.random.default_rng(0))


def test_grasps_are_physical(cylinder):
    vertices, faces, found, scores = cylinder
    assert found.shape == (len(scores), 19) and found.dtype == scores.dtype == np.float32
    assert (scores >= 1.5).sum() == 40
    assert (found[:, 7:] >= BENCHMARK.limits[:, 0] - 1e-5).all() and (
        found[:, 7:] <= BENCHMARK.limits[:, 1] + 1e-5
    ).all()
    np.testing.assert_allclose(np.linalg.norm(found[:, 3:7], axis=1), 1, atol=1e-5)
    assert (found[:, 6] >= 0).all()
    radius, exact = 0.03, []
    for grasp in found[scores >= 1.5]:
        centers, radii = kinematics.hand_drawing(grasp[:7], grasp[7:])
        aside, above = np.linalg.norm(centers[:, :2], axis=1) - radius, np.abs(centers[:, 2] - 0.07) - 0.07
        distance = np.where((aside > 0) & (above > 0), np.hypot(aside, above), np.maximum(aside, above))
        gap = distance - radii  # to a cylinder
        assert gap.min() > -0.003
        touch = gap[27:].reshape(4, 8) < 0.003
        assert touch[0].any() and touch[1:].any() and touch.sum() >= 3
        depth, links, quality = card.measure_grasp(vertices, faces, grasp)
        assert abs(depth + gap.min()) < 1e-3  # the card's own measure agrees (the mesh has 48 sides)
        exact.append(quality)
    assert np.mean(np.array(exact) > 0) > 0.85


def test_three_links_touch_in_a_grasp_a_thumbs_and_another_fingers():
    gaps = np.full((4, 4, 8), 0.01)  # spheres 0 to 3 are on a finger's first link, 4 and 5 on its second
    gaps[0, 0, [0, 4]] = gaps[0, 2, 0] = 0.001
    gaps[1, 0, [0, 1]] = gaps[1, 2, 0] = 0.001  # two links
    gaps[2, 1, [0, 4]] = gaps[2, 2, 0] = 0.001  # no thumb
    gaps[3, 0, [0, 4, 7]] = 0.001  # nothing but the thumb
    assert closing.grasps_it(gaps).tolist() == [True, False, False, False]


def test_one_pose_has_several_solutions(cylinder):
    _, counts = np.unique(cylinder[2][:, :7], axis=0, return_counts=True)
    assert counts.max() == 2 and 0.05 < np.mean(counts == 2) < 0.5


def test_what_no_hand_can_hold_has_no_grasps():
    """Batches in which no candidate is left, as of a ball of 4 mm, are nothing special."""
    ball = trimesh.creation.icosphere(1, 0.002)
    found, scores = grasps.synthesize(ball.vertices, ball.faces, 4, np.random.default_rng(0))
    assert len(found) == len(scores) == 0


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
