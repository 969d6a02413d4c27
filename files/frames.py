"""Do meshes, wrist poses and quaternion order of a dataset fit together? It shows without any model of the hand.

In good data the wrist lies outside the object's bounding box and near it, and from the hand the object is seen in
nearly the same direction in every grasp, along z, out of the palm, or between it and y, along the fingers: the mean of
these unit vectors has a length of 0.95 or more, with the other order of the quaternion about 0.4.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from cli.errors import refuse

FAR = 0.3  # m from the bounding box: no hand reaches so far
MANY = 0.1  # of the wrists, inside the box or far from it, is too many
MAX_REACH = 0.5  # m from the object's bounding box: no hand is so large
MIN_GRASPS = 50  # fewer say nothing about the direction to the object
STEADY = 0.8  # length of the mean direction; right data has 0.91 or more
GAIN = 0.05  # in this length, by which another reading must fit better, and be over 0.9 then
AHEAD = 0.82  # cosine to the contract's directions; right data has 0.87 or more, wrists turned by 90° 0.78 or less
STANDING = 0.01  # m: a mesh may stand so far over or under the plane z = 0
MIN_POINTS = 256  # of a cloud: fewer may miss the lowest point of an object
SMALL = 0.02  # m: no object is so short, a mesh may be after a factor too many


def seen_from_hand(middle, poses):
    """Unit vectors (2, n, 3) in the hand's frame from wrists (n, 7) to their objects' middles (n, 3) m.

    Quaternions are read as they are, and with w first.
    """
    towards = unit(middle - poses[:, :3].astype(np.float64))
    return np.stack(
        [Rotation.from_quat(poses[:, order]).inv().apply(towards) for order in ([3, 4, 5, 6], [4, 5, 6, 3])]
    )


def unit(vectors):
    """Vectors (..., 3) over their lengths."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def gap_to_box(low, high, wrist):
    """Distance (n,) m of wrists (n, 3) from boxes with corners `low` and `high` (n, 3) or (3,), 0 inside."""
    return np.linalg.norm(np.maximum(0, np.maximum(low - wrist, wrist - high)), axis=-1)


def frame_figures(clouds, poses, scene):
    """What tells whether frames fit; clouds (C, N, 3) m, poses (n, 7), scene (n,) into clouds -> dict.

    inside: share of wrists in the bounding box of their object; far: share over FAR from it; gap: median distance to it
    (m); seen: mean directions (2, 3) from hand to object, by the readings of `seen_from_hand`; grasps: n; standing:
    share of the objects whose lowest point is within STANDING of z = 0; lowest, highest: of these lowest points (m);
    small: how many of the `meshes` are shorter than SMALL; points: N.
    """
    low, high, wrist = clouds.min(1), clouds.max(1), poses[:, :3].astype(np.float64)
    gap = gap_to_box(low[scene], high[scene], wrist)
    bottom, standing = low[:, 2], float((np.abs(low[:, 2]) <= STANDING).mean())
    small = int(((high - low).max(1) < SMALL).sum())
    return {
        "inside": float((gap == 0).mean()), "far": float((gap > FAR).mean()), "gap": float(np.median(gap)),
        "seen": seen_from_hand(clouds.mean(1)[scene], poses).mean(1), "grasps": len(scene),
        "standing": standing, "lowest": float(bottom.min()), "highest": float(bottom.max()), "small": small,
        "meshes": len(clouds), "points": clouds.shape[1],
    }  # fmt: skip


def axes_of(direction):
    """The axes that a direction (3,) goes along, in words: "+y +z"."""
    large = 0.4 * np.linalg.norm(direction)
    return " ".join(f"{'+-'[int(part < 0)]}{axis}" for axis, part in zip("xyz", direction) if abs(part) > large)


def frame_warnings(figures):
    """Lines that say what does not fit, one per cause, [] where all does."""
    inside, far, small, seen = (figures[name] for name in ("inside", "far", "small", "seen"))
    one_frame = "are meshes and positions in one frame and unit (metres)"
    heights = f"(lowest points from {figures['lowest']:.3f} to {figures['highest']:.3f} m)"
    _, y, z = unit(seen[0])
    ahead = np.hypot(y, z) if 0 <= y <= z else max(z, (y + z) / np.sqrt(2))  # cosine to the nearest from z to y + z
    as_read, w_first = np.linalg.norm(seen, axis=1)
    lengths = f"(mean direction to the object {w_first:.2f} long instead of {as_read:.2f})"

    sized = small <= figures["meshes"] / 2  # what is too small looks far away, too
    placed = sized and inside <= MANY and far <= MANY  # else directions and heights only repeat that
    floating = placed and figures["standing"] < 1 - MANY and figures["points"] >= MIN_POINTS
    judged = placed and figures["grasps"] >= MIN_GRASPS
    misread = judged and w_first > max(0.9, as_read + GAIN)
    scattered = judged and not misread and as_read < STEADY and not floating
    aside = judged and not misread and as_read >= STEADY and ahead < AHEAD
    doubts = {
        f"{inside:.0%} of the wrists lie inside the bounding box of their object; {one_frame}?": inside > MANY,
        f"{far:.0%} of the wrists are over {FAR:g} m from their object; {one_frame}?": sized and far > MANY,
        f"quaternions fit far better as w x y z {lengths}; columns 3-6 must be x y z w": misread,
        f"the hand sees the object in no one direction (mean {as_read:.2f} long, in good data over 0.9); are meshes "
        "and poses in one frame, and the poses not inverted?": scattered,
        f"the object lies along {axes_of(seen[0])} of the hand's frame; the contract: +z, out of the palm, or between "
        "it and +y, along the fingers. Turn the wrists, or leave them where that is how this hand has its axes": aside,
        f"{1 - figures['standing']:.0%} of the meshes do not stand on z = 0 {heights}; is z up, and the table there?":
        floating,
        f"{small} {'meshes are' if small > 1 else 'mesh is'} shorter than {SMALL:g} m; are they in metres?": small > 0,
    }  # fmt: skip
    return [doubt for doubt, holds in doubts.items() if holds]


def describe_frames(figures):
    """Three aligned lines for `python data.py ROOT`."""
    length = np.linalg.norm(figures["seen"], axis=1)
    return [
        f"wrists        {figures['inside']:.1%} inside the bounding box, {figures['far']:.1%} over {FAR:g} m from it, "
        f"median distance {figures['gap']:.3f} m",
        f"to the object along {axes_of(figures['seen'][0])} of the hand, mean direction {length[0]:.2f} long "
        f"as x y z w, {length[1]:.2f} as w x y z",
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
    """Which wrists (n, 7) have the object (N, 3) m over 60° from halfway between y and z: (2, n) bool, by each reading.

    Of the benchmark's grasps 0.01 % are told to look away, and 81 % read with w first.
    """
    return seen_from_hand(cloud.mean(0), poses)[:, :, 1:].sum(2) / np.sqrt(2) < 0.5


def check_reach(cloud, poses, name):
    """Stop where a wrist (n, 7) is so far from the object (N, 3) m that no hand could touch it; name: of the poses."""
    gap = gap_to_box(cloud.min(0), cloud.max(0), poses[:, :3])  # (n,) m
    row = int(gap.argmax())
    limit = f"the limit is {MAX_REACH:g} m; both must be in metres in one frame"
    refuse(gap[row] > MAX_REACH, f"{name}: row {row}: the wrist is {gap[row]:.3g} m from the mesh, {limit}")
