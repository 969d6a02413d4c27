"""A hand as a value, and how it is read: a URDF, the format in which hands are published, and a JSON of ours beside it.

From the URDF: links, joints that turn (their origins, axes, limits), joints that follow others; meshes are not needed.
The JSON says what a URDF does not:
    urdf        the file beside it
    wrist       link: the palm's; position, palm_normal and finger_direction (3,) in its frame: origin, z and y of the
                hand's frame, in which wrist poses are (x goes across the palm)
    joints      {name in recordings: joint of the URDF}, in the order of recordings
    fingers     {name: {"tip": its last link, "flexes": the joint that opens and closes it}}, the thumb first
    spheres     {link: [[x, y, z, radius], ...]} m, in the link's frame; on the palm and along the fingers
    pre_shapes  {power, pinch or sphere: {"start": {joint: degrees}, "closing": {joint: speed}, "goes_on": whether
                joints beyond a link that touches close on}}; a joint that is not named is at rest
    grasp_center, work_box, probes      [[low, high]] of x, y, z, m in the hand's frame: where the object is to lie,
                what the pre-shape is chosen by, and where --pool surface measures
    size        how large the hand is beside the benchmark's
"""

import functools
import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from cli.errors import UserError, refuse
from files.reading import readable
from files.writing import read_json

MODES = ("power", "pinch", "sphere")
BOXES = ("grasp_center", "work_box", "probes")
SAME = 1e-9  # m, rad: fingers that differ by less move alike


class Points(NamedTuple):
    """Points of a finger as sums of D of the 3 T axes that its turns have turned."""

    shares: np.ndarray  # (p, D) m
    used: list  # D of [turn, 0 to 2: x, y or z]
    needs: list  # T times three: whether the axis is among them, or a later one is made of it


class Chain(NamedTuple):
    """G fingers that are alike but for where the palm holds them: k joints, T turns, P spheres on links.

    Each turn is about the z of its frame, by `gear` @ joints + `offset`. Where turns that follow each other are
    parallel, the later ones are by the sum of all, from the frame that the first of them began with.
    """

    fingers: np.ndarray  # (G,) which of the hand's fingers
    columns: np.ndarray  # (G, k) their joints among the hand's
    bases: np.ndarray  # (G, 4, 4) from the frame of the first turn, at rest, to the hand's
    gear: np.ndarray  # (T, k) how far each turn goes with each joint: 1, or the multiplier of a joint that follows
    offset: np.ndarray  # (T, 1) rad
    after: list  # T: the turn that a frame follows, -1 where that is the finger's base
    turns: np.ndarray  # (T, 3, 3) x, y, z of the frame, columns, in the one that it follows
    spheres: Points  # P centers
    bones: Points  # 2 S: start and end of the S lines that a picture shows
    bone_links: np.ndarray  # (S,)
    radii: np.ndarray  # (P, 1) m
    links: np.ndarray  # (P,) which of the finger's links a sphere is on
    first: np.ndarray  # (k,) the first sphere that a joint moves; all after it move, too
    levers: np.ndarray  # (P, k) m per rad, at most
    low: np.ndarray  # (k, 1) rad; infinite where closing does not move the joint
    high: np.ndarray  # (k, 1)
    speed: np.ndarray  # (modes, k) in closing
    flexor: int  # which joint opens and closes the finger
    closes: int  # 1 where it closes it by turning up, -1 by turning down


