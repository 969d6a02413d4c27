"""Scenes and roots that are wrong, made by rule: each ends in one clear line and leaves no trace."""

import io
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BOX_FACES, Planted, corners, random_grasps, write_root
from rules import EXTENSIONS, broken, flipped, mesh_bytes, rejected, same

import data
import splits
import train

SCENE = "03797390/object_001/scene_0"  # where the bad file goes; its neighbours are good


def bad_meshes():
    """(id, extension, bytes, part of the message). Dialects, and files cut short, are in test_mesh_dialects.py."""
    rng, box = np.random.default_rng(1), corners()
    for i, extension in enumerate(EXTENSIONS):
        flawed = box.copy()
        flawed[rng.integers(8), rng.integers(3)] = np.nan
        beyond = BOX_FACES.copy()
        beyond[rng.integers(12), rng.integers(3)] = 8
        made = {
            "no faces": (box, BOX_FACES[:0], "no faces"), "nothing": (box[:0], BOX_FACES[:0], "no faces"),
            "one point": (box * 0, BOX_FACES, "area"), "a line": (box * (1, 0, 0), BOX_FACES, "area"),
            "repeated corners": (box, BOX_FACES[:, [0, 0, 0]], "area"), "not a number": (flawed, BOX_FACES, "finite"),
            "in millimetres": (box * 1000, BOX_FACES, "is it in millimetres? Scale it by 0.001"),
            "huge": (box * 1e30, BOX_FACES, "the limit is 2 m"), "a face beyond": (box, beyond, "vertex 8 of 8"),
            "far from the origin": (box + (4096, 8192, 0), BOX_FACES, "lies at 40"),
        }  # fmt: skip
        for name, (vertices, faces, message) in made.items():
            if (extension, name) != (".stl", "a face beyond"):  # an STL has no indices
                yield name, extension, mesh_bytes(extension, vertices, faces), message
        for name, content in broken(b""):
            yield name, extension, content, ""
        yield f"holds {EXTENSIONS[i - 1]}", extension, mesh_bytes(EXTENSIONS[i - 1], box, BOX_FACES), ""
    yield "counts that lie", ".off", b"OFF\n99999999 1 0\n0 0 0\n3 0 0 0\n", "promises"
    yield "a length that lies", ".stl", bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50), "header says"


def bad_arrays(good, scores):
    """(id, arrays of a recording, part of the message); good (6, 19), scores (6,)."""

    def cell(row, column, value):
        grasps = good.copy()
        grasps[row, column] = value
        return {"grasps": grasps, "scores": scores}

    yield "no grasps", {"scores": scores}, "has no array 'grasps'"
    rule = "it must be (n, 7 + J), a row per grasp"
    for shape in ((), (6,), (2, 3, 19), (6, 7), (0, 19), (6, 2)):
        yield f"grasps {shape}", {"grasps": np.zeros(shape), "scores": scores}, rule
    for shape, key in zip(((), (0,), (5,), (6, 1), (12,)), ("scores", "qualities") * 3):
        yield f"{key} {shape}", {"grasps": good, key: np.zeros(shape)}, f"'{key}' has shape"
    for kind in (bool, complex, "U5", "S5", "datetime64[s]", [("a", float)]):
        for name, array in (("grasps", good), ("scores", scores)):
            bad = {"grasps": good, "scores": scores, name: np.zeros(array.shape, kind)}
            yield f"{name} of type {kind}", bad, "it must hold real numbers"
    for value in (np.nan, np.inf, -np.inf, 1e39, -1e300):
        for row, column in ((2, 1), (0, 5), (5, 18)):
            name = f"{value} in row {row}, column {column}"
            yield name, cell(row, column, value), f"'grasps' row {row} is not finite"
        bad = {"grasps": good, "scores": np.where(np.arange(6) == 1, value, scores)}
        yield f"a score of {value}", bad, "'scores' row 1 is not finite"
    long = scores.astype(np.longdouble) * np.longdouble("1e4000")
    yield "a long float beyond double", {"grasps": good, "scores": long}, "row 0"
    for norm in (0, 1e-9, 0.98, 1.02, 180 / np.pi, 1e4):
        yield f"a norm of {norm}", cell(3, slice(3, 7), good[3, 3:7] * norm), "row 3: the quaternion's norm is"
    for far in (3, -2.5, 1e6):
        yield f"a wrist at {far}", cell(4, 1, far), "row 4: the wrist is over 2 m away; positions are in metres"
    yield "a wrist out of reach", cell(4, 0, 0.9), "m from the mesh, the limit is 0.5 m; both must be in metres"
    for angle in (13, -30, 1e5):
        yield f"a joint of {angle}", cell(4, 9, angle), "row 4: a joint is"
    for count in (1, 9, 22):
        other = {"grasps": np.concatenate([good[:, :7], np.zeros((6, count))], axis=1), "scores": scores}
        yield f"{count} joints", other, f"has {count} joints, most recordings of the root have 12"
    many = random_grasps(np.random.default_rng(4), 30, np.full(3, 0.1))  # more of them than numbers in one
    yield "transposed, few", {"grasps": good.T}, "has shape (19, 6); it must be (n, 7 + J)"
    yield "transposed, many", {"grasps": many.T}, "row 0"
    letters = list("abcdefghijkl")
    odd = {"grasps": good, "joint_names": np.array([*letters[:-1], "red\x1b[31m"])}
    yield "a joint with a control character", odd, "with a control character"
    yield "a joint twice", {"grasps": good, "joint_names": np.array([*letters[:-1], "c"])}, "has 'c' twice"
    for names in (["a"], [["a"] * 12], [b"a"] * 12, list(range(12)), [f"j{i}" for i in range(13)]):
        bad = {"grasps": good, "scores": scores, "joint_names": np.array(names)}
        yield f"joint names {names!r:.20}", bad, "'joint_names' must be 12 strings"
    yield "planted code", {"grasps": good, "scores": np.array([Planted()] * 6, dtype=object)}, "never read"
    yield "mixed names", {"grasps": good, "joint_names": np.array(["a", None] * 6, object)}, "never read"


