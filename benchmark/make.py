"""Roots made from nothing, of somebody's own meshes, or of public grasps: object by object, resumed after any stop.

The same settings give the same files for any number of worker processes.
"""

import collections
import contextlib
import functools
import json
from pathlib import Path

import numpy as np

from benchmark import dexgraspnet
from benchmark.grasps import synthesize
from benchmark.meshes import mesh_objects, named_objects, usable_mesh
from benchmark.progress import LOG, fill, finish, finished
from benchmark.shapes import CATEGORIES, draw_pose, pose_scene, procedural_mesh
from cli.errors import UserError, refuse
from files.categories import CATEGORY_NAMES
from files.writing import atomic, stable_seed
from hand.described import BENCHMARK, palm_frame
from hand.kinematics import matrix_to_pose, pose_to_matrix
from hand.score import MIN_SCORE

REDRAWS = 5  # how often a procedural object is drawn at most
CELLS = 100_000  # per m: the vertices of procedural meshes lie on a grid of 10 µm
MARGIN = 1e-10  # m: much more than what processors differ by (1e-15), much less than the grid
NUDGE = 1e-9  # m


# ---------------------------------------------------------------- a scene's files
def on_grid(vertices, nudge=None):
    """Vertices (V, 3) float64 m rounded to the grid, and how many NUDGEs they were moved by before: 0 for most meshes.

    What lies halfway between two points of the grid would be rounded up by one processor and down by another, so a
    mesh is moved until nothing does. With `nudge` given it is not looked for.
    """
    for nudge in range(256) if nudge is None else (nudge,):
        cells = (vertices + nudge * NUDGE) * CELLS
        if (np.abs(cells - np.floor(cells) - 0.5) > MARGIN * CELLS).all():
            break
    return (np.rint(cells) + 0.0) / CELLS, nudge  # + 0.0: no minus before a zero


def mesh_text(vertices, faces, decimals=6):
    """The bytes of an .obj file, the same on every system."""
    corners = f"v %.{decimals}f %.{decimals}f %.{decimals}f\n" * len(vertices) % tuple(vertices.ravel().tolist())
    return (corners + "f %d %d %d\n" * len(faces) % tuple((faces + 1).ravel().tolist())).encode()


