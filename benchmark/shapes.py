"""Procedural household objects: closed parts, fourteen categories, the deformations that set two mugs apart.

    procedural_mesh(synset, rng)    a random object of a category, upright, on z = 0
    pose_scene(vertices, *draw_pose(rng))    its resting pose, yaw and scale in one scene
    pretraining_cloud(seed, i, N)   a cloud of the pretraining pool, which no dataset shares

Meshes are vertices (V, 3) float64 m and faces (F, 3) int64, z up. Every number drawn here is part of the dataset:
a change of order or kind of a draw makes other data, and needs another VERSION (benchmark/progress.py).
"""

import numpy as np
from scipy.spatial.transform import Rotation

from benchmark.solids import ball, block, dense, lathe, rod, spline, tube
from data import sample_surface
from files.writing import stable_seed


# ---------------------------------------------------------------- what several categories share
def solid(curve, bottom, top):
    """Profile of a body with this outside (P, 2), from the axis at the bottom to the axis at the top (z)."""
    return np.concatenate(([[0, bottom]], curve, [[0, top]]))


def hollow(outer, wall):
    """Profile of a vessel with this outside (P, 2), from foot to rim, and this wall thickness."""
    inner = np.stack((np.maximum(outer[:, 0] - wall, 2e-3), np.maximum(outer[:, 1], wall)), -1)
    return solid(np.concatenate((outer, inner[::-1])), 0, wall)


def arch(x, low, high, reach, thickness, rng, angle=0.0):
    """A handle: a tube from (x, 0, low) out by `reach` and back to (x, 0, high), turned about z by `angle`."""
    u, span = rng.uniform, high - low
    top, bottom = reach * u(0.6, 1.1), reach * u(0.5, 1.1)
    middle = (low + high) / 2 + u(-0.15, 0.15) * span
    points = [
        (x, 0, low),
        (x + bottom, 0, low + u(-0.2, 0.15) * span),
        (x + max(top, bottom) * 1.1, 0, middle),
        (x + top, 0, high + u(-0.15, 0.2) * span),
        (x, 0, high),
    ]
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
    body = spline(
        (r * u(0.85, 1.0), 0),
        (waist, shoulder * u(0.35, 0.65)),
        (r, shoulder),
        (neck, h * u(0.82, 0.9)),
        (neck, h * 0.93),
    )
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
    outer = [
        (end * 0.95, 0),
        (r, h * u(0.03, 0.12)),
        (r * groove, h * u(0.4, 0.5)),
        (r * groove, h * u(0.52, 0.6)),
        (r, h * u(0.86, 0.96)),
        (end, h),
        (end * 0.9, h),
        (end * 0.88, h * 0.97),
    ]
    yield lathe(solid(outer, 0, h * 0.97), squareness(rng, 0.35))
    if u() < 0.3:
        yield block(2.1 * r, 2.1 * r, h * u(0.08, 0.25), 2, 0.1, (0, 0, h))


def jar(rng, u):
    r, h = u(0.03, 0.06), u(0.06, 0.15)
    mouth = r * u(0.55, 0.95)
    body = spline(
        (r * u(0.6, 1.0), 0),
        (r * u(0.9, 1.1), h * u(0.3, 0.6)),
        (r * u(0.8, 1.0), h * u(0.72, 0.82)),
        (mouth, h * 0.9),
        (mouth, h),
    )
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
        guard = spline(
            (x, 0, -height * 0.4),
            (x + u(0.02, 0.04), 0, -height * 0.6),
            (x + u(0.01, 0.03), 0, -height - 0.015),
            (x - 0.02, 0, -height - 0.01),
        )
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