def bad_recordings():
    """(id, write(path), part of the message)."""
    good, scores = random_grasps(np.random.default_rng(1), 6, np.full(3, 0.1)), np.full(6, 2.0)
    for name, arrays, message in bad_arrays(good, scores):
        yield name, lambda path, arrays=arrays: np.savez(path, **arrays), message

    def zipped(content):
        return lambda path: zipfile.ZipFile(path, "w").writestr("grasps.npy", content)

    # an archive whose header promises an array that no memory holds
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 19), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    yield "a claim of 10^15 rows", zipped(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head), ""
    yield "text in a zip", zipped("no array"), ""
    yield "an empty zip", lambda path: zipfile.ZipFile(path, "w").close(), "has no array 'grasps'"
    yield "a torch checkpoint", lambda path: torch.save({"grasps": torch.zeros(3)}, path), ""
    yield "a renamed .npy", lambda path: np.save(open(path, "wb"), good), "not an .npz archive"
    archive = io.BytesIO()
    np.savez_compressed(archive, grasps=good, scores=scores)
    whole = archive.getvalue()
    flips = ((f"flipped from {at} on", flipped(whole, at)) for at in np.random.default_rng(2).integers(60, 900, 6))
    for name, content in (*broken(whole), *flips):
        yield name, lambda path, content=content: path.write_bytes(content), ""


def bad_files():
    """(id, change(scene folder), part of the message) of files that are not there or not files."""

    def replaced(name, put):
        def change(scene):
            (scene / name).unlink()
            put(scene / name)

        return change

    kinds = {
        "missing": (lambda path: None, "has no {}"), "a folder": (Path.mkdir, "has no {}"),
        "a dangling link": (lambda path: path.symlink_to("nowhere"), "{}: cannot be read"),
        "a link to itself": (lambda path: path.symlink_to(path.name), "{}: cannot be read"),
        "called otherwise": (lambda path: path.with_suffix(".OBJ.bak").touch(), "has no {}"),
    }  # fmt: skip
    if hasattr(os, "mkfifo"):  # not on Windows
        kinds["a pipe"] = os.mkfifo, "{}: is not a file"
    for name in ("mesh.obj", "recording.npz"):
        for kind, (put, message) in kinds.items():
            yield f"{name} is {kind}", replaced(name, put), message.format(name)


def bad_scenes():
    """(id, change(scene folder), part of the message) of all."""
    for name, extension, content, message in bad_meshes():

        def change(scene, extension=extension, content=content):
            (scene / "mesh.obj").unlink()
            (scene / f"mesh{extension}").write_bytes(content)

        yield f"mesh{extension}: {name}", change, message
    for name, write, message in bad_recordings():
        yield f"recording: {name}", lambda scene, write=write: write(scene / "recording.npz"), message
    yield from bad_files()


SCENES = list(bad_scenes())


