"""A first draft of the JSON that stands beside a hand's URDF (hand/described.py says what is in it), and its guesses.

    python -m hand my_hand.urdf --out my_hand.json

Look at what it says, and at grasps that synthesize.py makes and its --card draws; what is wrong is mended in the JSON.
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
from hand.described import at_rest, frame_of, placed, read_urdf, xml_numbers
from hand.kinematics import finger_spheres

FINGER = 0.14  # m, a finger of the benchmark's hand: the size of others is measured by it
WRIST = np.array([0, 0.114, 0.02])  # m, from its wrist to most fingers' bases, and to the front of its palm
FIRST = (0.05, 1)  # where a finger's first flexing joint starts (share of its range), and how fast it closes
BEYOND = {"power": FIRST, "pinch": (0.1, 0), "sphere": (0.5, 0.1)}  # and those beyond it, by pre-shape
OPEN = 20  # degrees: no joint starts farther back
PLACES = 9  # of each joint of the thumb that does not flex, among which the ones are found where it meets the fingers


class Finger(NamedTuple):
    """A finger at rest, in the palm link's frame."""

    tip: str  # its last link
    joints: tuple  # T that turn
    flexes: list  # those that close it: those parallel to its last one, of the thumb the last two of them
    points: np.ndarray  # (T + 1, 3) m: origins and tip


def find_fingers(links):
    """`Finger`s, the thumb and then the others in the order of the URDF; links: what `at_rest` says of the palm."""
    paths = {path[-1].name: path for _, path in links.values() if path}
    inner = {joint.name for path in paths.values() for joint in path[:-1]}  # others go on from it
    fingers = []
    for path in (path for name, path in paths.items() if name not in inner):
        origins = [joint.frame[:3, 3] for joint in path]
        beyond = {link: frame[:3, 3] - origins[-1] for link, (frame, its_path) in links.items() if its_path == path}
        tip = max(beyond, key=lambda link: np.linalg.norm(beyond[link]))
        if not beyond[tip].any() and len(path) > 1:  # no link says where it ends
            beyond[tip] = 0.8 * (origins[-1] - origins[-2])
        flexes = [joint for joint in path if abs(joint.axis @ path[-1].axis) > 0.8 and not joint.follows]
        fingers.append(Finger(tip, path, flexes, np.array([*origins, origins[-1] + beyond[tip]])))
    refuse(len(fingers) < 2, "has fewer than two fingers; two are needed to hold something between them")
    middle = np.mean([finger.points[0] for finger in fingers], axis=0)
    named = [finger for finger in fingers if re.search("thumb|(^|[^a-z])th", finger.tip.lower())]
    thumb = max(named or fingers, key=lambda finger: np.linalg.norm(finger.points[0] - middle))
    return [thumb._replace(flexes=thumb.flexes[-2:]), *(finger for finger in fingers if finger is not thumb)]


def find_wrist(palm, thumb, fingers):
    """The JSON's `wrist`: where fingers point at rest, and where tips go as joints turn to where there is more room.

    A thumb that points along with the others is a claw's: all point out of the palm, whose lower end the thumb is at.
    """
    along, normal = sum(finger.points[-1] - finger.points[0] for finger in fingers), np.zeros(3)
    for finger in fingers:
        for joint in finger.flexes:
            normal += sum(joint.limits) * np.cross(joint.axis, finger.points[-1] - joint.frame[:3, 3])
    normal -= along * (normal @ along) / max(along @ along, 1e-9)
    length = np.linalg.norm(normal)
    refuse(length < 1e-6, "has fingers without length (add links at their tips) or that close in no common direction")
    normal, along = normal / length, along / np.linalg.norm(along)
    thumb_along = thumb.points[-1] - thumb.points[0]
    if thumb_along @ along > 0.9 * np.linalg.norm(thumb_along):
        normal, along = along, -normal
    directions = {"palm_normal": normal, "finger_direction": along}
    return {"link": palm, "position": [0, 0, 0]} | {key: (v.round(4) + 0.0).tolist() for key, v in directions.items()}


# ---------------------------------------------------------------- spheres
def solid_spheres(link, largest):
    """Spheres [x, y, z, radius] in a link's frame that fill the boxes around its <collision>s, but for meshes."""
    found, name = [], f"link '{link.get('name')}'"
    for collision in link.findall("collision"):
        frame, shape = frame_of(collision.find("origin"), name), collision.find("geometry/*")
        if shape is None:
            continue
        if shape.tag == "box":
            sides = xml_numbers(shape, "size", 3, name)
        elif shape.tag in ("cylinder", "sphere"):
            sides = np.repeat(2 * xml_numbers(shape, "radius", 1, name), 3)
            sides[2:] = xml_numbers(shape, "length", 1, name, f"{sides[2]}")  # a sphere has none
        else:
            continue
        refuse((sides <= 0).any(), f"{name}: a {shape.tag} has no size; mend it in the URDF")
        radius = min(sides.min() / 2, largest)
        rows = (np.linspace(-end, end, 1 + int(np.ceil(end / (0.8 * radius)))) for end in sides / 2 - radius)
        found += placed([[*center, radius] for center in itertools.product(*rows)], frame).tolist()
    return found


