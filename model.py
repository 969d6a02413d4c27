"""The paper's network: cloud and wrist pose to joints, its loss; then Point-JEPA pretraining.

    cloud (N, 3) ── farthest point sampling: G centers ── S neighbours of each ── mini-PointNet ──┐
                                                                                             G tokens
    object embedding ◀── pooling ◀── transformer, position of the centers added to every block ◀──┘
           │
    wrist pose (7) ── concat ── MLP head ──▶ K joint vectors (radians) and K logits

    B  grasps in a batch        N  points per cloud            K  hypotheses
    O  clouds in a batch        G  patches = tokens            J  joint angles, rad
    M  target blocks            S  points per patch            D, H  width, heads
    T  tokens per target block  C  context tokens              P  pose (7): xyz m, quaternion xyzw
    F  features of a point (3)  Q  probes of the surface       D' predictor's width

Where only clouds are in play (encoder, pretraining) their number is written B as well. Clouds and
poses are in metres in the frame of the mesh, z up; the encoder itself sees normalised clouds.

A reader of the method may skip variants.py and controls.py (our own poolings, losses and controls),
hand/ and benchmark/ (how the open benchmark is made), lab/ (sweeps, tables, timing), files/ and loop/ (reading, checkpoints,
and fast.py: Linear, Dropout, attention and a max in forms that a processor likes, equal to PyTorch's).

References: "Label-Efficient Grasp Joint Prediction with Point-JEPA" (the paper: Sec., Eq., Fig.);
Point-JEPA, arXiv 2404.16432 (encoder and pretraining); PointNet++, arXiv 1706.02413 (sampling,
ball query); I-JEPA, arXiv 2301.08243.
"""

import copy
import dataclasses
import functools
import math
from itertools import pairwise
from pathlib import Path
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import variants
from cli.errors import UserError
from files.checkpoints import (
    build,
    check_kind,
    check_network,
    check_step,
    check_tensors,
    load_strictly,
    official_config,
    official_weights,
    read_checkpoint,
)
from loop.fast import (
    Dropout,
    LayerNorm,
    Linear,
    attention,
    average,
    linear,
    max_over_points,
    smallest,
    squared_distances,
    take_rows,
)

POSITION_HIDDEN = 128  # hidden width of the positional encoding, in all published weights
LENGTH = 0.05  # m: the head sees lengths divided by this, so that wrist positions vary by about one
FINE_TUNING = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1}
PRETRAINING = {"dropout": 0.1, "attention_dropout": 0.05, "drop_path": 0.25}


