"""Beyond the paper: what some flags can be besides what the paper has. Skip it at a first reading.

    --pool hand               each grasp attends to the tokens through their centers in its own hand frame
    --pool surface            80 distances from the hand to the surface, and no encoder at all
    --pool attention_surface  the paper's object embedding with these distances beside it
    --loss mdn                a mixture of K Gaussians instead of winner takes all
    --loss hedged             one hypothesis learns the average, the logits learn whose error is lowest
    --lora RANK               a frozen transformer with trained low-rank corrections of its attention

To import this file adds the poolings and losses to the dictionaries of model.py. Shapes as there; Q probes of the
surface.
"""

import math
import sys

import numpy as np
import torch
from torch import nn

from loop.fast import exact_products
from model import LENGTH, LOSSES, POOLS, AttentionPool, TokenPool, weighted_mean


def probes_of(box):
    """(Q, 3) m, hand frame: a grid in a box (3, 2) that palm and fingers can close on."""
    return torch.cartesian_prod(*(torch.linspace(*map(float, ends), n) for ends, n in zip(box, (4, 5, 4))))


PROBES = probes_of([[-0.055, 0.055], [0.01, 0.17], [0.01, 0.13]])  # of the benchmark's hand
PROBE_REACH = 0.06  # m: what is farther from a probe counts as just as far
MANY_FAR = 0.6  # share of saturated surface distances that is worth a warning: 0.31 on the open benchmark


def rotation_matrix(quaternion):
    """Unit quaternions xyzw (B, 4) -> rotations (B, 3, 3) of column vectors, hand frame to mesh frame."""
    x, y, z, w = quaternion.unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


class NoEncoder(nn.Module):
    """No tokens, no centers: empty (B, 0, D) and (B, 0, 3)."""

    def __init__(self, config):
        super().__init__()
        self.width = config.width

    def forward(self, clouds, generator=None):
        return clouds.new_zeros(len(clouds), 0, self.width), clouds.new_zeros(len(clouds), 0, 3)


class HandPool(TokenPool):
    """tokens as seen from the hand: each grasp attends to them through their centers in its own hand frame (ours)

    The first layer on [token, center in hand frame, rotation] is a sum of three, so that the wide one runs
    per object and all that is (B, G, ·) stays narrow. Lengths are in units of LENGTH.
    """

    # DEVIATION: ours; the paper pools without the pose, here a grasp looks at the patches that its fingers can reach
    features = True  # False: the tokens do not count, as if they were zero

    def __init__(self, config, heads=4, hidden=64):
        super().__init__(config)
        self.from_token = nn.Linear(config.width, hidden) if self.features else None
        self.from_center = nn.Linear(4, hidden, bias=not self.features)
        self.from_rotation = nn.Linear(9, hidden, bias=False)
        self.mix = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.score = nn.Linear(hidden, heads)
        self.out = nn.Linear(heads * hidden, config.width)

    def forward(self, encoded, object_index, poses):
        rotation = rotation_matrix(poses[:, 3:])  # (B, 3, 3)
        seen = (encoded.centers[object_index] - poses[:, None, :3]) @ rotation / LENGTH  # (B, G, 3) hand frame
        seen = torch.cat([seen, seen.norm(dim=2, keepdim=True)], 2)  # (B, G, 4)
        hidden = self.from_center(seen)  # (B, G, 64)
        if self.features:
            hidden = self.take(self.from_token(encoded.tokens), object_index) + hidden
        hidden = self.mix(hidden + self.from_rotation(rotation.flatten(1))[:, None])  # (B, G, 64)
        weights = self.score(hidden).softmax(1)  # (B, G, heads)
        embedding = self.out((weights.transpose(1, 2) @ hidden).flatten(1))  # (B, D)
        return self.with_size(embedding, encoded, object_index)


@torch.no_grad()
def surface_distances(clouds, object_index, poses, probes=PROBES):
    """How far the surface is from the probes that move with each hand: what a hand full of range sensors would see.

    clouds (O, N, 3) m, object_index (B,), poses (B, 7), probes (Q, 3) m, hand frame -> distances (B, Q) m to the
    nearest point of the cloud.
    """
    # DEVIATION: ours; the paper's object embedding does not know where the hand is
    probes, found = probes.to(clouds.device), []
    # bfloat16 would be off by a centimetre, TF32 by some millimetres
    with torch.autocast(clouds.device.type, enabled=False), exact_products():
        # on a CPU what fits the cache, three times faster than all at once; a GPU wants few and large pieces
        size = 16 if clouds.device.type == "cpu" else 512
        for rows, pose in zip(object_index.split(size), poses.split(size)):
            seen = (clouds[rows] - pose[:, None, :3]) @ rotation_matrix(pose[:, 3:])  # (size, N, 3) hand frame
            products = probes.expand(len(pose), -1, -1) @ seen.transpose(1, 2)  # (size, Q, N)
            squared = torch.add(seen.square().sum(2)[:, None], products, alpha=-2).amin(2) + probes.square().sum(1)
            found.append(squared)  # (size, Q)
    return torch.cat(found).clamp(min=0).sqrt()


def surface_features(clouds, object_index, poses, probes=PROBES):
    """`surface_distances` for the head: -1 at a probe, 2 from PROBE_REACH on, (B, Q)."""
    return 3 * surface_distances(clouds, object_index, poses, probes).clamp(max=PROBE_REACH) / PROBE_REACH - 1


