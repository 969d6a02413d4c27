"""Files of other people, read safely: what is wrong with one is a `UserError` that names it and the way out.

Nothing here runs code from a file, opens what a file refers to, or follows a link out of its folder.
"""

import io
import os
import stat
from pathlib import Path

import numpy as np

from plumbing.common import UserError

MESH_TYPES = (".obj", ".stl", ".ply", ".off", ".glb")
MAX_LENGTH = 2.0  # m; a longer mesh or a wrist further away is taken for millimetres


def read_bytes(path):
    """A file's content, with a user error where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def stamp(path, root):
    """[size, time in ns] of a file, the key of its cache entry; a link that leaves the root is refused."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if os.path.realpath(path) != os.path.abspath(path) and not Path(path).resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path}: is a link that leads out of {root}; copy the file there instead")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a file; put a mesh or a recording there")
    return [status.st_size, status.st_mtime_ns]


def subfolders(path):
    """Paths of the folders in `path`, hidden ones left out."""
    try:
        return [entry.path for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def parse_mesh(content, name):
    """Vertices (V, 3) float64 in m and faces (F, 3) int64 of a mesh file's bytes, exactly as stored.

    All bodies of the file, unprocessed; opening from memory and without materials means that nothing
    the file refers to is opened. Raises `UserError` naming `name`.
    """
    import trimesh  # here, since only a first read needs it

    try:
        mesh = trimesh.load_mesh(
            io.BytesIO(content), file_type=Path(name).suffix[1:].lower(), process=False, skip_materials=True
        )
        vertices = np.asarray(mesh.vertices, dtype=np.float64).reshape(-1, 3)
        faces = np.asarray(mesh.faces, dtype=np.int64).reshape(-1, 3)
    except Exception as error:  # trimesh's readers raise whatever their parsing meets
        raise UserError(
            f"{name}: cannot be read as a mesh ({type(error).__name__}: {error}); export it again"
        ) from None
    if not len(faces):
        raise UserError(f"{name}: the mesh has no faces; export it with triangles")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(f"{name}: a face refers to vertex {faces.max()} of {len(vertices)}; export the mesh again")
    if not np.isfinite(vertices).all():
        raise UserError(f"{name}: vertex {bad_row(~np.isfinite(vertices))} is not finite; export the mesh again")
    length = np.ptp(vertices[faces.ravel()], axis=0).max()
    if length > MAX_LENGTH:
        raise UserError(
            f"{name}: {length:.4g} m long, the limit is {MAX_LENGTH:g} m; is it in millimetres? Scale it by 0.001"
        )
    return vertices, faces


def read_mesh(path):
    """Vertices (V, 3) float64 in m and faces (F, 3) int64 of a mesh file; raises `UserError`."""
    return parse_mesh(read_bytes(path), str(path))


def read_array(path, width):
    """A finite numeric (n, width) float64 array from an .npy file; raises `UserError`."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception:  # numpy, zipfile and zlib raise whatever they meet
        raise UserError(f"{path}: not an .npy array of numbers; write it with numpy.save") from None
    numeric = isinstance(array, np.ndarray) and array.dtype.kind in "fiu"
    if not numeric or array.ndim != 2 or array.shape[1] != width or not len(array):
        raise UserError(f"{path}: must hold numbers of shape (n, {width})")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: row {bad_row(~np.isfinite(array))} is not finite; leave it out")
    return array


def bad_row(mask):
    """Index of the first row of a boolean array (n, ...) with a true entry."""
    return int(mask.reshape(len(mask), -1).any(1).argmax())
