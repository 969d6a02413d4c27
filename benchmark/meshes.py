"""Somebody's own meshes as objects: their names, and whether the hand can work on them."""

import collections
import os
import re
import sys
from pathlib import Path

import numpy as np

from benchmark.shapes import LENGTHS, MAX_MIDDLE, scale_to_hand, settle
from cli.errors import UserError, refuse
from cli.words import plural
from data import sample_surface
from files.folders import files_under
from files.frames import turn_to_z_up
from files.names import duplicate_groups
from files.reading import ANY_LENGTH, MAX_LENGTH, MESH_TYPES, read_mesh, unit_hint


def mesh_objects(folder, out):
    """{(category, object name): path} of the mesh files in a folder, less those in `out`, as `named_objects`."""
    out = Path(out).resolve()
    paths = [path for path in files_under(folder, MESH_TYPES) if not Path(os.path.realpath(path)).is_relative_to(out)]
    refuse(not paths, f"--meshes {folder}: no {' '.join(MESH_TYPES)} files in it")
    found = {path: path.relative_to(folder).with_suffix("").parts for path in paths}
    named = named_objects((names, path) for path, names in found.items())
    leader = duplicate_groups(ids := ["/".join(key) for key in named], ids)
    count = len(set(leader.values()))
    if count < len(named):
        print(f"--meshes {folder}: {len(named)} meshes of {plural(count, 'object')} by name (DATA.md, Splits)")
    unclear = list(unclear_folders({found[path]: leader[name] for name, path in zip(ids, named.values())}))
    if unclear:
        known = "is one object, name its meshes so that it shows (visual, lod1, piece_1)"
        print(f"warning: --meshes {folder}: if each of these folders {known}: {', '.join(unclear)}", file=sys.stderr)
    return named


def unclear_folders(groups):
    """Folders that hold several meshes and look like one object each, though no known word in a name says so.

    That is, below a category; or with meshes of the same names, not numbers, as in other folders. groups: {names of
    folders and file: what tells objects apart}.
    """
    inside = collections.defaultdict(dict)
    for names, group in groups.items():
        for cut in (1, 2)[: len(names) - 1]:
            inside[names[:-cut]][names[-cut:]] = group
    alike = collections.Counter(rest for rest, _ in {item for content in inside.values() for item in content.items()})
    for folder, content in sorted(inside.items()):
        below = len(folder) > 1  # a category
        usual = {rest for rest in content if alike[rest] > 1 and not any(name[-1].isdigit() for name in rest)}
        if len({group for rest, group in content.items() if rest in usual or below and len(rest) == 1}) > 1:
            yield "/".join(folder)


def named_objects(found):
    """{(category, object name): path} of (names of folders and file, path): of several, the first is the category.

    Names are made fit for folders. Where that makes two equal, the later one gets a number; cup.stl beside cup.obj is
    cup_stl, which splits.py knows for the same object.
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


def read_surface(path):
    """Vertices (V, 3), faces (F, 3) of a mesh file in any unit, without stray vertices, which must not count as size.

    Raises `UserError` where it has no area.
    """
    vertices, faces = read_mesh(path, ANY_LENGTH)
    used, faces = np.unique(faces, return_inverse=True)
    vertices, faces = vertices[used], faces.reshape(-1, 3)
    try:
        sample_surface(vertices / (np.ptp(vertices, axis=0).max() or 1), faces, 1, 0)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return vertices, faces


def usable_mesh(path, settings):
    """A mesh file as vertices (V, 3) m, z up on z = 0, and faces; `UserError` says why it cannot be used."""
    (vertices, faces), scale = read_surface(path), settings.get("mesh-scale", 1)
    vertices = vertices * scale
    if settings["up"] == "y":
        vertices = turn_to_z_up(vertices)
    _, middle, longest = np.sort(np.ptp(vertices, axis=0))
    if settings["rescale"]:
        return scale_to_hand(vertices, longest), faces
    if not (LENGTHS[0] <= round(longest, 6) <= LENGTHS[1] and round(middle, 6) <= MAX_MIDDLE):
        sides = f"longest side {longest:.3g} m, middle side {middle:.3g} m in {path}"
        usable = f"usable is {LENGTHS[0]} to {LENGTHS[1]} m and up to {MAX_MIDDLE} m"
        unit = f"{unit_hint(longest / scale)} with --mesh-scale, which is for all; or " if longest > MAX_LENGTH else ""
        raise UserError(f"{sides}; {usable}; {unit}--rescale mends it")
    return settle(vertices), faces
