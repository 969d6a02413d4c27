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

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, cKDTree
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation
from tqdm import tqdm

import hand
from common import Parser, UserError, atomic, command, number, read_json, stable_seed, write_json
from data import read_mesh, sample_surface

VERSION = 1  # of the generator: a root made by another one must be made again

# ---------------------------------------------------------------- closed parts


def skin(rings):
    """Closed mesh over rings (R, S, 3), with a pole at each end: vertices (R*S + 2, 3), faces, pointing outwards."""
    count, size = rings.shape[:2]
    vertices = np.concatenate((rings.reshape(-1, 3), rings[:1].mean(1), rings[-1:].mean(1)))
    i = np.arange(size)
    j = (i + 1) % size
    row = size * np.arange(count - 1)[:, None]
    a, b, c, d = row + i, row + j, row + size + i, row + size + j  # (R - 1, S) corners of the quads
    last = size * (count - 1)
    faces = np.concatenate([np.stack(triangle, -1).reshape(-1, 3) for triangle in (
        (a, b, d), (a, d, c), (j, i, np.full(size, size * count)), (last + i, last + j, np.full(size, size * count + 1)))])
    x, y, z = vertices[faces].transpose(1, 0, 2)
    return (vertices, faces) if np.sum(x * np.cross(y, z)) > 0 else (vertices, faces[:, ::-1])


def section(power, segments):
    """Superellipse of radius 1: power 2 a circle, 8 nearly a square; (S, 2)."""
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    circle = np.stack((np.cos(angle), np.sin(angle)), -1)
    return circle / (np.abs(circle) ** power).sum(-1, keepdims=True) ** (1 / power)


def dense(points, step):
    """A polyline (P, d) with points inserted, so that no piece is longer than `step`: bends need them."""
    points = np.asarray(points, dtype=float)
    pieces = np.maximum(1, np.ceil(np.linalg.norm(np.diff(points, axis=0), axis=1) / step)).astype(int)
    at = np.concatenate([i + np.arange(n) / n for i, n in enumerate(pieces)] + [[len(pieces)]])
    return np.stack([np.interp(at, np.arange(len(points)), column) for column in points.T], -1)


def spline(points, pieces=5):
    """Catmull-Rom curve through points (P, d), `pieces` per interval."""
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


def hollow(outer, wall):
    """Profile of a vessel with this outside (P, 2), from foot to rim, and this wall thickness."""
    inner = np.stack((np.maximum(outer[:, 0] - wall, 2e-3), np.maximum(outer[:, 1], wall)), -1)
    return np.concatenate(([[0, 0]], outer, inner[::-1], [[0, wall]]))


def block(x, y, z, power=8.0, bevel=0.15, center=(0, 0, 0), step=0.012):
    """A box with rounded edges, a disc or a pill: sides x, y, z (m); bevel as a share of the shortest."""
    b = bevel * min(x, y, z)
    s = 1 - 2 * b / min(x, y)
    profile = [(0, -z / 2), (s / 2, -z / 2), (0.5, b - z / 2), (0.5, z / 2 - b), (s / 2, z / 2), (0, z / 2)]
    profile = np.asarray(profile) * (max(x, y), 1)
    vertices, faces = lathe(profile, power, step)
    return vertices / max(x, y) * (x, y, max(x, y)) + center, faces


def tube(path, radius, side=(0, 1, 0), power=2.0, segments=14):
    """Sweep a section along path (P, 3) that lies in the plane with normal `side`.

    radius: scalar, (P,) or (P, 2) in and across that plane, m.
    """
    path = np.asarray(path, dtype=float)
    radius = np.broadcast_to(np.asarray(radius, dtype=float).reshape(-1, 1) if np.ndim(radius) < 2 else radius, (len(path), 2))
    tangent = np.gradient(path, axis=0)
    across = np.broadcast_to(np.asarray(side, dtype=float), path.shape)
    normal = np.cross(across, tangent)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    s = section(power, segments)
    offset = radius[:, None, :1] * s[:, :1] * normal[:, None] + radius[:, None, 1:] * s[:, 1:] * across[:, None]
    return skin(path[:, None] + offset)


def rod(start, end, radius, step=0.012, **options):
    """A straight tube from start to end (3,); radius at both ends: scalar or pair."""
    path = dense([start, end], step)
    first, last = np.broadcast_to(radius, 2)
    direction = np.subtract(end, start)
    side = np.eye(3)[np.argmin(np.abs(direction))]
    side = side - direction * (side @ direction) / (direction @ direction)
    return tube(path, np.linspace(first, last, len(path)), side / np.linalg.norm(side), **options)


