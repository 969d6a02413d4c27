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

from cli.errors import UserError, command, refuse
from cli.flags import Parser
from files.reading import readable
from files.writing import atomic
from hand.described import frame_of, hand_from, palm_frame, path_to, read_urdf, turns_along, xml_numbers
from hand.kinematics import finger_frames, finger_points

FINGER = 0.14  # m, a finger of the benchmark's hand: the size of others is measured by it
# By pre-shape: where the first flexing joint and those beyond it start (share of their range), and how fast they close
SHAPES = {"power": ((0.05, 1), (0.05, 1)), "pinch": ((0.05, 1), (0.1, 0)), "sphere": ((0.05, 1), (0.5, 0.1))}
OPEN, SPREAD = 20, 25  # degrees: no joint starts farther back; outer fingers of a sphere go aside
PLACES = 9  # of each joint of the thumb that does not flex, among which the ones are found where it meets the fingers
CLOSING = np.linspace(0, 2.2, 16)[:, None]  # rad, of a joint at speed 1, in which thumb and fingers are looked at


class Finger(NamedTuple):
    """A finger at rest, in the palm link's frame."""

    joints: list  # T that turn
    axes: np.ndarray  # (T, 3)
    points: np.ndarray  # (T + 1, 3) m: origins and tip
    frames: dict  # {link: (turns before it, frame (4, 4))}
    tip: str  # its last link

    def flexing(self, is_thumb=False):
        """The turns that close it: parallel to its last one; of a thumb those without another between, if several."""
        parallel = np.abs(self.axes @ self.axes[-1]) > 0.8
        own = [t for t in np.flatnonzero(parallel) if not self.joints[t].follows]
        run = [t for t in own if parallel[t:].all()]
        return run if is_thumb and len(run) > 1 else own

    def speed(self, turn):
        """Where the tip goes as a joint turns up, (3,) m per rad."""
        return np.cross(self.axes[turn], self.points[-1] - self.points[turn])


def find_fingers(joints):
    """The palm's link and every `Finger` by name, from the joints of a URDF by child link."""

    def below(link):
        return [joint for joint in joints.values() if joint.parent == link]

    def turns(link):
        return any(joint.axis is not None or turns(joint.child) for joint in below(link))

    palm = next((joint.parent for joint in joints.values() if joint.parent not in joints), None)
    while len(moving := [joint for joint in below(palm) if joint.axis is not None or turns(joint.child)]) == 1:
        palm = moving[0].child
    refuse(not moving, "has fewer than two fingers; two are needed to hold something between them")
    fingers = {}
    for last in [joint for joint in joints.values() if joint.axis is not None and not turns(joint.child)]:
        ends = [[last]]  # paths from the last joint that turns, over fixed ones
        for path in ends:
            ends += [[*path, fixed] for fixed in below(path[-1].child)]
        tip = max(ends, key=lambda path: sum(np.linalg.norm(joint.origin[:3, 3]) for joint in path[1:]))[-1].child
        path = path_to(tip, joints, palm)
        axes, origins, frames = turns_along(path, np.eye(4))
        end = frames[tip][1][:3, 3]
        if np.linalg.norm(end - origins[-1]) < 1e-6 and len(origins) > 1:  # no link says where it ends
            end = end + 0.8 * (origins[-1] - origins[-2])
        name = os.path.commonprefix([joint.child for joint in path]).rstrip("_-. ") or tip
        turning = [joint for joint in path if joint.axis is not None]
        fingers[tip if name in fingers else name] = Finger(turning, axes, np.array([*origins, end]), frames, tip)
    return palm, fingers


def find_thumb(fingers):
    """The finger whose name says so, or the one without which the others' bases lie closest; and why."""
    named = [name for name in fingers if re.search(r"thumb|(^|[^a-z])th", name.lower())]

    def spread(left_out):
        return np.std([finger.points[0] for name, finger in fingers.items() if name != left_out], axis=0).sum()

    return (named[0], "by its name") if named else (min(fingers, key=spread), "its base is off the others'")


