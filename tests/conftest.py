"""What the tests share: the GPU hidden or seen, a small dataset that needs no generator, commands that must fail."""

import contextlib
import csv
import gc
import io
import itertools
import json
import os
import signal
import threading
import time

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.optim.optimizer import register_optimizer_step_post_hook


signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with Ctrl-C ignored
torch.set_num_threads(1)  # tiny networks: a second thread only waits
gc.freeze()  # what the libraries hold stays: no collection need look at it again
gc.set_threshold(100_000, 50, 50)  # and few others pay


needs_posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such pipes, users, signals and names")

GPU = torch.cuda.is_available()
if GPU:
    torch.cuda.device_count()  # kept from now on; some versions of torch would count the hidden ones: none
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
def process_as_usual():
    """The training scripts flush denormals in their whole process; scipy's k-d tree would crash in a later test.

    And they set what products are computed in.
    """
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")


# ---------------------------------------------------------------- a dataset of boxes


BOX_FACES = np.array([
    [0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6], [0, 1, 4], [1, 5, 4],
    [2, 6, 3], [3, 6, 7], [0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5],
])  # fmt: skip


def corners(size=0.1):
    """The corners (8, 3) of a box that stands on z = 0; size: m, or (3,)."""
    return np.array([[x, y, z] for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)]) * size


def write_box(path, size, turn=lambda vertices: vertices):
    """An .obj box of `size` (3,) m standing on z = 0, or what `turn` makes of its corners; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["v %.6f %.6f %.6f" % tuple(v) for v in turn(corners(size))]
    lines += ["f %d %d %d" % tuple(f + 1) for f in BOX_FACES]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def random_grasps(rng, count, size, num_joints=12):
    """Grasps (count, 7 + J) of a box of `size` (3,) m: the palm looks at its middle from outside the box.

    The joints depend on the box's size and on where the wrist is, with a little noise.
    """
    away = rng.normal(size=(count, 3))  # from the middle of the box
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    offset = (np.linalg.norm(size) / 2 + rng.uniform(0.03, 0.1, (count, 1))) * away
    aside = np.cross(away, rng.normal(size=(count, 3)))
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    axes = np.stack([aside, np.cross(-away, aside), -away], axis=2)  # columns x, y, z of the hand: z approaches
    quaternion = Rotation.from_matrix(axes).as_quat()
    joints = np.concatenate([np.tile(size * 5, (count, 4)), offset[:, :1] * np.arange(12)], axis=1)[:, :num_joints]
    position = offset + (0, 0, size[2] / 2)
    return np.concatenate([position, quaternion, joints + rng.normal(0, 0.02, joints.shape)], axis=1)


def write_root(root, objects, scenes=1, grasps=12, num_joints=12, seed=0, names=None):
    """A dataset of boxes: objects maps synset -> number of objects; names: of the joints, where recordings have any."""
    rng, named = np.random.default_rng(seed), {} if names is None else {"joint_names": np.array(names)}
    for synset, count in objects.items():
        for i in range(count):
            for j in range(scenes):
                folder = root / synset / f"object_{i:03d}" / f"scene_{j}"
                size = rng.uniform(0.05, 0.2, 3)
                write_box(folder / "mesh.obj", size)
                scores = np.where(np.arange(grasps) % 4 == 3, 0.5, 2.0)  # a quarter is under the minimum
                recorded = random_grasps(rng, grasps, size, num_joints)
                np.savez(folder / "recording.npz", grasps=recorded, scores=scores, **named)
    return root


def claim(root, version=2, **settings):
    """Let a root say that it was generated, by these settings."""
    from files.writing import write_json

    root.mkdir(parents=True, exist_ok=True)
    write_json(root / "dataset.json", {"version": version, "complete": True, "settings": settings})
    return root


OBJECTS = {"03797390": 8, "02876657": 5, "02946921": 3, "03948459": 2}  # mug, bottle, can, pistol (held out)


def training(root, runs, *more):
    """train.py's arguments for a tiny run without baseline and pictures; what `more` says again counts."""
    flags = "--preset tiny --no-baseline --no-pictures --quiet --threads 1"
    return ["--data", str(root), "--runs", str(runs), *flags.split(), *map(str, more)]


def files_in(folder):
    """Relative path -> content of all files in a folder but hidden ones."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def read_csv(path):
    """The rows of a .csv, name -> text each."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


TIMES = dict.fromkeys(("seconds", "clouds_per_s", "command", "curve"))


def outcome(*paths):
    """What equal runs have in common: curves (.csv) and results (.json) but for times, the weights of checkpoints."""
    from files.checkpoints import read_checkpoint

    found = []
    for path in paths:
        if path.suffix == ".pt":
            content = read_checkpoint(path)
            weights = content[max(content.keys() & {"encoder", "jepa", "model"})]
            found.append({name: value.tolist() for name, value in weights.items()})
            continue
        rows = read_csv(path) if path.suffix == ".csv" else [json.loads(path.read_text(encoding="utf-8"))]
        found.append([row | TIMES for row in rows])
    return found


