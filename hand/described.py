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
    grasp_center, work_box      [[low, high]] of x, y, z, m in the hand's frame: where the object is to lie, and what
                the pre-shape is chosen by and --pool surface measures in
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
from files.recordings import numbered_joints
from files.writing import read_json

MODES = ("power", "pinch", "sphere")
BOXES = ("grasp_center", "work_box")
SAME = 1e-9  # m: what differs by less is equal
MAX_RADIUS = 0.02  # m, of a sphere on a finger: a distance field is exact so far from the surface
NO_HAND = "no hand is known with these joints; name it once: python data.py ROOT --hand FILE.json"


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
    limits: np.ndarray  # (2, k, 1) rad; infinite where closing does not move the joint
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
    size: float
    source: dict | None  # the JSON with the URDF in it, which a root and a run keep; None for the benchmark's

    @property
    def kept(self):
        """What a dataset.json says of the hand: nothing of the benchmark's."""
        digest = hashlib.sha256(json.dumps(self.source).encode()).hexdigest()
        return {"hand": self.source, "hand_sha256": digest} if self.source else {}


# ---------------------------------------------------------------- the URDF
class Joint(NamedTuple):
    """A joint of a URDF: one that turns, one that follows another, or a fixed one, without an axis."""

    name: str
    parent: str  # links
    child: str
    origin: np.ndarray  # (4, 4) of the child's frame, at rest, in the parent's
    axis: np.ndarray | None  # (3,) in the child's frame
    limits: tuple  # rad
    follows: tuple | None  # joint, multiplier, offset


def xml_numbers(element, key, count, name, default=""):
    """`count` finite numbers in an attribute of an XML element, which may be None."""
    text = default if element is None else element.get(key, default)
    try:
        values = np.array(text.split(), dtype=float)
    except ValueError:
        values = np.array([np.nan])
    wrong = len(values) != count or not np.isfinite(values).all()
    refuse(wrong, f"{name}: {key} must be {count} numbers, not '{text}'; mend it in the URDF")
    return values


def frame_of(origin, name):
    """<origin xyz= rpy=> as (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", xml_numbers(origin, "rpy", 3, name, "0 0 0")).as_matrix()
    matrix[:3, 3] = xml_numbers(origin, "xyz", 3, name, "0 0 0")
    return matrix


def read_joint(element):
    """A <joint> as `Joint`."""
    name, kind, mimic, limit = element.get("name"), element.get("type"), element.find("mimic"), element.find("limit")
    what, axis, follows, limits = f"joint '{name}'", None, None, (-np.pi, np.pi)
    known = kind in ("revolute", "continuous", "fixed")
    refuse(not known, f"{what} is {kind}; only joints that turn or are fixed can be described")
    links = [end.get("link") for end in map(element.find, ("parent", "child")) if end is not None]
    refuse(len(links) < 2, f"{what} names no parent or no child link; mend it in the URDF")
    if kind != "fixed":
        axis = xml_numbers(element.find("axis"), "xyz", 3, what, "1 0 0")
        refuse(not axis.any(), f"{what}: its axis is zero; mend it in the URDF")
        axis = axis / np.linalg.norm(axis)
        if mimic is not None:
            shares = (("multiplier", "1"), ("offset", "0"))
            follows = (mimic.get("joint"), *(xml_numbers(mimic, key, 1, what, rest)[0] for key, rest in shares))
        free = kind == "revolute" and not follows
        refuse(free and limit is None, f"{what} has no limits; give it <limit lower= upper=>")
        if free:
            limits = tuple(float(xml_numbers(limit, key, 1, what, "0")[0]) for key in ("lower", "upper"))
            refuse(limits[0] >= limits[1], f"{what}: its lower limit {limits[0]:g} is not under {limits[1]:g}")
    return Joint(name, *links, frame_of(element.find("origin"), what), axis, limits, follows)


def read_urdf(text):
    """{child link: `Joint`} and {link: XML element} of a URDF's text."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise UserError(f"no URDF ({error}); export it again") from None
    xacro = any("xacro" in str(element.tag) for element in root.iter())
    refuse(xacro, "is a xacro, of which a URDF is made; run: xacro FILE > hand.urdf")
    refuse(root.tag != "robot", f"begins with <{root.tag}>, a URDF with <robot>; give another file")
    links, joints = {link.get("name"): link for link in root.findall("link")}, {}
    for joint in map(read_joint, root.findall("joint")):
        missing = [link for link in (joint.parent, joint.child) if link not in links]
        refuse(missing, f"joint '{joint.name}' names link '{' '.join(missing)}', which is not there")
        if twice := joints.get(joint.child):
            loop = f"link '{joint.child}' hangs on joints '{twice.name}' and '{joint.name}', which makes a loop"
            raise UserError(f"{loop}; only trees can be described")
        joints[joint.child] = joint
    names = {joint.name for joint in joints.values()}
    for joint in joints.values():
        source = joint.follows and joint.follows[0]
        refuse(source and source not in names, f"joint '{joint.name}' follows '{source}', which is not there")
    return joints, links


