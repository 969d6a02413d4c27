"""The paper's network: cloud and wrist pose to joints, its loss; then Point-JEPA pretraining.

    cloud (N, 3) ── farthest point sampling: G centers ── S neighbours of each ── mini-PointNet ──┐
                                                                                             G tokens
    object embedding ◀── pooling ◀── transformer, position of the centers added to every block ◀──┘
           │
    wrist pose (7) ── concat ── MLP head ──▶ K joint vectors (radians) and K logits

    B  grasps in a batch        N  points per cloud            K  hypotheses
    O  clouds in a batch        G  patches = tokens            J  joint angles, rad
    M  target blocks            S  points per patch            D, H  width, heads
    T  tokens per target block  C  context tokens              D' predictor's width
    E  object's part of the head's input                       pose (7): xyz m, quaternion xyzw

Where only clouds are in play (encoder, pretraining) their number is written B as well. Clouds and
poses are in metres in the frame of the mesh, z up; the encoder itself sees normalised clouds.

Up to the double rule stands the whole grasp model. variants.py and controls.py add poolings and losses of ours to
POOLS and LOSSES; loop/fast.py swaps in layers that give the same and are faster.

References: "Label-Efficient Grasp Joint Prediction with Point-JEPA" (the paper: Sec., Eq., Fig.); Point-JEPA, arXiv
2404.16432 (encoder and pretraining); PointNet++, arXiv 1706.02413 (sampling, ball query); I-JEPA, arXiv 2301.08243.
"""

import copy
import dataclasses
import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

POSITION_HIDDEN = 128  # hidden width of the positional encoding, in all published weights
LENGTH = 0.05  # m: the head sees lengths divided by this, so that wrist positions vary by about one
FINE_TUNING = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1}
PRETRAINING = {"dropout": 0.1, "attention_dropout": 0.05, "drop_path": 0.25}


# ---------------------------------------------------------------- configuration
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
    """First index (batch,) of farthest point sampling: drawn by a torch.Generator; a tensor is returned unchanged."""
    if isinstance(generator, torch.Tensor):
        return generator
    drawn = torch.randint(num_points, (batch,), generator=generator, device=generator.device)
    return drawn.to(device, non_blocking=True)  # blocking would wait for the GPU


