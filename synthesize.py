"""The open benchmark: procedural household objects, or any folder of meshes, with grasps of the hand in hand.py.

    python synthesize.py --out data/synthetic --preset mini     300 objects, what train.py makes by itself
    python synthesize.py --out data/full --preset full          1,500 objects, the paper's scale
    python synthesize.py --out data/mine --meshes DIR           your own meshes
    python synthesize.py --card data/full --out results/benchmark   figures and pictures of a dataset

Layout written: OUT/<synset>/<object>/<scene>/mesh.obj and recording.npz (see data.py). An interrupted
run goes on when the same command is given again; the same seed gives the same bytes for any number of
workers. Lengths in metres, angles in radians, z up, objects standing on the plane z = 0.
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

if __name__ == "__main__":  # before numpy loads: its products are too small here to gain from a second thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import ConvexHull, cKDTree
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation
from tqdm import tqdm

import hand
from common import Parser, UserError, atomic, command, number, read_json, stable_seed, write_json
from data import read_mesh, sample_surface, stamp

VERSION = 1  # of the generator: a root made by another one must be made again

# ---------------------------------------------------------------- closed parts: vertices (V, 3) m, faces (F, 3)


def skin(rings):
    """Closed mesh over rings (R, S, 3) with a pole at each end, its faces pointing outwards."""
    count, size = rings.shape[:2]
    vertices = np.concatenate((rings.reshape(-1, 3), rings[:1].mean(1), rings[-1:].mean(1)))
    index = np.arange(count * size).reshape(count, size)
    after = np.roll(index, -1, axis=1)
    first, last = np.full(size, count * size), np.full(size, count * size + 1)
    corners = ((index[:-1], after[:-1], after[1:]), (index[:-1], after[1:], index[1:]),  # quads in two halves
               (after[0], index[0], first), (index[-1], after[-1], last))
    faces = np.concatenate([np.stack(triangle, -1).reshape(-1, 3) for triangle in corners])
    x, y, z = vertices[faces].transpose(1, 0, 2)
    return (vertices, faces) if np.sum(x * np.cross(y, z)) > 0 else (vertices, faces[:, ::-1])


def section(power, segments):
    """Superellipse of radius 1: power 2 a circle, 8 nearly a square; (S, 2)."""
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    circle = np.stack((np.cos(angle), np.sin(angle)), -1)
    return circle / (np.abs(circle) ** power).sum(-1, keepdims=True) ** (1 / power)


def dense(points, step=0.012):
    """A polyline (P, d) with points inserted, so that no piece is longer than `step` (m): bends need them."""
    points = np.asarray(points, dtype=float)
    pieces = np.maximum(1, np.ceil(np.linalg.norm(np.diff(points, axis=0), axis=1) / step)).astype(int)
    at = np.concatenate([i + np.arange(n) / n for i, n in enumerate(pieces)] + [[len(pieces)]])
    return np.stack([np.interp(at, np.arange(len(points)), column) for column in points.T], -1)


def spline(*points, pieces=5):
    """Catmull-Rom curve through P points (d,), `pieces` per interval."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate((2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]))
    t = (np.arange(pieces) / pieces)[:, None]
    a, b, c, d = (p[k : len(p) - 3 + k, None] for k in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate((curve.reshape(-1, p.shape[1]), p[-2:-1]))


def lathe(profile, power=2.0, step=0.012, segments=32):
    """Revolve (radius, z) points about z; the ends are closed on the axis. `power` squares the section."""
    profile = dense(profile, step)
    rings = np.empty((len(profile), segments, 3))
    rings[..., :2] = np.maximum(profile[:, :1], 1e-4)[:, None] * section(power, segments)
    rings[..., 2] = profile[:, 1:]
    return skin(rings)


def solid(curve, bottom, top):
    """Profile of a body with this outside (P, 2), from the axis at the bottom to the axis at the top (z)."""
    return np.concatenate(([[0, bottom]], curve, [[0, top]]))


def hollow(outer, wall):
    """Profile of a vessel with this outside (P, 2), from foot to rim, and this wall thickness."""
    inner = np.stack((np.maximum(outer[:, 0] - wall, 2e-3), np.maximum(outer[:, 1], wall)), -1)
    return solid(np.concatenate((outer, inner[::-1])), 0, wall)


def block(x, y, z, power=8.0, bevel=0.15, center=(0, 0, 0)):
    """A box with rounded edges, a disc or a pill: sides x, y, z (m); bevel as a share of the shortest."""
    b = bevel * min(x, y, z)
    s = 1 - 2 * b / min(x, y)
    profile = [(0, -z / 2), (s / 2, -z / 2), (0.5, b - z / 2), (0.5, z / 2 - b), (s / 2, z / 2), (0, z / 2)]
    vertices, faces = lathe(np.asarray(profile) * (max(x, y), 1), power)
    return vertices / max(x, y) * (x, y, max(x, y)) + center, faces


def tube(path, radius, side=(0, 1, 0), power=2.0, segments=14):
    """Sweep a section along path (P, 3) that lies in the plane with normal `side`.

    radius: scalar, (P,) or (P, 2) in and across that plane, m.
    """
    radius = np.asarray(radius, dtype=float)
    radius = np.broadcast_to(radius if radius.ndim == 2 else radius.reshape(-1, 1), (len(path), 2))
    across = np.broadcast_to(np.asarray(side, dtype=float), path.shape)
    normal = np.cross(across, np.gradient(path, axis=0))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    s = section(power, segments)
    offset = radius[:, None, :1] * s[:, :1] * normal[:, None] + radius[:, None, 1:] * s[:, 1:] * across[:, None]
    return skin(path[:, None] + offset)


def rod(start, end, radius, **options):
    """A straight tube from start to end (3,); radius at both ends: scalar or pair."""
    path, direction = dense([start, end]), np.subtract(end, start)
    side = np.eye(3)[np.argmin(np.abs(direction))]
    side = side - direction * (side @ direction) / (direction @ direction)
    return tube(path, np.linspace(*np.broadcast_to(radius, 2), len(path)), side / np.linalg.norm(side), **options)


def ball(center, radius, squash=1.0):
    """A sphere (squash 1) or spheroid about z."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 13)
    profile = np.stack((radius * np.cos(angle), radius * squash * np.sin(angle)), -1)
    vertices, faces = lathe(profile, step=1, segments=24)
    return vertices + center, faces


def arch(x, low, high, reach, thickness, rng, angle=0.0):
    """A handle: a tube from (x, 0, low) out by `reach` and back to (x, 0, high), turned about z by `angle`."""
    u, span = rng.uniform, high - low
    top, bottom = reach * u(0.6, 1.1), reach * u(0.5, 1.1)
    middle = (low + high) / 2 + u(-0.15, 0.15) * span
    points = [(x, 0, low), (x + bottom, 0, low + u(-0.2, 0.15) * span), (x + max(top, bottom) * 1.1, 0, middle),
              (x + top, 0, high + u(-0.15, 0.2) * span), (x, 0, high)]
    path = spline(*points) if u() < 0.7 else dense(points)
    vertices, faces = tube(path, np.array([[1.0, u(0.8, 2.0)]]) * thickness, power=u(2, 5))
    return vertices @ Rotation.from_euler("z", -angle).as_matrix(), faces


def squareness(rng, chance=0.4):
    """Power of a section: round, or with this chance something up to nearly square."""
    return rng.uniform(2.5, 8) if rng.random() < chance else 2.0


# ---------------------------------------------------------------- categories: rng, rng.uniform -> parts, z up, m


def mug(rng, u):
    r, h, wall = u(0.03, 0.05), u(0.06, 0.13), u(0.003, 0.006)
    outer = spline((r * u(0.7, 1.05), 0), (r * u(0.9, 1.2), h * u(0.25, 0.6)), (r * u(0.85, 1.15), h))
    yield lathe(hollow(outer, wall), squareness(rng, 0.25))
    for side in range(rng.choice(3, p=(0.12, 0.76, 0.12))):  # beaker, mug, two-handled cup
        low, high = h * u(0.12, 0.35), h * u(0.6, 0.9)
        x = np.interp([low, high], outer[:, 1], outer[:, 0]).min() - wall / 2
        yield arch(x, low, high, u(0.018, 0.04), u(0.003, 0.007), rng, side * np.pi)


def bottle(rng, u):
    r, h = u(0.02, 0.045), u(0.14, 0.24)
    neck, shoulder, waist = r * u(0.25, 0.6), h * u(0.5, 0.78), r * u(0.75, 1.05)
    body = spline((r * u(0.85, 1.0), 0), (waist, shoulder * u(0.35, 0.65)), (r, shoulder),
                  (neck, h * u(0.82, 0.9)), (neck, h * 0.93))
    yield lathe(solid(body, 0, h * 0.93), squareness(rng))
    cap = neck * u(1.0, 1.5)
    yield block(2 * cap, 2 * cap, h * u(0.08, 0.16), 2, 0.1, (0, 0, h * 0.95))
    if u() < 0.2:  # spray head or pump
        yield rod((0, 0, h), (u(0.025, 0.05), 0, h + u(-0.01, 0.01)), (u(0.006, 0.011), 0.005))
    if u() < 0.2:
        low, high = shoulder * u(0.25, 0.45), shoulder * u(0.75, 0.95)
        yield arch(waist * 0.9, low, high, u(0.02, 0.035), u(0.004, 0.008), rng)


def bowl(rng, u):
    r, h, wall = u(0.045, 0.075), u(0.025, 0.08), u(0.003, 0.007)
    outer = spline((r * u(0.35, 0.75), 0), (r * u(0.75, 0.98), h * u(0.3, 0.6)), (r, h))
    if u() < 0.3:  # a flat rim
        outer = np.concatenate((outer, [[r * u(1.08, 1.25), h * u(1.0, 1.1)]]))
    yield lathe(hollow(outer, wall), squareness(rng, 0.3))
    if u() < 0.3:  # one or two lugs
        reach, thickness, height = u(0.015, 0.04), u(0.004, 0.007), h * u(0.7, 0.9)
        for sign in (1, -1)[: rng.integers(1, 3)]:
            yield block(reach * 2, u(0.02, 0.05), 2 * thickness, 4, 0.3, (sign * r, 0, height))


def can(rng, u):
    r, h, groove = u(0.025, 0.05), u(0.05, 0.15), u(0.86, 1.0)
    end = r * u(0.75, 1.05)
    outer = [(end * 0.95, 0), (r, h * u(0.03, 0.12)), (r * groove, h * u(0.4, 0.5)), (r * groove, h * u(0.52, 0.6)),
             (r, h * u(0.86, 0.96)), (end, h), (end * 0.9, h), (end * 0.88, h * 0.97)]
    yield lathe(solid(outer, 0, h * 0.97), squareness(rng, 0.35))
    if u() < 0.3:
        yield block(2.1 * r, 2.1 * r, h * u(0.08, 0.25), 2, 0.1, (0, 0, h))


def jar(rng, u):
    r, h = u(0.03, 0.06), u(0.06, 0.15)
    mouth = r * u(0.55, 0.95)
    body = spline((r * u(0.6, 1.0), 0), (r * u(0.9, 1.1), h * u(0.3, 0.6)), (r * u(0.8, 1.0), h * u(0.72, 0.82)),
                  (mouth, h * 0.9), (mouth, h))
    yield lathe(solid(body, 0, h), squareness(rng))
    lid = mouth * u(0.95, 1.3)
    if u() < 0.85:
        yield block(2 * lid, 2 * lid, h * u(0.1, 0.25), squareness(rng, 0.2), u(0.05, 0.45), (0, 0, h))
    if u() < 0.4:
        yield ball((0, 0, h * 1.15), r * u(0.15, 0.35), u(0.6, 1.2))
    if u() < 0.25:
        for side in range(2):
            yield arch(r * 0.75, h * 0.4, h * 0.75, u(0.012, 0.03), u(0.003, 0.007), rng, side * np.pi)


def cellphone(rng, u):
    x, y, z = u(0.045, 0.085), u(0.1, 0.17), u(0.008, 0.024)
    power, bevel = u(4, 10), u(0.1, 0.45)
    if u() < 0.3:  # a folding one, half open
        angle, half = u(0.3, 2.0), y * 0.6
        yield block(x, half, z * 0.7, power, bevel, (0, -half / 2, 0))
        vertices, faces = block(x, half, z * 0.6, power, bevel, (0, half / 2, 0))
        yield Rotation.from_euler("x", angle).apply(vertices), faces
        yield rod((-x / 2, 0, 0), (x / 2, 0, 0), z * u(0.35, 0.6))
        return
    yield block(x, y, z, power, bevel)
    if u() < 0.6:  # camera bump
        sides, shape = (x * u(0.25, 0.8), y * u(0.12, 0.25), z * 0.5), (u(2, 8), 0.2)
        yield block(*sides, *shape, (x * u(-0.15, 0.15), y * u(0.25, 0.35), z / 2))
    if u() < 0.25:
        yield rod((x * 0.35, y * 0.45, 0), (x * 0.35, y * u(0.6, 0.8), 0), u(0.003, 0.006))


def remote(rng, u):
    x, y, z = u(0.03, 0.06), u(0.12, 0.22), u(0.012, 0.034)
    path = dense([(0, -y / 2, 0), (0, y / 2, 0)])
    t = np.linspace(-1, 1, len(path))
    ends = np.clip(8 * (1 - np.abs(t)) + u(0.5, 0.9), 0, 1)  # rounded ends
    thick = z / 2 * (1 + u(-0.3, 0.3) * t + u(-0.3, 0.3) * (t**2 - 0.3))
    wide = x / 2 * (1 + u(-0.3, 0.3) * t + u(-0.4, 0.4) * (t**2 - 0.3))
    path[:, 2] += u(-0.008, 0.012) * t**2
    yield tube(path, np.stack((thick * ends, wide * ends), -1), (1, 0, 0), u(2.5, 8), 24)
    for y_button in np.linspace(-0.3, 0.3, rng.integers(0, 4)):
        size = x * u(0.25, 0.5)
        yield block(size, size * u(0.4, 1.2), 0.008, u(2, 6), 0.2, (0, y * y_button, z / 2))


def knife(rng, u):
    grip, blade, r = u(0.08, 0.13), u(0.06, 0.15), u(0.008, 0.016)
    path = dense([(0, -grip, 0), (0, 0, 0)])
    t = np.linspace(0, 1, len(path))
    swell = 1 + u(-0.25, 0.4) * np.sin(np.pi * t) + u(-0.3, 0.3) * t
    path[:, 2] += u(-0.012, 0.006) * t * (1 - t) * 4
    yield tube(path, np.stack((r * swell, r * u(0.5, 0.95) * swell), -1), (1, 0, 0), u(2, 6))
    edge = dense([(0, -0.01, 0), (0, blade, 0)])
    s = np.linspace(0, 1, len(edge))
    height = r * u(0.7, 1.8) * (1 - s ** u(1.5, 6) * u(0.6, 0.95))
    edge[:, 2] += u(-0.3, 0.8) * (height[0] - height)
    yield tube(edge, np.stack((height, np.full(len(s), u(0.001, 0.0025))), -1), (1, 0, 0), 2.5)
    if u() < 0.4:  # guard
        yield block(r * u(1.5, 3), 0.008, r * u(2.2, 4), u(2, 8), 0.2)


def camera(rng, u):
    x, y, z = u(0.07, 0.14), u(0.028, 0.06), u(0.05, 0.095)
    yield block(x, y, z, u(4, 10), u(0.1, 0.45))
    r, length, at = z * u(0.25, 0.5), u(0.01, 0.07), x * u(-0.15, 0.15)
    yield rod((at, y / 2 - 0.005, 0), (at, y / 2 + length, 0), (r, r * u(0.7, 1.15)), segments=24)
    if u() < 0.6:  # view finder
        sides, shape = (x * u(0.2, 0.45), y * u(0.5, 0.95), z * u(0.3, 0.7)), (u(3, 8), 0.25)
        yield block(*sides, *shape, (x * u(-0.25, 0.25), 0, z / 2))
    if u() < 0.6:  # grip
        yield block(x * u(0.14, 0.25), y * u(0.6, 1.1), z * u(0.7, 1.0), u(2, 5), 0.4, (-x * 0.42, y * 0.45, 0))
    if u() < 0.4:
        yield rod((x * 0.33, 0, z / 2), (x * 0.33, 0, z / 2 + u(0.004, 0.012)), u(0.006, 0.012))


def lamp(rng, u):
    h, base, stem = u(0.14, 0.24), u(0.025, 0.055), u(0.004, 0.012)
    foot = spline((0, 0), (base, 0.002), (base * u(0.6, 1.0), u(0.008, 0.03)), (stem, u(0.03, 0.045)))
    yield lathe(foot, squareness(rng, 0.3))
    sway, head = (0, u(-0.3, 0.3), u(0.1, 0.45))[rng.integers(3)] * h, h * u(0.55, 0.75)
    path = spline((0, 0, 0.005), (sway * u(-0.4, 0.3), 0, head * 0.5), (sway, 0, head))
    waves = 1 + u(0, 1.2) * np.sin(np.linspace(0, np.pi * rng.integers(1, 4), len(path))) ** 2
    yield tube(path, stem * waves)
    wide, narrow, length = u(0.03, 0.065), u(0.01, 0.04), h * u(0.2, 0.45)
    if u() < 0.25:  # a globe
        vertices, faces = ball((0, 0, 0.3 * length), wide * 0.8, u(0.7, 1.2))
    else:
        shade = spline((wide, 0), ((wide + narrow) * u(0.4, 0.6), length / 2), (narrow, length))
        vertices, faces = lathe(solid(shade, 0.004, length), squareness(rng, 0.3))
    tilt = Rotation.from_euler("y", u(-1, 1) * (0.9 if sway else 0.2))
    yield tilt.apply(vertices - (0, 0, length * 0.3)) + (sway, 0, head + length * 0.2), faces


def microphone(rng, u):
    h, r, head = u(0.1, 0.19), u(0.009, 0.018), u(0.016, 0.034)
    grip = spline((r * u(0.6, 1.0), 0), (r * u(0.8, 1.3), h * u(0.3, 0.7)), (r * u(1.0, 1.6), h))
    yield lathe(solid(grip, 0, h), squareness(rng, 0.25))
    top = (0, 0, h + head * u(0.5, 0.9))
    if u() < 0.75:
        yield ball(top, head, u(0.7, 1.6))
    else:
        yield block(2 * head, u(1, 2) * head, u(2, 4) * head, u(2, 6), 0.3, top)
    if u() < 0.4:  # ring between grip and head
        yield block(2.1 * head, 2.1 * head, head * 0.3, 2, 0.3, top)
    if u() < 0.3:  # table stand
        foot = u(0.03, 0.055)
        yield block(2 * foot, 2 * foot * u(0.7, 1), u(0.008, 0.02), squareness(rng), 0.3)


def hammer(rng, u):
    length, r = u(0.14, 0.22), u(0.008, 0.016)
    path = dense([(0, -length, 0), (0, 0, 0)])
    t = np.linspace(0, 1, len(path))
    thick, wide = r * (1 - u(0, 0.5) * t), r * u(0.6, 1) * (1 - u(0, 0.5) * t)
    yield tube(path, np.stack((thick, wide), -1), (1, 0, 0), u(2, 6))
    size, span = u(0.012, 0.026), u(0.03, 0.06)
    face = size * u(0.9, 1.5)
    yield rod((0, 0, -span * 0.2), (0, 0, span), (size, face), power=u(2, 8))
    if u() < 0.65:  # claw or peen, bent back
        back = spline((0, 0, 0), (0, u(-0.005, 0.005), -span * 0.6), (0, -u(0.0, 0.03), -span * 1.1))
        widths = np.linspace((size, size), (size * u(0.15, 0.5), size * u(0.6, 1.2)), len(back))
        yield tube(back, widths, (1, 0, 0), u(2, 5))
    else:  # mallet
        yield rod((0, 0, 0), (0, 0, -span), (size, face), power=u(2, 8))


def pistol(rng, u):
    length, height, width = u(0.11, 0.19), u(0.022, 0.04), u(0.016, 0.034)
    yield block(length, width, height, u(4, 9), 0.2, (length * 0.25, 0, 0))
    grip, lean = u(0.06, 0.1), u(0.05, 0.45)
    path = dense([(0, 0, -height * 0.2), (-grip * lean, 0, -grip)])
    yield tube(path, np.array([[u(0.014, 0.024), width * u(0.4, 0.6)]]), power=u(2.5, 6))
    x = u(0.015, 0.03)
    if u() < 0.85:  # trigger guard
        guard = spline((x, 0, -height * 0.4), (x + u(0.02, 0.04), 0, -height * 0.6),
                       (x + u(0.01, 0.03), 0, -height - 0.015), (x - 0.02, 0, -height - 0.01))
        yield tube(guard, u(0.0025, 0.005))
    if u() < 0.5:  # round barrel in front
        front = length * 0.74
        start, end = (front - 0.01, 0, height * u(-0.1, 0.2)), (front + u(0.01, 0.06), 0, height * 0.05)
        yield rod(start, end, u(0.006, 0.014))


def cap(rng, u):
    r, h, wall = u(0.05, 0.07), u(0.045, 0.085), u(0.003, 0.005)
    outer = spline((r, 0), (r * u(0.9, 1.05), h * u(0.35, 0.6)), (r * u(0.45, 0.7), h * u(0.85, 0.95)), (0.004, h))
    vertices, faces = lathe(np.concatenate((outer, np.maximum(outer[::-1] - wall, (1e-3, 0)))))
    yield vertices * (1, u(0.8, 1), 1), faces
    reach, droop = u(0.03, 0.07), u(0, 0.02)
    vertices, faces = block(2 * (r * 0.5 + reach), 2 * r * u(0.6, 0.9), u(0.005, 0.008), u(2, 4), 0.3)
    vertices[:, 2] -= droop * (vertices[:, 1] / r) ** 2
    yield vertices + (r * 0.6, 0, 0.003), faces
    if u() < 0.4:
        yield ball((0, 0, h), u(0.005, 0.012))


def assembly(rng, u):
    """No category: two to five simple parts stuck to each other at random."""
    joints = [np.zeros(3)]
    for _ in range(rng.integers(2, 6)):
        start, kind = joints[rng.integers(len(joints))], rng.integers(4)
        sides = 0.015 * 8 ** rng.random(3)  # 15 to 120 mm
        if kind == 0:
            vertices, faces = block(*sides, power=u(2, 8), bevel=u(0.05, 0.4))
        elif kind == 1:
            vertices, faces = ball(np.zeros(3), sides[0] / 2, squash=u(0.4, 1.6))
        elif kind == 2:
            vertices, faces = rod((0, 0, -sides[2]), (0, 0, sides[2]), sides[:2] / 5, power=squareness(rng))
        else:
            outside = spline(*np.stack((u(0.2, 1, 4) * sides[0] / 2, np.linspace(-0.5, 0.5, 4) * sides[2]), -1))
            vertices, faces = lathe(solid(outside, *outside[[0, -1], 1]), squareness(rng))
        turn = Rotation.from_rotvec(rng.normal(size=3))
        offset = turn.apply([0, 0, u(-0.5, 0.5) * np.ptp(vertices[:, 2])])
        joints += [start + 2 * offset]
        yield turn.apply(vertices) + start + offset, faces


# synset -> (maker, shortest and longest length in m, weight in `full`)
CATEGORIES = {
    "03797390": (mug, 0.075, 0.14, 280), "02876657": (bottle, 0.12, 0.25, 250), "02880940": (bowl, 0.09, 0.17, 150),
    "02946921": (can, 0.06, 0.15, 90), "03593526": (jar, 0.07, 0.17, 200), "02992529": (cellphone, 0.1, 0.17, 110),
    "04074963": (remote, 0.12, 0.22, 60), "03624134": (knife, 0.14, 0.25, 80), "02942699": (camera, 0.08, 0.16, 60),
    "03636649": (lamp, 0.14, 0.25, 70), "03759954": (microphone, 0.12, 0.24, 30), "03481172": (hammer, 0.15, 0.25, 50),
    "03948459": (pistol, 0.12, 0.22, 40), "02954340": (cap, 0.12, 0.2, 30)}
HELD_OUT_SYNSETS = {"03948459": "pistol", "02954340": "cap"}
TRAIN_SYNSETS = {s: entry[0].__name__ for s, entry in CATEGORIES.items() if s not in HELD_OUT_SYNSETS}
NO_SYNSET = "assembly"  # shapes of no category, for pretraining alone
LENGTHS, MAX_MIDDLE = (0.05, 0.25), 0.15  # m: longest and middle side that the hand can work on
RESTS = ((0, 0), (np.pi / 2, 0), (-np.pi / 2, 0), (0, np.pi / 2), (0, -np.pi / 2), (np.pi, 0))  # turns about x, y
REST_CHANCES = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
YAW = np.radians(30)


def procedural_mesh(synset, rng):
    """One random object of a category, upright, z up, on z = 0: vertices (V, 3) float64 m, faces (F, 3) int64.

    Closed parts, concatenated (they overlap; no boolean operations), then bent out of the category's ordinary shape.
    """
    maker, shortest, longest, _ = (assembly, *LENGTHS, 0) if synset == NO_SYNSET else CATEGORIES[synset]
    vertices, faces = zip(*maker(rng, rng.uniform))
    starts = np.cumsum([0, *map(len, vertices)])
    faces = np.concatenate([part + start for part, start in zip(faces, starts)])
    vertices = deform(np.concatenate(vertices), rng)
    return fit(vertices, rng.uniform(shortest, longest)), faces.astype(np.int64)


def deform(vertices, rng):
    """Unequal axis scales, then taper, bulge, twist and bend along an axis: variety within a category."""
    u = rng.uniform
    vertices = (vertices - (vertices.min(0) + vertices.max(0)) / 2) * np.exp(u(-0.35, 0.35, 3))
    length = np.ptp(vertices, axis=0)
    axis = int(np.argmax(length)) if u() < 0.7 else int(rng.integers(3))
    t = vertices[:, axis] / length[axis]  # -0.5 ... 0.5
    i, j = (axis + 1) % 3, (axis + 2) % 3
    a, b = vertices[:, i], vertices[:, j]
    bulge = 1 + u(-0.15, 0.15) * np.cos(2 * np.pi * (t * u(0.5, 1.5) + u()))
    a, b = a * bulge * (1 + u(-0.5, 0.5) * t), b * bulge * (1 + u(-0.5, 0.5) * t)
    angle = u(-0.7, 0.7) * t
    a, b = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    bend = np.minimum(0.35 * length[axis], 1.5 * length[[i, j]]) * u(-1, 1, 2)  # a flat thing bends less
    vertices[:, i], vertices[:, j] = a + bend[0] * t**2, b + bend[1] * t**2
    return vertices


def fit(vertices, length):
    """Scale to this longest side (m), less where the middle side would not fit the hand, and settle on the table."""
    sides = np.sort(np.ptp(vertices, axis=0))
    return settle(vertices * min(np.clip(length, *LENGTHS) / sides[2], MAX_MIDDLE / sides[1]))


def settle(vertices):
    """Move onto the table plane z = 0, bounding box centred on the z axis."""
    low, high = vertices.min(0), vertices.max(0)
    return vertices - ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2])


def pose_scene(vertices, rng, resize=True):
    """A scene of an object (V, 3) m: its own resting pose, yaw and (where `resize`) scale, standing on z = 0."""
    about_x, about_y = RESTS[rng.choice(len(RESTS), p=REST_CHANCES)]
    turned = Rotation.from_euler("xyz", (about_x, about_y, rng.uniform(-YAW, YAW))).apply(vertices)
    return fit(turned, np.ptp(vertices, axis=0).max() * rng.uniform(0.85, 1.15)) if resize else settle(turned)


def pretraining_cloud(seed, index, num_points, up="z", synsets=None):
    """Cloud (num_points, 3) float32, m, of shape `index` of the pretraining pool, which no dataset shares.

    up: the axis that points up ("z", or "y" as Point-JEPA has it). synsets: default the 12 training categories;
    NO_SYNSET among them stands for shapes of no category.
    """
    rng = np.random.default_rng(stable_seed("pretrain", seed, index))
    names = sorted(synsets or TRAIN_SYNSETS)
    vertices, faces = procedural_mesh(names[rng.integers(len(names))], rng)
    cloud = sample_surface(pose_scene(vertices, rng), faces, num_points, rng)
    return cloud if up == "z" else cloud[:, [1, 2, 0]]  # a cyclic permutation is a rotation


# ---------------------------------------------------------------- the surface as a distance field

CELL, REACH = 0.004, 0.032  # m: grid spacing; distances are cut off here
SURFACE_SAMPLES = 12000


class DistanceField:
    """Unsigned distance to surface samples (P, 3) m on a grid: open meshes and wrong windings do not matter."""

    def __init__(self, points):
        self.low = points.min(0) - REACH - CELL
        shape = np.ceil((points.max(0) + REACH + CELL - self.low) / CELL).astype(int) + 1
        self.last = (shape - 1.001).astype(np.float32)
        self.strides = (int(shape[1] * shape[2]), int(shape[2]), 1)
        self.corners = [int(np.dot(offset, self.strides)) for offset in itertools.product((0, 1), repeat=3)]
        empty = np.ones(shape, dtype=bool)
        empty[tuple(np.rint((points - self.low) / CELL).astype(int).T)] = False
        # far away, a lower bound is enough: samples were moved by at most half a cell's diagonal
        distance = distance_transform_edt(empty, sampling=CELL) - CELL * np.sqrt(0.75)
        near = np.nonzero(distance < 0.02)  # more than the largest sphere's radius
        tree = cKDTree(points, balanced_tree=False, compact_nodes=False)  # the exact distance, where it matters
        distance[near] = tree.query(np.stack(near, -1) * CELL + self.low)[0]
        self.values = np.minimum(distance, REACH).astype(np.float32).ravel()

    def __call__(self, points):
        """Trilinear distance at points (..., 3), float32 m; outside the grid that of its border, REACH."""
        low = self.low.astype(np.float32)
        at = [np.clip((points[..., k].ravel() - low[k]) * np.float32(1 / CELL), 0, self.last[k]) for k in range(3)]
        whole = [a.astype(np.int32) for a in at]
        corner = sum(w * stride for w, stride in zip(whole, self.strides))
        value = [self.values[corner + offset] for offset in self.corners]
        for a, w in zip(at, whole):  # along this axis, the first half of the corners lies below the point
            half, share = len(value) // 2, a - w
            value = [first + share * (second - first) for first, second in zip(value[:half], value[half:])]
        return value[0].reshape(points.shape[:-1])

    def direction(self, points):
        """Unit vectors (m, 3) from points (m, 3) towards the surface."""
        step = np.float32(0.5 * CELL) * np.concatenate((np.eye(3), -np.eye(3))).astype(np.float32)
        values = self(points[:, None] + step)
        slope = values[:, 3:] - values[:, :3]
        return slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)


def surface_normals(vertices, faces, count, rng):
    """Area-weighted samples and face normals, of whatever sign the winding gives: (count, 3) twice, float32."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1)
    face = rng.choice(len(faces), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return points.astype(np.float32), (normal[face] / area[face, None]).astype(np.float32)


# ---------------------------------------------------------------- wrist poses and pre-shapes

# Pre-shapes: power, pinch, sphere.
# degrees [flexion, abduction, distal] of thumb, first, middle, ring at the start; closing speeds (flexion, distal)
START = np.radians([
    [-15, 22, 5, -15, 0, 5, -15, 0, 5, -15, 0, 5],
    [-15, -10, 10, -15, 6, 10, -15, 4, 10, 70, 0, 95],
    [-15, -8, 50, -15, -27, 50, -15, 0, 50, -15, 27, 50]]).astype(np.float32)
SPEED = np.array([[1, 1], [1, 0], [1, 0.1]], dtype=np.float32)
NOISE = np.radians(3)
SECOND_MODE = 0.12  # chance that a pose also tries its second-best pre-shape; more would drown shape in noise
WORK_BOX = (np.array([[-65, 65], [10, 180], [10, 150]]) * hand.SCALE).astype(np.float32)  # m, hand frame
GRASP_CENTER = np.array([[-12, 70, 23], [12, 135, 23]]) * hand.SCALE  # m, hand frame: from, to
PALM_CENTERS, PALM_RADII = hand.PALM_CENTERS.astype(np.float32), hand.PALM_RADII.astype(np.float32)
TABLE = -0.06  # m: objects stand on a thin post over the table, else the hand could not reach under a low one


def sample_poses(rng, points, normals, field, count):
    """Wrist frames (count, 3, 3), (count, 3): the palm over a surface point, from above or from a side."""
    pick = rng.integers(len(points), size=count)
    point, normal = points[pick], normals[pick]
    probe = 0.02 * normal
    outside = field(point + probe) - field(point - probe) + 1e-4 * rng.standard_normal(count)
    inward = normal * -np.sign(outside)[:, None]
    helper = np.eye(3)[np.abs(inward).argmin(1)]
    side = np.cross(inward, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    spin = rng.uniform(0, 2 * np.pi, count)[:, None]
    tilt = np.arccos(rng.uniform(np.cos(np.radians(35)), 1, count))[:, None]
    approach = np.cos(tilt) * inward + np.sin(tilt) * (np.cos(spin) * side + np.sin(spin) * np.cross(inward, side))
    roll = rng.uniform(0, 2 * np.pi, count)[:, None]
    x = np.cross(approach, helper)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = np.cos(roll) * x + np.sin(roll) * np.cross(approach, x)
    rotation = np.stack((x, np.cross(approach, x), approach), -1)  # columns x, y, z of the hand
    center = rng.uniform(*GRASP_CENTER, (count, 3))
    center[:, 2] += rng.uniform(0.002, 0.075, count)
    return rotation.astype(np.float32), (point - np.einsum("nij,nj->ni", rotation, center)).astype(np.float32)


def free_poses(rotation, position, field):
    """Masks (n,): the palm stands above the table and comes from above or a side; it is not inside the object."""
    palm = np.einsum("nij,pj->pni", rotation, PALM_CENTERS) + position  # (27, n, 3)
    outside = ((palm[..., 2] - PALM_RADII[:, None]).min(0) > TABLE) & (rotation[:, 2, 2] < 0.3)
    free = outside.copy()
    free[outside] = (field(palm[:, outside]) - PALM_RADII[:, None]).min(0) > -0.001
    return outside, free


def choose_modes(rng, rotation, position, points):
    """Pre-shapes by the geometry in reach: indices into the poses and modes, some poses twice.

    The spread of the surface points inside the work box along the hand's axes decides: long across the
    palm suggests a power grasp, thin between thumb and fingers a pinch, large and even a spherical one.
    """
    axes = rotation.transpose(2, 0, 1)  # (3, n, 3)
    local = [points @ axis.T - np.einsum("ni,ni->n", position, axis) for axis in axes]  # 3 of (m, n)
    inside = np.ones(local[0].shape, dtype=bool)
    for values, (low, high) in zip(local, WORK_BOX):
        inside &= np.abs(values - (low + high) / 2) < (high - low) / 2
    count, spreads = np.maximum(inside.sum(0), 1), []
    for values in local:
        mean = np.einsum("mn,mn->n", values, inside) / count
        variance = np.einsum("mn,mn,mn->n", values, values, inside) / count - mean**2
        spreads.append(np.sqrt(np.maximum(variance, 0)))
    x, y, z = np.log((np.stack(spreads) + 0.002) / 0.025)
    affinity = np.stack((1.2 * x - 0.6 * y - 0.15, -1.6 * y - 0.10, 0.8 * (y + z) - 1.5 * np.abs(x - y) + 0.20), -1)
    order = np.argsort(-affinity, axis=1)
    tried = np.stack((np.ones(len(order), dtype=bool), rng.random(len(order)) < SECOND_MODE), 1)
    pose, rank = np.nonzero(tried)  # the alternatives of a pose stay neighbours
    return pose, order[pose, rank]


# ---------------------------------------------------------------- closing the fingers

# How fast the 8 spheres can move per radian of flexion and of the distal joint, at most: (2, 8) m
DISTAL_LEVERS = [0, 0, 0, 0, *(hand.SPHERE_REACH[4:, 1:] @ [1, 1 + hand.COUPLING])]
LEVERS = np.stack((hand.SPHERE_REACH.sum(1), DISTAL_LEVERS)).astype(np.float32)
RADII = hand.SPHERE_RADII.astype(np.float32)
LINKS = (slice(0, 4), slice(4, 6), slice(6, 8))  # spheres of a finger's links
TOUCH, CONTACT = 0.0005, 0.002  # m: a finger stops, a link counts as touching
MIN_STEP, MAX_STEP = np.radians([0.15, 12]).astype(np.float32)
UPPER = hand.LIMITS[:3, 1].astype(np.float32)  # flexion and distal are the same for all fingers


def close_fingers(q, rotation, position, mode, field):
    """Close each finger (m rows) by itself until it touches: q (m, 3) -> q (m, 3), last gaps (8, m).

    Conservative advancement: a step is as long as the nearest sphere's gap allows, so nothing is
    passed through. Contact of link 1 stops flexion (a power grasp's distal joint then goes on, other
    fingers end); contact of link 2 or 3 ends the finger.
    """
    q, gaps, speed = q.copy(), np.empty((8, len(q)), dtype=np.float32), SPEED[mode]
    active = np.arange(len(q))
    for _ in range(80):
        now, pace = q[active], speed[active]
        gap = field(hand.finger_points(now, rotation[active], position[active])) - RADII[:, None]
        gaps[:, active] = gap
        base, rest = gap[:4].min(0) < TOUCH, gap[4:].min(0) < TOUCH
        pace[:, 0] *= ~base & (now[:, 0] < UPPER[0])
        pace[:, 1] *= now[:, 2] < UPPER[2]
        pace *= ~(rest | base & (mode[active] > 0))[:, None]
        speed[active] = pace
        keep = pace.any(1)
        active, now, pace = active[keep], now[keep], pace[keep]
        if not len(active):
            break
        reach = LEVERS.T @ pace.T + np.float32(1e-6)  # (8, m) m per unit of closing
        advance = np.clip((gap[:, keep] / reach).min(0), MIN_STEP, MAX_STEP)[:, None]
        q[active, ::2] = np.minimum(now[:, ::2] + advance * pace, UPPER[::2])
    return q, gaps


def close_hands(rotation, position, joints, mode, field):
    """Close whole hands, the thumb first: a thumb that meets nothing is no grasp, and saves the other fingers.

    joints (n, 12) -> joints (n, 12), gaps (n, 4, 8) m, and masks (n,): free at the start, thumb touches.
    """
    n = len(joints)
    q, (bases, origins) = joints.reshape(n, 4, 3).copy(), hand.finger_bases(rotation, position)
    start = hand.finger_points(q.reshape(-1, 3), bases.reshape(-1, 3, 3), origins.reshape(-1, 3))
    free = (field(start) - RADII[:, None]).min(0).reshape(n, 4).min(1) > -0.001
    touching, gaps = free.copy(), np.full((n, 4, 8), REACH, dtype=np.float32)
    for fingers, count in ((slice(0, 1), 1), (slice(1, 4), 3)):
        rows = np.flatnonzero(touching)
        closed, gap = close_fingers(
            q[rows, fingers].reshape(-1, 3), bases[rows, fingers].reshape(-1, 3, 3),
            origins[rows, fingers].reshape(-1, 3), np.repeat(mode[rows], count), field)
        q[rows, fingers], gaps[rows, fingers] = closed.reshape(-1, count, 3), gap.T.reshape(-1, count, 8)
        touching[rows] = gaps[rows, 0].min(1) < CONTACT
    return q.reshape(n, 12), gaps, free, touching


def link_gaps(gaps):
    """gaps (n, 4, 8) m -> the gap of each finger's three links and the sphere that has it (n, 4, 3)."""
    nearest = np.stack([link.start + gaps[..., link].argmin(-1) for link in LINKS], -1)
    return np.take_along_axis(gaps, nearest, -1), nearest


# ---------------------------------------------------------------- score

FRICTION, TORQUE_LENGTH = 0.8, 0.06  # Coulomb coefficient; m that make a torque comparable with a force
SCORE_PER_EPSILON = 1.5 / 0.035
DIRECTIONS = np.random.default_rng(0).standard_normal((256, 6))
DIRECTIONS = (DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)).astype(np.float32)


def contact_wrenches(points, normals, origin):
    """Friction cones (n, c, 3, 6) at contacts (n, c, 3): wrenches of unit normal forces, and of tangents x FRICTION."""
    helper = np.eye(3, dtype=np.float32)[np.abs(normals).argmin(-1)]
    first = np.cross(normals, helper)
    first /= np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-9)
    forces = np.stack((normals, FRICTION * first, FRICTION * np.cross(normals, first)), 2)  # (n, c, 3, 3)
    arms = ((points - origin) / TORQUE_LENGTH)[:, :, None]
    return np.concatenate((forces, np.cross(arms, forces)), -1).astype(np.float32)


def support(wrenches, mask, u):
    """How far cones (n, c, 3, 6) reach along u (n, s, 6): (n, s, c), -9 where not in mask; its parts (n, s, c, 3)."""
    n, c = mask.shape
    parts = (u @ wrenches.reshape(n, c * 3, 6).transpose(0, 2, 1)).reshape(n, u.shape[1], c, 3)
    reach = parts[..., 0] + np.sqrt(parts[..., 1] ** 2 + parts[..., 2] ** 2)
    return np.where(mask[:, None], reach, np.float32(-9)), parts


def epsilon(wrenches, mask, starts=8, rounds=28):
    """Ferrari-Canny L1 quality (n,): the least, over unit wrenches, of what the best contact can resist.

    The minimum of a support function, so no hull is built: an upper bound from fixed directions, where
    that is positive lowered by descent on a softened maximum that hardens. Negative: no force closure.
    """
    if not len(mask):
        return np.zeros(0, dtype=np.float32)
    order = np.argsort(~mask, axis=1, kind="stable")[:, : max(1, mask.sum(1).max())]  # real contacts first
    mask, wrenches = np.take_along_axis(mask, order, 1), np.take_along_axis(wrenches, order[..., None, None], 1)
    coarse = support(wrenches, mask, np.broadcast_to(DIRECTIONS, (len(mask), *DIRECTIONS.shape)))[0].max(-1)
    bound = coarse.min(1)
    promising = np.flatnonzero(bound > 0)
    u = DIRECTIONS[np.argpartition(coarse[promising], starts, axis=1)[:, :starts]]  # (n, s, 6)
    bound[promising] = np.minimum(bound[promising], descend(wrenches[promising], mask[promising], u, rounds))
    return bound


def descend(wrenches, mask, u, rounds):
    """The least support (n,) met on the way down from unit directions u (n, s, 6)."""
    best, (n, c) = np.full(len(u), np.inf, dtype=np.float32), mask.shape
    schedule = (np.geomspace(5, 200, rounds, dtype=np.float32), np.geomspace(0.8, 0.01, rounds, dtype=np.float32))
    for sharp, step in zip(*schedule):
        reach, parts = support(wrenches, mask, u)
        best = np.minimum(best, reach.max(-1).min(-1))
        weight = np.exp(sharp * (reach - reach.max(-1, keepdims=True)))
        weight /= weight.sum(-1, keepdims=True)
        slide = np.sqrt(parts[..., 1] ** 2 + parts[..., 2] ** 2 + np.float32(1e-9))
        parts[..., 0], parts[..., 1:] = 1, parts[..., 1:] / slide[..., None]
        slope = (parts * weight[..., None]).reshape(n, u.shape[1], 3 * c) @ wrenches.reshape(n, 3 * c, 6)
        slope -= (slope * u).sum(-1, keepdims=True) * u
        u = u - step * slope / np.maximum(np.linalg.norm(slope, axis=-1, keepdims=True), np.float32(1e-3))
        u /= np.linalg.norm(u, axis=-1, keepdims=True)
    return best


# ---------------------------------------------------------------- one scene

REASONS = ("outside", "palm", "start", "contacts", "table", "fingers", "depth")  # why a candidate is not recorded
MIN_SCORE, BATCH, MAX_BATCHES = 1.5, 1500, 12
MAX_DEPTH = 0.0015  # m, by the grid's distance: what a finger's last step may press in


def synthesize(vertices, faces, wanted, rng):
    """Grasps for one scene (V, 3) m, (F, 3): (n, 19) float32, scores (n,) float32, counts by reason.

    Batches of candidates until `wanted` grasps score at least MIN_SCORE or the batches run out; of the
    last batch only the first ones are kept.
    """
    points, normals = surface_normals(vertices, faces, SURFACE_SAMPLES, rng)
    field = DistanceField(points)
    counts, grasps, scores, kept = collections.Counter(), [], [], 0
    for _ in range(MAX_BATCHES):
        batch_grasps, batch_scores = candidates(rng, points, normals, field, counts)
        kept_so_far = kept + np.cumsum(batch_scores >= MIN_SCORE)
        end = np.searchsorted(kept_so_far, wanted, side="right")  # before the first grasp too many
        grasps.append(batch_grasps[:end])
        scores.append(batch_scores[:end])
        kept += int((scores[-1] >= MIN_SCORE).sum())
        if kept >= wanted:
            break
    counts["kept"], counts["low"] = kept, sum(map(len, scores)) - kept
    return np.concatenate(grasps), np.concatenate(scores), counts


def candidates(rng, points, normals, field, counts):
    """One batch: poses -> pre-shapes -> closed hands -> checks -> scored grasps (m, 19), (m,)."""
    rotation, position = sample_poses(rng, points, normals, field, BATCH)
    outside, free = free_poses(rotation, position, field)
    counts["outside"] += BATCH - int(outside.sum())
    counts["palm"] += int((outside & ~free).sum())
    rotation, position = rotation[free], position[free]
    pose, mode = choose_modes(rng, rotation, position, points[:400])
    rotation, position = rotation[pose], position[pose]
    joints = START[mode] + rng.normal(0, NOISE, (len(mode), 12))
    joints = np.clip(joints, hand.LIMITS[:, 0], hand.LIMITS[:, 1]).astype(np.float32)
    joints, gaps, free, touching = close_hands(rotation, position, joints, mode, field)
    links = link_gaps(gaps)[0] < CONTACT
    grasping = touching & links[:, 1:].any((1, 2)) & (links.sum((1, 2)) >= 3)
    counts["start"] += int((~free).sum())
    counts["contacts"] += int((free & ~grasping).sum())
    rotation, position, joints, gaps = (values[grasping] for values in (rotation, position, joints, gaps))
    local = hand.finger_spheres(joints)[0].astype(np.float32)  # (n, 4, 8, 3)
    centers = (local.reshape(-1, 32, 3) @ rotation.transpose(0, 2, 1) + position[:, None]).reshape(local.shape)
    good = np.ones(len(joints), dtype=bool)
    checks = {"table": (centers[..., 2] - RADII).min((1, 2)) < TABLE, "depth": gaps.min((1, 2)) < -MAX_DEPTH,
              "fingers": hand.fingers_collide(local)}
    for reason, bad in checks.items():
        counts[reason] += int((good & bad).sum())
        good &= ~bad
    scores = score(centers[good], gaps[good], points.mean(0), field)
    matrix = np.tile(np.eye(4), (len(scores), 1, 1))
    matrix[:, :3, :3], matrix[:, :3, 3] = rotation[good], position[good]
    return np.concatenate((hand.matrix_to_pose(matrix), joints[good]), 1).astype(np.float32), scores


def score(centers, gaps, origin, field):
    """Scores (n,) float32 of closed hands: finger spheres (n, 4, 8, 3) m in the object's frame, gaps (n, 4, 8) m.

    A touching link's contact is where its nearest sphere points; torques are about the `origin` (3,).
    """
    gap, nearest = link_gaps(gaps)
    center = np.take_along_axis(centers, nearest[..., None], 2).reshape(-1, 12, 3)
    mask = (gap < CONTACT).reshape(-1, 12)
    inward = np.zeros_like(center)
    inward[mask] = field.direction(center[mask])
    contacts = center + (gap + RADII[nearest]).reshape(-1, 12, 1) * inward
    return (SCORE_PER_EPSILON * epsilon(contact_wrenches(contacts, inward, origin), mask)).astype(np.float32)


# ---------------------------------------------------------------- objects on disk

# preset -> objects, kept grasps per object, scenes per object
PRESETS = {"mini": (300, 120, 1), "full": (1500, 240, 2)}
REDRAWS = 5  # procedural objects on which the hand finds next to nothing are drawn again, so often at most
MESH_TYPES = (".obj", ".stl", ".ply", ".off", ".glb")


def procedural_objects(settings):
    """[(synset, object name)]: equal categories in `mini`, unequal ones in `full`; sizes by largest remainder."""
    weights = {s: entry[3] if settings["preset"] == "full" else 1 for s, entry in CATEGORIES.items()}
    shares = {s: settings["objects"] * weight / sum(weights.values()) for s, weight in weights.items()}
    sizes = {s: int(share) for s, share in shares.items()}
    for s in sorted(shares, key=lambda s: sizes[s] - shares[s])[: settings["objects"] - sum(sizes.values())]:
        sizes[s] += 1
    return [(s, f"{CATEGORIES[s][0].__name__}_{k:04d}") for s in CATEGORIES for k in range(sizes[s])]


def mesh_objects(folder):
    """{(category, object name): path} of the mesh files in a folder: category is the first sub-folder."""
    found = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in MESH_TYPES):
        names = path.relative_to(folder).with_suffix("").parts
        names = [re.sub(r"[^\w-]+", "_", name).strip("_") or "_" for name in names]
        key = (names[0] if len(names) > 1 else "unsorted", "_".join(names[1:] or names))
        found[key if key not in found else (key[0], key[1] + path.suffix.lower().replace(".", "_"))] = path
    if not found:
        raise UserError(f"--meshes {folder}: no {' '.join(MESH_TYPES)} files in it")
    return found


