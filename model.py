"""The grasp network, its losses and its checkpoints; at the end, what only pretraining needs.

    cloud (N, 3) ── farthest point sampling: G centers ── S neighbours of each ── mini-PointNet ──┐
                                                                                             G tokens
    object embedding ◀── pooling ◀── transformer, position of the centers added to every block ◀──┘
           │
    wrist pose (7) ── concat ── MLP head ──▶ K joint vectors (radians) and K logits

    B  grasps in a batch        N  points per cloud            K  hypotheses
    O  clouds in a batch        G  patches = tokens            J  joint angles, rad
    M  target blocks            S  points per patch            D, H  width, heads
    T  tokens per target block  C  context tokens              P  pose (7): xyz m, quaternion xyzw
    Q  probes of the surface

Where only clouds are in play (encoder, pretraining) their number is written B as well. Clouds and
poses are in metres in the frame of the mesh, z up; the encoder itself sees normalised clouds.

References: "Label-Efficient Grasp Joint Prediction with Point-JEPA" (the paper: Sec., Eq., Fig.);
Point-JEPA, arXiv 2404.16432 (encoder and pretraining); PointNet++, arXiv 1706.02413 (sampling,
ball query); I-JEPA, arXiv 2301.08243.
"""

import copy
import dataclasses
import io
import math
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, atomic

POSITION_HIDDEN = 128  # hidden width of the positional encoding, in all published weights
LENGTH = 0.05  # m: the network's unit of what it sees of the hand, so that wrist positions vary by about one
# (Q, 3) m, hand frame: a grid in the room that palm and fingers can close on
PROBES = torch.cartesian_prod(torch.linspace(-0.055, 0.055, 4), torch.linspace(0.01, 0.17, 5), torch.linspace(0.01, 0.13, 4))
REACH = 0.06  # m: what is farther from a probe counts as just as far
FINE_TUNING = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1}
PRETRAINING = {"dropout": 0.1, "attention_dropout": 0.05, "drop_path": 0.25}


# ---------------------------------------------------------------- configuration
CHOICES = {"group": ("knn", "ball"), "normalize": ("unit_sphere", "metric"), "up": ("z", "y"),
           "target_norm": ("instance", "layer"), "loss": ("wta", "mdn", "hedged"),
           "pool": ("attention", "mean", "max", "mean_max", "hand", "attention_surface", "surface", "none")}  # fmt: skip