@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bad_scenes(three_boxes, tmp_path, capsys, cached, planted, problems):
    """One bad scene among good ones: named, nothing written; mended, the root is as if nothing had been."""
    template, expected = three_boxes
    assert len(SCENES) > 150
    root = shutil.copytree(template, tmp_path / "root")
    for name, change, message in SCENES[cached::2]:
        if cached:  # half of them after a cache was made
            assert same(data.load_dataset(root, 32, quiet=True), expected)
        change(root / SCENE)
        with problems.of(f"case {name!r}"):
            error = rejected(data.main, [root, "--points", 32], (SCENE, message), capsys, root)
            kept = data.load_dataset(root, 32, quiet=True, skip_bad=True)
            assert len(kept.scenes) == 2 and [scene for scene, _ in kept.excluded] == [SCENE], error
        shutil.rmtree(root / SCENE)
        shutil.copytree(template / SCENE, root / SCENE)
        if not cached:
            shutil.rmtree(root / ".cache")
    assert same(data.load_dataset(root, 32, quiet=True), expected)


def test_no_permission(three_boxes, tmp_path, capsys, monkeypatch):
    """The system call itself refuses: the superuser may read every folder, and on Windows everybody may."""
    root, scandir = shutil.copytree(three_boxes[0], tmp_path / "root"), os.scandir

    def refuse(path):
        if str(path).endswith(SCENE):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    rejected(data.main, [root, "--points", 32], [f"{SCENE}: cannot be read (Permission denied)"], capsys)


# ---------------------------------------------------------------- roots


def bad_roots(folder):
    """(id, root, more flags, scripts that must refuse it, part of the message)."""
    everyone, late = ("data", "splits", "train"), ("splits", "train")
    (folder / "file").write_text("", encoding="utf-8")
    (folder / ".dangling").symlink_to(folder / "nowhere")
    for name, inside in (("empty", ""), ("hidden", ".git/a/b"), ("deep2", "a/b"), ("deep3", "a/b/c")):
        (folder / name / inside).mkdir(parents=True)
        yield f"without a scene: {name}", folder / name, "", everyone, name
    for name in ("missing", "file", ".dangling"):
        yield name, folder / name, "", everyone, name
    boxes = write_root(folder / "boxes", {"03797390": 4})
    for wrong in (boxes / "03797390", boxes / "03797390" / "object_000", folder):
        yield f"a folder too low or too high: {wrong.name}", wrong, "", everyone, wrong.name
    for score in ("2.1", "1e30"):
        yield f"no grasp above {score}", boxes, f"--min-score {score}", everyone, "--min-score"
    yield "an unknown synset", boxes, "--held-out 12345678", late, "12345678"
    yield "everything held out", boxes, "--held-out 03797390", late, "too few"
    pistols, caps = {"03948459": 4}, {"02954340": 3}  # held out
    for i, objects in enumerate(({"a": 2}, {"a": 1, "b": 1}, pistols, caps | {"b": 1})):
        yield f"too few: {objects}", write_root(folder / f"few{i}", objects), "", late, "too few"
    twins = write_root(folder / "twins", {"a": 3})
    for obj in ("object_001", "object_002"):
        shutil.copy(twins / "a" / "object_000" / "scene_0" / "mesh.obj", twins / "a" / obj / "scene_0")
    yield "one mesh three times", twins, "", late, "too few"
    mixed = write_root(folder / "mixed", {"a": 3})
    yield "two hands", write_root(mixed, {"b": 2}, num_joints=9), "", everyone, "b/object_000"
    for name, content in (("version", json.dumps({"version": 99})), ("list", "[1]"), ("cut", '{"version": 1, "sett')):
        other = write_root(folder / f"other-{name}", {"a": 1})
        (other / "dataset.json").write_text(content, encoding="utf-8")
        yield f"dataset.json: {name}", other, "", late, other.name


def test_bad_roots(tmp_path, capsys, problems):
    folder, runs = tmp_path / "roots", tmp_path / "runs"
    folder.mkdir()
    runs.mkdir()
    commands = {
        "data": (data.main, "{} --points 64"), "splits": (splits.main, f"--data {{}} --json {runs}/split.json"),
        "train": (train.main, f"--data {{}} --runs {runs} --preset tiny --quiet --steps 2"),
    }  # fmt: skip
    for name, root, more, scripts, message in bad_roots(folder):
        for script in scripts:
            main, argv = commands[script]
            with problems.of(f"root {name!r} for {script}"):
                rejected(main, [*argv.format(root).split(), *more.split()], (message,), capsys, runs)
