"""Bad input made by rule: each case must end in one clear line and leave no trace; and input that is fine as it is."""

import contextlib
import csv
import json
import os
import pickle
import re
import shutil
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from conftest import BOX_FACES, fails, random_grasps, write_box, write_root

import data
import evaluate
import model
import pretrain_jepa
import splits
import synthesize
import train

SCENE = "03797390/object_001/scene_0"  # where the bad file goes; its neighbours are good
# a message must say what to do, not only what is wrong
ADVICE = re.compile(r"; |must |needs |see --help")


class Planted:
    """Unpickling this runs code: it makes the file that the environment names."""

    def __reduce__(self):
        return exec, ("import os; open(os.environ['PLANTED'], 'w').close()",)


def listing(*folders):
    """Every file and link under the folders with its size: what must not change."""
    paths = sorted(path for folder in folders for path in folder.rglob("*"))
    return [(str(path), path.lstat().st_size if not path.is_dir() else None) for path in paths]


def same(a, b):
    """Whether two loads are equal to the bit."""
    arrays = ("clouds", "poses", "joints", "scores", "scene", "row")
    return a.fingerprint == b.fingerprint and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)


def rejected(main, argv, names, capsys, *folders):
    """The command fails with one line that holds `names` and an advice, and writes nothing in `folders`."""
    before = listing(*folders)
    with warnings.catch_warnings(record=True, action="always") as warned:  # outside of pytest they are lines on stderr
        error = fails(main, argv, capsys)
    shown = [str(w.message) for w in warned if not issubclass(w.category, (ResourceWarning, DeprecationWarning))]
    assert not shown, shown
    for name in names:
        assert str(name) in error, f"{name!r} is not named in: {error}"
    assert "Traceback" not in error and ADVICE.search(error), error
    assert listing(*folders) == before
    return error


class Problems(list):
    """What went wrong in many cases, so that one test reports them all."""

    @contextlib.contextmanager
    def of(self, name):
        try:
            yield
        except (Exception, pytest.fail.Exception) as problem:
            self.append(f"{name}: {type(problem).__name__}: {str(problem)[:400]}")

    def none(self):
        assert not self, f"{len(self)} cases:\n" + "\n".join(self)


@pytest.fixture
def problems():
    found = Problems()
    yield found
    found.none()


# ---------------------------------------------------------------- files of a dataset


def corners(size=0.1):
    return np.array([[x, y, z] for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)]) * size


def mesh_bytes(extension, vertices, faces):
    """The bytes of a mesh in one of the formats, written without any check."""
    if extension == ".obj":
        return ("".join("v %r %r %r\n" % tuple(map(float, v)) for v in vertices) + "".join("f %d %d %d\n" % tuple(f + 1) for f in faces)).encode()
    if extension == ".off":
        head = f"OFF\n{len(vertices)} {len(faces)} 0\n"
        return (head + "".join("%r %r %r\n" % tuple(map(float, v)) for v in vertices) + "".join("3 %d %d %d\n" % tuple(f) for f in faces)).encode()
    if extension == ".ply":
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\nproperty double x\nproperty double y\nproperty double z\n"
        head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
        body = np.asarray(vertices, dtype="<f8").tobytes()
        return head.encode() + body + b"".join(struct.pack("<B3i", 3, *map(int, f)) for f in faces)
    if extension == ".stl":
        body = b"".join(struct.pack("<12fH", 0, 0, 1, *np.clip(vertices[f], -3e38, 3e38).ravel(), 0) for f in faces)
        return bytes(80) + struct.pack("<I", len(faces)) + body
    return glb_bytes(vertices, faces)


def glb_bytes(vertices, faces, uri=None):
    """A minimal .glb; with `uri`, its numbers are said to lie in that file."""
    points, index = np.asarray(vertices, "<f4").tobytes(), np.asarray(faces, "<u4").tobytes()
    content = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(vertices), "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 3 * len(faces), "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": len(points)}, {"buffer": 0, "byteOffset": len(points), "byteLength": len(index)}],
        "buffers": [{"byteLength": len(points) + len(index)} | ({"uri": uri} if uri else {})],
    }  # fmt: skip
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    if not uri:
        chunks += struct.pack("<II", len(points + index), 0x004E4942) + points + index
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


EXTENSIONS = (".obj", ".stl", ".ply", ".off", ".glb")


def mesh_cases():
    """(id, extension, bytes) of meshes that must be refused."""
    rng = np.random.default_rng(1)
    box, faces = corners(), BOX_FACES
    for extension in EXTENSIONS:
        def write(v, f=faces, extension=extension):
            with np.errstate(over="ignore"):
                return mesh_bytes(extension, v, f)

        good = write(box)
        yield "empty", extension, b""
        yield "only zero bytes", extension, bytes(len(good))
        yield "no faces", extension, write(box, faces[:0])
        yield "nothing but a header", extension, write(box[:0], faces[:0])
        yield "zero area: one point", extension, write(box * 0)
        yield "zero area: a line", extension, write(box * (1, 0, 0))
        yield "zero area: repeated corners", extension, write(box, faces[:, [0, 0, 0]])
        for scale in 10.0 ** rng.uniform(2, 30, 3):
            yield f"scaled by {scale:.1e}", extension, write(box * scale)
        for _ in range(3):
            vertex, axis, value = rng.integers(8), rng.integers(3), rng.choice([np.nan, np.inf, -np.inf])
            bad = box.copy()
            bad[vertex, axis] = value
            if extension != ".stl" or np.isnan(value):
                yield f"vertex {vertex} holds {value}", extension, write(bad)
        if extension not in (".stl",):
            for index in (8, int(rng.integers(9, 2**31 - 2))):
                bad = faces.copy()
                bad[rng.integers(12), rng.integers(3)] = index
                yield f"a face names vertex {index} of 8", extension, write(box, bad)
        for _ in range(3):
            yield "noise", extension, rng.bytes(int(rng.integers(1, 400)))
        if extension in (".stl", ".glb", ".ply"):
            for share in rng.uniform(0.1, 0.95, 3):
                yield f"cut short at {share:.0%}", extension, good[: int(share * len(good))]
        other = EXTENSIONS[(EXTENSIONS.index(extension) + 1) % 5]
        yield f"holds {other}", extension, mesh_bytes(other, box, faces)
        yield "a pickle", extension, pickle.dumps(Planted())
    yield "vertices only", ".obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"
    yield "words", ".obj", b"f a b c\n"
    yield "an index of zero", ".obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n"
    yield "lines, not faces", ".obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nl 1 2\n"
    yield "counts that lie", ".off", b"OFF\n99999999 1 0\n0 0 0\n3 0 0 0\n"
    yield "a length that lies", ".stl", bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50)


