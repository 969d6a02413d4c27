"""predict.py: what it prints and saves for one object, and what it says of input that cannot be meant so."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import fails, write_box
from scipy.spatial.transform import Rotation

import predict
from data import load_dataset, read_cloud
from files.checkpoints import load_run
from hand.described import BENCHMARK

SIZE = np.array([0.1, 0.12, 0.15])
ABOVE = np.array([0.0, -0.1, 0.2, 0, 1, 0, 0])  # palm down, fingers over the box
TURN = Rotation.from_euler("x", -90, degrees=True)  # z up -> y up


@pytest.fixture(scope="module")
def folder(named_run, tmp_path_factory):
    """A run with the joints of the hand that is modelled, `run`, its `root`, and a box, box.obj."""
    folder = shutil.copytree(named_run.parent, tmp_path_factory.mktemp("predict") / "named")
    write_box(folder / "box.obj", SIZE)
    return folder


def words(folder, *flags, pose=ABOVE, mesh="box.obj"):
    return [str(word) for word in (folder / "run", folder / mesh, "--pose", *pose, "--threads", 1, *flags)]


def joints_of(result):
    """(K, J) rad of the first pose."""
    return np.array([hypothesis["joints"] for hypothesis in result["predictions"][0]["hypotheses"]])


def test_the_table_and_the_json_are_the_models(folder, tmp_path, capsys):
    found = predict.main(words(folder, "--json", tmp_path / "out.json"))
    told = capsys.readouterr()
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == found
    assert f"saved {tmp_path}/out.json" in told.out and told.err == ""
    hypotheses = found["predictions"][0]["hypotheses"]
    assert found["predictions"][0]["pose"] == ABOVE.tolist() and found["joint_names"] == list(BENCHMARK.joint_names)
    shares = [hypothesis["probability"] for hypothesis in hypotheses]
    assert sum(shares) == pytest.approx(1, abs=1e-5) and shares == sorted(shares, reverse=True)
    table = dict(line.split(maxsplit=1) for line in told.out.splitlines()[1:14])
    assert "degrees" in told.out and list(table) == ["probability", *BENCHMARK.joint_names]
    degrees = np.array([table[name].split() for name in BENCHMARK.joint_names], dtype=float).T
    np.testing.assert_allclose(degrees, np.degrees(joints_of(found)), atol=0.051)

    model = load_run(folder / "run")
    cloud = torch.from_numpy(read_cloud(folder / "box.obj", model.config.points))[None]
    with torch.no_grad():
        joints, logits = model(cloud, torch.tensor([0]), torch.from_numpy(ABOVE)[None].float())
    np.testing.assert_allclose(joints_of(found), joints[0, logits[0].argsort(descending=True)], atol=1e-5)


def test_json_alone_on_the_terminal_and_many_poses_of_a_cloud(folder, capsys):
    np.save(folder / "cloud.npy", read_cloud(folder / "box.obj", 64))
    np.save(folder / "poses.npy", np.stack([ABOVE, ABOVE * [1, 1, 1, -1, -1, -1, -1]]))  # one rotation
    predict.main(
        [str(folder / word) for word in ("run", "cloud.npy")] + ["--poses", f"{folder}/poses.npy", "--json", "-"]
    )
    first, second = json.loads(capsys.readouterr().out)["predictions"]
    # rows of one product may be added up in another order
    np.testing.assert_allclose(*([h["joints"] for h in found["hypotheses"]] for found in (first, second)), atol=1e-6)
    assert first["pose"] != second["pose"]


def test_up_is_turned_and_the_wrist_with_it(folder, capsys):
    """A y-up mesh and a pose in its frame give what the same things give when they stand on z = 0."""
    write_box(folder / "lying.obj", SIZE, TURN.apply)
    turned = np.r_[TURN.apply(ABOVE[:3]), (TURN * Rotation.from_quat(ABOVE[3:])).as_quat()]
    upright = predict.main(words(folder))
    as_lying = predict.main(words(folder, "--up", "y", pose=turned, mesh="lying.obj"))
    assert capsys.readouterr().err == "" and as_lying["predictions"][0]["pose"] == pytest.approx(turned.tolist())
    unturned = predict.main(words(folder, pose=turned, mesh="lying.obj"))  # another question
    assert "is y up? See --up" in capsys.readouterr().err
    error = np.abs(joints_of(upright) - joints_of(as_lying)).max()  # another file is another sample of the surface
    assert error < 0.1 * np.abs(joints_of(upright) - joints_of(unturned)).max()


def test_the_mesh_is_scaled_and_not_the_pose(folder, capsys):
    write_box(folder / "mm.obj", 1000 * SIZE)
    assert "Scale it by 0.001 with --mesh-scale" in fails(predict.main, words(folder, mesh="mm.obj"), capsys)
    found = predict.main(words(folder, "--mesh-scale", 0.001, mesh="mm.obj"))
    np.testing.assert_allclose(joints_of(found), joints_of(predict.main(words(folder))), atol=0.05)
    predict.main(words(folder, "--mesh-scale", 0.0001, mesh="mm.obj"))
    assert "only 0.015 m long" in capsys.readouterr().err


def test_right_input_is_not_warned_of_and_wrong_frames_are(folder, capsys):
    """Recorded grasps as they are, with w first, with a palm that looks the other way, and in the object's middle."""
    data = load_dataset(folder / "root", 64, quiet=True)
    poses = data.poses[data.scene == 0]
    mesh, count = next((folder / "root" / data.scenes[0]).glob("mesh.*")), f"in {len(poses)} of {len(poses)} poses"
    turned = (Rotation.from_quat(poses[:, 3:]) * Rotation.from_euler("y", 180, degrees=True)).as_quat()
    within = np.tile(np.float32([0, 0, 0.02]), (len(poses), 1))
    for given, warning in (
        (poses, ""),
        (poses[:, [0, 1, 2, 6, 3, 4, 5]], "read as w x y z the quaternions would fit"),
        (np.concatenate([poses[:, :3], turned], axis=1), f"the palm looks away from the object {count}"),
        (np.concatenate([within, poses[:, 3:]], axis=1), f"bounding box {count}"),
    ):
        np.save(folder / "poses.npy", given)
        found = predict.main([str(folder / "run"), str(mesh), "--poses", str(folder / "poses.npy")])
        said = capsys.readouterr().err
        assert found["warnings"] == [line.removeprefix("warning: ") for line in said.splitlines()]
        assert warning in said and bool(warning) == bool(said), said


def test_predictions_that_leave_the_range_of_training_are_warned_of(folder, capsys):
    shutil.copytree(folder / "run", folder / "narrow")
    content = torch.load(folder / "run" / "best.pt", weights_only=True)
    torch.save(content | {"joint_range": [[-9.0] * 12, [9.0] * 11 + [-8.0]]}, folder / "narrow" / "best.pt")
    predict.main([str(folder / "narrow"), *words(folder)[1:]])
    warning = f"over 5° outside their range in training in 1 of 1 poses ({BENCHMARK.joint_names[11]})"
    assert warning in capsys.readouterr().err