def find_wrist(palm, fingers):
    """The JSON's `wrist`: where fingers point at rest, and where tips go as joints turn to where there is more room."""
    along = sum(finger.points[-1] - finger.points[0] for finger in fingers)
    along /= np.linalg.norm(along)
    normal = sum(sum(f.joints[turn].limits) * f.speed(turn) for f in fingers for turn in f.flexing())
    normal = normal - along * (normal @ along)
    refuse(np.linalg.norm(normal) < 1e-6, "has fingers that close in no common direction; no palm's normal is found")
    normal /= np.linalg.norm(normal)
    return {"link": palm, "position": [0, 0, 0]} | {
        "palm_normal": (normal.round(4) + 0.0).tolist(), "finger_direction": (along.round(4) + 0.0).tolist(),
    }  # fmt: skip


# ---------------------------------------------------------------- spheres
def row_of(length, radius):
    """Where the centers of spheres stand that fill a length about 0."""
    room = max(0.0, length - 2 * radius)
    return np.linspace(-room / 2, room / 2, 1 + int(np.ceil(room / (1.6 * radius))))


def solid_spheres(link, largest):
    """Spheres [x, y, z, radius] in a link's frame that fill its <collision>s, but for meshes."""
    found, name = [], f"link '{link.get('name')}'"
    for collision in link.findall("collision"):
        frame, sides = frame_of(collision.find("origin"), name), np.zeros(3)
        for shape in collision.iterfind("geometry/*"):
            if shape.tag == "box":
                sides = xml_numbers(shape, "size", 3, name)
                small, middle, _ = np.sort(sides)
                radius = small / 2 if middle > 2 * small else (small + middle) / 4
            elif shape.tag in ("cylinder", "sphere"):
                radius = xml_numbers(shape, "radius", 1, name)[0]
                sides[2] = xml_numbers(shape, "length", 1, name)[0] if shape.tag == "cylinder" else 0
            else:
                continue
            radius = min(radius, largest)
            centers = itertools.product(*(row_of(side, radius) for side in sides))
            found += [[*(frame[:3, :3] @ center + frame[:3, 3]), radius] for center in centers]
    return found


def find_spheres(fingers, palm, links, size, to_hand):
    """{link: spheres}, and the names of those links whose spheres are guessed, since they have no solid."""
    found = {palm: solid_spheres(links[palm], 0.018 * size)}
    guessed, radius = [] if found[palm] else [palm], 0.011 * size

    def put(link, frame, centers):
        back = np.linalg.inv(frame)
        found[link] = [[*(back[:3, :3] @ center + back[:3, 3]), radius] for center in centers]

    for finger in fingers.values():
        found |= {link: solid_spheres(links[link], 0.016 * size) for link in finger.frames}
        for turn, (start, end) in enumerate(itertools.pairwise(finger.points), 1):
            body = [link for link, (before, _) in finger.frames.items() if before == turn]
            length = np.linalg.norm(end - start)
            if length > radius and not any(found[link] for link in body):
                shares = (row_of(length + radius, radius) + length / 2) / length  # the last one may reach to the end
                put(body[0], finger.frames[body[0]][1], start + np.clip(shares, 0.1, 1)[:, None] * (end - start))
                guessed.append(body[0])
    if palm in guessed:  # a plate between the fingers' bases
        bases = np.array([to_hand[:3, :3] @ finger.points[0] + to_hand[:3, 3] for finger in fingers.values()])
        (x0, y0, _), (x1, y1, _) = bases.min(0), bases.max(0)
        y0, height = min(y0, y1 - 0.08 * size) - radius, np.median(bases[:, 2]) - 0.3 * radius
        across, along = row_of(x1 - x0 + 2 * radius, radius) + (x0 + x1) / 2, row_of(y1 - y0, radius) + (y0 + y1) / 2
        put(palm, to_hand, [np.array([x, y, height]) for x in across for y in along])
    return {link: np.round(spheres, 5).tolist() for link, spheres in found.items() if spheres}, guessed