# ---------------------------------------------------------------- configuration
LOSSES = {  # what GraspModel.loss can be, and what that is
    "wta": "winner takes all, the paper's", "mdn": "mixture density",
    "hedged": "one hypothesis learns the average, logits choose by expected error",
    "relaxed": "the others learn a little too", "annealed": "less and less of it",
}  # fmt: skip
CHOICES = {
    "group": ("knn", "ball"), "normalize": ("unit_sphere", "metric"), "up": ("z", "y"),
    "target_norm": ("instance", "layer"), "loss": tuple(LOSSES),
    "patching": tuple(variants.SPREADS), "tokenizer": tuple(variants.POINT_FEATURES),
    "embedding": ("raw", "standard"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint must remember of the network; the defaults are the preset `small`."""

    # encoder: fixed by a pretrained one
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
    context_low: float = 0.85  # DEVIATION: 0.4 and 0.75 in the original, see the lab report
    context_high: float = 1.0
    predictor_width: int = 96
    predictor_depth: int = 4
    predictor_heads: int = 3
    # head
    k: int = 5
    joints: int = 12  # J
    pool: str = "attention"  # a key of POOLS
    loss: str = "wta"
    # added after the first checkpoints: a file without them means these values
    patching: str = dataclasses.field(default="fps", metadata={"later": True})
    tokenizer: str = dataclasses.field(default="pointnet", metadata={"later": True})
    embedding: str = dataclasses.field(default="raw", metadata={"later": True})
    embedding_scale: float = dataclasses.field(default=variants.EMBEDDING_SCALE, metadata={"later": True})

    def __post_init__(self):
        check_network(self, CHOICES)


PRESETS = {
    "tiny": ModelConfig(
        points=64, patches=8, patch_size=8, width=32, depth=2, heads=2, w1=16, w2=16, w3=32,
        predictor_width=16, predictor_depth=1, predictor_heads=2,
    ),
    "small": ModelConfig(),
    "paper": ModelConfig(
        points=1024, patches=64, patch_size=32, width=384, depth=12, heads=6, w1=128, w2=256, w3=512,
        target_norm="layer", context_low=0.4, context_high=0.75,
        predictor_width=192, predictor_depth=6, predictor_heads=6,
    ),
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


def start_points(generator, batch, num_points, device):
    """Where farthest point sampling starts, (batch,), drawn by a torch.Generator, or such points as they are given."""
    if isinstance(generator, torch.Tensor):
        return generator
    drawn = torch.randint(num_points, (batch,), generator=generator, device=generator.device)
    return drawn.to(device, non_blocking=True)  # blocking would wait for the GPU


@torch.no_grad()
def farthest_point_sample(clouds, count, generator=None, weights=None):
    """Choose `count` points, each the farthest from those before it (PointNet++).

    clouds (B, N, 3) -> index (B, count). Starts at point 0, or at a random point of each cloud if a
    generator is given (or what it has drawn: start indices (B,)); the first index wins ties. With weights
    (B, N) squared distances count so many times.
    """
    batch, num_points, _ = clouds.shape
    coordinates = clouds.transpose(1, 2).contiguous()  # (B, 3, N): long rows are faster than triples
    nearest = clouds.new_full((batch, num_points), math.inf)  # squared distance to the chosen set
    last = torch.zeros(batch, dtype=torch.long, device=clouds.device)
    if generator is not None:
        last = start_points(generator, batch, num_points, clouds.device)
    chosen = [last]
    for _ in range(count - 1):
        center = coordinates.gather(2, last[:, None, None].expand(-1, 3, -1))  # (B, 3, 1)
        torch.minimum(nearest, (coordinates - center).square_().sum(1), out=nearest)  # (B, N)
        last = (nearest if weights is None else nearest * weights).argmax(1)  # (B,)
        chosen.append(last)
    return torch.stack(chosen, 1)  # (B, count)


def gather_points(points, index):
    """Rows of `points` (B, N, C) named by `index` (B, ...) -> (B, ..., C)."""
    rows = index.flatten(1)[..., None].expand(-1, -1, points.shape[-1])  # (B, Q, C)
    return points.gather(1, rows).view(*index.shape, -1)


@torch.no_grad()
def group_points(clouds, centers, size, method="knn", radius=0.0):
    """Gather the patch of each center, in coordinates relative to it.

    clouds (B, N, 3), centers (B, G, 3) -> patches (B, G, S, 3).
    knn (Point-JEPA): the S nearest points. ball (Sec. III-B, PointNet++): the first S points in index
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


# ---------------------------------------------------------------- encoder
class PatchEmbed(nn.Module):
    """The mini-PointNet that turns a patch into a token (Point-JEPA's tokenizer, after Point-BERT).

    patches (B, G, S, F) -> tokens (B, G, D). BatchNorm's statistics are over all B·G·S points.
    """

    def __init__(self, w1, w2, w3, width, features=3):
        super().__init__()
        self.first = nn.Sequential(Linear(features, w1, bias=False), nn.BatchNorm1d(w1), nn.ReLU(True), Linear(w1, w2))
        self.second = nn.Sequential(
            Linear(2 * w2, w3, bias=False), nn.BatchNorm1d(w3), nn.ReLU(True), Linear(w3, width)
        )

    def forward(self, patches):
        batch, num_patches, size, _ = patches.shape
        points = self.first(patches.flatten(0, 2))  # (B·G·S, w2)
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
        self.heads, self.rate = heads, dropout
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, G, 3, H, D/H)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, G, D/H) each
        rate = self.rate if self.training else 0.0
        mixed = attention(query, key, value, rate)  # dropout(softmax(q·kᵀ / √(D/H))) · v: (B, H, G, D/H)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, G, D)


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth per sample, (B, G, D) -> (B, G, D)."""

    def __init__(self, width, heads, dropout, attention_dropout, drop_path):
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
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
        self.norm = LayerNorm(width)

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
    """Point-JEPA's encoder (Sec. III-C): normalised clouds (B, N, 3) -> tokens (B, G, D), centers (B, G, 3)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        # DEVIATION: the tokenizer trains with the rest, as in Sec. III-C and the published code; Fig. 2 has it frozen
        features = variants.POINT_FEATURES[config.tokenizer]  # F
        self.embed = PatchEmbed(config.w1, config.w2, config.w3, config.width, features)
        self.position = position_encoding(config.width)
        self.transformer = TransformerEncoder(config.width, config.depth, config.heads, config.dropout,
                                              config.attention_dropout, (0.0, config.drop_path))  # fmt: skip

    def group(self, clouds, generator=None):
        """Clouds (B, N, 3) -> patches (B, G, S, F) relative to their centers, centers (B, G, 3); the paper's F is 3."""
        config = self.config
        sample = functools.partial(farthest_point_sample, count=config.patches, generator=generator)
        if config.patching != "fps" or config.tokenizer != "pointnet":
            return variants.group_by_shape(clouds, config, sample)
        centers = gather_points(clouds, sample(clouds))  # (B, G, 3)
        radius = config.radius / config.scale if config.normalize == "metric" else config.radius  # in encoder's units
        return group_points(clouds, centers, config.patch_size, config.group, radius), centers

    def forward(self, clouds, generator=None):
        patches, centers = self.group(clouds, generator)
        return self.transformer(self.embed(patches), self.position(centers)), centers


