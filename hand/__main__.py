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
from scipy.spatial.transform import Rotation

from cli.errors import command, refuse
from cli.flags import Parser
from files.reading import readable
from files.writing import atomic
from hand.described import frame_of, hand_from, naming, palm_frame, path_to, placed, read_urdf, turns_along, xml_numbers

FINGER = 0.14  # m, a finger of the benchmark's hand: the size of others is measured by it
# By pre-shape: where the first flexing joint and those beyond it start (share of their range), and how fast they close
SHAPES = {"power": ((0.05, 1), (0.05, 1)), "pinch": ((0.05, 1), (0.1, 0)), "sphere": ((0.05, 1), (0.5, 0.1))}
OPEN = 20  # degrees: no joint starts farther back
PLACES = 9  # of each joint of the thumb that does not flex, among which the ones are found where it meets the fingers


class Finger(NamedTuple):
    """A finger at rest, in the palm link's frame."""

    joints: list  # T that turn
    axes: np.ndarray  # (T, 3)
    points: np.ndarray  # (T + 1, 3) m: origins and tip
    frames: dict  # {link: (turns before it, frame (4, 4))}, the last one the tip
    flexes: list  # the turns that close it

    def speed(self, turn):
        """Where the tip goes as a joint turns up, (3,) m per rad."""
        return np.cross(self.axes[turn], self.points[-1] - self.points[turn])

    def tip_at(self, degrees):
        """Where the tip is, (3,) m, with its joints at {name: degrees}."""
        point = self.points[-1]
        for joint, axis, origin in reversed(list(zip(self.joints, self.axes, self.points))):
            source, multiplier, _ = joint.follows or (joint.name, 1, 0)
            turn = Rotation.from_rotvec(multiplier * degrees[source] * axis, degrees=True)
            point = origin + turn.apply(point - origin)
        return point


def find_fingers(joints, links):
    """The palm's link and every `Finger` by name, from what `read_urdf` returns."""
    root = next((link for link in links if link not in joints), None)
    inner = {joint.parent for joint in joints.values()}
    by_last, passed = {}, set()  # paths by the last joint that turns, and joints that are not the last
    for path in (path_to(link, joints, root) for link in links if link not in inner):
        turning = [joint.name for joint in path if joint.axis is not None]
        by_last.setdefault(turning[-1] if turning else None, []).append(path)
        passed.update(turning[:-1])
    ends = [paths for last, paths in by_last.items() if last and last not in passed]
    refuse(len(ends) < 2, "has fewer than two fingers; two are needed to hold something between them")
    shared = os.path.commonprefix([[joint.child for joint in path] for paths in ends for path in paths])
    palm, fingers = [root, *shared][-1], {}
    for paths in ends:
        path = max(paths, key=lambda path: sum(np.linalg.norm(joint.origin[:3, 3]) for joint in path))
        path, tip = path[len(shared) :], path[-1].child
        turns, frames = turns_along(path, np.eye(4))
        axes, origins = turns[:, :3, 2], turns[:, :3, 3]
        end = frames[tip][1][:3, 3]
        if np.linalg.norm(end - origins[-1]) < 1e-6 and len(origins) > 1:  # no link says where it ends
            end = end + 0.8 * (origins[-1] - origins[-2])
        name = os.path.commonprefix([joint.child for joint in path]).rstrip("_-. ") or tip
        turning = [joint for joint in path if joint.axis is not None]
        parallel = np.flatnonzero(np.abs(axes @ axes[-1]) > 0.8)  # to its last one
        flexes = [turn for turn in parallel if not turning[turn].follows]
        refuse(not flexes, f"finger '{name}' has no joint that closes it, only such as follow others")
        short = np.linalg.norm(end - origins[0]) < 1e-6
        refuse(short, f"finger '{name}' has no length; add a link at its tip, by a fixed joint")
        name = tip if name in fingers else name
        fingers[name] = Finger(turning, axes, np.array([*origins, end]), frames, flexes)
    return palm, fingers


