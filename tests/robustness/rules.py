"""What every bad input must come to: one line that names it and says what to do, nothing written. Meshes by rule."""

import pickle
import re
import warnings

import numpy as np
import trimesh
from conftest import Planted, fails

EXTENSIONS = (".obj", ".stl", ".ply", ".off", ".glb")
# a message must say what to do, not only what is wrong
ADVICE = re.compile(r"; |must |needs |see --help|: python ")


def listing(*folders):
    """Every file and link under the folders with its size: what must not change. Empty files of locks mean nothing."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix != ".lock")
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


def broken(good):
    """(id, bytes) of what is no file of any kind, where one of the bytes `good` should be."""
    yield from {"empty": b"", "text": b"no such thing\n", "zeros": bytes(500), "the head cut off": good[20:]}.items()
    yield "noise", np.random.default_rng(5).bytes(1000)
    for protocol in (0, 4):
        yield f"a pickle with code, protocol {protocol}", pickle.dumps(Planted(), protocol)
    for share in (0.05, 0.5, 0.95):
        yield f"cut short at {share:.0%}", good[: int(share * len(good))]


def flipped(good, at):
    """Some bytes of a file changed, from place `at` on."""
    return good[:at] + bytes(255 - byte for byte in good[at : at + 8]) + good[at + 8 :]


# ---------------------------------------------------------------- meshes


def mesh_bytes(extension, vertices, faces):
    """The bytes of a mesh (V, 3), (F, 3) in one of the formats."""
    if extension == ".obj":  # trimesh would write a lone "f" where there are no faces
        return "".join(["v %r %r %r\n" % tuple(v) for v in vertices.tolist()]
                       + ["f %d %d %d\n" % tuple(f + 1) for f in faces]).encode()  # fmt: skip
    content = trimesh.Trimesh(vertices, faces, process=False).export(file_type=extension[1:])
    return content if isinstance(content, bytes) else content.encode()
