"""The benchmark as it ships: the kept grasps of 1,500 objects in one file, from which all machines make one root.

    python -m benchmark.shipped ROOT      packs a root that `synthesize.py --out ROOT` made into benchmark/grasps.npz

Version 2 is version 1 rounded: grasps to STEPS, the meshes that they were made on to 10 µm. Meshes are not in the file.
Their shapes are drawn again from the objects' seeds, and stand as the file says: what the generator drew for a second
scene, or for a shape drawn again, depends on how many grasps it had tried before. A digest per scene, of the mesh's
bytes and the arrays' content, shows that what is made is what was packed.

benchmark/grasps.npz, for C scenes in order with n grasps in all:
    index    JSON: settings, names of the scenes, {object: state of the generator} where the shape is not its first one
    pose     (C, 3) float64: resting pose, yaw, scale, as shapes.draw_pose      nudge (C,) uint8, as make.on_grid
    count    (C,) grasps per scene                                              digest (C, 16) uint8
    largest  (n,) uint8: which component of the quaternion is left out, and follows from the others
    high, low (19, n) uint8: two bytes of 3 positions, 3 quaternion components, 12 joints, the score
"""

import collections
import contextlib
import functools
import hashlib
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmark.make import CELLS, mesh_text, on_grid, seed_of, write_scene
from benchmark.progress import DEFAULT_ROOT, LOG, VERSION
from benchmark.progress import command_line, finish, finished, open_log, progress_bar, recorded
from benchmark.shapes import pose_scene, procedural_mesh
from cli.errors import UserError, command, refuse
from cli.flags import Parser
from cli.processes import cores, map_in_processes
from data import read_scene
from files.cache import cache_path, write_cache
from files.reading import read_mesh, read_npz
from files.recordings import canonical_quaternion, content_hash
from files.writing import atomic
from hand.described import BENCHMARK
from hand.score import MIN_SCORE

FILE = Path(__file__).with_name("grasps.npz")
SETTINGS = {"objects": 1500, "grasps": 240, "scenes": 2, "seed": 0, "shipped": True}
NUM_POINTS = 512  # per cloud, as the default preset has it: the cache of these is written at once

# By column of `high` and `low`: m, quaternion components, rad, score. The rounding is off by half a step at most; the
# component that is left out by three times as much. Powers of two lose nothing more in float32.
STEPS = np.repeat([2.0**-15, 2.0**-14, 2.0**-13, 2.0**-9], [3, 3, 12, 1])
LOWEST = np.concatenate(([-1] * 3, [-1] * 3, BENCHMARK.limits[:, 0], [MIN_SCORE]))  # what the integer 0 stands for
OTHERS = np.array([[j for j in range(4) if j != i] for i in range(4)])  # the components beside the largest


def quantise(grasps, scores):
    """Grasps (n, 19), scores (n,) of at least MIN_SCORE -> integers (19, n) uint16 and the largest components (n,)."""
    quaternion = grasps[:, 3:7].astype(float)
    largest = np.abs(quaternion).argmax(1)
    quaternion *= np.sign(np.take_along_axis(quaternion, largest[:, None], 1))
    others = np.take_along_axis(quaternion, OTHERS[largest], 1)
    steps = (np.column_stack((grasps[:, :3], others, grasps[:, 7:], scores)) - LOWEST) / STEPS
    steps[:, -1] = np.floor(steps[:, -1])  # restored as the middle of its step, so that none falls under MIN_SCORE
    integers = np.rint(steps)
    assert (0 <= integers).all() and (integers < 2**16).all()
    return integers.astype(np.uint16).T, largest.astype(np.uint8)


def restore(integers, largest):
    """The inverse of `quantise`: grasps (n, 19), scores (n,), both float32, the same on every processor."""
    values = integers.T * STEPS + LOWEST
    x, y, z = others = values[:, 3:6].T
    quaternion = np.empty((len(values), 4))
    np.put_along_axis(quaternion, OTHERS[largest], others.T, 1)
    np.put_along_axis(quaternion, largest[:, None].astype(int), np.sqrt(1 - (x * x + y * y + z * z))[:, None], 1)
    joints = np.minimum(values[:, 6:18], BENCHMARK.limits[:, 1])
    grasps = np.concatenate((values[:, :3], canonical_quaternion(quaternion), joints), 1)
    return grasps.astype(np.float32), (values[:, 18] + STEPS[18] / 2).astype(np.float32)