def find_thumb(fingers):
    """The finger whose name says so, or the one without which the others' bases lie closest."""
    named = [name for name in fingers if re.search(r"thumb|(^|[^a-z])th", name.lower())]

    def spread(left_out):
        return np.std([finger.points[0] for name, finger in fingers.items() if name != left_out], axis=0).sum()

    return named[0] if named else min(fingers, key=spread)


def find_wrist(palm, fingers):
    """The JSON's `wrist`: where fingers point at rest, and where tips go as joints turn to where there is more room."""
    along = sum(finger.points[-1] - finger.points[0] for finger in fingers)
    normal = sum(sum(f.joints[turn].limits) * f.speed(turn) for f in fingers for turn in f.flexes)
    normal = normal - along * (normal @ along) / (along @ along)
    refuse(np.linalg.norm(normal) < 1e-6, "has fingers that close in no common direction; no palm's normal is found")
    directions = {"palm_normal": normal, "finger_direction": along}
    units = {key: (way / np.linalg.norm(way)).round(4) + 0.0 for key, way in directions.items()}
    return {"link": palm, "position": [0, 0, 0]} | {key: unit.tolist() for key, unit in units.items()}


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


def bone_spheres(start, end, frame, radius):
    """Spheres in a link's frame (4, 4) along a bone, from beyond its start to its end."""
    count = int(np.ceil(np.linalg.norm(end - start) / (1.6 * radius)))
    centers = end + np.linspace(0, 1, count, endpoint=False)[:, None] * (start - end)
    return placed(np.insert(centers, 3, radius, axis=1), np.linalg.inv(frame)).tolist()


def find_spheres(fingers, palm, links, size):
    """{link: spheres}, and the names of those links whose spheres are guessed, since they have no solid."""
    moved = {link for finger in fingers.values() for link, (turns, _) in finger.frames.items() if turns}
    found = {link: solid_spheres(links[link], 0.016 * size) for link in (palm, *sorted(moved))}
    guessed, bases = [], [finger.points[0] for finger in fingers.values()]
    if not found[palm]:
        guessed.append(palm)
        found[palm] = [sphere for base in bases[1:] for sphere in bone_spheres(bases[0], base, np.eye(4), 0.011 * size)]
    for finger in fingers.values():
        for turn, bone in enumerate(itertools.pairwise(finger.points), 1):
            body = [link for link, (before, _) in finger.frames.items() if before == turn]
            if not any(found[link] for link in body):
                found[body[0]] = bone_spheres(*bone, finger.frames[body[0]][1], 0.011 * size)
                guessed += [body[0]] * bool(found[body[0]])
    return {link: np.round(spheres, 5).tolist() for link, spheres in found.items() if spheres}, guessed


# ---------------------------------------------------------------- pre-shapes
def pre_shapes(fingers, normal):
    """The `pre_shapes`: fingers open, and the thumb where its tip and the others' meet, all half closed."""
    (thumb, *others), ends, aside, shapes = fingers, {}, {}, {}
    for name, finger in fingers.items():
        for turn, joint in enumerate(finger.joints):
            low, high = np.degrees(joint.limits)
            up = sum(joint.limits) >= 0 if name == thumb else finger.speed(turn) @ normal >= 0
            if turn in finger.flexes:
                ends[joint.name] = (max(low, -OPEN), high) if up else (min(high, OPEN), low)
            elif not joint.follows:
                aside[joint.name] = np.clip(0, low, high)
    half = aside | {joint: sum(both) / 2 for joint, both in ends.items()}
    meeting = np.mean([fingers[name].tip_at(half) for name in others], axis=0)
    free = {joint.name: np.degrees(joint.limits) for joint in fingers[thumb].joints if joint.name in aside}
    grid = [dict(zip(free, at)) for at in itertools.product(*(np.linspace(*both, PLACES) for both in free.values()))]
    aside |= min(grid, key=lambda at: np.linalg.norm(fingers[thumb].tip_at(half | at) - meeting))
    firsts = [finger.joints[finger.flexes[0]].name for finger in fingers.values()]
    for mode, (first, beyond) in SHAPES.items():
        start, closing = dict(aside), {}
        for joint, (back, shut) in ends.items():
            share, speed = first if joint in firsts else beyond
            start[joint], closing[joint] = back + share * (shut - back), float(np.copysign(speed, shut - back))
        start = {joint: round(float(angle), 1) for joint, angle in start.items()}
        shapes[mode] = {"start": start, "closing": closing, "goes_on": mode == "power"}
    return shapes


