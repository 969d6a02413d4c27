"""What every bad input must come to: one line that names it and says what to do, nothing written. Meshes by rule."""

import json
import re
import struct
import warnings

import numpy as np
from conftest import fails

EXTENSIONS = (".obj", ".stl", ".ply", ".off", ".glb")
# a message must say what to do, not only what is wrong
ADVICE = re.compile(r"; |must |needs |see --help")


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


# ---------------------------------------------------------------- meshes, written without any check


def corners(size=0.1):
    """The corners (8, 3) of a cube that stands on z = 0."""
    return np.array([[x, y, z] for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)]) * size


def mesh_bytes(extension, vertices, faces):
    """The bytes of a mesh (V, 3), (F, 3) in one of the formats."""
    numbers = ["%r %r %r\n" % tuple(map(float, v)) for v in vertices]
    if extension == ".obj":
        lines = ["v " + line for line in numbers] + ["f %d %d %d\n" % tuple(f + 1) for f in faces]
        return "".join(lines).encode()
    if extension == ".off":
        head = f"OFF\n{len(vertices)} {len(faces)} 0\n"
        return "".join([head, *numbers, *("3 %d %d %d\n" % tuple(f) for f in faces)]).encode()
    if extension == ".ply":
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
        head += "property double x\nproperty double y\nproperty double z\n"
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
        "bufferViews": [
            {"buffer": 0, "byteLength": len(points)},
            {"buffer": 0, "byteOffset": len(points), "byteLength": len(index)},
        ],
        "buffers": [{"byteLength": len(points) + len(index)} | ({"uri": uri} if uri else {})],
    }  # fmt: skip
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    if not uri:
        chunks += struct.pack("<II", len(points + index), 0x004E4942) + points + index
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