def digest_of(mesh_hash, recording_hash):
    """What the file keeps of a scene's hashes: (16,) uint8."""
    return np.frombuffer(hashlib.sha256(f"{mesh_hash} {recording_hash}".encode()).digest()[:16], dtype=np.uint8)


def shape_of(name, seed, state=None):
    """Vertices (V, 3) m and faces of an object "<synset>/<name>", drawn from its seed or from a generator's state."""
    rng = np.random.default_rng(seed_of(name, seed))
    if state:
        rng.bit_generator.state = state
    return procedural_mesh(name.split("/")[0], rng)


# ---------------------------------------------------------------- unpacking
@functools.cache
def opened(file):
    """The file's arrays, its index decoded, and `first`: where each scene's grasps begin."""
    content = read_npz(file, "restore it with: git checkout benchmark/grasps.npz")
    index = json.loads(content.pop("index").tobytes())
    integers = content.pop("high") * np.uint16(256) + content.pop("low")
    return content | index | {"integers": integers, "first": np.r_[0, np.cumsum(content["count"])]}


def unpack_object(root, file, name):
    """Write the scenes of an object that are missing or not as shipped; -> all of them as data.py reads them."""
    shipped, shape, found = opened(file), None, []
    for number, scene in enumerate(shipped["scenes"]):
        if not scene.startswith(f"{name}/"):
            continue
        read = read_if_right(root, scene, shipped["digest"][number])
        if not read:
            shape = shape or shape_of(name, shipped["settings"]["seed"], shipped["redrawn"].get(name))
            write_shipped(root, shipped, number, *shape)
            read = read_if_right(root, scene, shipped["digest"][number])
        other = f"{root}/{scene}: is not what {file.name} says it must be; restore that with: git checkout benchmark"
        refuse(not read, f"{other}; if it is as it was, tell us of this numpy, {np.__version__}")
        found.append(read)
    return found


def write_shipped(root, shipped, number, vertices, faces):
    """Write one scene of the file; vertices, faces: its object's shape."""
    rows = slice(*shipped["first"][number : number + 2])
    posed, _ = on_grid(pose_scene(vertices, *shipped["pose"][number]), int(shipped["nudge"][number]))
    grasps, scores = restore(shipped["integers"][:, rows], shipped["largest"][rows])
    arrays = {"grasps": grasps, "scores": scores, "joint_names": np.array(BENCHMARK.joint_names)}
    write_scene(root / shipped["scenes"][number], mesh_text(posed, faces, decimals=5), arrays)


def read_if_right(root, scene, digest):
    """A scene as data.py reads it; None where it is missing, broken or another one."""
    try:
        paths = (root / scene / "mesh.obj", root / scene / "recording.npz")
        read = read_scene(scene, *paths, NUM_POINTS, root, None)
    except UserError:
        return None
    return read if np.array_equal(digest_of(read["mesh_hash"], read["recording_hash"]), digest) else None


def unpack(root, workers, quiet=False, file=FILE):
    """Make or resume a root of the shipped benchmark, ready to train on; returns the content of its dataset.json."""
    root, settings = Path(root), opened(file)["settings"] | {"shipped": True}
    if content := finished(root, settings):
        return content
    open_log(root, settings)
    names = sorted({scene.rsplit("/", 1)[0] for scene in opened(file)["scenes"]})
    make = functools.partial(unpack_object, root, file)
    with contextlib.closing(map_in_processes(make, names, workers, chunk=4)) as made:
        scenes = [scene for found in progress_bar(made, root, len(names), quiet) for scene in found]
    write_cache(cache_path(root, NUM_POINTS, None), scenes)
    return finish(root, settings, objects=len(names), grasps_kept=int(opened(file)["count"].sum()), unusable={})