def path_to(link, joints, palm):
    """The `Joint`s from the palm out to a link."""
    path, at = [], link
    while at != palm:
        refuse(at not in joints, f"link '{link}' does not hang on the palm, link '{palm}'; name another one")
        path, at = [joints[at], *path], joints[at].parent
        refuse(len(path) > len(joints), f"link '{link}' hangs in a loop of joints; only trees can be described")
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


def tidy(numbers):
    """Zeros and ones where they nearly are: mostly axes only swap places and links lie along one, which costs less."""
    whole = np.rint(numbers)
    return np.where(np.abs(numbers - whole) < SAME, whole, numbers)


def frames_along(axes, points):
    """A frame for every turn at rest, columns x, y, z, (T, 3, 3): z is the axis, x points to where the link goes on.

    axes (T, 3); points (T + 1, 3): the turns' origins and the tip.
    """
    frames = []
    for t, z in enumerate(axes):
        towards = points[t + 1] - points[t], *axes[t + 1 : t + 2], points[-1] - points[t], np.eye(3)[np.abs(z).argmin()]
        across = (direction - z * (z @ direction) for direction in towards)
        x = next(direction / length for direction in across if (length := np.linalg.norm(direction)) > 1e-6)
        frames.append(np.stack((x, np.cross(z, x), z), -1))
    return np.array(frames)


def points_along(points, turn, frames, origins, after, turns):
    """Points (n, 3), at rest, that move with turns (n,), as `Points`."""
    rows = np.zeros((len(points), len(frames), 3))
    for row, point, last in zip(rows, points, turn):
        for t, end in enumerate([*origins[1 : last + 1], point]):
            row[t] = frames[t].T @ (end - origins[t])
    rows = tidy(rows)
    used, needs = rows.any(0), rows.any(0)  # (T, 3)
    for t in range(len(turns) - 1, -1, -1):
        if after[t] >= 0:
            before = np.repeat([needs[t, :2].any(), needs[t, 2]], [2, 1])  # x and y turn into each other
            needs[after[t]] |= (turns[t][:, before] != 0).any(1)
    return Points(rows[:, used], np.argwhere(used).tolist(), needs.tolist())


def spheres_along(frames, spheres, count):
    """Turns (count,), centers (count, 3) and radii (count,) of a finger's spheres, the last one as often as needed.

    frames: of `turns_along`; spheres: {link: [[x, y, z, radius]]}.
    """
    found = [
        (turns - 1, frame[:3, :3] @ sphere[:3] + frame[:3, 3], sphere[3])
        for link, (turns, frame) in frames.items() if turns for sphere in spheres.get(link, ())
    ]  # fmt: skip
    refuse(not found, f"no spheres on the finger's links {' '.join(frames)}; add some")
    large = [radius for *_, radius in found if not 0 < radius <= MAX_RADIUS]
    refuse(large, f"a sphere on {' '.join(frames)} has radius {large and large[0]} m; it must be up to {MAX_RADIUS} m")
    return map(np.array, zip(*found + found[-1:] * (count - len(found))))


