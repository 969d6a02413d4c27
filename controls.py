"""Controls that stand beside a comparison of initialisations. Skip it at a first reading.

    --init random           an encoder of random weights that stay, its BatchNorm calibrated; pooling and head train
    --init oracle           what all labels would give: starts from the encoder of a run that saw them all
    --embedding standard    no initialisation starts with larger embeddings than another

`--pool size` and `--pool centers`, which do without an encoder, are in model.POOLS.
"""

import hashlib
import json
import sys
from pathlib import Path

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch

from cli.errors import UserError
from cli.flags import as_flags
from files.checkpoints import check_kind
from files.writing import read_json
from model import POOLS, from_z_up, normalize_clouds
from splits import HELD_OUT
from variants import PROBE_REACH, surface_distances

# what tells one row "pose and size only" from another; and what else it takes over from a run
BASELINE = ("pack", "budget", "held_out", "min_score", "steps", "k", "loss")
SAME_AS_RUN = ("data", "skip_bad", "cache_dir", "no_graph", *BASELINE)
MANY_FAR = 0.6  # share of saturated surface distances that is worth a warning: 0.31 on the open benchmark


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


def prepare(model, args, data, split, pretrained):
    """What --init random and --embedding standard do to a model before step 1; pretrained: whether its encoder is."""
    if args.init == "random":
        calibrate(model.encoder, torch.from_numpy(data.clouds[np.isin(data.object_of_scene, split.pool)]))
    if args.embedding == "standard":
        scenes = np.unique(data.scene[split.rows["train"]])
        standardise(model, torch.from_numpy(data.clouds[scenes]), calibrated=pretrained or args.init == "random")


def warn_of_probes(pool, data, rows):
    """Say where --pool surface sees little of the grasps `rows`: its probes fit one hand and its wrist frame."""
    if not POOLS[pool].surface:
        return
    rows = np.random.default_rng(0).choice(rows, 256)
    scenes, index = np.unique(data.scene[rows], return_inverse=True)
    clouds, index, poses = map(torch.from_numpy, (data.clouds[scenes], index, data.poses[rows]))
    far = (surface_distances(clouds, index, poses) >= PROBE_REACH).float().mean()
    if far > MANY_FAR:
        print(
            f"warning: --pool {pool}: {far:.0%} of its distances are over {PROBE_REACH:g} m and tell nothing; "
            "its probes fit the hand of hand/kinematics.py and its wrist frame (DATA.md)",
            file=sys.stderr,
        )


def pose_and_size(args, data, points, train):
    """The val summary of `--pool size`: pose, centroid and radius, no shape; trained once per data, pack and budget.

    train(flags): a run on this data.
    """
    key = [data.fingerprint, *(getattr(args, name) for name in BASELINE), points]
    name = f"pose-and-size-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}"
    folder = Path(args.runs) / name
    if not (folder / "result.json").exists():
        print("\npose and size only, once for this data and budget:", file=sys.stderr)
        same = as_flags({name: getattr(args, name) for name in SAME_AS_RUN} | {"points": points})
        more = ["--quiet"] * args.quiet + ["--resume"] * (folder / "config.json").exists()
        train([*same, "--pool", "size", "--runs", args.runs, "--name", name, *more])
    return read_json(folder / "result.json", "suites")["suites"]["val"]