def recording_cases():
    """(id, write(path), names in the message) of recordings that must be refused."""
    rng = np.random.default_rng(2)
    good, scores = random_grasps(np.random.default_rng(1), 6, np.full(3, 0.1)), np.full(6, 2.0)

    def changed(column, value, rows=None):
        row = int(rng.integers(6)) if rows is None else rows
        bad = good.copy()
        bad[row, column] = value
        return row, bad

    def arrays(**replaced):
        content = {k: v for k, v in ({"grasps": good, "scores": scores} | replaced).items() if v is not None}
        return lambda path: np.savez(path, **content)

    for key in ("grasps", "scores"):
        yield f"no {key}", arrays(**{key: None}), (key,)
        for shape in ((), (0,), (6, 19, 1), (2, 3, 19), (5, 19), (19, 6), (6,), (12,), (6, 7), (6, 2), (1, 6)):
            if shape != ((6,) if key == "scores" else (6, 19)):
                yield f"{key} of shape {shape}", arrays(**{key: np.zeros(shape)}), (key,)
        for kind in (object, bool, complex, "U5", "S5", "datetime64[s]", "timedelta64[s]", [("a", float)]):
            value = {"grasps": good, "scores": scores}[key]
            value = np.zeros(value.shape, kind) if kind not in (object, complex, bool) else value.astype(kind)
            yield f"{key} of type {kind}", arrays(**{key: value}), ()
    for value in (np.nan, np.inf, -np.inf, 1e39, -1e300):
        for _ in range(3):
            column = int(rng.integers(19))
            row, bad = changed(column, value)
            yield f"{value} in row {row}, column {column}", arrays(grasps=bad), (f"row {row}",)
        row = int(rng.integers(6))
        yield f"score {value} in row {row}", arrays(scores=np.where(np.arange(6) == row, value, scores)), (f"row {row}", "scores")
    for norm in (0, 1e-9, 0.5, 0.98, 1.02, 2, 180 / np.pi, 1e4):
        row = int(rng.integers(6))
        yield f"quaternion norm {norm}", arrays(grasps=changed(slice(3, 7), good[row, 3:7] * norm, row)[1]), (f"row {row}", "quaternion")
    for far in (3, -2.5, 120, 1e6):
        row, bad = changed(int(rng.integers(3)), far)
        yield f"a wrist at {far}", arrays(grasps=bad), (f"row {row}", "metres")
    for angle in (13, -30, 90, 1e5):
        row, bad = changed(int(rng.integers(7, 19)), angle)
        yield f"a joint of {angle}", arrays(grasps=bad), (f"row {row}", "radians")
    for joints in (1, 9, 16, 22):
        yield f"{joints} joints, its neighbours 12", arrays(grasps=np.resize(good[:, 7:], (6, 7 + joints)) * 0 + [*good[0, :7], *[0] * joints]), ("joints",)
    for names in (["a"], [["a"] * 12], [b"a"] * 12, list(range(12)), [f"j{i}" for i in range(13)], np.array(["a", None] * 6, object)):
        yield f"joint names {names!r:.20}", arrays(joint_names=np.array(names)), ()
    yield "a long float beyond double", arrays(scores=scores.astype(np.longdouble) * np.longdouble("1e4000")), ("row 0",)
    yield "planted pickle", arrays(scores=np.array([Planted()] * 6, dtype=object)), ("pickled",)
    yield "empty", lambda path: path.write_bytes(b""), ()
    yield "text", lambda path: path.write_text("x y z\n"), ()
    yield "a bare pickle", lambda path: path.write_bytes(pickle.dumps(Planted())), ()
    yield "a torch checkpoint", lambda path: torch.save({"grasps": torch.zeros(3)}, path), ()
    yield "a zip of text", lambda path: zipfile.ZipFile(path, "w").writestr("grasps.npy", "no array"), ()
    yield "an empty zip", lambda path: zipfile.ZipFile(path, "w").close(), ("grasps",)

    def renamed_npy(path):
        with open(path, "wb") as file:
            np.save(file, good)

    def damaged(change):
        def write(path):
            np.savez_compressed(path, grasps=good, scores=scores)
            path.write_bytes(change(bytearray(path.read_bytes())))

        return write

    def flipped(at):
        def change(content):
            content[at : at + 8] = bytes(255 - b for b in content[at : at + 8])
            return content

        return change

    yield "a renamed .npy", renamed_npy, ()
    for share in rng.uniform(0.02, 0.98, 12):
        yield f"cut short at {share:.0%}", damaged(lambda content, share=share: content[: int(share * len(content))]), ()
    for at in rng.integers(60, 900, 6):
        yield f"bytes {at}-{at + 8} flipped", damaged(flipped(int(at))), ()
    yield "a claim of 10^15 rows", lambda path: claims_too_much(path), ()