def ensure_root(path, quiet=False):
    """The dataset root `path`; the default root is made on first use, or finished where that was interrupted."""
    root, default = Path(path), Path(path).as_posix() == DEFAULT_ROOT
    content, unfinished = recorded(root), (root / LOG).exists()
    own = f"{root}: was made with settings of its own, numbers told here are of the benchmark as it ships"
    other = default and content.get("settings", SETTINGS) != SETTINGS
    refuse(other, f"{own}; give it another name, or remove it and run: python synthesize.py")
    if content.get("complete") or root.exists() and not unfinished and any(root.iterdir()):
        return root  # ours, or data of somebody's own
    if default:
        unpack(root, cores(), quiet)
        return root
    refuse(unfinished, f"{root}: is unfinished; make it with: {command_line(root, content.get('settings', {}))}")
    raise UserError(f"{root}: no such root; give the folder in which the data lies now as --data")


# ---------------------------------------------------------------- packing
def pack(root, file=FILE):
    """Write the file from a complete root of procedural objects; raises `UserError` where it is none."""
    root, content = Path(root), recorded(Path(root))
    settings = {name: content.get("settings", {}).get(name) for name in ("objects", "grasps", "scenes", "seed")}
    whole = content.get("complete") and None not in settings.values() and "hand" not in content
    refuse(not whole, f"{root}: is no complete root of synthesize.py --out")
    names, redrawn, columns = [], {}, collections.defaultdict(list)
    paths = sorted(root.glob("*/*/*/recording.npz"), key=lambda path: path.parts)
    for path in tqdm(paths, "packing", unit="scene", disable=None):
        scene, name = "/".join(path.parts[-4:-1]), "/".join(path.parts[-4:-2])
        stored = read_npz(path, "make the root again")
        state = json.loads(str(stored["drawn_from"]))
        if state != np.random.default_rng(seed_of(name, settings["seed"])).bit_generator.state:
            redrawn[name] = state
        vertices, faces = shape_of(name, settings["seed"], redrawn.get(name))
        posed, nudge = on_grid(pose_scene(vertices, *stored["pose"]))
        off = np.abs(posed - read_mesh(path.with_name("mesh.obj"))[0]).max()
        refuse(off > 1 / CELLS, f"{scene}: its mesh is not what its pose makes")
        kept = stored["scores"] >= MIN_SCORE
        if not kept.any():
            continue
        integers, largest = quantise(stored["grasps"][kept], stored["scores"][kept])
        grasps, scores = restore(integers, largest)
        arrays = {"grasps": grasps, "scores": scores, "joint_names": np.array(BENCHMARK.joint_names)}
        mesh_hash = hashlib.sha256(mesh_text(posed, faces, decimals=5)).hexdigest()
        names.append(scene)
        columns["pose"].append(stored["pose"])
        columns["nudge"].append(np.uint8(nudge))
        columns["count"].append(np.int32(kept.sum()))
        columns["digest"].append(digest_of(mesh_hash, content_hash(arrays)))
        columns["largest"].append(largest)
        columns["integers"].append(integers)
    integers, largest = np.hstack(columns.pop("integers")).copy(order="C"), np.hstack(columns.pop("largest"))
    index = json.dumps({"version": VERSION, "settings": settings, "scenes": names, "redrawn": redrawn}).encode()
    planes = {"high": (integers >> 8).astype(np.uint8), "low": (integers & 255).astype(np.uint8), "largest": largest}
    with atomic(file) as temporary, open(temporary, "wb") as opened_file:
        np.savez_compressed(opened_file, index=np.frombuffer(index, dtype=np.uint8), **columns, **planes)
    print(f"{file}: {len(names)} scenes, {len(largest)} grasps, {file.stat().st_size / 1e6:.1f} MB")


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("root", metavar="ROOT", help="what synthesize.py --out ROOT has made")
    pack(parser.parse_args(argv).root)


if __name__ == "__main__":
    main()
