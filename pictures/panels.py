"""A sheet of panels, each a title and a function that draws into axes: four in a row, over a legend and a note."""

import math
import textwrap

import numpy as np

from files.writing import atomic

COLUMNS, DPI = 4, 70
WIDTH, SIDE, TITLE, LINE = 3.6, 3.4, 0.55, 0.22  # inches: a panel, its picture, its title's room, a line at the foot


def legend_entries(names):
    """The entries of a legend {name: colour}."""
    from matplotlib.patches import Patch

    return [Patch(color=colour, label=name) for name, colour in names.items()]


def legend(ax, names):
    """A legend {name: colour} below a panel."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.02)}
    ax.legend(handles=legend_entries(names), ncols=3, frameon=False, fontsize=10, **place)


def write_panels(panels, path, below=0.0, names=None, note=""):
    """Write panels [(title, function of axes)] as one PNG.

    below: inches under each panel, for its legend; names {name: colour} and a note stand at the foot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    columns = min(COLUMNS, len(panels))
    lines, row = textwrap.wrap(note, 42 * columns), TITLE + SIDE + below
    foot = LINE * (len(lines) + 1 + math.ceil(len(names or ()) / (3 * columns)))
    width, height = columns * WIDTH, row * math.ceil(len(panels) / columns) + foot
    figure = Figure(figsize=(width, height), dpi=DPI)
    for k, (title, fill) in enumerate(panels):
        middle, top = WIDTH * (k % columns + 0.5), height - row * (k // columns)
        place = (middle - SIDE / 2) / width, (top - TITLE - SIDE) / height
        fill(figure.add_axes((*place, SIDE / width, SIDE / height)))
        figure.text(middle / width, (top - 0.05) / height, title, fontsize=11, ha="center", va="top")
    if names:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, foot / height)}
        figure.legend(handles=legend_entries(names), ncols=3 * columns, frameon=False, **place)
    figure.text(0.5, 0.05 / height, "\n".join(lines), fontsize=9, ha="center", va="bottom")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] // 8 * 8 + 7  # 32 levels of a colour: half the file
    with atomic(path) as temporary:
        imsave(temporary, pixels, format="png", pil_kwargs={"optimize": True})
