"""Beyond the paper: poolings that know where the hand is, and two losses. Skip this file at a first reading.

    --pool hand               each grasp attends to the tokens through their centers in its own hand frame
    --pool surface            80 distances from the hand to the surface, and no encoder at all
    --pool attention_surface  the paper's object embedding with these distances beside it
    --loss mdn                a mixture of K Gaussians instead of winner takes all
    --loss hedged             one hypothesis learns the average, the logits learn whose error is lowest

Shapes as in model.py; Q probes of the surface.
"""

import functools
import math

import torch
from torch import nn

from plumbing.fast import Linear, average, take_rows

# (Q, 3) m, hand frame: a grid in the room that palm and fingers can close on
PROBES = torch.cartesian_prod(
    torch.linspace(-0.055, 0.055, 4), torch.linspace(0.01, 0.17, 5), torch.linspace(0.01, 0.13, 4)
)
PROBE_REACH = 0.06  # m: what is farther from a probe counts as just as far


def rotation_matrix(quaternion):
    """Unit quaternions xyzw (B, 4) -> rotations (B, 3, 3) of column vectors, hand frame to mesh frame."""
    x, y, z, w = quaternion.unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


class HandPool(nn.Module):
    """Each grasp attends to the tokens through their centers in its own hand frame -> (B, D).

    The first layer on [token, center in hand frame, rotation] is a sum of three, so that the wide one runs
    per object and all that is (B, G, ·) stays narrow. Lengths are seen in units of `unit` (m).
    """

    # DEVIATION: ours; the paper pools without the pose, here a grasp looks at the patches that its fingers can reach

    def __init__(self, width, unit, heads=4, hidden=64):
        super().__init__()
        self.unit = unit
        self.from_token = Linear(width, hidden)
        self.from_center = Linear(4, hidden, bias=False)
        self.from_rotation = Linear(9, hidden, bias=False)
        self.mix = nn.Sequential(nn.ReLU(), Linear(hidden, hidden), nn.ReLU())
        self.score = Linear(hidden, heads)
        self.out = Linear(heads * hidden, width)

    def forward(self, tokens, centers, object_index, poses):
        """tokens (O, G, D), centers (O, G, 3) m in the mesh's frame, object_index (B,), poses (B, 7)."""
        rotation = rotation_matrix(poses[:, 3:])  # (B, 3, 3)
        seen = (centers[object_index] - poses[:, None, :3]) @ rotation / self.unit  # (B, G, 3) hand frame
        seen = torch.cat([seen, seen.norm(dim=2, keepdim=True)], 2)  # (B, G, 4)
        hidden = take_rows(self.from_token(tokens), object_index) + self.from_center(seen)  # (B, G, 64)
        hidden = self.mix(hidden + self.from_rotation(rotation.flatten(1))[:, None])  # (B, G, 64)
        weights = self.score(hidden).softmax(1)  # (B, G, heads)
        return self.out((weights.transpose(1, 2) @ hidden).flatten(1))  # (B, D)


@functools.cache
def probes_on(device):
    """PROBES on a device, copied there once."""
    return PROBES.to(device)


@torch.no_grad()
def surface_distances(clouds, object_index, poses):
    """How far the surface is from the probes that move with each hand: what a hand full of range sensors would see.

    clouds (O, N, 3) m, object_index (B,), poses (B, 7) -> distances (B, Q) m to the nearest point of the cloud.
    """
    # DEVIATION: ours; the paper's object embedding does not know where the hand is
    probes, found = probes_on(clouds.device), []
    with torch.autocast(clouds.device.type, enabled=False):  # bfloat16 would be off by a centimetre
        # on a CPU what fits the cache, three times faster than all at once; a GPU wants few and large pieces
        size = 16 if clouds.device.type == "cpu" else 512
        for rows, pose in zip(object_index.split(size), poses.split(size)):
            seen = (clouds[rows] - pose[:, None, :3]) @ rotation_matrix(pose[:, 3:])  # (size, N, 3) hand frame
            products = probes.expand(len(pose), -1, -1) @ seen.transpose(1, 2)  # (size, Q, N)
            squared = torch.add(seen.square().sum(2)[:, None], products, alpha=-2).amin(2) + probes.square().sum(1)
            found.append(squared)  # (size, Q)
    return torch.cat(found).clamp(min=0).sqrt()


def surface_features(clouds, object_index, poses):
    """`surface_distances` for the head: -1 at a probe, 2 from PROBE_REACH on, (B, Q)."""
    return 3 * surface_distances(clouds, object_index, poses).clamp(max=PROBE_REACH) / PROBE_REACH - 1


def mdn_loss(joints_hat, logits, joints, log_sigma, weights=None):
    """Negative log-likelihood per joint of a mixture of K Gaussians around the hypotheses.

    joints_hat (B, K, J) rad, logits (B, K), joints (B, J) rad, log_sigma (J,) of rad; weights as in `model.wta_loss`.
    """
    scaled = (joints_hat - joints[:, None]) * (-log_sigma).exp()  # (B, K, J)
    log_density = -(0.5 * scaled.square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(2)  # (B, K)
    return -average((logits.log_softmax(1) + log_density).logsumexp(1), weights) / joints.shape[1]


def hedged_loss(joints_hat, logits, joints, alpha, weights=None):
    """Winner takes all among hypotheses 1…K-1, while 0 learns the average; the logits learn whose error is lowest.

    Arguments as in `model.wta_loss`, K at least 2.
    """
    # DEVIATION: ours. Which hypothesis wins is often a matter of chance, and then the one of the largest share of
    # the wins is a bet, while the average has the lowest expected squared error, which is what is reported
    errors = (joints_hat - joints[:, None]).square().mean(2)  # (B, K)
    expected = (logits.softmax(1) * errors.detach()).sum(1)  # (B,) of a hypothesis drawn by the logits
    return average(errors[:, 0] + errors[:, 1:].amin(1) + alpha * expected, weights)