def read_finger(index, path, about, joint_of, spheres, from_palm, limits, speeds, num_spheres):
    """One finger as a `Chain` of itself alone; about: as in the JSON, joint_of: {joint of the URDF: column}."""
    axes, origins, frames = turns_along(path, from_palm)
    turning = [joint for joint in path if joint.axis is not None]
    drives = [joint.follows or (joint.name, 1.0, 0.0) for joint in turning]
    missing = [source for source, *_ in drives if source not in joint_of]
    refuse(missing, f"link '{about['tip']}' moves by joint '{' '.join(missing)}', which 'joints' lacks")
    columns = list(dict.fromkeys(joint_of[source] for source, *_ in drives))
    refuse(joint_of.get(about["flexes"]) not in columns, f"joint '{about['flexes']}' does not flex '{about['tip']}'")
    gear, offset = np.zeros((len(turning), len(columns))), np.array([[shift] for *_, shift in drives])
    for t, (source, multiplier, _) in enumerate(drives):
        gear[t, columns.index(joint_of[source])] = multiplier

    turn, centers, radii = spheres_along(frames, spheres, num_spheres)
    tip = frames[path[-1].child][1][:3, 3]
    points = np.concatenate((origins, (tip if np.linalg.norm(tip - origins[-1]) > 1e-6 else centers[-1])[None]))
    turned, after, total = frames_along(axes, points), [], np.eye(len(axes))
    for t, axis in enumerate(axes):
        parallel = t and np.linalg.norm(axis - axes[t - 1]) < SAME
        after.append(after[-1] if parallel else t - 1)
        total[t, after[-1] + 1 : t] = 1
    turns = tidy(turned[np.maximum(after, 0)].transpose(0, 2, 1) @ turned)  # the base's frame is that of the first turn
    base = np.eye(4)
    base[:3, :3], base[:3, 3] = tidy(turned[0]), origins[0]

    lengths = np.concatenate(([0], np.cumsum(np.linalg.norm(np.diff(origins, axis=0), axis=1))))
    beyond = lengths[turn] + np.linalg.norm(centers - origins[turn], axis=1)  # along the finger
    arms = np.where(np.arange(len(turning)) <= turn[:, None], beyond[:, None] - lengths, 0)  # (P, T)
    touched, shown = np.unique(turn), np.flatnonzero(np.linalg.norm(np.diff(points, axis=0), axis=1) > 1e-6)
    ends, frame = np.stack((points[shown], points[shown + 1]), 1).reshape(-1, 3), (turned, origins, after, turns)
    flexor, speed = columns.index(joint_of[about["flexes"]]), speeds[:, columns]
    moves = (speed != 0).any(0) | (np.arange(len(columns)) == flexor)
    return Chain(
        fingers=np.array([index]), columns=np.array([columns]), bases=base[None],
        gear=total @ gear, offset=total @ offset, after=after, turns=turns,
        spheres=points_along(centers, turn, *frame), bones=points_along(ends, np.repeat(shown, 2), *frame),
        bone_links=np.searchsorted(touched, shown).clip(max=len(touched) - 1),
        radii=radii[:, None], links=np.searchsorted(touched, turn),
        first=np.array([np.searchsorted(turn, column.nonzero()[0][0]) for column in gear.T]),
        levers=arms @ np.abs(gear), limits=np.where(moves, limits[columns].T, [[-np.inf], [np.inf]])[..., None],
        speed=speed, flexor=flexor, closes=next((int(np.sign(way)) for way in speed[:, flexor] if way), 1),
    )  # fmt: skip


def grouped(chains):
    """`Chain`s of single fingers -> one for all that are alike but for where the palm holds them."""
    where, groups = ("fingers", "columns", "bases"), {}
    for chain in chains:
        alike = (*chain._replace(**dict.fromkeys((*where, "spheres", "bones"), 0)), *chain.spheres, *chain.bones)
        numbers = [np.round(np.array(part, dtype=float), 9) + 0.0 for part in alike]  # + 0.0: no minus before a zero
        groups.setdefault(str([part.tolist() for part in numbers]), []).append(chain)
    return tuple(
        own[0]._replace(**{name: np.concatenate([getattr(chain, name) for chain in own]) for name in where})
        for own in groups.values()
    )


# ---------------------------------------------------------------- a whole hand
def palm_frame(wrist):
    """From the palm link's frame to the hand's (4, 4): its z is the palm's normal, its y where the fingers point."""
    z, y = (np.array(wrist[key], dtype=float) for key in ("palm_normal", "finger_direction"))
    x, matrix = np.cross(y, z), np.eye(4)
    refuse(np.linalg.norm(x) < 1e-3, "palm_normal and finger_direction are parallel or zero")
    z, x = z / np.linalg.norm(z), x / np.linalg.norm(x)
    matrix[:3, :3] = x, np.cross(z, x), z
    matrix[:3, 3] = -matrix[:3, :3] @ np.array(wrist.get("position", (0, 0, 0)), dtype=float)
    return tidy(matrix)


def per_joint(values, names):
    """{joint: number} -> (J,), zero where a joint is not named."""
    unknown = " ".join(sorted(set(values) - set(names)))
    refuse(unknown, f"pre_shapes name the joint '{unknown}', which 'joints' lacks")
    return np.array([values.get(name, 0) for name in names], dtype=float)


def hand_from(source, name):
    """The `Hand` of a source as `read_source` returns it; raises `UserError` naming `name` and what is wrong."""
    try:
        return build_hand(source)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is no description of a hand ({error})"
        raise UserError(f"{name}: {what}; python -m hand FILE.urdf --out FILE.json writes one to begin with") from None