NO_ENCODER = ("surface", "none")  # poolings of no tokens


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint must remember of the network; the defaults are the preset `small`."""

    # encoder: ENCODER_FIELDS below, which a pretrained encoder fixes
    points: int = 512  # N
    patches: int = 32  # G
    patch_size: int = 16  # S
    group: str = "knn"  # knn or ball
    radius: float = 0.0  # of a ball: metres with `metric`, units of the cloud's radius with `unit_sphere`
    normalize: str = "unit_sphere"  # unit_sphere or metric
    scale: float = 1.0  # metric only: metres per unit of the encoder
    up: str = "z"  # the vertical axis that the encoder was trained with, z or y
    width: int = 192  # D
    depth: int = 4
    heads: int = 6
    w1: int = 64  # widths of the mini-PointNet
    w2: int = 128
    w3: int = 256
    # regularisation, free to differ between pretraining and fine-tuning
    dropout: float = FINE_TUNING["dropout"]
    attention_dropout: float = FINE_TUNING["attention_dropout"]
    drop_path: float = FINE_TUNING["drop_path"]
    # pretraining: how targets are normalised, the shares of the free patches that the context may take, the predictor
    target_norm: str = "instance"  # instance or layer (the original), see PointJEPA.make_targets
    context_low: float = 0.85  # 0.4 and 0.75 in the original, see the README
    context_high: float = 1.0
    predictor_width: int = 96
    predictor_depth: int = 4
    predictor_heads: int = 3
    # head
    k: int = 5
    joints: int = 12  # J
    pool: str = "attention"
    loss: str = "wta"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (float, int) if field.type is float else field.type):
                raise UserError(f"{field.name} must be {field.type.__name__}, not {value!r}")
            if field.name in CHOICES and value not in CHOICES[field.name]:
                raise UserError(f"{field.name} must be one of {', '.join(CHOICES[field.name])}, not {value!r}")
            if field.type is int and value < 1:
                raise UserError(f"{field.name} must be at least 1, not {value}")
        if self.loss == "hedged" and self.k < 2:
            raise UserError("the loss hedged needs a k of at least 2: one hypothesis is the average")
        if not all(0 <= rate < 1 for rate in (self.dropout, self.attention_dropout, self.drop_path)):
            raise UserError("dropout, attention_dropout and drop_path must be in [0, 1)")
        if self.width % self.heads or self.predictor_width % self.predictor_heads:
            raise UserError("heads must divide width, and predictor_heads must divide predictor_width")
        if not 0 < self.context_low <= self.context_high <= 1:
            raise UserError(f"context_low and context_high must be ordered and in (0, 1], not {self.context_low} and {self.context_high}")
        if max(self.patches, self.patch_size) > self.points:
            raise UserError(f"patches and patch_size must not exceed points ({self.points})")
        if (self.group == "ball" and not 0 < self.radius < math.inf) or not 0 < self.scale < math.inf:
            raise UserError(f"scale and a ball's radius must be positive, not {self.scale} and {self.radius}")


ENCODER_FIELDS = ("points", "patches", "patch_size", "group", "radius", "normalize", "scale", "up",
                  "width", "depth", "heads", "w1", "w2", "w3")
PRESETS = {
    "tiny": ModelConfig(points=64, patches=8, patch_size=8, width=32, depth=2, heads=2, w1=16, w2=16, w3=32,
                        predictor_width=16, predictor_depth=1, predictor_heads=2),
    "small": ModelConfig(),
    "paper": ModelConfig(points=1024, patches=64, patch_size=32, width=384, depth=12, w1=128, w2=256, w3=512,
                         target_norm="layer", context_low=0.4, context_high=0.75, predictor_width=192, predictor_depth=6, predictor_heads=6),
}  # fmt: skip


# ---------------------------------------------------------------- geometry
def normalize_clouds(clouds, config):
    """Bring clouds to the units of the encoder: `metric` or `unit_sphere`.

    clouds (O, N, 3) m -> clouds (O, N, 3) units, centroid (O, 3) m, radius (O, 1) m per unit,
    so that metres = units · radius + centroid.
    """
    if config.normalize == "metric":
        centroid, radius = torch.zeros_like(clouds[:, 0]), torch.full_like(clouds[:, 0, :1], config.scale)
    else:
        centroid = clouds.mean(1)  # (O, 3)
        radius = (clouds - centroid[:, None]).norm(dim=2).amax(1, keepdim=True)  # (O, 1)
    return (clouds - centroid[:, None]) / radius[:, None], centroid, radius


def from_z_up(points, up):
    """Turn z-up points (..., 3) about x into the axes of an encoder whose vertical axis is `up`."""
    return points if up == "z" else torch.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


def to_z_up(points, up):
    """The inverse of `from_z_up`."""
    return points if up == "z" else torch.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


@torch.no_grad()
def farthest_point_sample(clouds, count, generator=None):
    """Choose `count` points, each the farthest from those before it (PointNet++).

    clouds (B, N, 3) -> index (B, count). Starts at point 0, or at a random point of each cloud if a
    generator is given; the first index wins ties.
    """
    batch, num_points, _ = clouds.shape
    coordinates = clouds.transpose(1, 2).contiguous()  # (B, 3, N): long rows are faster than triples
    nearest = clouds.new_full((batch, num_points), math.inf)  # squared distance to the chosen set
    last = torch.zeros(batch, dtype=torch.long, device=clouds.device)
    if generator is not None:
        last = torch.randint(num_points, (batch,), generator=generator, device=generator.device)
        last = last.to(clouds.device, non_blocking=True)  # blocking would wait for the GPU
    chosen = [last]
    for _ in range(count - 1):
        center = coordinates.gather(2, last[:, None, None].expand(-1, 3, -1))  # (B, 3, 1)
        torch.minimum(nearest, (coordinates - center).square_().sum(1), out=nearest)  # (B, N)
        last = nearest.argmax(1)  # (B,)
        chosen.append(last)
    return torch.stack(chosen, 1)  # (B, count)


def gather_points(points, index):
    """Rows of `points` (B, N, C) named by `index` (B, ...) -> (B, ..., C)."""
    rows = index.flatten(1)[..., None].expand(-1, -1, points.shape[-1])  # (B, Q, C)
    return points.gather(1, rows).view(*index.shape, -1)


def squared_distances(left, right):
    """left (B, Q, 3), right (B, R, 3) -> squared distances (B, Q, R), by differences: no cancellation."""
    left, right = (points.transpose(1, 2).contiguous() for points in (left, right))  # (B, 3, ·): long rows are faster
    total = (left[:, 0, :, None] - right[:, 0, None]).square_()  # (B, Q, R)
    for axis in (1, 2):
        total += (left[:, axis, :, None] - right[:, axis, None]).square_()
    return total


def smallest(values, count):
    """Indices of the `count` smallest along the last dimension, in no order: (..., N) -> (..., count)."""
    if values.device.type != "cpu":
        return values.topk(count, largest=False, sorted=False).indices
    return torch.from_numpy(np.argpartition(values.numpy(), count - 1)[..., :count])  # three times faster than topk


@torch.no_grad()
def group_points(clouds, centers, size, method="knn", radius=0.0):
    """Gather the patch of each center, in coordinates relative to it.

    clouds (B, N, 3), centers (B, G, 3) -> patches (B, G, S, 3).
    knn (Point-JEPA): the S nearest points. ball (Sec. III-A, PointNet++): the first S points in index
    order with squared distance under radius², padded with the first one found; divided by the radius.
    """
    distances = squared_distances(centers, clouds)  # (B, G, N)
    if method == "knn":
        index = smallest(distances, size)  # (B, G, S)
        return gather_points(clouds, index) - centers[:, :, None]  # (B, G, S, 3)
    num_points = clouds.shape[1]
    order = torch.arange(num_points, device=clouds.device)
    index = order.where(distances < radius**2, num_points)  # (B, G, N): points outside go last
    index = index.topk(size, largest=False, sorted=True).values  # (B, G, S)
    index = index.where(index < num_points, index[..., :1])
    return (gather_points(clouds, index) - centers[:, :, None]) / radius  # (B, G, S, 3)


def rotation_matrix(quaternion):
    """Unit quaternions xyzw (B, 4) -> rotations (B, 3, 3) of column vectors, hand frame to mesh frame."""
    x, y, z, w = quaternion.unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


# ---------------------------------------------------------------- encoder
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(x, weight, bias=None):
    """x (..., in), weight (out, in) -> x @ weight.T + bias (..., out), float32 on a CPU, by the library oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight.contiguous(), bias, "none", [], "")