def claims_too_much(path):
    """An archive whose header promises an array that no memory holds."""
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 19), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("grasps.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)


def file_cases():
    """(id, change(scene folder), names) of files that are not there or not files."""

    def replaced(name, put):
        def change(scene):
            (scene / name).unlink()
            put(scene / name)

        return change

    def outward(path):
        outside = path.parents[4] / f"outside-{path.name}"
        outside.write_bytes((path.parents[2] / "object_000" / "scene_0" / path.name).read_bytes())
        path.symlink_to(outside)

    for name in ("mesh.obj", "recording.npz"):
        yield f"{name} missing", replaced(name, lambda path: None), ()
        yield f"{name} is a folder", replaced(name, lambda path: path.mkdir()), (name,)
        yield f"{name} is a dangling link", replaced(name, lambda path: path.symlink_to("nowhere")), (name,)
        yield f"{name} is a link to itself", replaced(name, lambda path: path.symlink_to(path.name)), (name,)
        yield f"{name} is a link out of the root", replaced(name, outward), (name,)
        yield f"{name} is a pipe", replaced(name, lambda path: os.mkfifo(path)), (name,)
        yield f"{name} may not be read", lambda scene, name=name: (scene / name).chmod(0), (name,)
    for wrong in ("mesh.txt", "mesh.OBJ.bak", "model.obj", "mesh"):
        yield f"mesh.obj is called {wrong}", lambda scene, wrong=wrong: (scene / "mesh.obj").rename(scene / wrong), ("mesh.obj",)
    for wrong in ("recording.npy", "grasps.npz", "recording.npz.part"):
        yield f"recording.npz is called {wrong}", lambda scene, wrong=wrong: (scene / "recording.npz").rename(scene / wrong), ("recording.npz",)


def scene_cases():
    """All bad scenes: (id, change(scene folder), names in the message)."""
    for name, extension, content in mesh_cases():
        def change(scene, extension=extension, content=content):
            (scene / "mesh.obj").unlink()
            (scene / f"mesh{extension}").write_bytes(content)

        yield f"mesh{extension}: {name}", change, (f"mesh{extension}",)
    for name, write, names in recording_cases():
        yield f"recording: {name}", lambda scene, write=write: write(scene / "recording.npz"), ("recording.npz", *names)
    yield from file_cases()


SCENE_CASES = list(scene_cases())


@pytest.fixture(scope="module")
def good_root(tmp_path_factory):
    """Three boxes and what they load to."""
    root = write_root(tmp_path_factory.mktemp("good") / "root", {"03797390": 3}, grasps=6)
    return root, data.load_dataset(root, 32, quiet=True, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("cached", [False, True], ids=["first-read", "after-a-cache"])
@pytest.mark.parametrize("part", range(8))
def test_bad_scenes(good_root, tmp_path, capsys, monkeypatch, part, cached, problems):
    """One bad scene among good ones: named, nothing written; mended, the root is as if nothing had been."""
    template, expected = good_root
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    for i, (name, change, names) in list(enumerate(SCENE_CASES))[part::8]:
        if (i + i // 8) % 2 == cached:  # each case in one of the two situations
            continue
        if "may not be read" in name and os.geteuid() == 0:
            continue
        root = tmp_path / str(i)
        shutil.copytree(template, root)
        if cached:
            data.load_dataset(root, 32, quiet=True)
        change(root / SCENE)
        with problems.of(f"case {name!r}"):
            error = rejected(data.main, [root, "--points", 32], (SCENE, *names), capsys, root)
            kept = data.load_dataset(root, 32, quiet=True, skip_bad=True)
            assert len(kept.scenes) == 2 and [scene for scene, _ in kept.excluded] == [SCENE], error
        shutil.rmtree(root / SCENE)
        shutil.copytree(template / SCENE, root / SCENE)
        assert same(data.load_dataset(root, 32, quiet=True), expected), name
        shutil.rmtree(root)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["mesh.obj", "recording.npz", "scene_0"])
def test_no_permission(good_root, tmp_path, capsys, monkeypatch, name):
    """The same for the superuser, who may read everything: the system call itself refuses."""
    root = shutil.copytree(good_root[0], tmp_path / "root")
    read, scan = data.Path.read_bytes, os.scandir

    def refuse(path, original):
        if str(path).endswith(f"object_001/scene_0/{name}") or str(path).endswith(f"object_001/{name}"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    before = listing(root)
    with monkeypatch.context() as patch:
        patch.setattr(data.Path, "read_bytes", lambda path: refuse(path, read))
        patch.setattr(os, "scandir", lambda path: refuse(path, scan))
        error = fails(data.main, [root, "--points", 32], capsys)
    assert f"{name}: " in error and SCENE in error and "Permission denied" in error and ADVICE.search(error)
    assert listing(root) == before


# ---------------------------------------------------------------- roots


def root_cases(tmp_path):
    """(id, root, more flags, scripts that must refuse it, names)."""
    everyone = ("data", "splits", "train")
    yield "missing", tmp_path / "missing", (), everyone, ("missing",)
    (tmp_path / "file").write_text("")
    yield "a file", tmp_path / "file", (), everyone, ("file",)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    yield "a dangling link", tmp_path / "dangling", (), everyone, ("dangling",)
    (tmp_path / "empty").mkdir()
    yield "empty", tmp_path / "empty", (), everyone, ("empty",)
    (tmp_path / "hidden" / ".git" / "a" / "b").mkdir(parents=True)
    yield "hidden folders only", tmp_path / "hidden", (), everyone, ("hidden",)
    for depth in (1, 2, 3):
        folder = tmp_path / f"deep{depth}"
        folder.joinpath(*"abcd"[:depth]).mkdir(parents=True)
        yield f"empty folders {depth} deep", folder, (), everyone, (folder.name,)
    boxes = write_root(tmp_path / "boxes", {"03797390": 4})
    for depth, folder in enumerate((boxes / "03797390", boxes / "03797390" / "object_000", tmp_path)):
        yield f"a folder too low or too high: {folder.name}", folder, (), everyone, (folder.name,)
    for score in ("2.1", "99", "1e30"):
        yield f"no grasp above {score}", boxes, ("--min-score", score), everyone, ("--min-score",)
    for i, objects in enumerate(({"a": 1}, {"a": 2}, {"a": 1, "b": 1}, {"03948459": 4}, {"03948459": 4, "a": 2}, {"02954340": 3, "b": 1})):
        few = write_root(tmp_path / f"few{i}", objects)
        yield f"too few objects {objects}", few, (), ("splits", "train"), ("too few", few.name)
    twins = write_root(tmp_path / "twins", {"a": 3})
    for obj in ("object_001", "object_002"):
        shutil.copy(twins / "a" / "object_000" / "scene_0" / "mesh.obj", twins / "a" / obj / "scene_0")
    yield "one mesh three times", twins, (), ("splits", "train"), ("too few",)
    yield "unknown held-out synset", boxes, ("--held-out", "12345678"), ("splits", "train"), ("12345678",)
    yield "everything held out", boxes, ("--held-out", "03797390"), ("splits", "train"), ("too few",)
    mixed = write_root(tmp_path / "mixed", {"a": 3})
    write_root(mixed, {"b": 2}, num_joints=9)
    yield "two hands", mixed, (), everyone, ("b/object_000",)
    other = write_root(tmp_path / "other", {"a": 1})
    for name, content in (("version", {"version": 99}), ("list", [1]), ("empty", {})):
        yield f"dataset.json: {name}", other, (json.dumps(content),), ("splits", "train"), ("other",)
    yield "dataset.json cut short", other, ('{"version": 1, "sett',), ("splits", "train"), ("dataset.json",)


def test_bad_roots(tmp_path, capsys, problems):
    folder, runs = tmp_path / "roots", tmp_path / "runs"
    folder.mkdir()
    runs.mkdir()
    count = 0
    for name, root, more, scripts, names in root_cases(folder):
        if name.startswith("dataset.json"):
            (root / "dataset.json").write_text(more[0])
            more = ()
        for script in scripts:
            count += 1
            argv = {
                "data": [root, "--points", 64], "splits": ["--data", root, "--json", runs / "split.json"],
                "train": ["--data", root, "--runs", runs, "--preset", "tiny", "--quiet", "--steps", 2],
            }[script]  # fmt: skip
            with problems.of(f"root {name!r} for {script}"):
                # a good root may get its cache while the split fails
                rejected({"data": data, "splits": splits, "train": train}[script].main, [*argv, *more], names, capsys, runs)
                assert "too few" in names or not (root / ".cache").exists() or more or root.name == "other"
    assert count > 50


# ---------------------------------------------------------------- flags


def flag_cases():
    """(script, flags, what the message names)."""
    rng = np.random.default_rng(3)
    for script in ("train", "splits"):
        for value in ("0", "-0.1", "1.0001", "2", "nan", "inf", "-inf", "", "10%", "a", "1e400", "0,1"):
            yield script, (f"--budget={value}",), "--budget"
        for value in ("C", "a", "AB", ""):
            yield script, (f"--pack={value}",), "--pack"
        for value in ("nan", "inf", "x", ""):
            yield script, (f"--min-score={value}",), "--min-score"
        yield script, ("--budge", "0.1"), "--budge"
        yield script, ("--budget",), "--budget"
        yield script, ("--seed", "x"), "--seed"
    whole = ("0", "-1", "1.5", "x", "nan", "inf", "")
    for flag in ("k", "points", "patches", "patch-size", "steps", "objects-per-batch", "grasps-per-object", "eval-every", "save-every", "threads"):
        for value in rng.choice(whole, 4, replace=False):
            yield "train", (f"--{flag}={value}",), f"--{flag}"
    for flag in ("radius", "alpha", "lr-backbone", "lr-head", "weight-decay", "warmup"):
        for value in rng.choice(("-1", "-1e-9", "nan", "inf", "x", ""), 3, replace=False):
            yield "train", (f"--{flag}={value}",), f"--{flag}"
    for flag in ("init", "preset", "pool", "group", "loss", "device", "precision"):
        yield "train", (f"--{flag}=other",), f"--{flag}"
    for flags, name in (
        ("--patches 65", "patches"), ("--patch-size 65", "patch_size"), ("--points 7", "points"), ("--group ball", "radius"),
        ("--jepa-ckpt x.pt", "--jepa-ckpt"), ("--init jepa", "--jepa-ckpt"), ("--init jepa --jepa-ckpt nowhere.pt", "nowhere.pt"),
        ("--warmup 1.5", "--warmup"), ("--loss hedged --k 1", "hedged"), ("--unknown", "--unknown"), ("extra", "extra"), ("--from nowhere.json", "nowhere.json"),
        ("--seed -1", "--seed"),
    ):  # fmt: skip
        yield "train", tuple(flags.split()), name
    if not torch.cuda.is_available():
        for script in ("train", "pretrain"):
            yield script, ("--device", "cuda"), "--device"
    for flag in ("steps", "batch", "points", "patches", "patch-size", "save-every", "log-every", "num-clouds", "threads"):
        for value in rng.choice(whole, 3, replace=False):
            yield "pretrain", (f"--{flag}={value}",), f"--{flag}"
    for flags, name in (
        ("--batch 1", "--batch"), ("--batch 99", "--batch"), ("--lr 0", "--lr"), ("--lr nan", "--lr"), ("--tau 1.1", "--tau"),
        ("--tau -0.1", "--tau"), ("--up x", "--up"), ("--normalize none", "--normalize"), ("--patches 65", "patches"),
        ("--clouds nowhere", "nowhere"), ("--synsets 03948459", "--synsets"), ("--preset huge", "--preset"), ("--patches 1", "--patches"),
        ("--weight-decay -1", "--weight-decay"), ("--device tpu", "--device"),
    ):  # fmt: skip
        yield "pretrain", tuple(flags.split()), name
    for flags, name in (
        ("--points 0", "--points"), ("--points x", "--points"), ("--min-score nan", "--min-score"), ("--unknown", "--unknown"), ("extra", "extra"),
    ):  # fmt: skip
        yield "data", tuple(flags.split()), name
    for flag in ("objects", "grasps", "scenes", "workers", "seed"):
        for value in rng.choice(("-1", "1.5", "x", "nan", "", "1e9"), 3, replace=False):
            yield "synthesize", (f"--{flag}={value}",), f"--{flag}"
    for flags, name in (
        ("--preset huge", "--preset"), ("--meshes nowhere", "--meshes"), ("--up y", "--up"), ("--rescale", "--rescale"), ("--unknown", "--unknown"),
    ):  # fmt: skip
        yield "synthesize", tuple(flags.split()), name


def test_bad_flags(box_root, tmp_path, capsys, problems):
    rng = np.random.default_rng(4)
    shapes, out = tmp_path / "shapes", tmp_path / "out"
    shapes.mkdir()
    out.mkdir()
    for i in range(4):
        np.save(shapes / f"{i}.npy", rng.normal(size=(64, 3)) * 0.1)
    commands = {
        "train": (train.main, ["--data", box_root, "--runs", out, "--preset", "tiny", "--steps", 2, "--quiet"]),
        "splits": (splits.main, ["--data", box_root, "--json", out / "split.json"]),
        "data": (data.main, [box_root, "--cache-dir", out]),
        "pretrain": (pretrain_jepa.main, ["--clouds", shapes, "--out", out / "e.pt", "--preset", "tiny", "--steps", 2, "--batch", 2, "--quiet"]),
        "synthesize": (synthesize.main, ["--out", out / "root", "--quiet"]),
    }
    cases = list(flag_cases())
    assert len(cases) > 150
    for script, flags, name in cases:
        main, argv = commands[script]
        with problems.of(f"{script} {' '.join(flags)}"):
            rejected(main, [*argv, *flags], (name,), capsys, out, shapes)


# ---------------------------------------------------------------- checkpoints, runs and poses


@pytest.fixture(scope="module")
def run(box_root, tmp_path_factory):
    """A finished run of two steps, its encoder and an unfinished pretraining."""
    folder = tmp_path_factory.mktemp("run")
    train.main(["--data", str(box_root), "--runs", str(folder), "--name", "run", "--preset", "tiny", "--steps", "2", "--quiet", "--threads", "1"])
    config = model.PRESETS["tiny"]
    torch.manual_seed(0)
    content = {"config": vars(config), "encoder": model.PointEncoder(config).state_dict()}
    model.save_checkpoint(folder / "encoder.pt", content)
    write_box(folder / "box.obj", np.array([0.1, 0.1, 0.1]))
    return folder


def checkpoint_cases(good):
    """(id, bytes) of files that are no checkpoint, from the bytes of a good one."""
    rng = np.random.default_rng(5)
    yield "empty", b""
    yield "text", b"not a checkpoint\n"
    yield "noise", rng.bytes(1000)
    yield "a pickle with code", pickle.dumps(Planted())
    yield "a pickle with code of protocol 0", pickle.dumps(Planted(), protocol=0)
    for share in rng.uniform(0.001, 0.999, 10):
        yield f"cut short at {share:.1%}", good[: int(share * len(good))]
    yield "the head cut off", good[100:]


def content_cases(good):
    """(id, content) of well-formed files that hold something else than the checkpoint `good`."""
    weights = next(key for key in ("encoder", "model") if key in good)
    yield "a list", [1, 2]
    yield "a tensor", torch.zeros(3)
    yield "an empty dict", {}
    yield "code beside the weights", {"planted": Planted(), weights: Planted()}
    yield "no config", {k: v for k, v in good.items() if k != "config"}
    yield "no weights", {k: v for k, v in good.items() if k != weights}
    yield "weights that are a list", good | {weights: [1]}
    yield "weights that are numbers", good | {weights: {k: 1.0 for k in good[weights]}}
    yield "config is a list", good | {"config": [1]}
    for field, value in (("width", 64), ("depth", 3), ("heads", 5), ("width", 0), ("points", -1), ("points", "many"), ("group", "other"),
                         ("dropout", 2.0), ("dropout", float("nan")), ("scale", 0.0), ("patches", 1000), ("pool", 3), ("w1", 8)):  # fmt: skip
        yield f"config says {field} {value}", good | {"config": good["config"] | {field: value}}
    yield "an unknown setting", good | {"config": good["config"] | {"colour": 1}}
    name = sorted(good[weights])[0]
    yield "a weight missing", good | {weights: {k: v for k, v in good[weights].items() if k != name}}
    yield "a weight too many", good | {weights: good[weights] | {"extra": torch.zeros(1)}}
    yield "a weight of another shape", good | {weights: good[weights] | {name: torch.zeros(1, 2, 3)}}


def bad_checkpoints(path):
    """(id, write(path)) of bad versions of a checkpoint file."""
    for name, content in checkpoint_cases(path.read_bytes()):
        yield name, lambda target, content=content: target.write_bytes(content)
    for name, content in content_cases(model.read_checkpoint(path)):
        yield name, lambda target, content=content: torch.save(content, target)
    yield "a folder", lambda target: target.mkdir()
    yield "a dangling link", lambda target: target.symlink_to("nowhere")
    yield "missing", lambda target: None


def test_bad_encoders(run, box_root, tmp_path, capsys, monkeypatch, problems):
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    (tmp_path / "runs").mkdir()
    for i, (name, write) in enumerate(bad_checkpoints(run / "encoder.pt")):
        path = tmp_path / f"bad{i}.pt"
        write(path)
        argv = ["--data", box_root, "--runs", tmp_path / "runs", "--init", "jepa", "--jepa-ckpt", path, "--steps", 2, "--quiet"]
        with problems.of(f"encoder {name!r}"):
            rejected(train.main, argv, (path.name,), capsys, tmp_path)
    for flags in ("--preset small", "--points 32", "--patches 4", "--patch-size 4", "--group ball --radius 0.1"):
        argv = ["--data", box_root, "--runs", tmp_path / "runs", "--init", "jepa", "--jepa-ckpt", run / "encoder.pt", *flags.split()]
        rejected(train.main, argv, ("encoder.pt",), capsys, tmp_path)
    assert i >= 35 and not (tmp_path / "planted").exists()


def test_bad_runs(run, tmp_path, capsys, monkeypatch, problems):
    """Bad best.pt and config.json, for evaluation and for one object's prediction."""
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    pose = "--pose 0 0 0.2 0 0 0 1".split()
    for i, (name, write) in enumerate(bad_checkpoints(run / "run" / "best.pt")):
        folder = tmp_path / f"run{i}"
        shutil.copytree(run / "run", folder)
        (folder / "best.pt").unlink()
        write(folder / "best.pt")
        more = ["--mesh", run / "box.obj", *pose] if i % 2 else ["--json", folder / "out.json"]
        with problems.of(f"best.pt {name!r}"):
            rejected(evaluate.main, [folder, *more], (folder.name,), capsys, tmp_path)
    good = json.loads((run / "run" / "config.json").read_text())
    lacking = [{k: v for k, v in good.items() if k != key} for key in ("settings", "network")]
    for content in ("", "{", "[]", "3", "null", '"text"', "{}", '{"settings": []}', '{"settings": {}, "network": {}}', *map(json.dumps, lacking)):
        folder = tmp_path / "config"
        shutil.copytree(run / "run", folder)
        (folder / "config.json").write_text(content)
        rejected(evaluate.main, [folder], ("config.json",), capsys, folder)
        shutil.rmtree(folder)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", run / "box.obj"):
        rejected(evaluate.main, [path], (path.name,), capsys, tmp_path)
    assert not (tmp_path / "planted").exists()


def test_bad_settings_to_repeat(run, tmp_path, capsys):
    good = json.loads((run / "run" / "config.json").read_text())
    cases = (
        ("budget", 7, "--budget"), ("k", 0, "--k"), ("steps", -5, "--steps"), ("pack", "C", "--pack"), ("seed", "x", "--seed"),
        ("lr_head", "nan", "--lr-head"), ("pool", [1, 2], "--pool"), ("preset", "huge", "--preset"), ("points", 3.5, "--points"),
        ("quick", True, "--quick"), ("device", "tpu", "--device"), ("held_out", ["12345678"], "12345678"), ("min_score", {}, "--min-score"),
        ("data", str(tmp_path / "nowhere"), "nowhere"), ("init", True, "--init"), ("patches", 65, "patches"),
        ("jepa_ckpt", "x.pt", "--jepa-ckpt"), ("eval_every", 0, "--eval-every"),
    )  # fmt: skip
    path = tmp_path / "config.json"
    for name, value, named in cases:
        path.write_text(json.dumps(good | {"settings": good["settings"] | {name: value}}))
        rejected(train.main, ["--from", path, "--runs", tmp_path / "runs", "--quiet"], (named,), capsys, tmp_path)
    for content in ("[]", "{}", "3", "{", '{"settings": 3}', "\x00"):
        path.write_text(content)
        rejected(train.main, ["--from", path, "--runs", tmp_path / "runs"], ("config.json",), capsys, tmp_path)
    rejected(train.main, ["--from", tmp_path, "--runs", tmp_path / "runs"], (tmp_path.name,), capsys, tmp_path)


def test_bad_unfinished_runs(run, box_root, tmp_path, capsys, monkeypatch, problems):
    """A last.pt of another shape, or of nothing at all, is named and kept as it is."""
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    argv = ["--data", box_root, "--runs", tmp_path, "--name", "run", "--preset", "tiny", "--steps", 2, "--quiet", "--resume", "--threads", 1]
    cases = [*bad_checkpoints(run / "run" / "last.pt")][:-1]  # without last.pt, --resume starts anew
    good = model.read_checkpoint(run / "run" / "last.pt")
    for key, value in (("optimizer", {}), ("optimizer", 3), ("progress", {"stage": 1}), ("progress", []), ("rng", torch.zeros(3)), ("patch_rng", None)):
        cases.append((f"{key} is {value!r:.20}", lambda path, content=good | {key: value}: torch.save(content, path)))
    shutil.copytree(run / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    accepted = []
    for name, write in cases:
        path = tmp_path / "run" / "last.pt"
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write(path)
        if name == "no config" or name.startswith(("config", "an unknown")) or name == "a dangling link":
            accepted.append(name)  # the run's own settings count, and a link to nothing is nothing
            continue
        with problems.of(f"last.pt {name!r}"):
            rejected(train.main, argv, ("last.pt",), capsys, tmp_path)
    assert len(cases) - len(accepted) > 25 and not (tmp_path / "planted").exists()
    (tmp_path / "run" / "last.pt").unlink()
    for content in ("", "[]", "{}"):
        (tmp_path / "run" / "config.json").write_text(content)
        rejected(train.main, argv, ("config.json",), capsys, tmp_path)


def pose_cases(folder):
    """(id, flags after --mesh FILE, what the message names)."""
    rng = np.random.default_rng(6)
    for text in ("", "0", "0 0 0.2 0 0 0", "0 0 0.2 0 0 0 x", "0 0 nan 0 0 0 1", "0 0 inf 0 0 0 1", "0 0 0.2 0 0 0 0",
                 "0 0 0.2 1 1 1 1", "0 0 200 0 0 0 1", "0 0 0.2 0 0 0 0.9", "0 0 1e400 0 0 0 1", "0,0,0.2,0,0,0,1", "0 0 -1e3 0 0 0 1"):  # fmt: skip
        yield f"--pose {text}", ["--pose", *text.split()], "--pose"
    good = np.array([[0, 0, 0.2, 0, 0, 0, 1.0]] * 3)
    for _ in range(6):
        bad, row = good.copy(), rng.integers(3)
        bad[row, rng.integers(7)] = rng.choice([np.nan, np.inf, 50])
        yield f"poses with a bad row {row}", bad, f"row {row}"
    for shape in ((), (7,), (0, 7), (3, 6), (3, 8), (1, 3, 7)):
        yield f"poses of shape {shape}", np.zeros(shape), "(n, 7)"
    for kind in (object, bool, complex, "U3"):
        yield f"poses of type {kind}", good.astype(kind), "poses.npy"
    yield "a planted pickle", np.array([Planted()], dtype=object), "poses.npy"
    for content in (b"", b"text", rng.bytes(200), pickle.dumps(Planted())):
        yield "poses that are no array", content, "poses.npy"
    yield "an archive", folder, "poses.npy"


def test_bad_poses_and_predictions(run, tmp_path, capsys, monkeypatch, problems):
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    path = tmp_path / "poses.npy"
    for name, case, named in pose_cases(tmp_path):
        if isinstance(case, bytes):
            path.write_bytes(case)
        elif isinstance(case, np.ndarray):
            np.save(path, case, allow_pickle=True)
        elif not isinstance(case, list):
            with open(path, "wb") as file:
                np.savez(file, a=np.zeros((2, 7)))
        flags = case if isinstance(case, list) else ["--poses", path]
        with problems.of(name):
            rejected(evaluate.main, [run / "run", "--mesh", run / "box.obj", *flags], (named,), capsys, tmp_path, run)
    pose = "--pose 0 0 0.2 0 0 0 1".split()
    for flags, named in (
        ([], "RUN"), ([run / "run", *pose], "--mesh"), ([run / "run", "--mesh", run / "box.obj"], "--pose"),
        ([run / "run", "--mesh", run / "box.obj", *pose, "--poses", path], "--pose"), ([run / "run", "--predictions", path], "RUN"),
        (["--predictions", path, "--mesh", run / "box.obj"], "--mesh"), ([run / "run", "--mesh", run / "nowhere.obj", *pose], "nowhere.obj"),
        ([run / "run", "--mesh", run / "encoder.pt", *pose], "encoder.pt"), ([run / "run", "--mesh", tmp_path, *pose], tmp_path.name),
        ([run / "run", "--suite", "all"], "--suite"), ([run / "run", "--checkpoint", "first"], "--checkpoint"),
        ([run / "run", "--data", tmp_path / "moved"], "moved"), ([run / "run", "--seed", "-1"], "--seed"),
    ):  # fmt: skip
        rejected(evaluate.main, flags, (named,), capsys, tmp_path, run)
    for name, cloud in (("few", np.zeros((5, 3))), ("far", np.eye(64, 3) * 1000), ("point", np.ones((64, 3))), ("nan", np.full((64, 3), np.nan)),
                        ("wide", np.zeros((64, 4))), ("huge", np.eye(64, 3) * 1e300)):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", cloud)
        rejected(evaluate.main, [run / "run", "--mesh", tmp_path / f"{name}.npy", *pose], (name,), capsys, tmp_path, run)
    good = {"joints_pred": np.zeros((4, 2, 3)), "logits": np.zeros((4, 2)), "joints_true": np.zeros((4, 3))}
    for change in ({"logits": np.zeros((4, 3))}, {"joints_true": np.zeros((5, 3))}, {"joints_pred": np.zeros((4, 2))}, {"logits": np.full((4, 2), np.nan)},
                   {"joints_pred": np.zeros((0, 2, 3))}, {"object": np.array(["a"])}, {"logits": np.zeros((4, 2), int)},
                   {"logits": np.array([[Planted()] * 2] * 4, dtype=object)}):  # fmt: skip
        np.savez(tmp_path / "predictions.npz", **good | change)
        rejected(evaluate.main, ["--predictions", tmp_path / "predictions.npz"], ("predictions.npz",), capsys, tmp_path)
    assert not (tmp_path / "planted").exists()


def test_bad_shapes_to_pretrain_on(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(7)
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    shapes, out = tmp_path / "shapes", tmp_path / "out"
    shapes.mkdir()
    out.mkdir()
    for i in range(3):
        np.save(shapes / f"{i}.npy", rng.normal(size=(64, 3)))
    argv = ["--clouds", shapes, "--out", out / "e.pt", "--preset", "tiny", "--steps", 2, "--batch", 2, "--quiet"]
    clouds = [np.zeros((64, 3)), np.full((64, 3), np.inf), np.zeros((64, 2)), np.zeros((63, 3)), np.array([Planted()], dtype=object), np.eye(64, 3) * 1e300]
    for cloud in clouds:
        np.save(shapes / "bad.npy", cloud, allow_pickle=True)
        rejected(pretrain_jepa.main, argv, ("bad.npy",), capsys, out, shapes)
    (shapes / "bad.npy").unlink()
    np.save(tmp_path / "outside.npy", rng.normal(size=(64, 3)))
    (shapes / "link.npy").symlink_to(tmp_path / "outside.npy")
    rejected(pretrain_jepa.main, argv, ("link.npy", "leads out"), capsys, out, shapes)
    (shapes / "link.npy").unlink()
    for extension in EXTENSIONS:
        path = shapes / f"bad{extension}"
        path.write_bytes(b"x")
        rejected(pretrain_jepa.main, argv, (path.name,), capsys, out, shapes)
        path.unlink()
    for i, content in enumerate((b"", b"text", rng.bytes(300), pickle.dumps(Planted()))):
        (out / "e.last.pt").write_bytes(content)
        rejected(pretrain_jepa.main, [*argv, "--resume"], ("e.last.pt",), capsys, out)
    for content in ({}, [1], {"settings": {}}):
        torch.save(content, out / "e.last.pt")
        rejected(pretrain_jepa.main, [*argv, "--resume"], ("e.last.pt",), capsys, out)
    pool = tmp_path / "data" / "pretraining" / f"v{synthesize.VERSION}-4x64-z-seed0-all.npy"
    pool.parent.mkdir(parents=True)
    (out / "e.last.pt").unlink()
    monkeypatch.chdir(tmp_path)
    for content in (b"", pickle.dumps(Planted())):
        pool.write_bytes(content)
        rejected(pretrain_jepa.main, ["--num-clouds", 4, *argv[2:]], (pool.name,), capsys, out)
    assert not (tmp_path / "planted").exists()


def test_there_are_enough_cases():
    assert len(SCENE_CASES) > 200 and len(SCENE_CASES) + len(list(flag_cases())) > 400


# ---------------------------------------------------------------- read as it is


def train_on(root, runs, *more):
    argv = ["--data", root, "--runs", runs, "--preset", "tiny", "--steps", 2, "--quiet", "--threads", 1, *more]
    return train.main([str(a) for a in argv])


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "longdouble", "int8", "uint8", "int64", ">f4", "<f2"])
def test_number_types(tmp_path, kind):
    root = write_root(tmp_path / "root", {"a": 1})
    grasps = np.zeros((4, 19))
    grasps[:, 6] = 1
    grasps[:, 7:] = np.arange(4)[:, None]
    np.savez(root / "a" / "object_000" / "scene_0" / "recording.npz", grasps=grasps.astype(kind), scores=np.arange(1, 5).astype(kind))
    loaded = data.load_dataset(root, 32, quiet=True)
    assert loaded.joints[:, 0].tolist() == [1, 2, 3] and loaded.scores.tolist() == [2, 3, 4] and loaded.joints.dtype == np.float32


def test_half_precision_and_almost_unit_quaternions(tmp_path):
    root = write_root(tmp_path / "root", {"a": 1}, grasps=20)
    path = root / "a" / "object_000" / "scene_0" / "recording.npz"
    with np.load(path) as archive:
        grasps = archive["grasps"]
    before = data.load_dataset(root, 32, quiet=True)
    np.savez(path, grasps=(grasps * np.r_[1, 1, 1, [1.009] * 4, [1] * 12]).astype(np.float16), scores=np.full(20, 2, np.int32))
    after = data.load_dataset(root, 32, quiet=True, min_score=2)
    assert np.allclose(np.linalg.norm(after.poses[:, 3:], axis=1), 1, atol=1e-6)
    assert np.allclose(after.poses[before.row], before.poses, atol=2e-3) and np.allclose(after.joints[before.row], before.joints, atol=2e-3)


def test_names_with_spaces_and_unicode(tmp_path, capsys):
    names = {"tasse à café ☕": 4, "瓶子": 3, "-dash": 3, "a'b\"c": 3, "new\u00a0space": 3}
    root = write_root(tmp_path / "my röot (1)", names)
    result = train_on(root, tmp_path / "rüns", "--name", "mein lauf")
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])
    out = tmp_path / "aus gabe.json"
    evaluate.main([str(tmp_path / "rüns" / "mein lauf"), "--json", str(out), "--quiet"])
    assert set(json.loads(out.read_text())["suites"]["val"]["synsets"]) == set(names)
    capsys.readouterr()
    splits.main(["--data", str(root), "--json", str(tmp_path / "split é.json")])
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_name_that_is_not_unicode_is_refused(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"a": 1})
    try:
        os.rename(os.fsencode(root / "a"), os.fsencode(root) + b"/\xff")
    except OSError:
        pytest.skip("the file system takes no such names")
    rejected(data.main, [root], ("udcff", "rename"), capsys, root)


