"""From a folder of meshes and recorded grasps to arrays in memory.

Layout: ROOT/<synset>/<object>/<scene>/mesh.obj (or .stl .ply .off .glb) with recording.npz beside it.
A scene is one posed or scaled variant of its object on the table plane z = 0. recording.npz holds
    grasps  (n, 7 + J)  wrist position x y z (m) and unit quaternion x y z w in the mesh's frame, J joints (rad)
    scores  (n,)        higher is better (`qualities` is accepted too); optional: without, all grasps are kept
    joint_names (J,)    strings, optional

    python data.py ROOT        checks every file of a root and prints what is in it
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli.errors import UserError, command
from cli.flags import Parser, number
from files.frames import describe_frames, frame_figures, frame_warnings
from files.reading import (
    MAX_LENGTH,
    MESH_NAMES,
    MESH_TYPES,
    bad_row,
    is_hidden,
    parse_mesh,
    read_array,
    read_bytes,
    read_npz,
    stamp,
    subfolders,
    unit_hint,
)
from files.writing import atomic, stable_seed

MAX_ANGLE = 4 * np.pi  # rad; a larger joint value is taken for degrees
CACHE_VERSION = 2  # goes up whenever the same file gives another cloud or other grasps than before


@dataclasses.dataclass
class GraspData:
    """All kept grasps of a root; scene i's cloud is clouds[i], its grasps are rows with scene == i (sorted)."""

    root: str
    scenes: list  # C names "<synset>/<object>/<scene>"
    mesh_hashes: list  # C SHA-256 of the mesh files
    clouds: np.ndarray  # (C, N, 3) float32, m, mesh frame
    poses: np.ndarray  # (n, 7) float32: xyz m, quaternion xyzw, canonical sign
    joints: np.ndarray  # (n, J) float32, rad
    scores: np.ndarray  # (n,) float32, NaN where the recording has none
    scene: np.ndarray  # (n,) int64 into scenes
    row: np.ndarray  # (n,) int64: row of the recording
    joint_names: list  # J strings
    excluded: list  # (file, reason) of what --skip-bad left out
    num_low: int  # grasps under the minimum score, dropped
    fingerprint: str  # changes with the minimum score and with any mesh or recording that has grasps over it

    @property
    def object_of_scene(self):
        """C object ids "<synset>/<object>", one per scene."""
        return [name.rsplit("/", 1)[0] for name in self.scenes]

    @property
    def object_of_grasp(self):
        """(n,) object ids, one per grasp."""
        return np.asarray(self.object_of_scene)[self.scene]


# ---------------------------------------------------------------- clouds


def sample_surface(vertices, faces, count, seed):
    """`count` points (count, 3) float32 drawn uniformly by area from the surface as it is, never from its hull.

    Raises `UserError` where the area is zero or not finite.
    """
    a, b, c = vertices[faces].transpose(1, 0, 2)  # (F, 3) each
    areas = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = areas.sum()
    if not (np.isfinite(total) and total > 1e-12):
        raise UserError(f"the surface area is {total:.3g} m²; it must be positive and finite")
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(areas)
    face = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right").clip(max=len(faces) - 1)
    u, v = rng.random((2, count, 1))
    flip = u + v > 1  # reflect into the triangle: uniform over it
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    return (a[face] + u * (b[face] - a[face]) + v * (c[face] - a[face])).astype(np.float32)