class OneDnnLinear(torch.autograd.Function):
    """F.linear with products by oneDNN, which PyTorch itself takes for bfloat16 only.

    For float32 it takes MKL, which on an AMD processor with AVX-512 was measured at less than half the speed.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        of_x = onednn_product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad, x = grad.flatten(0, -2), x.flatten(0, -2)
        # both must be turned, which is cheap while they fit the processor's cache
        pieces = zip(grad.split(1024), x.split(1024))
        of_weight = sum(onednn_product(g.t().contiguous(), rows.t()) for g, rows in pieces)  # (out, in)
        return of_x, of_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


def linear(x, weight, bias=None):
    """F.linear, for float32 on a CPU by the faster library."""
    if not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return OneDnnLinear.apply(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear through `linear`."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class Dropout(nn.Module):
    """nn.Dropout with a cheaper mask on CPU: 16 random bits per value, three times faster than its draws."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        bits = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape) >= round(self.rate * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.rate))


class MaxOverPoints(torch.autograd.Function):
    """(B·G, S, C) -> (B·G, C): a max pooling whose backward pass writes to the winners and visits nothing else."""

    @staticmethod
    def forward(ctx, features):
        image = features.unsqueeze(2).permute(0, 3, 1, 2)  # (B·G, C, S, 1), in memory as channels last
        values, winners = F.max_pool2d(image, (features.shape[1], 1), return_indices=True)  # (B·G, C, 1, 1) each
        ctx.save_for_backward(winners.flatten(1))
        ctx.size = features.shape[1]
        return values.flatten(1)

    @staticmethod
    def backward(ctx, grad):
        (winners,) = ctx.saved_tensors  # (B·G, C)
        return grad.new_zeros(len(grad), ctx.size, grad.shape[1]).scatter_(1, winners[:, None], grad[:, None])


max_over_points = MaxOverPoints.apply


class PatchEmbed(nn.Module):
    """The mini-PointNet that turns a patch into a token (Point-JEPA's tokenizer, after Point-BERT).

    patches (B, G, S, 3) -> tokens (B, G, D). BatchNorm's statistics are over all B·G·S points.
    """

    def __init__(self, w1, w2, w3, width):
        super().__init__()
        self.first = nn.Sequential(Linear(3, w1, bias=False), nn.BatchNorm1d(w1), nn.ReLU(True), Linear(w1, w2))
        self.second = nn.Sequential(
            Linear(2 * w2, w3, bias=False), nn.BatchNorm1d(w3), nn.ReLU(True), Linear(w3, width)
        )

    def forward(self, patches):
        batch, num_patches, size, _ = patches.shape
        points = self.first(patches.reshape(-1, 3))  # (B·G·S, w2)
        pooled = max_over_points(points.view(batch * num_patches, size, -1))  # (B·G, w2)
        # second[0] acts on concat(pooled, points); split, its pooled half runs once per patch, not S times
        for_pooled, for_points = self.second[0].weight.chunk(2, dim=1)  # (w3, w2) each
        points = linear(points, for_points).view(batch * num_patches, size, -1)  # (B·G, S, w3)
        points = points + linear(pooled, for_pooled)[:, None]
        points = self.second[1:](points.flatten(0, 1))  # (B·G·S, D)
        return max_over_points(points.view(batch * num_patches, size, -1)).view(batch, num_patches, -1)  # (B, G, D)


class Attention(nn.Module):
    """Multi-head self-attention, (B, G, D) -> (B, G, D); rows of qkv are q, k, v, each split into heads."""

    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, G, 3, H, D/H)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, G, D/H) each
        rate = self.dropout.rate if self.training else 0.0
        if rate == 0 or x.device.type != "cpu":
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)  # (B, H, G, D/H)
        else:  # the same, faster on CPU for a few dozen tokens
            weights = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(3)  # (B, H, G, G)
            mixed = self.dropout(weights) @ value  # (B, H, G, D/H)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, G, D)


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth per sample, (B, G, D) -> (B, G, D)."""

    def __init__(self, width, heads, dropout, attention_dropout, drop_path):
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, attention_dropout)
        self.dropout = Dropout(dropout)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Dropout(dropout),
                                 Linear(4 * width, width), Dropout(dropout))  # fmt: skip

    def keep(self, branch):
        """Drop the whole branch of a sample with probability `drop_path`; scale the others up."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.empty_like(branch[:, :1, :1]).bernoulli_(1 - self.drop_path)  # (B, 1, 1)
        return branch * (kept / (1 - self.drop_path))

    def forward(self, x):
        x = x + self.keep(self.dropout(self.attn(self.norm1(x))))
        return x + self.keep(self.mlp(self.norm2(x)))


class TransformerEncoder(nn.Module):
    """Blocks and a final LayerNorm; stochastic depth goes linearly from drop_path[0] to drop_path[1]."""

    def __init__(self, width, depth, heads, dropout=0.0, attention_dropout=0.0, drop_path=(0.0, 0.0)):
        super().__init__()
        low, high = drop_path
        rates = [low + (high - low) * layer / max(1, depth - 1) for layer in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, dropout, attention_dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)

    def residual(self, x, position=None):
        """The residual stream after the last block, before the norm; `position` is added before every block."""
        for block in self.blocks:
            x = block(x if position is None else x + position)
        return x  # (B, G, D)

    def forward(self, x, position=None):
        return self.norm(self.residual(x, position))  # (B, G, D)


def position_encoding(width):
    """Positions (..., 3) -> (..., width)."""
    return nn.Sequential(Linear(3, POSITION_HIDDEN), nn.GELU(), Linear(POSITION_HIDDEN, width))