# ---------------------------------------------------------------- pre-shapes
def tips(hand, finger, joints):
    """Where a finger's tip is, (n, 3) m, hand frame, at joints (n, J) rad."""
    chain = next(chain for chain in hand.chains if finger in chain.fingers)
    (at,) = np.flatnonzero(chain.fingers == finger)
    frames = finger_frames(chain, np.eye(3)[None], np.zeros((1, 3)))[:, :, [at] * len(joints)]
    return finger_points(chain, joints[:, chain.columns[at]].T, frames, chain.bones)[:, -1].T


def meeting_place(hand, start, closing, free):
    """The values (n,) rad of the thumb's joints `free` at which it closes on the other fingers, from far enough.

    start, closing (J,): rad, speeds. The best of a grid: paths of the tips come close, and against each other.
    """
    path = np.clip(start + CLOSING * closing, *hand.limits.T)  # (steps, J)
    theirs = np.stack([tips(hand, finger, path) for finger in range(1, len(hand.fingers))])
    grid = np.array(list(itertools.product(*(np.linspace(*hand.limits[joint], PLACES) for joint in free))))
    costs = []
    for values in grid:
        path[:, free] = values
        mine = tips(hand, 0, path)
        apart = np.linalg.norm(theirs[:, :, None] - mine, axis=3) / hand.size  # (F, steps, steps)
        ways = np.gradient(theirs, axis=1), np.gradient(mine, axis=0)
        theirs_way, my_way = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-6) for v in ways)
        met = (apart + 0.03 * (theirs_way @ my_way.T)).min((1, 2)).mean()
        costs.append(met - 0.3 * min(0.1, apart[:, 0, 0].min()))
    return grid[np.argmin(costs)]


def pre_shapes(source, fingers, flexes, normal, across):
    """The `pre_shapes`: fingers open, the thumb where it meets them."""
    (thumb, *others), shapes, names = fingers, {}, list(source["joints"])
    middle = np.mean([fingers[name].points[0] for name in others], axis=0)
    for mode, (first, beyond) in SHAPES.items():
        start, closing = {}, {}
        for k, (name, finger) in enumerate(fingers.items()):
            side = np.clip((finger.points[0] - middle) @ across / (0.04 * source["size"]), -1, 1)
            aside = SPREAD * side * (mode == "sphere" and k > 0)
            for turn, joint in enumerate(finger.joints):
                low, high = np.degrees(joint.limits)
                if turn in flexes[name]:
                    share, speed = first if turn == flexes[name][0] else beyond
                    up = sum(joint.limits) >= 0 if name == thumb else finger.speed(turn) @ normal >= 0
                    back, shut = (max(low, -OPEN), high) if up else (min(high, OPEN), low)
                    start[joint.name] = back + share * (shut - back)
                    closing |= {joint.name: speed if up else -speed} if speed else {}
                elif not joint.follows:
                    start[joint.name] = np.clip(aside * np.sign(finger.speed(turn) @ across), low, high)
        shapes[mode] = {"start": start, "closing": closing, "goes_on": mode == "power"}
    hand = hand_from(source | {"pre_shapes": shapes}, "draft")
    turning = [joint.name for turn, joint in enumerate(fingers[thumb].joints) if turn not in flexes[thumb]]
    free = [names.index(name) for name in turning if name in names]
    for mode, shape in shapes.items():
        closing = np.array([shape["closing"].get(name, 0) for name in names])
        found = meeting_place(hand, hand.start[hand.modes.index(mode)], closing, free)
        shape["start"] |= dict(zip([names[joint] for joint in free], np.degrees(found)))
        shape["start"] = {name: round(float(angle), 1) for name, angle in shape["start"].items() if round(angle, 1)}
    return shapes


