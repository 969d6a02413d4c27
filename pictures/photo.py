"""Photographs of surfaces: many lit points, near ones over far ones, so that what lies behind is hidden.

Points are (n, 3) m with z up, an eye sees them from far away; a picture shows them in metres to the right and up.
"""

import math
from typing import NamedTuple

import numpy as np

from hand.closing import surface_normals

LIGHT = np.array([0.35, 0.6, -0.72])  # where it comes from: to the right, up, away from the eye
BALL_POINTS = 1.25e6  # per m² of a ball: hands are without holes, whatever their size


class Lit(NamedTuple):
    """Points of surfaces with what a photograph needs of them."""

    points: np.ndarray  # (n, 3) m
    normals: np.ndarray  # (n, 3), of any sign
    colours: np.ndarray  # (n, 3) RGB


class Photo(NamedTuple):
    """Which point of a `Lit` is seen in each pixel, and from where."""

    lit: Lit
    index: np.ndarray  # (H, W) of the nearest point, -1 where there is none
    depth: np.ndarray  # (H, W) m away from the eye, infinite where there is none
    light: np.ndarray  # (H, W)
    view: np.ndarray  # (3, 3) of `axes_of_view`
    middle: np.ndarray  # (2,) m
    reach: float  # m from the middle to the edge


def axes_of_view(azimuth, elevation):
    """The view of an eye that stands there, in radians -> (3, 3), columns right, up and away from the eye."""
    sine, cosine = math.sin(azimuth), math.cos(azimuth)
    low, high = math.cos(elevation), math.sin(elevation)
    return np.array([[-sine, -high * cosine, -low * cosine], [cosine, -high * sine, -low * sine], [0, low, -high]])


def lit_surface(vertices, faces, colour, count):
    """`count` points of a mesh, uniformly by area -> `Lit`."""
    points, normals = surface_normals(vertices, faces, count, np.random.default_rng(0))
    return Lit(points, normals, np.tile(colour, (count, 1)))


def lit_balls(centers, radii, colours):
    """Points of balls (n, 3), (n,) m with a colour each (n, 3) -> `Lit`."""
    each = np.ceil(BALL_POINTS * 4 * math.pi * radii**2).astype(int)
    centers, radii, colours, total = (np.repeat(values, each, axis=0) for values in (centers, radii, colours, each))
    turn = np.concatenate([np.arange(own) for own in each])  # of a spiral from a ball's upper pole to its lower one
    height, angle = 1 - (2 * turn + 1) / total, math.pi * (3 - math.sqrt(5)) * turn
    normals = np.stack((np.cos(angle), np.sin(angle), height), axis=1)
    normals[:, :2] *= np.sqrt(1 - height**2)[:, None]
    return Lit(centers + radii[:, None] * normals, normals, colours)


def together(*parts):
    """Several `Lit` as one."""
    return Lit(*map(np.concatenate, zip(*parts)))


def frame(points, view, margin=1.04):
    """Where a photograph of these points is centred, (2,) m, and how far it reaches, m."""
    seen = points @ view[:, :2]
    low, high = seen.min(0), seen.max(0)
    return (low + high) / 2, margin * (high - low).max() / 2


def photograph(lit, view, middle, reach, size=450):
    """A `Photo` of `size` x `size` pixels of a `Lit`, every point of which paints a round spot."""
    spot = max(1, round(0.8 * size / math.sqrt(len(lit.points))))  # px
    disc = [(x, y) for x in range(-spot, spot + 1) for y in range(-spot, spot + 1) if x * x + y * y <= spot * spot + 1]
    seen = lit.points @ view
    pixels = (((seen[:, :2] - middle) / reach + 1) * size / 2).astype(int)
    far_first = seen[:, 2].argsort()[::-1]
    column, row = (pixels[far_first, None] + np.array(disc)).reshape(-1, 2).T
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    index = np.full((size, size), -1)
    index[row[inside], column[inside]] = far_first.repeat(len(disc))[inside]  # the last one written stays
    light = 0.5 + 0.5 * np.abs(lit.normals @ (view @ LIGHT))[index]
    return Photo(lit, index, np.where(index < 0, np.inf, seen[index, 2]), light, view, middle, reach)


def show(ax, photo, colours=None):
    """Put a photograph into axes, its points in their own colours or in `colours` (n, 3)."""
    colours = photo.lit.colours if colours is None else colours
    image = colours[photo.index] * photo.light[..., None]
    image[photo.index < 0] = 1
    (x, y), reach = photo.middle, photo.reach
    ax.imshow(image, origin="lower", extent=(x - reach, x + reach, y - reach, y + reach))
    ax.axis("off")


def project(photo, points):
    """Points (n, 3) m -> where they are in the picture (n, 2) m, and whether nothing stands before them (n,)."""
    seen = points @ photo.view
    size = len(photo.index)
    pixels = (((seen[:, :2] - photo.middle) / photo.reach + 1) * size / 2).astype(int).clip(0, size - 1)
    return seen[:, :2], seen[:, 2] < photo.depth[pixels[:, 1], pixels[:, 0]] + 0.04 * photo.reach
