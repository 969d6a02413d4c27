"""A hand as a value, and how it is read: a URDF, the format in which hands are published, and a JSON of ours beside it.

From the URDF: links, joints that turn (their origins, axes, limits), joints that follow others; meshes are not needed.
The JSON says what a URDF does not:
    urdf        the file beside it
    wrist       link: the palm's; position, palm_normal and finger_direction (3,) in its frame: origin, z and y of the
                hand's frame, in which wrist poses are (x goes across the palm)
    joints      {name in recordings: joint of the URDF}, in the order of recordings
    fingers     {name: {"tip": its last link, "flexes": the joint that opens and closes it}}, the thumb first
    spheres     {link: [[x, y, z, radius], ...]} m, in the link's frame; on the palm and along the fingers
    pre_shapes  {power, pinch or sphere: {"start": {joint: degrees}, "closing": {joint: speed}}}; a joint that is not
                named is at rest; in power, joints beyond a link that touches close on
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
DECIMALS = 14  # of metres and axes
MAX_RADIUS = 0.02  # m, of a sphere on a finger: a distance field is exact so far from the surface
NO_HAND = "no hand is known with these joints; name it once: python data.py ROOT --hand FILE.json"


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
    turns: list  # (T, 3, 3) x, y, z of the frame, rows, in the one that it follows
    spheres: np.ndarray  # (P, D) m: centers as sums of D of the 3 T axes that the turns have turned
    axes: list  # D of [turn, 0 to 2: x, y or z]
    needs: list  # T times three: whether the axis is among them, or a later one is made of it
    radii: np.ndarray  # (P, 1) m
    links: np.ndarray  # (P,) which of the finger's links a sphere is on
    levers: np.ndarray  # (P, k) m per rad, at most; a joint moves all spheres from the first one with a lever on
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
    """A joint of a URDF: one that turns, one that follows another, or a fixed one, which has no turn."""

    name: str
    parent: str  # links
    child: str
    origin: np.ndarray  # (4, 4) of the child's frame, at rest, in the parent's
    turn: np.ndarray | None  # (4, 4) of a frame whose z is the axis, in the child's: the same where that is about its z
    limits: tuple  # rad
    follows: tuple | None  # joint, multiplier, offset


def xml_numbers(element, key, count, name, default=""):
    """`count` finite numbers in an attribute of an XML element, which may be None."""
    text = default if element is None else element.get(key, default)
    try:
        values = np.array(text.split(), dtype=float)
    except ValueError:
        values = np.full(count, np.nan)
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
    what, turn, follows, limits = f"joint '{name}'", None, None, (-np.pi, np.pi)
    known = kind in ("revolute", "continuous", "fixed")
    refuse(not known, f"{what} is {kind}; only joints that turn or are fixed can be described")
    if kind != "fixed":
        z = xml_numbers(element.find("axis"), "xyz", 3, what, "1 0 0")
        refuse(not z.any(), f"{what}: its axis is zero; mend it in the URDF")
        turn, z = np.eye(4), z / np.linalg.norm(z)
        x = np.eye(3)[np.abs(z).argmin()]
        x = (x - z * (z @ x)) / np.linalg.norm(x - z * (z @ x))
        turn[:3, :3] = np.stack((x, np.cross(z, x), z), -1)
        if mimic is not None:
            shares = (("multiplier", "1"), ("offset", "0"))
            follows = (mimic.get("joint"), *(xml_numbers(mimic, key, 1, what, rest)[0] for key, rest in shares))
        elif kind == "revolute":
            limits = tuple(float(xml_numbers(limit, key, 1, what, "0")[0]) for key in ("lower", "upper"))
            refuse(limits[0] >= limits[1], f"{what} has no room to turn; mend its <limit lower= upper=>")
    links = (element.find(end).get("link") for end in ("parent", "child"))
    return Joint(name, *links, frame_of(element.find("origin"), what), turn, limits, follows)


def read_urdf(text):
    """{name: `Joint`} and {link: XML element} of a URDF's text."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise UserError(f"no URDF ({error}); export it again") from None
    xacro = any("xacro" in str(element.tag) for element in root.iter())
    refuse(xacro, "is a xacro, of which a URDF is made; run: xacro FILE > hand.urdf")
    refuse(root.tag != "robot", f"begins with <{root.tag}>, a URDF with <robot>; give another file")
    joints = {joint.name: joint for joint in map(read_joint, root.findall("joint"))}
    children = [joint.child for joint in joints.values()]
    twice = {link for link in children if children.count(link) > 1}
    refuse(twice, f"link '{' '.join(twice)}' hangs on several joints, which makes a loop; only trees can be described")
    return joints, {link.get("name"): link for link in root.findall("link")}


