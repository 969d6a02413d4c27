"""From a folder of meshes and recorded grasps to arrays in memory.

Layout: ROOT/<synset>/<object>/<scene>/mesh.obj (or .stl .ply .off .glb) with recording.npz beside it.
A scene is one posed or scaled variant of its object on the table plane z = 0. recording.npz holds
    grasps  (n, 7 + J)  wrist position x y z (m) and unit quaternion x y z w in the mesh's frame, J joints (rad)
    scores  (n,)        higher is better (`qualities` is accepted too); optional: without, all grasps are kept
    joint_names (J,)    strings, optional

    python data.py ROOT                    checks every file of a root and prints what is in it
    python data.py ROOT --hand FILE.json   keeps there which hand its joints are of (python -m hand)
"""

import dataclasses
import hashlib
import itertools
import sys
from pathlib import Path

import cli  # noqa: F401 - first, so that Ctrl-C is one line while all else loads
import numpy as np
from tqdm import tqdm

from cli.errors import UserError, command, refuse
from cli.flags import Parser, number
from cli.words import plural
from files.cache import cache_path, read_cache, write_cache
from files.frames import check_reach, describe_frames, frame_figures, frame_warnings
from files.reading import MAX_LENGTH, MESH_TYPES, parse_mesh, read_array, read_bytes, stamp, unit_hint
from files.recordings import find_scenes, numbered_joints, read_recording, uncommon_joints
from files.writing import read_json, stable_seed, write_json
from hand.described import hand_for, read_source


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
    excluded: list  # (scene, reason) of what --skip-bad left out
    num_low: int  # grasps under the minimum score, dropped
    hand: object  # a `hand.described.Hand`, None where it is not known
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
FARTHEST = 1000  # lengths of an object from the origin: so far away, float32 still has a ten-thousandth of its length