def ball(center, radius, squash=1.0):
    """A sphere (squash 1) or spheroid about z."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 13)
    vertices, faces = lathe(np.stack((radius * np.cos(angle), radius * squash * np.sin(angle)), -1), step=1, segments=24)
    return vertices + center, faces


def arch(x, low, high, reach, thickness, rng, angle=0.0):
    """A handle: a tube from (x, 0, low) out by `reach` and back to (x, 0, high), turned about z by `angle`."""
    u = rng.uniform
    top, bottom = reach * u(0.6, 1.1), reach * u(0.5, 1.1)
    middle = (low + high) / 2 + u(-0.15, 0.15) * (high - low)
    points = [(x, 0, low), (x + bottom, 0, low + u(-0.2, 0.15) * (high - low)), (x + max(top, bottom) * 1.1, 0, middle),
              (x + top, 0, high + u(-0.15, 0.2) * (high - low)), (x, 0, high)]
    path = spline(points) if u() < 0.7 else dense(points, 0.012)
    vertices, faces = tube(path, np.array([[1.0, u(0.8, 2.0)]]) * thickness, power=u(2, 5))
    return vertices @ Rotation.from_euler("z", -angle).as_matrix(), faces


# ---------------------------------------------------------------- categories: rng -> list of parts, z up, m


def squareness(rng, chance=0.4):
    """Power of a section: round, or with this chance something up to nearly square."""
    return rng.uniform(2.5, 8) if rng.random() < chance else 2.0


def mug(rng):
    u = rng.uniform
    r, h, wall = u(0.03, 0.05), u(0.06, 0.13), u(0.003, 0.006)
    outer = spline([(r * u(0.7, 1.05), 0), (r * u(0.9, 1.2), h * u(0.25, 0.6)), (r * u(0.85, 1.15), h)])
    parts = [lathe(hollow(outer, wall), squareness(rng, 0.25))]
    for side in range(rng.choice(3, p=(0.12, 0.76, 0.12))):  # beaker, mug, two-handled cup
        low, high = h * u(0.12, 0.35), h * u(0.6, 0.9)
        x = np.interp([low, high], outer[:, 1], outer[:, 0]).min() - wall / 2
        parts.append(arch(x, low, high, u(0.018, 0.04), u(0.003, 0.007), rng, side * np.pi))
    return parts


def bottle(rng):
    u = rng.uniform
    r, h = u(0.02, 0.045), u(0.14, 0.24)
    neck, shoulder, waist = r * u(0.25, 0.6), h * u(0.5, 0.78), r * u(0.75, 1.05)
    body = spline([(r * u(0.85, 1.0), 0), (waist, shoulder * u(0.35, 0.65)), (r, shoulder), (neck, h * u(0.82, 0.9)), (neck, h * 0.93)])
    parts = [lathe(np.concatenate(([[0, 0]], body, [[0, h * 0.93]])), squareness(rng))]
    cap = neck * u(1.0, 1.5)
    parts.append(block(2 * cap, 2 * cap, h * u(0.08, 0.16), 2, 0.1, (0, 0, h * 0.95)))
    if u() < 0.2:  # spray head or pump
        parts.append(rod((0, 0, h), (u(0.025, 0.05), 0, h + u(-0.01, 0.01)), (u(0.006, 0.011), 0.005)))
    if u() < 0.2:
        parts.append(arch(waist * 0.9, shoulder * u(0.25, 0.45), shoulder * u(0.75, 0.95), u(0.02, 0.035), u(0.004, 0.008), rng))
    return parts


def bowl(rng):
    u = rng.uniform
    r, h, wall = u(0.045, 0.075), u(0.025, 0.08), u(0.003, 0.007)
    outer = spline([(r * u(0.35, 0.75), 0), (r * u(0.75, 0.98), h * u(0.3, 0.6)), (r, h)])
    if u() < 0.3:  # a flat rim
        outer = np.concatenate((outer, [[r * u(1.08, 1.25), h * u(1.0, 1.1)]]))
    parts = [lathe(hollow(outer, wall), squareness(rng, 0.3))]
    if u() < 0.3:  # one or two lugs
        reach, thickness, height = u(0.015, 0.04), u(0.004, 0.007), h * u(0.7, 0.9)
        for sign in (1, -1)[: rng.integers(1, 3)]:
            parts.append(block(reach * 2, u(0.02, 0.05), 2 * thickness, 4, 0.3, (sign * r, 0, height)))
    return parts


def can(rng):
    u = rng.uniform
    r, h, groove = u(0.025, 0.05), u(0.05, 0.15), u(0.86, 1.0)
    end = r * u(0.75, 1.05)
    profile = [(0, 0), (end * 0.95, 0), (r, h * u(0.03, 0.12)), (r * groove, h * u(0.4, 0.5)), (r * groove, h * u(0.52, 0.6)), (r, h * u(0.86, 0.96)), (end, h)]
    parts = [lathe(np.array(profile + [(end * 0.9, h), (end * 0.88, h * 0.97), (0, h * 0.97)]), squareness(rng, 0.35))]
    if u() < 0.3:
        parts.append(block(2.1 * r, 2.1 * r, h * u(0.08, 0.25), 2, 0.1, (0, 0, h)))
    return parts


def jar(rng):
    u = rng.uniform
    r, h = u(0.03, 0.06), u(0.06, 0.15)
    mouth = r * u(0.55, 0.95)
    body = spline([(r * u(0.6, 1.0), 0), (r * u(0.9, 1.1), h * u(0.3, 0.6)), (r * u(0.8, 1.0), h * u(0.72, 0.82)), (mouth, h * 0.9), (mouth, h)])
    parts = [lathe(np.concatenate(([[0, 0]], body, [[0, h]])), squareness(rng))]
    lid = mouth * u(0.95, 1.3)
    if u() < 0.85:
        parts.append(block(2 * lid, 2 * lid, h * u(0.1, 0.25), squareness(rng, 0.2), u(0.05, 0.45), (0, 0, h)))
    if u() < 0.4:
        parts.append(ball((0, 0, h * 1.15), r * u(0.15, 0.35), u(0.6, 1.2)))
    if u() < 0.25:
        for side in range(2):
            parts.append(arch(r * 0.75, h * 0.4, h * 0.75, u(0.012, 0.03), u(0.003, 0.007), rng, side * np.pi))
    return parts


def cellphone(rng):
    u = rng.uniform
    x, y, z = u(0.045, 0.085), u(0.1, 0.17), u(0.008, 0.024)
    power, bevel = u(4, 10), u(0.1, 0.45)
    if u() < 0.3:  # a folding one, half open
        angle, half = u(0.3, 2.0), y * 0.6
        parts = [block(x, half, z * 0.7, power, bevel, (0, -half / 2, 0))]
        vertices, faces = block(x, half, z * 0.6, power, bevel, (0, half / 2, 0))
        parts.append((Rotation.from_euler("x", angle).apply(vertices), faces))
        parts.append(rod((-x / 2, 0, 0), (x / 2, 0, 0), z * u(0.35, 0.6)))
        return parts
    parts = [block(x, y, z, power, bevel)]
    if u() < 0.6:  # camera bump
        parts.append(block(x * u(0.25, 0.8), y * u(0.12, 0.25), z * 0.5, u(2, 8), 0.2, (x * u(-0.15, 0.15), y * u(0.25, 0.35), z / 2)))
    if u() < 0.25:
        parts.append(rod((x * 0.35, y * 0.45, 0), (x * 0.35, y * u(0.6, 0.8), 0), u(0.003, 0.006)))
    return parts


def remote(rng):
    u = rng.uniform
    x, y, z = u(0.03, 0.06), u(0.12, 0.22), u(0.012, 0.034)
    path = dense([(0, -y / 2, 0), (0, y / 2, 0)], 0.012)
    t = np.linspace(-1, 1, len(path))
    ends = np.clip(8 * (1 - np.abs(t)) + u(0.5, 0.9), 0, 1)[:, None]  # rounded ends
    widths = np.stack((z / 2 * (1 + u(-0.3, 0.3) * t + u(-0.3, 0.3) * (t**2 - 0.3)), x / 2 * (1 + u(-0.3, 0.3) * t + u(-0.4, 0.4) * (t**2 - 0.3))), -1)
    path[:, 2] += u(-0.008, 0.012) * t**2
    parts = [tube(path, widths * ends, (1, 0, 0), u(2.5, 8), 24)]
    for y_button in np.linspace(-0.3, 0.3, rng.integers(0, 4)):
        size = x * u(0.25, 0.5)
        parts.append(block(size, size * u(0.4, 1.2), 0.008, u(2, 6), 0.2, (0, y * y_button, z / 2)))
    return parts


def knife(rng):
    u = rng.uniform
    grip, blade, r = u(0.08, 0.13), u(0.06, 0.15), u(0.008, 0.016)
    path = dense([(0, -grip, 0), (0, 0, 0)], 0.012)
    t = np.linspace(0, 1, len(path))
    swell = 1 + u(-0.25, 0.4) * np.sin(np.pi * t) + u(-0.3, 0.3) * t
    path[:, 2] += u(-0.012, 0.006) * t * (1 - t) * 4
    parts = [tube(path, np.stack((r * swell, r * u(0.5, 0.95) * swell), -1), (1, 0, 0), u(2, 6))]
    edge = dense([(0, -0.01, 0), (0, blade, 0)], 0.012)
    s = np.linspace(0, 1, len(edge))
    height = r * u(0.7, 1.8) * (1 - s ** u(1.5, 6) * u(0.6, 0.95))
    edge[:, 2] += u(-0.3, 0.8) * (height[0] - height)
    parts.append(tube(edge, np.stack((height, np.full(len(s), u(0.001, 0.0025))), -1), (1, 0, 0), 2.5))
    if u() < 0.4:  # guard
        parts.append(block(r * u(1.5, 3), 0.008, r * u(2.2, 4), u(2, 8), 0.2))
    return parts


def camera(rng):
    u = rng.uniform
    x, y, z = u(0.07, 0.14), u(0.028, 0.06), u(0.05, 0.095)
    parts = [block(x, y, z, u(4, 10), u(0.1, 0.45))]
    r, length, at = z * u(0.25, 0.5), u(0.01, 0.07), x * u(-0.15, 0.15)
    parts.append(rod((at, y / 2 - 0.005, 0), (at, y / 2 + length, 0), (r, r * u(0.7, 1.15)), segments=24))
    if u() < 0.6:  # view finder
        parts.append(block(x * u(0.2, 0.45), y * u(0.5, 0.95), z * u(0.3, 0.7), u(3, 8), 0.25, (x * u(-0.25, 0.25), 0, z / 2)))
    if u() < 0.6:  # grip
        parts.append(block(x * u(0.14, 0.25), y * u(0.6, 1.1), z * u(0.7, 1.0), u(2, 5), 0.4, (-x * 0.42, y * 0.45, 0)))
    if u() < 0.4:
        parts.append(rod((x * 0.33, 0, z / 2), (x * 0.33, 0, z / 2 + u(0.004, 0.012)), u(0.006, 0.012)))
    return parts


def lamp(rng):
    u = rng.uniform
    h, base, stem = u(0.14, 0.24), u(0.025, 0.055), u(0.004, 0.012)
    parts = [lathe(spline([(0, 0), (base, 0.002), (base * u(0.6, 1.0), u(0.008, 0.03)), (stem, u(0.03, 0.045))]), squareness(rng, 0.3))]
    sway, head = (0, u(-0.3, 0.3), u(0.1, 0.45))[rng.integers(3)] * h, h * u(0.55, 0.75)
    path = spline([(0, 0, 0.005), (sway * u(-0.4, 0.3), 0, head * 0.5), (sway, 0, head)])
    parts.append(tube(path, stem * (1 + u(0, 1.2) * np.sin(np.linspace(0, np.pi * rng.integers(1, 4), len(path))) ** 2)))
    wide, narrow, length = u(0.03, 0.065), u(0.01, 0.04), h * u(0.2, 0.45)
    if u() < 0.25:  # a globe
        vertices, faces = ball((0, 0, 0.3 * length), wide * 0.8, u(0.7, 1.2))
    else:
        profile = spline([(wide, 0), ((wide + narrow) * u(0.4, 0.6), length / 2), (narrow, length)])
        vertices, faces = lathe(np.concatenate(([[0, 0.004]], profile, [[0, length]])), squareness(rng, 0.3))
    tilt = Rotation.from_euler("y", u(-1, 1) * (0.9 if sway else 0.2))
    return parts + [(tilt.apply(vertices - (0, 0, length * 0.3)) + (sway, 0, head + length * 0.2), faces)]


def microphone(rng):
    u = rng.uniform
    h, r, head = u(0.1, 0.19), u(0.009, 0.018), u(0.016, 0.034)
    grip = spline([(r * u(0.6, 1.0), 0), (r * u(0.8, 1.3), h * u(0.3, 0.7)), (r * u(1.0, 1.6), h)])
    parts = [lathe(np.concatenate(([[0, 0]], grip, [[0, h]])), squareness(rng, 0.25))]
    top = h + head * u(0.5, 0.9)
    parts.append(ball((0, 0, top), head, u(0.7, 1.6)) if u() < 0.75 else block(2 * head, u(1, 2) * head, u(2, 4) * head, u(2, 6), 0.3, (0, 0, top)))
    if u() < 0.4:  # ring between grip and head
        parts.append(block(2.1 * head, 2.1 * head, head * 0.3, 2, 0.3, (0, 0, top)))
    if u() < 0.3:  # table stand
        foot = u(0.03, 0.055)
        parts.append(block(2 * foot, 2 * foot * u(0.7, 1), u(0.008, 0.02), squareness(rng), 0.3))
    return parts


def hammer(rng):
    u = rng.uniform
    length, r = u(0.14, 0.22), u(0.008, 0.016)
    path = dense([(0, -length, 0), (0, 0, 0)], 0.012)
    t = np.linspace(0, 1, len(path))
    parts = [tube(path, np.stack((r * (1 - u(0, 0.5) * t), r * u(0.6, 1) * (1 - u(0, 0.5) * t)), -1), (1, 0, 0), u(2, 6))]
    size, span = u(0.012, 0.026), u(0.03, 0.06)
    face = size * u(0.9, 1.5)
    parts.append(rod((0, 0, -span * 0.2), (0, 0, span), (size, face), power=u(2, 8)))
    if u() < 0.65:  # claw or peen, bent back
        back = spline([(0, 0, 0), (0, u(-0.005, 0.005), -span * 0.6), (0, -u(0.0, 0.03), -span * 1.1)])
        widths = np.stack((np.linspace(size, size * u(0.15, 0.5), len(back)), np.linspace(size, size * u(0.6, 1.2), len(back))), -1)
        parts.append(tube(back, widths, (1, 0, 0), u(2, 5)))
    else:  # mallet
        parts.append(rod((0, 0, 0), (0, 0, -span), (size, face), power=u(2, 8)))
    return parts


def pistol(rng):
    u = rng.uniform
    length, height, width = u(0.11, 0.19), u(0.022, 0.04), u(0.016, 0.034)
    parts = [block(length, width, height, u(4, 9), 0.2, (length * 0.25, 0, 0))]
    grip, lean = u(0.06, 0.1), u(0.05, 0.45)
    foot = (-grip * lean, 0, -grip)
    path = dense([(0, 0, -height * 0.2), foot], 0.012)
    parts.append(tube(path, np.array([[u(0.014, 0.024), width * u(0.4, 0.6)]]), power=u(2.5, 6)))
    x = u(0.015, 0.03)
    if u() < 0.85:  # trigger guard
        points = [(x, 0, -height * 0.4), (x + u(0.02, 0.04), 0, -height * 0.6), (x + u(0.01, 0.03), 0, -height - 0.015), (x - 0.02, 0, -height - 0.01)]
        parts.append(tube(spline(points), u(0.0025, 0.005)))
    if u() < 0.5:  # round barrel in front
        front = length * 0.74
        parts.append(rod((front - 0.01, 0, height * u(-0.1, 0.2)), (front + u(0.01, 0.06), 0, height * 0.05), u(0.006, 0.014)))
    return parts


def cap(rng):
    u = rng.uniform
    r, h, wall = u(0.05, 0.07), u(0.045, 0.085), u(0.003, 0.005)
    outer = spline([(r, 0), (r * u(0.9, 1.05), h * u(0.35, 0.6)), (r * u(0.45, 0.7), h * u(0.85, 0.95)), (0.004, h)])
    vertices, faces = lathe(np.concatenate((outer, np.maximum(outer[::-1] - (wall, wall), (1e-3, 0)))))
    parts = [(vertices * (1, u(0.8, 1), 1), faces)]
    reach, droop = u(0.03, 0.07), u(0, 0.02)
    vertices, faces = block(2 * (r * 0.5 + reach), 2 * r * u(0.6, 0.9), u(0.005, 0.008), u(2, 4), 0.3)
    vertices[:, 2] -= droop * (vertices[:, 1] / r) ** 2
    parts.append((vertices + (r * 0.6, 0, 0.003), faces))
    if u() < 0.4:
        parts.append(ball((0, 0, h), u(0.005, 0.012)))
    return parts


# synset -> (maker, shortest and longest length in m, weight in `full`)
CATEGORIES = {
    "03797390": (mug, 0.075, 0.14, 280), "02876657": (bottle, 0.12, 0.25, 250), "02880940": (bowl, 0.09, 0.17, 150),
    "02946921": (can, 0.06, 0.15, 90), "03593526": (jar, 0.07, 0.17, 200), "02992529": (cellphone, 0.1, 0.17, 110),
    "04074963": (remote, 0.12, 0.22, 60), "03624134": (knife, 0.14, 0.25, 80), "02942699": (camera, 0.08, 0.16, 60),
    "03636649": (lamp, 0.14, 0.25, 70), "03759954": (microphone, 0.12, 0.24, 30), "03481172": (hammer, 0.15, 0.25, 50),
    "03948459": (pistol, 0.12, 0.22, 40), "02954340": (cap, 0.12, 0.2, 30)}
HELD_OUT_SYNSETS = {"03948459": "pistol", "02954340": "cap"}
TRAIN_SYNSETS = {s: entry[0].__name__ for s, entry in CATEGORIES.items() if s not in HELD_OUT_SYNSETS}
LENGTHS, MAX_MIDDLE = (0.05, 0.25), 0.15  # m: longest and middle side that the hand can work on


def procedural_mesh(synset, rng):
    """One random object of a category, upright, z up, on z = 0: vertices (V, 3) float64 m, faces (F, 3) int64.

    Closed parts, concatenated (they overlap; no boolean operations), then bent out of the category's ordinary shape.
    """
    maker, shortest, longest, _ = CATEGORIES[synset]
    parts = maker(rng)
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    faces = np.concatenate([faces + start for (_, faces), start in zip(parts, starts)])
    vertices = deform(np.concatenate([vertices for vertices, _ in parts]), rng)
    return fit(vertices, rng.uniform(shortest, longest)), faces.astype(np.int64)


def deform(vertices, rng):
    """Unequal axis scales, then taper, bulge, twist and bend along an axis (mostly the longest): variety within a category."""
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
    out = vertices.copy()
    out[:, i], out[:, j] = a + bend[0] * t**2, b + bend[1] * t**2
    return out


def fit(vertices, length):
    """Scale to this longest side (m), less where the middle side would not fit the hand; put on z = 0, centred on the z axis."""
    sides = np.sort(np.ptp(vertices, axis=0))
    length = np.clip(length, *LENGTHS)
    return settle(vertices * min(length / sides[2], MAX_MIDDLE / sides[1]))


def settle(vertices):
    """Move onto the table plane z = 0, bounding box centred on the z axis."""
    low, high = vertices.min(0), vertices.max(0)
    return vertices - ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2])


RESTS = ((0, 0), (np.pi / 2, 0), (-np.pi / 2, 0), (0, np.pi / 2), (0, -np.pi / 2), (np.pi, 0))  # turns about x, y
REST_CHANCES = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
YAW = np.radians(30)


def pose_scene(vertices, rng, resize=True):
    """A scene of an object: its own resting pose, yaw and (where it may be resized) scale, standing on z = 0."""
    about_x, about_y = RESTS[rng.choice(len(RESTS), p=REST_CHANCES)]
    turned = Rotation.from_euler("xyz", (about_x, about_y, rng.uniform(-YAW, YAW))).apply(vertices)
    return fit(turned, np.ptp(vertices, axis=0).max() * rng.uniform(0.85, 1.15)) if resize else settle(turned)


def pretraining_cloud(seed, index, num_points, up="z", synsets=None):
    """Cloud (num_points, 3) float32, m, of shape `index` of the pretraining pool, which no dataset shares.

    up: the axis that points up ("z", or "y" as Point-JEPA has it). synsets: default the 12 training categories.
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
        low, last = self.low.astype(np.float32), self.last
        at = [np.clip((points[..., k].ravel() - low[k]) * np.float32(1 / CELL), 0, last[k]) for k in range(3)]
        whole = [a.astype(np.int32) for a in at]
        x, y, z = (a - w for a, w in zip(at, whole))
        step = self.strides
        corner = whole[0] * step[0] + whole[1] * step[1] + whole[2]
        value = [self.values[corner + (i * step[0] + j * step[1] + k)] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        value = [a + x * (b - a) for a, b in zip(value[:4], value[4:])]
        value = [a + y * (b - a) for a, b in zip(value[:2], value[2:])]
        return (value[0] + z * (value[1] - value[0])).reshape(points.shape[:-1])

    def direction(self, points):
        """Unit vectors (m, 3) from points (m, 3) towards the surface."""
        step = np.float32(0.5 * CELL) * np.concatenate((np.eye(3), -np.eye(3))).astype(np.float32)
        values = self(points[:, None] + step)
        slope = values[:, 3:] - values[:, :3]
        return slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)