def at_rest(joints, root, frame):
    """{link: (frame (4, 4), names of the joints that turn it)} of all that hangs on a link, {name: (`Joint`, frame)}.

    joints: {name: `Joint`}; frame (4, 4): the root's. The z of a joint's frame (4, 4) is its axis.
    """
    links, turns, todo = {root: (frame, ())}, {}, [root]
    for link in todo:
        for joint in joints.values():
            if joint.parent == link:
                frame, before = links[link][0] @ joint.origin, links[link][1]
                if joint.turn is not None:
                    turns[joint.name], before = (joint, frame @ joint.turn), (*before, joint.name)
                links[joint.child] = frame, before
                todo.append(joint.child)
    return links, turns


def placed(spheres, frame):
    """Spheres [[x, y, z, radius], ...] of a frame (4, 4), (n, 4), where that is given in."""
    spheres = np.array(spheres, dtype=float).reshape(-1, 4)
    return np.hstack((spheres[:, :3] @ frame[:3, :3].T + frame[:3, 3], spheres[:, 3:]))


# ---------------------------------------------------------------- the hand
def read_finger(index, about, path, spheres, columns_of, limits, speeds):
    """One finger as a `Chain` of itself alone.

    about: as in the JSON; path: T pairs (`Joint`, frame) that turn; spheres (P, 5): turn, center, radius; both at rest,
    in the hand's frame; columns_of: {joint of the URDF: column}; limits (J, 2) rad; speeds (modes, J).
    """
    drives = [joint.follows or (joint.name, 1.0, 0.0) for joint, _ in path]
    missing = [source for source, *_ in drives if source not in columns_of]
    refuse(missing, f"link '{about['tip']}' moves by joint '{' '.join(missing)}', which 'joints' lacks")
    columns = list(dict.fromkeys(columns_of[source] for source, *_ in drives))
    refuse(columns_of.get(about["flexes"]) not in columns, f"joint '{about['flexes']}' does not flex '{about['tip']}'")
    gear, after, total = np.zeros((len(path), len(columns))), [], np.eye(len(path))
    # rounded: mostly axes only swap places and links lie along one, which costs less where zeros and ones are exact
    frames, turn = np.array([frame for _, frame in path]).round(DECIMALS), spheres[:, 0].astype(int)
    rotations, origins = frames[:, :3, :3], frames[:, :3, 3]
    for t, (source, multiplier, _) in enumerate(drives):
        gear[t, columns.index(columns_of[source])] = multiplier
        parallel = t and np.allclose(rotations[t, :, 2], rotations[t - 1, :, 2], rtol=0, atol=1e-9)
        after.append(after[-1] if parallel else t - 1)
        total[t, after[-1] + 1 : t] = 1
    shares = np.zeros((len(spheres), len(path), 3))  # m, of a center along the axes of each turn
    for share, last, center in zip(shares, turn, spheres[:, 1:4]):
        for t, end in enumerate([*origins[1 : last + 1], center]):
            share[t] = ((end - origins[t]) @ rotations[t]).round(DECIMALS)
    beyond = np.linalg.norm(shares, axis=2)[:, ::-1].cumsum(1)[:, ::-1]  # (P, T) m, along the finger
    turns = (rotations.transpose(0, 2, 1) @ rotations[np.maximum(after, 0)]).round(DECIMALS)
    used, needs = shares.any(0), shares.any(0)  # (T, 3)
    for t in reversed(range(len(path))):
        if after[t] >= 0:  # x and y turn into each other
            needs[after[t]] |= (turns[t][np.repeat([needs[t, :2].any(), needs[t, 2]], [2, 1])] != 0).any(0)
    flexor, speed = columns.index(columns_of[about["flexes"]]), speeds[:, columns]
    moves = (speed != 0).any(0) | (np.arange(len(columns)) == flexor)
    return Chain(
        fingers=np.array([index]), columns=np.array([columns]), bases=frames[:1],
        gear=total @ gear, offset=total @ [[shift] for *_, shift in drives], after=after,
        turns=turns.tolist(), spheres=shares[:, used], axes=np.argwhere(used).tolist(), needs=needs.tolist(),
        radii=spheres[:, 4:], links=np.unique(turn, return_inverse=True)[1],
        levers=beyond @ np.abs(gear), limits=np.where(moves, limits[columns].T, [[-np.inf], [np.inf]])[..., None],
        speed=speed, flexor=flexor, closes=1 if speed[:, flexor].sum() >= 0 else -1,
    )  # fmt: skip


def grouped(chains):
    """`Chain`s of single fingers -> one for all that are alike but for where the palm holds them."""
    groups = {}
    for chain in chains:
        numbers = (np.round(np.array(part, dtype=float), 9) + 0.0 for part in chain[3:])  # 0.0: none is a minus zero
        groups.setdefault(tuple(part.tobytes() for part in numbers), []).append(chain)
    return [Chain(*map(np.concatenate, zip(*(chain[:3] for chain in own))), *own[0][3:]) for own in groups.values()]


