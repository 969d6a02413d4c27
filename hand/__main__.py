"""A first draft of the JSON that stands beside a hand's URDF (hand/described.py says what is in it), and its guesses.

    python -m hand my_hand.urdf --out my_hand.json

Look at what it says and at a picture of grasps that synthesize.py makes; what is wrong is mended in the JSON.
"""

import itertools
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli.errors import command, refuse
from cli.flags import Parser
from files.reading import readable
from files.writing import atomic
from hand.described import BENCHMARK, MAX_RADIUS, build_hand, naming, palm_frame
from hand.described import at_rest, at_turn, frame_of, placed, read_urdf, xml_numbers
from hand.kinematics import finger_spheres

FINGER = 0.14  # m, a finger of the benchmark's hand: the size of others is measured by it
WRIST = np.array([0, 0.114, 0.02])  # m, from its wrist to most fingers' bases, and to the front of its palm
# By pre-shape: where the first flexing joint and those beyond it start (share of their range), and how fast they close
SHAPES = {"power": ((0.05, 1), (0.05, 1)), "pinch": ((0.05, 1), (0.1, 0)), "sphere": ((0.05, 1), (0.5, 0.1))}
OPEN = 20  # degrees: no joint starts farther back
PLACES = 9  # of each joint of the thumb that does not flex, among which the ones are found where it meets the fingers


class Finger(NamedTuple):
    """A finger at rest, in the palm link's frame."""

    tip: str  # its last link
    joints: list  # T that turn
    axes: np.ndarray  # (T, 3)
    points: np.ndarray  # (T + 1, 3) m: origins and tip
    flexes: list  # the turns that close it: those parallel to its last one, of the thumb the last two of them


def find_fingers(joints, links):
    """`Finger`s in the order in which they begin near the thumb; links: what `at_rest` says of the palm."""
    paths, fingers = {path for _, path in links.values()}, []
    for path in sorted(paths):
        if not path or any(other[: len(path)] == path != other for other in paths):  # others go on from it
            continue
        its_joints = [joints[name] for name in path]
        axes, origins = map(np.array, zip(*(at_turn(joint, links) for joint in its_joints)))
        beyond = {link: frame[:3, 3] - origins[-1] for link, (frame, its_path) in links.items() if its_path == path}
        tip = max(beyond, key=lambda link: np.linalg.norm(beyond[link]))
        if not beyond[tip].any() and len(path) > 1:  # no link says where it ends
            beyond[tip] = 0.8 * (origins[-1] - origins[-2])
        parallel = np.flatnonzero(np.abs(axes @ axes[-1]) > 0.8)
        flexes = [turn for turn in parallel if not its_joints[turn].follows]
        refuse(not flexes, f"finger '{tip}' has no joint that closes it, only such as follow others")
        fingers.append(Finger(tip, its_joints, axes, np.array([*origins, origins[-1] + beyond[tip]]), flexes))
    refuse(len(fingers) < 2, "has fewer than two fingers; two are needed to hold something between them")
    middle = np.mean([finger.points[0] for finger in fingers], axis=0)
    named = [finger for finger in fingers if re.search("thumb|(^|[^a-z])th", finger.tip.lower())]
    thumb = max(named or fingers, key=lambda finger: np.linalg.norm(finger.points[0] - middle))
    thumb, *others = sorted(fingers, key=lambda finger: np.linalg.norm(finger.points[0] - thumb.points[0]))
    return [thumb._replace(flexes=thumb.flexes[-2:]), *others]


def find_wrist(palm, fingers):
    """The JSON's `wrist`: where fingers point at rest, and where tips go as joints turn to where there is more room."""
    along, normal = sum(finger.points[-1] - finger.points[0] for finger in fingers), np.zeros(3)
    for _, joints, axes, points, flexes in fingers:
        normal += sum(sum(joints[turn].limits) * np.cross(axes[turn], points[-1] - points[turn]) for turn in flexes)
    normal = normal - along * (normal @ along) / max(along @ along, 1e-9)
    length = np.linalg.norm(normal)
    refuse(length < 1e-6, "has fingers without length (add links at their tips) or that close in no common direction")
    directions = {"palm_normal": normal / length, "finger_direction": along / np.linalg.norm(along)}
    return {"link": palm, "position": [0, 0, 0]} | {key: (v.round(4) + 0.0).tolist() for key, v in directions.items()}