def write_scene(folder, mesh, arrays):
    """mesh.obj of these bytes and recording.npz of these arrays, atomically."""
    with atomic(folder / "mesh.obj") as temporary:
        temporary.write_bytes(mesh)
    with atomic(folder / "recording.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


# ---------------------------------------------------------------- one object
def make_object(root, settings, source, hand=BENCHMARK):
    """Write all scenes of one object, source (synset, name, path or None); returns what the log keeps of it."""
    synset, name, path = source
    record = {"object": f"{synset}/{name}"}
    try:
        scenes, counts = imported_scenes(path, hand) if "import" in settings else made_scenes(*source, settings, hand)
        refuse(not scenes, "the hand finds no grasp")
    except UserError as error:
        return record | {"unusable": str(error)}
    for scene, *content in scenes:
        write_scene(Path(root) / synset / name / scene, *content)
    return record | {"counts": counts}


def seed_of(name, seed):
    """The seed of all that is drawn for an object "<synset>/<name>"."""
    return stable_seed("dataset", seed, name)


def made_scenes(synset, name, path, settings, hand):
    """Scenes (name, bytes of mesh.obj, arrays of recording.npz) of one object with new grasps, and their counts.

    path: somebody's mesh. Without it a random object of the category, drawn again where the hand finds next to nothing;
    its recordings hold what makes its meshes again without any grasp.
    """
    rng = np.random.default_rng(seed_of(f"{synset}/{name}", settings["seed"]))
    for _ in range(1 if path else REDRAWS):
        drawn_from = np.array(json.dumps(rng.bit_generator.state))
        vertices, faces = usable_mesh(path, settings) if path else procedural_mesh(synset, rng)
        scenes, kept = grasps_in_scenes(vertices, faces, settings, rng, hand, own=bool(path))
        if kept >= settings["grasps"] / 6:
            break
    found = []
    for scene, posed, pose, arrays in scenes:
        mesh = mesh_text(posed, faces) if path else mesh_text(on_grid(posed)[0], faces, decimals=5)
        made = {} if path else {"drawn_from": drawn_from, "pose": np.array(pose)}
        found.append((scene, mesh, arrays | made))
    return found, {"kept": kept, "low": sum(len(arrays["scores"]) for *_, arrays in scenes) - kept}


def imported_scenes(path, hand):
    """As `made_scenes`, of DexGraspNet's grasps in `path`; with a hand its wrists are turned into that one's frame."""
    scenes, joint_names = dexgraspnet.read_object(path)
    found = []
    for name, vertices, faces, grasps in scenes:
        if hand.source:
            from_hand = np.linalg.inv(palm_frame(hand.source["wrist"]))
            grasps[:, :7] = matrix_to_pose(pose_to_matrix(grasps[:, :7]) @ from_hand)
        found.append((name, mesh_text(vertices, faces), {"grasps": grasps, "joint_names": np.array(joint_names)}))
    return found, {"kept": sum(len(grasps) for *_, grasps in scenes)}


def grasps_in_scenes(vertices, faces, settings, rng, hand, own=False):
    """[(name, posed vertices (V, 3) m, pose, arrays of a recording)] of scenes with grasps, and how many are kept.

    own: somebody's mesh, which keeps its size and, in its first scene, its pose. Grasps are made on micrometres.
    """
    scenes, kept = [], 0
    for k in range(settings["scenes"]):
        pose = None if own and k == 0 else draw_pose(rng, resize=not own)
        posed = vertices if pose is None else pose_scene(vertices, *pose)
        wanted = -(-(settings["grasps"] - kept) // (settings["scenes"] - k))
        grasps, scores = synthesize(np.round(posed, 6), faces, wanted, rng, hand)
        if len(grasps):
            arrays = {"grasps": grasps, "scores": scores, "joint_names": np.array(hand.joint_names)}
            scenes.append((str(k), posed, pose, arrays))
        kept += int((scores >= MIN_SCORE).sum())
    return scenes, kept


# ---------------------------------------------------------------- a whole root
def procedural_objects(count):
    """[(synset, object name)] of so many objects: the categories' shares by largest remainder."""
    weights = {synset: weight for synset, (*_, weight) in CATEGORIES.items()}
    shares = {synset: count * weight / sum(weights.values()) for synset, weight in weights.items()}
    sizes = {synset: int(share) for synset, share in shares.items()}
    for synset in sorted(shares, key=lambda s: sizes[s] - shares[s])[: count - sum(sizes.values())]:
        sizes[synset] += 1
    return [(synset, f"{CATEGORY_NAMES[synset]}_{k:04d}") for synset in CATEGORIES for k in range(sizes[synset])]


def find_sources(settings, root):
    """{(synset, object name): path of what it is made from, or None} of all objects that a root is to hold."""
    if "import" in settings:
        return named_objects(dexgraspnet.find_objects(settings["import"].split(" ", 1)[1]))
    if settings["meshes"]:
        return mesh_objects(settings["meshes"], root)
    return dict.fromkeys(procedural_objects(settings["objects"]))


def generate(root, settings, workers, quiet=False, hand=BENCHMARK):
    """Make or resume a root; returns the content of its dataset.json, which is written last."""
    root = Path(root)
    if content := finished(root, settings):
        return content
    sources = {"/".join(key): (*key, path and str(path)) for key, path in find_sources(settings, root).items()}
    make = functools.partial(make_object, str(root), settings, hand=hand)
    records = fill(root, settings, sources, make, workers, quiet)
    unusable = {record["object"]: record["unusable"] for record in records if "unusable" in record}
    if len(unusable) == len(records):
        (root / LOG).unlink()  # so that the same command tries again
        with contextlib.suppress(OSError):  # something else lies there
            root.rmdir()
        print_unusable(unusable)
        raise UserError(f"{root}: not made, since none of its objects ({len(unusable)}) can be used; see their list")
    totals = sum((collections.Counter(record.get("counts")) for record in records), collections.Counter())
    content = {"objects": len(records) - len(unusable), "grasps_kept": totals["kept"]}
    if "import" not in settings:
        content["grasps_low"] = totals["low"]
    return finish(root, settings, **content, unusable=unusable, **hand.kept)


def print_unusable(unusable):
    """A line per object that a root lacks; unusable: its name -> why."""
    for name, reason in unusable.items():
        print(f"not used: {name}: {reason}")