def palm_frame(wrist):
    """From the palm link's frame to the hand's (4, 4): its z is the palm's normal, its y where the fingers point."""
    z, y = (np.array(wrist[key], dtype=float) for key in ("palm_normal", "finger_direction"))
    x, matrix = np.cross(y, z), np.eye(4)
    refuse(np.linalg.norm(x) < 1e-3, "palm_normal and finger_direction are parallel or zero")
    z, x = z / np.linalg.norm(z), x / np.linalg.norm(x)
    matrix[:3, :3] = x, np.cross(z, x), z
    matrix[:3, 3] = -matrix[:3, :3] @ np.array(wrist.get("position", (0, 0, 0)), dtype=float)
    return matrix


@contextlib.contextmanager
def naming(name):
    """What is wrong with a description, as a user error that begins with the name of its file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is no description of a hand ({error})"
        raise UserError(f"{name}: {what}; python -m hand FILE.urdf --out FILE.json writes one to begin with") from None


def build_hand(source):
    """The `Hand` of a source as `read_source` returns it."""
    joints, _ = read_urdf(source["urdf"])
    names, wrist, fingers, spheres = (source[key] for key in ("joints", "wrist", "fingers", "spheres"))
    links, turns = at_rest(joints, wrist["link"], palm_frame(wrist))
    for link in (*spheres, *(about["tip"] for about in fingers.values())):
        refuse(link not in links, f"link '{link}' does not hang on the palm, link '{wrist['link']}'; name another one")
    for joint in names.values():
        free = joint in joints and joints[joint].turn is not None and not joints[joint].follows
        refuse(not free, f"joint '{joint}' is not in the URDF, is fixed or follows another; leave it out of 'joints'")
    refuse(len(fingers) < 2, "has fewer than two fingers, which can hold nothing between them")
    limits = np.array([joints[joint].limits for joint in names.values()])
    modes = tuple(mode for mode in MODES if mode in source["pre_shapes"])
    refuse(not modes or len(modes) < len(source["pre_shapes"]), f"pre_shapes are some of {', '.join(MODES)}")
    shapes = [source["pre_shapes"][mode] for mode in modes]
    angles = [shape[key] for key in ("start", "closing") for shape in shapes]  # {joint: number}
    unknown = " ".join(sorted(set().union(*angles) - set(names)))
    refuse(unknown, f"pre_shapes name the joint '{unknown}', which 'joints' lacks")
    angles = np.array([[its.get(joint, 0) for joint in names] for its in angles], dtype=float)
    start, speeds = np.split(angles, 2)  # (modes, J) each

    columns_of = {joint: column for column, joint in enumerate(names.values())}
    by_path = {}  # spheres by the joints that turn them
    for link, its_spheres in spheres.items():
        frame, path = links[link]
        for *center, radius in placed(its_spheres, frame):
            wrong = path and not 0 < radius <= MAX_RADIUS
            refuse(wrong, f"a sphere on {link} has radius {radius} m; it must be up to {MAX_RADIUS} m")
            by_path.setdefault(path, []).append((len(path) - 1, *center, radius))
    refuse(not by_path.get(()), f"no spheres on the palm, link '{wrist['link']}'; add some")
    paths = [links[about["tip"]][1] for about in fingers.values()]
    found = [[sphere for n in range(len(path)) for sphere in by_path.get(path[: n + 1], ())] for path in paths]
    chains, most = [], max(map(len, found))
    for index, (about, path, own) in enumerate(zip(fingers.values(), paths, found)):
        refuse(not own, f"no spheres on the finger with the tip '{about['tip']}'; add some")
        its_spheres = np.array(own + own[-1:] * (most - len(own)))
        path = [turns[joint] for joint in path]
        chains.append(read_finger(index, about, path, its_spheres, columns_of, limits, speeds))
    closed = [column for chain in chains for column in chain.columns[0][np.isfinite(chain.limits[0, :, 0])]]
    twice = [joint for joint, column in columns_of.items() if closed.count(column) > 1]
    refuse(twice, f"joint '{' '.join(twice)}' closes two fingers; each must close by joints of its own")
    of_palm = np.array(by_path[()])[:, 1:]
    return Hand(
        joint_names=tuple(names), limits=limits, fingers=tuple(fingers),
        chains=(*grouped(chains[:1]), *grouped(chains[1:])),
        radii=np.stack([chain.radii[:, 0] for chain in chains]), links=np.stack([chain.links for chain in chains]),
        palm_centers=of_palm[:, :3], palm_radii=of_palm[:, 3],
        modes=modes, start=np.radians(start), goes_on=np.array([mode == "power" for mode in modes]),
        **{box: np.array(source[box], dtype=float).reshape(3, 2) for box in ("grasp_center", "work_box")},
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
        mine = source["joints"]
        order = list(mine) if joint_names in (None, numbered_joints(len(mine))) else joint_names
        more = " ".join(sorted(set(mine) ^ set(order)))
        refuse(more, f"hand and recordings differ in the joints {more}; 'joints' in the hand's JSON names them")
        return build_hand(source | {"joints": {joint: mine[joint] for joint in order}})


SOURCE = read_source(Path(__file__).with_name("benchmark.json"))
BENCHMARK = build_hand(SOURCE)._replace(source=None)
