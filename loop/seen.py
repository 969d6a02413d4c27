"""Which objects a run has seen: kept in its folder, and found again in whatever root it is evaluated on later."""

import collections
import hashlib
import sys
from pathlib import Path

import numpy as np

from cli.errors import refuse
from files.names import duplicate_groups
from files.writing import read_json, write_json

FILE = "objects.json"  # of a run's folder
ROLES = ("train", "pool", "val")  # what an object was: it trained, would have at a larger budget, chose the step
ALTERED = "altered"  # it trained, and has other scenes, names or grasps now: others of its grasps are held back
LEAKS = {  # suite -> what its objects must not have been
    "val": ("train", ALTERED, "pool"), "test_grasp": ("val", ALTERED), "test_grasp_train": ("val", ALTERED),
    **dict.fromkeys(("test", "test_category", "all"), (*ROLES, ALTERED)),
}  # fmt: skip


def origin(root):
    """What gave the objects of a generated root their ids: where it is equal, so are the objects; None for others."""
    path = Path(root) / "dataset.json"
    settings = read_json(path).get("settings", {}) if path.exists() else {}
    own = next((name for name in ("import", "meshes") if settings.get(name)), None)
    return own or (f"seed {settings['seed']}" if "seed" in settings else None)


def scenes_by_object(data):
    """Object -> scene -> the hashes of its mesh and of its kept grasps, of a `GraspData`."""
    found = collections.defaultdict(dict)
    for i, (scene, name) in enumerate(zip(data.scenes, data.object_of_scene)):
        rows = slice(*np.searchsorted(data.scene, (i, i + 1)))
        grasps = hashlib.sha256(data.poses[rows].tobytes() + data.joints[rows].tobytes()).hexdigest()
        found[name][scene] = f"{data.mesh_hashes[i][:16]} {grasps[:16]}"
    return found


def keep_seen(folder, data, split):
    """Write what the run in `folder` sees of its data: objects by role, with their scenes and hashes."""
    scenes = scenes_by_object(data)
    names = split.suites | {"pool": sorted(set(split.pool) - set(split.suites["train"]))}
    write_json(folder / FILE, {"origin": origin(data.root)} | {r: {n: scenes[n] for n in names[r]} for r in ROLES})


def roles_in(data, seen, same_ids=False):
    """Objects of a `GraspData` that a run has seen -> role; and those of which only the id is that of another one.

    seen: the content of FILE. Objects are one as in `duplicate_groups`, or if they share grasps. But the very same id
    says so only where `same_ids` or in roots of one origin: names such as object_000 recur elsewhere.
    """
    then, now = {name: scenes for role in ROLES for name, scenes in seen[role].items()}, scenes_by_object(data)
    same_ids |= origin(data.root) is not None and seen.get("origin") == origin(data.root)
    own = {name: name if same_ids or name not in then else f"{name} of this root" for name in now}
    objects = [*then.items(), *((own[name], scenes) for name, scenes in now.items())]
    hashes = [(name, digest) for name, scenes in objects for both in scenes.values() for digest in both.split()]
    leader = duplicate_groups(*zip(*hashes))
    role_of = {leader[name]: role for role in ROLES[::-1] for name in seen[role]}
    roles = {name: role_of[leader[own[name]]] for name in now if leader[own[name]] in role_of}
    for name in roles:
        if roles[name] == "train" and then.get(name) != now[name]:
            roles[name] = ALTERED
    return roles, sorted(then.keys() & now.keys() - roles.keys())


def leave_out(folder, data, split, same_ids=False):
    """Take what the run in `folder` has seen out of the suites of a root other than the one it was trained on.

    Says so on stderr; raises `UserError` where nothing of the suite "all" is left. same_ids: as in `roles_in`.
    """
    roles, namesakes = roles_in(data, read_json(Path(folder) / FILE, *ROLES), same_ids)
    left_out = set()
    for suite in LEAKS.keys() & split.rows.keys():
        objects = data.object_of_grasp[split.rows[suite]]
        leaks = {name for name in np.unique(objects).tolist() if roles.get(name) in LEAKS[suite]}
        split.rows[suite] = split.rows[suite][~np.isin(objects, sorted(leaks))]
        if suite in split.suites:
            split.suites[suite] = sorted(set(split.suites[suite]) - leaks)
        left_out |= leaks
    first = f"(the first: {min(left_out, default=None)})"
    nothing = "all" in split.rows and not len(split.rows["all"])
    refuse(nothing, f"{data.root}: all its objects are of the pool or val of {folder} {first}; name data new to it")
    said = f"; {len(left_out)} objects are of the run's pool or val and left out {first}" if left_out else ""
    said += f"; {len(namesakes)} have the id of one, but no mesh or grasp ({namesakes[0]})" if namesakes else ""
    print(f"warning: {data.root}: not the dataset that {folder} was trained on{said}", file=sys.stderr)
