"""Grasps of one scene: wrist poses, pre-shapes, closing fingers, a score. Vectorised over candidates.

    synthesize(vertices, faces, wanted, rng)    mesh -> grasps (n, 19), scores (n,), counts of what was rejected and why

A surface becomes a distance field; wrist poses are drawn over it; the geometry in the hand's reach chooses one of three
pre-shapes; each finger closes until it touches; what holds is scored by the Ferrari-Canny epsilon.
"""

import collections

import numpy as np

from hand import kinematics
from hand.closing import CONTACT, RADII, START, SURFACE_SAMPLES, DistanceField, close_hands, link_gaps, surface_normals
from hand.score import MIN_SCORE, score

BATCH, MAX_BATCHES = 1500, 12  # of candidates
NOISE = np.radians(3)  # of a pre-shape
SECOND_MODE = 0.12  # chance that a pose also tries its second-best pre-shape; more would drown shape in noise
WORK_BOX = (np.array([[-65, 65], [10, 180], [10, 150]]) * kinematics.SCALE).astype(np.float32)  # m, hand frame
GRASP_CENTER = np.array([[-12, 70, 23], [12, 135, 23]]) * kinematics.SCALE  # m, hand frame: from, to
PALM_CENTERS, PALM_RADII = kinematics.PALM_CENTERS.astype(np.float32), kinematics.PALM_RADII.astype(np.float32)
MAX_DEPTH = 0.0015  # m, by the grid's distance: what a finger's last step may press in
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


# ---------------------------------------------------------------- one scene
REASONS = ("outside", "palm", "start", "contacts", "table", "fingers", "depth")  # why a candidate is not recorded


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
    joints = np.clip(joints, kinematics.LIMITS[:, 0], kinematics.LIMITS[:, 1]).astype(np.float32)
    joints, gaps, free, touching = close_hands(rotation, position, joints, mode, field)
    links = link_gaps(gaps)[0] < CONTACT
    grasping = touching & links[:, 1:].any((1, 2)) & (links.sum((1, 2)) >= 3)
    counts["start"] += int((~free).sum())
    counts["contacts"] += int((free & ~grasping).sum())
    rotation, position, joints, gaps = (values[grasping] for values in (rotation, position, joints, gaps))
    local = kinematics.finger_spheres(joints)[0].astype(np.float32)  # (n, 4, 8, 3)
    centers = (local.reshape(-1, 32, 3) @ rotation.transpose(0, 2, 1) + position[:, None]).reshape(local.shape)
    good = np.ones(len(joints), dtype=bool)
    checks = {
        "table": (centers[..., 2] - RADII).min((1, 2)) < TABLE,
        "depth": gaps.min((1, 2)) < -MAX_DEPTH,
        "fingers": kinematics.fingers_collide(local),
    }
    for reason, bad in checks.items():
        counts[reason] += int((good & bad).sum())
        good &= ~bad
    scores = score(centers[good], gaps[good], field)
    matrix = np.tile(np.eye(4), (len(scores), 1, 1))
    matrix[:, :3, :3], matrix[:, :3, 3] = rotation[good], position[good]
    return np.concatenate((kinematics.matrix_to_pose(matrix), joints[good]), 1).astype(np.float32), scores
