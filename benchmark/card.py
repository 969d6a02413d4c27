"""The card of a dataset: penetration, contacts and scores by code of its own, histograms, pictures."""

import json

import numpy as np
from scipy.spatial import ConvexHull, cKDTree
from tqdm import tqdm

from benchmark.progress import recorded
from benchmark.shipped import NUM_POINTS
from cli.errors import refuse
from data import load_dataset, sample_surface
from files.reading import read_mesh
from files.writing import write_json
from hand import kinematics
from hand.closing import CONTACT, link_gaps
from hand.described import BENCHMARK
from hand.scenes import scene_mesh
from hand.score import MIN_SCORE, SCORE_PER_EPSILON, contact_wrenches
from pictures.draw import draw_grasps, shown_grasps


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


def write_card(root, out, seed, sample=1000, mixed=600):
    """OUT/card.json, histograms.png and grasps.png of a root.

    Penetration and contacts are of `sample` kept grasps, scores are compared on `mixed` ones of any score.
    """
    from scipy.stats import spearmanr  # slow to import, and needed here only

    without = f"{root}: ships without the grasps that were rejected, which the card looks at, too"
    shipped = recorded(root).get("settings", {}).get("shipped")
    refuse(shipped, f"{without}; take a root that synthesize.py --out made")
    data = load_dataset(root, NUM_POINTS, min_score=-np.inf)
    unfit = data.hand is None or np.isnan(data.scores).any() or data.scores.max() < MIN_SCORE
    scored = f"scores, of which some are {MIN_SCORE} or more"
    refuse(unfit, f"{root}: has another hand or not all {scored}; the card is of roots that synthesize.py filled")
    rows = np.random.default_rng(seed).permutation(len(data.scores))
    kept, grasps = rows[data.scores[rows] >= MIN_SCORE], np.concatenate((data.poses, data.joints), 1)
    sample, scores = len(kept[:sample]), data.scores[rows[:mixed]]
    bar = tqdm((*kept[:sample], *rows[:mixed]), "measuring", unit="grasp", disable=None)
    measured = [measure_grasp(*read_mesh(scene_mesh(data, data.scene[i])), grasps[i], data.hand) for i in bar]
    depth, links, exact = map(np.array, zip(*measured))
    depth, links, held, exact = depth[:sample] * 1000, links[:sample], exact[:sample], exact[sample:]
    closed = exact > 0
    card = {
        "root": root.as_posix(),
        "scenes": len(data.scenes),
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
    draw_histograms(data, out / "histograms.png")
    few = kept[:12]
    shown = shown_grasps(data, few, data.joints[few, None], np.zeros((len(few), 1)))
    titles = (f"{entry.title}: score {score:.1f}" for entry, score in zip(shown, data.scores[few]))
    shown = [entry._replace(title=title, recorded=None) for entry, title in zip(shown, titles)]
    draw_grasps(shown, out / "grasps.png", data.hand)
    print(json.dumps(card, indent=2))


def draw_histograms(data, path):
    """Score, kept grasps per object and the joints of a `GraspData` with grasps of any score, as one picture."""
    from matplotlib.figure import Figure

    hand, kept = data.hand, data.scores >= MIN_SCORE
    per_object = np.bincount(np.unique(data.object_of_grasp, return_inverse=True)[1], kept)
    rows = 1 + -(-len(hand.joint_names) // 4)
    figure = Figure(figsize=(14, 2.25 * rows), layout="constrained")
    axes = figure.subplots(rows, 4)
    axes[0, 0].hist(data.scores, 80, color="tab:gray")
    axes[0, 0].axvline(MIN_SCORE, color="tab:red")
    axes[0, 0].set(xlabel=f"score; right of the line ({MIN_SCORE}): kept", ylabel="grasps")
    axes[0, 1].hist(per_object, 40, color="tab:gray")
    axes[0, 1].set(xlabel="kept grasps per object", ylabel="objects")
    of_joints = axes[1:].T.ravel()  # a column: a finger, where there are four
    for ax in (*axes[0, 2:], *of_joints[len(hand.joint_names) :]):
        ax.axis("off")
    for ax, name, values, limits in zip(of_joints, hand.joint_names, data.joints[kept].T, hand.limits):
        ax.hist(values, 60, range=limits, color="tab:blue")
        ax.set(xlabel=f"{name} (rad)", ylabel="kept grasps")
    figure.savefig(path, dpi=80)
