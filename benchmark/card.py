"""The card of a dataset: penetration, contacts and scores by code of its own, histograms, pictures."""

import collections
import json

import numpy as np
from scipy.spatial import ConvexHull, cKDTree
from tqdm import tqdm

from benchmark.progress import recorded
from cli.errors import refuse
from data import sample_surface
from files.reading import read_mesh, read_npz
from files.writing import write_json
from hand import kinematics
from hand.closing import CONTACT, link_gaps
from hand.described import BENCHMARK, hand_for
from hand.score import MIN_SCORE, SCORE_PER_EPSILON, contact_wrenches
from pictures.draw import Shown, draw_grasps, scene_title


def is_inside(points, triangles):
    """Points (P, 3) inside a closed surface (F, 3, 3), by its solid angle (van Oosterom and Strackee 1983)."""
    a, b, c = (triangles[None, :, k] - points[:, None] for k in range(3))  # (P, F, 3)
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    volume = (a * np.cross(b, c)).sum(2)
    span = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    return np.abs(np.arctan2(volume, span).sum(1)) > np.pi


def sphere_gaps(vertices, faces, centers, radii):
    """Signed gaps (m,) of spheres to a mesh, negative where they penetrate, and the nearest surface points (m, 3).

    By exact geometry. The inside is the union of the closed parts; an open part has a surface only.
    """
    import trimesh  # needed here only

    gaps, nearest = np.full(len(centers), np.inf), np.zeros_like(centers)
    for part in trimesh.Trimesh(vertices, faces, process=False).split(only_watertight=False, repair=False):
        triangles, (low, high) = part.triangles.view(np.ndarray), part.bounds
        middle, corners = triangles.mean(1), cKDTree(triangles.reshape(-1, 3))
        size = np.linalg.norm(triangles - middle[:, None], axis=2).max(1)  # (F,)
        for i, center in enumerate(centers):
            reach, _ = corners.query(center)  # the nearest point is no further away
            faces_near = triangles[np.linalg.norm(middle - center, axis=1) <= reach + size + 1e-9]
            found = trimesh.triangles.closest_point(faces_near, np.tile(center, (len(faces_near), 1)))
            distance = np.linalg.norm(found - center, axis=1)
            boxed = ((center > low) & (center < high)).all()
            inside = boxed and part.is_watertight and is_inside(center[None], triangles)[0]
            gap = (-1 if inside else 1) * distance.min() - radii[i]
            if gap < gaps[i]:
                gaps[i], nearest[i] = gap, found[distance.argmin()]
    return gaps, nearest


def hull_epsilon(points, normals, origin, edges=16):
    """Ferrari-Canny epsilon from the hull of linearised friction cones: points, normals (c, 3)."""
    wrenches = contact_wrenches(points[None], normals[None], origin)[0].astype(float)
    angle = np.linspace(0, 2 * np.pi, edges, endpoint=False)[:, None]
    rim = wrenches[:, None, 0] + np.cos(angle) * wrenches[:, None, 1] + np.sin(angle) * wrenches[:, None, 2]
    return -ConvexHull(rim.reshape(-1, 6)).equations[:, -1].max()


def measure_grasp(vertices, faces, grasp, hand=BENCHMARK):
    """Penetration (m), touching links (F, L) and hull epsilon of one grasp (7 + J,), from exact distances."""
    origin = sample_surface(vertices, faces, 4000, 0).mean(0)
    centers, radii = kinematics.hand_drawing(grasp[:7], grasp[7:], hand)
    gaps, nearest = sphere_gaps(vertices, faces, centers, radii)
    gap, sphere = link_gaps(gaps[-hand.links.size :].reshape(hand.links.shape), hand)  # (F, L)
    links, (fingers, spheres) = gap < CONTACT, hand.links.shape
    contact = (len(hand.palm_radii) + spheres * np.arange(fingers)[:, None] + sphere)[links]
    normals = (nearest[contact] - centers[contact]) * np.sign(gaps[contact] + radii[contact])[:, None]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return -gaps.min(), links, hull_epsilon(nearest[contact], normals, origin) if len(contact) > 2 else np.nan


def read_grasps(root, source):
    """[(scene folder, grasps (n, 7 + J), scores (n,))] of a root, a Path, and its `Hand`, of a source or None."""
    found, advice = [], "the card is of roots that synthesize.py filled"
    for path in sorted(root.glob("*/*/*/recording.npz"), key=lambda path: path.parts):
        recording = read_npz(path, advice)
        names = recording["joint_names"].tolist() if "joint_names" in recording else None
        hand = hand_for(names, source, root) if source else BENCHMARK
        known = recording["grasps"].shape[1] == 7 + len(hand.joint_names)
        refuse("scores" not in recording or not known, f"{path}: has no scores or another hand; {advice}")
        found.append((path.parent, recording["grasps"], recording["scores"]))
    refuse(not found, f"{root}: no */*/*/recording.npz in it")
    return found, hand


