"""What the open benchmark asks of a model: predictions without a network, and probes of the encoder beside them."""

from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from evaluate import constant_predictions, summarize
from files.checkpoints import load_encoder
from lab.encoders import keep_probes
from lab.rows import METRICS, command_of, read_rows
from lab.runner import add_row, encoder_file, encoder_tag, open_data, plan_runs, random_encoder, run_all
from model import LENGTH

DATA_FLAGS = ("--data", "--pack", "--budget", "--held-out", "--min-score", "--cache-dir")
GRIDS = [
    {"--budget": "0.1,1", "--pool": "none"},
    {"--budget": "0.1,1", "--init": "jepa", "--pool": "attention,hand", "--k": "5,1"},
]


def nearest_predictions(data, train_rows, rows):
    """The joints of the nearest training grasp as if they were a model with K = 1: what memory alone can do.

    Nearest among the same synset's (among all where it has none): distance between wrists in units of 5 cm plus the
    angle between rotations in rad, both poses in the frames of their meshes.
    """
    synset = np.array([name.split("/")[0] for name in data.scenes])[data.scene]
    chosen = np.empty(len(rows), dtype=np.int64)  # row of the nearest training grasp
    for scene in np.unique(data.scene[rows]):
        mine = np.flatnonzero(data.scene[rows] == scene)
        candidates = train_rows[synset[train_rows] == synset[rows[mine[0]]]]
        candidates = candidates if len(candidates) else train_rows
        poses, theirs = (data.poses[some].astype(np.float64) for some in (rows[mine], candidates))
        cosine = np.abs(poses[:, 3:] @ theirs[:, 3:].T).clip(max=1)  # of half the angle; q and -q are one rotation
        distance = cdist(poses[:, :3], theirs[:, :3]) / LENGTH + 2 * np.arccos(cosine)  # (of the scene, candidates)
        chosen[mine] = candidates[distance.argmin(1)]
    return constant_predictions(data, data.joints[chosen], rows)


def nearest_row(command, flags):
    """The row of the nearest training grasp on the data of a run with these flags."""
    data, split = open_data(flags)
    train_rows, val_rows = split.rows["train"], split.rows["val"]
    nearest = summarize(nearest_predictions(data, train_rows, val_rows))
    mean = summarize(constant_predictions(data, data.joints[train_rows].mean(0), val_rows))
    low, high = nearest["interval_95"].get("top_logit_rmse", ("", ""))
    return {"command": command} | {metric: nearest[metric] for metric in METRICS} | {
        "low_95": low, "high_95": high, "training_mean": mean["top_logit_rmse"],
        "train_objects": len(split.suites["train"]), "dataset": data.fingerprint,
    }  # fmt: skip


def run_benchmark(names, given, args):
    """Train the pose alone and the paper's model, then add what needs no training; -> rows."""
    path = args.out / "rows.csv"
    planned = [flags for grid in GRIDS for flags in plan_runs(grid, given, args.seeds, args)]
    there = {row["command"] for row in run_all(planned, path, args)}
    for flags in planned:
        of_data = {flag: flags[flag] for flag in DATA_FLAGS if flag in flags}
        command = command_of(of_data, "nearest training grasp")
        if command not in there:
            add_row(nearest_row(command, flags), path, args.runs)
            there.add(command)
    pretrained = [flags for flags in planned if encoder_tag(flags)]
    if pretrained:
        file = encoder_file(pretrained[-1])
        encoders = {"random": random_encoder(load_encoder(file).config, args.runs), Path(file).name: file}
        keep_probes(encoders, pretrained[-1], args.out)
    return read_rows(path)
