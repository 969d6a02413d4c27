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
BOXES = ("grasp_center", "work_box")
MAX_RADIUS = 0.02  # m, of a sphere on a finger: a distance field is exact so far from the surface
NO_HAND = "no hand is known with these joints; name it once: python data.py ROOT --hand FILE.json"


class Chain(NamedTuple):
    """G fingers that are alike but for where the palm holds them: k joints, T turns, P spheres on links.

    Each turn is about the z of its frame, by `gear` @ joints + `offset`; a point is a sum of all axes, as turned.
    """

    fingers: np.ndarray  # (G,) which of the hand's fingers
    columns: np.ndarray  # (G, k) their joints among the hand's
    bases: np.ndarray  # (G, 4, 4) from the frame of the first turn, at rest, to the hand's
    gear: np.ndarray  # (T, k) how far each turn goes with each joint: 1, or the multiplier of a joint that follows
    offset: np.ndarray  # (T, 1) rad
    turns: np.ndarray  # (T, 3, 3) x, y, z of the frame, columns, in the one before it
    spheres: np.ndarray  # (P, 3 T) m, centers
    bones: np.ndarray  # (2 S, 3 T) m: start and end of the S lines that a picture shows
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
    chains: tuple  # `Chain`s of all fingers, the thumb's by itself
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
    if kind != "fixed":
        axis = xml_numbers(element.find("axis"), "xyz", 3, what, "1 0 0")
        axis = axis / np.linalg.norm(axis)
        if mimic is not None:
            shares = (("multiplier", "1"), ("offset", "0"))
            follows = (mimic.get("joint"), *(xml_numbers(mimic, key, 1, what, rest)[0] for key, rest in shares))
        elif kind == "revolute":
            limits = tuple(float(xml_numbers(limit, key, 1, what, "0")[0]) for key in ("lower", "upper"))
            refuse(limits[0] >= limits[1], f"{what} has no room to turn; mend its <limit lower= upper=>")
    links = (element.find(end).get("link") for end in ("parent", "child"))
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
        loop = joint.child in joints
        refuse(loop, f"link '{joint.child}' has a second joint, '{joint.name}': a loop; only trees can be described")
        joints[joint.child] = joint
    return joints, links


def path_to(link, joints, palm):
    """The `Joint`s from the palm out to a link."""
    path, at = [], link
    while at != palm:
        lost = at not in joints or len(path) > len(joints)
        refuse(lost, f"link '{link}' does not hang on the palm, link '{palm}'; name another one")
        path, at = [joints[at], *path], joints[at].parent
    return path


# ---------------------------------------------------------------- one finger
def turns_along(path, from_palm):
    """The T joints of a path that turn (T, 4, 4), z being the axis, and {link: (turns before it, frame (4, 4))}.

    At rest, in the hand's frame; from_palm (4, 4): from the palm link's.
    """
    frame, turns, frames = from_palm, [], {}
    for joint in path:
        frame = frame @ joint.origin
        if joint.axis is not None:
            across = np.cross(joint.axis, np.eye(3)[np.abs(joint.axis).argmin()])
            across /= np.linalg.norm(across)
            turn = frame.copy()
            turn[:3, :3] = frame[:3, :3] @ np.stack((across, np.cross(joint.axis, across), joint.axis), -1)
            turns.append(turn)
        frames[joint.child] = (len(turns), frame)
    return np.array(turns), frames


def shares_along(points, last, turns):
    """Points (n, 3), at rest, that move with turns up to `last` (n,), as sums of axes (n, T, 3)."""
    shares = np.zeros((len(points), len(turns), 3))
    for share, point, end in zip(shares, points, last):
        for t, to in enumerate([*turns[1 : end + 1, :3, 3], point]):
            share[t] = (to - turns[t, :3, 3]) @ turns[t, :3, :3]
    return shares


def placed(spheres, frame):
    """Spheres [[x, y, z, radius], ...] of a frame (4, 4), (n, 4), where that is given in."""
    spheres = np.array(spheres, dtype=float).reshape(-1, 4)
    return np.hstack((spheres[:, :3] @ frame[:3, :3].T + frame[:3, 3], spheres[:, 3:]))