def find_spheres(fingers, palm, links, elements, size):
    """{link: spheres}, and those links that have no solid, whose spheres are guessed: along bones.

    links: what `at_rest` says of the palm; elements: {link: XML element}.
    """
    found = {link: solid_spheres(elements[link], min(0.016 * size, MAX_RADIUS)) for link in links}
    guessed, radius = [link for link in links if not found[link]], 0.011 * size
    bones = [(palm, fingers[0].points[0], finger.points[0]) for finger in fingers[1:]]
    for finger in fingers:
        bones += [(joint.child, *ends) for joint, ends in zip(finger.joints, itertools.pairwise(finger.points))]
    for link, start, end in bones:
        if link in guessed:
            count = int(np.ceil(np.linalg.norm(end - start) / (1.6 * radius)))
            centers = end + np.linspace(0, 1, count, endpoint=False)[:, None] * (start - end)
            found[link] += placed(np.insert(centers, 3, radius, axis=1), np.linalg.inv(links[link][0])).tolist()
    found = {link: np.round(spheres, 5).tolist() for link, spheres in found.items() if spheres}
    return found, [link for link in guessed if link in found]


# ---------------------------------------------------------------- pre-shapes
def pre_shapes(hand):
    """The `pre_shapes` of what flexes a `Hand`: fingers open, and the thumb where tips meet that are half closed."""
    (low, high), flexes = np.degrees(hand.limits).T, hand.speed[0] > 0  # (J,)
    way = np.where(low + high >= 0, 1, -1)  # to where there is more room
    rest, back, shut = np.clip(0, low, high), np.clip(-OPEN * way, low, high), np.where(way > 0, high, low)

    own = np.flatnonzero(~flexes & (hand.fingers.levers[0] > 0).any(0))
    places = list(itertools.product(*(np.linspace(low[joint], high[joint], PLACES) for joint in own)))
    half = np.tile(np.where(flexes, (back + shut) / 2, rest), (len(places), 1))
    half[:, own] = places
    tips = finger_spheres(np.radians(half), hand)[:, :, -1]  # (n, F, 3)
    rest[own] = places[np.linalg.norm(tips[:, 0] - tips[:, 1:].mean(1), axis=1).argmin()]

    shapes = {}
    for mode, beyond in BEYOND.items():
        share, speed = np.tile(beyond, (len(way), 1)).T  # (J,)
        share[hand.flexors], speed[hand.flexors] = FIRST
        start = np.where(flexes, back + share * (shut - back), rest).round(1).tolist()
        closing = np.where(flexes, way * speed, 0).tolist()
        shapes[mode] = {"start": dict(zip(hand.joint_names, start)), "closing": dict(zip(hand.joint_names, closing))}
    return shapes


# ---------------------------------------------------------------- the whole
def draft(text, palm):
    """What describes the hand of a URDF's text, as `read_source` returns it, and lines on what was guessed.

    palm: the link, or None for the one that most joints are on.
    """
    joints, elements = read_urdf(text)
    parents = [joint.parent for joint in joints.values()]
    palm = palm or max(elements, key=parents.count)
    refuse(palm not in elements, f"has no link '{palm}'; give another --palm")
    links = at_rest(joints, palm, np.eye(4))
    fingers = find_fingers(links)
    lengths = [np.linalg.norm(np.diff(finger.points, axis=0), axis=1).sum() for finger in fingers[1:]]
    size = round(float(np.median(lengths)) / FINGER, 3)
    refuse(size > 10, f"has fingers {size * FINGER:.3g} m long; a URDF is in metres, scale it")
    wrist = find_wrist(palm, fingers[0], fingers[1:])
    spheres, guessed = find_spheres(fingers, palm, links, elements, size)
    closing = {joint.name: 1 for finger in fingers for joint in finger.flexes}
    source = {
        "urdf": text, "wrist": wrist,
        "joints": {joint.name: joint.name for finger in fingers for joint in finger.joints if not joint.follows},
        "fingers": {finger.tip: finger.tip for finger in fingers},
        "spheres": spheres, "pre_shapes": {"power": {"start": {}, "closing": closing}},
        "grasp_center": (size * BENCHMARK.grasp_center).round(4).tolist(),
        "work_box": (size * BENCHMARK.work_box).round(4).tolist(), "size": size,
    }  # fmt: skip
    hand, turn = build_hand(source), palm_frame(wrist)[:3, :3]
    front = (hand.palm_centers[:, 2] + hand.palm_radii).max()
    x, y, _ = turn @ np.median([finger.points[0] for finger in fingers[1:]], axis=0)
    wrist["position"] = (turn.T @ ((x, y, front) - size * WRIST)).round(4).tolist()
    source["pre_shapes"] = pre_shapes(hand)

    return source, [
        "wrist: " + " ".join(f"{key} {value}" for key, value in wrist.items()),
        f"last links of the fingers, the thumb first: {' '.join(source['fingers'])}",
        f"joints that close them (others spread, follow or rest): {' '.join(closing)}",
        f"spheres from boxes, cylinders and spheres; guessed along bones on: {' '.join(guessed) or 'no link'}",
        "pre-shapes: fingers open, the thumb where its tip and the others' meet, all half closed",
        f"grasp_center and work_box: those of the benchmark's hand, {size} times as large",
    ]


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
