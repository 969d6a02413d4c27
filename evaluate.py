"""Metrics of a trained run (Sec. III-E), predictions for one object, and pictures.

python evaluate.py RUN                          val metrics of a run, per suite and per synset
python evaluate.py RUN --suite test             the test suite: look once, choose nothing on it
python evaluate.py RUN --mesh mug.obj --pose x y z qx qy qz qw     joints for one wrist pose, as JSON
python evaluate.py RUN --picture FILE.png       six grasps, recorded beside predicted
python evaluate.py --predictions F.npz          the metrics of saved predictions
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import MESH_NAMES, check_poses, load_dataset, read_cloud
from model import load_run
from plumbing.common import Parser, UserError, atomic, command, number, read_json, write_json
from plumbing.reading import read_array, read_mesh
from plumbing.roots import ensure_root
from plumbing.training import set_up_torch
from splits import SUITES, make_split
from synthetic.draw import draw_grasps
from synthetic.hand import JOINT_NAMES

ROOT_METRICS = ("top_logit_rmse", "best_of_k_rmse")  # reported as the root of the mean
MIN_OBJECTS = 8  # a bootstrap over fewer objects says nothing
DEGREES = (10, 15, 20)
SETTINGS = {
    "data": str,
    "min_score": (int, float),
    "skip_bad": bool,
    "cache_dir": (str, type(None)),
    "pack": str,
    "budget": (int, float),
    "held_out": (list, type(None)),
}  # of a run's config.json, what its data depends on
CONTRADICTING = {  # flag -> the flags that do not go with it
    "predictions": ("mesh", "save_predictions", "data", "picture"),
    "mesh": ("picture", "json", "save_predictions", "data"),
}

# ---------------------------------------------------------------- metrics


def sample_statistics(joints_hat, logits, joints):
    """What each metric averages, per sample: dict of (n,) tensors, keys of the reported metrics.

    joints_hat (n, K, J) rad, logits (n, K), joints (n, J) rad. The two RMSEs hold squared errors (rad²).
    """
    error = joints_hat - joints[:, None]  # (n, K, J)
    squared = error.square().mean(-1)  # (n, K)
    best, winner = squared.min(1)
    top = logits.argmax(1)
    rms = best.sqrt()
    distance = (joints_hat[:, :, None] - joints_hat[:, None]).square().mean(-1).sqrt()  # (n, K, K)
    num_pairs = max(1, joints_hat.shape[1] * (joints_hat.shape[1] - 1))
    statistics = {
        "top_logit_rmse": squared.gather(1, top[:, None])[:, 0],
        "best_of_k_rmse": best,
        **{f"coverage_{degrees}": (rms < math.radians(degrees)).float() for degrees in DEGREES},
        "coverage_15_all_joints": (error.abs().amax(-1).amin(1) < math.radians(15)).float(),
        "diversity": distance.sum((1, 2)) / num_pairs,
        "selector_accuracy": (top == winner).float(),
    }
    return {name: value.double() for name, value in statistics.items()}


def from_means(means):
    """Reported metrics from the means of `sample_statistics`: floats or arrays, RMSEs in rad."""
    metrics = {name: value**0.5 if name in ROOT_METRICS else value for name, value in means.items()}
    metrics["selection_gap"] = metrics["top_logit_rmse"] - metrics["best_of_k_rmse"]
    return metrics


def metrics(joints_hat, logits, joints):
    """All metrics of Sec. III-E as floats; arguments as in `sample_statistics`."""
    statistics = sample_statistics(joints_hat, logits, joints)
    return from_means({name: value.mean().item() for name, value in statistics.items()})


def resample(count, seed, draws):
    """How often each of `count` objects is drawn in each of R = `draws` resamplings with replacement, (R, O)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def bootstrap(statistics, objects, seed=0, draws=2000):
    """95 % intervals of every metric over resampled objects: name -> [low, high]; {} under 8 objects.

    statistics: dict of (n,) tensors; objects: n object ids. Grasps of one object are not independent,
    so objects are drawn, each with all its grasps. Training variance is not in it.
    """
    ids, index = np.unique(np.asarray(objects), return_inverse=True)
    if len(ids) < MIN_OBJECTS:
        return {}
    weights = resample(len(ids), seed, draws)
    grasps = weights @ np.bincount(index)  # (R,)
    means = {name: weights @ np.bincount(index, weights=value.numpy()) / grasps for name, value in statistics.items()}
    return {name: np.percentile(value, (2.5, 97.5)).tolist() for name, value in from_means(means).items()}