class PointEncoder(nn.Module):
    """Point-JEPA's encoder: normalised clouds (B, N, 3) -> tokens (B, G, D), centers (B, G, 3)."""

    # DEVIATION: the tokenizer trains with the rest, as in Sec. III-C and the published code; Fig. 2 calls it frozen

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = PatchEmbed(config.w1, config.w2, config.w3, config.width)
        self.position = position_encoding(config.width)
        self.transformer = TransformerEncoder(config.width, config.depth, config.heads, config.dropout,
                                              config.attention_dropout, (0.0, config.drop_path))  # fmt: skip

    def group(self, clouds, generator=None):
        """Clouds (B, N, 3) -> patches (B, G, S, 3) relative to their centers, centers (B, G, 3)."""
        config = self.config
        index = farthest_point_sample(clouds, config.patches, generator)  # (B, G)
        centers = gather_points(clouds, index)  # (B, G, 3)
        radius = config.radius / config.scale if config.normalize == "metric" else config.radius
        return group_points(clouds, centers, config.patch_size, config.group, radius), centers

    def forward(self, clouds, generator=None):
        patches, centers = self.group(clouds, generator)
        return self.transformer(self.embed(patches), self.position(centers)), centers


# ---------------------------------------------------------------- pooling
def pool_tokens(tokens, kind):
    """Pool without weights: tokens (O, G, D) -> (O, D), (O, 2·D) for mean_max, (O, 0) for any other kind."""
    parts = [tokens[:, 0, :0]]
    if kind in ("mean", "mean_max"):
        parts.append(tokens.mean(1))
    if kind in ("max", "mean_max"):
        parts.append(tokens.amax(1))
    return torch.cat(parts, 1)


class AttentionPool(nn.Module):
    """One learnable query attends to the tokens (Sec. III-B), (O, G, D) -> (O, D); no norm, no residual."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens):
        query = self.query.expand(len(tokens), -1, -1)  # (O, 1, D)
        return self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]  # (O, D)


class HandPool(nn.Module):
    """Each grasp attends to the tokens through their centers in its own hand frame -> (B, D).

    The first layer on [token, center in hand frame, rotation] is a sum of three, so that the wide one runs
    per object and all that is (B, G, ·) stays narrow.
    """

    # DEVIATION: ours; the paper pools without the pose, here a grasp looks at the patches that its fingers can reach

    def __init__(self, width, heads=4, hidden=64):
        super().__init__()
        self.from_token = Linear(width, hidden)
        self.from_center = Linear(4, hidden, bias=False)
        self.from_rotation = Linear(9, hidden, bias=False)
        self.mix = nn.Sequential(nn.ReLU(), Linear(hidden, hidden), nn.ReLU())
        self.score = Linear(hidden, heads)
        self.out = Linear(heads * hidden, width)

    def forward(self, tokens, centers, object_index, poses):
        """tokens (O, G, D), centers (O, G, 3) m in the mesh's frame, object_index (B,), poses (B, 7)."""
        rotation = rotation_matrix(poses[:, 3:])  # (B, 3, 3)
        seen = (centers[object_index] - poses[:, None, :3]) @ rotation / LENGTH  # (B, G, 3) hand frame
        seen = torch.cat([seen, seen.norm(dim=2, keepdim=True)], 2)  # (B, G, 4)
        hidden = self.from_token(tokens).index_select(0, object_index) + self.from_center(seen)  # (B, G, 64)
        hidden = self.mix(hidden + self.from_rotation(rotation.flatten(1))[:, None])  # (B, G, 64)
        weights = self.score(hidden).softmax(1)  # (B, G, heads)
        return self.out((weights.transpose(1, 2) @ hidden).flatten(1))  # (B, D)


@torch.no_grad()
def surface_distances(clouds, object_index, poses):
    """How far the surface is from the probes that move with each hand: what a hand full of range sensors would see.

    clouds (O, N, 3) m, object_index (B,), poses (B, 7) -> distances (B, Q) m to the nearest point of the cloud.
    """
    # DEVIATION: ours; the paper's object embedding does not know where the hand is
    probes, found = PROBES.to(clouds, non_blocking=True), []  # blocking would wait for the GPU
    with torch.autocast(clouds.device.type, enabled=False):  # bfloat16 would be off by a centimetre
        # on a CPU what fits the cache, three times faster than all at once; a GPU wants few and large pieces
        size = 16 if clouds.device.type == "cpu" else 512
        for rows, pose in zip(object_index.split(size), poses.split(size)):
            seen = (clouds[rows] - pose[:, None, :3]) @ rotation_matrix(pose[:, 3:])  # (size, N, 3) hand frame
            products = probes.expand(len(pose), -1, -1) @ seen.transpose(1, 2)  # (size, Q, N)
            squared = torch.add(seen.square().sum(2)[:, None], products, alpha=-2).amin(2) + probes.square().sum(1)
            found.append(squared)  # (size, Q)
    return torch.cat(found).clamp(min=0).sqrt()


