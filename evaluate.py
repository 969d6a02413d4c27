"""Metrics of a trained run (Sec. III-E), predictions for one object, and pictures.

    python evaluate.py RUN                          val metrics of a run, per suite and per synset
    python evaluate.py RUN --suite test             the test suite: look once, choose nothing on it
    python evaluate.py RUN --holds                  also: would the hand hold the object?
    python evaluate.py RUN --mesh mug.obj --pose x y z qx qy qz qw     joints for one wrist pose, as JSON
    python evaluate.py RUN --picture FILE.png       six grasps, recorded beside predicted
    python evaluate.py --predictions F.npz          the metrics of saved predictions

RUN is a folder that train.py wrote.
"""

import json
import math
import sys
import time
from pathlib import Path

import cli  # before torch, which reads the environment that it sets
import numpy as np
import torch
from benchmark.roots import ensure_root
from cli.errors import UserError, command
from cli.flags import Parser, number
from data import load_dataset, read_cloud
from files.checkpoints import check_run, load_run
from files.frames import SMALL, check_reach, turn_poses_to_z_up, turn_to_z_up
from files.reading import ANY_LENGTH, MAX_LENGTH, read_array, read_mesh, read_npz, unit_hint
from files.recordings import normal_poses, numbered_joints
from files.writing import atomic, read_json, write_json
from hand import kinematics
from hand.scenes import candidate_joints, outcomes_in_scenes, rows_to_close, scene_mesh
from loop.fast import exact_products
from loop.machine import set_up_torch
from pictures.draw import draw_grasps, scene_title
from splits import SUITES, Split, make_split
from tqdm import tqdm

ROOT_METRICS = ("top_logit_rmse", "best_of_k_rmse")  # reported as the root of the mean
LIMIT_SLACK = 1e-3  # rad
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
TOO_LARGE = 1e6  # of an angle in rad or a logit: beyond it their squares lose all digits
CONTRADICTING = {  # flag -> the flags that do not go with it
    "predictions": ("mesh", "save_predictions", "data", "picture"),
    "mesh": ("save_predictions", "data"),
}

# ---------------------------------------------------------------- metrics


def sample_statistics(joints_hat, logits, joints):
    """What each metric averages, per sample: dict of (n,) tensors, keys of the reported metrics.

    joints_hat (n, K, J) rad, logits (n, K), joints (n, J) rad. The two RMSEs hold squared errors (rad²).
    """
    error = joints_hat - joints[:, None]  # (n, K, J)
    squared = error.square().mean(-1)  # (n, K)
    best, winner = squared.min(1)
    of_top = squared.gather(1, logits.argmax(1, keepdim=True))[:, 0]  # (n,)
    rms = best.sqrt()
    distance = (joints_hat[:, :, None] - joints_hat[:, None]).square().mean(-1).sqrt()  # (n, K, K)
    num_pairs = max(1, joints_hat.shape[1] * (joints_hat.shape[1] - 1))
    statistics = {
        "top_logit_rmse": of_top,
        "best_of_k_rmse": best,
        **{f"coverage_{degrees}": (rms < math.radians(degrees)).float() for degrees in DEGREES},
        "top_coverage_15": (of_top.sqrt() < math.radians(15)).float(),
        "coverage_15_all_joints": (error.abs().amax(-1).amin(1) < math.radians(15)).float(),
        "diversity": distance.sum((1, 2)) / num_pairs,
        "selector_accuracy": (logits.argmax(1) == winner).float(),
    }
    return {name: value.double() for name, value in statistics.items()}


def from_means(means):
    """Reported metrics from the means of `sample_statistics`: floats or arrays, RMSEs in rad."""
    metrics = {name: value**0.5 if name in ROOT_METRICS else value for name, value in means.items()}
    if set(ROOT_METRICS) <= set(metrics):
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
    header = f"{'':<{width}}  grasps   top-logit RMSE (rad)    best-of-K      gap   cov@10°  cov@15°  cov@20°"
    with_holds = any("holds" in result for result in results.values())
    lines = [header + "     free    holds" * with_holds]
    for name, r in results.items():
        low, high = r.get("interval_95", {}).get("top_logit_rmse", (math.nan, math.nan))
        interval = f"[{low:.3f}, {high:.3f}]" if low == low else ""
        cover = "".join(f"{r[f'coverage_{degrees}']:9.3f}" for degrees in DEGREES)
        errors = f"{r['top_logit_rmse']:.4f} {interval:<16} {r['best_of_k_rmse']:9.4f} {r['selection_gap']:9.4f}"
        closed = f"{r['free']:9.3f}{r['holds']:9.3f}" if "holds" in r else ""
        lines.append(f"{name:<{width}} {r['num_grasps']:7d}   {errors}{cover}{closed}")
    return "\n".join(lines)