def summarize(predictions, seed=0):
    """Metrics, intervals and per-synset metrics of one set of predictions (a dict of arrays, see `predict`)."""
    joints_hat, logits, joints = (
        torch.as_tensor(predictions[name]).float() for name in ("joints_pred", "logits", "joints_true")
    )
    statistics = sample_statistics(joints_hat, logits, joints)
    result = from_means({name: value.mean().item() for name, value in statistics.items()})
    result["num_grasps"] = len(joints)
    if "object" in predictions:
        result["num_objects"] = len(np.unique(predictions["object"]))
        result["interval_95"] = bootstrap(statistics, predictions["object"], seed)
    if "synset" in predictions:
        result["synsets"] = {}
        for synset in np.unique(predictions["synset"]):
            rows = torch.from_numpy(predictions["synset"] == synset)
            means = {name: value[rows].mean().item() for name, value in statistics.items()}
            result["synsets"][str(synset)] = from_means(means) | {"num_grasps": int(rows.sum())}
    return result


def metrics_table(results):
    """Aligned rows of results, name -> `summarize`: what the README shows, in rad and shares."""
    width = max(14, *map(len, results))
    lines = [f"{'':<{width}}  grasps   top-logit RMSE (rad)    best-of-K      gap   cov@10°  cov@15°  cov@20°"]
    for name, r in results.items():
        low, high = r.get("interval_95", {}).get("top_logit_rmse", (math.nan, math.nan))
        interval = f"[{low:.3f}, {high:.3f}]" if low == low else ""
        cover = "".join(f"{r[f'coverage_{degrees}']:9.3f}" for degrees in DEGREES)
        errors = f"{r['top_logit_rmse']:.4f} {interval:<16} {r['best_of_k_rmse']:9.4f} {r['selection_gap']:9.4f}"
        lines.append(f"{name:<{width}} {r['num_grasps']:7d}   {errors}{cover}")
    return "\n".join(lines)


# ---------------------------------------------------------------- predictions


@torch.no_grad()
def predict(model, data, rows, device, clouds_per_chunk=64, grasps_per_chunk=4096):
    """Predictions for grasps `rows` of a `GraspData`, each cloud encoded once; leaves the model in eval mode.

    Returns joints_pred (n, K, J) rad, logits (n, K), joints_true (n, J) rad, object (n,), synset (n,) as arrays.
    """
    model.eval()
    rows = np.sort(rows)  # grasps are sorted by scene, so each chunk of scenes is one run of rows
    scenes, object_index = np.unique(data.scene[rows], return_inverse=True)
    joints_hat, logits = [], []
    for first in range(0, len(scenes), clouds_per_chunk):
        clouds = torch.from_numpy(data.clouds[scenes[first : first + clouds_per_chunk]]).to(device)
        encoded = model.encode(clouds)
        start, stop = np.searchsorted(object_index, (first, first + clouds_per_chunk))
        for low in range(start, stop, grasps_per_chunk):
            part = slice(low, min(stop, low + grasps_per_chunk))
            index = torch.from_numpy(object_index[part] - first).to(device)
            poses = torch.from_numpy(data.poses[rows[part]]).to(device)
            a, b = model.decode(encoded, index, poses)
            joints_hat.append(a.float().cpu())
            logits.append(b.float().cpu())
    objects = np.asarray(data.objects)[data.scene[rows]]
    return {
        "joints_pred": torch.cat(joints_hat).numpy(), "logits": torch.cat(logits).numpy(),
        "joints_true": data.joints[rows], "object": objects,
        "synset": np.array([name.split("/")[0] for name in objects]),
    }  # fmt: skip


def constant_predictions(data, train_rows, rows):
    """The training mean as if it were a model with K = 1: the weakest baseline."""
    joints = data.joints[rows]
    mean = np.repeat(data.joints[train_rows].mean(0)[None, None], len(rows), axis=0)  # (n, 1, J)
    return {
        "joints_pred": mean,
        "logits": np.zeros((len(rows), 1)),
        "joints_true": joints,
        "object": np.asarray(data.objects)[data.scene[rows]],
    }


