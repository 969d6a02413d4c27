"""What frozen encoders know: linear probes for category and shape; and a table of such encoders.

The probes' features are the mean and the maximum over tokens. Nothing here looks at the test suites.
"""

import math
from pathlib import Path

import numpy as np
import torch

from cli.errors import refuse
from files.checkpoints import file_hash, load_encoder
from files.writing import read_json, stable_seed
from lab.rows import read_rows, write_rows
from lab.runner import open_data, plan_runs, random_encoder, run_all
from lab.tables import arms_table, columns_table
from model import from_z_up, normalize_clouds


# ---------------------------------------------------------------- features
@torch.no_grad()
def encode_scenes(encoder, clouds):
    """Tokens (C, G, D) float32 of clouds (C, N, 3) m, prepared as `GraspModel.encode` does; twice the same."""
    encoder.eval()
    tokens = []
    for part in torch.from_numpy(clouds).split(64):
        units, _, _ = normalize_clouds(part, encoder.config)
        tokens.append(encoder(from_z_up(units, encoder.config.up))[0])
    return torch.cat(tokens).numpy()


# ---------------------------------------------------------------- linear probes
def ridge(features, targets):
    """Ridge regression from features (n, D) to targets (n, T) -> a function from features to predictions.

    The penalty is a tenth of D, of the mean squared length of a standardised feature vector: equal for all encoders
    and shots. Chosen on val of data/full, where penalties from a tenth to a hundred times this one rank encoders the
    same.
    """
    mean, offset = features.mean(0), targets.mean(0)
    x = features - mean
    dual = np.linalg.solve(x @ x.T + 0.1 * features.shape[1] * np.eye(len(x)), targets - offset)  # (n, T)
    weights = x.T @ dual
    return lambda others: (others - mean) @ weights + offset


def predictions_from_few(features, targets, objects, groups, pool, test, count, tag, draws=10):
    """Yield predictions (n, T) of probes for the `test` scenes, each trained on `count` drawn objects of every group.

    features (C, F), targets (C, T), objects (C,) names, pool and test (C,) bool, all per scene; groups: lists of
    names. An object trains with all its scenes in the pool.
    """
    for draw in range(draws):
        rng = np.random.default_rng(stable_seed(tag, 0, count, draw))
        chosen = np.concatenate([rng.choice(names, count, replace=False) for names in groups])
        train = pool & np.isin(objects, chosen)
        yield ridge(features[train], targets[train])(features[test])


def few_shot_accuracy(features, synsets, objects, pool, val, shots, draws=10):
    """Mean accuracy of linear probes trained on `shots` objects per category, and the number of categories.

    Categories with fewer pool objects are left out, of val too; nan where fewer than two are left.
    """
    names = {s: np.unique(objects[pool & (synsets == s)]) for s in np.unique(synsets[pool])}
    kept = [s for s in names if len(names[s]) >= shots]
    test = val & np.isin(synsets, kept)
    if len(kept) < 2 or not test.any():
        return math.nan, len(kept)
    labels = np.searchsorted(kept, synsets).clip(max=len(kept) - 1)
    groups, one_hot = [names[s] for s in kept], np.eye(len(kept))[labels]
    found = predictions_from_few(features, one_hot, objects, groups, pool, test, shots, "probe", draws)
    return float(np.mean([(scores.argmax(1) == labels[test]).mean() for scores in found])), len(kept)


def few_object_fit(features, targets, objects, pool, val, count):
    """Share of the variance of targets (C, T) over val that linear probes of `count` objects explain, or nan."""
    names = np.unique(objects[pool])
    if len(names) < count:
        return math.nan
    found = predictions_from_few(features, targets, objects, [names], pool, val, count, "probe-shape")
    errors = [((fit - targets[val]) ** 2).mean(0) for fit in found]
    return float(np.mean(1 - np.array(errors) / targets[val].var(0)))