class Hand(NamedTuple):
    """What is known of a hand: J joints, F fingers, the thumb first, at most P spheres and L links to a finger."""

    joint_names: tuple  # as in recordings
    limits: np.ndarray  # (J, 2) rad
    fingers: tuple  # names
    chains: tuple  # `Chain`s of all fingers
    radii: np.ndarray  # (F, P) m
    links: np.ndarray  # (F, P); a finger with fewer spheres has its last one several times
    palm_centers: np.ndarray  # (p, 3) m, hand frame
    palm_radii: np.ndarray  # (p,) m
    modes: tuple  # names of pre-shapes
    start: np.ndarray  # (modes, J) rad
    goes_on: np.ndarray  # (modes,) bool
    grasp_center: np.ndarray  # (3, 2) m, hand frame
    work_box: np.ndarray  # (3, 2) m
    probes: np.ndarray  # (3, 2) m
    size: float
    source: dict  # the JSON with the URDF in it, which a root and a run keep

    @property
    def digest(self):
        return hashlib.sha256(json.dumps(self.source, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- the URDF
class Joint(NamedTuple):
    """A joint of a URDF that turns, follows (source, multiplier, offset) or is fixed (axis None)."""

    name: str
    parent: str
    child: str
    origin: np.ndarray  # (4, 4) of the child's frame, at rest, in the parent's
    axis: np.ndarray | None  # (3,) in the child's frame
    limits: tuple  # rad
    follows: tuple | None


def xml_numbers(element, key, count, name, default=None):
    """`count` finite numbers in an attribute of an XML element."""
    text = None if element is None else element.get(key)
    try:
        values = np.array((text or default or "").split(), dtype=float)
    except ValueError:
        values = np.array([np.nan])
    wrong = len(values) != count or not np.isfinite(values).all()
    refuse(wrong, f"{name}: {key} must be {count} numbers, not {text!r}; mend it there")
    return values


def frame_of(origin, name):
    """<origin xyz= rpy=> as (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", xml_numbers(origin, "rpy", 3, name, "0 0 0")).as_matrix()
    matrix[:3, 3] = xml_numbers(origin, "xyz", 3, name, "0 0 0")
    return matrix


def read_joint(element, name):
    """A <joint> as `Joint`; name: that of the file."""
    name, kind = f"{name}: joint '{element.get('name')}'", element.get("type")
    ends = [element.find(end) for end in ("parent", "child")]
    refuse(None in ends, f"{name} names no parent or no child link; mend it there")
    turns = kind in ("revolute", "continuous")
    refuse(not turns and kind != "fixed", f"{name} is {kind}; only joints that turn or are fixed can be described")
    axis, limits, follows, mimic = None, (-np.pi, np.pi), None, element.find("mimic")
    if turns:
        axis = xml_numbers(element.find("axis"), "xyz", 3, name, "1 0 0")
        refuse(not np.linalg.norm(axis), f"{name}: its axis is zero; mend it there")
        axis = axis / np.linalg.norm(axis)
    if turns and mimic is not None:
        defaults = {"multiplier": "1", "offset": "0"}
        share = [xml_numbers(mimic, key, 1, name, default)[0] for key, default in defaults.items()]
        follows = (mimic.get("joint"), *share)
    elif kind == "revolute":
        refuse(element.find("limit") is None, f"{name} has no limits; give it <limit lower= upper=>")
        limits = tuple(float(xml_numbers(element.find("limit"), key, 1, name, "0")[0]) for key in ("lower", "upper"))
        refuse(limits[0] >= limits[1], f"{name}: its lower limit {limits[0]:g} is not under its upper {limits[1]:g}")
    links = [end.get("link") for end in ends]
    return Joint(element.get("name"), *links, frame_of(element.find("origin"), name), axis, limits, follows)


def read_urdf(text, name):
    """{child link: `Joint`} and {link: XML element} of a URDF's text; raises `UserError` naming link or joint."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise UserError(f"{name}: no URDF ({error}); export it again") from None
    xacro = any("xacro" in str(element.tag) for element in root.iter())
    refuse(xacro, f"{name}: is a xacro, of which a URDF is made; run: xacro {name} > hand.urdf")
    refuse(root.tag != "robot", f"{name}: begins with <{root.tag}>, a URDF with <robot>; give another file")
    links = {link.get("name"): link for link in root.findall("link")}
    joints, names = {}, set()
    for element in root.findall("joint"):
        joint = read_joint(element, name)
        for link in (joint.parent, joint.child):
            refuse(link not in links, f"{name}: joint '{joint.name}' names link '{link}', which is not there")
        twice = joints.get(joint.child)
        loop = twice and f"{name}: link '{joint.child}' hangs on joints '{twice.name}' and '{joint.name}', a loop"
        refuse(twice, f"{loop}; only trees can be described")
        refuse(joint.name in names, f"{name}: two joints are called '{joint.name}'; rename one")
        joints[joint.child] = joint
        names.add(joint.name)
    for joint in joints.values():
        source = joint.follows and joint.follows[0]
        refuse(source and source not in names, f"{name}: joint '{joint.name}' follows '{source}', which is not there")
    return joints, links


def path_to(link, joints, palm, name):
    """The `Joint`s from the palm out to a link."""
    path, at = [], link
    while at != palm:
        joint = joints.get(at)
        refuse(joint is None, f"{name}: link '{link}' does not hang on the palm, link '{palm}'; name another one")
        path, at = [joint, *path], joint.parent
        refuse(len(path) > len(joints), f"{name}: link '{link}' hangs in a loop of joints; only trees can be described")
    return path


# ---------------------------------------------------------------- one finger
def turns_along(path, from_palm):
    """Axes (T, 3) and origins (T, 3) of the joints of a path that turn, {link: (turns before it, frame (4, 4))}.

    At rest, in the hand's frame; from_palm (4, 4): from the palm link's.
    """
    frame, axes, origins, frames = from_palm, [], [], {}
    for joint in path:
        frame = frame @ joint.origin
        if joint.axis is not None:
            axes.append(frame[:3, :3] @ joint.axis)
            origins.append(frame[:3, 3])
        frames[joint.child] = (len(axes), frame)
    return np.array(axes), np.array(origins), frames


def frames_along(axes, points):
    """A frame for every turn at rest, columns x, y, z, (T, 3, 3): z is the axis, x points to where the link goes on.

    axes (T, 3); points (T + 1, 3): the turns' origins and the tip.
    """
    frames = []
    for t, z in enumerate(axes):
        towards = points[t + 1] - points[t], *axes[t + 1 : t + 2], points[-1] - points[t], np.eye(3)[np.abs(z).argmin()]
        across = [direction - z * (z @ direction) for direction in towards]
        x = next(direction for direction in across if np.linalg.norm(direction) > 1e-6)
        x = x / np.linalg.norm(x)
        frames.append(np.stack((x, np.cross(z, x), z), -1))
    return np.array(frames)


def tidy(numbers):
    """Zeros and ones where they nearly are: mostly axes only swap places and links lie along one, which costs less."""
    whole = np.rint(numbers)
    return np.where(np.abs(numbers - whole) < SAME, whole, numbers)


def runs_of(axes):
    """The last turn before each that is not parallel (-1: none), and a matrix (T, T) that sums up those that are.

    axes (T, 3): of the turns.
    """
    after, total = [], np.eye(len(axes))
    for t, axis in enumerate(axes):
        parallel = t and np.linalg.norm(axis - axes[t - 1]) < SAME
        after.append(after[-1] if parallel else t - 1)
        total[t, after[-1] + 1 : t] = 1
    return after, total


def points_along(points, turn, frames, origins, after, turns):
    """Points (n, 3), at rest, that move with turns (n,), as `Points`."""
    rows = np.zeros((len(points), len(frames), 3))
    for row, point, last in zip(rows, points, turn):
        ends = [*origins[1 : last + 1], point]
        for t, end in enumerate(ends):
            row[t] = frames[t].T @ (end - origins[t])
    rows = tidy(rows)
    used, needs = rows.any(0), rows.any(0)  # (T, 3)
    for t in range(len(turns) - 1, -1, -1):
        if after[t] >= 0:
            before = np.repeat([needs[t, :2].any(), needs[t, 2]], [2, 1])  # x and y turn into each other
            needs[after[t]] |= (turns[t][:, before] != 0).any(1)
    return Points(rows[:, used], np.argwhere(used).tolist(), needs.tolist())


def read_finger(name, finger, path, joint_of, content, from_palm, limits, num_spheres, speeds):
    """One finger as a `Chain` of itself alone; `joint_of`: joint of the URDF -> column of the hand's joints."""
    axes, origins, frames = turns_along(path, from_palm)
    turning = [joint for joint in path if joint.axis is not None]
    drives = [joint.follows or (joint.name, 1.0, 0.0) for joint in turning]
    for joint, (source, *_) in zip(turning, drives):
        refuse(source not in joint_of, f"{name}: finger '{finger}' turns by joint '{source}', which 'joints' lacks")
    columns = list(dict.fromkeys(joint_of[source] for source, *_ in drives))
    gear, offset = np.zeros((len(turning), len(columns))), np.zeros((len(turning), 1))
    for t, (source, multiplier, shift) in enumerate(drives):
        gear[t, columns.index(joint_of[source])], offset[t] = multiplier, shift

    found = []  # (turn, center, radius)
    for link, (count, frame) in frames.items():
        for *center, radius in content["spheres"].get(link, []) if count else []:
            found.append((count - 1, frame[:3, :3] @ center + frame[:3, 3], radius))
    refuse(not found, f"{name}: no spheres on the links of finger '{finger}': {' '.join(frames)}; add some")
    found += found[-1:] * (num_spheres - len(found))
    turn, centers, radii = (np.array(part) for part in zip(*found))
    tip = frames[path[-1].child][1][:3, 3]
    tip = centers[-1] if np.linalg.norm(tip - origins[-1]) < 1e-6 else tip
    points = np.concatenate((origins, tip[None]))
    turned = frames_along(axes, points)
    after, total = runs_of(axes)
    turns = tidy(turned[np.maximum(after, 0)].transpose(0, 2, 1) @ turned)  # the base's frame is that of the first turn
    base = np.eye(4)
    base[:3, :3], base[:3, 3] = tidy(turned[0]), origins[0]

    lengths = np.concatenate(([0], np.cumsum(np.linalg.norm(np.diff(origins, axis=0), axis=1))))
    beyond = lengths[turn] + np.linalg.norm(centers - origins[turn], axis=1)  # along the finger
    arms = np.where(np.arange(len(turning)) <= turn[:, None], beyond[:, None] - lengths, 0)  # (P, T)
    touched = np.unique(turn)
    shown = np.flatnonzero(np.linalg.norm(np.diff(points, axis=0), axis=1) > 1e-6)
    ends = np.stack((points[shown], points[shown + 1]), 1).reshape(-1, 3)
    flexes = content["fingers"][finger]["flexes"]
    refuse(joint_of.get(flexes) not in columns, f"{name}: finger '{finger}' flexes by '{flexes}', no joint of its own")
    flexor, speed = columns.index(joint_of[flexes]), speeds[:, columns]
    moves = (speed != 0).any(0) | (np.arange(len(columns)) == flexor)
    return Chain(
        fingers=np.array([list(content["fingers"]).index(finger)]),
        columns=np.array([columns]),
        bases=base[None],
        gear=total @ gear,
        offset=total @ offset,
        after=after,
        turns=turns,
        spheres=points_along(centers, turn, turned, origins, after, turns),
        bones=points_along(ends, np.repeat(shown, 2), turned, origins, after, turns),
        bone_links=np.searchsorted(touched, shown).clip(max=len(touched) - 1),
        radii=radii[:, None],
        links=np.searchsorted(touched, turn),
        first=np.array([np.searchsorted(turn, column.nonzero()[0][0]) for column in gear.T]),
        levers=arms @ np.abs(gear),
        low=np.where(moves, limits[columns, 0], -np.inf)[:, None],
        high=np.where(moves, limits[columns, 1], np.inf)[:, None],
        speed=speed,
        flexor=flexor,
        closes=next((int(np.sign(way)) for way in speed[:, flexor] if way), 1),
    )


def alike(chain, other):
    """Whether two fingers differ in nothing but where the palm holds them."""
    where = dict.fromkeys(("fingers", "columns", "bases", "spheres", "bones"), 0)
    mine, theirs = ((*own._replace(**where), *own.spheres, *own.bones) for own in (chain, other))
    return all(np.shape(a) == np.shape(b) and np.allclose(a, b, atol=SAME, rtol=0) for a, b in zip(mine, theirs))


def grouped(chains):
    """`Chain`s of single fingers -> one for all that are alike."""
    groups = []
    for chain in chains:
        same = next((i for i, group in enumerate(groups) if alike(group, chain)), len(groups))
        groups[same : same + 1] = [joined(groups[same], chain) if same < len(groups) else chain]
    return tuple(groups)


def joined(chain, other):
    pairs = ((getattr(chain, key), getattr(other, key)) for key in ("fingers", "columns", "bases"))
    fingers, columns, bases = map(np.concatenate, pairs)
    return chain._replace(fingers=fingers, columns=columns, bases=bases)


# ---------------------------------------------------------------- a whole hand
def palm_frame(wrist):
    """From the palm link's frame to the hand's (4, 4): its z is the palm's normal, its y where the fingers point."""
    z, y = (np.array(wrist[key], dtype=float) for key in ("palm_normal", "finger_direction"))
    x = np.cross(y, z)
    refuse(np.linalg.norm(x) < 1e-3, "palm_normal and finger_direction are parallel or zero")
    z, x = z / np.linalg.norm(z), x / np.linalg.norm(x)
    matrix = np.eye(4)
    matrix[:3, :3] = x, np.cross(z, x), z
    matrix[:3, 3] = -matrix[:3, :3] @ np.array(wrist.get("position", (0, 0, 0)), dtype=float)
    return tidy(matrix)


def per_joint(values, names):
    """{joint: number} -> (J,), zero where a joint is not named."""
    unknown = set(values) - set(names)
    refuse(unknown, f"pre_shapes name the joint '{' '.join(sorted(unknown))}', which 'joints' lacks")
    return np.array([values.get(name, 0) for name in names], dtype=float)


def limits_of(joints, by_name):
    """Limits (J, 2) rad of the joints in recordings, {name: joint of the URDF}."""
    for joint in joints.values():
        known = by_name.get(joint)
        refuse(known is None, f"joint '{joint}' is not in the URDF")
        refuse(known.axis is None or known.follows, f"joint '{joint}' is fixed or follows another; leave it out")
    return np.array([by_name[joint].limits for joint in joints.values()])


def hand_from(source, name):
    """The `Hand` of a source as `read_source` returns it; raises `UserError` naming `name` and what is wrong."""
    try:
        return build_hand(source, name)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is no description of a hand ({error})"
        raise UserError(f"{name}: {what}; python -m hand FILE.urdf --out FILE.json writes one to begin with") from None


def build_hand(source, name):
    joints, links = read_urdf(source["urdf"], name)
    names, palm = tuple(source["joints"]), source["wrist"]["link"]
    for link in (palm, *source["spheres"], *(finger["tip"] for finger in source["fingers"].values())):
        refuse(link not in links, f"link '{link}' is not in the URDF")
    refuse(len(source["fingers"]) < 2, "has fewer than two fingers, which can hold nothing between them")
    joint_of = {joint: column for column, joint in enumerate(source["joints"].values())}
    limits = limits_of(source["joints"], {joint.name: joint for joint in joints.values()})
    modes = tuple(mode for mode in MODES if mode in source["pre_shapes"])
    refuse(not modes or len(modes) < len(source["pre_shapes"]), f"pre_shapes are some of {', '.join(MODES)}")
    shapes, from_palm = [source["pre_shapes"][mode] for mode in modes], palm_frame(source["wrist"])
    speeds = np.array([per_joint(shape["closing"], names) for shape in shapes])

    paths = {finger: path_to(about["tip"], joints, palm, name) for finger, about in source["fingers"].items()}
    counts = [sum(len(source["spheres"].get(joint.child, ())) for joint in path) for path in paths.values()]
    common = joint_of, source, from_palm, limits, max(counts), speeds
    chains = [read_finger(name, finger, path, *common) for finger, path in paths.items()]
    moved = [names[column] for chain in chains for column in chain.columns[0][np.isfinite(chain.low[:, 0])]]
    twice = [joint for joint in moved if moved.count(joint) > 1]
    refuse(twice, f"joint '{' '.join(twice[:1])}' closes two fingers; only such as close one by one can be described")
    unused = set(names) - {names[column] for chain in chains for column in chain.columns[0]}
    refuse(unused, f"joint '{' '.join(sorted(unused))}' moves no finger; leave it out of 'joints'")

    palm_spheres = []
    for link in source["spheres"]:
        path = path_to(link, joints, palm, name)
        if all(joint.axis is None for joint in path):
            frame = functools.reduce(np.matmul, [joint.origin for joint in path], from_palm)
            for *center, radius in source["spheres"][link]:
                palm_spheres.append((*frame[:3, :3] @ center + frame[:3, 3], radius))
    palm_spheres = np.array(palm_spheres, dtype=float).reshape(-1, 4)
    refuse(not len(palm_spheres), f"no spheres on the palm, link '{palm}'; add some")
    return Hand(
        joint_names=names,
        limits=limits,
        fingers=tuple(source["fingers"]),
        chains=grouped(chains),
        radii=np.stack([chain.radii[:, 0] for chain in chains]),
        links=np.stack([chain.links for chain in chains]),
        palm_centers=palm_spheres[:, :3],
        palm_radii=palm_spheres[:, 3],
        modes=modes,
        start=np.radians([per_joint(shape["start"], names) for shape in shapes]),
        goes_on=np.array([bool(shape.get("goes_on")) for shape in shapes]),
        **{box: np.array(source[box], dtype=float).reshape(3, 2) for box in BOXES},
        size=float(source.get("size", 1)),
        source=source,
    )


def read_source(path):
    """A hand's JSON with the text of its URDF in place of that file's name."""
    source = read_json(path)
    refuse(not isinstance(source.get("urdf"), str), f"{path}: lacks 'urdf', the file beside it; see python -m hand")
    if not source["urdf"].lstrip().startswith("<"):
        urdf = Path(path).with_name(source["urdf"])
        with readable(urdf):
            source["urdf"] = urdf.read_text(encoding="utf-8", errors="replace")
    return source


def is_modelled(joint_names):
    """Whether joints of these names, or of none, are this hand's: the only one that there is a model of."""
    return joint_names is not None and tuple(joint_names) == BENCHMARK.joint_names


BENCHMARK = hand_from(read_source(Path(__file__).with_name("benchmark.json")), "hand/benchmark.json")