def print_run(result, folder, pack, baseline=None):
    """The table of a finished run (what result.json holds), `baseline` in it if there is one, and how to read it."""
    mean, own = result["training_mean"], result["suites"]["val"]
    rows = {"training mean": mean} | ({"pose and size only": baseline} if baseline else {})
    print("\n" + metrics_table(rows | {f"this run, step {result['best_step']}": own, "recorded": result["recorded"]}))
    print(f"\nval of pack {pack}; brackets: 95 % over objects. Saved in {folder}")
    in_all = time.perf_counter() - cli.STARTED
    print(f"{result['seconds']:.0f} s of training and validation; {in_all:.0f} s since this command was given")
    trained, total, took = result["parameters_trained"] / 1e6, result["parameters"] / 1e6, result["ms_per_step"]
    time_each = f"{took:.0f} ms per step" if took >= 10 else f"{took:.1f} ms per step"
    if result["device"] == "cuda":
        time_each += f", {result['eager_steps']} of {result['steps']} steps outside CUDA graphs"
    memory = f"{result['memory_mb'] / 1000:.1f} GB of memory at most"
    print(f"{trained:.2f} of {total:.2f} M parameters trained; {time_each}, {memory}")
    if "holds" in own:
        print(f"holds: the hand, closed from the prediction, would hold the object; of {own['grasps_closed']} grasps")
    else:
        print("free and holds: left out, there is a model of the hand of hand/kinematics.py only")
    if own["top_logit_rmse"] > mean["top_logit_rmse"]:
        print(
            "The mean's RMSE is hard to beat with few objects: a squared error rewards the average of all grasps that "
            "fit a wrist, which seldom holds, and punishes a choice among them."
        )


# ---------------------------------------------------------------- predictions


@torch.no_grad()
def predict(model, data, rows, device, clouds_per_chunk=64, grasps_per_chunk=4096):
    """Predictions for grasps `rows` of a `GraspData`, each cloud encoded once; leaves the model in eval mode.

    Returns joints_pred (n, K, J) rad, logits (n, K), joints_true (n, J) rad, object (n,), synset (n,) as arrays.
    Always in exact float32, so that a run trained in another precision has the same numbers everywhere.
    """
    model.eval()
    rows = np.sort(rows)  # grasps are sorted by scene, so each chunk of scenes is one run of rows
    scenes, object_index = np.unique(data.scene[rows], return_inverse=True)
    joints_hat, logits = [], []  # stay on the device: a look at each would wait for it
    with exact_products():
        for first in range(0, len(scenes), clouds_per_chunk):
            clouds = torch.from_numpy(data.clouds[scenes[first : first + clouds_per_chunk]]).to(device)
            encoded = model.encode(clouds)
            start, stop = np.searchsorted(object_index, (first, first + clouds_per_chunk))
            for low in range(start, stop, grasps_per_chunk):
                part = slice(low, min(stop, low + grasps_per_chunk))
                index = torch.from_numpy(object_index[part] - first).to(device)
                poses = torch.from_numpy(data.poses[rows[part]]).to(device)
                decoded = model.decode(encoded, index, poses)
                joints_hat.append(decoded[0].float())
                logits.append(decoded[1].float())
    objects = data.object_of_grasp[rows]
    return {
        "joints_pred": torch.cat(joints_hat).cpu().numpy(), "logits": torch.cat(logits).cpu().numpy(),
        "joints_true": data.joints[rows], "object": objects,
        "synset": np.array([name.split("/")[0] for name in objects]),
    }  # fmt: skip


def constant_predictions(data, joints, rows):
    """The same joints (J,) rad, or joints (n, J), for grasps `rows` as if from a model with K = 1.

    With the training mean the weakest baseline, with the recorded joints what a perfect model would reach.
    """
    joints = np.broadcast_to(joints, (len(rows), joints.shape[-1]))[:, None]  # (n, 1, J)
    return {
        "joints_pred": np.array(joints), "logits": np.zeros((len(rows), 1)),
        "joints_true": data.joints[rows], "object": data.object_of_grasp[rows],
    }  # fmt: skip


