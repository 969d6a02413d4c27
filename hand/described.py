"""A hand as a value, and how it is read: a URDF, the format in which hands are published, and a JSON of ours beside it.

From the URDF: links, joints that turn (their origins, axes, limits), joints that follow others; meshes are not needed.
The JSON says what a URDF does not:
    urdf        the file beside it
    wrist       link: the palm's; position, palm_normal and finger_direction (3,) in its frame: origin, z and y of the
                hand's frame, in which wrist poses are (x goes across the palm)
    joints      {name in recordings: joint of the URDF}, in the order of recordings
    fingers     {name: its last link}, the thumb first
    spheres     {link: [[x, y, z, radius], ...]} m, in the link's frame; on the palm and along the fingers
    pre_shapes  {power, pinch or sphere: {"start": {joint: degrees}, "closing": {joint: speed}}}, of the URDF; a joint
                that is not named is at rest; in power, joints beyond a link that touches close on
    grasp_center, work_box      [[low, high]] of x, y, z, m in the hand's frame: where the object is to lie, and what
                the pre-shape is chosen by and --pool surface measures in
    size        how large the hand is beside the benchmark's
"""

import contextlib
import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from cli.errors import UserError, refuse
from files.reading import readable
from files.recordings import numbered_joints
from files.writing import read_json

MODES = ("power", "pinch", "sphere")
MAX_RADIUS = 0.02  # m, of a sphere on a finger: a distance field is exact so far from the surface
MAX_PALM_RADIUS = 0.2  # m: what is wider was not written in metres
NO_HAND = "no hand is known with these joints; before training: python data.py ROOT --hand FILE.json"


class Fingers(NamedTuple):
    """F fingers of a hand with J joints: up to T turns one after the other, up to P spheres, at rest.

    All is in the hand's frame. A finger with fewer turns has some that turn nothing, one with fewer spheres its last
    one several times.
    """

    gear: np.ndarray  # (F, T, J) how far each turn goes with each joint: 1, or the multiplier of a joint that follows
    across: np.ndarray  # (F, T, 3, 3) a turn's axis x (x, y, z), as rows
    spheres: np.ndarray  # (F, P, 3 + 3 T) m: the way to a center by the origin of each turn
    radii: np.ndarray  # (F, P) m
    levers: np.ndarray  # (F, P, J) m per rad: how far a sphere moves with a joint, at most

    def some(self, which):
        """Some of the fingers, in float32, for what is computed often."""
        return Fingers(*(values[which].astype(np.float32) for values in self))


class Hand(NamedTuple):
    """What is known of a hand: J joints, F fingers, the thumb first."""

    joint_names: tuple  # as in recordings
    limits: np.ndarray  # (J, 2) rad
    finger_names: tuple
    fingers: Fingers
    flexors: np.ndarray  # (F,) the joint that closes each finger most, and opens it
    links: np.ndarray  # (F, P) which link a sphere is on, from the palm
    palm_centers: np.ndarray  # (p, 3) m, hand frame
    palm_radii: np.ndarray  # (p,) m
    modes: tuple  # names of pre-shapes
    start: np.ndarray  # (modes, J) rad
    speed: np.ndarray  # (modes, J) in closing
    grasp_center: np.ndarray  # (3, 2) m, hand frame
    work_box: np.ndarray  # (3, 2) m
    size: float
    source: dict | None  # the JSON with the URDF in it, which a root and a run keep; None for the benchmark's

    @property
    def kept(self):
        """What a dataset.json says of the hand: nothing of the benchmark's."""
        digest = hashlib.sha256(json.dumps(self.source).encode()).hexdigest()
        return {"hand": self.source, "hand_sha256": digest} if self.source else {}


# ---------------------------------------------------------------- the URDF
class Joint(NamedTuple):
    """A joint of a URDF: one that turns, one that follows another, or a fixed one, which has no axis."""

    name: str
    parent: str  # links
    child: str
    frame: np.ndarray  # (4, 4) of the child at rest, in the parent's, or, on a path, in that of the whole
    axis: np.ndarray | None  # (3,) in the child's, or in that of the whole
    limits: tuple  # rad
    follows: tuple | None  # joint, multiplier; it is at rest where that joint is