# ---------------------------------------------------------------- grasp model and losses
class GraspModel(nn.Module):
    """Cloud and wrist pose -> K hypotheses of the joints and their logits (Sec. III).

    clouds (O, N, 3) m, object_index (B,) in 0…O-1, poses (B, 7) -> joints (B, K, J) rad, logits (B, K).
    Each cloud is encoded once, however many grasps of it the batch holds. joint_mean (J,) rad is the
    training mean, to which the head adds.
    """

    def __init__(self, config, joint_mean=None):
        super().__init__()
        self.config, self.joint_names = config, None
        self.encoder = nn.Identity() if config.pool in NO_ENCODER else PointEncoder(config)
        pools = {"attention": AttentionPool, "attention_surface": AttentionPool, "hand": HandPool}
        self.pool = pools[config.pool](config.width) if config.pool in pools else None
        embedding = {"none": 0, "surface": 0, "mean_max": 2 * config.width}.get(config.pool, config.width)
        embedding += len(PROBES) if "surface" in config.pool else 0
        sizes = [embedding + (4 if self.sees_size else 0) + 7, 512, 256, 128]
        layers = []
        for size_in, size_out in zip(sizes, sizes[1:]):
            layers += [Linear(size_in, size_out), nn.ReLU(), Dropout(0.1)]
        self.head = nn.Sequential(*layers, Linear(sizes[-1], config.k * config.joints + config.k))
        mean = torch.zeros(config.joints) if joint_mean is None else torch.as_tensor(joint_mean, dtype=torch.float32)
        self.register_buffer("joint_mean", mean.clone())
        if config.loss == "mdn":
            self.log_sigma = nn.Parameter(torch.full((config.joints,), -1.0))  # 0.37 rad, an untrained model's error

    @property
    def sees_size(self):
        """Whether the head gets centroid and radius: a unit sphere hides them, and the hand has one size."""
        return self.config.normalize == "unit_sphere" and self.config.pool not in NO_ENCODER

    def encode(self, clouds, generator=None):
        """clouds (O, N, 3) m -> tokens (O, G, D), centers (O, G, 3) units z up, centroid (O, 3) m, radius (O, 1) m, clouds."""
        config = self.config
        units, centroid, radius = normalize_clouds(clouds, config)
        if config.pool in NO_ENCODER:
            return units[:, :1, :1], units[:, :1], centroid, radius, clouds  # tokens and centers that nothing reads
        tokens, centers = self.encoder(from_z_up(units, config.up), generator)
        return tokens, to_z_up(centers, config.up), centroid, radius, clouds

    def decode(self, encoded, object_index, poses):
        """What `encode` returned, object_index (B,), poses (B, 7) -> joints (B, K, J) rad, logits (B, K)."""
        tokens, centers, centroid, radius, clouds = encoded
        if self.config.pool == "hand":
            metres = centers * radius[:, None] + centroid[:, None]  # (O, G, 3) mesh frame
            features = [self.pool(tokens, metres, object_index, poses)]  # (B, D)
        else:
            pooled = self.pool(tokens) if self.pool is not None else pool_tokens(tokens, self.config.pool)
            features = [pooled.index_select(0, object_index)]  # (B, D); the backward of [] adds up in no fixed order
        if self.sees_size:
            features.append(torch.cat([centroid, radius], 1)[object_index] / LENGTH)  # (B, 4)
        if "surface" in self.config.pool:
            features.append(3 * surface_distances(clouds, object_index, poses).clamp(max=REACH) / REACH - 1)  # (B, Q)
        # DEVIATION: lengths enter the head in units of LENGTH, not metres: positions of some 0.05 among embedding
        # values of order one are hardly learnt, and models with an embedding then fall behind pose-only ones
        features += [poses[:, :3] / LENGTH, poses[:, 3:]]  # (B, 3), (B, 4)
        out = self.head(torch.cat(features, 1)).to(self.joint_mean.dtype)  # (B, K·J + K)
        angles, logits = out.split([self.config.k * self.config.joints, self.config.k], 1)
        return angles.unflatten(1, (self.config.k, -1)) + self.joint_mean, logits

    def forward(self, clouds, object_index, poses, generator=None):
        return self.decode(self.encode(clouds, generator), object_index, poses)

    def loss(self, joints_hat, logits, joints, alpha):
        """The training loss that the configuration names, a scalar."""
        if self.config.loss == "mdn":
            return mdn_loss(joints_hat, logits, joints, self.log_sigma)
        if self.config.loss == "hedged":
            return hedged_loss(joints_hat, logits, joints, alpha)
        return wta_loss(joints_hat, logits, joints, alpha)


def wta_loss(joints_hat, logits, joints, alpha):
    """Winner takes all: squared error of the best hypothesis + alpha · cross entropy of choosing it (Eq. 1-2).

    joints_hat (B, K, J) rad, logits (B, K), joints (B, J) rad -> scalar.
    """
    # DEVIATION: the mean over joints where Eq. 2 sums: alpha 0.1 equals 0.1 · J there. alpha is a constant; as a
    # learned weight, which the published code makes it, it can only shrink.
    errors = (joints_hat - joints[:, None]).square().mean(2)  # (B, K)
    winner = errors.argmin(1)  # (B,)
    return errors.gather(1, winner[:, None]).mean() + alpha * F.cross_entropy(logits, winner)