def warn_of_probes(data, rows):
    """Say where --pool surface sees little of the grasps `rows` of a GraspData: its probes fit one hand and frame."""
    rows = np.random.default_rng(0).choice(rows, 256)
    scenes, index = np.unique(data.scene[rows], return_inverse=True)
    clouds, index, poses = map(torch.from_numpy, (data.clouds[scenes], index, data.poses[rows]))
    probes = probes_of(data.hand.work_box) if data.hand and data.hand.source else PROBES
    far = (surface_distances(clouds, index, poses, probes) >= PROBE_REACH).float().mean()
    if far > MANY_FAR:
        print(
            f"warning: --pool surface: {far:.0%} of its distances are over {PROBE_REACH:g} m and tell nothing; "
            "its probes fit a hand and its wrist frame; python data.py ROOT --hand FILE names another",
            file=sys.stderr,
        )


def put_hand(model, source):
    """Let a `GraspModel` know its hand, a source of hand/described.py or None for the benchmark: probes stand there."""
    model.hand = source
    probes = probes_of(source["work_box"]) if source else PROBES
    if probes.shape != PROBES.shape or not probes.isfinite().all():
        raise ValueError(f"its work_box is {source['work_box']}")
    if hasattr(model.pool, "probes"):
        model.pool.probes = probes.to(model.pool.probes.device)


class SurfacePool(nn.Module):
    """distances from the hand to the surface alone, no encoder (ours)"""

    encoder, width = NoEncoder, len(PROBES)

    def __init__(self, config):
        super().__init__()
        self.register_buffer("probes", PROBES, persistent=False)

    def forward(self, encoded, object_index, poses):
        return surface_features(encoded.clouds, object_index, poses, self.probes)


class AttentionSurfacePool(AttentionPool):
    """attention, and distances from the hand to the surface (ours)"""

    def __init__(self, config):
        super().__init__(config)
        self.width += len(PROBES)
        self.register_buffer("probes", PROBES, persistent=False)

    def forward(self, encoded, object_index, poses):
        distances = surface_features(encoded.clouds, object_index, poses, self.probes)  # (B, Q)
        return torch.cat([super().forward(encoded, object_index, poses), distances], 1)


POOLS |= {"hand": HandPool, "attention_surface": AttentionSurfacePool, "surface": SurfacePool}


# ---------------------------------------------------------------- losses
class MixtureLoss(nn.Module):
    """mixture density: negative log-likelihood per joint of K Gaussians around the hypotheses, without alpha

    Arguments as in `model.wta_loss`; one learned log σ (J,) per joint, of rad.
    """

    def __init__(self, config):
        super().__init__()
        self.log_sigma = nn.Parameter(torch.full((config.joints,), -1.0))  # 0.37 rad, an untrained model's error

    def nll(self, joints_hat, logits, joints):
        """Of each sample, per joint: (B,) nats."""
        scaled = (joints_hat - joints[:, None]) * (-self.log_sigma).exp()  # (B, K, J)
        log_density = -(0.5 * scaled.square() + self.log_sigma + 0.5 * math.log(2 * math.pi)).sum(2)  # (B, K)
        return -(logits.log_softmax(1) + log_density).logsumexp(1) / joints.shape[1]

    def forward(self, joints_hat, logits, joints, alpha, weights=None):
        return weighted_mean(self.nll(joints_hat, logits, joints), weights)


def hedged_loss(joints_hat, logits, joints, alpha, weights=None):
    """one hypothesis learns the average, logits choose by expected error (ours): winner takes all among 1…K-1

    Arguments as in `model.wta_loss`, K at least 2.
    """
    # DEVIATION: ours. Which hypothesis wins is often a matter of chance. To choose the one that wins most often is a
    # bet then, while the average has the lowest expected squared error, which is what is reported
    errors = (joints_hat - joints[:, None]).square().mean(2)  # (B, K)
    expected = (logits.softmax(1) * errors.detach()).sum(1)  # (B,) of a hypothesis drawn by the logits
    return weighted_mean(errors[:, 0] + errors[:, 1:].amin(1) + alpha * expected, weights)


LOSSES |= {"mdn": MixtureLoss, "hedged": hedged_loss}


# ---------------------------------------------------------------- low-rank adapters
class LoraLinear(nn.Module):
    """A frozen linear layer and a trained correction of low rank, x Wᵀ + x Aᵀ Bᵀ + b (Hu et al., ICLR 2022).

    B starts at zero: the layer is at first the one that it was.
    """

    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)  # A
        self.up = nn.Linear(rank, layer.out_features, bias=False)  # B
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def add_lora(transformer, rank):
    """Put adapters of that rank around qkv and projection of every block; -> their parameters, which alone train."""
    trained = []
    for block in transformer.blocks:
        for name in ("qkv", "proj"):
            adapted = LoraLinear(getattr(block.attn, name), rank)
            setattr(block.attn, name, adapted)
            trained += [adapted.down.weight, adapted.up.weight]
    return trained


def merged(state):
    """A state dict with every adapter added to the layer that it corrects: the keys of a model without adapters."""
    plain = {name: weights for name, weights in state.items() if ".down." not in name and ".up." not in name}
    for name, weights in state.items():
        if name.endswith(".up.weight"):
            layer = name.removesuffix("up.weight")
            plain[layer + "layer.weight"] = plain[layer + "layer.weight"] + weights @ state[layer + "down.weight"]
    return {name.replace(".qkv.layer.", ".qkv.").replace(".proj.layer.", ".proj."): w for name, w in plain.items()}