def numbers(values, what, *shape):
    """Finite numbers, or their texts, as an array of this shape."""
    try:
        found = np.array(values, dtype=float).reshape(shape)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    refuse(not np.isfinite(found).all(), f"{what} lacks a number, or has one too many; mend it")
    return found


def xml_numbers(element, key, count, name, default=""):
    """`count` finite numbers in an attribute of an XML element, which may be None."""
    text = default if element is None else element.get(key, default)
    return numbers(text.split(), f"{name}: {key} '{text}'", count)


def frame_of(origin, name):
    """<origin xyz= rpy=> as (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", xml_numbers(origin, "rpy", 3, name, "0 0 0")).as_matrix()
    matrix[:3, 3] = xml_numbers(origin, "xyz", 3, name, "0 0 0")
    return matrix


def read_joint(element):
    """A <joint> as `Joint`."""
    name, kind, mimic = element.get("name"), element.get("type"), element.find("mimic")
    what, axis, follows, limits = f"joint '{name}'", None, None, (-np.pi, np.pi)
    known = kind in ("revolute", "continuous", "fixed")
    refuse(not known, f"{what} is {kind}; only joints that turn or are fixed can be described")
    frame = frame_of(element.find("origin"), what)
    if kind != "fixed":
        axis = xml_numbers(element.find("axis"), "xyz", 3, what, "1 0 0")
        refuse(not axis.any(), f"{what}: its axis is zero; mend it in the URDF")
        axis /= np.linalg.norm(axis)
    if mimic is not None and axis is not None:
        follows = mimic.get("joint"), xml_numbers(mimic, "multiplier", 1, what, "1").item()
        offset = xml_numbers(mimic, "offset", 1, what, "0")
        frame[:3, :3] = frame[:3, :3] @ Rotation.from_rotvec(offset * axis).as_matrix()
    elif kind == "revolute":
        limits = tuple(xml_numbers(element.find("limit"), key, 1, what, "0").item() for key in ("lower", "upper"))
        refuse(limits[0] >= limits[1], f"{what} has no room to turn; mend its <limit lower= upper=>")
        refuse(limits[1] - limits[0] > 4 * np.pi, f"{what} turns more than twice; its <limit> must be in radians")
    ends = [element.find(end + "[@link]") for end in ("parent", "child")]
    refuse(None in ends, f"{what} lacks its <parent link=> or its <child link=>; mend it in the URDF")
    return Joint(name, *(end.get("link") for end in ends), frame, axis, limits, follows)


def read_urdf(text):
    """{name: `Joint`} and {link: XML element} of a URDF's text."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise UserError(f"no URDF ({error}); export it again") from None
    xacro = any("xacro" in str(element.tag) for element in root.iter())
    refuse(xacro, "is a xacro, of which a URDF is made; run: xacro FILE > hand.urdf")
    refuse(root.tag != "robot", f"begins with <{root.tag}>, a URDF with <robot>; give another file")
    elements = {link.get("name"): link for link in root.findall("link")}
    found = list(map(read_joint, root.findall("joint")))
    joints, above = {joint.name: joint for joint in found}, {joint.child: joint for joint in found}
    for joint in found:
        refuse(joints[joint.name] is not joint, f"two joints are named '{joint.name}'; rename one")
        loop = f"link '{joint.child}' hangs on several joints, which makes a loop; only trees can be described"
        refuse(above[joint.child] is not joint, loop)
        missing = " and ".join({joint.parent, joint.child} - elements.keys())
        refuse(missing, f"joint '{joint.name}' names the link {missing}, which the URDF lacks; mend it")
    return joints, elements


def at_rest(joints, link, frame, path=()):
    """{link: (frame (4, 4), path)} of all that hangs on a link, whose own are given; path: the joints that turn it."""
    found = {link: (frame, path)}
    for joint in joints.values():
        if joint.parent == link:
            its_frame, its_path = frame @ joint.frame, path
            if joint.axis is not None:
                its_path = (*path, joint._replace(frame=its_frame, axis=its_frame[:3, :3] @ joint.axis))
            found |= at_rest(joints, joint.child, its_frame, its_path)
    return found


def placed(spheres, frame):
    """Spheres [[x, y, z, radius], ...] of a frame (4, 4), (n, 4), where that is given in."""
    spheres = np.reshape(spheres, (-1, 4))
    return np.hstack((spheres[:, :3] @ frame[:3, :3].T + frame[:3, 3], spheres[:, 3:]))