def mdn_loss(joints_hat, logits, joints, log_sigma):
    """Negative log-likelihood per joint of a mixture of K Gaussians, log_sigma (J,); otherwise as `wta_loss`."""
    scaled = (joints_hat - joints[:, None]) * (-log_sigma).exp()  # (B, K, J)
    log_density = -(0.5 * scaled.square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(2)  # (B, K)
    return -(logits.log_softmax(1) + log_density).logsumexp(1).mean() / joints.shape[1]


def hedged_loss(joints_hat, logits, joints, alpha):
    """Winner takes all among hypotheses 1…K-1, while 0 learns the average; the logits learn whose error is lowest.

    Arguments as in `wta_loss`, K at least 2.
    """
    # DEVIATION: ours. Which hypothesis wins is often a matter of chance, and then the one of the largest share of
    # the wins is a bet, while the average has the lowest expected squared error, which is what is reported
    errors = (joints_hat - joints[:, None]).square().mean(2)  # (B, K)
    expected = (logits.softmax(1) * errors.detach()).sum(1)  # (B,) of a hypothesis drawn by the logits
    return (errors[:, 0] + errors[:, 1:].amin(1) + alpha * expected).mean()


# ---------------------------------------------------------------- checkpoints
def save_checkpoint(path, content):
    """Write a dict of tensors and plain types atomically."""
    buffer = io.BytesIO()  # torch.save to a full disk is an internal error, not an OSError
    torch.save(content, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path, *keys):
    """Read any .pt or .ckpt file into a dict of tensors and plain types that has `keys`; no code in it ever runs."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol: what cannot be read is an error anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a checkpoint") from None
    except pickle.UnpicklingError:  # a class that torch does not trust: read what there is besides it
        content = read_inertly(path)
    except Exception as error:
        raise UserError(f"{path}: broken or cut short ({type(error).__name__}); fetch or make it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__} where a checkpoint holds a dict; give another file")
    missing = set(keys) - set(content)
    if missing:
        raise UserError(f"{path}: not such a checkpoint, has no {listed(missing)}; give one that these scripts wrote")
    return content


class Inert(dict):
    """Stands for an object of another class: takes what a pickle does to it, keeps only dict items."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def ignore(self, *args):
        pass

    append = extend = add = __setstate__ = ignore


class InertUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers of torch's zip format; every other global becomes an Inert class."""

    DTYPES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
              "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
              "ByteStorage": torch.uint8, "BoolStorage": torch.bool}  # fmt: skip

    def __init__(self, archive):
        self.archive, self.unknown = archive, set()
        self.root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        super().__init__(archive.open(f"{self.root}/data.pkl"))

    def persistent_load(self, reference):
        _, dtype, key, _, count = reference
        data = self.archive.read(f"{self.root}/data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def find_class(self, module, name):
        def tensor(data, offset, size, stride, *_):
            return data.as_strided(size, stride, offset)

        known = {"torch._utils._rebuild_tensor_v2": tensor, "collections.OrderedDict": Inert,
                 "torch._utils._rebuild_parameter": lambda data, *_: data}  # fmt: skip
        if f"{module}.{name}" in known:
            return known[f"{module}.{name}"]
        if module == "torch" and name in self.DTYPES:
            return self.DTYPES[name]
        self.unknown.add(f"{module}.{name}")
        return type(name, (Inert,), {})


def read_inertly(path):
    """Read a checkpoint that names classes of other packages; what is of such a class is dropped, with a warning."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpickler = InertUnpickler(archive)
            content = unpickler.load()
        weights = content.get("state_dict", {}).values()
        content = without_inert(content)
    except Exception as error:
        raise UserError(f"{path}: broken, or not a PyTorch checkpoint ({type(error).__name__}); fetch or make it again") from None
    names = ", ".join(sorted(unpickler.unknown))
    if not all(isinstance(value, torch.Tensor) for value in weights):
        raise UserError(f"{path}: state_dict holds other things than tensors ({names}); fetch or make it again")
    if not content:
        raise UserError(f"{path}: holds objects of code ({names}) and nothing else; give another file")
    print(f"warning: {path}: ignored values of classes that are not tensors or plain types: {names}", file=sys.stderr)
    return content


def without_inert(value):
    """A copy of nested containers without objects of unknown class; a dict of unknown class stays, as a dict."""

    def plain(item):
        return not isinstance(item, type) and (type(item) is Inert or not isinstance(item, Inert) or len(item) > 0)

    if isinstance(value, dict):
        return {key: without_inert(item) for key, item in value.items() if plain(item)}
    if isinstance(value, (list, tuple)):
        return [without_inert(item) for item in value if plain(item)]
    return value


def config_from(stored, path):
    """The ModelConfig stored in a checkpoint: every field present and none too many."""
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    if not isinstance(stored, dict) or set(stored) != names:
        wrong = names ^ set(stored if isinstance(stored, dict) else ())
        raise UserError(f"{path}: its config has missing or unknown fields: {listed(wrong)}; it must be made again with this version")
    try:
        return ModelConfig(**stored)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def listed(names):
    names = sorted(map(str, names))
    return (", ".join(names[:4]) or "none") + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_tensors(state, path):
    """Stop with one line if `state` is not a dict of tensors."""
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise UserError(f"{path}: its weights are not a dict of tensors; give another file")


def check_keys(expected, state, path):
    """Stop with one line if `state` is not a dict of tensors under exactly the expected names."""
    check_tensors(state, path)
    missing, leftover = set(expected) - set(state), set(state) - set(expected)
    if missing or leftover:
        raise UserError(f"{path}: missing keys: {listed(missing)}; leftover keys: {listed(leftover)}; give a checkpoint of this network")


def load_strictly(module, state, path):
    """Load weights into `module` and put it in eval mode; a wrong key or shape is an error that names it."""
    expected = module.state_dict()
    check_keys(expected, state, path)
    wrong = [f"{name} {tuple(state[name].shape)}" for name in expected if state[name].shape != expected[name].shape]
    if wrong:
        raise UserError(f"{path}: shapes contradict its settings: {listed(wrong)}; fetch or make it again")
    module.load_state_dict(state)
    return module.eval()


def load_run(folder, which="best"):
    """The GraspModel of a run folder, `best` or `last`, in eval mode, with its `joint_names`."""
    path = Path(folder) / f"{which}.pt"
    content = read_checkpoint(path)
    if "model" not in content:
        raise UserError(f"{path}: not the checkpoint of a training run; give a folder that train.py wrote")
    model = load_strictly(GraspModel(config_from(content.get("config"), path)), content["model"], path)
    model.joint_names = content.get("joint_names")
    return model


# ================================================================ Point-JEPA pretraining only
def sequence_patches(centers):
    """Order patches into a path through space (Point-JEPA, Sec. 3.2): centers (B, G, 3) -> order (B, G).

    Starts at the smallest coordinate sum, then always goes to the nearest center not yet visited.
    """
    batch, num_patches, _ = centers.shape
    distances = squared_distances(centers, centers)  # (B, G, G)
    visited = torch.zeros_like(distances[:, 0])  # (B, G): infinite where visited
    rows = torch.arange(batch, device=centers.device)
    order = [centers.sum(2).argmin(1)]  # (B,) each
    for _ in range(num_patches - 1):
        visited.scatter_(1, order[-1][:, None], math.inf)
        order.append((distances[rows, order[-1]] + visited).argmin(1))
    return torch.stack(order, 1)  # (B, G)


def sample_blocks(num_patches, generator=None, blocks=4, target_ratio=(0.15, 0.2), context_ratio=(0.4, 0.75)):
    """Draw target blocks and the context as positions in the patch sequence -> targets (M, T), context (C,).

    Targets are contiguous and may overlap each other; the context is contiguous in the list of what no
    target covers. One draw serves a batch on purpose, as in the original: each sample has its own order.
    """

    def uniform(low, high):
        return low + (high - low) * torch.rand((), generator=generator).item()

    def start(last):
        return torch.randint(last + 1, (), generator=generator).item()

    length = max(1, int(num_patches * uniform(*target_ratio)))  # T
    starts = torch.tensor([start(num_patches - length) for _ in range(blocks)])  # (M,)
    targets = starts[:, None] + torch.arange(length)  # (M, T)
    free = torch.ones(num_patches, dtype=torch.bool)
    free[targets.flatten()] = False
    remaining = free.nonzero()[:, 0]  # in sequence order
    if len(remaining) == 0:
        raise UserError(f"{num_patches} patches are too few to hide {blocks} blocks and keep a context")
    count = max(1, int(len(remaining) * uniform(*context_ratio)))  # C
    first = start(len(remaining) - count)
    return targets, remaining[first : first + count]


class Predictor(nn.Module):
    """Predicts target latents from context tokens and target centers, each block by itself.

    context (B, C, D), context_centers (B, C, 3), target_centers (B, M, T, 3) -> (B, M, T, D).
    """

    def __init__(self, config):
        super().__init__()
        width, rate = config.predictor_width, config.drop_path
        self.inward = Linear(config.width, width)
        self.position = position_encoding(width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer = TransformerEncoder(width, config.predictor_depth, config.predictor_heads, config.dropout,
                                              config.attention_dropout, (rate, rate))  # fmt: skip
        self.outward = Linear(width, config.width)

    def forward(self, context, context_centers, target_centers):
        blocks, length = target_centers.shape[1:3]
        context = self.inward(context) + self.position(context_centers)  # (B, C, D')
        context = context[:, None].expand(-1, blocks, -1, -1).flatten(0, 1)  # (B·M, C, D')
        masked = self.mask_token + self.position(target_centers.flatten(0, 1))  # (B·M, T, D')
        out = self.transformer(torch.cat([context, masked], 1))  # (B·M, C + T, D')
        return self.outward(out[:, -length:]).unflatten(0, (-1, blocks))  # (B, M, T, D)


class PointJEPA(nn.Module):
    """Joint-embedding pretraining: predict what the EMA encoder makes of hidden patches (Point-JEPA, I-JEPA).

    Normalised clouds (B, N, 3) -> loss, targets (B, M, T, D), predictions (B, M, T, D).
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.step = config, 0
        self.encoder = PointEncoder(config)
        self.target = copy.deepcopy(self.encoder.transformer).requires_grad_(False)
        self.predictor = Predictor(config)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.target.eval()  # targets are without dropout, always
        return self

    def sample_blocks(self, generator=None):
        """Targets (M, T) and context (C,) of one batch, by the configuration's shares."""
        config = self.config
        return sample_blocks(config.patches, generator, context_ratio=(config.context_low, config.context_high))

    @torch.no_grad()
    def make_targets(self, tokens, position):
        """All tokens (B, G, D) -> latents (B, G, D): before the final norm, then normalised over features.

        With target_norm "instance" then also every feature over the tokens of its cloud, as data2vec does in time.
        """
        latents = self.target.residual(tokens, position)
        latents = F.layer_norm(latents, latents.shape[-1:])
        if self.config.target_norm == "layer":
            return latents
        # DEVIATION: the original stops at "layer". What is the same in all tokens of a cloud (how large its patches
        # are, say) is then the easiest thing to predict; the tokenizer, which both sides share, learns to amplify it,
        # and within some hundred steps the targets span two or three dimensions. Here it does not count.
        return F.instance_norm(latents.float().transpose(1, 2)).transpose(1, 2)

    def forward(self, clouds, generator=None):
        patches, centers = self.encoder.group(clouds, generator)  # (B, G, S, 3), (B, G, 3)
        order = sequence_patches(centers)  # (B, G)
        centers = gather_points(centers, order)
        patches = gather_points(patches.flatten(2), order).view_as(patches)
        hidden, visible = (index.to(clouds.device, non_blocking=True) for index in self.sample_blocks(generator))
        tokens, position = self.encoder.embed(patches), self.encoder.position(centers)  # (B, G, D) each
        targets = self.make_targets(tokens, position)[:, hidden]  # (B, M, T, D)
        context = self.encoder.transformer(tokens[:, visible], position[:, visible])  # (B, C, D)
        predictions = self.predictor(context, centers[:, visible], centers[:, hidden])  # (B, M, T, D)
        return F.smooth_l1_loss(predictions, targets, beta=2.0), targets, predictions

    @torch.no_grad()
    def update_target(self, tau):
        """target ← tau · target + (1 - tau) · encoder, after every optimiser step."""
        for ours, theirs in zip(self.target.parameters(), self.encoder.transformer.parameters()):
            ours.lerp_(theirs, 1 - tau)


# ---------------------------------------------------------------- pretraining checkpoints, the official one included
OFFICIAL_NAMES = {  # part of our names -> of those in the official checkpoint
    "encoder.embed.first.": "tokenizer.embedding.encoder.first_conv.",
    "encoder.embed.second.": "tokenizer.embedding.encoder.second_conv.",
    "encoder.position.": "positional_encoding.", "encoder.transformer.": "student.", "target.": "teacher.ema_model.",
    "predictor.transformer.": "predictor.predictor.", "predictor.position.": "predictor.positional_encoding.",
    "predictor.inward.": "predictor.predictor_embed.", "predictor.outward.": "predictor.predictor_proj.",
    ".mlp.0.": ".mlp.fc1.", ".mlp.3.": ".mlp.fc2.",
}  # fmt: skip


def official_config(content, path):
    """The configuration of an official checkpoint: sizes from tensor shapes, the rest from hyper-parameters."""
    state, hyper = content["state_dict"], content.get("hyper_parameters") or {}
    check_tensors(state, path)
    if not isinstance(hyper, dict):
        raise UserError(f"{path}: its hyper_parameters are a {type(hyper).__name__}, not a dict; fetch or make it again")

    def width(name):
        if name not in state or state[name].ndim == 0:
            raise UserError(f"{path}: not a Point-JEPA checkpoint, missing {name}")
        return len(state[name])

    def depth(prefix):
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    pointnet, radius = "tokenizer.embedding.encoder.", hyper.get("tokenizer_group_radius")
    sizes = {"width": width("student.norm.weight"), "depth": depth("student.blocks."),
             "w1": width(pointnet + "first_conv.0.weight"), "w2": width(pointnet + "first_conv.3.weight"),
             "w3": width(pointnet + "second_conv.0.weight"), "predictor_depth": depth("predictor.predictor.blocks."),
             "predictor_width": width("predictor.predictor_embed.weight")}  # fmt: skip
    settings = {"points": hyper.get("transformation_subsample_points", 1024),
                "patches": hyper.get("tokenizer_num_groups", 64), "patch_size": hyper.get("tokenizer_group_size", 32),
                "group": "knn" if radius is None else "ball", "radius": radius or 0.0,
                "normalize": "unit_sphere", "up": "y", "target_norm": "layer", "context_low": 0.4, "context_high": 0.75,
                "heads": hyper.get("encoder_heads", 6),
                "predictor_heads": hyper.get("predictor_heads", 6)}  # fmt: skip
    needed = {"encoder_dim": sizes["width"], "encoder_depth": sizes["depth"],
              "predictor_embed_dim": sizes["predictor_width"], "predictor_depth": sizes["predictor_depth"],
              "encoder_add_pos_at_every_layer": True, "predictor_add_target_pos": True,
              "predictor_add_pos_at_every_layer": False}  # fmt: skip
    for name, value in needed.items():
        if hyper.get(name, value) != value:
            raise UserError(f"{path}: its setting {name} = {hyper[name]} contradicts its tensors ({value})")
    return config_from({**dataclasses.asdict(ModelConfig(**PRETRAINING)), **sizes, **settings}, path)


def official_weights(state, jepa, path):
    """Rename the tensors of an official checkpoint, leaving out what the original stores but never uses."""
    names = {name: name for name in jepa.state_dict()}  # ours -> theirs
    for ours, theirs in OFFICIAL_NAMES.items():
        names = {name: official.replace(ours, theirs) for name, official in names.items()}
    copies = [name.replace("ema_model", "online_model") for name in names.values() if "ema_model" in name]
    unused = ["mask_token", "predictor.predictor_norm.weight", "predictor.predictor_norm.bias", "teacher.initted"]
    check_keys([*names.values(), *copies, *unused, "teacher.step"], state, path)
    # its linear layers over points are Conv1d layers: weights (out, in, 1)
    return {name: state[theirs].flatten(1) if state[theirs].ndim == 3 and "_conv." in theirs else state[theirs]
            for name, theirs in names.items()}  # fmt: skip


def jepa_from(content, path):
    """The PointJEPA in what `read_checkpoint` returned."""
    if "jepa" in content:
        jepa, step = PointJEPA(config_from(content.get("config"), path)), content.get("step", 0)
        load_strictly(jepa, content["jepa"], path)
    elif "state_dict" in content:
        jepa = PointJEPA(official_config(content, path))
        load_strictly(jepa, official_weights(content["state_dict"], jepa, path), path)
        step = content["state_dict"]["teacher.step"]
    elif "encoder" in content:
        raise UserError(f"{path}: holds an encoder without predictor and target encoder; give a run's .last.pt or the official file")
    else:
        raise UserError(f"{path}: neither a pretraining checkpoint nor the official one; it holds {listed(content)}; give one that pretrain_jepa.py wrote")
    try:
        jepa.step = int(step)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a tensor of several values is a RuntimeError
        raise UserError(f"{path}: its step is not a number; fetch or make it again") from None
    return jepa


def load_jepa(path):
    """The PointJEPA of a pretraining checkpoint or of the official file, in eval mode; `.step` is its last step."""
    return jepa_from(read_checkpoint(path), path)


def load_encoder(path):
    """The pretrained PointEncoder of an encoder or pretraining checkpoint or of the official file, in eval mode."""
    content = read_checkpoint(path)
    if "encoder" in content:
        return load_strictly(PointEncoder(config_from(content.get("config"), path)), content["encoder"], path)
    return jepa_from(content, path).encoder
