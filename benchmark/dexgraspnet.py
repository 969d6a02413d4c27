"""Public grasps: DexGraspNet (Wang et al. 2023) as scenes of our layout. The Shadow hand has 22 joints.

DIR/dataset/<object>.npy                        a pickled array of dicts, one grasp each (an "entry")
DIR/meshdata/<object>/coacd/decomposed.obj      its mesh, in units of no meaning

An entry's `scale` makes metres of the mesh. Its `qpos` holds the wrist by name: WRJTx, WRJTy, WRJTz in m, WRJRx, WRJRy,
WRJRz in rad about the fixed axes x, then y, then z; all other names are joints in rad. There are no scores.

What to know before training on it:
- The wrist frame is the Shadow hand's. Seen from it, objects lie along z and -y; in ours (hand/kinematics.py) y points
  along the fingers and z where the hand approaches. The network does not mind; `--pool surface`, whose probes stand in
  our frame, says at the start of a training that they see little. With --hand wrists are turned into our frame.
- There is no table. Objects float in an orientation of their own, in which z need not be up. Each scene, mesh and
  wrists, is moved up or down until the mesh's lowest point has z = 0, which is what the layout asks for.
- The mesh is cut into convex parts. Clouds have points on the walls between them, too.
"""

import io
import pickle
import re
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from benchmark.meshes import read_surface
from cli.errors import UserError, refuse
from files.folders import files_under
from files.reading import MAX_LENGTH, read_bytes, refuse_row
from files.recordings import MAX_ANGLE, normal_poses

POSITION = ("WRJTx", "WRJTy", "WRJTz")
ROTATION = ("WRJRx", "WRJRy", "WRJRz")


def find_objects(folder):
    """[((category, object name), path of its grasps)] of a DexGraspNet folder."""
    dataset = Path(folder) / "dataset"
    paths = files_under(dataset, ".npy") if dataset.is_dir() else []
    found = []
    for path in paths:
        category = re.match(r"(?:core|sem)-(\w+)-", path.stem)  # core-mug-857… is a mug, sem-Bottle-437… a Bottle
        found.append(((category[1] if category else "unsorted", path.stem), path))
    refuse(not found, f"{dataset}: no .npy files in it; give the folder that holds dataset/ and meshdata/")
    return found


def read_object(path):
    """The scenes of one object, one per scale, and the names of its J joints; path: its DIR/dataset/<object>.npy.

    A scene is (name, vertices (V, 3) m, faces (F, 3), grasps (n, 7 + J) as in a recording).
    """
    path = Path(path)
    entries = read_entries(path)
    joint_names = sorted(map(str, set(entries[0]["qpos"]) - {*POSITION, *ROTATION}))
    refuse(not joint_names, f"{path}: entry 0: 'qpos' names no joints")
    names = (*POSITION, *ROTATION, *joint_names)
    values = np.array([numbers_of(entry, names, f"{path}: entry {i}") for i, entry in enumerate(entries)])
    scales = values[:, 0].round(6)  # the same scale is 0.06 in one entry and 0.05999999542 in another
    positions, angles, joints = np.split(values[:, 1:], (3, 6), axis=1)
    turned = ": a joint is turned by over 720 degrees; angles are in radians"
    refuse_row(np.abs(joints) > MAX_ANGLE, f"{path}: entry", turned)
    vertices, faces = read_surface(path.parent.parent / "meshdata" / path.stem / "coacd" / "decomposed.obj")
    length = np.ptp(vertices, axis=0).max()
    unfit = (scales <= 0) | (scales * length > MAX_LENGTH)
    refuse_row(unfit, f"{path}: entry", f": 'scale' makes the object 0 or over {MAX_LENGTH:g} m long")
    quaternions = Rotation.from_euler("xyz", angles).as_quat()  # small letters: about fixed axes
    poses = normal_poses(np.concatenate([positions, quaternions], axis=1), str(path))
    scenes = []
    for scale in np.unique(scales):
        rows = scales == scale
        scaled, grasps = vertices * scale, np.concatenate([poses, joints], axis=1)[rows]
        lowest = scaled[:, 2].min()
        scaled[:, 2] -= lowest
        grasps[:, 2] -= lowest
        scenes.append((f"scale_{scale:g}", np.round(scaled, 6), faces, grasps.astype(np.float32)))
    return scenes, joint_names


# ---------------------------------------------------------------- entries, checked
def numbers_of(entry, names, name):
    """The scale of an entry and the values of `names` in its `qpos`, which must hold nothing else."""
    stored, keys = {key: entry[key] for key in {"scale"} & entry.keys()} | entry["qpos"], ("scale", *names)
    other = " ".join(sorted(map(str, stored.keys() ^ keys)))
    refuse(other, f"{name}: '{other}' is not in it, or not in entry 0")
    for key in keys:
        finite = isinstance(stored[key], (int, float)) and abs(stored[key]) < np.finfo(np.float32).max
        refuse(not finite, f"{name}: '{key}' is not a finite number")
    return [stored[key] for key in keys]


# ---------------------------------------------------------------- a pickle, read without running what it names
def read_entries(path):
    """The dicts in an .npy file of pickled ones; whatever code the file names, none is run."""
    file = io.BytesIO(read_bytes(path))
    try:
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        _, _, kind = read_header(file)
        refuse(not kind.hasobject, "holds plain numbers where an array of dicts is expected")
        entries = InertUnpickler(file).load().state[-1]  # of version, shape, type, order and content
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception:  # what broken bytes make of the unpickling
        raise UserError(f"{path}: not an array of numpy.save, or cut short; fetch it again") from None
    refuse(not isinstance(entries, list) or not entries, f"{path}: holds no grasps; an array of dicts is expected")
    for i, entry in enumerate(entries):
        named = isinstance(entry, dict) and isinstance(entry.get("qpos"), dict)
        refuse(not named, f"{path}: entry {i}: has no 'qpos' that names the joints; is it DexGraspNet's?")
    return entries


class InertUnpickler(pickle.Unpickler):
    """Rebuilds arrays of objects and single numbers; a pickle that names anything else is refused unread."""

    def find_class(self, module, name):
        stand_ins = {
            "numpy.ndarray": Stored, "numpy.dtype": Stored, "multiarray._reconstruct": Stored,
            "multiarray.scalar": stored_number, "_codecs.encode": str.encode,
        }  # fmt: skip
        known = f"{module}.{name}".removeprefix("numpy.core.").removeprefix("numpy._core.")
        if known not in stand_ins:
            raise UserError(f"names {module}.{name}, code that has no business in grasps; do not trust this file")
        return stand_ins[known]


class Stored:
    """Stands for a numpy array or dtype while it is unpickled: what made it, and its state."""

    def __init__(self, *made):
        self.made, self.state = made, (None, "|")

    def __setstate__(self, state):
        self.state = state


def stored_number(kind, content):
    """A number as numpy pickles it: its dtype, a `Stored` of a code, say f8, and a byte order; its bytes."""
    return np.frombuffer(content, np.dtype(kind.state[1] + kind.made[0])).item()