@pytest.fixture(scope="session")
def box_root(tmp_path_factory):
    """A shared dataset of 18 boxes in 4 synsets, one of them held out; tests must not write to it."""
    return write_root(tmp_path_factory.mktemp("boxes") / "root", OBJECTS)


@pytest.fixture(scope="session")
def three_boxes(tmp_path_factory):
    """A root of three boxes in one synset, and what it loads to with 32 points; copy it to change it."""
    from data import load_dataset

    root = write_root(tmp_path_factory.mktemp("boxes") / "root", {"03797390": 3}, grasps=6)
    return root, load_dataset(root, 32, quiet=True, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_run(box_root, tmp_path_factory):
    """A folder with a finished run of two steps, `run`, an encoder with random weights and a box, box.obj."""
    import train
    from samples import save_encoder

    folder = tmp_path_factory.mktemp("tiny")
    train.main(training(box_root, folder, "--name", "run", "--steps", 2, "--keep-last"))
    save_encoder(folder / "encoder.pt")
    write_box(folder / "box.obj", (0.1, 0.1, 0.1))
    return folder


@pytest.fixture(scope="session")
def boxes(box_root):
    """The shared dataset of boxes with 64 points, and its split; tests must not write to their arrays."""
    from data import load_dataset
    from splits import make_split

    loaded = load_dataset(box_root, 64, quiet=True)
    return loaded, make_split(loaded)


@pytest.fixture(scope="session")
def named_run(tmp_path_factory):
    """A run of 12 steps on boxes whose joints have the names of the hand that is modelled; beside it its `root`."""
    import train
    from hand.described import BENCHMARK

    folder = tmp_path_factory.mktemp("named")
    root = write_root(folder / "root", OBJECTS, names=BENCHMARK.joint_names)
    train.main(training(root, folder, "--name", "run", "--steps", 12, "--objects-per-batch", 4))
    return folder / "run"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A shared folder of 24 random .npy clouds and two meshes to pretrain on; tests must not write to it."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for i in range(24):
        np.save(folder / f"{i:02d}.npy", (rng.normal(size=(80, 3)) * rng.uniform(0.02, 0.1, 3)).astype(np.float32))
    for i in range(2):
        write_box(folder / "meshes" / f"box {i}.obj", (0.1, 0.1, 0.1 + i / 10))
    return folder


MADE = "--objects 4 --grasps 8 --scenes 2"


@pytest.fixture(scope="session")
def made_root(tmp_path_factory):
    """A shared root of 4 objects of the generator's, by the flags MADE; tests must not write to it."""
    import synthesize

    root = tmp_path_factory.mktemp("made") / "root"
    synthesize.main(f"--out {root} {MADE} --workers 1 --quiet".split())
    return root


# ---------------------------------------------------------------- what must go wrong


def stopped(main, argv):
    """Run a command that must stop; -> its exit code, what it said on stderr."""
    with pytest.raises(SystemExit) as stop, contextlib.redirect_stderr(io.StringIO()) as err:
        main([str(a) for a in argv])
    return stop.value.code, err.getvalue()


def fails(main, argv, capsys):
    """Run a command that must end as a user error: exit code 2, one line on stderr; -> that line."""
    code, err = stopped(main, argv)
    capsys.readouterr()
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def after_step(step, action):
    """Within this, do `action()` once, after the `step`-th step from here on that any optimiser takes."""
    count = itertools.count(1)
    return register_optimizer_step_post_hook(lambda *_: action() if next(count) == step else None)


@contextlib.contextmanager
def once_there(folder, pattern, action):
    """Do `action()`, in a thread, as soon as a file of that pattern lies in the folder, or after a minute."""

    def wait():
        deadline = time.monotonic() + 60
        while not any(folder.rglob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.002)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def interrupted(main, argv, step):
    """Run a command that trains, with Ctrl-C in its `step`-th step: it must say what to do now; -> what it said."""
    with after_step(step, lambda: signal.raise_signal(signal.SIGINT)):
        code, err = stopped(main, argv)
    assert code == 130 and "Traceback" not in err, err
    return err


class Planted:
    """Unpickling this runs code: it makes the file that the environment names."""

    def __reduce__(self):
        return exec, ("import os; open(os.environ['PLANTED'], 'w').close()",)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Where `Planted` makes its file; whoever uses this must not have run it in the end."""
    path = tmp_path / "planted"
    monkeypatch.setenv("PLANTED", str(path))
    yield path
    assert not path.exists()


class Problems(list):
    """What went wrong in many cases, so that one test reports them all."""

    @contextlib.contextmanager
    def of(self, name):
        try:
            yield
        except (Exception, pytest.fail.Exception) as problem:
            self.append(f"{name}: {type(problem).__name__}: {str(problem)[:400]}")


@pytest.fixture
def problems():
    """A `Problems` that must be empty when the test ends."""
    found = Problems()
    yield found
    assert not found, f"{len(found)} cases:\n" + "\n".join(found)