def reference_predictions(data, mean, rows):
    """What a run is seen beside: the training mean (J,) rad for every grasp of `rows`, and the recorded joints."""
    rows = np.sort(rows)
    return {
        "training mean": constant_predictions(data, mean, rows),
        "recorded": constant_predictions(data, data.joints[rows], rows),
    }


# ---------------------------------------------------------------- does the grasp hold?


def add_holds(results, predictions, data, rows, quiet=False, seed=0):
    """Shares of grasps that are free, and that hold once closed (hand/holds.py), into `summarize`d results.

    results, predictions: equal keys -> `summarize`, arrays of `predict` for the same grasps `rows` (n,). Of the grasps
    that `rows_to_close` chooses; for K > 1 the top logit ("free", "holds"), the hypothesis nearest to the
    recorded joints ("…_best_of_k") and the average by probability ("…_average"). For the hand of hand/kinematics.py.
    """
    rows = np.sort(rows)
    part = rows_to_close(data, rows)
    kinds, columns = [], []
    for key, found in predictions.items():
        for suffix, joints in candidate_joints(
            *(found[name][part] for name in ("joints_pred", "logits", "joints_true"))
        ):
            kinds.append((key, suffix))
            columns.append(joints)
    joints = np.stack(columns, axis=1)  # (n, columns, 12)
    outcomes = outcomes_in_scenes(data, rows[part], joints, quiet, torch.get_num_threads())  # (n, columns)
    objects = data.object_of_grasp[rows[part]]
    for column, (key, suffix) in enumerate(kinds):
        shares = {"free" + suffix: outcomes.free[:, column], "holds" + suffix: outcomes.holds[:, column]}
        shares = {name: torch.from_numpy(values).double() for name, values in shares.items()}
        results[key] |= {name: values.mean().item() for name, values in shares.items()} | {"grasps_closed": len(part)}
        results[key].setdefault("interval_95", {}).update(bootstrap(shares, objects, seed))


def compare(model, data, rows, summary, predictions, holds, quiet=False, seed=0):
    """Summaries of a run, its training mean and the recorded joints by name; with `holds` also whether these hold.

    summary, predictions: of the run on grasps `rows`, from `evaluate_suites`; the summary gains the shares that hold.
    """
    beside = reference_predictions(data, model.joint_mean.cpu().numpy(), rows)
    results = {name: summarize(found, seed) for name, found in beside.items()} | {"run": summary}
    if holds:
        add_holds(results, beside | {"run": predictions}, data, rows, quiet, seed)
    return results


def knows_hand(data):
    """Whether the joints of a `GraspData` are those of the one hand that there is a model of."""
    return list(data.joint_names) == list(kinematics.JOINT_NAMES)


def read_predictions(path):
    """Arrays of a --save-predictions file, shapes checked; raises `UserError`."""
    arrays = read_npz(path, "make it with --save-predictions")
    missing = [name for name in ("joints_pred", "logits", "joints_true") if name not in arrays]
    if missing:
        raise UserError(f"{path}: not a file of predictions, has no {missing[0]}; make it with --save-predictions")
    joints_hat, logits, joints = (arrays[name] for name in ("joints_pred", "logits", "joints_true"))
    whole = joints_hat.ndim == 3 and 0 not in joints_hat.shape
    if not whole or logits.shape != joints_hat.shape[:2] or joints.shape != joints_hat.shape[::2]:
        raise UserError(
            f"{path}: shapes {joints_hat.shape}, {logits.shape}, {joints.shape} must be (n, K, J), (n, K), (n, J)"
        )
    for name in ("joints_pred", "logits", "joints_true"):
        given = arrays[name]
        if given.dtype.kind != "f" or not (np.abs(given.astype(float)) < TOO_LARGE).all():
            raise UserError(f"{path}: '{name}' must hold floating-point numbers, finite and under {TOO_LARGE:g}")
        arrays[name] = given.astype(np.float64 if given.dtype.itemsize > 4 else np.float32)
    for name in {"object", "synset", "suite"} & set(arrays):
        if arrays[name].shape != joints.shape[:1] or arrays[name].dtype.kind != "U":
            raise UserError(f"{path}: '{name}' must be {len(joints)} strings, one per grasp")
    return arrays


# ---------------------------------------------------------------- one run


