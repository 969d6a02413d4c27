"""Metrics of a trained run (Sec. III-E), suite by suite.

    python evaluate.py RUN                          val metrics of a run, and by synset
    python evaluate.py RUN --suite test             the test suite: look once, choose nothing on it
    python evaluate.py RUN --holds                  also: would the hand hold the object?
    python evaluate.py RUN --picture FILE.png       six grasps, recorded beside predicted
    python evaluate.py RUN --page FILE.html         the same with all hypotheses, to turn in a browser
    python evaluate.py --predictions F.npz          the metrics of saved predictions

RUN is a folder that train.py wrote. Joints for one object are predict.py's.
"""

import argparse
import math
import os
from pathlib import Path

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch
from tqdm import tqdm

from benchmark.shipped import ensure_root
from cli.errors import UserError, command, refuse
from cli.flags import Parser, file_name, number
from data import load_dataset, warn_of_frames
from files.categories import named
from files.checkpoints import check_run, load_run
from files.predictions import NUMBERS, check_predictions, read_predictions, save_predictions
from files.recordings import numbered_joints
from files.writing import read_json, write_json
from hand.described import NO_HAND
from hand.scenes import CLOSED, close_some
from loop.fast import exact_products
from loop.flags import add_device_flags
from loop.machine import set_up_torch
from loop.report import bracket, how_to_read, metrics_table, run_rows
from loop.runs import finished_result
from loop.seen import leave_out
from pictures.draw import draw_grasps, shown_grasps
from pictures.page import write_page
from splits import SUITES, Split, make_split

ROOT_METRICS = ("top_logit_rmse", "best_of_k_rmse")  # reported as the root of the mean
MIN_OBJECTS = 8  # a bootstrap over fewer objects says nothing
SETTINGS = ("data", "min_score", "skip_bad", "cache_dir", "pack", "budget", "held_out", "alpha")  # of a run


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
    # hypothesis by hypothesis, since (n, K, K, J) is too large for K = 1000
    distance = sum((joints_hat - one).square().mean(-1).sqrt().sum(1) for one in joints_hat.split(1, dim=1))  # (n,)
    num_pairs = max(1, joints_hat.shape[1] * (joints_hat.shape[1] - 1))
    statistics = {
        "top_logit_rmse": of_top,
        "best_of_k_rmse": best,
        **{f"coverage_{degrees}": (rms < math.radians(degrees)).float() for degrees in (10, 15, 20)},
        "top_coverage_15": (of_top.sqrt() < math.radians(15)).float(),
        "coverage_15_all_joints": (error.abs().amax(-1).amin(1) < math.radians(15)).float(),
        "diversity": distance / num_pairs,
        "selector_accuracy": (logits.argmax(1) == winner).float(),
    }
    return {name: value.double() for name, value in statistics.items()}


def from_means(means):
    """Reported metrics from the means of `sample_statistics`: floats or arrays, RMSEs in rad."""
    metrics = {name: value**0.5 if name in ROOT_METRICS else value for name, value in means.items()}
    if set(ROOT_METRICS) <= set(metrics):
        metrics["selection_gap"] = metrics["top_logit_rmse"] - metrics["best_of_k_rmse"]
    return metrics


def bootstrap(statistics, objects, seed=0, draws=2000):
    """95 % intervals of every metric over resampled objects: name -> [low, high]; {} under 8 objects.

    statistics: dict of (n,) tensors; objects: n object ids. Grasps of one object are not independent,
    so objects are drawn, each with all its grasps. Training variance is not in it.
    """
    ids, index = np.unique(np.asarray(objects), return_inverse=True)
    if len(ids) < MIN_OBJECTS:
        return {}
    rng, share = np.random.default_rng(seed), np.full(len(ids), 1 / len(ids))
    weights = rng.multinomial(len(ids), share, size=draws)  # (R, O) how often each object is drawn
    grasps = weights @ np.bincount(index)  # (R,)
    means = {name: weights @ np.bincount(index, weights=value.numpy()) / grasps for name, value in statistics.items()}
    return {name: np.percentile(value, (2.5, 97.5)).tolist() for name, value in from_means(means).items()}


def summarize(predictions, seed=0):
    """Metrics, intervals and per-synset metrics of one set of predictions (a dict of arrays, see `predict_grasps`)."""
    arrays = (torch.as_tensor(predictions[name]).float() for name in NUMBERS)
    statistics = sample_statistics(*arrays)
    if "nll" in predictions:  # of a mixture density
        statistics["nll"] = torch.from_numpy(predictions["nll"]).double()
    result = from_means({name: value.mean().item() for name, value in statistics.items()})
    result["num_grasps"] = len(predictions["logits"])
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