def surface_normals(vertices, faces, count, rng):
    """Area-weighted samples and their face normals, of whatever sign the winding gives: (count, 3) twice, float32."""
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
# degrees [flexion, abduction, distal] of thumb, first, middle, ring at the start, and closing speeds (flexion, distal)
START = np.radians([
    [-15, 22, 5, -15, 0, 5, -15, 0, 5, -15, 0, 5],
    [-15, -10, 10, -15, 6, 10, -15, 4, 10, 70, 0, 95],
    [-15, -8, 50, -15, -27, 50, -15, 0, 50, -15, 27, 50]]).astype(np.float32)
SPEED = np.array([[1, 1], [1, 0], [1, 0.1]], dtype=np.float32)
NOISE = np.radians(3)
SECOND_MODE = 0.12  # chance that a pose also tries its second-best pre-shape; more would drown shape in noise
WORK_BOX = np.array([[-65, 65], [10, 180], [10, 150]]) * hand.SCALE  # m, hand frame: what a pre-shape can reach
REASONS = ("outside", "palm", "start", "contacts", "table", "fingers", "depth")  # why a candidate is not recorded


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
    low, high = np.array([[-12, 70, 23], [12, 135, 23]]) * hand.SCALE
    center = rng.uniform(low, high, (count, 3))
    center[:, 2] += rng.uniform(0.002, 0.075, count)
    return rotation.astype(np.float32), (point - np.einsum("nij,nj->ni", rotation, center)).astype(np.float32)


