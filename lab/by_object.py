"""Errors by object, which a sweep keeps of every run in OUT/objects.npz, and intervals over objects and seeds."""

import math

import numpy as np
import torch
from scipy.stats import t as student

from cli.errors import refuse
from evaluate import MIN_OBJECTS, sample_statistics
from files.reading import read_npz
from files.writing import atomic
from lab.rows import flags_of, seed_of

KEPT_SUITES = ("val", "test", "test_category")  # whose errors are kept


# ---------------------------------------------------------------- the file
def per_object(predictions):
    """Squared error of the top logit by object: ids (O,), grasps (O,), mean squared error (O,) in rad²."""
    arrays = (torch.as_tensor(predictions[name]).float() for name in ("joints_pred", "logits", "joints_true"))
    squared = sample_statistics(*arrays)["top_logit_rmse"].numpy()
    ids, index = np.unique(predictions["object"], return_inverse=True)
    grasps = np.bincount(index)
    return ids, grasps, np.bincount(index, weights=squared) / grasps


def keep_errors(out, run, predictions):
    """A finished run's errors by object into OUT/objects.npz."""
    kept = {(run.command, suite): per_object(predictions[suite]) for suite in KEPT_SUITES if suite in predictions}
    write_errors(out, read_errors(out) | kept)


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


# ---------------------------------------------------------------- intervals
def errors_by_seed(errors, rows, suite):
    """Seed -> objects, their grasps and sums of squared errors, of the seeds whose runs of all packs are in `errors`.

    A seed's runs of two packs count as one run, and an object that is in both as one object.
    """
    by_seed = {}  # seed -> its runs, one per pack
    for row in sorted(rows, key=lambda row: flags_of(row).get("--pack", "")):
        if (row["command"], suite) in errors:
            by_seed.setdefault(seed_of(row), []).append(errors[row["command"], suite])
    packs, found = max(map(len, by_seed.values()), default=0), {}
    for seed, runs in by_seed.items():
        if len(runs) == packs:
            objects, grasps, squared = (np.concatenate(column) for column in zip(*runs))
            ids, index = np.unique(objects, return_inverse=True)
            found[seed] = ids, np.bincount(index, grasps), np.bincount(index, grasps * squared)
    return found


def rmse(squared, grasps, without=None):
    """RMSE in rad of squared errors (S, O), summed over the grasps (O,) of each object, by seed.

    Or (n,) of what remains without each of the seeds (`without` = 0) or objects (1).
    """
    grasps = np.broadcast_to(grasps, squared.shape)
    if without is None:
        return math.sqrt(squared.sum() / grasps.sum())
    squared, grasps = (array.sum() - array.sum(1 - without) for array in (squared, grasps))
    return np.sqrt(squared / grasps)


def improvement(new, old, grasps):
    """By how many % `new` lowers the RMSE of `old`, both as in `rmse`, and its 95 % interval: three floats.

    The variance is that over objects, which both arms share, plus that over the seeds of each, by leaving one out
    (jackknife: Tukey 1958). Three seeds tell their scatter badly, so Student's t has the degrees of freedom of this
    sum (Satterthwaite 1946). Of an arm with one seed training variance is left out.
    """

    def percent(new, old):
        return 100 * (1 - new / old)

    both = rmse(new, grasps), rmse(old, grasps)
    left = [percent(rmse(new, grasps, 1), rmse(old, grasps, 1))] if len(grasps) > 1 else []
    left += [percent(rmse(new, grasps, 0), both[1])] if len(new) > 1 else []
    left += [percent(both[0], rmse(old, grasps, 0))] if len(old) > 1 else []
    free = np.array([len(values) - 1 for values in left])
    variances = free * list(map(np.var, left))
    value, total = percent(*both), variances.sum()
    half = student.ppf(0.975, total**2 / (variances**2 / free).sum()) * math.sqrt(total) if total else 0.0
    return value, value - half, value + half


def better_cell(rows, errors, other_rows, other_errors, suite):
    """By how many % an arm is better than another, of the seeds that both have: "7.1 (5.2 to 9.0)".

    Without the interval for under 8 objects; "" where no seed is in both, or other grasps were scored.
    """
    arms = errors_by_seed(errors, rows, suite), errors_by_seed(other_errors, other_rows, suite)
    seeds = sorted(arms[0].keys() & arms[1].keys())
    found = [arm[seed] for arm in arms for seed in seeds]
    same_objects = all(np.array_equal(found[0][0], other[0]) for other in found)
    same_grasps = all(np.array_equal(found[0][1], other[1]) for other in found)
    if not seeds or not same_objects or not same_grasps:
        return ""
    new, old = (np.stack([arm[seed][2] for seed in seeds]) for arm in arms)
    grasps = found[0][1]
    gain, low, high = improvement(new, old, grasps)
    return f"{gain:z.1f}" + f" ({end_of(low)} to {end_of(high)})" * (len(grasps) >= MIN_OBJECTS)


def end_of(value):
    """An interval's end, with a second digit where one would not tell its sign."""
    return f"{value:z.2f}" if abs(value) < 0.05 else f"{value:.1f}"
