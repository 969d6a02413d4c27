"""Files of other people, read safely: what is wrong with one is a `UserError` that names it and the way out.

Nothing here runs code from a file or opens what a file refers to.
"""

import contextlib
import io
import math
import os
import stat
import unicodedata
from pathlib import Path

import numpy as np

from cli.errors import UserError, refuse
from files.meshes import READERS
from files.polygons import surface

MESH_TYPES = tuple(READERS)
MESH_NAMES = tuple("mesh" + extension for extension in MESH_TYPES)  # of a scene's mesh, in its folder
MAX_LENGTH = 2.0  # m; a longer mesh or a wrist further away is taken for another unit
ANY_LENGTH = 1e6  # where lengths do not matter, since clouds are normalised or meshes rescaled
HAND_SIZED = 0.03, 0.5  # m; the longest side of what a hand grasps
UNITS = {"millimetres": 0.001, "centimetres": 0.01, "inches": 0.0254, "decimetres": 0.1}  # m; the likely first
# how files begin that stand where data should be, and what they are
FOREIGN = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; fetch that with: git lfs pull",
    b"<": "is a web page or XML, not what its name says; download it again",
    b"\0\5\x16\7": "is what macOS keeps about another file; remove it",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}


@contextlib.contextmanager
def readable(path):
    """What the system says against reading a file or folder, as a user error."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def read_bytes(path):
    """A file's content; `UserError` where it cannot be read, or where something else stands in its place."""
    with readable(path):
        content = Path(path).read_bytes()
    start = content[:80].removeprefix(b"\xef\xbb\xbf").lstrip()  # what follows a blank header in an STL is a number
    for beginning, what in FOREIGN.items():
        refuse(start.startswith(beginning), f"{path}: {what}")
    return content


def stamp(path):
    """[size, times in ns] of a file, the key of its cache entry.

    The time of a change, too: `cp -p`, archives and clocks of a second give another file the size and time of the last.
    """
    with readable(path):
        status = os.stat(path)
    refuse(not stat.S_ISREG(status.st_mode), f"{path}: is not a file; put a mesh or a recording there")
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def composed(name):
    """A name as nearly all systems spell it (NFC); some keep é as e and an accent, which looks the same."""
    return unicodedata.normalize("NFC", name)


def parse_mesh(content, name, longest=MAX_LENGTH):
    """Vertices (V, 3) float64 in m and faces (F, 3) int64 of a mesh file's bytes, exactly as stored.

    All bodies of the file, polygons cut into triangles; nothing that the file refers to is opened. Raises `UserError`
    naming `name`.
    """
    kind = Path(name).suffix.lower()
    try:
        vertices, faces = surface(*READERS[kind](content))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception:  # what a file that is no mesh at all makes of its parsing; a Python error tells a user nothing
        raise UserError(f"{name}: cannot be read as a {kind} mesh; export it again") from None
    length = np.ptp(vertices[faces.ravel()], axis=0).max()
    if length > longest:
        raise UserError(f"{name}: {length:.4g} m long, the limit is {longest:g} m; {unit_hint(length)}")
    return vertices, faces


def unit_hint(length):
    """What a user may do about a mesh of `length` m, by the unit that would make a hand-sized object of it."""
    for unit, factor in UNITS.items():
        if HAND_SIZED[0] <= length * factor <= HAND_SIZED[1]:
            return f"is it in {unit}? Scale it by {factor:g}"
    factor = 10.0 ** math.floor(math.log10(HAND_SIZED[1] / length))
    return f"what a hand grasps is {HAND_SIZED[0]:g} to {HAND_SIZED[1]:g} m long. Scale it by {factor:g}"


def read_mesh(path, longest=MAX_LENGTH):
    """Vertices (V, 3) float64 in m and faces (F, 3) int64 of a mesh file; raises `UserError`."""
    return parse_mesh(read_bytes(path), str(path), longest)


def read_array(path, width):
    """A finite numeric (n, width) float64 array from an .npy file; raises `UserError`."""
    content = read_bytes(path)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # numpy, zipfile and zlib raise whatever they meet
        raise UserError(f"{path}: not an .npy array of numbers; write it with numpy.save") from None
    numeric = isinstance(array, np.ndarray) and array.dtype.kind in "fiu"
    fits = numeric and array.ndim == 2 and array.shape[1] == width and len(array)
    refuse(not fits, f"{path}: must hold numbers of shape (n, {width})")
    array = array.astype(np.float64)
    refuse_row(~np.isfinite(array), f"{path}: row", " is not finite; leave it out")
    return array


def read_npz(path, advice, only=None):
    """Arrays by name of an .npz archive, of which only those in `only` are looked at; no pickle is ever read.

    Raises `UserError`, which ends with `advice`.
    """
    content = read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files if only is None or name in only}
    except Exception as error:  # numpy, zipfile and zlib raise whatever they meet
        pickled = "allow_pickle" in str(error)
        reason = "pickled objects are never read" if pickled else "not an .npz archive, or cut short"
        raise UserError(f"{path}: {reason}; {advice}") from None


def refuse_row(wrong, before, after):
    """Stop where a boolean array (n, ...) has a true entry; the message has the number of its row between its parts."""
    if wrong.any():
        raise UserError(f"{before} {np.argwhere(wrong)[0, 0]}{after}")