class Centers(nn.Module):
    """The control `--pool centers`: where the patches are and nothing else; tokens (B, G, D) are zero."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, clouds, generator=None):
        centers = gather_points(clouds, farthest_point_sample(clouds, self.config.patches, generator))  # (B, G, 3)
        return clouds.new_zeros(*centers.shape[:2], self.config.width), centers


# ---------------------------------------------------------------- pooling
class AttentionPool(nn.Module):
    """One learnable query attends to the tokens (Sec. III-B), (O, G, D) -> (O, D); no norm, no residual."""

    def __init__(self, width, heads=4):
        super().__init__()
        # DEVIATION: a query of SD 0.02 and no dropout; the published code has SD 1/√D and drops 0.1 of the weights
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens):
        query = self.query.expand(len(tokens), -1, -1)  # (O, 1, D)
        return self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]  # (O, D)


class Pool(NamedTuple):
    """What the head sees of the object with one value of --pool."""

    about: str  # for --help
    build: Callable | None  # width D -> what makes the embedding of tokens (O, G, D); None: there is no embedding
    encoder: bool = True  # whether tokens come from a PointEncoder
    widths: int = 1  # length of the embedding, in D
    size: bool = True  # whether centroid and radius stand beside it where a unit sphere hides them
    by_grasp: bool = False  # whether every grasp has an embedding of its own, which needs its pose
    surface: bool = False  # whether distances from the hand to the surface stand beside it


POOLS = {
    # the first four are compared in Sec. III-B
    "attention": Pool("one learnable query, the paper's", AttentionPool),
    "mean": Pool("mean over tokens", lambda width: lambda tokens: tokens.mean(1)),
    "max": Pool("maximum over tokens", lambda width: lambda tokens: tokens.amax(1)),
    "mean_max": Pool("both", lambda width: lambda tokens: torch.cat([tokens.mean(1), tokens.amax(1)], 1), widths=2),
    "none": Pool("pose only", None, False, widths=0, size=False),
    "size": Pool("pose, centroid and radius", None, False, widths=0),
    # DEVIATION: ours, see variants.py; the paper's embedding does not know where the hand is
    "hand": Pool("tokens as seen from the hand", lambda width: variants.HandPool(width, LENGTH), by_grasp=True),
    "attention_surface": Pool("attention, and distances from hand to surface", AttentionPool, surface=True),
    "surface": Pool("these distances alone, no encoder", None, False, widths=0, size=False, surface=True),
    "centers": Pool(
        "hand without features", lambda width: variants.HandPool(width, LENGTH, features=False), False, by_grasp=True
    ),
}


# ---------------------------------------------------------------- loss
def wta_loss(joints_hat, logits, joints, alpha, weights=None):
    """Winner takes all: squared error of the best hypothesis + alpha · cross entropy of choosing it (Eq. 1-2).

    joints_hat (B, K, J) rad, logits (B, K), joints (B, J) rad -> scalar, the mean over grasps, or by `weights` (B,),
    which add up to one: padding has weight zero.
    """
    # DEVIATION: the mean over joints where Eq. 2 sums: alpha 0.1 equals 0.1 · J there. alpha is a constant; as a
    # learned weight, which the published code makes it, it can only shrink.
    errors = (joints_hat - joints[:, None]).square().mean(2)  # (B, K)
    winner = errors.argmin(1)  # (B,)
    error = average(errors.gather(1, winner[:, None])[:, 0], weights)
    return error + alpha * average(F.cross_entropy(logits, winner, reduction="none"), weights)


# ---------------------------------------------------------------- grasp model
class Encoded(NamedTuple):
    """What `GraspModel.encode` makes of O clouds, once for all grasps of them."""

    tokens: torch.Tensor | None  # (O, G, D); None without an encoder
    centers: torch.Tensor | None  # (O, G, 3) m, mesh frame
    centroid: torch.Tensor  # (O, 3) m
    radius: torch.Tensor  # (O, 1) m
    clouds: torch.Tensor  # (O, N, 3) m


class GraspModel(nn.Module):
    """Cloud and wrist pose -> K hypotheses of the joints and their logits (Sec. III-D).

    clouds (O, N, 3) m, object_index (B,) in 0…O-1, poses (B, 7) -> joints (B, K, J) rad, logits (B, K).
    Each cloud is encoded once, however many grasps of it the batch holds. joint_mean (J,) rad is the
    training mean, to which the head adds. Raises `UserError` for a pooling that does not exist or that lacks what the
    configuration asks of it.
    """

    def __init__(self, config, joint_mean=None):
        super().__init__()
        if config.pool not in POOLS:
            raise UserError(f"pool must be one of {', '.join(POOLS)}, not {config.pool}")
        pool = POOLS[config.pool]
        if config.pool == "size" and config.normalize == "metric":
            raise UserError("--pool size: metric clouds have no size to be told; leave --normalize metric out")
        if config.embedding == "standard" and (pool.by_grasp or not pool.encoder):
            raise UserError(f"--embedding standard: --pool {config.pool} has no embedding of the object; leave it out")
        self.config, self.joint_names, self.joint_range = config, None, None  # the last two: those of its training
        self.encoder = (PointEncoder if pool.encoder else Centers)(config) if pool.build else nn.Identity()
        self.pool = pool.build(config.width) if pool.build else None
        self.standardise = nn.Identity()
        if config.embedding == "standard":
            self.standardise = variants.Standardise(pool.widths * config.width, config.embedding_scale)
        # DEVIATION: the head also sees centroid and radius, since the unit sphere hides an object's size
        self.sees_size = pool.size and config.normalize == "unit_sphere"
        seen = pool.widths * config.width + 4 * self.sees_size + len(variants.PROBES) * pool.surface + 7
        layers = []
        for size_in, size_out in pairwise((seen, 512, 256, 128)):
            layers += [Linear(size_in, size_out), nn.ReLU(), Dropout(0.1)]
        self.head = nn.Sequential(*layers, Linear(128, config.k * config.joints + config.k))
        mean = torch.zeros(config.joints) if joint_mean is None else torch.as_tensor(joint_mean, dtype=torch.float32)
        self.register_buffer("joint_mean", mean.clone())
        if config.loss == "annealed":  # set by the loop, not in a checkpoint
            self.register_buffer("temperature", torch.tensor(1.0), persistent=False)
        if config.loss == "mdn":
            self.log_sigma = nn.Parameter(torch.full((config.joints,), -1.0))  # 0.37 rad, an untrained model's error

    def encode(self, clouds, generator=None):
        """clouds (O, N, 3) m -> `Encoded`; patches start at random points if a generator is given."""
        units, centroid, radius = normalize_clouds(clouds, self.config)
        if self.pool is None:
            return Encoded(None, None, centroid, radius, clouds)
        up = self.config.up
        tokens, centers = self.encoder(from_z_up(units, up), generator)  # (O, G, D), (O, G, 3)
        centers = to_z_up(centers, up) * radius[:, None] + centroid[:, None]  # (O, G, 3) m
        return Encoded(tokens, centers, centroid, radius, clouds)

    def decode(self, encoded, object_index, poses):
        """`Encoded` clouds, object_index (B,), poses (B, 7) -> joints (B, K, J) rad, logits (B, K)."""
        config, pool, seen = self.config, POOLS[self.config.pool], []
        if pool.by_grasp:
            seen.append(self.pool(encoded.tokens, encoded.centers, object_index, poses))  # (B, D)
        elif pool.build:
            seen.append(take_rows(self.standardise(self.pool(encoded.tokens)), object_index))  # (O, D) -> (B, D)
        # DEVIATION: lengths enter the head in units of LENGTH, not metres: positions of some 0.05 among embedding
        # values of order one are hardly learnt, and models with an embedding then fall behind pose-only ones
        if self.sees_size:
            seen.append(torch.cat([encoded.centroid, encoded.radius], 1)[object_index] / LENGTH)  # (B, 4)
        if pool.surface:
            seen.append(variants.surface_features(encoded.clouds, object_index, poses))  # (B, Q)
        seen += [poses[:, :3] / LENGTH, poses[:, 3:]]  # (B, 3), (B, 4)
        out = self.head(torch.cat(seen, 1)).to(self.joint_mean.dtype)  # (B, K·J + K)
        angles, logits = out.split([config.k * config.joints, config.k], 1)
        # DEVIATION: the head learns what differs from the training mean
        return angles.unflatten(1, (config.k, -1)) + self.joint_mean, logits

    def forward(self, clouds, object_index, poses, generator=None):
        return self.decode(self.encode(clouds, generator), object_index, poses)

    def loss(self, joints_hat, logits, joints, alpha, weights=None):
        """The training loss that the configuration names, a scalar; arguments as in `wta_loss`."""
        if self.config.loss == "mdn":
            return variants.mdn_loss(joints_hat, logits, joints, self.log_sigma, weights)
        if self.config.loss == "annealed":
            return variants.annealed_loss(joints_hat, logits, joints, alpha, self.temperature, weights)
        loss = {"wta": wta_loss, "hedged": variants.hedged_loss, "relaxed": variants.relaxed_loss}[self.config.loss]
        return loss(joints_hat, logits, joints, alpha, weights)

    def content(self):
        """What a checkpoint must hold to be this model again, see `load_run`."""
        config, weights = dataclasses.asdict(self.config), self.state_dict()
        return {"config": config, "model": weights, "joint_names": self.joint_names, "joint_range": self.joint_range}


def load_run(folder, which="best"):
    """The GraspModel of a run folder, `best` or `last`, in eval mode.

    Its `joint_names` (J strings) and `joint_range` (lowest and highest angles of its training, 2 lists of J rad) are
    None in files that lack them.
    """
    path = Path(folder) / f"{which}.pt"
    content = read_checkpoint(path)
    if "model" not in content:
        raise UserError(f"{path}: not the checkpoint of a training run; give a folder that train.py wrote")
    check_tensors(content["model"], path)
    weights = variants.merged(content["model"])  # last.pt may hold adapters
    model = load_strictly(build(GraspModel, ModelConfig, content.get("config"), path), weights, path)
    model.joint_names, model.joint_range = content.get("joint_names"), content.get("joint_range")
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

    context (B, C, D), context_centers (B, C, 3), target_centers (B, M, T, 3) -> (B, M, T, D). Positions are
    added once, at the input, and stochastic depth is the same in all blocks, both as in Point-JEPA.
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

    def forward(self, clouds, generator=None, blocks=None):
        """clouds (B, N, 3) in encoder's units -> loss, targets and predictions (B, M, T, D).

        generator draws patch starts and blocks; or it is the starts (B,), and blocks are the drawn ones:
        hidden (M, T) and visible (C,) places in the patch sequence.
        """
        patches, centers = self.encoder.group(clouds, generator)  # (B, G, S, 3), (B, G, 3)
        order = sequence_patches(centers)  # (B, G)
        centers = gather_points(centers, order)
        patches = gather_points(patches.flatten(2), order).view_as(patches)
        hidden, visible = (index.to(clouds.device) for index in blocks or self.sample_blocks(generator))
        tokens, position = self.encoder.embed(patches), self.encoder.position(centers)  # (B, G, D) each
        targets = self.make_targets(tokens, position)[:, hidden]  # (B, M, T, D)
        context = self.encoder.transformer(tokens[:, visible], position[:, visible])  # (B, C, D)
        predictions = self.predictor(context, centers[:, visible], centers[:, hidden])  # (B, M, T, D)
        return F.smooth_l1_loss(predictions, targets, beta=2.0), targets, predictions  # β as in the original

    @torch.no_grad()
    def update_target(self, tau):
        """target ← tau · target + (1 - tau) · encoder, after every step; tau: a float or a float64 scalar."""
        share = 1 - tau if isinstance(tau, float) else (1 - tau).float()
        for ours, theirs in zip(self.target.parameters(), self.encoder.transformer.parameters()):
            ours.lerp_(theirs, share)


# ---------------------------------------------------------------- pretrained encoders
def jepa_from(content, path):
    """The PointJEPA in what `read_checkpoint` returned, the official file's included, in eval mode."""
    if check_kind(content, path) == "official":
        stored = dataclasses.asdict(ModelConfig(**PRETRAINING)) | official_config(content, path)
        jepa = build(PointJEPA, ModelConfig, stored, path)
        weights, step = (
            official_weights(content["state_dict"], jepa.state_dict(), path),
            content["state_dict"]["teacher.step"],
        )
    elif "jepa" in content:
        jepa = build(PointJEPA, ModelConfig, content.get("config"), path)
        weights, step = content["jepa"], content.get("step", 0)
    else:
        raise UserError(f"{path}: holds no predictor; give a pretraining's .last.pt or the official file")
    jepa.step = check_step(step, path)
    return load_strictly(jepa, weights, path)


def load_jepa(path):
    """The PointJEPA of a pretraining checkpoint or of the official file, in eval mode; `.step` is its last step."""
    return jepa_from(read_checkpoint(path), path)


def encoder_weights(content, path):
    """The encoder's tensors in what `read_checkpoint` made of a run's checkpoint."""
    check_tensors(content["model"], path)
    weights = variants.merged(content["model"])
    inside = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    if not inside:
        raise UserError(f"{path}: its run had no encoder; give one with --pool attention or another that has")
    return {name.removeprefix("encoder."): tensor for name, tensor in inside.items()}


def load_encoder(path):
    """The PointEncoder of an encoder, pretraining or run's checkpoint or of the official file, in eval mode."""
    content = read_checkpoint(path)
    kind = check_kind(content, path)
    if kind in ("jepa", "official"):
        return jepa_from(content, path).encoder
    weights = content["encoder"] if kind == "encoder" else encoder_weights(content, path)
    return load_strictly(build(PointEncoder, ModelConfig, content.get("config"), path), weights, path)
