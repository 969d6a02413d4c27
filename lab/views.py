"""Single views: what a camera sees of an object, some millimetres off; and Point-JEPA pretrained on them.

    python -m lab.views --out runs/views.pt     flags of pretrain_jepa.py may follow

A point is hidden where it lies inside the hull of the points as a sphere about the camera mirrors them (Katz et al.,
SIGGRAPH 2007). The context encoder sees a view, and predicts what the target encoder makes of the whole cloud.
"""

import contextlib

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import ConvexHull
from tqdm import tqdm

from benchmark.clouds import load_clouds
from cli.errors import command, refuse
from cli.processes import cores, map_in_processes
from files.writing import stable_seed
from model import PointJEPA, normalize_clouds
from pretrain_jepa import pretrain

DENSE = 2048  # points of a cloud, of which a view has some 700
DISTANCE, ELEVATION = 0.6, (15, 60)  # m of the camera from the cloud's centroid, and degrees over it
MIRROR = 100  # radius of the mirror in distances of the farthest point: larger, and more of what is hidden is seen
NOISE = 0.003  # m, standard deviation along each axis


def visible_points(cloud, camera):
    """Index (n,), ascending, of those points of a cloud (N, 3) that none hides from a camera (3,)."""
    away = cloud - camera
    distances = np.linalg.norm(away, axis=1, keepdims=True)
    mirrored = away * (2 * MIRROR * distances.max() / distances - 1)
    corners = ConvexHull(np.vstack((mirrored, np.zeros(3)))).vertices
    return np.sort(corners[corners < len(cloud)])


def single_view(item):
    """A view (N, 3) float32 m of a cloud (DENSE, 3) m, points of it drawn at random; item: cloud, seed, N."""
    cloud, seed, count = item
    rng = np.random.default_rng(seed)
    up, turn = np.radians(rng.uniform(*ELEVATION)), rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn), np.sin(up)])
    seen = cloud[visible_points(cloud.astype(float), cloud.mean(0) + DISTANCE * direction)]
    seen = seen[np.arange(count) % len(seen)]  # where few are seen, some stand twice, each with noise of its own
    return (seen + NOISE * rng.standard_normal(seen.shape)).astype(np.float32)


def single_views(clouds, seeds, count):
    """A `single_view` (n, count, 3) of each of the clouds (n, DENSE, 3) m."""
    items = zip(clouds, seeds, [count] * len(clouds))
    with contextlib.closing(map_in_processes(single_view, items, cores(), chunk=50)) as views:
        return np.stack(list(tqdm(views, "looking", len(clouds), unit="view", disable=None, delay=2)))


# ---------------------------------------------------------------- pretraining
class ViewJEPA(PointJEPA):
    """Point-JEPA from a view to the whole: views and clouds (B, 2 N, 3) -> as `PointJEPA`.

    Both are in units of the view, which is all that is known later.
    """

    def forward(self, pairs, starts, blocks):
        view, cloud = pairs.chunk(2, dim=1)  # (B, N, 3) each
        view, centroid, radius = normalize_clouds(view, self.config)
        cloud = (cloud - centroid[:, None]) / radius[:, None]
        starts = starts % view.shape[1]
        patches, centers = self.group_in_sequence(view, starts)  # (B, G, S, 3), (B, G, 3)
        all_patches, all_centers = self.group_in_sequence(cloud, starts)
        tokens, all_tokens = self.encoder.embed(torch.cat((patches, all_patches))).chunk(2)  # (B, G, D) each
        hidden, visible = blocks
        targets = self.make_targets(all_tokens, self.encoder.position(all_centers))[:, hidden]  # (B, M, T, D)
        context = self.encoder.transformer(tokens[:, visible], self.encoder.position(centers[:, visible]))
        predictions = self.predictor(context, centers[:, visible], all_centers[:, hidden])  # (B, M, T, D)
        return F.smooth_l1_loss(predictions, targets, beta=2.0), targets, predictions


def load_pairs(args, num_points, up):
    """A view beside each of the clouds that the flags choose, (n, 2 N, 3) float32 m, z up."""
    refuse(up != "z", "--up y: a camera looks from above, along z; leave it out")
    clouds = load_clouds(args, DENSE, up)
    seeds = [stable_seed("pretrain-view", args.seed, i) for i in range(len(clouds))]
    return np.concatenate((single_views(clouds, seeds, num_points), clouds[:, :num_points]), axis=1)


@command
def main(argv=None):
    return pretrain(argv, ("-m", "lab.views"), ViewJEPA, load_pairs)


if __name__ == "__main__":
    main()