def write_card(root, out, seed, sample=1000, mixed=600):
    """OUT/card.json, histograms.png and grasps.png of a root.

    Penetration and contacts are of `sample` kept grasps, scores are compared on `mixed` ones of any score.
    """
    from scipy.stats import spearmanr  # slow to import, and needed here only

    without = f"{root}: ships without the grasps that were rejected, which the card looks at, too"
    content = recorded(root)
    refuse(content.get("settings", {}).get("shipped"), f"{without}; take a root that synthesize.py --out made")
    scenes, hand = read_grasps(root, content.get("hand"))
    rows = [(*scene, row) for scene in scenes for row in range(len(scene[2]))]
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    kept = [grasp for grasp in rows if grasp[2][grasp[3]] >= MIN_SCORE]
    sample, scores = len(kept[:sample]), np.array([scores[row] for _, _, scores, row in rows[:mixed]])
    bar = tqdm(kept[:sample] + rows[:mixed], "measuring", unit="grasp", disable=None)
    measured = [measure_grasp(*read_mesh(folder / "mesh.obj"), grasps[row], hand) for folder, grasps, _, row in bar]
    depth, links, exact = map(np.array, zip(*measured))
    depth, links, held, exact = depth[:sample] * 1000, links[:sample], exact[:sample], exact[sample:]
    closed = exact > 0
    card = {
        "root": root.as_posix(),
        "scenes": len(scenes),
        "kept_grasps": len(kept),
        "grasps_measured": sample,
        "penetration_mm": {
            "median": np.median(depth),
            "p99": np.percentile(depth, 99),
            "p99.9": np.percentile(depth, 99.9),
            "max": depth.max(),
        },
        "share_thumb_and_finger_touch": (links[:, 0].any(1) & links[:, 1:].any((1, 2))).mean(),
        "share_three_links_touch": (links.sum((1, 2)) >= 3).mean(),
        "share_force_closed_by_hull": (held > 0).mean(),
        "grasps_scored_by_hull": len(exact),
        "of_these_force_closed": int(closed.sum()),
        "share_same_sign": ((scores > 0) == closed).mean(),
        "score_spearman_with_hull": spearmanr(scores[closed], exact[closed]).statistic,
        "score_over_hull_median": np.median(scores[closed] / exact[closed]) / SCORE_PER_EPSILON,
    }
    card = json.loads(json.dumps(card, default=float), parse_float=lambda text: round(float(text), 4))
    write_json(out / "card.json", card)
    draw_histograms(scenes, hand, out / "histograms.png")
    shown = []
    for folder, grasps, scores, row in kept[:12]:
        title = f"{scene_title('/'.join(folder.parts[-3:]))}: score {scores[row]:.1f}"
        mesh, (pose, joints) = read_mesh(folder / "mesh.obj"), np.split(grasps[row], [7])
        shown.append(Shown(title, *mesh, pose, joints[None], np.ones(1)))
    draw_grasps(shown, out / "grasps.png", hand)
    print(json.dumps(card, indent=2))


def draw_histograms(scenes, hand, path):
    """Score, kept grasps per object and the joints of a root [(scene folder, grasps, scores)], as one picture."""
    from matplotlib.figure import Figure

    scores = np.concatenate([scores for _, _, scores in scenes])
    joints = np.concatenate([grasps[scores >= MIN_SCORE, 7:] for _, grasps, scores in scenes])
    per_object = collections.Counter()
    for folder, _, scene_scores in scenes:
        per_object[folder.parent] += int((scene_scores >= MIN_SCORE).sum())
    rows = 1 + -(-len(hand.joint_names) // 4)
    figure = Figure(figsize=(14, 2.25 * rows), layout="constrained")
    axes = figure.subplots(rows, 4)
    axes[0, 0].hist(scores, 80, color="tab:gray")
    axes[0, 0].axvline(MIN_SCORE, color="tab:red")
    axes[0, 0].set(xlabel=f"score; right of the line ({MIN_SCORE}): kept", ylabel="grasps")
    axes[0, 1].hist(list(per_object.values()), 40, color="tab:gray")
    axes[0, 1].set(xlabel="kept grasps per object", ylabel="objects")
    of_joints = axes[1:].T.ravel()  # a column: a finger, where there are four
    for ax in (*axes[0, 2:], *of_joints[len(hand.joint_names) :]):
        ax.axis("off")
    for ax, name, values, limits in zip(of_joints, hand.joint_names, joints.T, hand.limits):
        ax.hist(values, 60, range=limits, color="tab:blue")
        ax.set(xlabel=f"{name} (rad)", ylabel="kept grasps")
    figure.savefig(path, dpi=80)