def test_negative_exponents_in_a_pose(run, capsys):
    capsys.readouterr()
    poses = []
    for pose in ("-1e-3 -2.5E-2 1e-1 -0 -0.0 -1e-9 -1", "-0.001 -.025 .1 0 0 0 1"):
        evaluate.main([str(run / "run"), "--mesh", str(run / "box.obj"), "--pose", *pose.split()])
        poses.append(json.loads(capsys.readouterr().out)["predictions"][0])
    assert poses[0]["pose"] == pytest.approx(poses[1]["pose"], abs=1e-6)
    assert poses[0]["hypotheses"][0]["joints"] == pytest.approx(poses[1]["hypotheses"][0]["joints"], abs=1e-5)


def test_one_category_only(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"my-mugs": 5})
    result = train_on(root, tmp_path, "--name", "run", "--budget", 0.01)
    assert result["train_objects"] == 1 and list(result["suites"]) == ["val"]
    split = splits.make_split(data.load_dataset(root, 64, quiet=True))
    assert not split.suites["test_category"] and {s: len(n) for s, n in split.suites.items() if n} == {"train": 3, "val": 1, "test": 1}
    evaluate.main([str(tmp_path / "run"), "--suite", "val", "test", "test_category", "--json", str(tmp_path / "all.json"), "--quiet"])
    assert set(json.loads((tmp_path / "all.json").read_text())["suites"]) == {"val", "test"}
    rejected(evaluate.main, [tmp_path / "run", "--suite", "test_category"], ("test_category",), capsys)


