"""The open benchmark: procedural household objects, or any folder of meshes, with grasps of the hand in hand.py.

    python synthesize.py --out data/synthetic --preset mini     700 objects, what train.py makes by itself
    python synthesize.py --out data/full --preset full          1,500 objects, the paper's scale
    python synthesize.py --out data/mine --meshes DIR           your own meshes
    python synthesize.py --card data/full --out results/benchmark   figures and pictures of a dataset

Layout written: OUT/<synset>/<object>/<scene>/mesh.obj and recording.npz (see data.py). An interrupted
run goes on when the same command is given again; the same seed gives the same bytes for any number of
workers. Lengths in metres, angles in radians, z up, objects standing on the plane z = 0.
"""

import collections
import contextlib
import functools
import json
import os
import re
import time
from pathlib import Path

if __name__ == "__main__":  # before numpy loads: its products are too small here to gain from a second thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from tqdm import tqdm

from data import sample_surface
from plumbing.common import Parser, UserError, atomic, command, number, stable_seed, write_json
from plumbing.parallel import map_in_processes
from plumbing.reading import read_mesh, stamp
from plumbing.roots import LOG, SIZES, VERSION, read_log, recorded
from synthetic import hand
from synthetic.card import write_card
from synthetic.grasps import MIN_SCORE, REASONS, synthesize
from synthetic.shapes import (
    CATEGORIES, HELD_OUT_SYNSETS, LENGTHS, MAX_MIDDLE, pose_scene, procedural_mesh, scale_to_hand, settle,
)  # fmt: skip

# ---------------------------------------------------------------- objects on disk

REDRAWS = 5  # procedural objects on which the hand finds next to nothing are drawn again, so often at most
MESH_TYPES = (".obj", ".stl", ".ply", ".off", ".glb")


def procedural_objects(settings):
    """[(synset, object name)]: unequal categories in `full`, equal ones in `mini`; sizes by largest remainder."""
    weights = {s: entry[3] for s, entry in CATEGORIES.items()}
    if settings["preset"] == "mini":  # few objects of what never trains
        weights = {s: 1 / 7 if s in HELD_OUT_SYNSETS else 1 for s in CATEGORIES}
    shares = {s: settings["objects"] * weight / sum(weights.values()) for s, weight in weights.items()}
    sizes = {s: int(share) for s, share in shares.items()}
    for s in sorted(shares, key=lambda s: sizes[s] - shares[s])[: settings["objects"] - sum(sizes.values())]:
        sizes[s] += 1
    return [(s, f"{CATEGORIES[s][0].__name__}_{k:04d}") for s in CATEGORIES for k in range(sizes[s])]


def mesh_objects(folder):
    """{(category, object name): path} of the mesh files in a folder: category is the first sub-folder."""
    found = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in MESH_TYPES):
        names = path.relative_to(folder).with_suffix("").parts
        names = [re.sub(r"[^\w-]+", "_", name).strip("_") or "_" for name in names]
        key = (names[0] if len(names) > 1 else "unsorted", "_".join(names[1:] or names))
        found[key if key not in found else (key[0], key[1] + path.suffix.lower().replace(".", "_"))] = path
    if not found:
        raise UserError(f"--meshes {folder}: no {' '.join(MESH_TYPES)} files in it")
    return found


def usable_mesh(path, up, rescale):
    """A mesh file as vertices (V, 3), faces, z up on z = 0; `UserError` says why it cannot be used."""
    vertices, faces = read_mesh(path)
    used, faces = np.unique(faces, return_inverse=True)  # stray vertices must not count as size
    vertices, faces = vertices[used], faces.reshape(-1, 3)
    if up == "y":
        vertices = vertices[:, [0, 2, 1]] * (1, -1, 1)
    sample_surface(vertices, faces, 1, 0)  # complains where there is no area
    _, middle, longest = np.sort(np.ptp(vertices, axis=0))
    if rescale:
        return scale_to_hand(vertices, longest), faces
    if not LENGTHS[0] <= longest <= LENGTHS[1]:
        raise UserError(f"longest side {longest:.3g} m, usable is {LENGTHS[0]} to {LENGTHS[1]} m; --rescale mends it")
    if middle > MAX_MIDDLE:
        raise UserError(f"middle side {middle:.3g} m, usable is up to {MAX_MIDDLE} m; --rescale mends it")
    return settle(vertices), faces