# synset -> (maker, shortest and longest length in m, share of the objects)
CATEGORIES = {
    "03797390": (mug, 0.075, 0.14, 280),
    "02876657": (bottle, 0.12, 0.25, 250),
    "02880940": (bowl, 0.09, 0.17, 150),
    "02946921": (can, 0.06, 0.15, 90),
    "03593526": (jar, 0.07, 0.17, 200),
    "02992529": (cellphone, 0.1, 0.17, 110),
    "04074963": (remote, 0.12, 0.22, 60),
    "03624134": (knife, 0.14, 0.25, 80),
    "02942699": (camera, 0.08, 0.16, 60),
    "03636649": (lamp, 0.14, 0.25, 70),
    "03759954": (microphone, 0.12, 0.24, 30),
    "03481172": (hammer, 0.15, 0.25, 50),
    "03948459": (pistol, 0.12, 0.22, 40),
    "02954340": (cap, 0.12, 0.2, 30),
}
HELD_OUT_SYNSETS = ("03948459", "02954340")  # pistol, cap
TRAIN_SYNSETS = tuple(synset for synset in CATEGORIES if synset not in HELD_OUT_SYNSETS)
LENGTHS, MAX_MIDDLE = (0.05, 0.25), 0.15  # m: longest and middle side that the hand can work on
RESTS = ((0, 0), (np.pi / 2, 0), (-np.pi / 2, 0), (0, np.pi / 2), (0, -np.pi / 2), (np.pi, 0))  # turns about x, y
REST_CHANCES = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
YAW = np.radians(30)


def procedural_mesh(synset, rng):
    """One random object of a category, upright, z up, on z = 0: vertices (V, 3) float64 m, faces (F, 3) int64.

    Closed parts, concatenated (they overlap; no boolean operations), then bent out of the category's ordinary shape.
    """
    maker, shortest, longest, _ = CATEGORIES[synset]
    vertices, faces = zip(*maker(rng, rng.uniform))
    starts = np.cumsum([0, *map(len, vertices)])
    faces = np.concatenate([part + start for part, start in zip(faces, starts)])
    vertices = deform(np.concatenate(vertices), rng)
    return scale_to_hand(vertices, rng.uniform(shortest, longest)), faces.astype(np.int64)


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


def scale_to_hand(vertices, length):
    """Scale to this longest side (m), less where the middle side would not fit the hand, and settle on the table."""
    sides = np.sort(np.ptp(vertices, axis=0))
    return settle(vertices * min(np.clip(length, *LENGTHS) / sides[2], MAX_MIDDLE / sides[1]))


def settle(vertices):
    """Move onto the table plane z = 0, bounding box centred on the z axis."""
    low, high = vertices.min(0), vertices.max(0)
    return vertices - ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2])


def draw_pose(rng, resize=True):
    """A scene's resting pose (an index into RESTS), yaw (rad) and, where `resize`, scale, else None."""
    rest, yaw = rng.choice(len(RESTS), p=REST_CHANCES), rng.uniform(-YAW, YAW)
    return rest, yaw, rng.uniform(0.85, 1.15) if resize else None


def pose_scene(vertices, rest, yaw, scale=None):
    """An object (V, 3) m in the pose of `draw_pose`, standing on z = 0."""
    turned = Rotation.from_euler("xyz", (*RESTS[int(rest)], yaw)).apply(vertices)
    return settle(turned) if scale is None else scale_to_hand(turned, np.ptp(vertices, axis=0).max() * scale)


def pretraining_cloud(seed, index, num_points, up="z"):
    """Cloud (num_points, 3) float32, m, of shape `index` of the pretraining pool, which no dataset shares.

    Of the 12 training categories; up: the axis that points up ("z", or "y" as Point-JEPA has it).
    """
    rng = np.random.default_rng(stable_seed("pretrain", seed, index))
    names = sorted(TRAIN_SYNSETS)
    vertices, faces = procedural_mesh(names[rng.integers(len(names))], rng)
    cloud = sample_surface(pose_scene(vertices, *draw_pose(rng)), faces, num_points, rng)
    return cloud if up == "z" else cloud[:, [1, 2, 0]]  # a cyclic permutation is a rotation