def build_hand(source):
    joints, links = read_urdf(source["urdf"])
    names, palm, fingers, spheres = (source[key] for key in ("joints", "wrist", "fingers", "spheres"))
    from_palm, palm, by_name = palm_frame(palm), palm["link"], {joint.name: joint for joint in joints.values()}
    for link in (palm, *spheres, *(about["tip"] for about in fingers.values())):
        refuse(link not in links, f"link '{link}' is not in the URDF")
    for joint in names.values():
        free = joint in by_name and by_name[joint].axis is not None and not by_name[joint].follows
        refuse(not free, f"joint '{joint}' is not in the URDF, is fixed or follows another; leave it out of 'joints'")
    refuse(len(fingers) < 2, "has fewer than two fingers, which can hold nothing between them")
    limits = np.array([by_name[joint].limits for joint in names.values()])
    modes = tuple(mode for mode in MODES if mode in source["pre_shapes"])
    refuse(not modes or len(modes) < len(source["pre_shapes"]), f"pre_shapes are some of {', '.join(MODES)}")
    shapes = [source["pre_shapes"][mode] for mode in modes]
    speeds = np.array([per_joint(shape["closing"], names) for shape in shapes])

    paths = [path_to(about["tip"], joints, palm) for about in fingers.values()]
    most = max(sum(len(spheres.get(joint.child, ())) for joint in path) for path in paths)
    joint_of = {joint: column for column, joint in enumerate(names.values())}
    chains = [
        read_finger(index, path, about, joint_of, spheres, from_palm, limits, speeds, most)
        for index, (path, about) in enumerate(zip(paths, fingers.values()))
    ]
    moved = [column for chain in chains for column in chain.columns[0][np.isfinite(chain.limits[0, :, 0])]]
    for joint, column in joint_of.items():
        refuse(moved.count(column) > 1, f"joint '{joint}' closes two fingers; each must close by joints of its own")
        used = any(column in chain.columns for chain in chains)
        refuse(not used, f"joint '{joint}' moves no finger; leave it out of 'joints'")

    of_palm = []
    for link, its_spheres in spheres.items():
        path = path_to(link, joints, palm)
        if all(joint.axis is None for joint in path):
            frame = functools.reduce(np.matmul, [joint.origin for joint in path], from_palm)
            of_palm += [(*frame[:3, :3] @ center + frame[:3, 3], radius) for *center, radius in its_spheres]
    refuse(not of_palm, f"no spheres on the palm, link '{palm}'; add some")
    of_palm = np.array(of_palm, dtype=float)
    return Hand(
        joint_names=tuple(names), limits=limits, fingers=tuple(fingers), chains=grouped(chains),
        radii=np.stack([chain.radii[:, 0] for chain in chains]), links=np.stack([chain.links for chain in chains]),
        palm_centers=of_palm[:, :3], palm_radii=of_palm[:, 3],
        modes=modes, start=np.radians([per_joint(shape["start"], names) for shape in shapes]),
        goes_on=np.array([bool(shape.get("goes_on")) for shape in shapes]),
        **{box: np.array(source[box], dtype=float).reshape(3, 2) for box in BOXES},
        size=float(source.get("size", 1)), source=source,
    )  # fmt: skip


def read_source(path):
    """A hand's JSON with the text of its URDF in place of that file's name."""
    source = read_json(path)
    refuse(not isinstance(source.get("urdf"), str), f"{path}: lacks 'urdf', the file beside it; see python -m hand")
    if not source["urdf"].lstrip().startswith("<"):
        urdf = Path(path).parent / source["urdf"]
        with readable(urdf):
            source["urdf"] = urdf.read_text(encoding="utf-8", errors="replace")
    return source


def hand_for(joint_names, source=None, name="hand"):
    """The `Hand` of recorded joints (J names or None): that of a source kept with them, the benchmark's, or None."""
    if not source:
        return BENCHMARK if tuple(joint_names or ()) == BENCHMARK.joint_names else None
    try:
        mine = list(source["joints"])
        order = mine if joint_names in (None, numbered_joints(len(mine))) else joint_names
        joints = {joint: source["joints"].get(joint) for joint in order}
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{name}: its hand names no joints; keep one with: python data.py ROOT --hand FILE") from None
    more = " ".join(sorted(set(mine) ^ set(order)))
    refuse(more, f"{name}: hand and recordings differ in the joints {more}; 'joints' in the hand's JSON names them")
    return hand_from(source | {"joints": joints}, name)


SOURCE = read_source(Path(__file__).with_name("benchmark.json"))
BENCHMARK = hand_from(SOURCE, "hand/benchmark.json")._replace(source=None)
