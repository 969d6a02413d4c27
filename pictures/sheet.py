"""The pictures of walkthrough.py: panels in the order of its text, each with the number of its stage.

A panel is (title, function that draws into axes); functions named so return lists of them. `photo` is the object's;
`seen`, `guess` and `grasp` are those of walkthrough.py.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

from hand.described import BENCHMARK
from hand.holds import solid_field
from pictures.draw import PALM_COLOUR, finger_colours, photos_of_hands
from pictures.panels import legend
from pictures.photo import axes_of_view, frame, photograph, project, show

VIEW = axes_of_view(math.radians(-55), math.radians(22))  # of an object alone
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.02), "ncols": 3}  # a legend, of its panel
GREY, BLUE, RED = (0.85, 0.85, 0.87), (0.16, 0.32, 0.6), (0.86, 0.08, 0.24)
TARGETS = ((0.84, 0.19, 0.15), (0.99, 0.6, 0.15), (0.25, 0.65, 0.35), (0.65, 0.35, 0.7))


def nearest_patch(photo, seen):
    """Of every point of the surface the patch whose center is nearest, (n,)."""
    return cKDTree(seen.centers_m.numpy()).query(photo.lit.points)[1]


def feature_colours(features):
    """Features (G, D) -> RGB (G, 3): ranks along their three main directions of variation."""
    flat = features.numpy() - features.numpy().mean(0)
    main = flat @ np.linalg.svd(flat)[2][:3].T  # (G, 3)
    return 0.2 + 0.75 * main.argsort(0).argsort(0) / max(1, len(main) - 1)  # of ranks, so that no odd one stands out


def painted(photo, colours):
    """Draws the photograph with its points in `colours` (n, 3)."""
    return functools.partial(show, photo=photo, colours=colours)


# ---------------------------------------------------------------- object, encoder, pretraining
def object_panels(surface, points, view):
    """Stage 2, the cloud (N, 3) m on the surface, a `Lit` -> the object's `Photo`, panels."""
    photo = photograph(surface, view, *frame(surface.points, view))

    def cloud(ax):
        show(ax, photo)
        where, visible = project(photo, points.numpy())
        ax.scatter(*where[~visible].T, s=9, color=BLUE, alpha=0.3, linewidths=0)
        ax.scatter(*where[visible].T, s=16, color=BLUE, linewidths=0)

    return photo, [(f"2  cloud: {len(points)} points of the surface\n(pale: on the far side)", cloud)]


def encoder_panels(photo, seen):
    """Stages 4 to 9."""
    from matplotlib import colormaps

    patch, count = nearest_patch(photo, seen), len(seen.centers_m)
    colours = colormaps["tab20"](np.random.default_rng(0).permutation(count) % 20)[:, :3]

    def centers(ax):
        show(ax, photo, np.tile(GREY, (len(patch), 1)))
        where, visible = project(photo, seen.centers_m.numpy())
        ax.scatter(*where[~visible].T, s=36, facecolors="none", edgecolors=[BLUE], alpha=0.5)
        ax.scatter(*where[visible].T, s=45, color=BLUE, linewidths=0)
        for i in range(min(8, count)):
            beside = (4, 3) if visible[i] else (-12, -10)  # points; so that they do not hide each other
            ax.annotate(str(i + 1), where[i], beside, textcoords="offset points", fontsize=13, color=RED, weight="bold")

    def one_patch(ax):
        where = seen.patches[0, 0].numpy() @ photo.view[:, :2]
        for point in where:
            ax.plot((0, point[0]), (0, point[1]), color=GREY, linewidth=1.5, zorder=0)
        ax.scatter(*where.T, s=70, color=colours[0])
        ax.scatter(0, 0, marker="x", s=150, color=RED, linewidths=3)
        ax.set(aspect="equal", adjustable="datalim", box_aspect=1)
        ax.margins(0.12)
        ax.axis("off")

    tokens, features = (feature_colours(values[0])[patch] for values in (seen.tokens, seen.features))
    return [
        (f"4  {count} centers, each the farthest from\nthose before (rings: on the far side)", centers),
        ("5  where patches lie: the surface in\nthe colour of the nearest center", painted(photo, colours[patch])),
        ("6  one patch: the points around\ncenter 1, relative to it (cross)", one_patch),
        ("7  tokens, one per patch\n(like colours: like tokens)", painted(photo, tokens)),
        ("9  features: tokens after\nthe transformer", painted(photo, features)),
    ]


