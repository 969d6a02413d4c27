"""Which grasps of a dataset hold: the meshes of its scenes are read again, and hands closed on them (hand/holds.py)."""

from pathlib import Path

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from files.reading import MESH_NAMES, composed, read_mesh
from hand.holds import Outcomes, grasp_outcomes, solid_field

CLOSED, PER_SCENE = 1000, 10  # of so many grasps of a suite it is seen whether they hold, some 12 s; of a scene
KEPT_BYTES = 5e8  # of distance fields, the least lately used first to go; one of our objects has up to 1 MB
_fields = {}  # (path, when it was written) -> field, the last one used at the end


def close_some(data, rows, predictions, quiet=False, threads=1, count=CLOSED):
    """What becomes of some `count` predicted grasps: their positions in `rows`, and (key, suffix) -> `Outcomes` (n,).

    rows (sorted): of a `GraspData`; predictions: key -> arrays joints_pred (m, K, J) and logits (m, K) for all rows;
    suffix: of `candidate_joints`.
    """
    part = rows_to_close(data, rows, count)
    joints = {}
    for key, found in predictions.items():
        candidates = candidate_joints(found["joints_pred"][part], found["logits"][part], data.joints[rows[part]])
        joints |= {(key, suffix): its_joints for suffix, its_joints in candidates.items()}
    outcomes = outcomes_in_scenes(data, rows[part], np.stack(list(joints.values()), axis=1), quiet, threads)
    return part, {name: Outcomes(*(values[:, i] for values in outcomes)) for i, name in enumerate(joints)}


def outcomes_in_scenes(data, rows, joints, quiet=False, threads=1):
    """`Outcomes` of joints (n, ..., J) rad for grasps `rows` (n,) of a `GraspData`, whose meshes are read again.

    threads: for the distance fields, which take nearly all of the time.
    """
    scenes, parts, outcomes = np.unique(data.scene[rows]), [], []
    for scene in tqdm(scenes, "closing hands", unit="scene", disable=quiet or None, delay=2):
        part = np.flatnonzero(data.scene[rows] == scene)
        field = kept_field(scene_mesh(data, scene), threads)
        outcomes.append(grasp_outcomes(field, data.poses[rows[part]], joints[part], data.hand))
        parts.append(part)
    back = np.argsort(np.concatenate(parts))
    return Outcomes(*(np.concatenate(values)[back] for values in zip(*outcomes)))


def kept_field(path, threads):
    """`solid_field` of a mesh, some 0.1 s; kept, since a run and the row beside it close hands in the same scenes."""
    key = path, path.stat().st_mtime_ns  # another mesh at the same place is read again
    field = _fields.pop(key, None) or solid_field(*read_mesh(path), threads=threads)
    _fields[key] = field
    while sum(kept.values.nbytes for kept in _fields.values()) > KEPT_BYTES:
        del _fields[next(iter(_fields))]
    return field


def scene_mesh(data, scene):
    """Path of the mesh of scene number `scene` of a `GraspData`."""
    folder = Path(data.root)
    for name in data.scenes[scene].split("/"):  # which the disk may spell otherwise
        there = (folder / name).exists()
        folder = folder / name if there else next(path for path in folder.iterdir() if composed(path.name) == name)
    return next(folder / name for name in MESH_NAMES if (folder / name).exists())


def rows_to_close(data, rows, count, per_scene=PER_SCENE):
    """Positions in `rows` (sorted) of some `count` grasps: evenly chosen scenes, `per_scene` of each or more."""
    found = np.unique(data.scene[rows])
    chosen = found[np.unique(np.linspace(0, len(found) - 1, -(-count // per_scene)).round().astype(int))]
    per_scene = max(per_scene, count // len(chosen))
    rng = np.random.default_rng(0)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(data.scene[rows] == s))[:per_scene] for s in chosen]))


def candidate_joints(joints_hat, logits, joints):
    """Suffix -> joints (n, J) of K hypotheses (n, K, J): top logit, best of K, average; the only one where K is 1."""
    each = np.arange(len(joints))
    found = {"": joints_hat[each, logits.argmax(1)]}
    if joints_hat.shape[1] > 1:
        best = ((joints_hat - joints[:, None]) ** 2).mean(2).argmin(1)
        average = (joints_hat * softmax(logits, axis=1)[:, :, None]).sum(1)
        found |= {"_best_of_k": joints_hat[each, best], "_average": average}
    return found
