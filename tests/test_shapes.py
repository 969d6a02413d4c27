"""benchmark/shapes.py: closed parts of usable size, scenes, the pool for pretraining."""

import numpy as np
import pytest
import trimesh

from benchmark import shapes

SYNSETS = [*shapes.TRAIN_SYNSETS, *shapes.HELD_OUT_SYNSETS]


@pytest.mark.parametrize("synset", SYNSETS)
def test_objects_are_closed_parts_of_usable_size(synset):
    forms = []
    for seed in range(6):
        vertices, faces = shapes.procedural_mesh(synset, np.random.default_rng(seed))
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        assert mesh.is_watertight and mesh.is_winding_consistent
        assert all(part.volume > 0 for part in mesh.split(only_watertight=False))
        sides = np.sort(np.ptp(vertices, axis=0))
        assert 0.03 < sides[2] <= 0.25 and sides[1] <= 0.15 + 1e-9
        assert abs(vertices[:, 2].min()) < 1e-12
        forms.append(sides / sides[2])
    assert np.ptp(forms, axis=0)[:2].max() > 0.08  # varied, not one shape scaled


def test_scenes_differ_in_size_rest_and_yaw():
    vertices, _ = shapes.procedural_mesh("03797390", np.random.default_rng(0))
    rng = np.random.default_rng(1)
    scenes = [shapes.pose_scene(vertices, *shapes.draw_pose(rng)) for _ in range(12)]
    lengths = [np.linalg.norm(s[0] - s[500]) for s in scenes]
    assert max(lengths) / min(lengths) > 1.1
    assert len({np.ptp(s, axis=0).argmax() for s in scenes}) > 1
    fixed = shapes.pose_scene(vertices, *shapes.draw_pose(rng, resize=False))
    assert np.isclose(np.linalg.norm(fixed[0] - fixed[500]), np.linalg.norm(vertices[0] - vertices[500]))


def test_pretraining_clouds_are_seeded_and_never_held_out(monkeypatch):
    cloud = shapes.pretraining_cloud(0, 5, 256)
    assert cloud.shape == (256, 3) and cloud.dtype == np.float32
    assert np.array_equal(cloud, shapes.pretraining_cloud(0, 5, 256))
    assert not np.array_equal(cloud, shapes.pretraining_cloud(1, 5, 256))
    assert not np.array_equal(cloud, shapes.pretraining_cloud(0, 6, 256))
    turned = shapes.pretraining_cloud(0, 5, 256, up="y")
    assert np.array_equal(turned[:, 1], cloud[:, 2])
    turn = np.linalg.lstsq(cloud, turned, rcond=None)[0]
    assert np.allclose(np.linalg.det(turn), 1, atol=1e-4)  # turned, not mirrored
    drawn, original = [], shapes.procedural_mesh
    monkeypatch.setattr(shapes, "procedural_mesh", lambda synset, rng: drawn.append(synset) or original(synset, rng))
    for index in range(150):
        shapes.pretraining_cloud(0, index, 16)
    assert set(drawn) == set(shapes.TRAIN_SYNSETS) and len(drawn) == 150
