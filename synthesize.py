"""The open benchmark: procedural household objects, or any folder of meshes, with grasps of the hand in kinematics.py.

    python synthesize.py --out data/synthetic --preset mini     700 objects, what train.py makes by itself
    python synthesize.py --out data/full --preset full          1,500 objects, the paper's scale
    python synthesize.py --out data/mine --meshes DIR           your own meshes
    python synthesize.py --out data/public --import dexgraspnet DIR     grasps that others published, of another hand
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
from hand.score import MIN_SCORE
from tqdm import tqdm

from benchmark import dexgraspnet
from benchmark.card import write_card
from benchmark.grasps import REASONS, synthesize
from benchmark.roots import LOG, SIZES, VERSION, read_log, recorded
from benchmark.shapes import (
    CATEGORIES,
    HELD_OUT_SYNSETS,
    LENGTHS,
    MAX_MIDDLE,
    pose_scene,
    procedural_mesh,
    scale_to_hand,
    settle,
)
from cli.errors import UserError, command
from cli.flags import Parser, number
from cli.processes import cores, map_in_processes
from data import sample_surface
from files.categories import CATEGORY_NAMES
from files.reading import ANY_LENGTH, MESH_TYPES, UNITS, files_under, read_mesh, stamp
from files.writing import atomic, stable_seed, write_json
from hand import kinematics

# ---------------------------------------------------------------- objects on disk

REDRAWS = 5  # procedural objects on which the hand finds next to nothing are drawn again, so often at most


def procedural_objects(settings):
    """[(synset, object name)]: unequal categories in `full`, equal ones in `mini`; sizes by largest remainder."""
    weights = {s: entry[3] for s, entry in CATEGORIES.items()}
    if settings["preset"] == "mini":  # few objects of what never trains
        weights = {s: 1 / 7 if s in HELD_OUT_SYNSETS else 1 for s in CATEGORIES}
    shares = {s: settings["objects"] * weight / sum(weights.values()) for s, weight in weights.items()}
    sizes = {s: int(share) for s, share in shares.items()}
    for s in sorted(shares, key=lambda s: sizes[s] - shares[s])[: settings["objects"] - sum(sizes.values())]:
        sizes[s] += 1
    return [(s, f"{CATEGORY_NAMES[s]}_{k:04d}") for s in CATEGORIES for k in range(sizes[s])]


def mesh_objects(folder, out):
    """{(category, object name): path} of the mesh files in a folder, less those in `out`, as `named_objects`."""
    out = Path(out).resolve()
    paths = [path for path in files_under(folder, MESH_TYPES) if not path.resolve().is_relative_to(out)]
    if not paths:
        raise UserError(f"--meshes {folder}: no {' '.join(MESH_TYPES)} files in it")
    return named_objects((path.relative_to(folder).with_suffix("").parts, path) for path in paths)


def named_objects(found):
    """{(category, object name): path} of (names of folders and file, path): of several, the first is the category.

    Names are made fit for folders of any system. Where that makes two equal, the later one gets a number; cup.stl
    beside cup.obj is cup_stl, which splits.py knows for the same object.
    """
    named, owners = {}, {}
    for names, path in found:
        fit = [re.sub(r"[^\w-]+", "_", name).strip("_") or "_" for name in names]
        category, plain = fit[0] if len(fit) > 1 else "unsorted", "_".join(fit[1:] or fit)
        name, count = plain, 1
        if owners.get(f"{category}/{name}".lower()) == names:
            plain = name = plain + path.suffix.lower().replace(".", "_")
        while f"{category}/{name}".lower() in owners:
            count += 1
            name = f"{plain}_{count}"
        owners[f"{category}/{name}".lower()] = names
        named[category, name] = path
    return named


def usable_mesh(path, settings):
    """A mesh file as vertices (V, 3) m, z up on z = 0, and faces; and the factor by which --rescale changed its size.

    `UserError` says why it cannot be used.
    """
    vertices, faces = read_mesh(path, ANY_LENGTH)
    used, faces = np.unique(faces, return_inverse=True)  # stray vertices must not count as size
    vertices, faces = vertices[used] * settings.get("mesh-scale", 1), faces.reshape(-1, 3)
    if settings["up"] == "y":
        vertices = vertices[:, [0, 2, 1]] * (1, -1, 1)
    _, middle, longest = np.sort(np.ptp(vertices, axis=0))
    try:
        sample_surface(vertices / (longest or 1), faces, 1, 0)  # complains where there is no area
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if settings["rescale"]:
        vertices = scale_to_hand(vertices, longest)
        return vertices, faces, float(f"{np.ptp(vertices, axis=0).max() / longest:.6g}")
    if not usable_size(middle, longest):
        factor = mending_factor(middle, longest) * settings.get("mesh-scale", 1)
        raise UserError(
            f"longest side {longest:.3g} m, middle side {middle:.3g} m in {path}; usable is {LENGTHS[0]} to "
            f"{LENGTHS[1]} m and up to {MAX_MIDDLE} m; --mesh-scale {factor:g} (it is for all meshes) or --rescale "
            "mends it"
        )
    return settle(vertices), faces, 1.0


def usable_size(middle, longest):
    """Whether the hand can work on sides of these lengths (m)."""
    return LENGTHS[0] <= round(longest, 6) <= LENGTHS[1] and round(middle, 6) <= MAX_MIDDLE


def mending_factor(middle, longest):
    """The factor that makes sides (m) usable: that of a unit where they are far from it, else the one nearest to 1."""
    nearest = min(np.clip(longest, *LENGTHS) / longest, MAX_MIDDLE / middle)
    if not 0.3 < nearest < 3:
        for factor in (*UNITS.values(), 10, 100, 1000):
            if usable_size(middle * factor, longest * factor):
                return factor
    digits = 10.0 ** (2 - np.floor(np.log10(nearest)))  # three of them, rounded towards what is usable
    return (np.floor if nearest < 1 else np.ceil)(nearest * digits) / digits


def make_object(root, settings, source):
    """Write all scenes of one object, source (synset, name, path or None); returns what the log keeps of it."""
    synset, name, path = source
    folder, mesh = Path(root) / synset / name, None
    record = {"object": f"{synset}/{name}"}
    try:
        if "import" in settings:
            return record | {"counts": import_object(folder, path)}
        if path:
            stamp(path, Path(settings["meshes"]))  # complains about a link that leaves the folder
            *mesh, factor = usable_mesh(path, settings)
            if factor != 1:
                record["rescaled"] = factor
    except UserError as error:
        return record | {"unusable": str(error)}
    rng = np.random.default_rng(stable_seed("dataset", settings["seed"], f"{synset}/{name}"))
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
            write_scene(folder / str(k), posed, faces, grasps, scores, kinematics.JOINT_NAMES)
    return record | {"counts": counts | {"kept": kept, "low": low}}


def import_object(folder, path):
    """Write the scenes of an object of DexGraspNet, whose grasps are in `path`; returns what to count."""
    scenes, joint_names = dexgraspnet.read_object(path)
    for name, vertices, faces, grasps, scores in scenes:
        write_scene(folder / name, vertices, faces, grasps, scores, joint_names)
    return {"kept": sum(len(grasps) for _, _, _, grasps, _ in scenes)}


def write_scene(folder, vertices, faces, grasps, scores, joint_names):
    """mesh.obj and recording.npz, atomically and with the same bytes every time; no scores where they are None."""
    lines = ["v %.6f %.6f %.6f\n" % tuple(v) for v in vertices] + ["f %d %d %d\n" % tuple(f) for f in faces + 1]
    with atomic(folder / "mesh.obj") as temporary:
        temporary.write_text("".join(lines))
    arrays = {"grasps": grasps, "scores": scores, "joint_names": np.array(joint_names)}
    with atomic(folder / "recording.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **{key: array for key, array in arrays.items() if array is not None})


# ---------------------------------------------------------------- a whole root


def find_sources(settings, root):
    """{(synset, object name): path of what it is made from, or None} of all objects that a root is to hold."""
    if "import" in settings:
        return named_objects(dexgraspnet.find_objects(settings["import"].split(" ", 1)[1]))
    if settings["meshes"]:
        return mesh_objects(settings["meshes"], root)
    return dict.fromkeys(procedural_objects(settings))


def generate(root, settings, workers, quiet=False):
    """Make or resume a root; returns the content of its dataset.json, which is written last."""
    root, log = Path(root), Path(root) / LOG
    head = recorded(root)
    old = head.get("settings", settings)
    changes = [
        f"{key} {old.get(key)} there, {settings.get(key)} here"
        for key in old | settings
        if old.get(key) != settings.get(key)
    ]
    if changes:
        raise UserError(f"{root}: was made with other settings ({', '.join(changes)}); name another --out or remove it")
    if head.get("complete"):
        return head
    # in this order: another process that makes the same root writes its log first and removes it last
    if root.exists() and any(root.iterdir()) and not log.exists() and not (root / "dataset.json").exists():
        raise UserError(f"{root}: is not empty and not a root of synthesize.py; name another --out")
    sources = find_sources(settings, root)
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
    unusable = {record["object"]: record["unusable"] for record in records if "unusable" in record}
    if len(unusable) == len(records):
        log.unlink(missing_ok=True)  # so that the same command tries again
        with contextlib.suppress(OSError):  # something else lies there
            root.rmdir()
        print_unusable(unusable)
        raise UserError(f"{root}: not made, since none of {len(unusable)} objects can be used; their list says why")
    totals = sum((collections.Counter(record.get("counts")) for record in records), collections.Counter())
    content = {
        "generator": "synthesize.py",
        "version": VERSION,
        "complete": True,
        "settings": settings,
        "objects": len(records) - len(unusable),
        "grasps_kept": totals["kept"],
    }
    if "import" not in settings:
        content["grasps_low"] = totals["low"]
        content["objects_redrawn"] = totals["redrawn"]
        content["candidates_rejected"] = {reason: totals[reason] for reason in REASONS}
    content["unusable"] = unusable
    if settings.get("rescale"):
        content["rescaled"] = {record["object"]: record["rescaled"] for record in records if "rescaled" in record}
    write_json(root / "dataset.json", content)
    log.unlink(missing_ok=True)  # another process that made the same root may have been faster
    return content


def print_unusable(unusable):
    """A line per object that a root lacks; unusable: its name -> why."""
    for name, reason in unusable.items():
        print(f"not used: {name}: {reason}")


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
    flag(
        "--mesh-scale",
        type=number(float, above=0),
        default=1.0,
        help="multiply all --meshes by this, to have them in metres: 0.001 where they are in millimetres",
    )
    flag(
        "--import",
        nargs=2,
        dest="imported",
        metavar=("dexgraspnet", "DIR"),
        help="bring grasps that others published into our layout: DIR holds their dataset/ and meshdata/",
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
    if not args.meshes and (args.rescale or args.up != "z" or args.mesh_scale != 1):
        parser.error("--mesh-scale, --up and --rescale go with --meshes")
    if args.imported and args.imported[0] != "dexgraspnet":
        parser.error(f"--import {args.imported[0]}: the only format that is read is dexgraspnet")
    if args.imported and (args.meshes or args.objects or args.grasps or args.scenes):
        parser.error("--import takes what there is: --meshes, --objects, --grasps and --scenes do not go with it")
    if args.imported and not Path(args.imported[1]).is_dir():
        parser.error(f"--import {' '.join(args.imported)}: no such folder")
    return args


def settings_of(args):
    """What a root is made from, as its dataset.json keeps it; keys as the flags are spelt."""
    if args.imported:
        return {"import": " ".join(args.imported)}
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
    return settings | ({"mesh-scale": args.mesh_scale} if args.mesh_scale != 1 else {})


@command
def main(argv=None):
    """Make or resume a root and print its counts, or write the card of one; argv as on the command line."""
    args = parse_args(argv)
    if args.card:
        return write_card(Path(args.card), Path(args.out), args.seed)
    start = time.time()
    content = generate(args.out, settings_of(args), args.workers or cores(), args.quiet)
    made = f"{args.out}: {content['objects']} objects, {content['grasps_kept']} grasps"
    if args.imported:
        print(f"{made}, in {time.time() - start:.0f} s")
    else:
        print(
            f"{made} with a score of {MIN_SCORE} or more, {content['grasps_low']} under it, "
            f"in {time.time() - start:.0f} s"
        )
        rejected = ", ".join(f"{reason} {count}" for reason, count in content["candidates_rejected"].items())
        print(f"candidates rejected: {rejected}; objects drawn again: {content['objects_redrawn']}")
    for name, factor in content.get("rescaled", {}).items():
        print(f"rescaled: {name}: by {factor:g}")
    print_unusable(content["unusable"])


if __name__ == "__main__":
    main()
