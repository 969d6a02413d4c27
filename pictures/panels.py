"""A sheet of panels, each a title and a function that draws into axes: four in a row, over a legend and a note."""

import math
import textwrap

import numpy as np

from files.writing import atomic

COLUMNS, DPI = 4, 70
WIDTH, HEIGHT, LINE = 3.6, 4.2, 0.22  # inches, of a panel and of a line at the foot


def legend(on, names, **place):
    """A legend {name: colour} on axes or a figure."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in names.items()]
    on.legend(handles=handles, frameon=False, **place)


def write_panels(panels, path, names=None, note=""):
    """Write panels [(title, function of axes)] as one PNG; names {name: colour} and a note stand at the foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    columns = min(COLUMNS, len(panels))
    rows, note = math.ceil(len(panels) / columns), textwrap.fill(note, 42 * columns)
    size = columns * WIDTH, rows * HEIGHT + LINE * note.count("\n")
    figure = Figure(size, DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (title, fill) in zip(axes, panels):
        fill(ax)
        ax.set_title(title, fontsize=11)
    for ax in axes[len(panels) :]:
        ax.axis("off")
    if names:
        legend(figure, names, loc="outside lower center", ncols=3 * columns, title=note, title_fontsize=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] // 8 * 8 + 7  # 32 levels of a colour: half the file
    with atomic(path) as temporary:
        imsave(temporary, pixels, format="png", pil_kwargs={"optimize": True})