PALM_RADII = hand.PALM_RADII.astype(np.float32)
TABLE = -0.06  # m: objects stand on a thin post over the table, else the hand could not reach under a low one


def free_poses(rotation, position, field):
    """Masks (n,): the palm stands above the table and comes from above or a side; it is not inside the object."""
    palm = np.einsum("nij,pj->pni", rotation, hand.PALM_CENTERS.astype(np.float32)) + position  # (27, n, 3)
    outside = ((palm[..., 2] - PALM_RADII[:, None]).min(0) > TABLE) & (rotation[:, 2, 2] < 0.3)
    free = outside.copy()
    free[outside] = (field(palm[:, outside]) - PALM_RADII[:, None]).min(0) > -0.001
    return outside, free


def choose_modes(rng, rotation, position, points):
    """Pre-shapes by the geometry in reach: indices into the poses and modes, some poses twice.

    The spread of the surface points inside the work box along the hand's axes decides: long across the
    palm suggests a power grasp, thin between thumb and fingers a pinch, large and even a spherical one.
    """
    local = [points @ rotation[:, :, k].T - np.einsum("ni,ni->n", position, rotation[:, :, k]) for k in range(3)]  # (m, n)
    inside = np.ones(local[0].shape, dtype=bool)
    for values, (low, high) in zip(local, WORK_BOX.astype(np.float32)):
        inside &= np.abs(values - (low + high) / 2) < (high - low) / 2
    count = np.maximum(inside.sum(0), 1)
    means = [np.einsum("mn,mn->n", values, inside) / count for values in local]
    variances = [np.einsum("mn,mn,mn->n", values, values, inside) / count - mean**2 for values, mean in zip(local, means)]
    x, y, z = np.log((np.sqrt(np.maximum(variances, 0)) + 0.002) / 0.025)
    affinity = np.stack((1.2 * x - 0.6 * y - 0.15, -1.6 * y - 0.10, 0.8 * (y + z) - 1.5 * np.abs(x - y) + 0.20), -1)
    order = np.argsort(-affinity, axis=1)
    tried = np.stack((np.ones(len(order), dtype=bool), rng.random(len(order)) < SECOND_MODE), 1)
    pose, rank = np.nonzero(tried)  # the alternatives of a pose stay neighbours
    return pose, order[pose, rank]


# ---------------------------------------------------------------- closing the fingers