@torch.no_grad()
def farthest_point_sample(clouds, count, generator=None):
    """Choose `count` points, each the farthest from those before it (PointNet++).

    clouds (B, N, 3) -> index (B, count). Starts at point 0, or where `start_points` says if a generator is given;
    the first index wins ties.
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
        last = nearest.argmax(1)  # (B,)
        chosen.append(last)
    return torch.stack(chosen, 1)  # (B, count)


def gather_points(points, index):
    """Rows of `points` (B, N, W), W numbers each, named by `index` (B, ...) -> (B, ..., W)."""
    rows = index.flatten(1)[..., None].expand(-1, -1, points.shape[-1])  # (B, ·, W)
    return points.gather(1, rows).view(*index.shape, -1)


def squared_distances(left, right):
    """left (B, L, 3), right (B, R, 3) -> (B, L, R); by differences, since products cancel where these are small."""
    left, right = (points.transpose(1, 2).contiguous() for points in (left, right))  # (B, 3, ·): long rows are faster
    total = (left[:, 0, :, None] - right[:, 0, None]).square_()  # (B, L, R)
    for axis in (1, 2):
        total += (left[:, axis, :, None] - right[:, axis, None]).square_()
    return total


class Nearest(nn.Module):
    """Index of the `count` smallest distances, in any order: (..., N) -> (..., count); a layer for loop/fast.py."""

    def forward(self, distances, count):
        return distances.topk(count, largest=False, sorted=False).indices


@torch.no_grad()
def group_points(clouds, centers, size, method="knn", radius=0.0, nearest=Nearest()):
    """Gather the patch of each center, in coordinates relative to it.

    clouds (B, N, 3), centers (B, G, 3) -> patches (B, G, S, 3).
    knn (Point-JEPA): the S nearest points. ball (Sec. III-B, PointNet++): the first S points in index
    order with squared distance under radius², padded with the first one found; divided by the radius.
    """
    distances = squared_distances(centers, clouds)  # (B, G, N)
    if method == "knn":
        index = nearest(distances, size)  # (B, G, S)
        return gather_points(clouds, index) - centers[:, :, None]  # (B, G, S, 3)
    num_points = clouds.shape[1]
    order = torch.arange(num_points, device=clouds.device)
    index = order.where(distances < radius**2, num_points)  # (B, G, N): points outside go last
    index = index.topk(size, largest=False, sorted=True).values  # (B, G, S)
    index = index.where(index < num_points, index[..., :1])
    return (gather_points(clouds, index) - centers[:, :, None]) / radius  # (B, G, S, 3)


# ---------------------------------------------------------------- encoder
class PatchEmbed(nn.Module):
    """The mini-PointNet that turns a patch into a token (Point-JEPA's tokenizer, after Point-BERT; Sec. III-C).

    patches (B, G, S, 3) -> tokens (B, G, D). BatchNorm's statistics are over all B·G·S points.
    """

    def __init__(self, w1, w2, w3, width):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, w1, bias=False), nn.BatchNorm1d(w1), nn.ReLU(True), nn.Linear(w1, w2))
        self.second = nn.Sequential(
            nn.Linear(2 * w2, w3, bias=False), nn.BatchNorm1d(w3), nn.ReLU(True), nn.Linear(w3, width)
        )

    def forward(self, patches):
        batch, num_patches, size, _ = patches.shape
        points = self.first(patches.flatten(0, 2)).view(batch * num_patches, size, -1)  # (B·G, S, w2)
        pooled = points.amax(1, keepdim=True).expand_as(points)  # (B·G, S, w2)
        points = torch.cat([pooled, points], 2)  # (B·G, S, 2·w2)
        points = self.second(points.flatten(0, 1))  # (B·G·S, D)
        return points.view(batch, num_patches, size, -1).amax(2)  # (B, G, D)


class Attention(nn.Module):
    """Multi-head self-attention, (B, G, D) -> (B, G, D); rows of qkv are q, k, v, each split into heads."""

    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, G, 3, H, D/H)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, G, D/H) each
        mixed = self.mix(query, key, value, self.rate if self.training else 0.0)  # (B, H, G, D/H)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, G, D)

    def mix(self, query, key, value, rate):
        """dropout(softmax(q·kᵀ / √(D/H))) · v; (B, H, G, D/H) each."""
        return F.scaled_dot_product_attention(query, key, value, dropout_p=rate)


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth per sample, (B, G, D) -> (B, G, D)."""

    def __init__(self, width, heads, dropout, attention_dropout, drop_path):
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout),
                                 nn.Linear(4 * width, width), nn.Dropout(dropout))  # fmt: skip

    def drop_branch(self, branch):
        """Drop the whole branch of a sample with probability `drop_path`; scale the others up."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.empty_like(branch[:, :1, :1]).bernoulli_(1 - self.drop_path)  # (B, 1, 1)
        return branch * (kept / (1 - self.drop_path))

    def forward(self, x):
        x = x + self.drop_branch(self.dropout(self.attn(self.norm1(x))))
        return x + self.drop_branch(self.mlp(self.norm2(x)))


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
    return nn.Sequential(nn.Linear(3, POSITION_HIDDEN), nn.GELU(), nn.Linear(POSITION_HIDDEN, width))


class PointEncoder(nn.Module):
    """Point-JEPA's encoder (Sec. III-C): normalised clouds (B, N, 3) -> tokens (B, G, D), centers (B, G, 3)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.nearest = Nearest()
        # DEVIATION: the tokenizer trains with the rest, as in Sec. III-C and the published code; Fig. 2 has it frozen
        self.embed = PatchEmbed(config.w1, config.w2, config.w3, config.width)
        self.position = position_encoding(config.width)
        self.transformer = TransformerEncoder(config.width, config.depth, config.heads, config.dropout,
                                              config.attention_dropout, (0.0, config.drop_path))  # fmt: skip

    def group(self, clouds, generator=None):
        """Clouds (B, N, 3) in encoder's units -> patches (B, G, S, 3) around farthest points, centers (B, G, 3)."""
        config = self.config
        centers = gather_points(clouds, farthest_point_sample(clouds, config.patches, generator))  # (B, G, 3)
        radius = config.radius / config.scale if config.normalize == "metric" else config.radius  # in these units
        return group_points(clouds, centers, config.patch_size, config.group, radius, self.nearest), centers

    def forward(self, clouds, generator=None):
        patches, centers = self.group(clouds, generator)
        return self.transformer(self.embed(patches), self.position(centers)), centers


# ---------------------------------------------------------------- pooling
class Encoded(NamedTuple):
    """What `GraspModel.encode` makes of O clouds, once for all grasps of them."""

    tokens: torch.Tensor  # (O, G, D)
    centers: torch.Tensor  # (O, G, 3) m, mesh frame
    centroid: torch.Tensor  # (O, 3) m
    radius: torch.Tensor  # (O, 1) m
    clouds: torch.Tensor  # (O, N, 3) m


class TakeRows(nn.Module):
    """Rows of values (O, ...) named by index (B,) -> (B, ...)."""

    def forward(self, values, index):
        return values.index_select(0, index)