def mesh_cloud(content, name, num_points, longest=MAX_LENGTH):
    """Cloud (N, 3) float32 in m of a mesh file's bytes, and the bytes' SHA-256, which alone seeds the cloud."""
    digest = hashlib.sha256(content).hexdigest()
    vertices, faces = parse_mesh(content, name, longest)
    try:
        return sample_surface(vertices, faces, num_points, stable_seed("cloud", digest)), digest
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def read_cloud(path, num_points, longest=MAX_LENGTH):
    """Cloud (N, 3) float32 in m from a mesh file or an .npy of at least N points (thinned by a fixed draw)."""
    content = read_bytes(path)
    if Path(path).suffix.lower() != ".npy":
        if Path(path).suffix.lower() not in MESH_TYPES:
            raise UserError(f"{path}: not a mesh ({' '.join(MESH_TYPES)}) and not a cloud (.npy); give one of these")
        return mesh_cloud(content, str(path), num_points, longest)[0]
    cloud = read_array(path, 3)
    if len(cloud) < num_points:
        raise UserError(f"{path}: {len(cloud)} points; this run needs at least {num_points}")
    length = np.ptp(cloud, axis=0).max()
    if not 0 < length <= longest:
        hint = unit_hint(length) if length else "its points must differ"
        raise UserError(f"{path}: {length:.4g} m long, the limit is {longest:g} m; {hint}")
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return cloud[np.random.default_rng(seed).permutation(len(cloud))[:num_points]].astype(np.float32)


# ---------------------------------------------------------------- recordings


def canonical_quaternion(quaternion):
    """Of q and -q (n, 4) xyzw, one rotation, the one whose first non-zero of w, z, y, x is positive."""
    reverse = quaternion[:, ::-1]  # w z y x
    first = reverse[np.arange(len(reverse)), (reverse != 0).argmax(1)]
    return quaternion * np.where(first < 0, -1, 1)[:, None]


def check_poses(poses, name):
    """Poses (n, 7) float64 with normalised, canonical quaternions; raises `UserError` naming `name` and the row."""
    if not np.isfinite(poses).all():
        raise UserError(f"{name}: row {bad_row(~np.isfinite(poses))} is not finite; it must hold 7 numbers")
    far = np.abs(poses[:, :3]) > MAX_LENGTH
    if far.any():
        raise UserError(f"{name}: row {bad_row(far)}: the wrist is over {MAX_LENGTH:g} m away; positions are in metres")
    norm = np.linalg.norm(poses[:, 3:], axis=1)
    off = np.abs(norm - 1) > 1e-2
    if off.any():
        row = int(off.argmax())
        raise UserError(f"{name}: row {row}: the quaternion's norm is {norm[row]:.4g}, not 1; columns 3-6 are x y z w")
    return np.concatenate([poses[:, :3], canonical_quaternion(poses[:, 3:] / norm[:, None])], axis=1)


def parse_recording(content, name):
    """Poses (n, 7), joints (n, J), scores (n,) float32 and joint names (list or None) of a recording.npz's bytes.

    Scores are NaN, which no recording may hold, where it has none. No pickle is ever read. Raises `UserError` naming
    the file, the array and the row.
    """
    advice = "write it with numpy.savez(file, grasps=..., scores=...)"
    arrays = read_npz(name, advice, ("grasps", "scores", "qualities", "joint_names"), content)
    if "scores" not in arrays and "qualities" in arrays:
        arrays["scores"] = arrays["qualities"]
    if "grasps" not in arrays:
        raise UserError(f"{name}: has no array 'grasps', only {sorted(arrays) or 'others'}; {advice}")
    numbers = {}
    for key in ("grasps", "scores") if "scores" in arrays else ("grasps",):
        if arrays[key].dtype.kind not in "fiu":
            raise UserError(f"{name}: '{key}' has type {arrays[key].dtype}; it must hold real numbers")
        with np.errstate(over="ignore"):  # of longer floats: infinite then, and refused below
            numbers[key] = arrays[key].astype(np.float64)
    grasps = numbers["grasps"]
    if grasps.ndim != 2 or grasps.shape[1] < 8 or not len(grasps):
        raise UserError(f"{name}: 'grasps' has shape {grasps.shape}; it must be (n, 7 + J), n and J at least 1")
    scores = numbers.get("scores", np.full(len(grasps), np.nan))
    if scores.shape != grasps.shape[:1]:
        raise UserError(
            f"{name}: 'scores' has shape {scores.shape}; with {len(grasps)} grasps it must be ({len(grasps)},)"
        )
    for key, array in numbers.items():
        wild = ~(np.abs(array) < np.finfo(np.float32).max)
        if wild.any():
            raise UserError(f"{name}: '{key}' row {bad_row(wild)} is not finite; leave such grasps out")
    joints = grasps[:, 7:]
    wild = np.abs(joints) > MAX_ANGLE
    if wild.any():
        raise UserError(
            f"{name}: 'grasps' row {bad_row(wild)}: a joint is {joints[wild][0]:.4g} rad; joints are in radians"
        )
    names = arrays.get("joint_names")
    if names is not None and (names.dtype.kind != "U" or names.shape != joints.shape[1:]):
        raise UserError(f"{name}: 'joint_names' must be {joints.shape[1]} strings")
    poses = check_poses(grasps[:, :7], f"{name}: 'grasps'")
    names = None if names is None else names.tolist()
    return poses.astype(np.float32), joints.astype(np.float32), scores.astype(np.float32), names


