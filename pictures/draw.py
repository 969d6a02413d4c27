"""Pictures of grasps: object, table plane and hand, photographed from where most of them is seen.

A finger's link is in its finger's colour where it touches, in a pale one where it is off the object, and black where it
is in the object by more than hand/holds.py allows. The lines are the plane z = 0 that objects stand on.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from hand.closing import CONTACT, link_gaps
from hand.described import BENCHMARK
from hand.holds import FREE_DEPTH, grasp_outcomes, solid_field
from scipy.special import softmax
from tqdm import tqdm

from files.categories import CATEGORY_NAMES
from files.reading import read_mesh
from hand import kinematics
from hand.scenes import scene_mesh
from pictures.panels import write_panels
from pictures.photo import Lit, axes_of_view, frame, lit_balls, lit_surface, photograph, show, together

PALM_COLOUR = (0.75, 0.75, 0.78)
FINGER_COLOURS = ((0.85, 0.35, 0.2), (0.25, 0.45, 0.8), (0.58, 0.4, 0.74), (0.3, 0.7, 0.5))
FINGER_COLOURS += ((0.8, 0.65, 0.2), (0.5, 0.4, 0.35))  # thumb, first, middle, ring, of other hands more
AXIS_COLOURS = ((0.9, 0, 0), (0, 0.6, 0), (0, 0, 0.9))  # of the wrist's x, y, z
AXIS_LENGTH, AXIS_RADIUS, AXIS_BEADS = 0.08, 0.003, 40  # m, of a row of balls
OBJECT_COLOUR, TABLE_COLOUR, INSIDE_COLOUR = (0.9, 0.8, 0.55), (0.85, 0.85, 0.87), (0.1, 0.1, 0.1)
SURFACE_POINTS = 400_000  # of an object, that a photograph paints
LINE_REACH, LINE_STEP = 0.16, 0.02  # m: lines on the table from the origin each way, and between two of them
NOTE = (
    f"A link in full colour touches, a pale one is off the object, a black one is over {1000 * FREE_DEPTH:.0f} mm deep "
    f"in it. Red, green, blue: the wrist's x, y and z, which points out of the palm. Lines: z = 0, "
    f"{100 * LINE_STEP:.0f} cm apart; objects stand on a post there."
)


class Shown(NamedTuple):
    """One object with one wrist pose, and what hands are there."""

    title: str
    vertices: np.ndarray  # (V, 3) m
    faces: np.ndarray | None  # (F, 3); None for a cloud
    pose: np.ndarray  # (7,)
    hypotheses: np.ndarray  # (K, J) rad
    chances: np.ndarray  # (K,)
    recorded: np.ndarray | None = None  # (J,) rad, where it is known


def shown_grasps(data, rows, joints, logits):
    """Grasps `rows` (n,) of a `GraspData` as [`Shown`], with predicted joints (n, K, J) rad and logits (n, K)."""
    found = []
    for row, hypotheses, chances in zip(rows, joints, softmax(logits, axis=1)):
        scene = data.scene[row]
        mesh, title = read_mesh(scene_mesh(data, scene)), scene_title(data.scenes[scene])
        found.append(Shown(title, *mesh, data.poses[row], hypotheses, chances, data.joints[row]))
    return found


def scene_title(scene):
    """A scene's "<synset>/<object>/<number>" as words: the category by its name, where it has one here."""
    synset, name, number = scene.split("/")
    category = CATEGORY_NAMES.get(synset, synset)
    return f"{name if name.startswith(category) else f'{category} {name}'}, scene {number}"


# ---------------------------------------------------------------- one grasp
def contact_gaps(field, grasp, hand=BENCHMARK):
    """How far each finger's links of a grasp (7 + J,) are from the object of a `solid_field`, (F, L) m."""
    centers, radii = kinematics.hand_drawing(grasp[:7], grasp[7:], hand)
    fingers = slice(len(hand.palm_radii), None)
    gaps = field(centers[fingers].astype(np.float32)) - radii[fingers]
    return link_gaps(gaps.reshape(hand.links.shape), hand)[0]


def finger_colours(hand):
    """The names of a hand's fingers and their colours, which begin again where there are many."""
    return dict(zip(hand.finger_names, itertools.cycle(FINGER_COLOURS)))


def link_colours(gaps=None, hand=BENCHMARK):
    """The colours of the fingers' links (F, L, 3), by contact where the gaps (F, L) m are given."""
    colours = np.repeat(np.array(list(finger_colours(hand).values()))[:, None], hand.links.max() + 1, axis=1)
    if gaps is None:
        return colours
    colours[gaps >= CONTACT] = 0.35 * colours[gaps >= CONTACT] + 0.65
    colours[gaps < -FREE_DEPTH] = INSIDE_COLOUR
    return colours


def hand_balls(grasp, gaps=None, hand=BENCHMARK):
    """What a hand (7 + J,) looks like: centers (n, 3) m, radii (n,) m and colours (n, 3) of its balls.

    gaps: of `contact_gaps`, where links are to be coloured by contact.
    """
    spheres = np.take_along_axis(link_colours(gaps, hand), hand.links[..., None], 1).reshape(-1, 3)
    colours = np.concatenate((np.tile(PALM_COLOUR, (len(hand.palm_radii), 1)), spheres))
    return *kinematics.hand_drawing(grasp[:7], grasp[7:], hand), colours


