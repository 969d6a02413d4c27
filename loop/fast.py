"""Speed, and nothing else: layers that a processor likes, in the place of PyTorch's. Skip it at a first reading.

    speed_up(network)    puts these into a network, in place; weights and names stay:

    nn.Dropout           16 random bits per value
    nn.LayerNorm         on a GPU bfloat16 stays what it is
    model.Attention      dropout for a few dozen tokens
    model.PatchEmbed     the pooled half of its second layer once per patch; a max whose gradient touches winners only
    model.Nearest        a partition instead of a sort
    model.TakeRows       on a GPU a gradient that adds up in a fixed order

tests/test_fast.py holds each against the layer beside it, gradients included. On a GPU all but LayerNorm, PatchEmbed
and TakeRows are PyTorch's.
"""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import Attention, Nearest, PatchEmbed, TakeRows


# ---------------------------------------------------------------- products
@contextlib.contextmanager
def exact_products():
    """Products in exact float32 inside the block, whatever precision a training chose; predictions are always so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def dropout(x, rate):
    if rate == 0 or x.device.type != "cpu":
        return F.dropout(x, rate)
    bits = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    # in place, so that ones and zeros are whole numbers: to convert them takes a fifth of the time of true and false
    kept = bits[: x.numel()].view(x.shape).ge_(round(rate * 2**16) - 2**15)
    return x * kept.to(x.dtype).mul_(1 / (1 - rate))


class FastDropout(nn.Dropout):
    def forward(self, x):
        return dropout(x, self.p) if self.training and self.p else x


class FastAttention(Attention):
    def mix(self, query, key, value, rate):
        if rate == 0 or query.device.type != "cpu":
            return super().mix(query, key, value, rate)
        weights = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(3)  # (B, H, G, G)
        return dropout(weights, rate) @ value


class FastLayerNorm(nn.LayerNorm):
    """Under autocast a GPU would turn bfloat16 to float32 and back; its kernel computes in float32 either way."""

    def forward(self, x):
        if x.device.type != "cuda" or x.dtype == torch.float32:
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class MaxOverPoints(torch.autograd.Function):
    """(B·G, S, C) -> (B·G, C)"""

    @staticmethod
    def forward(ctx, features):
        if features.device.type == "cuda":
            values, winners = features.max(1)  # (B·G, C) each
        else:
            image = features.unsqueeze(2).permute(0, 3, 1, 2)  # (B·G, C, S, 1), in memory as channels last
            pooled = F.max_pool2d(image, (features.shape[1], 1), return_indices=True)  # (B·G, C, 1, 1) each
            values, winners = (x.flatten(1) for x in pooled)
        ctx.save_for_backward(winners)
        ctx.size = features.shape[1]
        return values

    @staticmethod
    def backward(ctx, grad):
        (winners,) = ctx.saved_tensors  # (B·G, C)
        of_features = grad.new_zeros(len(grad), ctx.size, grad.shape[1])
        if grad.dtype == torch.bfloat16:  # as whole numbers of that length, which scatter_ does not copy twice
            of_features.view(torch.int16).scatter_(1, winners[:, None], grad.view(torch.int16)[:, None])
            return of_features
        return of_features.scatter_(1, winners[:, None], grad[:, None])


class FastPatchEmbed(PatchEmbed):
    def forward(self, patches):
        batch, num_patches, size, _ = patches.shape
        points = self.first(patches.flatten(0, 2))  # (B·G·S, w2)
        pooled = MaxOverPoints.apply(points.view(batch * num_patches, size, -1))  # (B·G, w2)
        # second[0] acts on concat(pooled, points); split, its pooled half runs once per patch, not S times
        for_pooled, for_points = self.second[0].weight.chunk(2, dim=1)  # (w3, w2) each
        points = F.linear(points, for_points).view(batch * num_patches, size, -1)  # (B·G, S, w3)
        points = points + F.linear(pooled, for_pooled)[:, None]
        points = self.second[1:](points.flatten(0, 1))  # (B·G·S, D)
        return MaxOverPoints.apply(points.view(batch * num_patches, size, -1)).view(batch, num_patches, -1)  # (B, G, D)


class FastNearest(Nearest):
    def forward(self, distances, count):
        if distances.device.type != "cpu":
            return super().forward(distances, count)
        return torch.from_numpy(np.argpartition(distances.numpy(), count - 1)[..., :count])  # three times faster


class FastTakeRows(TakeRows):
    def forward(self, values, index):
        if values.device.type != "cuda":
            return super().forward(values, index)
        # a product with zeros and ones: index_select's gradient adds up in no fixed order there
        chosen = (index[:, None] == torch.arange(len(values), device=index.device)).to(values.dtype)  # (B, O)
        return (chosen @ values.flatten(1)).unflatten(1, values.shape[1:])


# ---------------------------------------------------------------- in their place
FAST = {
    nn.Dropout: FastDropout, nn.LayerNorm: FastLayerNorm, Attention: FastAttention, PatchEmbed: FastPatchEmbed,
    Nearest: FastNearest, TakeRows: FastTakeRows,
}  # fmt: skip


def speed_up(network):
    """Put the fast layers into a network, in place; -> the network, with the same weights under the same names."""
    for layer in network.modules():
        layer.__class__ = FAST.get(type(layer), type(layer))
    return network