class TokenPool(nn.Module):
    """What the head sees of each grasp's object: `Encoded` clouds, object_index (B,), poses (B, 7) -> (B, E).

    The paper's poolings make one embedding per object in `embed`, tokens (O, G, D) -> (O, widths · D), and see no pose.
    """

    encoder = PointEncoder  # what makes the tokens
    widths = 1

    def __init__(self, config):
        super().__init__()
        self.take = TakeRows()
        self.sees_size = config.normalize == "unit_sphere"
        self.width = self.widths * config.width + 4 * self.sees_size  # E

    def forward(self, encoded, object_index, poses):
        embedding = self.embed(encoded.tokens)  # (O, widths · D)
        return self.with_size(self.take(embedding, object_index), encoded, object_index)

    def with_size(self, embedding, encoded, object_index):
        """embedding (B, ·), and beside it centroid and radius (B, 4) where a unit sphere hides them."""
        # DEVIATION: the paper's metric clouds hide nothing, and its head is told no size
        if not self.sees_size:
            return embedding
        size = torch.cat([encoded.centroid, encoded.radius], 1) / LENGTH  # (O, 4)
        return torch.cat([embedding, size[object_index]], 1)


class AttentionPool(TokenPool):
    """one learnable query attends to the tokens, the paper's (Sec. III-B); no norm, no residual"""

    def __init__(self, config, heads=4):
        super().__init__(config)
        # DEVIATION: a query of SD 0.02 and no dropout; the published code has SD 1/√D and drops 0.1 of the weights
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.attention = nn.MultiheadAttention(config.width, heads, batch_first=True)

    def embed(self, tokens):
        query = self.query.expand(len(tokens), -1, -1)  # (O, 1, D)
        return self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]  # (O, D)


class MeanPool(TokenPool):
    """mean over tokens"""

    def embed(self, tokens):
        return tokens.mean(1)  # (O, D)


class MaxPool(TokenPool):
    """maximum over tokens"""

    def embed(self, tokens):
        return tokens.amax(1)  # (O, D)


class MeanMaxPool(TokenPool):
    """mean and maximum"""

    widths = 2

    def embed(self, tokens):
        return torch.cat([tokens.mean(1), tokens.amax(1)], 1)  # (O, 2·D)


POOLS = {"attention": AttentionPool, "mean": MeanPool, "max": MaxPool, "mean_max": MeanMaxPool}  # Sec. III-B


# ---------------------------------------------------------------- loss
def weighted_mean(values, weights=None):
    """The mean of values (B,), or by weights (B,), which add up to one: padding of a batch has weight zero."""
    return values.mean() if weights is None else (values * weights).sum()


def wta_loss(joints_hat, logits, joints, alpha, weights=None):
    """winner takes all, the paper's: squared error of the best hypothesis + alpha · cross entropy of it (Eq. 1-2)

    joints_hat (B, K, J) rad, logits (B, K), joints (B, J) rad -> scalar, the `weighted_mean` over grasps.
    """
    # DEVIATION: the mean over joints where Eq. 2 sums: alpha 0.1 equals 0.1 · J there. alpha is a constant; as a
    # learned weight, which the published code makes it, it can only shrink.
    errors = (joints_hat - joints[:, None]).square().mean(2)  # (B, K)
    winner = errors.argmin(1)  # (B,)
    error = weighted_mean(errors.gather(1, winner[:, None])[:, 0], weights)
    return error + alpha * weighted_mean(F.cross_entropy(logits, winner, reduction="none"), weights)


LOSSES = {"wta": wta_loss}  # functions, or classes of losses with a state of their own


