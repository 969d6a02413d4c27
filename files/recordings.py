"""Recordings of grasps: where they lie in a root, what one of them must hold, what all of a root must share."""

import collections
import hashlib
import os
from pathlib import Path

import numpy as np

from cli.errors import UserError, refuse
from files.folders import walk
from files.reading import MAX_LENGTH, MESH_NAMES, composed, read_npz, refuse_row

MAX_ANGLE = 4 * np.pi  # rad; a larger joint value is taken for degrees
ADVICE = "write it with numpy.savez(file, grasps=..., scores=...)"


# ---------------------------------------------------------------- a root
def find_scenes(root):
    """Sorted scenes (name, mesh path or None, recording path or None), and paths of recordings at another depth.

    Names are `composed`, so that order and splits are the same everywhere; one in two spellings is an error.
    """
    scenes, misplaced, spelt = [], [], {}
    for folder, files in walk(root):
        names = Path(folder).relative_to(root).parts
        mesh = next((name for name in MESH_NAMES if name in files), None)
        recording = "recording.npz" if "recording.npz" in files else None
        paths = [file and os.path.join(folder, file) for file in (mesh, recording)]
        if len(names) == 3 and (mesh or recording):
            for name in ("/".join(names[:2]), "/".join(names)):
                other = spelt.setdefault(composed(name), name)
                twice = f"{root}: {ascii(other)} and {ascii(name)} are one name in two Unicode forms; rename one"
                refuse(other != name, twice)
            scenes.append((composed(name), *paths))
        elif recording:
            misplaced.append(paths[1])
    return sorted(scenes), misplaced


def uncommon_joints(recordings):
    """What differs, by the name of each recording whose joints are not those of most recordings of the root.

    recordings: dicts with name, joints (n, J) and joint_names (J strings or None, which fits any names).
    """
    counts = collections.Counter(recording["joints"].shape[1] for recording in recordings)
    num_joints = counts.most_common(1)[0][0]
    named = [tuple(r["joint_names"]) for r in recordings if r["joint_names"] and r["joints"].shape[1] == num_joints]
    common = list(collections.Counter(named).most_common(1)[0][0]) if named else None
    differences = {}
    for recording in recordings:
        name, own, count = recording["name"], recording["joint_names"], recording["joints"].shape[1]
        if count != num_joints:
            differences[name] = f"has {count} joints, most recordings of the root have {num_joints}"
        elif own not in (None, common):
            first = next(i for i, (mine, theirs) in enumerate(zip(own, common)) if mine != theirs)
            differences[name] = f"joint {first} is '{own[first]}', in most recordings of the root '{common[first]}'"
    return differences


# ---------------------------------------------------------------- one recording
def read_recording(name):
    """Poses (n, 7), joints (n, J), scores (n,) float32, joint names (list or None), hash of the recording.npz `name`.

    Scores are NaN, which no recording may hold, where it has none. Raises `UserError` naming the file, the array and
    the row.
    """
    arrays = read_npz(name, ADVICE, ("grasps", "scores", "qualities", "joint_names"))
    refuse("grasps" not in arrays, f"{name}: has no array 'grasps', only {sorted(arrays) or 'others'}; {ADVICE}")
    grasps = numbers(arrays["grasps"], name, "grasps")
    if grasps.ndim != 2 or grasps.shape[1] < 8 or not len(grasps):
        raise UserError(f"{name}: 'grasps' has shape {grasps.shape}; it must be (n, 7 + J), a row per grasp")
    key, shape = "scores" if "scores" in arrays else "qualities", (len(grasps),)
    scores = numbers(arrays[key], name, key) if key in arrays else np.full(shape, np.nan)
    one_each = f"it must be {shape}, one per row of 'grasps'"
    refuse(scores.shape != shape, f"{name}: '{key}' has shape {scores.shape}; {one_each}")
    joints = grasps[:, 7:]
    turns = f": a joint is over {MAX_ANGLE:.4g} rad; joints are in radians"
    refuse_row(np.abs(joints) > MAX_ANGLE, f"{name}: 'grasps' row", turns)
    names = arrays.get("joint_names")
    if names is not None:
        fits = names.dtype.kind == "U" and names.shape == joints.shape[1:]
        refuse(not fits, f"{name}: 'joint_names' must be {joints.shape[1]} strings")
        names = names.tolist()
        odd = next((joint for joint in names if not joint.isprintable()), None)
        refuse(odd is not None, f"{name}: 'joint_names' has '{odd}' with a control character; leave that out")
        twice = next((joint for i, joint in enumerate(names) if joint in names[:i]), None)
        refuse(twice is not None, f"{name}: 'joint_names' has '{twice}' twice; name each joint once")
    poses = normal_poses(grasps[:, :7], f"{name}: 'grasps'")
    return poses.astype(np.float32), joints.astype(np.float32), scores.astype(np.float32), names, content_hash(arrays)


def content_hash(arrays):
    """SHA-256 of arrays by name, of their types, shapes and numbers: whatever the archive, system or byte order."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def numbers(array, name, key):
    """An array of a recording as float64, if it holds finite real numbers that float32 can hold."""
    refuse(array.dtype.kind not in "fiu", f"{name}: '{key}' has type {array.dtype}; it must hold real numbers")
    with np.errstate(over="ignore"):  # of longer floats: infinite then, and refused here
        array = array.astype(np.float64)
    wild = ~(np.abs(array) < np.finfo(np.float32).max)
    refuse_row(wild, f"{name}: '{key}' row", " is not finite; leave such grasps out")
    return array


def normal_poses(poses, name):
    """Wrist poses (n, 7) float64 with normalised, canonical quaternions; raises `UserError` naming `name` and the row.

    poses: xyz m and quaternion xyzw, whose norm may be 1 % off.
    """
    refuse_row(~np.isfinite(poses), f"{name}: row", " is not finite; it must hold 7 numbers")
    far = f": the wrist is over {MAX_LENGTH:g} m away; positions are in metres"
    refuse_row(np.abs(poses[:, :3]) > MAX_LENGTH, f"{name}: row", far)
    norm = np.linalg.norm(poses[:, 3:], axis=1)
    refuse_row(np.abs(norm - 1) > 1e-2, f"{name}: row", ": the quaternion's norm is not 1; columns 3-6 are x y z w")
    return np.concatenate([poses[:, :3], canonical_quaternion(poses[:, 3:] / norm[:, None])], axis=1)


def canonical_quaternion(quaternion):
    """Of q and -q (n, 4) xyzw, one rotation, the one whose first non-zero of w, z, y, x is positive."""
    reverse = quaternion[:, ::-1]  # w z y x
    first = reverse[np.arange(len(reverse)), (reverse != 0).argmax(1)]
    return quaternion * np.where(first < 0, -1, 1)[:, None]


def numbered_joints(count):
    """Names of `count` joints whose recordings name none."""
    return [f"joint_{i}" for i in range(count)]