@pytest.mark.parametrize("each", [1, 2])
def test_few_objects_per_category(tmp_path, each):
    """No category can spare an object for its own val and test: all of them together do."""
    root = write_root(tmp_path / "root", {f"category_{i:02d}": each for i in range(20)})
    loaded = data.load_dataset(root, 64, quiet=True)
    for pack in "AB":
        full, small = (splits.make_split(loaded, pack, budget) for budget in (1.0, 0.01))
        assert len(full.suites["val"]) == len(full.suites["test"]) == 2 * each and len(full.suites["train"]) == 16 * each
        assert full.suites["val"] == small.suites["val"] and set(small.suites["train"]) <= set(full.suites["train"])
        assert {name.split("/")[0] for name in small.suites["train"]} == {name.split("/")[0] for name in full.suites["train"]}
    assert np.isfinite(train_on(root, tmp_path)["suites"]["val"]["top_logit_rmse"])


def test_read_only_roots(box_root, tmp_path, good_root, capsys):
    root = tmp_path / "root"
    shutil.copytree(good_root[0], root)
    (root / ".cache").write_text("a file where the folder would be")
    before = listing(root)
    assert same(data.load_dataset(root, 32, quiet=True), good_root[1])
    assert same(data.load_dataset(root, 32, quiet=True, cache_dir=root / ".cache" / "x"), good_root[1])
    assert np.isfinite(train_on(root, tmp_path)["suites"]["val"]["top_logit_rmse"])
    assert listing(root) == before and capsys.readouterr().err == ""
    if os.geteuid():  # the superuser may write everywhere
        (root / ".cache").unlink()
        root.chmod(0o500)
        assert same(data.load_dataset(root, 32, quiet=True), good_root[1])
        root.chmod(0o700)