def open_run(folder, data_root=None, quiet=False, everything=False):
    """Settings, `GraspData` and `Split` of a run folder, as it was trained; `data_root` if the data has moved.

    With `everything` the data is another root, and its one suite "all" holds all of it.
    """
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
    same = data.fingerprint == config.get("fingerprint")
    if everything:
        if same:
            raise UserError(f"{root}: {folder} was trained on it; --suite all is for objects that it has not seen")
        objects = sorted(set(data.object_of_scene))
        rows = np.arange(len(data.scene))
        return data, Split("", 1.0, data.fingerprint, {"all": objects}, [], {}, [], {"all": rows})
    try:
        split = make_split(data, settings["pack"], settings["budget"], settings["held_out"])
    except UserError as error:
        raise UserError(f"{error}; or give --suite all for objects that the run has not seen") from None
    if not same:
        print(f"warning: {root} is not the dataset that {folder} was trained on (fingerprints differ)", file=sys.stderr)
    return data, split


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
    with exact_products():
        joints, logits = model(torch.from_numpy(cloud)[None].to(device), index, poses)
    probabilities, order = logits.softmax(1).sort(dim=1, descending=True)
    joints = joints.gather(1, order[:, :, None].expand_as(joints))
    return [
        {"pose": p.tolist(), "hypotheses": [{"probability": q.item(), "joints": j.tolist()} for q, j in zip(qs, js)]}
        for p, qs, js in zip(poses.cpu(), probabilities.cpu(), joints.cpu())
    ]


def read_scaled_cloud(path, scale, num_points):
    """Cloud (N, 3) float32 of a mesh or cloud file whose unit is `scale` m, its size checked."""
    cloud = read_cloud(path, num_points, ANY_LENGTH)
    length = float(np.ptp(cloud, axis=0).max())  # in the file's unit
    if length * scale > MAX_LENGTH:
        raise UserError(
            f"{path}: {length * scale:.4g} m long, the limit is {MAX_LENGTH:g} m; {unit_hint(length)} with --mesh-scale"
        )
    if length * scale < SMALL:
        print(f"warning: {path}: only {length * scale:.2g} m long; are these metres? See --mesh-scale", file=sys.stderr)
    return cloud * np.float32(scale)


def object_command(args, model, device):
    """`--mesh`: print the predictions for one object as JSON; -> what is printed."""
    if (args.pose is None) == (args.poses is None):
        raise UserError("--mesh needs either --pose (7 numbers) or --poses FILE.npy")
    name, given = ("--pose", np.array([args.pose])) if args.pose else (args.poses, read_array(args.poses, 7))
    poses = normal_poses(given, name)
    cloud = read_scaled_cloud(args.mesh, args.mesh_scale, model.config.points)
    if args.up == "y":
        cloud, poses = turn_to_z_up(cloud), normal_poses(turn_poses_to_z_up(poses), name)
    check_reach(cloud, poses, name)
    found = predict_object(model, np.ascontiguousarray(cloud), poses, device)
    for prediction, pose in zip(found, given):
        prediction["pose"] = pose.tolist()  # as it was given, whatever is up
    result = {"run": args.run, "unit": "rad", "joint_names": model.joint_names, "predictions": found}
    joints = np.array([[hypothesis["joints"] for hypothesis in p["hypotheses"]] for p in found])  # (n, K, J)
    if model.joint_names == list(kinematics.JOINT_NAMES):
        outside = (joints < kinematics.LIMITS[:, 0] - LIMIT_SLACK) | (joints > kinematics.LIMITS[:, 1] + LIMIT_SLACK)
        result["joints_outside_limits"] = int(outside.sum())
    if model.joint_range is not None:
        low, high = model.joint_range
        wild = ((joints < low) | (joints > high)).any(1)  # (n, J)
        if wild.any():
            names = " ".join(np.asarray(model.joint_names)[wild.any(0)])
            print(
                f"warning: {int(wild.any(1).sum())} of {len(wild)} poses: predicted joints leave the range seen in "
                f"training ({names}); is the pose in the mesh's frame, with z up?",
                file=sys.stderr,
            )
    print(json.dumps(result, indent=2))
    if args.picture:
        draw_object(args, poses, joints[:, 0])
    return result


def draw_object(args, poses, joints):
    """The most probable hypotheses (n, J) rad for up to six wrist poses (n, 7) on the mesh of `--mesh`."""
    vertices, faces = read_mesh(args.mesh, ANY_LENGTH)
    vertices = vertices * args.mesh_scale
    vertices = turn_to_z_up(vertices) if args.up == "y" else vertices
    grasps = np.concatenate([poses, joints], axis=1)[:6]
    Path(args.picture).parent.mkdir(parents=True, exist_ok=True)
    draw_grasps([(vertices, faces, grasp, f"pose {i}") for i, grasp in enumerate(grasps)], args.picture)