# ---------------------------------------------------------------- predictions
@torch.no_grad()
def predict_grasps(model, data, rows, device, clouds_per_chunk=64, grasps_per_chunk=4096):
    """Predictions for grasps `rows` of a `GraspData`, each cloud encoded once; leaves the model in eval mode.

    Returns joints_pred (n, K, J) rad, logits (n, K), joints_true (n, J) rad, object (n,), synset (n,) as arrays; of a
    mixture density nll (n,), nats per joint, too.
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
                joints_hat.append(decoded[0])
                logits.append(decoded[1])
    joints_hat, logits, joints = torch.cat(joints_hat), torch.cat(logits), torch.from_numpy(data.joints[rows])
    objects = data.object_of_grasp[rows]
    found = {
        "joints_pred": joints_hat.cpu().numpy(), "logits": logits.cpu().numpy(),
        "joints_true": data.joints[rows], "object": objects,
        "synset": np.array([name.split("/")[0] for name in objects]),
    }  # fmt: skip
    if hasattr(model.loss, "nll"):
        found["nll"] = model.loss.nll(joints_hat, logits, joints.to(device)).cpu().numpy()
    return found


def constant_predictions(data, joints, rows):
    """The same joints (J,) rad, or joints (n, J), for grasps `rows` as if from a model with K = 1."""
    joints = np.broadcast_to(joints, (len(rows), joints.shape[-1]))[:, None]  # (n, 1, J)
    return {
        "joints_pred": np.array(joints), "logits": np.zeros((len(rows), 1)),
        "joints_true": data.joints[rows], "object": data.object_of_grasp[rows],
    }  # fmt: skip


# ---------------------------------------------------------------- does the grasp hold?
def add_holds(results, predictions, data, rows, closed, quiet=False, seed=0):
    """Shares of some `closed` grasps that are free, and that hold (hand/holds.py), into `summarize`d results.

    results, predictions: equal keys -> `summarize`, arrays of `predict_grasps` for the same grasps `rows` (n,). For
    K > 1 of the top logit ("free", "holds"), of the hypothesis nearest to the recorded joints ("…_best_of_k") and of
    the average by probability ("…_average").
    """
    part, found = close_some(data, rows, predictions, quiet, torch.get_num_threads(), closed)
    for (key, suffix), outcomes in found.items():
        shares = {name + suffix: torch.from_numpy(getattr(outcomes, name)).double() for name in ("free", "holds")}
        results[key] |= {name: values.mean().item() for name, values in shares.items()} | {"grasps_closed": len(part)}
        intervals = bootstrap(shares, data.object_of_grasp[rows[part]], seed)
        results[key].setdefault("interval_95", {}).update(intervals)


def compare(model, data, rows, summary, predictions, closed, quiet=False, seed=0):
    """Summaries of a run, its training mean and the recorded joints by name; whether some `closed` of them hold.

    summary, predictions: of the run on grasps `rows`, from `evaluate_suites`; the summary gains the shares that hold.
    """
    rows = np.sort(rows)  # as the predictions are
    beside = {
        "training mean": constant_predictions(data, model.joint_mean.cpu().numpy(), rows),
        "recorded": constant_predictions(data, data.joints[rows], rows),
    }
    results = {name: summarize(found, seed) for name, found in beside.items()} | {"run": summary}
    if closed and data.hand:
        add_holds(results, beside | {"run": predictions}, data, rows, closed, quiet, seed)
    return results


# ---------------------------------------------------------------- one run
def open_run(folder, data_root=None, quiet=False, everything=False, model=None):
    """`GraspData` and `Split` of a run folder, as it was trained; `data_root` if the data has moved.

    With `everything` the data is another root, and its one suite "all" holds all of it. Where the data is not that of
    the training, what the run has seen is left out of all suites but train. It must fit `model`.
    """
    path = Path(folder) / "config.json"
    config = read_json(path, "settings", "network")
    settings, points = config["settings"], config["network"].get("points")
    whole = all(name in settings for name in SETTINGS) and isinstance(points, int)
    whole = whole and isinstance(settings["alpha"], (int, float))
    refuse(not whole, f"{path}: not the settings of a run; give a folder that train.py wrote")
    root = ensure_root(data_root or settings["data"], quiet)
    kept = settings["min_score"], settings["skip_bad"], settings["cache_dir"]
    data = load_dataset(root, points, *kept, quiet)
    if model is not None:
        check_fits(data, model)
    same = data.fingerprint == config.get("fingerprint")
    refuse(everything and same, f"{root}: {folder} was trained on it; --suite all is for objects that it has not seen")
    try:
        chosen = settings["pack"], settings["budget"], settings["held_out"]
        split = whole_split(data) if everything else make_split(data, *chosen)
    except UserError as error:
        raise UserError(f"{error}; or give --suite all for objects that the run has not seen") from None
    if not same:
        in_place = everything and os.path.realpath(root) == os.path.realpath(settings["data"])
        leave_out(folder, data, split, same_ids=data_root is None or in_place)
        warn_of_frames(data)
    return data, split


def whole_split(data):
    """A `Split` whose one suite "all" holds all of a `GraspData`."""
    objects, rows = sorted(set(data.object_of_scene)), np.arange(len(data.scene))
    return Split("", 1.0, data.fingerprint, {"all": objects}, [], {}, [], {"all": rows})


def evaluate_suites(model, data, split, suites, device, quiet=False, seed=0, run=None):
    """Reports and predictions of the suites that hold any grasps, two dicts by suite; those of a `run` are finite."""
    results, predictions = {}, {}
    present = [suite for suite in suites if len(split.rows[suite])]
    for suite in tqdm(present, desc="evaluating", unit="suite", disable=quiet or None, delay=2):
        predictions[suite] = predict_grasps(model, data, split.rows[suite], device)
        if run:
            check_predictions(run, predictions[suite]["joints_pred"], predictions[suite]["logits"])
        results[suite] = summarize(predictions[suite], seed)
    return results, predictions


def draw_predictions(model, data, rows, device, seed=0, picture=None, page=None, run=""):
    """Fig. 1 for six objects of the grasps `rows`, recorded and predicted: a picture, a page about `run`, or both."""
    rng, objects = np.random.default_rng(seed), data.object_of_grasp[rows]
    rows = np.sort([rng.choice(rows[objects == name]) for name in rng.permutation(np.unique(objects))[:6]])
    found = predict_grasps(model, data, rows, device)
    shown = shown_grasps(data, rows, found["joints_pred"], found["logits"])
    if picture:
        draw_grasps(shown, picture, data.hand)
    if page:
        write_page(run, shown, data.joint_names, page, data.hand)


# ---------------------------------------------------------------- command line
def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_mutually_exclusive_group(required=True).add_argument
    flag("run", nargs="?", metavar="RUN", help="folder of a run, as train.py printed it")
    flag("--predictions", metavar="FILE", help="recompute the metrics of a saved .npz instead of running a model")

    flag = parser.add_argument
    flag("--suite", nargs="+", choices=(*SUITES, "all"), default=["val"], help="val to choose on; all: all of --data")
    flag("--checkpoint", choices=("best", "last"), default="best", help="best step on val, or the last one saved")
    flag("--data", metavar="ROOT", help="the dataset, where it has moved since the training, or another one")
    flag("--holds", action="store_true", help="also see which grasps are free of the object, and which would "
         "hold it; joints outside the hand's limits are clipped to them first")  # fmt: skip
    flag("--closed", type=number(int, 1), default=CLOSED, metavar="N", help="grasps of a suite that --holds tells of")
    flag("--save-predictions", metavar="FILE", help="joints_pred, logits, joints_true, object, synset, suite (.npz)")
    flag("--json", metavar="FILE", help="save the metrics")
    flag("--picture", type=file_name(".png"), metavar="FILE", help="draw six grasps of the first suite (.png)")
    flag("--page", type=file_name(".html"), metavar="FILE", help="the same with all hypotheses, to turn (.html)")
    flag("--seed", type=number(int, 0), default=0, help="of the bootstrap over objects, and of the picture's choice")
    add_device_flags(flag)
    flag("--quiet", action="store_true", help="no progress bars")
    flag("--mesh", type=moved, help=argparse.SUPPRESS)
    return parser


def moved(mesh):
    raise UserError(f"--mesh: joints for one object are another command's: python predict.py RUN {mesh} --pose …")


def parse(argv):
    """The arguments; stops where they contradict each other."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name in ("data", "suite", "checkpoint", "holds", "closed", "save_predictions", "picture", "page"):
        given = getattr(args, name) != parser.get_default(name)
        refuse(given and args.predictions, f"--{name.replace('_', '-')} goes with a RUN; leave it out")
        refuse(given and name == "closed" and not args.holds, "--closed goes with --holds; add that")
    alone = "all" not in args.suite or (args.data and len(args.suite) == 1)
    refuse(not alone, "--suite all: goes alone; give --data ROOT of objects that the run has not seen")
    return args


