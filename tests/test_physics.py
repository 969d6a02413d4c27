"""Grasps in MuJoCo: whose fingertips they are, one that holds and two that do not; the command, also without it."""

import shutil

import numpy as np
import pytest
from conftest import fails, read_csv

import train
from benchmark.solids import block
from hand.described import BENCHMARK
from hand.kinematics import finger_spheres
from lab import physics
from lab.physics import build_model, holds, mujoco

needs_mujoco = pytest.mark.skipif(not mujoco, reason="pip install mujoco")
BOX = block(0.05, 0.05, 0.15, center=(0, 0, 0.075))
POSE = np.array([0.094, 0.076, 0.008, 0.683, -0.368, 0.263, 0.574])  # a grasp of it, as synthesize.py makes them
JOINTS = np.array([0.65, 0.41, 0.92, 0.35, 0.02, 1.15, 0.71, -0.07, 1.12, 0.93, -0.07, 1.25])


@needs_mujoco
def test_its_hand_is_the_benchmarks_and_holds_but_not_when_it_is_open_or_inside():
    (vertices, faces), joints = BOX, np.random.default_rng(0).uniform(*BENCHMARK.limits.T)
    sheet = vertices[:3] + (0.5, 0, 0)
    model = build_model(np.concatenate((vertices, sheet)), np.concatenate((faces, [len(vertices) + np.arange(3)])))
    assert model.nmesh == 2 and model.body_mass[-1] == pytest.approx(200 * 0.05 * 0.05 * 0.15, rel=0.1)
    model, fingers = build_model(*BOX), finger_spheres(joints[None]).reshape(-1, 3)
    data = mujoco.MjData(model)
    data.qpos[model.actuator_trnid[:, 0]] = joints
    data.qpos[model.eq_obj1id] = model.eq_data[:, 1] * data.qpos[model.eq_obj2id]
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.geom_xpos[-len(fingers) - 1 : -1], fingers, atol=1e-12)
    assert holds(model, POSE, JOINTS)
    assert not holds(model, POSE, JOINTS - np.tile((0.4, 0, 0), 4))
    assert not holds(model, POSE * (0.3, 0.3, 1, 1, 1, 1, 1), JOINTS)


@needs_mujoco
def test_the_command(made_root, tmp_path, capsys):
    places = f"--data {made_root} --cache-dir {tmp_path} --runs {tmp_path} --name A"
    train.main(f"{places} --preset tiny --steps 2 --no-baseline --no-pictures --quiet --threads 1".split())
    physics.main([str(made_root), str(tmp_path / "A"), "--grasps", "8", "--out", str(tmp_path)])
    table = read_csv(tmp_path / "rows.csv")
    assert [row["number"] for row in table] == ["8", "8", "8", "2", "2", "2", "2"]
    assert float(table[0]["MuJoCo"]) > float(table[1]["MuJoCo"])
    config = shutil.copytree(tmp_path / "A", tmp_path / "B") / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"pack": "A"', '"pack": "B"'), encoding="utf-8")
    assert "name other runs" in fails(physics.main, [made_root, tmp_path / "A", tmp_path / "B"], capsys)


def test_without_mujoco_the_command_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(physics, "mujoco", None)
    said = fails(physics.main, [tmp_path, tmp_path, "--out", tmp_path], capsys)
    assert said == "error: the physics engine is missing; run: pip install mujoco\n"
