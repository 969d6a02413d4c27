"""Saved predictions, what evaluate.py --save-predictions writes: one .npz with a row per grasp."""

import numpy as np

from cli.errors import UserError, refuse
from files.reading import read_npz
from files.writing import atomic

NUMBERS = ("joints_pred", "logits", "joints_true")
NAMES = ("object", "synset", "suite")  # left out of some files
TOO_LARGE = 1e6  # of an angle in rad or a logit: beyond it their squares lose all digits


def check_predictions(path, *arrays):
    """Stop where joints (rad) or logits that the weights at `path` made are no numbers to show."""
    shown = all((np.abs(np.asarray(values)) < TOO_LARGE).all() for values in arrays)  # NaN is not under anything
    refuse(not shown, f"{path}: predicts numbers that are not finite, or over {TOO_LARGE:g}; train it anew, slower")


def save_predictions(path, predictions):
    """Write the predictions of several suites (dict by suite) to one .npz, atomically."""
    arrays = {name: np.concatenate([p[name] for p in predictions.values()]) for name in (*NUMBERS, *NAMES[:2])}
    arrays["suite"] = np.repeat(list(predictions), [len(p["logits"]) for p in predictions.values()])
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_predictions(path):
    """Arrays of such a file, joints_pred (n, K, J) rad, logits (n, K), joints_true (n, J) rad; raises `UserError`."""
    advice = "make it with --save-predictions"
    arrays = read_npz(path, advice)
    for name in NUMBERS:
        refuse(name not in arrays, f"{path}: not a file of predictions, has no {name}; {advice}")
    joints_hat, logits, joints = (arrays[name] for name in NUMBERS)
    whole = joints_hat.ndim == 3 and 0 not in joints_hat.shape
    fits = whole and (logits.shape, joints.shape) == (joints_hat.shape[:2], joints_hat.shape[::2])
    shapes = f"{joints_hat.shape}, {logits.shape}, {joints.shape}"
    refuse(not fits, f"{path}: shapes {shapes} must be (n, K, J), (n, K), (n, J)")
    for name in NUMBERS:
        given = arrays[name]
        if given.dtype.kind != "f" or not (np.abs(given.astype(float)) < TOO_LARGE).all():
            raise UserError(f"{path}: '{name}' must hold floating-point numbers, finite and under {TOO_LARGE:g}")
        arrays[name] = given.astype(np.float64 if given.dtype.itemsize > 4 else np.float32)
    for name in arrays.keys() & NAMES:
        if arrays[name].shape != joints.shape[:1] or arrays[name].dtype.kind != "U":
            raise UserError(f"{path}: '{name}' must be {len(joints)} strings, one per grasp")
    return arrays