# ---------------------------------------------------------------- grasp model
class GraspModel(nn.Module):
    """Cloud and wrist pose -> K hypotheses of the joints and their logits (Sec. III-D).

    clouds (O, N, 3) m, object_index (B,) in 0…O-1, poses (B, 7) -> joints (B, K, J) rad, logits (B, K).
    Each cloud is encoded once, however many grasps of it the batch holds. joint_mean (J,) rad is the
    training mean, to which the head adds. `loss` takes the arguments of `wta_loss`.
    """

    def __init__(self, config, joint_mean=None):
        super().__init__()
        pool, loss = POOLS[config.pool], LOSSES[config.loss]
        self.config, self.joint_names, self.joint_range, self.hand = config, None, None, None  # those of its training
        self.encoder = pool.encoder(config)
        self.pool = pool(config)
        layers = []
        for size_in, size_out in pairwise((self.pool.width + 7, 512, 256, 128)):
            layers += [nn.Linear(size_in, size_out), nn.ReLU(), nn.Dropout(0.1)]
        self.head = nn.Sequential(*layers, nn.Linear(128, config.k * config.joints + config.k))
        mean = torch.zeros(config.joints) if joint_mean is None else torch.as_tensor(joint_mean, dtype=torch.float32)
        self.register_buffer("joint_mean", mean.clone())
        self.loss = loss(config) if isinstance(loss, type) else loss

    def encode(self, clouds, generator=None):
        """clouds (O, N, 3) m -> `Encoded`; generator: see `start_points`; without, patches start at point 0."""
        units, centroid, radius = normalize_clouds(clouds, self.config)
        up = self.config.up
        tokens, centers = self.encoder(from_z_up(units, up), generator)  # (O, G, D), (O, G, 3)
        centers = to_z_up(centers, up) * radius[:, None] + centroid[:, None]  # (O, G, 3) m
        return Encoded(tokens, centers, centroid, radius, clouds)

    def decode(self, encoded, object_index, poses):
        """`Encoded` clouds, object_index (B,), poses (B, 7) -> joints (B, K, J) rad, logits (B, K)."""
        seen = self.pool(encoded, object_index, poses)  # (B, E)
        # DEVIATION: lengths enter the head in units of LENGTH, not metres: positions of some 0.05 among embedding
        # values of order one are hardly learnt, and models with an embedding then fall behind pose-only ones
        out = self.head(torch.cat([seen, poses[:, :3] / LENGTH, poses[:, 3:]], 1)).float()  # (B, K·J + K)
        angles, logits = out[:, : -self.config.k], out[:, -self.config.k :]
        # DEVIATION: the head learns what differs from the training mean
        return angles.unflatten(1, (self.config.k, -1)) + self.joint_mean, logits

    def forward(self, clouds, object_index, poses, generator=None):
        return self.decode(self.encode(clouds, generator), object_index, poses)


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

    Targets are contiguous and may overlap each other; the context is contiguous in the list of what no target covers
    (I-JEPA, Sec. 3). One draw serves a batch on purpose, as in Point-JEPA: each sample has its own order.
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
        raise ValueError(f"{num_patches} patches are too few to hide {blocks} blocks and keep a context")
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
        self.inward = nn.Linear(config.width, width)
        self.position = position_encoding(width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer = TransformerEncoder(width, config.predictor_depth, config.predictor_heads, config.dropout,
                                              config.attention_dropout, (rate, rate))  # fmt: skip
        self.outward = nn.Linear(width, config.width)

    def forward(self, context, context_centers, target_centers):
        blocks, length = target_centers.shape[1:3]
        context = self.inward(context) + self.position(context_centers)  # (B, C, D')
        context = context[:, None].expand(-1, blocks, -1, -1).flatten(0, 1)  # (B·M, C, D')
        masked = self.mask_token + self.position(target_centers.flatten(0, 1))  # (B·M, T, D')
        out = self.transformer(torch.cat([context, masked], 1))  # (B·M, C + T, D')
        return self.outward(out[:, -length:]).unflatten(0, (-1, blocks))  # (B, M, T, D)


class PointJEPA(nn.Module):
    """Pretraining: predict what a slow copy of the transformer makes of hidden patches (Point-JEPA, I-JEPA).

    Normalised clouds (B, N, 3) -> loss, targets (B, M, T, D), predictions (B, M, T, D).
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
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

    def group_in_sequence(self, clouds, generator=None):
        """Clouds (B, N, 3) -> patches (B, G, S, 3) and centers (B, G, 3), in the order of `sequence_patches`."""
        patches, centers = self.encoder.group(clouds, generator)
        order = sequence_patches(centers)  # (B, G)
        patches = gather_points(patches.flatten(2), order).view_as(patches)
        return patches, gather_points(centers, order)

    def forward(self, clouds, generator=None, blocks=None):
        """clouds (B, N, 3) in encoder's units -> loss, targets and predictions (B, M, T, D).

        generator draws patch starts and blocks; or it is the starts (B,), and blocks are the drawn ones:
        hidden (M, T) and visible (C,) places in the patch sequence.
        """
        patches, centers = self.group_in_sequence(clouds, generator)  # (B, G, S, 3), (B, G, 3)
        hidden, visible = (index.to(clouds.device) for index in blocks or self.sample_blocks(generator))
        tokens, position = self.encoder.embed(patches), self.encoder.position(centers)  # (B, G, D) each
        targets = self.make_targets(tokens, position)[:, hidden]  # (B, M, T, D)
        context = self.encoder.transformer(tokens[:, visible], position[:, visible])  # (B, C, D)
        predictions = self.predictor(context, centers[:, visible], centers[:, hidden])  # (B, M, T, D)
        return F.smooth_l1_loss(predictions, targets, beta=2.0), targets, predictions  # β as in the original

    @torch.no_grad()
    def update_target(self, tau):
        """target ← tau · target + (1 - tau) · encoder (I-JEPA, Sec. 3), after every step; tau: a float or a scalar."""
        share = 1 - tau if isinstance(tau, float) else (1 - tau).float()
        for ours, theirs in zip(self.target.parameters(), self.encoder.transformer.parameters()):
            ours.lerp_(theirs, share)