def make_object(root, settings, source):
    """Write all scenes of one object, source (synset, name, path or None); returns what the log keeps of it."""
    synset, name, path = source
    rng = np.random.default_rng(stable_seed("dataset", settings["seed"], f"{synset}/{name}"))
    record = {"object": f"{synset}/{name}"}
    try:
        mesh = None
        if path:
            stamp(path, Path(settings["meshes"]))  # complains about a link that leaves the folder
            mesh = usable_mesh(path, settings["up"], settings["rescale"])
    except UserError as error:
        return record | {"unusable": str(error)}
    counts = collections.Counter()
    for attempt in range(1 if path else REDRAWS):
        vertices, faces = mesh or procedural_mesh(synset, rng)
        scenes, kept, low = [], 0, 0
        for k in range(settings["scenes"]):
            posed = vertices if path and k == 0 else pose_scene(vertices, rng, resize=not path)
            posed = np.round(posed, 6)  # what the file will hold
            wanted = -(-(settings["grasps"] - kept) // (settings["scenes"] - k))
            grasps, scores, found = synthesize(posed, faces, wanted, rng)
            scenes.append((posed, grasps, scores))
            counts.update({reason: found[reason] for reason in REASONS})
            kept, low = kept + found["kept"], low + found["low"]
        if kept >= settings["grasps"] / 6:
            break
        counts["redrawn"] += attempt + 1 < REDRAWS and not path
    if not kept + low:
        return record | {"unusable": "the hand finds no grasp"}
    for k, (posed, grasps, scores) in enumerate(scenes):
        if len(grasps):
            write_scene(Path(root) / synset / name / str(k), posed, faces, grasps, scores)
    return record | {"counts": counts | {"kept": kept, "low": low}}


def write_scene(folder, vertices, faces, grasps, scores):
    """mesh.obj and recording.npz, atomically and with the same bytes every time."""
    lines = ["v %.6f %.6f %.6f\n" % tuple(v) for v in vertices] + ["f %d %d %d\n" % tuple(f) for f in faces + 1]
    with atomic(folder / "mesh.obj") as temporary:
        temporary.write_text("".join(lines))
    with atomic(folder / "recording.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, grasps=grasps, scores=scores, joint_names=np.array(hand.JOINT_NAMES))


# ---------------------------------------------------------------- a whole root


def generate(root, settings, workers, quiet=False):
    """Make or resume a root; returns the content of its dataset.json, which is written last."""
    root, log = Path(root), Path(root) / LOG
    head = recorded(root)
    if head and head["settings"] != settings:
        old = head["settings"]
        changes = [f"{key} {old.get(key)} there, {new} here" for key, new in settings.items() if old.get(key) != new]
        raise UserError(f"{root}: was made with other settings ({', '.join(changes)}); name another --out or remove it")
    if head.get("complete"):
        return head
    # in this order: another process that makes the same root writes its log first and removes it last
    if root.exists() and any(root.iterdir()) and not log.exists() and not (root / "dataset.json").exists():
        raise UserError(f"{root}: is not empty and not a root of synthesize.py; name another --out")
    sources = mesh_objects(settings["meshes"]) if settings["meshes"] else dict.fromkeys(procedural_objects(settings))
    root.mkdir(parents=True, exist_ok=True)
    log.touch()  # before the temporary file: a root with nothing but that would belong to nobody
    head, *records = read_log(root) or [{"version": VERSION, "settings": settings}]
    with atomic(log) as temporary:  # without the half line that a killed run may have left
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (head, *records)))
    done = {record["object"]: record for record in records}
    todo = [(*key, path and str(path)) for key, path in sources.items() if "/".join(key) not in done]
    make = functools.partial(make_object, str(root), settings)
    with open(log, "a") as file, contextlib.closing(map_in_processes(make, todo, workers)) as made:
        bar = tqdm(made, f"making {root}", len(sources), unit="object", initial=len(done), disable=quiet or None)
        for record in bar:
            done[record["object"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
    records = [done["/".join(key)] for key in sources]
    totals = sum((collections.Counter(record.get("counts")) for record in records), collections.Counter())
    content = {
        "generator": "synthesize.py",
        "version": VERSION,
        "complete": True,
        "settings": settings,
        "objects": sum("counts" in record for record in records),
        "grasps_kept": totals["kept"],
        "grasps_low": totals["low"],
        "objects_redrawn": totals["redrawn"],
        "candidates_rejected": {reason: totals[reason] for reason in REASONS},
        "unusable": {record["object"]: record["unusable"] for record in records if "unusable" in record},
    }
    write_json(root / "dataset.json", content)
    log.unlink(missing_ok=True)  # another process that made the same root may have been faster
    return content


# ---------------------------------------------------------------- command line


def parse_args(argv):
    presets = [f"{name}: {n} objects, {g} kept grasps each, {s} scene(s)" for name, (n, g, s) in SIZES.items()]
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("--out", metavar="DIR", help="root to make or to resume; with --card, where its files go")
    flag("--preset", choices=tuple(SIZES), default="mini", help="; ".join(presets))
    flag("--objects", type=number(int, 1, 100000), help="procedural objects (default: the preset's)")
    flag(
        "--grasps",
        type=number(int, 1, 100000),
        help=f"grasps per object with a score of {MIN_SCORE} or more, over its scenes (default: the preset's)",
    )
    flag("--scenes", type=number(int, 1, 100), help="scenes per object: scale, pose, yaw (default: the preset's)")
    flag("--seed", type=number(int, 0), default=0, help="seed of objects and grasps")
    flag(
        "--workers",
        type=number(int, 1, 256),
        help="processes (default: one per core); the result does not depend on it",
    )
    flag("--meshes", metavar="DIR", help="use this folder's meshes, category = sub-folder, not procedural objects")
    flag("--up", choices=("z", "y"), default="z", help="the axis that points up in --meshes")
    flag(
        "--rescale",
        action="store_true",
        help="scale meshes whose longest side is not "
        f"{LENGTHS[0]}-{LENGTHS[1]} m or whose middle side is over {MAX_MIDDLE} m",
    )
    flag("--card", metavar="ROOT", help="describe this dataset in figures and pictures in place of making one")
    flag("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if not args.out:
        parser.error("--out DIR is needed")
    if args.meshes and args.objects:
        parser.error("--objects counts procedural objects and does not go with --meshes")
    if args.meshes and not Path(args.meshes).is_dir():
        parser.error(f"--meshes {args.meshes}: no such folder")
    if not args.meshes and (args.rescale or args.up != "z"):
        parser.error("--up and --rescale go with --meshes")
    return args


@command
def main(argv=None):
    """Make or resume a root and print its counts, or write the card of one; argv as on the command line."""
    args = parse_args(argv)
    if args.card:
        return write_card(Path(args.card), Path(args.out), args.seed)
    objects, grasps, scenes = SIZES[args.preset]
    settings = {
        "preset": args.preset,
        "objects": None if args.meshes else args.objects or objects,
        "grasps": args.grasps or grasps,
        "scenes": args.scenes or scenes,
        "seed": args.seed,
        "meshes": args.meshes,
        "up": args.up,
        "rescale": args.rescale,
    }
    start = time.time()
    content = generate(args.out, settings, args.workers or os.cpu_count(), args.quiet)
    print(
        f"{args.out}: {content['objects']} objects, {content['grasps_kept']} grasps with a score of {MIN_SCORE} "
        f"or more, {content['grasps_low']} under it, in {time.time() - start:.0f} s"
    )
    rejected = ", ".join(f"{reason} {count}" for reason, count in content["candidates_rejected"].items())
    print(f"candidates rejected: {rejected}; objects drawn again: {content['objects_redrawn']}")
    for name, reason in content["unusable"].items():
        print(f"not used: {name}: {reason}")


if __name__ == "__main__":
    main()
