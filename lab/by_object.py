"""Errors by object, which a sweep keeps of every run in OUT/objects.npz, and intervals that resample those objects."""

import functools
import math

import numpy as np
import torch

from cli.errors import refuse
from evaluate import MIN_OBJECTS, read_predictions, resample, sample_statistics
from files.reading import read_npz
from files.writing import atomic, stable_seed
from lab.rows import flags_of

SUITES = ("val", "test", "test_category")  # whose errors are kept
DRAWS = 2000

# ---------------------------------------------------------------- the file


def per_object(predictions):
    """Squared error of the top logit by object: ids (O,), grasps (O,), mean squared error (O,) in rad²."""
    arrays = (torch.as_tensor(predictions[name]).float() for name in ("joints_pred", "logits", "joints_true"))
    squared = sample_statistics(*arrays)["top_logit_rmse"].numpy()
    ids, index = np.unique(predictions["object"], return_inverse=True)
    grasps = np.bincount(index)
    return ids, grasps, np.bincount(index, weights=squared) / grasps


def keep_errors(out, run):
    """A finished run's errors by object into OUT/objects.npz."""
    errors, predictions = read_errors(out), read_predictions(run.folder / "predictions.npz")
    for suite in SUITES:
        of_suite = {key: array[predictions["suite"] == suite] for key, array in predictions.items()}
        if len(of_suite["logits"]):
            errors[run.command, suite] = per_object(of_suite)
    write_errors(out, errors)


def write_errors(out, errors):
    """Write what `read_errors` reads."""
    commands = sorted({command for command, _ in errors})
    sizes = [len(ids) for ids, _, _ in errors.values()]
    objects, grasps, squared = (np.concatenate(column) for column in zip(*errors.values()))
    with atomic(out / "objects.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            commands=commands,
            run=np.repeat([commands.index(command) for command, _ in errors], sizes),
            suite=np.repeat([suite for _, suite in errors], sizes),
            object=objects,
            grasps=grasps,
            squared_error=squared,
        )


def read_errors(out):
    """(command, suite) -> (objects, grasps, mean squared errors of the top logit in rad²), of OUT/objects.npz."""
    path, errors = out / "objects.npz", {}
    if not path.exists():
        return errors
    arrays = read_npz(path, "restore it, or give another --out")
    refuse("squared_error" not in arrays, f"{path}: not what a sweep wrote; restore it, or give another --out")
    for run, suite in sorted(set(zip(arrays["run"].tolist(), arrays["suite"].tolist()))):
        rows = (arrays["run"] == run) & (arrays["suite"] == suite)
        columns = (arrays[name][rows] for name in ("object", "grasps", "squared_error"))
        errors[str(arrays["commands"][run]), suite] = tuple(columns)
    return errors


def averaged(errors, rows, suite):
    """Objects, grasps and squared errors of some runs: averaged over seeds within a pack, then the packs in a row."""
    packs = {}
    for row in rows:
        if (row["command"], suite) in errors:
            packs.setdefault(flags_of(row)["--pack"], []).append(errors[row["command"], suite])
    parts = []
    for _, runs in sorted(packs.items()):
        objects, grasps, _ = runs[0]
        parts.append((objects, grasps, np.mean([squared for _, _, squared in runs], axis=0)))
    return [np.concatenate(column) for column in zip(*parts)]


# ---------------------------------------------------------------- intervals


same_objects = functools.lru_cache(4)(resample)  # for every arm, so that what makes an object hard cancels


def resampled(objects, grasps, squared, draws=DRAWS, seeds_of=None):
    """RMSE of an arm in rad, and of `draws` resamplings of its objects, the same for every arm: a float and (draws,).

    objects (n,) ids, of which one that stands there twice, say in two packs, is drawn as one; grasps (n,) of each;
    squared (S, n) mean squared errors by seed, rad². With `seeds_of`, an arm's name, its seeds are drawn too, each
    arm's for itself; without, the interval leaves out training variance.
    """
    ids, index = np.unique(np.asarray(objects), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=grasps * errors) for errors in squared])  # (S, O)
    counts = np.bincount(index, weights=grasps)  # (O,)
    drawn = same_objects(len(ids), 0, draws)  # (draws, O)
    seeds = 1.0 if seeds_of is None else resample(len(sums), stable_seed("seeds", seeds_of), draws)  # (draws, S)
    by_seed = drawn @ sums.T / (drawn @ counts)[:, None]  # (draws, S)
    return math.sqrt(sums.mean(0).sum() / counts.sum()), np.sqrt((by_seed * seeds).mean(1))


def improvement(new, old):
    """By how many % `new` lowers the RMSE of `old`, both of `resampled`, and its 95 % interval: three floats."""
    low, high = np.percentile(100 * (1 - new[1] / old[1]), (2.5, 97.5))
    return 100 * (1 - new[0] / old[0]), float(low), float(high)


def improvement_cells(new, old):
    """The same of two results of `averaged`, as text: "7.1" and "5.2 to 9.0"; None if they are not comparable."""
    if not new or not old or not np.array_equal(new[0], old[0]):
        return None
    percent = improvement(*(resampled(objects, grasps, squared[None]) for objects, grasps, squared in (new, old)))
    gain, low, high = (f"{value:.1f}" for value in percent)
    return [gain, f"{low} to {high}" if len(set(new[0])) >= MIN_OBJECTS else ""]