def read_finger(index, path, about, joint_of, spheres, from_palm, limits, speeds, num_spheres):
    """One finger as a `Chain` of itself alone; about: as in the JSON, joint_of: {joint of the URDF: column}."""
    turns, frames = turns_along(path, from_palm)
    drives = [joint.follows or (joint.name, 1.0, 0.0) for joint in path if joint.axis is not None]
    missing = [source for source, *_ in drives if source not in joint_of]
    refuse(missing, f"link '{about['tip']}' moves by joint '{' '.join(missing)}', which 'joints' lacks")
    columns = list(dict.fromkeys(joint_of[source] for source, *_ in drives))
    refuse(joint_of.get(about["flexes"]) not in columns, f"joint '{about['flexes']}' does not flex '{about['tip']}'")
    gear = np.zeros((len(turns), len(columns)))
    for t, (source, multiplier, _) in enumerate(drives):
        gear[t, columns.index(joint_of[source])] = multiplier

    found = [
        (before - 1, sphere)
        for link, (before, frame) in frames.items() if before for sphere in placed(spheres.get(link, ()), frame)
    ]  # fmt: skip
    refuse(not found, f"no spheres on the finger's links {' '.join(frames)}; add some")
    last, found = map(np.array, zip(*found + found[-1:] * (num_spheres - len(found))))  # as many as on other fingers
    wrong = (found[:, 3] <= 0) | (found[:, 3] > MAX_RADIUS)
    refuse(wrong.any(), f"a sphere on {' '.join(frames)} has no radius up to {MAX_RADIUS} m; change it")
    centers, radii = found[:, :3], found[:, 3:]
    shares = shares_along(centers, last, turns)
    touched, links = np.unique(last, return_inverse=True)

    tip = frames[path[-1].child][1][:3, 3]
    points = np.stack((*turns[:, :3, 3], tip if np.linalg.norm(tip - turns[-1, :3, 3]) > 1e-6 else centers[-1]))
    bones = np.flatnonzero(np.linalg.norm(np.diff(points, axis=0), axis=1) > 1e-6)
    ends = shares_along(points[np.stack((bones, bones + 1), 1).ravel()], np.repeat(bones, 2), turns)
    flexor, speed = columns.index(joint_of[about["flexes"]]), speeds[:, columns]
    moves = (speed != 0).any(0) | (np.arange(len(columns)) == flexor)
    before = np.concatenate((turns[:1], turns[:-1]))[:, :3, :3]  # the first turn is given in its own frame at rest
    return Chain(
        fingers=np.array([index]), columns=np.array([columns]), bases=turns[:1],
        gear=gear, offset=np.array([[shift] for *_, shift in drives]),
        turns=before.transpose(0, 2, 1) @ turns[:, :3, :3],
        spheres=shares.reshape(num_spheres, -1), bones=ends.reshape(len(ends), -1),
        bone_links=np.searchsorted(touched, bones).clip(max=len(touched) - 1),
        radii=radii, links=links, first=np.searchsorted(last, (gear != 0).argmax(0)),
        levers=np.linalg.norm(shares, axis=2)[:, ::-1].cumsum(1)[:, ::-1] @ np.abs(gear),  # along the finger
        limits=np.where(moves, limits[columns].T, [[-np.inf], [np.inf]])[..., None],
        speed=speed, flexor=flexor, closes=next((int(np.sign(way)) for way in speed[:, flexor] if way), 1),
    )  # fmt: skip


def grouped(chains):
    """`Chain`s of single fingers -> one for all that are alike but for where the palm holds them."""
    where, groups = ("fingers", "columns", "bases"), {}
    for chain in chains:
        alike = chain._replace(**dict.fromkeys(where, 0))
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
    return matrix


def per_joint(values, names):
    """{joint: number} -> (J,), zero where a joint is not named."""
    unknown = " ".join(sorted(set(values) - set(names)))
    refuse(unknown, f"pre_shapes name the joint '{unknown}', which 'joints' lacks")
    return np.array([values.get(name, 0) for name in names], dtype=float)


@contextlib.contextmanager
def naming(name):
    """What is wrong with the URDF or JSON in there, as a user error that begins with its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is no description of a hand ({error})"
        raise UserError(f"{name}: {what}; python -m hand FILE.urdf --out FILE.json writes one to begin with") from None


def hand_from(source, name):
    """The `Hand` of a source as `read_source` returns it; raises `UserError` naming `name` and what is wrong."""
    with naming(name):
        return build_hand(source)


def build_hand(source):
    joints, _ = read_urdf(source["urdf"])
    names, palm, fingers, spheres = (source[key] for key in ("joints", "wrist", "fingers", "spheres"))
    from_palm, palm, by_name = palm_frame(palm), palm["link"], {joint.name: joint for joint in joints.values()}
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
        turns, frame = turns_along(path_to(link, joints, palm), from_palm)[1].get(link, (0, from_palm))
        of_palm += [] if turns else [placed(its_spheres, frame)]
    refuse(not of_palm, f"no spheres on the palm, link '{palm}'; add some")
    of_palm = np.concatenate(of_palm)
    return Hand(
        joint_names=tuple(names), limits=limits, fingers=tuple(fingers),
        chains=(*grouped(chains[:1]), *grouped(chains[1:])),
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
    with naming(path):
        urdf = Path(path).parent / source["urdf"]
        with readable(urdf):
            return source | {"urdf": urdf.read_text(encoding="utf-8", errors="replace")}


def hand_for(joint_names, source=None, name="hand"):
    """The `Hand` of recorded joints (J names or None): that of a source kept with them, the benchmark's, or None."""
    if not source:
        return BENCHMARK if tuple(joint_names or ()) == BENCHMARK.joint_names else None
    with naming(name):
        mine = list(source["joints"])
        order = mine if joint_names in (None, numbered_joints(len(mine))) else joint_names
        more = " ".join(sorted(set(mine) ^ set(order)))
        refuse(more, f"hand and recordings differ in the joints {more}; 'joints' in the hand's JSON names them")
        return build_hand(source | {"joints": {joint: source["joints"][joint] for joint in order}})


SOURCE = read_source(Path(__file__).with_name("benchmark.json"))
BENCHMARK = hand_from(SOURCE, "hand/benchmark.json")._replace(source=None)