def sample_surface(vertices, faces, count, seed, dtype=np.float32):
    """`count` points (count, 3) drawn uniformly by area from the surface as it is, never from its hull.

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
    return (a[face] + u * (b[face] - a[face]) + v * (c[face] - a[face])).astype(dtype)


def as_cloud(points, name):
    """Points (N, 3) drawn from the file `name` as a cloud, float32; `UserError` where they show too little of it."""
    offset, length, middle = np.abs(points).max(), np.ptp(points, axis=0).max(), np.median(points, axis=0)
    far = f"{name}: lies at {' '.join(f'{x:.7g}' for x in middle)}, over {FARTHEST} times its length from the origin"
    refuse(offset > FARTHEST * length > 0, f"{far}; subtract that from it, and from the grasps' positions")
    alike = (points == middle).all(1).sum()  # a point that is more than half of all is their median
    padded = f"{name}: {alike} of {len(points)} points drawn from it are one and the same; leave out what pads it"
    refuse(alike > len(points) / 2, padded)
    return points.astype(np.float32)


def mesh_cloud(path, num_points, longest=MAX_LENGTH):
    """Cloud (N, 3) float32 in m of a mesh file, and the SHA-256 of its bytes, which alone seeds the cloud."""
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    vertices, faces = parse_mesh(content, str(path), longest)
    try:
        points = sample_surface(vertices, faces, num_points, stable_seed("cloud", digest), np.float64)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return as_cloud(points, path), digest


def read_cloud(path, num_points, longest=MAX_LENGTH):
    """Cloud (N, 3) float32 in m from a mesh file or an .npy of at least N points (thinned by a fixed draw)."""
    suffix = Path(path).suffix.lower()
    if suffix in MESH_TYPES:
        return mesh_cloud(path, num_points, longest)[0]
    known = " ".join(MESH_TYPES)
    refuse(suffix != ".npy", f"{path}: not a mesh ({known}) and not a cloud (.npy); give one of these")
    cloud = read_array(path, 3)
    refuse(len(cloud) < num_points, f"{path}: {len(cloud)} points; this run needs at least {num_points}")
    length = np.ptp(cloud, axis=0).max()
    if length > longest:
        raise UserError(f"{path}: {length:.4g} m long, the limit is {longest:g} m; {unit_hint(length)}")
    seed = int.from_bytes(hashlib.sha256(read_bytes(path)).digest()[:8], "big")
    return as_cloud(cloud[np.random.default_rng(seed).permutation(len(cloud))[:num_points]], path)


# ---------------------------------------------------------------- a root
def load_dataset(root, num_points, min_score=1.5, skip_bad=False, cache_dir=None, quiet=False, source=None):
    """Read a root into a `GraspData`: clouds of `num_points`, grasps with score >= `min_score`.

    The first read of a root writes one cache file, later ones reuse what is unchanged. Raises
    `UserError` for anything wrong, or lists it in `excluded` with `skip_bad`.
    """
    root = Path(root)
    refuse(not root.is_dir(), f"{root}: no such dataset folder; check the path")
    path = cache_path(root, num_points, cache_dir)
    cached = read_cache(path)
    scenes, excluded = read_root(root, num_points, cached, skip_bad, quiet)
    if len(scenes) != len(cached) or any(cached.get(scene["name"]) is not scene for scene in scenes):
        write_cache(path, scenes)
    if not source and (root / "dataset.json").exists():
        source = read_json(root / "dataset.json").get("hand")
    return collect(root, scenes, min_score, excluded, source)


def read_root(root, num_points, cached, skip_bad, quiet):
    """All scenes of a root, from `cached` where their files are unchanged; and (name, reason) of those left out."""
    scenes, excluded = [], []

    def exclude(name, reason):
        refuse(not skip_bad, reason)
        excluded.append((name, reason))

    found, misplaced = find_scenes(root)
    for path in misplaced:
        name = str(Path(path).parent.relative_to(root))
        exclude(name, f"{path}: at the wrong depth; recordings lie in {root}/<synset>/<object>/<scene>/")
    refuse(not found, f"{root}: no scenes; expected {root}/<synset>/<object>/<scene>/mesh.obj and recording.npz")
    for name, *paths in tqdm(found, "reading meshes and grasps", unit="scene", disable=quiet or None, delay=2):
        try:
            scene = read_scene(name, *paths, num_points, root, cached.get(name))
            check_reach(scene["cloud"], scene["poses"], f"{paths[1]}: 'grasps'")
            scenes.append(scene)
        except UserError as error:
            exclude(name, str(error))
    if not scenes:
        raise UserError(f"{root}: every scene is bad; the first: {excluded[0][1]}")
    other = uncommon_joints(scenes)
    for name, difference in other.items():
        exclude(name, f"{root / name / 'recording.npz'}: {difference}; all recordings of a root must agree")
    return [scene for scene in scenes if scene["name"] not in other], excluded


def read_scene(name, mesh, recording, num_points, root, old):
    """A scene as a dict: name, stamps and hashes of its files, cloud (N, 3), grasps; `old` where that is still right.

    mesh, recording: paths, None where there is none. Raises `UserError`.
    """
    for path, what in ((mesh, "mesh.obj (or .stl .ply .off .glb)"), (recording, "recording.npz")):
        lacking = f"{Path(mesh or recording).parent}: has no {what}"
        refuse(path is None, f"{lacking}; put it there, by this name and no other, or remove the folder")
    if name.encode(errors="ignore").decode() != name:
        raise UserError(f"{root}/{ascii(name)[1:-1]}: the folder's name is not valid UTF-8; rename it")
    stamps = [stamp(mesh), stamp(recording)]
    if old and old["stamps"] == stamps:
        return old
    keys = ("poses", "joints", "scores", "joint_names", "recording_hash")
    scene = dict(zip(keys, read_recording(recording))) | {"name": name, "stamps": stamps}
    scene["cloud"], scene["mesh_hash"] = mesh_cloud(mesh, num_points)
    return scene


def collect(root, scenes, min_score, excluded, source=None):
    """Scenes as one `GraspData`, without grasps under `min_score` and without scenes left empty by that.

    source: of the hand, where the root keeps one.
    """
    unscored = sum(bool(np.isnan(scene["scores"]).all()) for scene in scenes)
    if unscored:
        print(f"{root}: {plural(unscored, 'recording')} without scores: all their grasps are kept", file=sys.stderr)
    total = sum(len(scene["scores"]) for scene in scenes)
    kept = [(scene, np.flatnonzero(~(scene["scores"] < min_score))) for scene in scenes]  # NaN is not under it
    kept = [(scene, rows) for scene, rows in kept if len(rows)]
    refuse(not kept, f"{root}: none of its {total} grasps has a score of at least {min_score:g}; lower --min-score")
    digest = hashlib.sha256(repr(float(min_score)).encode())
    for scene, _ in kept:
        digest.update(f"{scene['name']} {scene['mesh_hash']} {scene['recording_hash']}\n".encode())
    if source:  # the surface is seen from its links
        digest.update(repr(source).encode())
    arrays = {key: np.concatenate([scene[key][rows] for scene, rows in kept]) for key in ("poses", "joints", "scores")}
    named = (scene["joint_names"] for scene, _ in kept if scene["joint_names"])
    names = next(named, numbered_joints(arrays["joints"].shape[1]))
    row = np.concatenate([rows for _, rows in kept])
    return GraspData(
        root=str(root),
        scenes=[scene["name"] for scene, _ in kept],
        mesh_hashes=[scene["mesh_hash"] for scene, _ in kept],
        clouds=np.stack([scene["cloud"] for scene, _ in kept]),
        **arrays,
        scene=np.repeat(np.arange(len(kept)), [len(rows) for _, rows in kept]),
        row=row,
        joint_names=names,
        excluded=excluded,
        num_low=total - len(row),
        hand=hand_for(names, source, f"{root}/dataset.json"),
        fingerprint=digest.hexdigest()[:16],
    )


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
    arrays = []
    for chosen in (batches[b] for b in rng.permutation(len(batches))):
        object_index = np.repeat(np.arange(len(chosen)), [len(chunk) for chunk in chosen])
        arrays.append((scene[[chunk[0] for chunk in chosen]], np.concatenate(chosen), object_index))
    return arrays


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
        "--data", default="data/synthetic", metavar="ROOT", help="dataset folder; ours are made on first use"
    )
    add_reading_flags(group)


def add_reading_flags(group):
    """The flags about reading a dataset, wherever its folder is named."""
    group.add_argument("--min-score", type=number(float), default=1.5, help="grasps with a lower score are dropped")
    group.add_argument("--skip-bad", action="store_true", help="leave bad scenes out, listed, instead of stopping")
    group.add_argument("--cache-dir", metavar="DIR", help="where to keep the cache file (default: ROOT/.cache)")


def warn_of_frames(data):
    """Say on stderr what does not fit between meshes, wrists and quaternions."""
    for line in frame_warnings(frame_figures(data.clouds, data.poses, data.scene)):
        print(f"warning: {data.root}: {line}", file=sys.stderr)


def warn_of_limits(data):
    """Say on stderr which joints are recorded beyond the limits of the hand, as those in another order or unit are."""
    low, high = data.hand.limits.T
    beyond = ((data.joints < low - 0.1) | (data.joints > high + 0.1)).mean(0)
    for joint in np.flatnonzero(beyond > 0.05):
        limits = f"{beyond[joint]:.0%} of its angles beyond {low[joint]:.2f} to {high[joint]:.2f} rad"
        print(f"warning: {data.root}: {data.joint_names[joint]} has {limits}; see the order of joints", file=sys.stderr)


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
    objects, counts = np.unique(data.object_of_grasp, return_counts=True)
    synsets = {name.split("/")[0] for name in objects}
    sides = zip("xyz", extents.min(0), extents.max(0))
    lines = [
        f"{data.root}: {plural(len(objects), 'object')} of {plural(len(synsets), 'synset')}, "
        f"{plural(len(data.scenes), 'scene')}",
        f"grasps kept   {len(data.scene)} (per object {counts.min()}-{counts.max()}, median {int(np.median(counts))}), "
        f"{data.num_low} under the minimum score",
        "extents (m)   " + "  ".join(f"{axis} {low:.3f}-{high:.3f}" for axis, low, high in sides),
        f"scores        {describe_scores(data.scores)}",
        "joint (rad)        min     mean      max",
    ]
    table = zip(data.joint_names, data.joints.min(0), data.joints.mean(0), data.joints.max(0))
    lines += [f"  {name:<12} {low:8.3f} {mean:8.3f} {high:8.3f}" for name, low, mean, high in table]
    lines += describe_frames(frame_figures(data.clouds, data.poses, data.scene))
    return "\n".join(lines + [f"excluded {name}: {reason}" for name, reason in data.excluded])


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("root", metavar="ROOT", help="dataset folder")
    parser.add_argument("--points", type=number(int, 2), default=1024, help="points per cloud")
    parser.add_argument("--hand", metavar="FILE", help="the hand of these recordings, described: kept in dataset.json")
    add_reading_flags(parser)
    args = parser.parse_args(argv)
    source, kept = args.hand and read_source(args.hand), Path(args.root) / "dataset.json"
    data = load_dataset(args.root, args.points, args.min_score, args.skip_bad, args.cache_dir, source=source)
    print(describe(data))
    warn_of_frames(data)
    if source:
        warn_of_limits(data)
        write_json(kept, (read_json(kept) if kept.exists() else {}) | data.hand.kept)
        order = " ".join(data.hand.joint_names)
        print(f"saved {kept}: the hand, {len(data.hand.finger_names)} fingers; joints in the order {order}")


if __name__ == "__main__":
    main()