# ---------------------------------------------------------------- the whole
def draft(text):
    """What describes the hand of a URDF's text, as `read_source` returns it, and lines on what was guessed."""
    joints, links = read_urdf(text)
    palm, fingers = find_fingers(joints)
    thumb, why = find_thumb(fingers)
    base = fingers[thumb].points[0]
    fingers = dict(sorted(fingers.items(), key=lambda item: np.linalg.norm(item[1].points[0] - base)))
    others = list(fingers.values())[1:]
    flexes = {name: finger.flexing(name == thumb) for name, finger in fingers.items()}
    for name, turns in flexes.items():
        refuse(not turns, f"finger '{name}' has no joint that closes it, only such as follow others")
        short = np.ptp(fingers[name].points, axis=0).max() < 1e-6
        refuse(short, f"finger '{name}' has no length; add a link at its tip, by a fixed joint")
    wrist = find_wrist(palm, others)
    to_hand = palm_frame(wrist)
    lengths = [np.linalg.norm(np.diff(finger.points, axis=0), axis=1).sum() for finger in others]
    size = round(float(np.median(lengths)) / FINGER, 3)
    spheres, guessed = find_spheres(fingers, palm, links, size, to_hand)

    (*inside, radii), bases = np.array(spheres[palm]).T, np.mean([finger.points[0] for finger in others], axis=0)
    inside, (x, y, _) = to_hand[:3, :3] @ inside, to_hand[:3, :3] @ bases
    heel, front = (inside[1] - radii).min(), (inside[2] + radii).max()
    wrist["position"] = (to_hand[:3, :3].T @ (x, heel, 0)).round(4).tolist()
    wide, y = np.ptp(inside[0]) / 2 + 0.02 * size, y - heel
    room = (-wide, wide), (0.01 * size, y + 0.04 * size), (front - 0.01 * size, front + 0.11 * size)
    center = (-0.01 * size, 0.01 * size), (0.55 * y, y), (front, front)
    center, room = (np.round(np.array(box), 4).tolist() for box in (center, room))
    names = [joint.name for finger in fingers.values() for joint in finger.joints if not joint.follows]
    source = {
        "urdf": text, "wrist": wrist,
        "joints": {name: name for name in names},
        "fingers": {
            name: {"tip": finger.tip, "flexes": finger.joints[flexes[name][0]].name} for name, finger in fingers.items()
        },
        "spheres": spheres, "pre_shapes": {}, "grasp_center": center, "work_box": room, "size": size,
    }  # fmt: skip
    source["pre_shapes"] = pre_shapes(source, fingers, flexes, to_hand[2, :3], to_hand[0, :3])
    lines = [
        f"palm: link '{palm}'; in its frame the normal is {wrist['palm_normal']} and the fingers point to "
        f"{wrist['finger_direction']} (as they lie at rest and close); the wrist is at its heel, {wrist['position']}",
        f"thumb: '{thumb}' ({why}); the others, the nearest first: {' '.join(list(fingers)[1:])}",
    ]
    for name, finger in fingers.items():
        kinds = {turn: "flexes" for turn in flexes[name]}
        kinds |= {turn: "follows" for turn, joint in enumerate(finger.joints) if joint.follows}
        each = (f"{joint.name} {kinds.get(turn, 'spreads or rests')}" for turn, joint in enumerate(finger.joints))
        lines.append(f"{name}: {', '.join(each)}")
    guess = f"; guessed along bones, {11 * size:.0f} mm thick, on {' '.join(guessed)}" if guessed else ""
    lines.append(f"spheres: {sum(map(len, spheres.values()))}, from the URDF's boxes, cylinders and spheres{guess}")
    for mode, shape in source["pre_shapes"].items():
        angles = " ".join(f"{name} {angle:g}" for name, angle in shape["start"].items())
        lines.append(f"{mode} begins at (degrees) {angles}")
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
    try:
        source, lines = draft(text)
    except UserError as error:
        raise UserError(f"{args.urdf}: {error}") from None
    with atomic(args.out) as temporary:
        text = json.dumps(source | {"urdf": os.path.relpath(args.urdf, Path(args.out).parent)}, indent=2)
        text = re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list is a line
        temporary.write_text(text + "\n", encoding="utf-8")
    print(*lines, f"saved {args.out}: a draft; look at its guesses and at a picture of grasps", sep="\n")


if __name__ == "__main__":
    main()