def pretraining_panels(photo, seen, guess):
    """Stages 10 to 15."""
    from matplotlib import colormaps

    order, count = guess.order.numpy(), len(guess.order)
    step = order.argsort()[nearest_patch(photo, seen)]  # (n,) when the path comes by

    def sequence(ax):
        show(ax, photo, colormaps["turbo"](np.linspace(0.1, 0.9, count))[step, :3])
        where, visible = project(photo, seen.centers_m.numpy()[order])
        for i in range(count - 1):
            near = visible[i] and visible[i + 1]
            ax.plot(*where[i : i + 2].T, color="black", linewidth=2 if near else 1, linestyle="-" if near else ":")
        ax.scatter(*where[0], s=90, color="black", zorder=3)
        ax.scatter(*where[-1], s=90, color="white", edgecolors="black", zorder=3)

    def blocks(ax):
        colours = np.tile(GREY, (count, 1))
        colours[guess.visible] = BLUE
        for hidden, colour in zip(guess.hidden, TARGETS):
            colours[hidden] = colour
        show(ax, photo, colours[step])
        targets = {f"target {i}": colour for i, colour in enumerate(TARGETS, 1)}
        legend(ax, {"context": BLUE, **targets, "left out": GREY}, **BELOW)

    def of_hidden(shades):
        """Draws the hidden patches in shades (M * T, 3), all others grey."""
        colours = np.tile(GREY, (count, 1))
        colours[guess.hidden.flatten()] = shades
        return painted(photo, colours[step])

    pairs = torch.cat((guess.targets, guess.predictions)).flatten(0, 2)  # (2 * M * T, D)
    targets, predictions = np.split(feature_colours(pairs), 2)  # like features have like colours in both
    errors = F.smooth_l1_loss(guess.predictions, guess.targets, beta=2.0, reduction="none").mean(3).flatten()
    return [
        ("10  sequence, from black dot to white, blue\nto red: on to the nearest center left", sequence),
        ("11  context and targets to predict\n(where these overlap: the last)", blocks),
        ("12  targets: what the copy that\nsees all makes of the hidden", of_hidden(targets)),
        ("14  predictions from the context\n(like targets: well guessed)", of_hidden(predictions)),
        ("15  where the loss is (bright: large;\n" + f"mean {errors.mean():.3f}, largest {errors.max():.3f})",
         of_hidden(colormaps["inferno"](0.15 + 0.85 * (errors / errors.max()).numpy())[:, :3])),
    ]  # fmt: skip


# ---------------------------------------------------------------- a grasp
def weights_panels(photo, seen, weights):
    """Stage 17: how much each patch counts, (G,)."""
    from matplotlib import colormaps

    share = (weights - weights.min()) / (weights.max() - weights.min()).clamp(min=1e-9)
    colours = colormaps["viridis"](share.numpy())[nearest_patch(photo, seen), :3]
    counts = f"({weights.min():.3f} to {weights.max():.3f}, yellow)"
    return [(f"17  attention pooling: how much each\npatch counts {counts}", painted(photo, colours))]


def hand_panels(thing, photo, pose, joints, grasp, hand=BENCHMARK):
    """Stage 16, the recorded hand, and 19, the hypotheses, the most probable first: all in the object's view."""
    order, field = grasp.chances.argsort(descending=True), solid_field(thing.vertices, thing.faces)
    hands = [np.concatenate((pose, angles)) for angles in (joints, *grasp.joints[order])]
    of_recorded, *of_hypotheses = photos_of_hands(field, photo.lit, photo.view, hands, hand)

    def recorded(ax):
        show(ax, of_recorded)
        legend(ax, {"palm": PALM_COLOUR, **finger_colours(hand)}, **BELOW)

    title = "16  recorded grasp (pale: off, black: in the\nobject; red, green, blue: the wrist's x, y, z)"
    panels, names = [(title, recorded)], {"chosen": grasp.chances.argmax(), "winner": grasp.degrees.argmin()}
    for k, its_photo in zip(order.tolist(), of_hypotheses):
        marks = "".join(f", {name}" for name, which in names.items() if which == k)
        title = f"19  hypothesis {k}{marks}\nprobability {grasp.chances[k]:.2f}, error {grasp.degrees[k]:.0f}°"
        panels.append((title, functools.partial(show, photo=its_photo)))
    return panels