def check_fits(data, model):
    """Stop where a network takes clouds of another size than a `GraspData` has, or predicts other joints."""
    sizes = data.clouds.shape[1], model.config.points
    refuse(sizes[0] != sizes[1], f"{data.root}: read with {sizes[0]} points per cloud, not the network's {sizes[1]}")
    theirs, ours = list(data.joint_names), model.joint_names or list(data.joint_names)
    sizes = len(theirs), model.config.joints
    refuse(sizes[0] != sizes[1], f"{data.root}: has {sizes[0]} joints, the run {sizes[1]}; name other data")
    unnamed = {*theirs} != {*ours} and numbered_joints(len(theirs)) in (theirs, ours)  # recordings without names
    for i, (mine, other) in enumerate(() if unnamed else zip(ours, theirs)):
        refuse(mine != other, f"{data.root}: joint {i} is '{other}', in the run '{mine}'; name other data")


def evaluate_file(args):
    """`--predictions`: the metrics of a saved file, overall and per suite; -> the metrics."""
    arrays = read_predictions(args.predictions)
    result = summarize(arrays, args.seed)
    suites = {}
    for suite in np.unique(arrays.get("suite", np.array([]))).tolist():
        rows = arrays["suite"] == suite
        suites[suite] = summarize({name: values[rows] for name, values in arrays.items()}, args.seed)
    print(metrics_table({"all": result} | suites))
    return result | ({"suites": suites} if suites else {})