def read_predictions(path):
    """Arrays of a --save-predictions file, shapes checked; raises `UserError`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        joints_hat, logits, joints = (arrays[name] for name in ("joints_pred", "logits", "joints_true"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception:  # numpy, zipfile and zlib raise whatever they meet
        raise UserError(
            f"{path}: not a file of predictions (.npz with joints_pred, logits, joints_true); "
            "make it with --save-predictions"
        ) from None
    n = len(joints_hat) if joints_hat.ndim == 3 else 0
    if not n or logits.shape != joints_hat.shape[:2] or joints.shape != (n, joints_hat.shape[2]):
        raise UserError(
            f"{path}: shapes {joints_hat.shape}, {logits.shape}, {joints.shape} must be (n, K, J), (n, K), (n, J)"
        )
    for name in ("joints_pred", "logits", "joints_true"):
        if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: '{name}' must hold finite floating-point numbers")
    for name in {"object", "synset", "suite"} & set(arrays):
        if arrays[name].shape != (n,):
            raise UserError(f"{path}: '{name}' has shape {arrays[name].shape}; it must be ({n},)")
    return arrays


# ---------------------------------------------------------------- one run


def open_run(folder, data_root=None, quiet=False):
    """Settings, `GraspData` and `Split` of a run folder, as it was trained; `data_root` if the data has moved."""
    path = Path(folder) / "config.json"
    config = read_json(path, "settings", "network")
    settings = config["settings"]
    wrong = [name for name, kind in SETTINGS.items() if not isinstance(settings.get(name, ...), kind)]
    if wrong or not isinstance(config["network"].get("points"), int):
        raise UserError(
            f"{path}: not the settings of a run ({', '.join(wrong) or 'points'}); give a folder that train.py wrote"
        )
    root = ensure_root(data_root or settings["data"], quiet)
    data = load_dataset(
        root, config["network"]["points"], settings["min_score"], settings["skip_bad"], settings["cache_dir"], quiet
    )
    if data.fingerprint != config.get("fingerprint"):
        print(f"warning: {root} is not the dataset that {folder} was trained on (fingerprints differ)", file=sys.stderr)
    return data, make_split(data, settings["pack"], settings["budget"], settings["held_out"])


def evaluate_suites(model, data, split, suites, device, quiet=False, seed=0):
    """Reports and predictions of the suites that hold any grasps: two dicts by suite."""
    results, predictions = {}, {}
    present = [suite for suite in suites if len(split.rows[suite])]
    for suite in tqdm(present, desc="evaluating", unit="suite", disable=quiet or None, delay=2):
        predictions[suite] = predict(model, data, split.rows[suite], device)
        results[suite] = summarize(predictions[suite], seed)
    return results, predictions


def save_predictions(path, predictions):
    """Write the predictions of several suites (dict by suite) to one .npz, atomically."""
    names = ("joints_pred", "logits", "joints_true", "object", "synset")
    arrays = {name: np.concatenate([p[name] for p in predictions.values()]) for name in names}
    arrays["suite"] = np.repeat(list(predictions), [len(p["logits"]) for p in predictions.values()])
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


# ---------------------------------------------------------------- one object


@torch.no_grad()
def predict_object(model, cloud, poses, device):
    """Hypotheses for one object: cloud (N, 3) m, poses (n, 7) in its frame -> list of dicts, most probable first."""
    model.eval()
    poses = torch.from_numpy(poses).float().to(device)
    index = torch.zeros(len(poses), dtype=torch.long, device=device)
    joints, logits = model(torch.from_numpy(cloud)[None].to(device), index, poses)
    probabilities, order = logits.softmax(1).sort(dim=1, descending=True)
    joints = joints.gather(1, order[:, :, None].expand_as(joints))
    return [
        {"pose": p.tolist(), "hypotheses": [{"probability": q.item(), "joints": j.tolist()} for q, j in zip(qs, js)]}
        for p, qs, js in zip(poses.cpu(), probabilities.cpu(), joints.cpu())
    ]


def object_command(args, model, device):
    """`--mesh`: print the predictions for one object as JSON."""
    if (args.pose is None) == (args.poses is None):
        raise UserError("--mesh needs either --pose (7 numbers) or --poses FILE.npy")
    name, poses = ("--pose", np.array([args.pose])) if args.pose else (args.poses, read_array(args.poses, 7))
    poses = check_poses(poses, name)
    cloud = read_cloud(args.mesh, model.config.points)
    found = predict_object(model, cloud, poses, device)
    print(
        json.dumps({"run": args.run, "unit": "rad", "joint_names": model.joint_names, "predictions": found}, indent=2)
    )


def draw_predictions(model, data, split, suite, path, device, seed=0):
    """Fig. 1 for six objects of a suite: the recorded grasp, and beside it the top-logit prediction for its pose."""
    if model.config.joints != len(JOINT_NAMES):
        raise UserError(
            f"--picture: draws the hand of hand.py with {len(JOINT_NAMES)} joints; this run has {model.config.joints}"
        )
    rng = np.random.default_rng(seed)
    objects = np.asarray(data.objects)[data.scene]
    chosen = rng.permutation(np.unique(objects[split.rows[suite]]))[:6]
    rows = np.sort([rng.choice(split.rows[suite][objects[split.rows[suite]] == name]) for name in chosen])
    predictions = predict(model, data, rows, device)
    top = predictions["joints_pred"][np.arange(len(rows)), predictions["logits"].argmax(1)]  # (6, J)
    sheet = []
    for row, joints in zip(rows, top):
        folder = Path(data.root) / data.scenes[data.scene[row]]
        mesh = read_mesh(next(folder / name for name in MESH_NAMES if (folder / name).exists()))
        error = math.degrees(np.sqrt(np.mean((joints - data.joints[row]) ** 2)))
        sheet.append((*mesh, np.r_[data.poses[row], data.joints[row]], f"{data.scenes[data.scene[row]]}: recorded"))
        sheet.append((*mesh, np.r_[data.poses[row], joints], f"predicted, RMS error {error:.1f}°"))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draw_grasps(sheet, path)


# ---------------------------------------------------------------- command line


def build_parser():
    parser = Parser(__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of a run, as train.py printed it")
    parser.add_argument(
        "--suite", nargs="+", choices=SUITES, default=["val"], help="which suites; choose everything on val"
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="best step on val, or the last one saved"
    )
    parser.add_argument("--data", metavar="ROOT", help="the dataset, where it has moved since the training")
    parser.add_argument(
        "--predictions", metavar="FILE", help="recompute the metrics of a saved .npz instead of running a model"
    )
    parser.add_argument(
        "--save-predictions", metavar="FILE", help="save joints_pred, logits, joints_true, object, synset, suite (.npz)"
    )
    parser.add_argument("--json", metavar="FILE", help="save the metrics")
    parser.add_argument("--mesh", metavar="FILE", help="predict for this mesh, or .npy cloud (n, 3), in metres")
    parser.add_argument(
        "--pose",
        type=number(float),
        nargs=7,
        metavar=("X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="one wrist pose in the mesh's frame: metres and a unit quaternion",
    )
    parser.add_argument("--poses", metavar="FILE", help=".npy of wrist poses (n, 7)")
    parser.add_argument(
        "--picture", metavar="FILE", help="draw six grasps of the (first) suite, recorded beside predicted (.png)"
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="of the bootstrap over objects, and of the picture's choice"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one"
    )
    parser.add_argument("--threads", type=number(int, 1), metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def predictions_command(args):
    """`--predictions`: the metrics of a saved file, overall and per suite."""
    arrays = read_predictions(args.predictions)
    result = summarize(arrays, args.seed)
    rows = {"all": result}
    if "suite" in arrays:
        suites = np.unique(arrays["suite"]).tolist()
        result["suites"] = {
            s: summarize({k: v[arrays["suite"] == s] for k, v in arrays.items()}, args.seed) for s in suites
        }
        rows |= result["suites"]
    print(metrics_table(rows))
    return result


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if (args.run is None) == (args.predictions is None):
        raise UserError("give either a RUN folder or --predictions FILE (see --help)")
    for flag, others in CONTRADICTING.items():
        for other in others:
            if getattr(args, flag) and getattr(args, other):
                raise UserError(f"--{other.replace('_', '-')} does not go with --{flag}; leave one out")
    if (args.pose or args.poses) and not args.mesh:
        raise UserError("--pose and --poses go with --mesh FILE; give it")
    if args.predictions:
        result = predictions_command(args)
    else:
        device = set_up_torch(args.device, args.threads)
        model = load_run(args.run, args.checkpoint).to(device)
        if args.mesh:
            return object_command(args, model, device)
        data, split = open_run(args.run, args.data, args.quiet)
        suites, predictions = evaluate_suites(model, data, split, args.suite, device, args.quiet, args.seed)
        if not suites:
            raise UserError(f"--suite {' '.join(args.suite)}: holds no grasps in {data.root}; name another suite")
        result = {"run": args.run, "checkpoint": args.checkpoint, "suites": suites}
        print(metrics_table(suites))
        for suite in suites:
            print(f"\n{suite} by synset\n" + metrics_table(suites[suite]["synsets"]))
        if args.save_predictions:
            save_predictions(args.save_predictions, predictions)
        if args.picture:
            draw_predictions(model, data, split, next(iter(suites)), args.picture, device, args.seed)
    if args.json:
        write_json(args.json, result)
    return result


if __name__ == "__main__":
    main()