def usable_mesh(path, up, rescale):
    """A mesh file as vertices (V, 3), faces, z up on z = 0; `UserError` says why it cannot be used."""
    vertices, faces = read_mesh(path)
    used, faces = np.unique(faces, return_inverse=True)  # stray vertices must not count as size
    vertices, faces = vertices[used], faces.reshape(-1, 3)
    if up == "y":
        vertices = vertices[:, [0, 2, 1]] * (1, -1, 1)
    sample_surface(vertices, faces, 1, 0)  # complains where there is no area
    _, middle, longest = np.sort(np.ptp(vertices, axis=0))
    if rescale:
        return fit(vertices, longest), faces
    if not LENGTHS[0] <= longest <= LENGTHS[1]:
        raise UserError(f"longest side {longest:.3g} m, usable is {LENGTHS[0]} to {LENGTHS[1]} m; --rescale mends it")
    if middle > MAX_MIDDLE:
        raise UserError(f"middle side {middle:.3g} m, usable is up to {MAX_MIDDLE} m; --rescale mends it")
    return settle(vertices), faces


def make_object(root, settings, source):
    """Write all scenes of one object, source (synset, name, path or None); returns what the log keeps of it."""
    synset, name, path = source
    rng = np.random.default_rng(stable_seed("dataset", settings["seed"], f"{synset}/{name}"))
    record = {"object": f"{synset}/{name}"}
    try:
        mesh = None
        if path:
            stamp(path, Path(settings["meshes"]))  # complains about a link that leaves the folder
            mesh = usable_mesh(path, settings["up"], settings["rescale"])
    except UserError as error:
        return record | {"unusable": str(error)}
    counts = collections.Counter()
    for attempt in range(1 if path else REDRAWS):
        vertices, faces = mesh or procedural_mesh(synset, rng)
        scenes, kept, low = [], 0, 0
        for k in range(settings["scenes"]):
            posed = vertices if path and k == 0 else pose_scene(vertices, rng, resize=not path)
            posed = np.round(posed, 6)  # what the file will hold
            wanted = -(-(settings["grasps"] - kept) // (settings["scenes"] - k))
            grasps, scores, found = synthesize(posed, faces, wanted, rng)
            scenes.append((posed, grasps, scores))
            counts.update({reason: found[reason] for reason in REASONS})
            kept, low = kept + found["kept"], low + found["low"]
        if kept >= settings["grasps"] / 6:
            break
        counts["redrawn"] += attempt + 1 < REDRAWS and not path
    if not kept + low:
        return record | {"unusable": "the hand finds no grasp"}
    for k, (posed, grasps, scores) in enumerate(scenes):
        if len(grasps):
            write_scene(Path(root) / synset / name / str(k), posed, faces, grasps, scores)
    return record | {"counts": counts | {"kept": kept, "low": low}}


def write_scene(folder, vertices, faces, grasps, scores):
    """mesh.obj and recording.npz, atomically and with the same bytes every time."""
    lines = ["v %.6f %.6f %.6f\n" % tuple(v) for v in vertices] + ["f %d %d %d\n" % tuple(f) for f in faces + 1]
    with atomic(folder / "mesh.obj") as temporary:
        temporary.write_text("".join(lines))
    with atomic(folder / "recording.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, grasps=grasps, scores=scores, joint_names=np.array(hand.JOINT_NAMES))


# ---------------------------------------------------------------- a whole root

LOG = "progress.jsonl"  # first the settings, then a line per finished object; dataset.json replaces it in the end
DEFAULT_ROOTS = {"data/synthetic": "mini", "data/full": "full"}


def generate(root, settings, workers, quiet=False):
    """Make or resume a root; returns the content of its dataset.json, which is written last."""
    root, log = Path(root), Path(root) / LOG
    head = recorded(root)
    if head and head["settings"] != settings:
        old = head["settings"]
        changes = [f"{key} {old.get(key)} there, {new} here" for key, new in settings.items() if old.get(key) != new]
        raise UserError(f"{root}: was made with other settings ({', '.join(changes)}); name another --out or remove it")
    if head.get("complete"):
        return head
    # in this order: another process that makes the same root writes its log first and removes it last
    if root.exists() and any(root.iterdir()) and not log.exists() and not (root / "dataset.json").exists():
        raise UserError(f"{root}: is not empty and not a root of synthesize.py; name another --out")
    sources = mesh_objects(settings["meshes"]) if settings["meshes"] else dict.fromkeys(procedural_objects(settings))
    root.mkdir(parents=True, exist_ok=True)
    log.touch()  # before the temporary file: a root with nothing but that would belong to nobody
    head, *records = read_log(root) or [{"version": VERSION, "settings": settings}]
    with atomic(log) as temporary:  # without the half line that a killed run may have left
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (head, *records)))
    done = {record["object"]: record for record in records}
    todo = [(*key, path and str(path)) for key, path in sources.items() if "/".join(key) not in done]
    with open(log, "a") as file, contextlib.closing(make_objects(root, settings, todo, workers)) as made:
        bar = tqdm(made, f"making {root}", len(sources), unit="object", initial=len(done), disable=quiet or None)
        for record in bar:
            done[record["object"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
    records = [done["/".join(key)] for key in sources]
    totals = sum((collections.Counter(record.get("counts")) for record in records), collections.Counter())
    content = {
        "generator": "synthesize.py", "version": VERSION, "complete": True, "settings": settings,
        "objects": sum("counts" in record for record in records),
        "grasps_kept": totals["kept"], "grasps_low": totals["low"], "objects_redrawn": totals["redrawn"],
        "candidates_rejected": {reason: totals[reason] for reason in REASONS},
        "unusable": {record["object"]: record["unusable"] for record in records if "unusable" in record}}
    write_json(root / "dataset.json", content)
    log.unlink(missing_ok=True)  # another process that made the same root may have been faster
    return content


def make_objects(root, settings, todo, workers):
    """Yield the records of all objects in `todo`, made in this process or by `workers` others."""
    make = functools.partial(make_object, str(root), settings)
    if workers == 1:
        yield from map(make, todo)
        return
    executor = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    before = dict(os.environ)
    try:
        # as many workers as cores, so each does its arithmetic in one thread
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        yield from executor.map(make, todo)
    finally:
        executor.shutdown(cancel_futures=True)
        os.environ.clear()
        os.environ.update(before)


def start_worker():
    """In a worker: Ctrl-C is the parent's business, which lets running objects end; a killed parent ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def read_log(root):
    """The whole lines of the log of an unfinished root, [] where there are none."""
    lines = (root / LOG).read_text().splitlines(keepends=True) if (root / LOG).exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def recorded(root):
    """What a root's dataset.json says or, where it is unfinished, the head of its log; {} where neither is there."""
    finished = (root / "dataset.json").exists()
    content = read_json(root / "dataset.json") if finished else (read_log(root) or [{}])[0]
    if content and content.get("version") != VERSION:
        again = command_line(root, content.get("settings", {}))
        raise UserError(f"{root}: made by generator version {content.get('version')}, this is {VERSION}; "
                        f"remove it and run: {again}")
    return content


def command_line(root, settings):
    """The command that makes a root."""
    flags = [f" --{key}" if value is True else f" --{key} {value}" for key, value in settings.items()
             if value is not None and value is not False]
    return f"python synthesize.py --out {root}" + "".join(flags)


def ensure_root(path, quiet=False):
    """The dataset root `path`; the default roots are made on first use, or finished where they were interrupted."""
    root, preset = Path(path), DEFAULT_ROOTS.get(Path(path).as_posix())
    content, unfinished = recorded(root), (root / LOG).exists()
    if content.get("complete") or root.exists() and not unfinished and any(root.iterdir()):
        return root  # ours, or data of somebody's own
    again = command_line(root, {"preset": preset or "mini"} | content.get("settings", {}))
    if preset is None:
        raise UserError(f"{root}: {'is unfinished' if unfinished else 'no such root'}; make it with: {again}")
    # a process of its own: its workers then load this file and not the caller's, which may hold torch
    child = [sys.executable, __file__, "--out", str(root), "--preset", preset] + ["--quiet"] * quiet
    if subprocess.run(child, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{root}: could not be made; see above, or run: {again}")
    return root


# ---------------------------------------------------------------- the data card: measured by code of its own


def is_inside(points, triangles):
    """Points (P, 3) inside a closed surface (F, 3, 3), by its solid angle (van Oosterom and Strackee 1983)."""
    a, b, c = (triangles[None, :, k] - points[:, None] for k in range(3))  # (P, F, 3)
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    volume = (a * np.cross(b, c)).sum(2)
    span = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    return np.abs(np.arctan2(volume, span).sum(1)) > np.pi


def sphere_gaps(vertices, faces, centers, radii):
    """Signed gaps (m,) of spheres to a mesh, negative where they penetrate, and the nearest surface points (m, 3).

    By exact geometry. The inside is the union of the closed parts; an open part has a surface only. Spheres
    further than 3 cm from every part have infinite gaps.
    """
    import trimesh  # needed here only

    gaps, nearest = np.full(len(centers), np.inf), np.zeros_like(centers)
    for part in trimesh.Trimesh(vertices, faces, process=False).split(only_watertight=False, repair=False):
        triangles, (low, high) = part.triangles.view(np.ndarray), part.bounds
        close = np.flatnonzero(((centers > low - 0.03) & (centers < high + 0.03)).all(1))
        if not len(close):
            continue
        points, middle = centers[close], triangles.mean(1)
        size = np.linalg.norm(triangles - middle[:, None], axis=2).max(1)
        corner = cKDTree(triangles.reshape(-1, 3)).query(points)[0]  # the nearest point is no further away
        row, face = np.nonzero(cdist(points, middle) <= corner[:, None] + size + 1e-9)
        found = trimesh.triangles.closest_point(triangles[face], points[row])
        distance = np.linalg.norm(found - points[row], axis=1)
        order = np.lexsort((distance, row))  # by point, the nearest first
        best = order[np.searchsorted(row[order], np.arange(len(points)))]
        inside = ((points > low) & (points < high)).all(1) & part.is_watertight
        inside[inside] = is_inside(points[inside], triangles)
        gap = np.where(inside, -distance[best], distance[best]) - radii[close]
        better = gap < gaps[close]
        gaps[close[better]], nearest[close[better]] = gap[better], found[best[better]]
    return gaps, nearest


def hull_epsilon(points, normals, origin, edges=16):
    """Ferrari-Canny epsilon from the hull of linearised friction cones: points, normals (c, 3)."""
    wrenches = contact_wrenches(points[None], normals[None], origin)[0].astype(float)
    angle = np.linspace(0, 2 * np.pi, edges, endpoint=False)[:, None]
    rim = wrenches[:, None, 0] + np.cos(angle) * wrenches[:, None, 1] + np.sin(angle) * wrenches[:, None, 2]
    return -ConvexHull(rim.reshape(-1, 6)).equations[:, -1].max()


def measure(vertices, faces, grasp):
    """Penetration (m), touching links (4, 3) and hull epsilon of one grasp (19,), from exact distances."""
    origin = sample_surface(vertices, faces, 4000, 0).mean(0)
    centers, radii, _ = hand.hand_drawing(grasp[:7], grasp[7:])
    gaps, nearest = sphere_gaps(vertices, faces, centers, radii)
    gap, sphere = link_gaps(gaps[len(PALM_RADII):].reshape(4, 8))
    links = gap < CONTACT
    contact = (len(PALM_RADII) + 8 * np.arange(4)[:, None] + sphere)[links]
    normals = (nearest[contact] - centers[contact]) * np.sign(gaps[contact] + radii[contact])[:, None]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return -gaps.min(), links, hull_epsilon(nearest[contact], normals, origin) if len(contact) > 2 else np.nan


def read_grasps(root):
    """[(scene folder, grasps (n, 19), scores (n,))] of a root of synthesize.py, a Path."""
    found = []
    for path in sorted(root.glob("*/*/*/recording.npz")):
        with np.load(path) as recording:
            found.append((path.parent, recording["grasps"], recording["scores"]))
    if not found:
        raise UserError(f"{root}: no */*/*/recording.npz in it")
    return found


def write_card(root, out, seed, sample=1000, mixed=600):
    """OUT/card.json, histograms.png and grasps.png of a root.

    Penetration and contacts are of `sample` kept grasps, scores are compared on `mixed` ones of any score.
    """
    from scipy.stats import spearmanr  # slow to import, and needed here only

    scenes = read_grasps(root)
    rows = [(*scene, row) for scene in scenes for row in range(len(scene[2]))]
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    kept = [grasp for grasp in rows if grasp[2][grasp[3]] >= MIN_SCORE]
    sample, scores = len(kept[:sample]), np.array([scores[row] for _, _, scores, row in rows[:mixed]])
    bar = tqdm(kept[:sample] + rows[:mixed], "measuring", unit="grasp", disable=None)
    measured = [measure(*read_mesh(folder / "mesh.obj"), grasps[row]) for folder, grasps, _, row in bar]
    depth, links, exact = map(np.array, zip(*measured))
    depth, links, held, exact = depth[:sample] * 1000, links[:sample], exact[:sample], exact[sample:]
    closed = exact > 0
    card = {
        "root": root.as_posix(), "scenes": len(scenes), "kept_grasps": len(kept), "grasps_measured": sample,
        "penetration_mm": {"median": np.median(depth), "p99": np.percentile(depth, 99),
                           "p99.9": np.percentile(depth, 99.9), "max": depth.max()},
        "share_thumb_and_finger_touch": (links[:, 0].any(1) & links[:, 1:].any((1, 2))).mean(),
        "share_three_links_touch": (links.sum((1, 2)) >= 3).mean(),
        "share_force_closed_by_hull": (held > 0).mean(),
        "grasps_scored_by_hull": len(exact), "of_these_force_closed": int(closed.sum()),
        "share_same_sign": ((scores > 0) == closed).mean(),
        "score_spearman_with_hull": spearmanr(scores[closed], exact[closed]).statistic,
        "score_over_hull_median": np.median(scores[closed] / exact[closed]) / SCORE_PER_EPSILON}
    card = json.loads(json.dumps(card, default=float), parse_float=lambda text: round(float(text), 4))
    write_json(out / "card.json", card)
    draw_histograms(scenes, out / "histograms.png")
    draw_grasps([(*read_mesh(folder / "mesh.obj"), grasps[row], f"{'/'.join(folder.parts[-3:])}  score {scores[row]:.1f}")
                 for folder, grasps, scores, row in kept[:12]], out / "grasps.png")
    print(json.dumps(card, indent=2))


def draw_histograms(scenes, path):
    """Score, kept grasps per object and the 12 joints of a root [(scene folder, grasps, scores)], as one picture."""
    from matplotlib.figure import Figure

    scores = np.concatenate([scores for _, _, scores in scenes])
    joints = np.concatenate([grasps[scores >= MIN_SCORE, 7:] for _, grasps, scores in scenes])
    per_object = collections.Counter()
    for folder, _, scene_scores in scenes:
        per_object[folder.parent] += int((scene_scores >= MIN_SCORE).sum())
    figure = Figure(figsize=(14, 9), layout="constrained")
    axes = figure.subplots(4, 4)
    axes[0, 0].hist(scores, 80, color="tab:gray")
    axes[0, 0].axvline(MIN_SCORE, color="tab:red")
    axes[0, 0].set_title(f"score; right of the line ({MIN_SCORE}): kept")
    axes[0, 1].hist(list(per_object.values()), 40, color="tab:gray")
    axes[0, 1].set_title("kept grasps per object")
    for ax in axes[0, 2:]:
        ax.axis("off")
    for ax, name, values, limits in zip(axes[1:].T.flat, hand.JOINT_NAMES, joints.T, hand.LIMITS):  # column: finger
        ax.hist(values, 60, range=limits, color="tab:blue")
        ax.set_title(f"{name} (rad)")
    figure.savefig(path, dpi=80)


def hand_mesh(grasp):
    """A picture's hand (19,): triangles (F, 3, 3) m in the object's frame and a colour per triangle (F, 3)."""
    centers, radii, segments = hand.hand_drawing(grasp[:7], grasp[7:])
    palm, fingers = [(0.75, 0.75, 0.78)], [(0.85, 0.35, 0.2), (0.25, 0.45, 0.8), (0.25, 0.6, 0.75), (0.3, 0.7, 0.5)]
    colours = palm * len(PALM_RADII) + [colour for colour in fingers for _ in range(8)]
    parts = [(ball(*sphere), colour) for *sphere, colour in zip(centers, radii, colours)]
    parts += [(rod(*segment, 0.007), fingers[k // 4]) for k, segment in enumerate(segments) if k % 4]
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


# ---------------------------------------------------------------- command line


def parse_args(argv):
    presets = [f"{name}: {n} objects, {g} kept grasps each, {s} scene(s)" for name, (n, g, s) in PRESETS.items()]
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("--out", metavar="DIR", help="root to make or to resume; with --card, where its files go")
    flag("--preset", choices=tuple(PRESETS), default="mini", help="; ".join(presets))
    flag("--objects", type=number(int, 1, 100000), help="procedural objects (default: the preset's)")
    flag("--grasps", type=number(int, 1, 100000),
         help=f"grasps per object with a score of {MIN_SCORE} or more, over its scenes (default: the preset's)")
    flag("--scenes", type=number(int, 1, 100), help="scenes per object: scale, pose, yaw (default: the preset's)")
    flag("--seed", type=number(int, 0), default=0, help="seed of objects and grasps")
    flag("--workers", type=number(int, 1, 256),
         help="processes (default: one per core); the result does not depend on it")
    flag("--meshes", metavar="DIR", help="use this folder's meshes, category = sub-folder, not procedural objects")
    flag("--up", choices=("z", "y"), default="z", help="the axis that points up in --meshes")
    flag("--rescale", action="store_true", help="scale meshes whose longest side is not "
         f"{LENGTHS[0]}-{LENGTHS[1]} m or whose middle side is over {MAX_MIDDLE} m")
    flag("--card", metavar="ROOT", help="describe this dataset in figures and pictures in place of making one")
    flag("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if not args.out:
        parser.error("--out DIR is needed")
    if args.meshes and args.objects:
        parser.error("--objects counts procedural objects and does not go with --meshes")
    if args.meshes and not Path(args.meshes).is_dir():
        parser.error(f"--meshes {args.meshes}: no such folder")
    if not args.meshes and (args.rescale or args.up != "z"):
        parser.error("--up and --rescale go with --meshes")
    return args


@command
def main(argv=None):
    """Make or resume a root and print its counts, or write the card of one; argv as on the command line."""
    args = parse_args(argv)
    if args.card:
        return write_card(Path(args.card), Path(args.out), args.seed)
    objects, grasps, scenes = PRESETS[args.preset]
    settings = {
        "preset": args.preset, "objects": None if args.meshes else args.objects or objects,
        "grasps": args.grasps or grasps, "scenes": args.scenes or scenes, "seed": args.seed,
        "meshes": args.meshes, "up": args.up, "rescale": args.rescale}
    start = time.time()
    content = generate(args.out, settings, args.workers or os.cpu_count(), args.quiet)
    print(f"{args.out}: {content['objects']} objects, {content['grasps_kept']} grasps with a score of {MIN_SCORE} "
          f"or more, {content['grasps_low']} under it, in {time.time() - start:.0f} s")
    rejected = ", ".join(f"{reason} {count}" for reason, count in content["candidates_rejected"].items())
    print(f"candidates rejected: {rejected}; objects drawn again: {content['objects_redrawn']}")
    for name, reason in content["unusable"].items():
        print(f"not used: {name}: {reason}")


if __name__ == "__main__":
    main()