# How fast the 8 spheres can move per radian of flexion and of the distal joint, at most (m)
LEVERS = np.stack((hand.SPHERE_REACH.sum(1), [0, 0, 0, 0, *(hand.SPHERE_REACH[4:, 1:] @ [1, 1 + hand.COUPLING])])).astype(np.float32)
RADII = hand.SPHERE_RADII.astype(np.float32)
TOUCH, CONTACT = 0.0005, 0.002  # m: a finger stops, a link counts as touching
MIN_STEP, MAX_STEP = np.radians([0.15, 12]).astype(np.float32)
UPPER = hand.LIMITS[:3, 1].astype(np.float32)  # flexion and distal are the same for all fingers


def finger_bases(rotation, position):
    """Wrist frames (n, 3, 3), (n, 3) -> bases of the four fingers in the object's frame (n, 4, 3, 3), (n, 4, 3)."""
    bases = hand.BASES.astype(np.float32)
    return rotation[:, None] @ bases[:, :3, :3], np.einsum("nij,fj->nfi", rotation, bases[:, :3, 3]) + position[:, None]


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
    q, (bases, origins) = joints.reshape(n, 4, 3).copy(), finger_bases(rotation, position)
    start = hand.finger_points(q.reshape(-1, 3), bases.reshape(-1, 3, 3), origins.reshape(-1, 3))
    free = (field(start) - RADII[:, None]).min(0).reshape(n, 4).min(1) > -0.001
    touching, gaps = free.copy(), np.full((n, 4, 8), REACH, dtype=np.float32)
    for fingers in (slice(0, 1), slice(1, 4)):
        rows, count = np.flatnonzero(touching), fingers.stop - fingers.start
        closed, gap = close_fingers(q[rows, fingers].reshape(-1, 3), bases[rows, fingers].reshape(-1, 3, 3),
                                    origins[rows, fingers].reshape(-1, 3), np.repeat(mode[rows], count), field)
        q[rows, fingers], gaps[rows, fingers] = closed.reshape(-1, count, 3), gap.T.reshape(-1, count, 8)
        touching[rows] = gaps[rows, 0].min(1) < CONTACT
    return q.reshape(n, 12), gaps, free, touching


def pre_shapes(rng, mode):
    """Noisy start joints (n, 12) of these modes, inside the limits."""
    joints = START[mode] + rng.normal(0, NOISE, (len(mode), 12))
    return np.clip(joints, hand.LIMITS[:, 0], hand.LIMITS[:, 1]).astype(np.float32)


def fingers_collide(centers):
    """Are two fingers more than 4 mm into each other? centers (n, 4, 8, 3) -> (n,)."""
    clash = np.zeros(len(centers), dtype=bool)
    for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (1, 3)):
        apart = np.linalg.norm(centers[:, i, :, None] - centers[:, j, None], axis=-1)
        clash |= (apart - RADII[:, None] - RADII).min((1, 2)) < -0.004
    return clash


def links_touching(gaps):
    """gaps (n, 4, 8) m -> which of each finger's three links touch the object (n, 4, 3)."""
    touch = gaps < CONTACT
    return np.stack((touch[..., :4].any(-1), touch[..., 4:6].any(-1), touch[..., 6:].any(-1)), -1)


def link_contacts(centers, gaps, field):
    """Contact points, inward normals (n, 12, 3) and mask (n, 12): the closest sphere of each link, object's frame."""
    best = np.stack((gaps[..., :4].argmin(-1), 4 + gaps[..., 4:6].argmin(-1), 6 + gaps[..., 6:].argmin(-1)), -1)  # (n, 4, 3)
    gap = np.take_along_axis(gaps, best, -1).reshape(-1, 12)
    center = np.take_along_axis(centers, best[..., None], 2).reshape(-1, 12, 3)
    mask = gap < CONTACT
    normal = np.zeros_like(center)
    normal[mask] = field.direction(center[mask])
    distance = (gap + RADII[best].reshape(-1, 12))[..., None]
    return center + distance * normal, normal, mask


# ---------------------------------------------------------------- score

FRICTION, TORQUE_LENGTH = 0.8, 0.06  # Coulomb coefficient; m that make a torque comparable with a force
SCORE_PER_EPSILON = 1.5 / 0.035
_directions = np.random.default_rng(0).standard_normal((256, 6))
DIRECTIONS = (_directions / np.linalg.norm(_directions, axis=1, keepdims=True)).astype(np.float32)


def contact_wrenches(points, normals, origin):
    """Generators (n, c, 3, 6) of the friction cones: wrench of the unit normal force and of two tangential forces x FRICTION."""
    helper = np.eye(3, dtype=np.float32)[np.abs(normals).argmin(-1)]
    first = np.cross(normals, helper)
    first /= np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-9)
    forces = np.stack((normals, FRICTION * first, FRICTION * np.cross(normals, first)), 2)  # (n, c, 3, 3)
    arms = ((points - origin) / TORQUE_LENGTH)[:, :, None]
    return np.concatenate((forces, np.cross(arms, forces)), -1).astype(np.float32)


def support(wrenches, mask, u):
    """How far each contact's cone reaches along u: (n, c, 3, 6), (n, c), (n, s, 6) -> (n, s, c), and its parts (n, s, c, 3)."""
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
    best = np.full(len(u), np.inf, dtype=np.float32)
    for sharp, step in zip(np.geomspace(5, 200, rounds, dtype=np.float32), np.geomspace(0.8, 0.01, rounds, dtype=np.float32)):
        reach, parts = support(wrenches, mask, u)
        best = np.minimum(best, reach.max(-1).min(-1))
        weight = np.exp(sharp * (reach - reach.max(-1, keepdims=True)))
        weight /= weight.sum(-1, keepdims=True)
        slide = np.sqrt(parts[..., 1] ** 2 + parts[..., 2] ** 2 + np.float32(1e-9))
        parts[..., 0], parts[..., 1:] = 1, parts[..., 1:] / slide[..., None]
        slope = (parts * weight[..., None]).reshape(*u.shape[:2], 3 * mask.shape[1]) @ wrenches.reshape(len(u), 3 * mask.shape[1], 6)
        slope -= (slope * u).sum(-1, keepdims=True) * u
        u = u - step * slope / np.maximum(np.linalg.norm(slope, axis=-1, keepdims=True), np.float32(1e-3))
        u /= np.linalg.norm(u, axis=-1, keepdims=True)
    return best


# ---------------------------------------------------------------- one scene

MIN_SCORE, BATCH, MAX_BATCHES = 1.5, 1500, 12
MAX_DEPTH = 0.0015  # m, by the grid's distance: what a finger's last step may press in


def synthesize(vertices, faces, wanted, rng):
    """Grasps for one scene: (n, 19) float32, scores (n,) float32, counts by reason.

    Batches of candidates until `wanted` grasps score at least MIN_SCORE or the batches run out; of the
    last batch only the first ones are kept.
    """
    points, normals = surface_normals(vertices, faces, SURFACE_SAMPLES, rng)
    field = DistanceField(points)
    origin, few = points.mean(0), points[:400]
    counts, grasps, scores, kept = collections.Counter(), [], [], 0
    for _ in range(MAX_BATCHES):
        batch_grasps, batch_scores = candidates(rng, points, normals, few, origin, field, counts)
        kept_so_far = kept + np.cumsum(batch_scores >= MIN_SCORE)
        end = len(batch_scores) if not len(kept_so_far) or kept_so_far[-1] <= wanted else np.argmax(kept_so_far > wanted)
        grasps.append(batch_grasps[:end])
        scores.append(batch_scores[:end])
        kept = kept + int((batch_scores[:end] >= MIN_SCORE).sum())
        if kept >= wanted:
            break
    counts["kept"], counts["low"] = kept, sum(map(len, scores)) - kept
    return np.concatenate(grasps), np.concatenate(scores), counts


