"""Do meshes, wrist poses and quaternion order of a dataset fit together? It shows without any model of the hand.

In good data the wrist lies outside the object's bounding box and near it, and from the hand the object is seen in
nearly the same direction in every grasp: with the right order of the quaternion the mean of these unit vectors has a
length of 0.96 or more, with the other order about 0.4.
"""

import numpy as np
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from cli.errors import refuse

FAR = 0.3  # m from the bounding box: no hand reaches so far
MANY = 0.1  # of the wrists, inside the box or far from it, is too many
MAX_REACH = 0.5  # m from the object: no hand is so large
MIN_GRASPS = 50  # fewer say nothing about the order
ORDER_GAIN = 0.2  # in length of the mean direction, by which the other order must fit better
STANDING = 0.01  # m: a mesh may stand so far over or under the plane z = 0
MIN_POINTS = 256  # of a cloud: fewer may miss the lowest point of an object
SMALL = 0.02  # m: no object is so short, a mesh may be after a factor too many


def frame_figures(clouds, poses, scene):
    """What tells whether frames fit; clouds (C, N, 3) m, poses (n, 7), scene (n,) into clouds -> dict of floats.

    inside: share of wrists in the bounding box of their object; far: share over FAR from it; gap: median distance to it
    (m); xyzw, wxyz: length of the mean direction from hand to object, by the order of the quaternion; standing: share
    of the objects whose lowest point is within STANDING of z = 0; lowest, highest: of these lowest points (m); small:
    how many of the meshes are shorter than SMALL.
    """
    low, high, center = clouds.min(1), clouds.max(1), clouds.mean(1)  # (C, 3) each
    wrist = poses[:, :3].astype(np.float64)
    outside = np.maximum(0, np.maximum(low[scene] - wrist, wrist - high[scene]))  # (n, 3)
    gap = np.linalg.norm(outside, axis=1)
    figures = {"inside": float((gap == 0).mean()), "far": float((gap > FAR).mean()), "gap": float(np.median(gap))}
    towards = center[scene] - wrist
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
    for name, order in (("xyzw", [3, 4, 5, 6]), ("wxyz", [4, 5, 6, 3])):
        seen = Rotation.from_quat(poses[:, order]).inv().apply(towards)  # (n, 3) hand frame
        figures[name] = float(np.linalg.norm(seen.mean(0)))
    bottom = low[:, 2]
    standing = float((np.abs(bottom) <= STANDING).mean())
    small = int(((high - low).max(1) < SMALL).sum())
    return figures | {
        "standing": standing, "lowest": float(bottom.min()), "highest": float(bottom.max()), "small": small,
        "points": clouds.shape[1],
    }  # fmt: skip


def frame_warnings(figures, num_grasps, root):
    """Lines that say what does not fit, [] where all does."""
    inside, far, standing, small = (figures[name] for name in ("inside", "far", "standing", "small"))
    one_frame = "are meshes and positions in one frame and unit (metres)"
    lengths = f"(mean direction to the object {figures['wxyz']:.2f} long instead of {figures['xyzw']:.2f})"
    turned = num_grasps >= MIN_GRASPS and figures["wxyz"] - figures["xyzw"] >= ORDER_GAIN
    heights = f"(lowest points from {figures['lowest']:.3f} to {figures['highest']:.3f} m)"
    floating = standing < 1 - MANY and figures["points"] >= MIN_POINTS
    doubts = {
        f"{inside:.0%} of the wrists lie inside the bounding box of their object; {one_frame}?": inside > MANY,
        f"{far:.0%} of the wrists are over {FAR:g} m from their object; {one_frame}?": far > MANY,
        f"quaternions fit far better as w x y z {lengths}; columns 3-6 must be x y z w": turned,
        f"{1 - standing:.0%} of the meshes do not stand on z = 0 {heights}; is z up, and the table there?": floating,
        f"{small} meshes are shorter than {SMALL:g} m; are they in metres?": small > 0,
    }
    return [f"{root}: {doubt}" for doubt, holds in doubts.items() if holds]


def describe_frames(figures):
    """Three aligned lines for `python data.py ROOT`."""
    return [
        f"wrists        {figures['inside']:.1%} inside the bounding box, {figures['far']:.1%} over {FAR:g} m from it, "
        f"median distance {figures['gap']:.3f} m",
        f"to the object mean direction in the hand {figures['xyzw']:.2f} long as x y z w, "
        f"{figures['wxyz']:.2f} as w x y z",
        f"lowest point  z {figures['lowest']:.3f} to {figures['highest']:.3f} m, "
        f"{figures['standing']:.0%} within {STANDING:g} m of 0",
    ]


# ---------------------------------------------------------------- one object
def turn_to_z_up(points):
    """Points (..., 3) of a frame with y up in one with z up: a quarter turn about x."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)


def turn_poses_to_z_up(poses):
    """Wrist poses (n, 7) of a frame with y up in one with z up."""
    turned = Rotation.from_euler("x", 90, degrees=True) * Rotation.from_quat(poses[:, 3:])
    return np.concatenate([turn_to_z_up(poses[:, :3]), turned.as_quat()], axis=1)


def looks_away(cloud, poses):
    """Which wrists (n, 7) have the object (N, 3) m more than 60° from where a hand grasps: (n,) bool.

    That is halfway between y, along the fingers, and z, out of the palm. Of the benchmark's grasps 0.02 % are told to
    look away, and 81 % once their quaternions are read with w first.
    """
    middle = Rotation.from_quat(poses[:, 3:]).inv().apply(cloud.mean(0) - poses[:, :3])  # (n, 3) hand frame
    return middle[:, 1:].sum(1) / np.sqrt(2) < 0.5 * np.linalg.norm(middle, axis=1)


def check_reach(cloud, poses, name):
    """Stop where a wrist (n, 7) is so far from the object (N, 3) m that no hand could touch it; name: of the poses."""
    distance = cdist(poses[:, :3], cloud).min(1)  # (n,) m
    row = int(distance.argmax())
    limit = f"the limit is {MAX_REACH:g} m; positions are in metres in the mesh's frame"
    refuse(distance[row] > MAX_REACH, f"{name}: row {row}: the wrist is {distance[row]:.3g} m from the mesh, {limit}")
