"""Controls that stand beside a comparison of initialisations. Skip it at a first reading.

    --init random     an encoder of random weights that stay, its BatchNorm calibrated; pooling and head train
    --init shuffled   the numbers of each tensor of a pretrained encoder in random order: its spread, no knowledge
    --pool none       no object at all: the wrist pose alone
    --pool size       pose, centroid and radius
    --pool centers    `hand` pooling of bare patch centers, no features

To import this file adds these poolings to model.POOLS. Shapes as in model.py.
"""

import torch
from torch import nn

from model import POOLS, TokenPool, farthest_point_sample, from_z_up, gather_points, normalize_clouds
from variants import HandPool, NoEncoder


class NoPool(nn.Module):
    """pose only"""

    encoder, width = NoEncoder, 0

    def __init__(self, config):
        super().__init__()

    def forward(self, encoded, object_index, poses):
        return poses[:, :0]  # (B, 0)


class SizePool(TokenPool):
    """pose, centroid and radius"""

    encoder, widths = NoEncoder, 0

    def forward(self, encoded, object_index, poses):
        return self.with_size(poses[:, :0], encoded, object_index)  # (B, 4)


class Centers(NoEncoder):
    """Where the patches are and nothing else: no tokens, centers (B, G, 3)."""

    def __init__(self, config):
        super().__init__(config)
        self.patches = config.patches

    def forward(self, clouds, generator=None):
        tokens, _ = super().forward(clouds)
        return tokens, gather_points(clouds, farthest_point_sample(clouds, self.patches, generator))


class CentersPool(HandPool):
    """hand without features"""

    encoder, features = Centers, False


POOLS |= {"none": NoPool, "size": SizePool, "centers": CentersPool}


@torch.no_grad()
def calibrate(encoder, clouds, batch=16):
    """Set the BatchNorm statistics of a random encoder to those of clouds (C, N, 3) m, a tensor; -> it, in eval mode.

    At their initial values, mean 0 and variance 1, features are small beside their biases, and tokens tell positions
    and little else.
    """
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.momentum = None  # the plain average over batches
    encoder.eval().embed.train()
    for part in clouds.split(batch):
        encoder(from_z_up(normalize_clouds(part, encoder.config)[0], encoder.config.up))
    return encoder.eval()


@torch.no_grad()
def shuffle(encoder, seed):
    """Put the numbers of each tensor of an encoder, weights and BatchNorm statistics, in a random order; -> it.

    What is left of pretraining is how widely the numbers of every tensor are spread.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in encoder.state_dict().values():
        flat = tensor.view(-1)
        flat.copy_(flat[torch.randperm(len(flat), generator=generator)])
    return encoder