def wrist_axes(pose):
    """The axes x, y, z of a wrist pose (7,) as lines (3, 2, 3) m; z points out of the palm."""
    (matrix,) = kinematics.pose_to_matrix(pose)
    origin = np.broadcast_to(matrix[:3, 3], (3, 3))
    return np.stack((origin, origin + AXIS_LENGTH * matrix[:3, :3].T), axis=1)


def table_lines():
    """A grid of lines on the table plane z = 0 -> `Lit`."""
    ticks = np.arange(-LINE_REACH, LINE_REACH + LINE_STEP / 2, LINE_STEP)
    along = np.linspace(-LINE_REACH, LINE_REACH, 600)
    x, y = (axis.ravel() for axis in np.meshgrid(ticks, along))
    points = np.concatenate((np.stack((x, y, 0 * x), 1), np.stack((y, x, 0 * x), 1)))
    return Lit(points, np.tile((0, 0, 1), (len(points), 1)), np.tile(TABLE_COLOUR, (len(points), 1)))


def lit_axes(pose):
    """The axes of a wrist pose (7,), drawn as rows of balls -> `Lit`."""
    beads = np.linspace(*wrist_axes(pose).swapaxes(0, 1), AXIS_BEADS, axis=1).reshape(-1, 3)
    colours = np.repeat(AXIS_COLOURS, AXIS_BEADS, axis=0)
    return lit_balls(beads, np.full(len(beads), AXIS_RADIUS), colours)


def object_surface(vertices, faces):
    """Many points of an object's mesh -> `Lit`."""
    return lit_surface(vertices, faces, OBJECT_COLOUR, SURFACE_POINTS)


def lit_grasp(surface, grasp, gaps=None, hand=BENCHMARK):
    """Table, an object's surface (a `Lit`) and the hand of a grasp (7 + J,) -> `Lit`."""
    fewer = Lit(*(part[::2] for part in surface))  # it is small beside the hand
    balls = lit_balls(*hand_balls(grasp, gaps, hand))
    return together(balls, lit_axes(grasp[:7]), fewer, table_lines())


def view_of_hand(surface, grasp, hand=BENCHMARK):
    """The view, from above the table, that shows the most of every finger and of the object."""
    lit = Lit(*(part[::10] for part in lit_grasp(surface, grasp, hand=hand)))  # enough to judge by
    wanted = (*dict.fromkeys(finger_colours(hand).values()), OBJECT_COLOUR)
    best, found = -1, None  # best: the sum of roots of seen areas, so that what is hidden counts for more
    for elevation in (15, 35):
        for azimuth in range(0, 360, 20):
            view = axes_of_view(math.radians(azimuth), math.radians(elevation))
            index = photograph(lit, view, *frame(lit.points, view), size=80).index
            colours = lit.colours[index[index >= 0]]
            score = sum(math.sqrt((colours == colour).all(1).sum()) for colour in wanted)
            if score > best:
                best, found = score, view
    return found


def photos_of_hands(field, surface, view, grasps, hand):
    """A `Photo` of each of the grasps [(7 + J,)] at an object, all in one view and scale.

    field: `solid_field` of the object, surface: its `Lit`.
    """
    scenes = [lit_grasp(surface, grasp, contact_gaps(field, grasp, hand), hand) for grasp in grasps]
    solid = [scene.points[(scene.colours != TABLE_COLOUR).any(1)] for scene in scenes]  # the table may leave the frame
    where = frame(np.concatenate(solid), view)
    return [photograph(scene, view, *where) for scene in scenes]


# ---------------------------------------------------------------- a sheet
def draw_grasps(shown, path, hand=BENCHMARK):
    """A sheet of [`Shown`]: each as recorded, where that is known, and its most probable hypothesis; do they hold?"""
    bar = tqdm(shown, "drawing", unit="object", disable=None, delay=2)
    names = {"palm": PALM_COLOUR, **finger_colours(hand), "object": OBJECT_COLOUR}
    write_panels([panel for entry in bar for panel in panels_of(entry, hand)], path, names=names, note=NOTE)


def panels_of(entry, hand):
    """The panels of a `Shown`, in one view and scale."""
    joints, titles = [entry.hypotheses[entry.chances.argmax()]], [entry.title]
    if entry.recorded is not None:
        error = math.degrees(np.sqrt(np.mean((joints[0] - entry.recorded) ** 2)))
        joints.insert(0, entry.recorded)
        titles = [f"{entry.title}: recorded", f"predicted, RMS error {error:.1f}°"]
    grasps = [np.concatenate((entry.pose, angles)) for angles in joints]
    surface, field = object_surface(entry.vertices, entry.faces), solid_field(entry.vertices, entry.faces)
    photos = photos_of_hands(field, surface, view_of_hand(surface, grasps[0], hand), grasps, hand)
    holds = grasp_outcomes(field, entry.pose[None], np.stack(joints)[None], hand).holds[0]
    titles = [f"{title}\n{'holds' if its_holds else 'does not hold'}" for title, its_holds in zip(titles, holds)]
    return [(title, functools.partial(show, photo=photo)) for title, photo in zip(titles, photos)]