# ---------------------------------------------------------------- the root


def scan(root):
    """Sorted list of (scene name, mesh path or None, recording path or None), found by folder names alone."""
    found = []
    for synset in subfolders(root):
        for obj in subfolders(synset):
            for scene in subfolders(obj):
                files = {entry.name for entry in os.scandir(scene)}
                mesh = next((name for name in MESH_NAMES if name in files), None)
                recording = "recording.npz" if "recording.npz" in files else None
                if mesh or recording:
                    name = f"{Path(synset).name}/{Path(obj).name}/{Path(scene).name}"
                    found.append(
                        (name, mesh and os.path.join(scene, mesh), recording and os.path.join(scene, recording))
                    )
    return sorted(found)


def misplaced(root):
    """Paths of recordings that do not lie in ROOT/<synset>/<object>/<scene>/, sorted."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not is_hidden(name)]
        if "recording.npz" in files and len(Path(folder).relative_to(root).parts) != 3:
            found.append(os.path.join(folder, "recording.npz"))
    return sorted(found)


def read_scene(name, mesh, recording, num_points, root):
    """One scene's cache entry: its stamps, hashes, cloud and grasps. Raises `UserError`."""
    for path, what in ((mesh, "mesh.obj (or .stl .ply .off .glb)"), (recording, "recording.npz")):
        if path is None:
            raise UserError(f"{root / name}: has no {what}; put it there or remove the folder")
    if name.encode(errors="ignore").decode() != name:
        raise UserError(f"{root}/{ascii(name)[1:-1]}: the folder's name is not valid UTF-8; rename it")
    entry = {"name": name, "stamps": [stamp(mesh, root), stamp(recording, root)]}
    content = read_bytes(recording)
    entry["poses"], entry["joints"], entry["scores"], entry["joint_names"] = parse_recording(content, recording)
    entry["recording_hash"] = hashlib.sha256(content).hexdigest()
    entry["cloud"], entry["mesh_hash"] = mesh_cloud(read_bytes(mesh), mesh, num_points)
    return entry


def read_root(root, num_points, cached, skip_bad, quiet):
    """All scenes of a root as entries, from `cached` where size and time agree; and what was left out, and why."""
    found, entries, excluded = scan(root), [], []
    for path in misplaced(root):
        reason = f"{path}: at the wrong depth; recordings lie in {root}/<synset>/<object>/<scene>/"
        if not skip_bad:
            raise UserError(reason)
        excluded.append((str(Path(path).parent.relative_to(root)), reason))
    if not found:
        raise UserError(f"{root}: no scenes; expected {root}/<synset>/<object>/<scene>/mesh.obj and recording.npz")
    for name, mesh, recording in tqdm(
        found, desc="reading meshes and grasps", unit="scene", disable=quiet or None, delay=2
    ):
        try:
            old = cached.get(name)
            if old and mesh and recording and [stamp(mesh, root), stamp(recording, root)] == old["stamps"]:
                entries.append(old)
            else:
                entries.append(read_scene(name, mesh, recording, num_points, root))
        except UserError as error:
            if not skip_bad:
                raise
            excluded.append((name, str(error)))
    return agree(entries, skip_bad, excluded, root), excluded


