"""Pictures of grasps: object, table plane and hand, photographed from where most of them is seen.

A finger's link is in its finger's colour where it touches, in a pale one where it is off the object, and black where it
is in the object by more than hand/holds.py allows. The lines are the plane z = 0 that objects stand on.
"""

import itertools
import math
import textwrap
from pathlib import Path

import numpy as np
from hand.closing import CONTACT, link_gaps
from hand.described import BENCHMARK
from hand.holds import FREE_DEPTH, grasp_outcomes, solid_field
from tqdm import tqdm

from files.categories import CATEGORY_NAMES
from files.reading import read_mesh
from files.writing import atomic
from hand import kinematics
from hand.scenes import scene_mesh
from hand.solids import ball, rod
from pictures.photo import Lit, axes_of_view, frame, photograph, sample_lit, show

PALM_COLOUR = (0.75, 0.75, 0.78)
FINGER_COLOURS = ((0.85, 0.35, 0.2), (0.25, 0.45, 0.8), (0.58, 0.4, 0.74), (0.3, 0.7, 0.5))
FINGER_COLOURS += ((0.8, 0.65, 0.2), (0.5, 0.4, 0.35))  # thumb, first, middle, ring, of other hands more
AXIS_COLOURS = ((0.9, 0, 0), (0, 0.6, 0), (0, 0, 0.9))  # of the wrist's x, y, z
AXIS_LENGTH, AXIS_RADIUS = 0.08, 0.003  # m
OBJECT_COLOUR, TABLE_COLOUR, INSIDE_COLOUR = (0.9, 0.8, 0.55), (0.85, 0.85, 0.87), (0.1, 0.1, 0.1)
SURFACE_POINTS, HAND_POINTS = 400_000, 150_000  # that a photograph paints
LINE_STEP = 0.02  # m between the lines on the table
COLUMNS, CELL, LINE, DPI = 4, (3.5, 3.9), 0.22, 72  # of a sheet: a cell and a line of the legend in inches
NOTE = (
    f"A link in full colour touches, a pale one is off the object, a black one is over {1000 * FREE_DEPTH:.0f} mm deep "
    f"in it. Red, green, blue: the wrist's x, y and z, which points out of the palm. Lines: z = 0, "
    f"{100 * LINE_STEP:.0f} cm apart; objects stand on a post there."
)


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
    """What a hand (7 + J,) looks like: balls [(center, radius, colour)], in m.

    gaps: of `contact_gaps`, where links are to be coloured by contact.
    """
    spheres = np.take_along_axis(link_colours(gaps, hand), hand.links[..., None], 1).reshape(-1, 3)
    colours = [PALM_COLOUR] * len(hand.palm_radii) + list(spheres)
    return list(zip(*kinematics.hand_drawing(grasp[:7], grasp[7:], hand), colours))


def hand_mesh(grasp, gaps=None, hand=BENCHMARK):
    """A hand (7 + J,) and the wrist's axes: triangles (F, 3, 3) m in the object's frame and their colours (F, 3)."""
    parts = [(ball(*sphere), colour) for *sphere, colour in hand_balls(grasp, gaps, hand)]
    parts += [(rod(*axis, AXIS_RADIUS), colour) for axis, colour in zip(wrist_axes(grasp[:7]), AXIS_COLOURS)]
    triangles = [vertices[faces] for (vertices, faces), _ in parts]
    return np.concatenate(triangles), np.repeat([colour for _, colour in parts], [len(t) for t in triangles], axis=0)


def wrist_axes(pose):
    """The axes x, y, z of a wrist pose (7,) as lines (3, 2, 3) m; z points out of the palm."""
    (matrix,) = kinematics.pose_to_matrix(pose)
    origin = np.broadcast_to(matrix[:3, 3], (3, 3))
    return np.stack((origin, origin + AXIS_LENGTH * matrix[:3, :3].T), axis=1)


def table_lines(reach):
    """A grid of lines on the table plane z = 0 -> `Lit`."""
    ticks = np.arange(-reach, reach + LINE_STEP / 2, LINE_STEP)
    along = np.linspace(-reach, reach, 600)
    x, y = (axis.ravel() for axis in np.meshgrid(ticks, along))
    points = np.concatenate((np.stack((x, y, 0 * x), 1), np.stack((y, x, 0 * x), 1)))
    return Lit(points, np.tile((0, 0, 1), (len(points), 1)), np.tile(TABLE_COLOUR, (len(points), 1)))


def lit_grasp(surface, pose, joints, gaps=None, hand=BENCHMARK):
    """Table, an object's surface (a `Lit`) and the hand of a wrist pose (7,) with joints (J,) rad -> `Lit`."""
    fingers = sample_lit(*hand_mesh(np.concatenate((pose, joints)), gaps, hand), HAND_POINTS)
    fewer = (part[::4] for part in surface)  # it is small beside the hand
    return Lit(*(np.concatenate(parts) for parts in zip(fingers, fewer, table_lines(0.16))))