# ---------------------------------------------------------------- spheres
def solid_spheres(link, largest):
    """Spheres [x, y, z, radius] in a link's frame that fill its <collision>s, but for meshes."""
    found, name = [], f"link '{link.get('name')}'"
    for collision in link.findall("collision"):
        frame, sides = frame_of(collision.find("origin"), name), np.zeros(3)
        for shape in collision.iterfind("geometry/*"):
            if shape.tag == "box":
                sides = xml_numbers(shape, "size", 3, name)
                radius = min(sides.min() / 2, largest)
            elif shape.tag in ("cylinder", "sphere"):
                radius = min(xml_numbers(shape, "radius", 1, name)[0], largest)
                sides[2] = xml_numbers(shape, "length", 1, name, "0")[0]
            else:
                continue
            room = np.maximum(sides - 2 * radius, 0) / 2
            rows = (np.linspace(-end, end, 1 + int(np.ceil(end / (0.8 * radius)))) for end in room)
            found += placed([[*center, radius] for center in itertools.product(*rows)], frame).tolist()
    return found


def find_spheres(fingers, palm, links, elements, size):
    """{link: spheres}, and those links that have no solid, whose spheres are guessed: along bones.

    links: what `at_rest` says of the palm; elements: {link: XML element}.
    """
    found = {link: solid_spheres(elements[link], min(0.016 * size, MAX_RADIUS)) for link in links}
    solid, radius = {links[link][1] for link in links if found[link]}, 0.011 * size
    bones = [(palm, fingers[0].points[0], finger.points[0]) for finger in fingers[1:]]
    for finger in fingers:
        bones += [(joint.child, *ends) for joint, ends in zip(finger.joints, itertools.pairwise(finger.points))]
    guessed = [(link, start, end) for link, start, end in bones if links[link][1] not in solid]
    for link, start, end in guessed:
        count = int(np.ceil(np.linalg.norm(end - start) / (1.6 * radius)))
        centers = end + np.linspace(0, 1, count, endpoint=False)[:, None] * (start - end)
        found[link] += placed(np.insert(centers, 3, radius, axis=1), np.linalg.inv(links[link][0])).tolist()
    found = {link: np.round(spheres, 5).tolist() for link, spheres in found.items() if spheres}
    return found, [link for link in dict.fromkeys(link for link, *_ in guessed) if link in found]


# ---------------------------------------------------------------- pre-shapes
def pre_shapes(hand, fingers):
    """The `pre_shapes` of a `Hand`: fingers open, and the thumb where its tip and the others' meet, all half closed."""
    names, (low, high) = list(hand.joint_names), np.degrees(hand.limits).T
    flexing = [[finger.joints[turn].name for turn in finger.flexes] for finger in fingers]
    flexes, first = np.isin(names, sum(flexing, [])), np.isin(names, [its_joints[0] for its_joints in flexing])
    up = low + high >= 0  # there is more room
    back, shut = np.where(up, np.maximum(low, -OPEN), np.minimum(high, OPEN)), np.where(up, high, low)
    rest = np.clip(0, low, high)

    own = np.flatnonzero(~flexes & np.isin(names, [joint.name for joint in fingers[0].joints]))
    places = list(itertools.product(*(np.linspace(low[joint], high[joint], PLACES) for joint in own)))
    half = np.tile(np.where(flexes, (back + shut) / 2, rest), (len(places), 1))
    half[:, own] = places
    tips = finger_spheres(np.radians(half), hand)[0][:, :, -1]  # (n, F, 3)
    rest[own] = places[np.linalg.norm(tips[:, 0] - tips[:, 1:].mean(1), axis=1).argmin()]

    shapes = {}
    for mode, ends in SHAPES.items():
        share, speed = np.where(first[:, None], *ends).T
        start = np.where(flexes, back + share * (shut - back), rest).round(1).tolist()
        closing = np.where(flexes, np.where(up, speed, -speed), 0).tolist()
        shapes[mode] = {"start": dict(zip(names, start)), "closing": dict(zip(names, closing))}
    return shapes


