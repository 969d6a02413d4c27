"""A page one can turn: objects and hands in one HTML file that loads nothing from the network.

trimesh brings three.js, lights and the mouse; page.html beside this file the choice of objects and hypotheses, in plain
JavaScript. Hands are spheres of pictures/draw.py; of a hand without a model the wrist's axes and a disc, light on the
palm's side.
"""

import json
from pathlib import Path

import numpy as np
import trimesh
from trimesh.viewer.notebook import scene_to_html

from files.writing import atomic
from hand.holds import grasp_outcomes, solid_field
from pictures.draw import contact_gaps, hand_balls, wrist_axes


def write_page(title, shown, joint_names, path, hand):
    """Write the page of a list of `Shown`; joint_names: J strings; hand: a `Hand` or None."""
    scene = trimesh.Scene()
    for index, entry in enumerate(shown):
        vertices, faces = entry.vertices, entry.faces
        solid = trimesh.PointCloud(vertices) if faces is None else trimesh.Trimesh(vertices, faces, process=False)
        scene.add_geometry(solid, node_name=f"object_{index}")
    content = {
        "title": title, "joints": list(joint_names),
        "objects": [describe(entry, hand) for entry in shown],
    }  # fmt: skip
    data = json.dumps(content).replace("</", "<\\/")  # a title must not end the script
    ours = Path(__file__).with_suffix(".html").read_text(encoding="utf-8").replace("$DATA", data)
    page = scene_to_html(scene).replace("<title>trimesh: threejs viewer</title>", "<title>Grasps</title>")
    with atomic(path) as temporary:
        temporary.write_text(page.replace("</body>", ours + "</body>"), encoding="utf-8", newline="\n")


def describe(entry, hand):
    """What the page says and draws of a `Shown`, in plain types: m, degrees."""
    joints = entry.hypotheses if entry.recorded is None else np.concatenate((entry.hypotheses, entry.recorded[None]))
    field = solid_field(entry.vertices, entry.faces) if hand and entry.faces is not None else None
    holds = grasp_outcomes(field, entry.pose[None], joints[None], hand).holds[0] if field else [None] * len(joints)
    hands = []
    for angles, its_holds in zip(joints, holds):
        drawn = {"joints": np.degrees(angles).round(1).tolist()}
        if its_holds is not None:
            drawn["holds"] = bool(its_holds)
        if hand:
            grasp = np.concatenate((entry.pose, angles))
            centers, radii, colours = hand_balls(grasp, contact_gaps(field, grasp, hand) if field else None, hand)
            places = np.column_stack((centers, radii)).round(5).tolist()
            hexes = ["#" + bytes(colour.tolist()).hex() for colour in (255 * colours).round().astype(int)]
            drawn["balls"] = [[*place, colour] for place, colour in zip(places, hexes)]
        hands.append(drawn)
    recorded = None if entry.recorded is None else hands.pop()
    for drawn, angles, chance in zip(hands, entry.hypotheses, entry.chances):
        drawn["chance"] = float(chance)
        if recorded:
            drawn["error"] = float(np.degrees(np.sqrt(np.mean((angles - entry.recorded) ** 2))))
    return {
        "title": entry.title, "axes": wrist_axes(entry.pose).round(5).tolist(), "recorded": recorded,
        "hypotheses": sorted(hands, key=lambda drawn: -drawn["chance"]),
    }  # fmt: skip