def agree(entries, skip_bad, excluded, root):
    """Entries whose number and names of joints are the root's (the most common ones); others are bad."""
    if not entries:
        raise UserError(f"{root}: every scene is bad; the first: {excluded[0][1]}")
    counts = collections.Counter(entry["joints"].shape[1] for entry in entries)
    num_joints = counts.most_common(1)[0][0]
    named = [e["joint_names"] for e in entries if e["joint_names"] and e["joints"].shape[1] == num_joints]
    names = list(collections.Counter(map(tuple, named)).most_common(1)[0][0]) if named else None
    good = []
    for entry in entries:
        own = entry["joint_names"]
        if entry["joints"].shape[1] == num_joints and own in (None, names):
            good.append(entry)
            continue
        reason = f"{root / entry['name'] / 'recording.npz'}: "
        if entry["joints"].shape[1] != num_joints:
            reason += f"has {entry['joints'].shape[1]} joints, most recordings of the root have {num_joints}"
        else:
            first = next(i for i, (mine, theirs) in enumerate(zip(own, names)) if mine != theirs)
            reason += f"joint {first} is '{own[first]}', in most recordings of the root '{names[first]}'"
        if not skip_bad:
            raise UserError(reason + "; all recordings of a root must agree")
        excluded.append((entry["name"], reason))
    return good


def numbered_joints(count):
    """Names of `count` joints whose recordings name none."""
    return [f"joint_{i}" for i in range(count)]


# ---------------------------------------------------------------- the cache


def cache_path(root, num_points, cache_dir):
    """Where the cache of a root and N lies."""
    if cache_dir is None:
        return root / ".cache" / f"points-{num_points}.npz"
    tag = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return Path(cache_dir) / f"{root.name}-{tag}-points-{num_points}.npz"


def read_cache(path):
    """Entries by scene name from a cache file; empty where there is none or it cannot be used."""
    try:
        arrays = read_npz(path, "remove it")
        index = json.loads(arrays["index"].tobytes())
        if index["version"] != CACHE_VERSION:
            return {}
        clouds, poses, joints, scores = (arrays[key] for key in ("clouds", "poses", "joints", "scores"))
        entries, start = {}, 0
        for i, entry in enumerate(index["scenes"]):
            rows = slice(start, start := start + entry.pop("count"))
            entries[entry["name"]] = entry | {
                "cloud": clouds[i], "poses": poses[rows], "joints": joints[rows], "scores": scores[rows]
            }  # fmt: skip
        return entries
    except Exception:  # missing or broken in whatever way: it is made again
        return {}


def write_cache(path, entries):
    """Write the entries to one file, atomically; a folder that cannot be written means no cache, not an error."""
    plain = ("name", "stamps", "recording_hash", "mesh_hash", "joint_names")
    index = [{key: entry[key] for key in plain} | {"count": len(entry["scores"])} for entry in entries]
    index = np.frombuffer(json.dumps({"version": CACHE_VERSION, "scenes": index}).encode(), dtype=np.uint8)
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file, index=index, clouds=np.stack([entry["cloud"] for entry in entries]),
                **{key: np.concatenate([entry[key] for entry in entries]) for key in ("poses", "joints", "scores")},
            )  # fmt: skip
    except OSError:
        pass  # read-only root: the arrays stay in memory