def candidates(rng, points, normals, few, origin, field, counts):
    """One batch: poses -> pre-shapes -> closed hands -> checks -> scored grasps (m, 19), (m,)."""
    rotation, position = sample_poses(rng, points, normals, field, BATCH)
    outside, free = free_poses(rotation, position, field)
    counts["outside"] += BATCH - int(outside.sum())
    counts["palm"] += int((outside & ~free).sum())
    pick, mode = choose_modes(rng, rotation[free], position[free], few)
    rotation, position = rotation[free][pick], position[free][pick]
    joints, gaps, free, touching = close_hands(rotation, position, pre_shapes(rng, mode), mode, field)
    links = links_touching(gaps)
    grasping = touching & links[:, 1:].any((1, 2)) & (links.sum((1, 2)) >= 3)
    counts["start"] += int((~free).sum())
    counts["contacts"] += int((free & ~grasping).sum())
    rotation, position, joints, gaps = rotation[grasping], position[grasping], joints[grasping], gaps[grasping]
    local = hand.finger_spheres(joints)[0].astype(np.float32)  # (n, 4, 8, 3)
    centers = (local.reshape(-1, 32, 3) @ rotation.transpose(0, 2, 1) + position[:, None]).reshape(local.shape)
    good = np.ones(len(joints), dtype=bool)
    for reason, bad in (("table", (centers[..., 2] - RADII).min((1, 2)) < TABLE), ("depth", gaps.min((1, 2)) < -MAX_DEPTH),
                        ("fingers", fingers_collide(local))):
        counts[reason] += int((good & bad).sum())
        good &= ~bad
    contacts, inward, mask = link_contacts(centers[good], gaps[good], field)
    scores = SCORE_PER_EPSILON * epsilon(contact_wrenches(contacts, inward, origin), mask)
    matrix = np.tile(np.eye(4), (len(scores), 1, 1))
    matrix[:, :3, :3], matrix[:, :3, 3] = rotation[good], position[good]
    return np.concatenate((hand.matrix_to_pose(matrix), joints[good]), 1).astype(np.float32), scores.astype(np.float32)


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
        parts = [re.sub(r"[^\w-]+", "_", part).strip("_") or "_" for part in path.relative_to(folder).with_suffix("").parts]
        key = (parts[0] if len(parts) > 1 else "unsorted", "_".join(parts[1:] or parts))
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
    sides = np.sort(np.ptp(vertices, axis=0))
    if rescale:
        return fit(vertices, sides[2]), faces
    if not LENGTHS[0] <= sides[2] <= LENGTHS[1]:
        raise UserError(f"longest side {sides[2]:.3g} m, usable is {LENGTHS[0]} to {LENGTHS[1]} m; --rescale mends it")
    if sides[1] > MAX_MIDDLE:
        raise UserError(f"middle side {sides[1]:.3g} m, usable is up to {MAX_MIDDLE} m; --rescale mends it")
    return settle(vertices), faces


def make_object(root, settings, synset, name, path):
    """Write all scenes of one object; returns what the log keeps of it."""
    rng = np.random.default_rng(stable_seed("dataset", settings["seed"], f"{synset}/{name}"))
    record = {"object": f"{synset}/{name}"}
    try:
        mesh = usable_mesh(path, settings["up"], settings["rescale"]) if path else None
    except UserError as error:
        return record | {"unusable": str(error)}
    counts = collections.Counter()
    for attempt in range(1 if path else REDRAWS):
        shape = mesh or procedural_mesh(synset, rng)
        scenes, totals = make_scenes(*shape, settings, rng, as_is=bool(path))
        counts.update(totals)
        if totals["kept"] >= settings["grasps"] / 6:
            break
        counts["redrawn"] += attempt + 1 < REDRAWS and not path
    counts["kept"], counts["low"] = totals["kept"], totals["low"]
    if not sum(len(grasps) for _, grasps, _ in scenes):
        return record | {"unusable": "the hand finds no grasp"}
    for k, (vertices, grasps, scores) in enumerate(scenes):
        if len(grasps):
            write_scene(Path(root) / synset / name / str(k), vertices, shape[1], grasps, scores)
    return record | {"counts": dict(counts)}


