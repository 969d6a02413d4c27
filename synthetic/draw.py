"""Pictures of grasps: the hand's spheres and bones on the object."""

import numpy as np

from plumbing.common import atomic
from synthetic import hand
from synthetic.shapes import ball, rod

PALM_COLOUR = (0.75, 0.75, 0.78)
FINGER_COLOURS = ((0.85, 0.35, 0.2), (0.25, 0.45, 0.8), (0.58, 0.4, 0.74), (0.3, 0.7, 0.5))  # as in hand.FINGERS


def hand_mesh(grasp):
    """A picture's hand (19,): triangles (F, 3, 3) m in the object's frame and a colour per triangle (F, 3)."""
    centers, radii, segments = hand.hand_drawing(grasp[:7], grasp[7:])
    colours = [PALM_COLOUR] * len(hand.PALM_RADII) + [colour for colour in FINGER_COLOURS for _ in range(8)]
    parts = [(ball(*sphere), colour) for *sphere, colour in zip(centers, radii, colours)]
    parts += [(rod(*segment, 0.007), FINGER_COLOURS[k // 4]) for k, segment in enumerate(segments) if k % 4]
    triangles = [vertices[faces] for (vertices, faces), _ in parts]
    return np.concatenate(triangles), np.repeat([colour for _, colour in parts], [len(t) for t in triangles], axis=0)


def draw_grasps(grasps, path):
    """A sheet of up to 12 grasps [(mesh vertices, faces, grasp (19,), title)]: the hand's spheres on the object."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 12))
    for k, (vertices, faces, grasp, title) in enumerate(grasps):
        ax = figure.add_subplot(3, 4, k + 1, projection="3d")
        draw_grasp(ax, vertices, faces, grasp)
        ax.set_title(title, fontsize=9)
    figure.subplots_adjust(0, 0, 1, 0.96, 0, 0.04)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=70, format="png")


def draw_grasp(ax, vertices, faces, grasp):
    """Draw an object and the hand of one grasp (19,) into 3-D axes, looking across the palm."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    triangles, colours = hand_mesh(grasp)
    triangles = np.concatenate((vertices[faces], triangles))
    colours = np.concatenate((np.tile([0.9, 0.8, 0.55], (len(faces), 1)), colours))
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    light = np.abs(normal @ [0.3, -0.5, 0.8]) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    shades = colours * (0.45 + 0.55 * light[:, None]).clip(max=1)
    ax.add_collection3d(Poly3DCollection(triangles, facecolors=shades))
    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    reach = 0.4 * (high - low).max()
    ax.set(**{f"{axis}lim": (c - reach, c + reach) for axis, c in zip("xyz", (low + high) / 2)})
    side = hand.pose_to_matrix(grasp[:7])[0, :3, 0]  # across the palm: thumb and fingers are seen closing
    ax.view_init(np.degrees(np.arcsin(np.clip(side[2], -1, 1))) * 0.7 + 8, np.degrees(np.arctan2(side[1], side[0])))
    ax.set_axis_off()
