"""Grasps in MuJoCo: whose fingertips they are, one that holds and three that do not; the command, also without it."""

import shutil

import numpy as np
import pytest
from conftest import fails
from scipy.spatial import Delaunay

from hand.described import BENCHMARK
from hand.kinematics import finger_spheres
from hand.solids import block, lathe
from lab import physics
from lab.in_mujoco import FLEXION, build_model, convex_pieces, depth, mujoco, try_grasp

needs_mujoco = pytest.mark.skipif(not mujoco, reason="pip install mujoco")
BOX = block(0.05, 0.05, 0.15, center=(0, 0, 0.075))
POSE = np.array([0.094, 0.076, 0.008, 0.683, -0.368, 0.263, 0.574])  # a grasp of it, as synthesize.py makes them
JOINTS = np.array([0.65, 0.41, 0.92, 0.35, 0.02, 1.15, 0.71, -0.07, 1.12, 0.93, -0.07, 1.25])


def test_a_box_is_one_piece_and_a_bowl_stays_hollow():
    ((corners, volume),) = convex_pieces(*BOX)
    assert np.ptp(corners, axis=0) == pytest.approx((0.05, 0.05, 0.15)) and volume == pytest.approx(0.000375, rel=0.1)
    pieces = convex_pieces(*lathe([(0, 0), (0.05, 0), (0.05, 0.06), (0.044, 0.06), (0.044, 0.006), (0, 0.006)]))
    angle, radius = np.linspace(0, 2 * np.pi, 20), np.array([[0.001], [0.03], [0.042], [0.047]])  # the last in the wall
    points = np.stack(np.broadcast_arrays(radius * np.cos(angle), radius * np.sin(angle), 0.03), 2)
    filled = np.any([Delaunay(corners).find_simplex(points) >= 0 for corners, _ in pieces], axis=0)
    assert not filled[:3].any() and filled[3].all()


@needs_mujoco
def test_its_hand_is_the_benchmarks_and_holds_but_not_when_it_is_open_inside_or_not_finite():
    model, joints = build_model(*BOX), np.random.default_rng(0).uniform(*BENCHMARK.limits.T)
    data, fingers = mujoco.MjData(model), finger_spheres(joints[None])[0].reshape(-1, 3)
    depth(model, data, joints)
    np.testing.assert_allclose(data.geom_xpos[-len(fingers) - 1 : -1], fingers, atol=1e-12)
    assert try_grasp(model, POSE, JOINTS) == (True, True)
    assert try_grasp(model, POSE, JOINTS - 0.4 * FLEXION) == (False, True)
    assert try_grasp(model, POSE * (0.3, 0.3, 1, 1, 1, 1, 1), JOINTS) == (False, False)
    assert not try_grasp(model, POSE, JOINTS * np.nan)[0]


@needs_mujoco
def test_the_command(named_run, tmp_path, capsys):
    root, small = named_run.parent / "root", ["--scenes", "2", "--grasps", "2", "--workers", "1", "--out", tmp_path]
    physics.main([str(word) for word in (root, named_run, *small)])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    names, numbers = zip(*(line.split(" | ")[:2] for line in table.splitlines()[2:-2]))
    assert names[5:] == ("| dropped", "| training mean", f"| {named_run}") and "".join(numbers) == "41111444"
    config = shutil.copytree(named_run, tmp_path / "other") / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"pack": "A"', '"pack": "B"'), encoding="utf-8")
    assert "give runs of one root and split" in fails(physics.main, [root, named_run, config.parent, *small], capsys)


def test_without_mujoco_the_command_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(physics, "mujoco", None)
    said = fails(physics.main, [tmp_path, tmp_path, "--out", tmp_path], capsys)
    assert said == "error: the physics engine is missing; run: pip install mujoco\n"