def check_drawable(joint_names):
    """Stop where the hand to be drawn is not the one of hand/kinematics.py."""
    if joint_names != list(kinematics.JOINT_NAMES):
        raise UserError("--picture: draws the hand of hand/kinematics.py only; the joints of this run have other names")


def draw_predictions(model, data, split, suite, path, device, seed=0):
    """Fig. 1 for six objects of a suite: the recorded grasp, and beside it the top-logit prediction for its pose."""
    rng = np.random.default_rng(seed)
    objects = data.object_of_grasp
    chosen = rng.permutation(np.unique(objects[split.rows[suite]]))[:6]
    rows = np.sort([rng.choice(split.rows[suite][objects[split.rows[suite]] == name]) for name in chosen])
    predictions = predict(model, data, rows, device)
    top = predictions["joints_pred"][np.arange(len(rows)), predictions["logits"].argmax(1)]  # (6, J)
    sheet = []
    for row, joints in zip(rows, top):
        mesh, name = read_mesh(scene_mesh(data, data.scene[row])), scene_title(data.scenes[data.scene[row]])
        error = math.degrees(np.sqrt(np.mean((joints - data.joints[row]) ** 2)))
        sheet.append((*mesh, np.r_[data.poses[row], data.joints[row]], f"{name}: recorded"))
        sheet.append((*mesh, np.r_[data.poses[row], joints], f"predicted, RMS error {error:.1f}°"))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draw_grasps(sheet, path)


# ---------------------------------------------------------------- command line


def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", nargs="?", metavar="RUN", help="folder of a run, as train.py printed it")
    suites = "which suites; choose everything on val; all: every object of another root, named by --data"
    flag("--suite", nargs="+", choices=(*SUITES, "all"), default=["val"], help=suites)
    checkpoints = "best step on val, or the last one saved"
    flag("--checkpoint", choices=("best", "last"), default="best", help=checkpoints)
    flag("--data", metavar="ROOT", help="the dataset, where it has moved since the training, or another one")
    flag("--predictions", metavar="FILE", help="recompute the metrics of a saved .npz instead of running a model")
    arrays = "save joints_pred, logits, joints_true, object, synset, suite (.npz)"
    flag("--save-predictions", metavar="FILE", help=arrays)
    flag("--json", metavar="FILE", help="save the metrics, or with --mesh the predictions")
    flag("--mesh", metavar="FILE", help="predict for this mesh, or .npy cloud (n, 3), in metres, z up")
    scale = "multiply --mesh, not its poses, by this to have it in metres: 0.001 where it is in millimetres"
    flag("--mesh-scale", type=number(float, above=0), default=1.0, help=scale)
    axes = ("X", "Y", "Z", "QX", "QY", "QZ", "QW")
    pose = "one wrist pose in the mesh's frame: metres and a unit quaternion"
    flag("--pose", type=number(float), nargs=7, metavar=axes, help=pose)
    flag("--poses", metavar="FILE", help=".npy of wrist poses (n, 7)")
    flag("--up", choices=("z", "y"), default="z", help="the axis that points up in --mesh and its poses")
    holds = "also see which grasps are free of the object, and which hold it once closed"
    flag("--holds", action="store_true", help=holds)
    picture = (
        "draw six grasps of the (first) suite, recorded beside predicted, or with --mesh the predicted ones (.png)"
    )
    flag("--picture", metavar="FILE", help=picture)
    flag("--seed", type=number(int, 0), default=0, help="of the bootstrap over objects, and of the picture's choice")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one")
    flag("--threads", type=number(int, 1, 1024), metavar="N", help="CPU threads (default: one per core)")
    flag("--quiet", action="store_true", help="no progress bars")
    return parser


def parse(argv):
    """The arguments, with what contradicts each other refused."""
    args = build_parser().parse_args(argv)
    if (args.run is None) == (args.predictions is None):
        raise UserError("give either a RUN folder or --predictions FILE (see --help)")
    for flag, others in CONTRADICTING.items():
        for other in others:
            if getattr(args, flag) and getattr(args, other):
                raise UserError(f"--{other.replace('_', '-')} does not go with --{flag}; leave one out")
    if (args.pose or args.poses or args.up != "z" or args.mesh_scale != 1) and not args.mesh:
        raise UserError("--mesh-scale, --pose, --poses and --up go with --mesh FILE; give it")
    if args.holds and (args.mesh or args.predictions):
        raise UserError("--holds goes with a RUN and its data; leave it out")
    if args.picture and args.mesh and Path(args.mesh).suffix.lower() == ".npy":
        raise UserError(f"--picture: {args.mesh} is a cloud; give a mesh to draw")
    if "all" in args.suite and (len(args.suite) > 1 or not args.data):
        raise UserError("--suite all: goes alone; give --data ROOT of objects that the run has not seen")
    return args