def test_a_broken_cache_is_made_again(good_root, tmp_path, monkeypatch):
    rng = np.random.default_rng(8)
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    root = tmp_path / "root"
    shutil.copytree(good_root[0], root)
    data.load_dataset(root, 32, quiet=True)
    path = root / ".cache" / "points-32.npz"
    good = path.read_bytes()
    broken = [good[: int(share * len(good))] for share in rng.uniform(0, 1, 12)]
    for at in rng.integers(0, len(good), 12):
        broken.append(good[:at] + bytes(255 - b for b in good[at : at + 16]) + good[at + 16 :])
    broken += [b"", b"text", pickle.dumps(Planted())]
    for content in broken:
        path.write_bytes(content)
        assert same(data.load_dataset(root, 32, quiet=True), good_root[1])
    for index in ([], {}, {"version": 1}, {"version": data.CACHE_VERSION, "scenes": 3}, {"version": data.CACHE_VERSION, "scenes": [{}]}):
        with open(path, "wb") as file:
            index = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
            np.savez(file, index=index, clouds=np.zeros((0, 32, 3)), poses=np.zeros((0, 7)), joints=np.zeros((0, 12)), scores=np.zeros(0))
        assert same(data.load_dataset(root, 32, quiet=True), good_root[1])
    np.savez(path, index=np.array([Planted()], dtype=object))
    assert same(data.load_dataset(root, 32, quiet=True), good_root[1])
    assert not (tmp_path / "planted").exists()