# ---------------------------------------------------------------- the hand
def palm_frame(wrist):
    """From the palm link's frame to the hand's (4, 4): its z is the palm's normal, its y where the fingers point."""
    z, y = (numbers(wrist[key], key, 3) for key in ("palm_normal", "finger_direction"))
    x, matrix = np.cross(y, z), np.eye(4)
    refuse(np.linalg.norm(x) < 1e-3, "palm_normal and finger_direction are parallel or zero")
    z, x = z / np.linalg.norm(z), x / np.linalg.norm(x)
    matrix[:3, :3] = x, np.cross(z, x), z
    matrix[:3, 3] = -matrix[:3, :3] @ numbers(wrist["position"], "position", 3)
    return matrix


@contextlib.contextmanager
def naming(name):
    """What is wrong with a description, as a user error that begins with the name of its file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is no description of a hand ({error})"
        raise UserError(f"{name}: {what}; python -m hand FILE.urdf --out FILE.json writes one to begin with") from None


def build_hand(source):
    """The `Hand` of a source as `read_source` returns it."""
    joints, elements = read_urdf(source["urdf"])
    names, palm, tips = list(source["joints"].values()), source["wrist"]["link"], source["fingers"].values()
    refuse(palm not in elements, f"wrist: the URDF has no link '{palm}'; name another one")
    links = at_rest(joints, palm, palm_frame(source["wrist"]))
    for link in (*source["spheres"], *tips):
        refuse(link not in links, f"link '{link}' does not hang on the palm, link '{palm}'; name another one")
    for joint in names:
        refuse(joint not in joints, f"joint '{joint}' is not in the URDF; name another one in 'joints'")
        refuse(names.count(joint) > 1, f"joint '{joint}' stands for two in 'joints'; name another one")
    refuse(len(tips) < 2, "has fewer than two fingers, which can hold nothing between them")
    spheres = []  # the joints that turn it, and each (4,) in the hand's frame
    for link in sorted(source["spheres"], key=lambda link: len(links[link][1])):  # from the palm on
        frame, path = links[link]
        found = placed(numbers(source["spheres"][link], f"spheres on {link}: one", -1, 4), frame)
        refuse((found[:, 3] <= 0).any(), f"a sphere on {link} has no radius over 0 m; mend it")
        widest = MAX_RADIUS if path else MAX_PALM_RADIUS
        refuse((found[:, 3] > widest).any(), f"a sphere on {link} has a radius over {widest} m; mend it")
        spheres += [(path, sphere) for sphere in found]
    on_palm = np.array([sphere for path, sphere in spheres if not path])  # (p, 4)
    refuse(not len(on_palm), f"no spheres on the palm, link '{palm}'; add some")
    fingers, on_links = build_fingers(tips, spheres, links, names)

    modes = [mode for mode in MODES if mode in source["pre_shapes"]]
    refuse(not modes or len(modes) < len(source["pre_shapes"]), f"pre_shapes are some of {', '.join(MODES)}")
    shapes = [source["pre_shapes"][mode][key] for key in ("start", "closing") for mode in modes]  # {joint: number}
    unknown = " ".join(sorted(set().union(*shapes) - set(names)))
    refuse(unknown, f"pre_shapes name the joint '{unknown}', which 'joints' lacks")
    shapes = numbers([[shape.get(joint, 0) for joint in names] for shape in shapes], "pre_shapes: one", -1, len(names))
    start, speed = np.split(shapes, 2)  # (modes, J)
    limits = np.array([joints[joint].limits for joint in names])
    low, high = np.degrees(limits).T
    outside = (start < low - 0.1) | (start > high + 0.1)  # degrees, written with one decimal
    beyond = " ".join(np.array(names)[(outside & (start != 0)).any(0)])
    refuse(beyond, f"pre_shapes start beyond the limits of joint '{beyond}'; mend them")
    closing = fingers.levers.max(1) * np.abs(speed).sum(0)  # (F, J) how far each joint takes a finger
    twice = " ".join(np.array(names)[(closing > 0).sum(0) > 1])
    refuse(twice, f"joint '{twice}' closes two fingers; each must close by joints of its own")
    idle = " ".join(tip for tip, its_closing in zip(tips, closing) if not its_closing.any())
    refuse(idle, f"no joint of its own closes the finger with the tip '{idle}'; name one in 'closing'")
    size = numbers(source["size"], "size", 1).item()
    refuse(size <= 0, "size must be over 0; mend it")
    boxes = {box: numbers(source[box], box, 3, 2) for box in ("grasp_center", "work_box")}
    for box, values in boxes.items():
        refuse((values[:, 0] > values[:, 1]).any(), f"{box}: a low end lies over its high end; swap them")
    return Hand(
        joint_names=tuple(source["joints"]), limits=limits,
        finger_names=tuple(source["fingers"]), fingers=fingers, flexors=closing.argmax(1), links=on_links,
        palm_centers=on_palm[:, :3], palm_radii=on_palm[:, 3],
        modes=tuple(modes), start=np.radians(start), speed=speed,
        **boxes, size=size, source=source,
    )  # fmt: skip


def build_fingers(tips, spheres, links, names):
    """`Fingers`, and the links (F, P) that their spheres are on.

    tips: links; spheres: [(the joints that turn it, (4,) in the hand's frame), ...] from the palm on; links: as
    `at_rest` has them; names: of the joints (J,) in the URDF.
    """
    paths = [links[tip][1] for tip in tips]
    own = [[(len(on), *sphere) for on, sphere in spheres if on and on == path[: len(on)]] for path in paths]
    for tip, its_spheres in zip(tips, own):
        refuse(not its_spheres, f"no spheres on the finger with the tip '{tip}'; add some")
    most, turns = max(map(len, own)), max(map(len, paths))
    own = np.array([its_spheres + its_spheres[-1:] * (most - len(its_spheres)) for its_spheres in own])  # (F, P, 5)
    ways, across = np.zeros((len(paths), most, turns + 1, 3)), np.zeros((len(paths), turns, 3, 3))
    gear = np.zeros((len(paths), turns, len(names)))
    for finger, path in enumerate(paths):
        for turn, joint in enumerate(path):
            across[finger, turn] = np.cross(joint.axis, np.eye(3))
            leader, multiplier = joint.follows or (joint.name, 1)
            refuse(leader not in names, f"link '{joint.child}' moves by joint '{leader}', which 'joints' lacks")
            gear[finger, turn, names.index(leader)] = multiplier
        origins = [np.zeros(3), *(joint.frame[:3, 3] for joint in path)]
        for way, depth, center in zip(ways[finger], own[finger, :, 0].astype(int), own[finger, :, 1:4]):
            way[: depth + 1] = np.diff([*origins[: depth + 1], center], axis=0)
    beyond = np.linalg.norm(ways[:, :, :0:-1], axis=3).cumsum(2)[..., ::-1]  # (F, P, T) m, along the finger
    found = Fingers(gear, across, ways.reshape(*own.shape[:2], -1), own[..., 4], beyond @ np.abs(gear))
    return found, np.unique(own[..., 0], return_inverse=True)[1].reshape(own.shape[:2])


def read_source(path):
    """A hand's JSON with the text of its URDF in place of that file's name."""
    drafted = f"{path}: is the URDF; run python -m hand {path} --out FILE.json, and give that file"
    refuse(Path(path).suffix.lower() == ".urdf", drafted)
    source = read_json(path)
    with naming(path):
        urdf = Path(path).parent / source["urdf"]
        with readable(urdf):
            return source | {"urdf": urdf.read_text(encoding="utf-8", errors="replace")}


def hand_for(joint_names, source=None, name="hand"):
    """The `Hand` of recorded joints (J names or None): that of a source kept with them, the benchmark's, or None."""
    if not source:
        return BENCHMARK if tuple(joint_names or ()) == BENCHMARK.joint_names else None
    with naming(name):
        mine = source["joints"]
        numbered = numbered_joints(len(mine))
        unnamed = joint_names is None or (joint_names == numbered and {*mine} != {*numbered})
        order = list(mine) if unnamed else joint_names
        more = " ".join(sorted(set(mine) ^ set(order)))
        refuse(more, f"hand and recordings differ in the joints {more}; 'joints' in the hand's JSON names them")
        return build_hand(source | {"joints": {joint: mine[joint] for joint in order}})


SOURCE = read_source(Path(__file__).with_name("benchmark.json"))
BENCHMARK = build_hand(SOURCE)._replace(source=None)