def make_scenes(vertices, faces, settings, rng, as_is):
    """[(vertices, grasps, scores)] of one object's scenes, and the counts over them. as_is: the first is the mesh itself."""
    scenes, counts = [], collections.Counter()
    for k in range(settings["scenes"]):
        posed = vertices if as_is and k == 0 else pose_scene(vertices, rng, resize=not as_is)
        posed = np.round(posed, 6)  # what the file will hold
        wanted = -(-(settings["grasps"] - counts["kept"]) // (settings["scenes"] - k))
        grasps, scores, scene_counts = synthesize(posed, faces, wanted, rng)
        scenes.append((posed, grasps, scores))
        counts.update(scene_counts)
    return scenes, counts


def write_scene(folder, vertices, faces, grasps, scores):
    """mesh.obj and recording.npz, atomically and with the same bytes every time."""
    with atomic(folder / "mesh.obj") as temporary:
        text = "v %.6f %.6f %.6f\n" * len(vertices) % tuple(vertices.ravel().tolist())
        temporary.write_text(text + "f %d %d %d\n" * len(faces) % tuple((faces + 1).ravel().tolist()))
    with atomic(folder / "recording.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, grasps=grasps, scores=scores, joint_names=np.array(hand.JOINT_NAMES))


# ---------------------------------------------------------------- a whole root

LOG = "progress.jsonl"  # first the settings, then a line per finished object; dataset.json replaces it in the end
DEFAULT_ROOTS = {"data/synthetic": "mini", "data/full": "full"}


def generate(root, settings, workers, quiet=False):
    """Make or resume a root; returns the content of its dataset.json, which is written last."""
    root = Path(root)
    if (root / "dataset.json").exists():
        content = checked_version(root, read_json(root / "dataset.json"))
        if content["settings"] != settings:
            raise UserError(f"{root}: holds a dataset with other settings ({changed(content['settings'], settings)}); name another --out")
        return content
    sources = mesh_objects(settings["meshes"]) if settings["meshes"] else dict.fromkeys(procedural_objects(settings))
    done = read_log(root, settings)
    todo = [(synset, name, str(path) if path else None) for (synset, name), path in sources.items() if f"{synset}/{name}" not in done]
    with open(root / LOG, "a") as log, single_threaded():
        executor = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
        try:
            tasks = [executor.submit(make_object, str(root), settings, *item) for item in todo]
            bar = tqdm(concurrent.futures.as_completed(tasks), total=len(sources), initial=len(done), unit="object",
                       desc=f"making {root}", disable=quiet or None)
            for task in bar:
                record = task.result()
                done[record["object"]] = record
                log.write(json.dumps(record) + "\n")
                log.flush()
        finally:
            executor.shutdown(cancel_futures=True)
    content = summary(settings, [done[f"{synset}/{name}"] for synset, name in sources])
    write_json(root / "dataset.json", content)
    (root / LOG).unlink()
    return content


def summary(settings, records):
    """What dataset.json holds: version, settings, counts by reason, and what could not be used."""
    made = [record for record in records if "counts" in record]
    totals = collections.Counter()
    for record in made:
        totals.update(record["counts"])
    return {
        "generator": "synthesize.py", "version": VERSION, "complete": True, "settings": settings, "objects": len(made),
        "grasps_kept": totals["kept"], "grasps_low": totals["low"], "objects_redrawn": totals["redrawn"],
        "candidates_rejected": {reason: totals[reason] for reason in REASONS},
        "unusable": {record["object"]: record["unusable"] for record in records if "unusable" in record}}


def read_log(root, settings):
    """{object: record} of an interrupted run with the same settings; starts the log where there is none."""
    path = root / LOG
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise UserError(f"{root}: is not empty and not a root of synthesize.py; name another --out")
        root.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": VERSION, "settings": settings}) + "\n")
        return {}
    lines = path.read_text().splitlines(keepends=True)
    head = checked_version(root, json.loads(lines[0])) if lines and lines[0].endswith("\n") else {"settings": settings}
    if head["settings"] != settings:
        raise UserError(f"{root}: was begun with other settings ({changed(head['settings'], settings)}); name another --out or remove it")
    whole = [line for line in lines if line.endswith("\n")]  # a killed run may leave half a line
    if len(whole) < len(lines) or not lines:
        path.write_text("".join(whole) or json.dumps({"version": VERSION, "settings": settings}) + "\n")
    return {record["object"]: record for record in map(json.loads, whole[1:])}


def changed(old, new):
    """The settings that differ, in words."""
    return ", ".join(f"{key} {old.get(key)} there, {new.get(key)} here" for key in new if old.get(key) != new.get(key))


def checked_version(root, content):
    """The content of a dataset.json or of a log's first line, if it is of this generator's version."""
    if content.get("version") != VERSION:
        again = command_line(root, content.get("settings", {}))
        raise UserError(f"{root}: made by generator version {content.get('version')}, this is {VERSION}; remove it and run: {again}")
    return content


def command_line(root, settings):
    """The command that makes a root."""
    flags = [f"--{key} {settings[key]}" for key in ("preset", "objects", "grasps", "scenes", "seed") if settings.get(key) is not None]
    if settings.get("meshes"):
        flags += [f"--meshes {settings['meshes']} --up {settings['up']}"] + ["--rescale"] * settings["rescale"]
    return " ".join([f"python synthesize.py --out {root}", *flags])


def ensure_root(path, quiet=False):
    """The dataset root `path`; the default roots are made on first use, or finished where they were interrupted."""
    root, preset = Path(path), DEFAULT_ROOTS.get(Path(path).as_posix())
    if (root / "dataset.json").exists():
        checked_version(root, read_json(root / "dataset.json"))
        return root
    begun = (root / LOG).exists()
    if root.exists() and not begun and any(root.iterdir()):
        return root  # data of somebody's own
    if preset is None:
        settings = json.loads((root / LOG).read_text().splitlines()[0])["settings"] if begun else {"preset": "mini"}
        raise UserError(f"{root}: {'is unfinished' if begun else 'no such root'}; make it with: {command_line(root, settings)}")
    # a process of its own: its workers then load this file and not the caller's, which may hold torch
    child = [sys.executable, __file__, "--out", str(root), "--preset", preset] + ["--quiet"] * quiet
    if subprocess.run(child, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{root}: could not be made; see above, or run: {command_line(root, {'preset': preset})}")
    return root


def start_worker():
    """In a worker: Ctrl-C is the parent's business, which lets running objects end; a killed parent ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def single_threaded():
    """Processes started inside do their arithmetic in one thread: as many workers as cores, and the same bytes for any number."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# ---------------------------------------------------------------- the data card: measured by code of its own


def closest_points(points, triangles):
    """The nearest point of a surface: points (P, 3), triangles (F, 3, 3) -> (P, 3), by exact geometry."""
    center = triangles.mean(1)
    size = np.linalg.norm(triangles - center[:, None], axis=2).max(1)
    bound = cKDTree(triangles.reshape(-1, 3)).query(points)[0]  # the nearest corner
    row, face = np.nonzero(cdist(points, center) <= (bound + 1e-9)[:, None] + size)  # pairs that may hold the nearest point
    p, corners = points[row], triangles[face]
    edges = np.roll(corners, -1, axis=1) - corners
    normal = np.cross(edges[:, 0], edges[:, 1])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-15)
    offset = p[:, None] - corners  # (pairs, 3 corners, 3)
    inside = (np.einsum("nck,nk->nc", np.cross(edges, offset), normal) >= 0).all(1)
    along = np.einsum("nck,nck->nc", offset, edges) / np.maximum(np.einsum("nck,nck->nc", edges, edges), 1e-18)
    on_plane = p - np.einsum("nk,nk->n", offset[:, 0], normal)[:, None] * normal
    found = np.concatenate((corners + np.clip(along, 0, 1)[..., None] * edges, on_plane[:, None]), 1)  # (pairs, 4, 3)
    distance = np.linalg.norm(found - p[:, None], axis=2)
    distance[~inside, 3] = np.inf
    order = np.lexsort((distance.min(1), row))  # by point, the nearest first
    best = order[np.searchsorted(row[order], np.arange(len(points)))]
    return found[best, distance[best].argmin(1)]


def is_inside(points, triangles):
    """Points (P, 3) inside a closed surface (F, 3, 3): its solid angle there is 4 pi (van Oosterom and Strackee 1983)."""
    inside = ((points > triangles.min((0, 1))) & (points < triangles.max((0, 1)))).all(1)
    a, b, c = (triangles[None, :, k] - points[inside, None] for k in range(3))  # (P, F, 3)
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    dot = lambda v, w: np.einsum("pfk,pfk->pf", v, w)
    angle = 2 * np.arctan2(dot(a, np.cross(b, c)), la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb)
    inside[inside] = np.abs(angle.sum(1)) > 2 * np.pi
    return inside


def closed_parts(vertices, faces):
    """Triangles (F, 3, 3) of each connected part of a mesh, and whether each is closed."""
    edges = np.sort(np.concatenate((faces[:, :2], faces[:, 1:], faces[:, ::2])), axis=1)
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
    part = connected_components(graph, directed=False)[1][faces[:, 0]]
    closed = [(np.unique(edges[np.tile(part, 3) == k], axis=0, return_counts=True)[1] == 2).all() for k in np.unique(part)]
    return [vertices[faces[part == k]] for k in np.unique(part)], closed


def sphere_gaps(vertices, faces, centers, radii):
    """Signed gaps (m,) of spheres to a mesh, negative where they penetrate, and the nearest surface points (m, 3).

    The inside is the union of the closed parts; an open part has a surface only.
    """
    gaps, nearest = np.full(len(centers), np.inf), np.zeros_like(centers)
    for triangles, closed in zip(*closed_parts(vertices, faces)):
        close = np.flatnonzero(((centers > triangles.min((0, 1)) - 0.03) & (centers < triangles.max((0, 1)) + 0.03)).all(1))
        if not len(close):
            continue
        point = closest_points(centers[close], triangles)
        distance = np.linalg.norm(centers[close] - point, axis=1)
        if closed:
            distance[is_inside(centers[close], triangles)] *= -1
        gap = distance - radii[close]
        better = gap < gaps[close]
        gaps[close[better]], nearest[close[better]] = gap[better], point[better]
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
    fingers = gaps[len(PALM_RADII):].reshape(4, 8)
    contact = [len(PALM_RADII) + 8 * f + links[fingers[f, links].argmin()] for f in range(4) for links in ([0, 1, 2, 3], [4, 5], [6, 7])]
    contact = np.array([i for i in contact if gaps[i] < CONTACT])
    normals = (nearest[contact] - centers[contact]) * np.sign(gaps[contact] + radii[contact])[:, None]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return -gaps.min(), links_touching(fingers[None])[0], hull_epsilon(nearest[contact], normals, origin) if len(contact) > 2 else np.nan


def read_grasps(root):
    """[(scene folder, grasps, scores)] of a root of synthesize.py."""
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

    scenes, rng = read_grasps(root), np.random.default_rng(seed)
    rows = [(k, row) for k, (_, _, scores) in enumerate(scenes) for row in range(len(scores))]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    kept = [(k, row) for k, row in rows if scenes[k][2][row] >= MIN_SCORE]
    measured = []
    for k, row in tqdm(kept[:sample] + rows[:mixed], desc="measuring", unit="grasp", disable=None):
        folder, grasps, scores = scenes[k]
        measured.append((scores[row], *measure(*read_mesh(folder / "mesh.obj"), grasps[row])))
    scores, depth, links, exact = map(np.array, zip(*measured))
    sample = len(kept[:sample])
    depth, links, held, scores, exact = depth[:sample] * 1000, links[:sample], exact[:sample], scores[sample:], exact[sample:]
    closed = exact > 0
    card = {
        "root": root.as_posix(), "scenes": len(scenes), "kept_grasps": len(kept), "grasps_measured": sample,
        "penetration_mm": {"median": np.median(depth), "p99": np.percentile(depth, 99), "p99.9": np.percentile(depth, 99.9), "max": depth.max()},
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
    draw_grasps([(*scenes[k], row) for k, row in kept[:12]], out / "grasps.png")
    print(json.dumps(card, indent=2))


def draw_histograms(scenes, path):
    """Score, the 12 joints and kept grasps per object of a root, as one picture."""
    from matplotlib.figure import Figure

    scores = np.concatenate([scores for _, _, scores in scenes])
    joints = np.concatenate([grasps[scores >= MIN_SCORE, 7:] for _, grasps, scores in scenes])
    per_object = collections.Counter()
    for folder, _, scores_here in scenes:
        per_object[folder.parent] += int((scores_here >= MIN_SCORE).sum())
    figure = Figure(figsize=(14, 9), layout="constrained")
    axes = figure.subplots(4, 4)
    axes[0, 0].hist(scores, 80, color="tab:gray")
    axes[0, 0].axvline(MIN_SCORE, color="tab:red")
    axes[0, 0].set_title(f"score; right of the line ({MIN_SCORE}): kept")
    axes[0, 1].hist(list(per_object.values()), 40, color="tab:gray")
    axes[0, 1].set_title("kept grasps per object")
    for ax in axes[0, 2:]:
        ax.axis("off")
    for k, name in enumerate(hand.JOINT_NAMES):
        ax = axes[1 + k % 3, k // 3]
        ax.hist(joints[:, k], 60, range=hand.LIMITS[k], color="tab:blue")
        ax.set_title(f"{name} (rad)")
    figure.savefig(path, dpi=80)


def hand_mesh(grasp):
    """A picture's hand: triangles (F, 3, 3) in the object's frame and a colour per triangle (F, 3)."""
    centers, radii, segments = hand.hand_drawing(grasp[:7], grasp[7:])
    palm = len(PALM_RADII)
    parts = [(ball(c, r), (0.75, 0.75, 0.78)) for c, r in zip(centers[:palm], radii[:palm])]
    colours = ((0.85, 0.35, 0.2), (0.25, 0.45, 0.8), (0.25, 0.6, 0.75), (0.3, 0.7, 0.5))  # thumb, first, middle, ring
    parts += [(ball(c, r), colours[k // 8]) for k, (c, r) in enumerate(zip(centers[palm:], radii[palm:]))]
    parts += [(rod(*segment, 0.007), colours[k // 4]) for k, segment in enumerate(segments) if k % 4]
    triangles = [vertices[faces] for (vertices, faces), _ in parts]
    return np.concatenate(triangles), np.repeat([colour for _, colour in parts], [len(t) for t in triangles], axis=0)


def draw_grasps(grasps, path):
    """A sheet of grasps [(scene folder, grasps, scores, row)]: the hand's collision spheres on the object, seen from a side."""
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    figure = Figure(figsize=(16, 12))
    for k, (folder, poses, scores, row) in enumerate(grasps):
        ax = figure.add_subplot(3, 4, k + 1, projection="3d")
        vertices, faces = read_mesh(folder / "mesh.obj")
        triangles, colours = hand_mesh(poses[row])
        triangles = np.concatenate((vertices[faces], triangles))
        colours = np.concatenate((np.tile([0.9, 0.8, 0.55], (len(faces), 1)), colours))
        normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        light = np.abs(normal @ [0.3, -0.5, 0.8]) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        ax.add_collection3d(Poly3DCollection(triangles, facecolors=colours * (0.45 + 0.55 * light[:, None]).clip(max=1)))
        low, high = triangles.min((0, 1)), triangles.max((0, 1))
        for limits, center in zip((ax.set_xlim, ax.set_ylim, ax.set_zlim), (low + high) / 2):
            limits(center - (high - low).max() * 0.4, center + (high - low).max() * 0.4)
        side = hand.pose_to_matrix(poses[row, :7])[0, :3, 0]  # across the palm: thumb and fingers are seen closing
        ax.view_init(np.degrees(np.arcsin(np.clip(side[2], -1, 1))) * 0.7 + 8, np.degrees(np.arctan2(side[1], side[0])))
        ax.set_axis_off()
        ax.set_title(f"{'/'.join(folder.parts[-3:])}  score {scores[row]:.1f}", fontsize=9)
    figure.subplots_adjust(0, 0, 1, 0.96, 0, 0.04)
    figure.savefig(path, dpi=70)


# ---------------------------------------------------------------- command line


def parse_args(argv):
    parser = Parser(__doc__)
    parser.add_argument("--out", metavar="DIR", help="root to make or to resume; with --card, where its files go")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mini",
                        help="; ".join(f"{name}: {n} objects, {g} kept grasps each, {s} scene(s)" for name, (n, g, s) in PRESETS.items()))
    parser.add_argument("--objects", type=number(int, 1, 100000), help="procedural objects (default: the preset's)")
    parser.add_argument("--grasps", type=number(int, 1, 100000),
                        help=f"grasps per object with a score of {MIN_SCORE} or more, over its scenes (default: the preset's)")
    parser.add_argument("--scenes", type=number(int, 1, 100), help="scenes per object: scale, resting pose, yaw (default: the preset's)")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of objects and grasps")
    parser.add_argument("--workers", type=number(int, 1, 256), help="processes (default: one per core); the result does not depend on it")
    parser.add_argument("--meshes", metavar="DIR", help="use the meshes of this folder, category = sub-folder, in place of procedural objects")
    parser.add_argument("--up", choices=("z", "y"), default="z", help="the axis that points up in --meshes")
    parser.add_argument("--rescale", action="store_true",
                        help=f"scale meshes whose longest side is not {LENGTHS[0]}-{LENGTHS[1]} m or whose middle side is over {MAX_MIDDLE} m")
    parser.add_argument("--card", metavar="ROOT", help="describe this dataset in figures and pictures in place of making one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
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
    args = parse_args(argv)
    if args.card:
        return write_card(Path(args.card), Path(args.out), args.seed)
    objects, grasps, scenes = PRESETS[args.preset]
    settings = {
        "preset": args.preset, "objects": None if args.meshes else args.objects or objects, "grasps": args.grasps or grasps,
        "scenes": args.scenes or scenes, "seed": args.seed, "meshes": args.meshes, "up": args.up, "rescale": args.rescale}
    start = time.time()
    content = generate(args.out, settings, args.workers or os.cpu_count(), args.quiet)
    print_summary(args.out, content, time.time() - start)


def print_summary(root, content, seconds):
    """The counts of a root on stdout."""
    print(f"{root}: {content['objects']} objects, {content['grasps_kept']} grasps with a score of {MIN_SCORE} or more, "
          f"{content['grasps_low']} under it, in {seconds:.0f} s")
    print("candidates rejected: " + ", ".join(f"{reason} {count}" for reason, count in content["candidates_rejected"].items())
          + f"; objects drawn again: {content['objects_redrawn']}")
    for name, reason in content["unusable"].items():
        print(f"not used: {name}: {reason}")


if __name__ == "__main__":
    main()
