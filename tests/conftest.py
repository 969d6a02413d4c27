"""A small dataset that needs no generator, and the scripts' common flags for tests."""

import os
import signal

import numpy as np
import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with Ctrl-C ignored
torch.set_num_threads(1)  # tiny networks: a second thread only waits


GPU = torch.cuda.is_available()
DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture(autouse=True, scope="session")
def gpu_is_hidden():
    """Scripts take a GPU where there is one, but what the tests compare to the bit is the CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes of their own
        yield


@pytest.fixture
def gpu(monkeypatch):
    """The GPU, seen again; the test is skipped where there is none."""
    if not GPU:
        pytest.skip("no CUDA device here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if DEVICES is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", DEVICES)
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def denormals_as_usual():
    """The training scripts flush denormals for their whole process, and scipy's k-d tree then crashes in a later test."""
    torch.set_flush_denormal(False)


BOX_FACES = np.array(
    [[0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6], [0, 1, 4], [1, 5, 4], [2, 6, 3], [3, 6, 7], [0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5]]
)  # fmt: skip


def write_box(path, size):
    """An .obj box of `size` (3,) m standing on z = 0."""
    corners = np.array([[x, y, z] for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)]) * size
    lines = ["v %.6f %.6f %.6f" % tuple(v) for v in corners] + ["f %d %d %d" % tuple(f + 1) for f in BOX_FACES]
    path.write_text("\n".join(lines) + "\n")


def random_grasps(rng, count, size, num_joints=12):
    """Grasps (count, 7 + J) whose joints depend on the box's size and the pose, with a little noise."""
    position = rng.normal(0, 0.05, (count, 3))
    quaternion = rng.normal(size=(count, 4))
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    joints = np.concatenate([np.tile(size * 5, (count, 4)), position[:, :1] * np.arange(12)], axis=1)[:, :num_joints]
    return np.concatenate([position, quaternion, joints + rng.normal(0, 0.02, joints.shape)], axis=1)


def write_root(root, objects, scenes=1, grasps=12, num_joints=12, seed=0):
    """A dataset of boxes: objects maps synset -> number of objects."""
    rng = np.random.default_rng(seed)
    for synset, count in objects.items():
        for i in range(count):
            for j in range(scenes):
                folder = root / synset / f"object_{i:03d}" / f"scene_{j}"
                folder.mkdir(parents=True)
                size = rng.uniform(0.05, 0.2, 3)
                write_box(folder / "mesh.obj", size)
                scores = np.where(np.arange(grasps) % 4 == 3, 0.5, 2.0)  # a quarter is under the minimum
                np.savez(folder / "recording.npz", grasps=random_grasps(rng, grasps, size, num_joints), scores=scores)
    return root


OBJECTS = {"03797390": 8, "02876657": 5, "02946921": 3, "03948459": 2}  # mug, bottle, can, pistol (held out)


@pytest.fixture(scope="session")
def box_root(tmp_path_factory):
    """A shared dataset of 18 boxes in 4 synsets, one of them held out; tests must not write to it."""
    return write_root(tmp_path_factory.mktemp("boxes") / "root", OBJECTS)


def fails(main, argv, capsys):
    """Run a command that must end as a user error: exit code 2, one line on stderr; -> that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err