# ---------------------------------------------------------------- the whole
def draft(text):
    """What describes the hand of a URDF's text, as `read_source` returns it, and lines on what was guessed."""
    joints, links = read_urdf(text)
    palm, fingers = find_fingers(joints, links)
    thumb = find_thumb(fingers)
    base = fingers[thumb].points[0]
    fingers = dict(sorted(fingers.items(), key=lambda item: np.linalg.norm(item[1].points[0] - base)))
    _, *others = fingers.values()
    wrist = find_wrist(palm, others)
    lengths = [np.linalg.norm(np.diff(finger.points, axis=0), axis=1).sum() for finger in others]
    size = round(float(np.median(lengths)) / FINGER, 3)
    spheres, guessed = find_spheres(fingers, palm, links, size)

    to_hand = palm_frame(wrist)
    inside, y = placed(spheres[palm], to_hand), to_hand[1, :3] @ np.mean([f.points[0] for f in others], axis=0)
    (left, heel, *_), (right, _, front, radius) = inside.min(0), inside.max(0)
    front += radius
    middle, bit = (left + right) / 2, 0.01 * size
    center = (middle - bit, middle + bit), ((heel + y) / 2, y), (front, front)
    room = (left - 2 * bit, right + 2 * bit), (heel, y + 4 * bit), (front - bit, front + 11 * bit)
    names = [joint.name for finger in fingers.values() for joint in finger.joints if not joint.follows]
    source = {
        "urdf": text, "wrist": wrist,
        "joints": {name: name for name in names},
        "fingers": {
            name: {"tip": list(finger.frames)[-1], "flexes": finger.joints[finger.flexes[0]].name}
            for name, finger in fingers.items()
        },
        "spheres": spheres, "pre_shapes": pre_shapes(fingers, to_hand[2, :3]),
        "grasp_center": np.round(center, 4).tolist(), "work_box": np.round(room, 4).tolist(), "size": size,
    }  # fmt: skip
    lines = [f"wrist: link '{palm}', palm normal {wrist['palm_normal']}, fingers to {wrist['finger_direction']}"]
    for name, finger in fingers.items():
        kinds = {turn: "flexes" for turn in finger.flexes}
        kinds |= {turn: "follows" for turn, joint in enumerate(finger.joints) if joint.follows}
        each = (f"{joint.name} {kinds.get(turn, 'spreads or rests')}" for turn, joint in enumerate(finger.joints))
        lines.append(f"{'thumb: ' * (name == thumb)}{name}: {', '.join(each)}")
    lines.append(f"spheres from boxes, cylinders and spheres; guessed along bones on: {' '.join(guessed) or 'no link'}")
    lines.append("pre-shapes: fingers open, the thumb where its tip and the others' meet, all half closed")
    return source, lines


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("urdf", metavar="FILE.urdf", help="the hand's; its meshes are not needed")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="where the draft goes")
    args = parser.parse_args(argv)
    refuse(Path(args.out).exists(), f"--out {args.out}: is there already; remove it or name another file")
    with readable(args.urdf):
        text = Path(args.urdf).read_text(encoding="utf-8", errors="replace")
    with naming(args.urdf):
        source, lines = draft(text)
    hand_from(source, args.urdf)  # says what is wrong with it
    with atomic(args.out) as temporary:
        text = json.dumps(source | {"urdf": os.path.relpath(args.urdf, Path(args.out).parent)}, indent=2)
        text = re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list is a line
        temporary.write_text(text + "\n", encoding="utf-8")
    print(*lines, f"saved {args.out}: a draft; look at its guesses and at a picture of grasps", sep="\n")


if __name__ == "__main__":
    main()
