"""Photographs of surfaces: many lit points, near ones over far ones, so that what lies behind is hidden.

Points are (n, 3) m with z up, an eye sees them from far away; a picture shows them in metres to the right and up.
"""

import math
from typing import NamedTuple

import numpy as np

from hand.closing import surface_normals

LIGHT = np.array([0.35, 0.6, -0.72])  # where it comes from: to the right, up, away from the eye


class Lit(NamedTuple):
    """Points of surfaces with what a photograph needs of them."""

    points: np.ndarray  # (n, 3) m
    normals: np.ndarray  # (n, 3), of any sign
    colours: np.ndarray  # (n, 3) RGB


class Photo(NamedTuple):
    """Which point is seen in each pixel, and from where."""

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


def sample_lit(triangles, colours, count):
    """About `count` points of triangles (F, 3, 3) m with a colour each (F, 3), uniformly by area -> `Lit`."""
    areas = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    rng, parts = np.random.default_rng(0), []
    for colour in np.unique(colours, axis=0):
        chosen = (colours == colour).all(1)
        corners = triangles[chosen].reshape(-1, 3)
        share = 1 + int(count * areas[chosen].sum() / areas.sum())
        found = surface_normals(corners, np.arange(len(corners)).reshape(-1, 3), share, rng)
        parts.append((*found, np.tile(colour, (share, 1))))
    return Lit(*(np.concatenate(column) for column in zip(*parts)))


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
    return Photo(index, np.where(index < 0, np.inf, seen[index, 2]), light, view, middle, reach)


def show(ax, photo, colours):
    """Put a photograph into axes, its points in `colours` (n, 3)."""
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