def check_joints(data, model):
    """Stop where the joints of a `GraspData` are not those that a run predicts: other in number, name or order."""
    theirs, ours = list(data.joint_names), model.joint_names
    if len(theirs) != model.config.joints:
        raise UserError(f"{data.root}: has {len(theirs)} joints, the run {model.config.joints}; name other data")
    unnamed = numbered_joints(len(theirs))  # of recordings without names
    if ours is None or unnamed in (theirs, ours) or theirs == ours:
        return
    first = next(i for i, (mine, other) in enumerate(zip(ours, theirs)) if mine != other)
    raise UserError(f"{data.root}: joint {first} is '{theirs[first]}', in the run '{ours[first]}'; name other data")


def predictions_command(args):
    """`--predictions`: the metrics of a saved file, overall and per suite; -> the metrics."""
    arrays = read_predictions(args.predictions)
    result = summarize(arrays, args.seed)
    rows = {"all": result}
    if "suite" in arrays:
        result["suites"] = {}
        for suite in np.unique(arrays["suite"]).tolist():
            rows_of = arrays["suite"] == suite
            result["suites"][suite] = summarize({key: values[rows_of] for key, values in arrays.items()}, args.seed)
        rows |= result["suites"]
    print(metrics_table(rows))
    return result


def run_command(args, model, device):
    """Metrics of a run's suites, its training mean beside them; -> the metrics."""
    data, split = open_run(args.run, args.data, args.quiet, everything="all" in args.suite)
    check_joints(data, model)
    if args.holds and not knows_hand(data):
        raise UserError(f"--holds: {data.root} has other joints than hand/kinematics.py, the only hand modelled here")
    suites, predictions = evaluate_suites(model, data, split, args.suite, device, args.quiet, args.seed)
    if not suites:
        raise UserError(f"--suite {' '.join(args.suite)}: holds no grasps in {data.root}; name another suite")
    rows, means = {}, {}
    for suite in suites:
        found = suites[suite], predictions[suite]
        results = compare(model, data, split.rows[suite], *found, args.holds, args.quiet, args.seed)
        means[suite] = results["training mean"]
        rows |= {f"training mean, {suite}": means[suite], f"this run, {suite}": suites[suite]}
        if args.holds:
            rows[f"recorded, {suite}"] = results["recorded"]
    print(metrics_table(rows))
    if args.holds:
        print(holds_table(suites))
    for suite in suites:
        print(f"\n{suite} by synset\n" + metrics_table(suites[suite]["synsets"]))
    if args.save_predictions:
        save_predictions(args.save_predictions, predictions)
    if args.picture:
        draw_predictions(model, data, split, next(iter(suites)), args.picture, device, args.seed)
    return {"run": args.run, "checkpoint": args.checkpoint, "suites": suites, "training_mean": means}


def holds_table(suites):
    """Aligned lines: the shares that are free and that hold, of top logit, best of K and average, with intervals."""
    lines = ["", f"{'':<28}  free      95 %            holds     95 %"]
    names = {"": "top logit", "_best_of_k": "best of K", "_average": "average of K"}
    for suite, result in suites.items():
        for suffix, name in names.items():
            if "holds" + suffix in result:
                cells = []
                for share in ("free", "holds"):
                    low, high = result["interval_95"].get(share + suffix, (math.nan, math.nan))
                    interval = f"[{low:.3f}, {high:.3f}]" if low == low else ""
                    cells.append(f"{result[share + suffix]:.3f} {interval:<16}")
                lines.append(f"{name + ', ' + suite:<28} {'  '.join(cells)}")
    return "\n".join(lines)


@command
def main(argv=None):
    args = parse(argv)
    if args.predictions:
        result = predictions_command(args)
    else:
        check_run(args.run, args.checkpoint)
        device = set_up_torch(args.device, args.threads)
        model = load_run(args.run, args.checkpoint).to(device)
        if args.picture:
            check_drawable(model.joint_names)
        result = (object_command if args.mesh else run_command)(args, model, device)
    if args.json:
        write_json(args.json, result)
    return result


if __name__ == "__main__":
    main()