# ---------------------------------------------------------------- the whole
def draft(text, palm):
    """What describes the hand of a URDF's text, as `read_source` returns it, and lines on what was guessed.

    palm: the link, or None for the one that most joints are on.
    """
    joints, elements = read_urdf(text)
    parents = [joint.parent for joint in joints.values()]
    palm = palm or max(elements, key=parents.count)
    links = at_rest(joints, palm, np.eye(4))
    fingers = find_fingers(joints, links)
    lengths = [np.linalg.norm(np.diff(finger.points, axis=0), axis=1).sum() for finger in fingers[1:]]
    size = round(float(np.median(lengths)) / FINGER, 3)
    wrist = find_wrist(palm, fingers[1:])
    spheres, guessed = find_spheres(fingers, palm, links, elements, size)
    source = {
        "urdf": text, "wrist": wrist,
        "joints": {joint.name: joint.name for finger in fingers for joint in finger.joints if not joint.follows},
        "fingers": {f.tip: {"tip": f.tip, "flexes": f.joints[f.flexes[0]].name} for f in fingers},
        "spheres": spheres, "pre_shapes": {"power": {"start": {}, "closing": {}}},
        "grasp_center": (size * BENCHMARK.grasp_center).round(4).tolist(),
        "work_box": (size * BENCHMARK.work_box).round(4).tolist(), "size": size,
    }  # fmt: skip
    hand, turn = build_hand(source), palm_frame(wrist)[:3, :3]
    front = (hand.palm_centers[:, 2] + hand.palm_radii).max()
    x, y, _ = turn @ np.median([finger.points[0] for finger in fingers[1:]], axis=0)
    wrist["position"] = (turn.T @ ((x, y, front) - size * WRIST)).round(4).tolist()
    source["pre_shapes"] = pre_shapes(hand, fingers)
    build_hand(source)  # says what is wrong with it

    lines = [" ".join(("wrist:", *(f"{key} {value}" for key, value in wrist.items())))]
    for finger in fingers:
        kinds = {turn: "flexes" for turn in finger.flexes}
        kinds |= {turn: "follows" for turn, joint in enumerate(finger.joints) if joint.follows}
        each = (f"{joint.name} {kinds.get(turn, 'spreads or rests')}" for turn, joint in enumerate(finger.joints))
        lines.append(f"{'finger' if lines[1:] else 'thumb'} to {finger.tip}: {', '.join(each)}")
    lines.append(f"spheres from boxes, cylinders and spheres; guessed along bones on: {' '.join(guessed) or 'no link'}")
    lines.append("pre-shapes: fingers open, the thumb where its tip and the others' meet, all half closed")
    lines.append(f"grasp_center and work_box: those of the benchmark's hand, {size} times as large")
    return source, lines


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("urdf", metavar="FILE.urdf", help="the hand's; its meshes are not needed")
    parser.add_argument("--palm", metavar="LINK", help="the link that fingers hang on (the one with most joints)")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="where the draft goes")
    args = parser.parse_args(argv)
    refuse(Path(args.out).exists(), f"--out {args.out}: is there already; remove it or name another file")
    with readable(args.urdf):
        text = Path(args.urdf).read_text(encoding="utf-8", errors="replace")
    with naming(args.urdf):
        source, lines = draft(text, args.palm)
    with atomic(args.out) as temporary:
        text = json.dumps(source | {"urdf": os.path.relpath(args.urdf, Path(args.out).parent)}, indent=2)
        text = re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list is a line
        temporary.write_text(text + "\n", encoding="utf-8")
    print(*lines, f"saved {args.out}: a draft; look at its guesses and at a picture of grasps", sep="\n")


if __name__ == "__main__":
    main()
