"""Grasps of one scene: wrist poses, pre-shapes, closing fingers, a score. Vectorised over candidates.

    synthesize(vertices, faces, wanted, rng)    mesh -> grasps (n, 7 + J), scores (n,)

A surface becomes a distance field; wrist poses are drawn over it; the geometry in the hand's reach chooses one of three
pre-shapes; each finger closes until it touches; what holds is scored by the Ferrari-Canny epsilon.
"""

import numpy as np

from hand import kinematics
from hand.closing import SURFACE_SAMPLES, DistanceField, close_hands, grasps_it, surface_normals
from hand.described import BENCHMARK
from hand.score import MIN_SCORE, score

BATCH, MAX_BATCHES = 1500, 12  # of candidates
NOISE = np.radians(3)  # of a pre-shape
SECOND_MODE = 0.12  # chance that a pose also tries its second-best pre-shape; more would drown shape in noise
MAX_DEPTH = 0.0015  # m, by the grid's distance: what a finger's last step may press in
TABLE = -0.06  # m: objects stand on a thin post over the table, else the hand could not reach under a low one


def sample_poses(rng, points, normals, field, count, hand):
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
    center = rng.uniform(*hand.grasp_center.T, (count, 3))
    center[:, 2] += hand.size * rng.uniform(0.002, 0.075, count)
    return rotation.astype(np.float32), (point - np.einsum("nij,nj->ni", rotation, center)).astype(np.float32)


def free_poses(rotation, position, field, hand):
    """Where the palm stands above the table, comes from above or a side, and is not inside the object: (n,) bool."""
    centers, radii = hand.palm_centers.astype(np.float32), hand.palm_radii.astype(np.float32)[:, None]
    palm = np.einsum("nij,pj->pni", rotation, centers) + position  # (p, n, 3)
    free = ((palm[..., 2] - radii).min(0) > TABLE) & (rotation[:, 2, 2] < 0.3)
    free[free] = (field(palm[:, free]) - radii).min(0) > -0.001
    return free


def choose_modes(rng, rotation, position, points, hand):
    """Pre-shapes by the geometry in reach: indices into the poses and modes, some poses twice.

    The spread of the surface points inside the work box along the hand's axes decides: long across the
    palm suggests a power grasp, thin between thumb and fingers a pinch, large and even a spherical one.
    """
    axes = rotation.transpose(2, 0, 1)  # (3, n, 3)
    local = [points @ axis.T - np.einsum("ni,ni->n", position, axis) for axis in axes]  # 3 of (m, n)
    inside = np.ones(local[0].shape, dtype=bool)
    for values, (low, high) in zip(local, hand.work_box.astype(np.float32)):
        inside &= np.abs(values - (low + high) / 2) < (high - low) / 2
    count, spreads = np.maximum(inside.sum(0), 1), []
    for values in local:
        mean = np.einsum("mn,mn->n", values, inside) / count
        variance = np.einsum("mn,mn,mn->n", values, values, inside) / count - mean**2
        spreads.append(np.sqrt(np.maximum(variance, 0)))
    x, y, z = np.log((np.stack(spreads) + 0.002 * hand.size) / (0.025 * hand.size))
    affinity = {"power": 1.2 * x - 0.6 * y - 0.15, "pinch": -1.6 * y - 0.10}
    affinity["sphere"] = 0.8 * (y + z) - 1.5 * np.abs(x - y) + 0.20
    affinity = np.stack([affinity[mode] for mode in hand.modes], -1)
    order = np.argsort(-affinity, axis=1)
    tried = np.stack((np.ones(len(order), dtype=bool), rng.random(len(order)) < SECOND_MODE), 1)[:, : len(hand.modes)]
    pose, rank = np.nonzero(tried)  # the alternatives of a pose stay neighbours
    return pose, order[pose, rank]


# ---------------------------------------------------------------- one scene
def synthesize(vertices, faces, wanted, rng, hand=BENCHMARK):
    """Grasps for one scene (V, 3) m, (F, 3): (n, 7 + J) float32, scores (n,) float32.

    Batches of candidates until `wanted` grasps score at least MIN_SCORE or the batches run out; of the
    last batch only the first ones are kept.
    """
    points, normals = surface_normals(vertices, faces, SURFACE_SAMPLES, rng)
    field = DistanceField(points)
    grasps, scores, kept = [], [], 0
    for _ in range(MAX_BATCHES):
        batch_grasps, batch_scores = candidates(rng, points, normals, field, hand)
        kept_so_far = kept + np.cumsum(batch_scores >= MIN_SCORE)
        end = np.searchsorted(kept_so_far, wanted, side="right")  # before the first grasp too many
        grasps.append(batch_grasps[:end])
        scores.append(batch_scores[:end])
        kept += int((scores[-1] >= MIN_SCORE).sum())
        if kept >= wanted:
            break
    return np.concatenate(grasps), np.concatenate(scores)


def candidates(rng, points, normals, field, hand):
    """One batch: poses -> pre-shapes -> closed hands -> checks -> scored grasps (m, 7 + J), (m,)."""
    rotation, position = sample_poses(rng, points, normals, field, BATCH, hand)
    free = free_poses(rotation, position, field, hand)
    rotation, position = rotation[free], position[free]
    pose, mode = choose_modes(rng, rotation, position, points[:400], hand)
    matrix = np.tile(np.eye(4, dtype=np.float32), (len(pose), 1, 1))
    matrix[:, :3, :3], matrix[:, :3, 3] = rotation[pose], position[pose]
    joints = hand.start[mode].astype(np.float32) + rng.normal(0, NOISE, (len(mode), len(hand.limits)))
    joints = np.clip(joints, *hand.limits.T).astype(np.float32)
    joints, gaps = close_hands(matrix, joints, mode, field, hand)
    grasping = grasps_it(gaps, hand)
    matrix, joints, gaps = matrix[grasping], joints[grasping], gaps[grasping]
    local = kinematics.finger_spheres(joints, hand).astype(np.float32)  # (n, F, P, 3)
    centers = kinematics.transform(matrix, local)
    good = (centers[..., 2] - hand.fingers.radii.astype(np.float32)).min((1, 2)) >= TABLE
    good &= (gaps.min((1, 2)) >= -MAX_DEPTH) & ~kinematics.fingers_collide(local, hand)
    scores, poses = score(centers[good], gaps[good], field, hand), kinematics.matrix_to_pose(matrix[good].astype(float))
    return np.concatenate((poses, joints[good]), 1).astype(np.float32), scores