def load_dataset(root, num_points, min_score=1.5, skip_bad=False, cache_dir=None, quiet=False):
    """Read a root into a `GraspData`: clouds of `num_points`, grasps with score >= `min_score`.

    The first read of a root writes one cache file, later ones reuse what is unchanged. Raises
    `UserError` for anything wrong, or lists it in `excluded` with `skip_bad`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such dataset folder; check the path")
    path = cache_path(root, num_points, cache_dir)
    cached = read_cache(path)
    entries, excluded = read_root(root, num_points, cached, skip_bad, quiet)
    if len(entries) != len(cached) or any(cached.get(entry["name"]) is not entry for entry in entries):
        write_cache(path, entries)
    return collect(root, entries, min_score, excluded)


def collect(root, entries, min_score, excluded):
    """Concatenate entries into a `GraspData`, dropping grasps under `min_score` and scenes left without any."""
    unscored = sum(bool(np.isnan(entry["scores"]).all()) for entry in entries)
    if unscored:
        print(f"{root}: {unscored} recordings have no scores: all their grasps are kept", file=sys.stderr)
    keep = [np.flatnonzero(~(entry["scores"] < min_score)) for entry in entries]  # NaN is not under it
    total = sum(len(entry["scores"]) for entry in entries)
    pairs = [(entry, rows) for entry, rows in zip(entries, keep) if len(rows)]
    if not pairs:
        raise UserError(f"{root}: none of its {total} grasps has a score of at least {min_score:g}; lower --min-score")
    digest = hashlib.sha256(repr(float(min_score)).encode())
    for entry, _ in pairs:
        digest.update(f"{entry['name']} {entry['mesh_hash']} {entry['recording_hash']}\n".encode())
    num_joints = pairs[0][0]["joints"].shape[1]
    names = next((entry["joint_names"] for entry, _ in pairs if entry["joint_names"]), None)
    row = np.concatenate([rows for _, rows in pairs])
    return GraspData(
        root=str(root), scenes=[entry["name"] for entry, _ in pairs],
        mesh_hashes=[entry["mesh_hash"] for entry, _ in pairs],
        clouds=np.stack([entry["cloud"] for entry, _ in pairs]),
        **{key: np.concatenate([entry[key][rows] for entry, rows in pairs]) for key in ("poses", "joints", "scores")},
        scene=np.repeat(np.arange(len(pairs)), [len(rows) for _, rows in pairs]), row=row,
        joint_names=names or numbered_joints(num_joints),
        excluded=excluded, num_low=total - len(row), fingerprint=digest.hexdigest()[:16],
    )  # fmt: skip


# ---------------------------------------------------------------- batches


def epoch_batches(scene, objects_per_batch, grasps_per_object, seed):
    """One epoch: every grasp once, in batches of distinct scenes whose clouds are encoded once each.

    scene (n,) int64, the scene of each grasp. The grasps of a scene are shuffled and cut into chunks of at
    most `grasps_per_object`; each shuffled chunk goes to the first batch with room and without its scene.
    Returns a shuffled list of (scenes (O,), grasp index (B,), object_index (B,) into scenes), all int64.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(scene))
    order = order[np.argsort(scene[order], kind="stable")]  # grouped by scene, shuffled within
    starts = np.flatnonzero(np.r_[True, np.diff(scene[order]) != 0])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    chunks = np.split(order, np.flatnonzero(rank % grasps_per_object == 0)[1:])
    batches, first_open, next_batch = [], 0, {}
    for i in rng.permutation(len(chunks)):
        own = int(scene[chunks[i][0]])
        b = max(first_open, next_batch.get(own, 0))
        while b < len(batches) and len(batches[b]) == objects_per_batch:
            b += 1
        if b == len(batches):
            batches.append([])
        batches[b].append(chunks[i])
        next_batch[own] = b + 1
        while first_open < len(batches) and len(batches[first_open]) == objects_per_batch:
            first_open += 1
    return [batch_arrays(scene, batches[b]) for b in rng.permutation(len(batches))]


def batch_arrays(scene, chunks):
    """A batch of chunks (grasp indices, each of one scene): scenes (O,), grasp index (B,), object_index (B,)."""
    object_index = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
    return scene[[chunk[0] for chunk in chunks]], np.concatenate(chunks), object_index


def epochs(scene, rows, objects_per_batch, grasps_per_object, seed, first=0, pad=False):
    """The batches of grasps `rows`, a list per epoch, from batch number `first` on, for ever.

    Each epoch is a function of (seed, epoch) alone, so a resumed run meets the same batches. With `pad` every batch of
    O clouds has O · grasps_per_object grasps, the last of them of weight zero: a CUDA graph wants constant shapes.
    """
    for epoch in itertools.count():
        seed_of_epoch = stable_seed("batches", seed, epoch)
        batches = epoch_batches(scene[rows], objects_per_batch, grasps_per_object, seed_of_epoch)
        left = [(scenes, rows[grasps], object_index) for scenes, grasps, object_index in batches[first:]]
        yield [padded(*batch, len(batch[0]) * grasps_per_object) for batch in left] if pad else left
        first = max(0, first - len(batches))