def evaluate_run(args):
    """Metrics of a run's suites, its training mean beside them; -> the metrics."""
    check_run(args.run, args.checkpoint)
    device = set_up_torch(args.device, args.threads)
    model = load_run(args.run, args.checkpoint).to(device)
    data, split = open_run(args.run, args.data, args.quiet, "all" in args.suite, model)
    refuse((args.holds or args.picture) and not data.hand, f"--holds and --picture: {NO_HAND}")
    suites, predictions = evaluate_suites(model, data, split, args.suite, device, args.quiet, args.seed, args.run)
    refuse(not suites, f"--suite {' '.join(args.suite)}: holds no grasps in {data.root}; name another suite")
    means, shown = {}, {}
    finished = finished_result(args.run, data.fingerprint) if args.checkpoint == "best" else {}
    for suite, own in suites.items():
        closed = args.closed if args.holds else 0
        found = compare(model, data, split.rows[suite], own, predictions[suite], closed, args.quiet, args.seed)
        means[suite] = found["training mean"]
        if suite == "val" and finished:  # the table that train.py printed
            rows = run_rows(finished, found)
        else:
            rows = {"training mean": means[suite], "this run": own}
            rows |= {"recorded": found["recorded"]} if args.holds else {}
        rows |= {named(synset): result for synset, result in own["synsets"].items()}
        of_pack = f" of pack {split.pack}" if split.pack else ""
        print(f"{suite}{of_pack}\n{metrics_table(rows)}")
        for share in ("free", "holds") if args.holds else ():
            print(f"{share:<6}{holds_line(own, share)}")
        shown |= rows
    print("", *how_to_read(shown), sep="\n")
    if args.save_predictions:
        save_predictions(args.save_predictions, predictions)
    if args.picture or args.page:
        rows = split.rows[next(iter(suites))]
        draw_predictions(model, data, rows, device, args.seed, args.picture, args.page, args.run)
    return {"run": args.run, "checkpoint": args.checkpoint, "suites": suites, "training_mean": means}


def holds_line(result, share):
    """The shares "free" or "holds" of top logit, best of K and average, with intervals."""
    names = {share: "top logit", f"{share}_best_of_k": "best of K", f"{share}_average": "average"}
    return "; ".join(f"{name} {result[key]:.3f} {bracket(result, key)}" for key, name in names.items() if key in result)


@command
def main(argv=None):
    args = parse(argv)
    result = evaluate_file(args) if args.predictions else evaluate_run(args)
    if args.json:
        write_json(args.json, result)
    for path in filter(None, (args.json, args.save_predictions, args.picture, args.page)):
        print(f"saved {path}")
    return result


if __name__ == "__main__":
    main()