def view_of_hand(surface, pose, joints, hand=BENCHMARK):
    """The view, from above the table, that shows the most of every finger and of the object."""
    lit = Lit(*(part[::10] for part in lit_grasp(surface, pose, joints, hand=hand)))  # enough to judge by
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


def solid_points(lit):
    """The points of a `Lit` without the table, which may leave the frame."""
    return lit.points[(lit.colours != TABLE_COLOUR).any(1)]


# ---------------------------------------------------------------- a sheet
def draw_grasps(grasps, path, hand=BENCHMARK):
    """A sheet of grasps [(mesh vertices, faces, grasp (7 + J,), title)], four in a row, and whether they hold.

    Neighbours of one mesh and wrist pose share their view and its middle, a row shares its scale.
    """
    panels, groups = [], itertools.groupby(grasps, lambda grasp: (grasp[0].tobytes(), grasp[2][:7].tobytes()))
    for group in tqdm([list(group) for _, group in groups], "drawing", unit="object", disable=None, delay=2):
        panels += group_panels(group, hand)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_sheet(panels, path, hand)


def group_panels(grasps, hand):
    """Panels (title, `Lit`, view (3, 3), middle (2,) m, reach m) of grasps of one mesh at one wrist pose."""
    vertices, faces, first, _ = grasps[0]
    field = solid_field(vertices, faces)
    surface = sample_lit(vertices[faces], np.tile(OBJECT_COLOUR, (len(faces), 1)), SURFACE_POINTS)
    view = view_of_hand(surface, first[:7], first[7:], hand)
    joints = np.stack([grasp[7:] for _, _, grasp, _ in grasps])
    holds = grasp_outcomes(field, first[None, :7], joints[None], hand).holds[0]
    hands = [grasp for _, _, grasp, _ in grasps]
    scenes = [lit_grasp(surface, own[:7], own[7:], contact_gaps(field, own, hand), hand) for own in hands]
    where = frame(np.concatenate([solid_points(scene) for scene in scenes]), view)
    verdicts = ["holds" if its_holds else "does not hold" for its_holds in holds]
    titles = [f"{title}\n{verdict}" for (_, _, _, title), verdict in zip(grasps, verdicts)]
    return [(title, scene, view, *where) for title, scene in zip(titles, scenes)]


def write_sheet(panels, path, hand):
    """Write the panels of `group_panels` as one picture with a legend."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = {"palm": PALM_COLOUR, **finger_colours(hand), "object": OBJECT_COLOUR}
    note, legend_columns = textwrap.wrap(NOTE, 42 * columns), min(len(names), 3 * columns)
    foot = LINE * (len(note) + 1 + math.ceil(len(names) / legend_columns))
    width, height = columns * CELL[0], rows * CELL[1] + foot
    figure = Figure(figsize=(width, height))
    for k, (title, scene, view, middle, _) in enumerate(panels):
        row = k // columns
        reach = max(panel[-1] for panel in panels[row * columns : (row + 1) * columns])
        left, top = CELL[0] * (k % columns), height - CELL[1] * row
        side = CELL[0] - 0.1
        ax = figure.add_axes(((left + 0.05) / width, (top - CELL[1]) / height, side / width, side / height))
        show(ax, photograph(scene, view, middle, reach), scene.colours)
        figure.text((left + CELL[0] / 2) / width, (top - 0.05) / height, title, fontsize=10, ha="center", va="top")
    handles = [Patch(color=colour, label=name) for name, colour in names.items()]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, foot / height)}
    figure.legend(handles=handles, ncols=legend_columns, frameon=False, **place)
    figure.text(0.5, 0.05 / height, "\n".join(note), fontsize=9, ha="center", va="bottom")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def draw_beside(data, rows, joints, path):
    """A sheet of grasps `rows` (n,) of a `GraspData` as recorded, and beside each the predicted joints (n, J) rad."""
    sheet = []
    for row, scene, predicted in zip(rows, data.scene[rows], joints):
        mesh, pose, recorded = read_mesh(scene_mesh(data, scene)), data.poses[row], data.joints[row]
        error = math.degrees(np.sqrt(np.mean((predicted - recorded) ** 2)))
        sheet.append((*mesh, np.concatenate((pose, recorded)), f"{scene_title(data.scenes[scene])}: recorded"))
        sheet.append((*mesh, np.concatenate((pose, predicted)), f"predicted, RMS error {error:.1f}°"))
    draw_grasps(sheet, path, data.hand)