def padded(scenes, grasps, object_index, count):
    """A batch of B grasps filled up to `count` with its first grasp, and weights (count,) float32: 1/B, then zeros."""
    missing = count - len(grasps)
    weights = np.repeat(np.float32([1 / len(grasps), 0]), [len(grasps), missing])
    return scenes, *(np.r_[index, index[:1].repeat(missing)] for index in (grasps, object_index)), weights


# ---------------------------------------------------------------- python data.py ROOT


def add_data_flags(parser):
    """The flags that say which dataset is read and how, the same in every script."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        default="data/synthetic",
        metavar="ROOT",
        help="dataset folder; data/synthetic (mini) and data/full are made on first use",
    )
    add_reading_flags(group)


def add_reading_flags(group):
    """The flags about reading a dataset, wherever its folder is named."""
    group.add_argument("--min-score", type=number(float), default=1.5, help="grasps with a lower score are dropped")
    group.add_argument(
        "--skip-bad", action="store_true", help="leave bad scenes out and list them, instead of stopping at the first"
    )
    group.add_argument("--cache-dir", metavar="DIR", help="where to keep the cache file (default: ROOT/.cache)")


def warn_of_frames(data):
    """Say on stderr what does not fit between meshes, wrists and quaternions."""
    figures = frame_figures(data.clouds, data.poses, data.scene)
    for line in frame_warnings(figures, len(data.scene), data.root):
        print(f"warning: {line}", file=sys.stderr)


def describe_scores(scores):
    """Range and median of scores (n,), of which those are NaN that a recording does not have."""
    known = scores[~np.isnan(scores)]
    if not len(known):
        return "none"
    text = f"{known.min():.2f} to {known.max():.2f}, median {np.median(known):.2f}"
    return text + (f"; {len(scores) - len(known)} grasps have none" if len(known) < len(scores) else "")


def describe(data):
    """Aligned lines about a `GraspData`: counts, extents (m), scores, joint ranges (rad)."""
    extents = np.ptp(data.clouds, axis=1)  # (C, 3)
    per_object = collections.Counter(data.object_of_grasp.tolist())
    counts = np.array(list(per_object.values()))
    synsets = {name.split("/")[0] for name in data.object_of_scene}
    sides = zip("xyz", extents.min(0), extents.max(0))
    lines = [
        f"{data.root}: {len(set(data.object_of_scene))} objects of {len(synsets)} synsets, {len(data.scenes)} scenes",
        f"grasps kept   {len(data.scene)} (per object {counts.min()}-{counts.max()}, median {int(np.median(counts))}), "
        f"{data.num_low} under the minimum score",
        "extents (m)   " + "  ".join(f"{axis} {low:.3f}-{high:.3f}" for axis, low, high in sides),
        f"scores        {describe_scores(data.scores)}",
        "joint (rad)        min     mean      max",
    ]
    table = zip(data.joint_names, data.joints.min(0), data.joints.mean(0), data.joints.max(0))
    lines += [f"  {name:<12} {low:8.3f} {mean:8.3f} {high:8.3f}" for name, low, mean, high in table]
    lines += describe_frames(frame_figures(data.clouds, data.poses, data.scene))
    for name, reason in data.excluded:
        lines.append(f"excluded {name}: {reason}")
    return "\n".join(lines)


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("root", metavar="ROOT", help="dataset folder")
    parser.add_argument("--points", type=number(int, 1), default=1024, help="points per cloud")
    add_reading_flags(parser)
    args = parser.parse_args(argv)
    data = load_dataset(args.root, args.points, args.min_score, args.skip_bad, args.cache_dir)
    print(describe(data))
    warn_of_frames(data)


if __name__ == "__main__":
    main()
