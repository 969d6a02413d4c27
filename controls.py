"""Controls that stand beside a comparison of initialisations. Skip it at a first reading.

    --init random           an encoder of random weights that stay, its BatchNorm calibrated; pooling and head train
    --init oracle           what all labels would give: starts from the encoder of a run that saw them all
    --embedding standard    no initialisation starts with larger embeddings than another

`--pool size` and `--pool centers`, which do without an encoder, are in model.POOLS.
"""

import sys
from pathlib import Path

import plumbing  # noqa: F401 - before torch, which reads the environment that it sets
import torch

from model import from_z_up, normalize_clouds
from plumbing.checkpoint import check_kind
from plumbing.common import UserError, read_json
from splits import HELD_OUT


def check_start(args, content, path):
    """Stop where --init oracle starts from a file without labels, or --init jepa from one with; content: of `path`."""
    labelled = check_kind(content, path) == "run"
    if labelled and args.init == "jepa":
        raise UserError(f"{path}: this encoder was trained with labels; give --init oracle, or a pretrained one")
    if not labelled and args.init == "oracle":
        raise UserError(f"{path}: this encoder saw no labels; give --init jepa, or best.pt of a run with all of them")


def check_oracle(args, data):
    """Stop where the encoder that --init oracle names was not trained with all labels, or with another split's."""
    path = Path(args.jepa_ckpt).parent / "config.json"
    config = read_json(path, "settings")
    theirs = config["settings"]
    wanted = {"budget": 1.0} | {name: getattr(args, name) for name in ("pack", "held_out", "min_score")}
    for name, value in wanted.items():
        pair = theirs.get(name), value
        if name == "held_out":  # not given: the default ones
            pair = tuple(sorted(HELD_OUT if synsets is None else synsets) for synsets in pair)
        if pair[0] != pair[1]:
            raise UserError(f"{path}: an oracle's {name} must be {value}, not {theirs.get(name)}; give another run")
    if theirs.get("lr_backbone") == 0 and not theirs.get("lora"):
        raise UserError(f"{path}: this run left its encoder as it was; give one that trained it")
    if not (path.parent / "result.json").exists():
        raise UserError(f"{path.parent}: this run has not finished; go on with it by --resume first")
    if config.get("fingerprint") != data.fingerprint:
        raise UserError(f"{path}: was trained on other data than {data.root}; give another run")
    print(f"oracle: the encoder of {path.parent}, {theirs.get('steps')} steps with all labels", file=sys.stderr)


@torch.no_grad()
def calibrate(encoder, clouds, batch=16):
    """Set the BatchNorm statistics of a random encoder to those of clouds (C, N, 3) m, a tensor; -> it, in eval mode.

    At their initial values, mean 0 and variance 1, features are small beside their biases, and tokens tell positions
    and little else.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.BatchNorm1d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over batches
    encoder.eval().embed.train()
    for part in clouds.split(batch):
        encoder(from_z_up(normalize_clouds(part, encoder.config)[0], encoder.config.up))
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    return encoder.eval()


@torch.no_grad()
def standardise(model, clouds, calibrated, batch=64):
    """Fit the statistics of --embedding standard to clouds (C, N, 3) m, a tensor.

    Fresh weights are calibrated first: their embeddings in eval mode, with BatchNorm's initial statistics, are far from
    those that training meets.
    """
    if not calibrated:
        calibrate(model.encoder, clouds)
    model.eval()
    model.standardise.fit(torch.cat([model.pool(model.encode(part).tokens) for part in clouds.split(batch)]))