def test_duplicates_give_one_warning(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"a": 6, "b": 4})
    for obj in ("a/object_003", "a/object_004", "b/object_001"):
        shutil.copy(root / "a" / "object_000" / "scene_0" / "mesh.obj", root / obj / "scene_0")
    capsys.readouterr()
    train_on(root, tmp_path)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("warning: ") and "4 objects share a mesh" in err


# ---------------------------------------------------------------- nothing outside the root is opened


def test_no_path_in_a_file_is_followed(tmp_path, monkeypatch):
    """Material libraries, textures and external buffers of every format: nothing but the root's files is opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    points, index = np.asarray(corners(), "<f4").tobytes(), np.asarray(BOX_FACES, "<u4").tobytes()
    (outside / "buffer.bin").write_bytes(points + index)
    for name in ("trap.mtl", "trap.png"):
        os.mkfifo(outside / name)  # opening it would block for ever
    obj = "mtllib {0}/trap.mtl\nusemtl a\n".format(outside).encode() + mesh_bytes(".obj", corners(), BOX_FACES)
    ply = mesh_bytes(".ply", corners(), BOX_FACES).replace(b"ply\n", f"ply\ncomment TextureFile {outside}/trap.png\n".encode(), 1)
    relative = os.path.relpath(outside, tmp_path / "root" / "a" / "object_000" / "scene_0")
    cases = {
        "mesh.obj": obj, "mesh.ply": ply,
        "absolute/mesh.glb": glb_bytes(corners(), BOX_FACES, f"{outside}/buffer.bin"),
        "url/mesh.glb": glb_bytes(corners(), BOX_FACES, f"file://{outside}/buffer.bin"),
        "relative/mesh.glb": glb_bytes(corners(), BOX_FACES, f"{relative}/buffer.bin"),
    }  # fmt: skip
    for name, content in cases.items():
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        root = write_root(tmp_path / "root", {"a": 1})
        scene = root / "a" / "object_000" / "scene_0"
        (scene / "mesh.obj").unlink()
        (scene / name.split("/")[-1]).write_bytes(content)
        if name.endswith(".glb"):
            with pytest.raises(data.UserError, match="mesh.glb"):
                data.load_dataset(root, 32, quiet=True)
        else:
            assert len(data.load_dataset(root, 32, quiet=True).scenes) == 1


@pytest.mark.parametrize("level", [0, 1, 2])
def test_linked_folders_that_leave_the_root_are_refused(tmp_path, capsys, level):
    root, outside = write_root(tmp_path / "root", {"a": 2}), write_root(tmp_path / "outside", {"a": 1})
    target = ("a", "a/object_000", "a/object_000/scene_0")[level]
    link = root / ("b", "a/object_009", "a/object_001/scene_9")[level]
    link.symlink_to(outside / target)
    rejected(data.main, [root], ("leads out",), capsys, root)
    link.unlink()
    link.symlink_to(root / target)  # within the root it is fine
    assert len(data.load_dataset(root, 32, quiet=True).scenes) > 2


def test_a_recording_of_a_run_is_plain(run):
    """What the scripts write can be read without a single pickled class."""
    for path in (run / "run" / "best.pt", run / "run" / "last.pt", run / "encoder.pt"):
        assert isinstance(torch.load(path, weights_only=True), dict)
    with open(run / "run" / "metrics.csv") as file:
        assert len(list(csv.DictReader(file))) >= 1
