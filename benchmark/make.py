"""Roots made from nothing, or of somebody's own meshes, or of public grasps: object by object, resumed after any stop.

The same settings give the same bytes for any number of worker processes.
"""

import collections
import contextlib
import functools
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmark import dexgraspnet
from benchmark.grasps import REASONS, synthesize
from benchmark.meshes import mesh_objects, named_objects, usable_mesh
from benchmark.progress import LOG, VERSION, read_log, recorded
from benchmark.shapes import CATEGORIES, HELD_OUT_SYNSETS, pose_scene, procedural_mesh
from cli.errors import UserError
from cli.processes import map_in_processes
from files.categories import CATEGORY_NAMES
from files.reading import stamp
from files.writing import atomic, stable_seed, write_json
from hand import kinematics

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