def slab_widths(clouds, slabs=4):
    """Widths in x and y of the slabs of equal height that a cloud is cut into.

    (C, N, 3) m -> (C, 2·slabs), in radii: first the widths in x and y of the lowest slab.
    """
    centred = clouds - clouds.mean(1, keepdims=True)
    height = clouds[..., 2] - clouds[..., 2].min(1, keepdims=True)  # (C, N)
    slab = np.minimum(slabs * height / height.max(1, keepdims=True), slabs - 1).astype(int)
    widths = []
    for i in range(slabs):
        inside = (slab == i)[..., None]
        low = np.where(inside, centred[..., :2], np.inf).min(1)
        high = np.where(inside, centred[..., :2], -np.inf).max(1)
        widths.append(high - low)  # (C, 2); -inf for an empty slab
    radius = np.linalg.norm(centred, axis=2).max(1, keepdims=True)
    return np.maximum(np.concatenate(widths, 1), 0) / radius


def probe(encoder, data, split, shots=(2, 5, 20), counts=(15, 120)):
    """Linear probes for category and shape on mean + max pooled frozen features.

    Trained on objects of the split's whole pool, standardised with the pool's statistics, evaluated on val, never on
    test. -> dict: probe_<n> and categories_<n> for n of `shots`, shape_<n> (how well `slab_widths` are explained)
    for n of `counts`.
    """
    tokens = encode_scenes(encoder, data.clouds)  # (C, G, D)
    pooled = np.concatenate([tokens.mean(1), tokens.max(1)], axis=1).astype(np.float64)  # (C, 2·D)
    objects = np.asarray(data.object_of_scene)
    synsets = np.array([name.split("/")[0] for name in objects])
    pool, val = np.isin(objects, split.pool), np.isin(objects, split.suites["val"])
    features = (pooled - pooled[pool].mean(0)) / (pooled[pool].std(0) + 1e-9)
    result = {}
    for n in shots:
        accuracy, categories = few_shot_accuracy(features, synsets, objects, pool, val, n)
        result |= {f"probe_{n}": accuracy, f"categories_{n}": categories}
    widths = slab_widths(data.clouds)
    for n in counts:
        result[f"shape_{n}"] = few_object_fit(features, widths, objects, pool, val, n)
    return result


# ---------------------------------------------------------------- a table of encoders
def pretraining_columns(file):
    """Clouds seen, seconds and command of the pretraining, of the card beside an encoder; empty without one."""
    card = Path(file).with_suffix(".json")
    content = read_json(card) if card.exists() else {}  # an encoder with random weights has none
    return {name: content.get(name, "") for name in ("clouds_seen", "seconds", "command")}


def keep_probes(files, flags, out):
    """Linear probes, on the data of a run with these flags, of the encoders (name -> file) that OUT/probe.csv lacks."""
    path = out / "probe.csv"
    rows = read_rows(path)
    for name, file in files.items():
        own = {"file": name, "encoder": file_hash(file)[:8]}
        if not any(own.items() <= row.items() for row in rows):
            encoder = load_encoder(file)
            data, split = open_data(flags, encoder.config.points)
            rows.append(own | probe(encoder, data, split) | pretraining_columns(file))
            write_rows(path, rows)


def run_encoders(files, given, args):
    """Fine-tune every given encoder and one with random weights, and probe them; -> rows."""
    refuse(not files, "encoders: name at least one pretrained encoder, FILE.pt")
    random, planned = str(random_encoder(load_encoder(files[0]).config, args.runs)), []
    for file in (random, *files):
        planned += plan_runs({"--budget": "0.1", "--init": "jepa"}, given | {"--jepa-ckpt": file}, args.seeds, args)
    for flags in planned:
        flags.pop("--preset", None)  # the file's own
    rows = run_all(planned, args.out / "rows.csv", args)
    keep_probes({"random": random} | {file: file for file in files}, planned[0], args.out)
    return rows


def probed_text(rows, args):
    """Markdown: all rows, and the probes in OUT/probe.csv."""
    probes = read_rows(args.out / "probe.csv")
    title = "\nLinear probes on val: the category from so many objects of each, widths of the shape from so many:\n\n"
    return arms_table(rows) + (title + columns_table(probes) if probes else "")
