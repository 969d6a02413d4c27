"""Metrics of a trained run (Sec. III-E), suite by suite.

    python evaluate.py RUN                          val metrics of a run, and by synset
    python evaluate.py RUN --suite test             the test suite: look once, choose nothing on it
    python evaluate.py RUN --holds                  also: would the hand hold the object?
    python evaluate.py RUN --picture FILE.png       six grasps, recorded beside predicted
    python evaluate.py --predictions F.npz          the metrics of saved predictions

RUN is a folder that train.py wrote. Joints for one object are predict.py's.
"""

import argparse
import functools
import math
import sys
import time
from pathlib import Path

import cli  # before torch, which reads the environment that it sets
import numpy as np
import torch
from tqdm import tqdm

from benchmark.roots import ensure_root
from cli.errors import UserError, command, refuse
from cli.flags import Parser, number
from data import load_dataset
from files.checkpoints import check_run, load_run
from files.predictions import read_predictions, save_predictions
from files.reading import read_mesh
from files.recordings import numbered_joints
from files.writing import read_json, write_json
from hand.kinematics import JOINT_NAMES
from hand.scenes import close_some, scene_mesh
from loop.fast import exact_products
from loop.machine import set_up_torch
from pictures.draw import draw_grasps, scene_title
from splits import SUITES, Split, make_split

ROOT_METRICS = ("top_logit_rmse", "best_of_k_rmse")  # reported as the root of the mean
MIN_OBJECTS = 8  # a bootstrap over fewer objects says nothing
DEGREES = (10, 15, 20)
SETTINGS = ("data", "min_score", "skip_bad", "cache_dir", "pack", "budget", "held_out")  # what a run's data depends on

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


@functools.lru_cache(4)
def resample(count, seed=0, draws=2000):
    """How often each of `count` objects is drawn in each of R = `draws` resamplings with replacement, (R, O)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def interval(values):
    """The 95 % interval of resampled values (R,): [low, high]."""
    return np.percentile(values, (2.5, 97.5)).tolist()


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
    return {name: interval(value) for name, value in from_means(means).items()}


def summarize(predictions, seed=0):
    """Metrics, intervals and per-synset metrics of one set of predictions (a dict of arrays, see `predict_grasps`)."""
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


def bracket(result, metric):
    """The interval of a metric of a `summarize`, as text; "" where there is none."""
    found = result.get("interval_95", {}).get(metric)
    return f"[{found[0]:.3f}, {found[1]:.3f}]" if found else ""


def metrics_table(results):
    """Aligned rows of results, name -> `summarize`: rad and shares, 100 columns where names have 21 or fewer."""
    width = max(18, *map(len, results))
    with_holds = any("holds" in result for result in results.values())
    header = f"{'':<{width}} grasps  top-logit RMSE (rad)  best-of-K    gap cov@10°   15°   20°"
    lines = [header + "  free holds" * with_holds]
    for name, r in results.items():
        errors = f"{r['top_logit_rmse']:.4f} {bracket(r, 'top_logit_rmse'):<14}{r['best_of_k_rmse']:10.4f}"
        cover = f"{r['coverage_10']:8.3f}{r['coverage_15']:6.3f}{r['coverage_20']:6.3f}"
        closed = f"{r['free']:6.3f}{r['holds']:6.3f}" if "holds" in r else ""
        lines.append(f"{name:<{width}}{r['num_grasps']:7d}  {errors}{r['selection_gap']:7.4f}{cover}{closed}")
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
def predict_grasps(model, data, rows, device, clouds_per_chunk=64, grasps_per_chunk=4096):
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


# ---------------------------------------------------------------- does the grasp hold?


def knows_hand(data):
    """Whether the joints of a `GraspData` are those of the one hand that there is a model of."""
    return list(data.joint_names) == list(JOINT_NAMES)


def add_holds(results, predictions, data, rows, quiet=False, seed=0):
    """Shares of grasps that are free, and that hold once closed (hand/holds.py), into `summarize`d results.

    results, predictions: equal keys -> `summarize`, arrays of `predict_grasps` for the same grasps `rows` (n,). For
    K > 1 of the top logit ("free", "holds"), of the hypothesis nearest to the recorded joints ("…_best_of_k") and of
    the average by probability ("…_average").
    """
    part, closed = close_some(data, rows, predictions, quiet, torch.get_num_threads())
    for (key, suffix), outcomes in closed.items():
        shares = {name + suffix: torch.from_numpy(getattr(outcomes, name)).double() for name in ("free", "holds")}
        results[key] |= {name: values.mean().item() for name, values in shares.items()} | {"grasps_closed": len(part)}
        intervals = bootstrap(shares, data.object_of_grasp[rows[part]], seed)
        results[key].setdefault("interval_95", {}).update(intervals)


def compare(model, data, rows, summary, predictions, holds, quiet=False, seed=0):
    """Summaries of a run, its training mean and the recorded joints by name; with `holds` also whether these hold.

    summary, predictions: of the run on grasps `rows`, from `evaluate_suites`; the summary gains the shares that hold.
    """
    rows = np.sort(rows)  # as the predictions are
    beside = {
        "training mean": constant_predictions(data, model.joint_mean.cpu().numpy(), rows),
        "recorded": constant_predictions(data, data.joints[rows], rows),
    }
    results = {name: summarize(found, seed) for name, found in beside.items()} | {"run": summary}
    if holds:
        add_holds(results, beside | {"run": predictions}, data, rows, quiet, seed)
    return results


# ---------------------------------------------------------------- one run


def open_run(folder, data_root=None, quiet=False, everything=False):
    """Settings, `GraspData` and `Split` of a run folder, as it was trained; `data_root` if the data has moved.

    With `everything` the data is another root, and its one suite "all" holds all of it.
    """
    path = Path(folder) / "config.json"
    config = read_json(path, "settings", "network")
    settings = config["settings"]
    missing = [name for name in SETTINGS if name not in settings]
    if missing or not isinstance(config["network"].get("points"), int):
        what = ", ".join(missing) or "points"
        raise UserError(f"{path}: not the settings of a run (no {what}); give a folder that train.py wrote")
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
        predictions[suite] = predict_grasps(model, data, split.rows[suite], device)
        results[suite] = summarize(predictions[suite], seed)
    return results, predictions


def draw_predictions(model, data, split, suite, path, device, seed=0):
    """Fig. 1 for six objects of a suite: the recorded grasp, and beside it the top-logit prediction for its pose."""
    rng, own = np.random.default_rng(seed), split.rows[suite]
    objects = data.object_of_grasp[own]
    rows = np.sort([rng.choice(own[objects == name]) for name in rng.permutation(np.unique(objects))[:6]])
    found = predict_grasps(model, data, rows, device)
    top = found["joints_pred"][np.arange(len(rows)), found["logits"].argmax(1)]  # (6, J)
    sheet = []
    for row, scene, joints in zip(rows, data.scene[rows], top):
        mesh, pose, recorded = read_mesh(scene_mesh(data, scene)), data.poses[row], data.joints[row]
        error = math.degrees(np.sqrt(np.mean((joints - recorded) ** 2)))
        sheet.append((*mesh, np.r_[pose, recorded], f"{scene_title(data.scenes[scene])}: recorded"))
        sheet.append((*mesh, np.r_[pose, joints], f"predicted, RMS error {error:.1f}°"))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draw_grasps(sheet, path)


# ---------------------------------------------------------------- command line


def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_mutually_exclusive_group(required=True).add_argument
    flag("run", nargs="?", metavar="RUN", help="folder of a run, as train.py printed it")
    flag("--predictions", metavar="FILE", help="recompute the metrics of a saved .npz instead of running a model")

    flag = parser.add_argument
    suites = "choose everything on val; all: every object of another root, named by --data"
    flag("--suite", nargs="+", choices=(*SUITES, "all"), default=["val"], help=suites)
    flag("--checkpoint", choices=("best", "last"), default="best", help="best step on val, or the last one saved")
    flag("--data", metavar="ROOT", help="the dataset, where it has moved since the training, or another one")
    flag("--holds", action="store_true", help="also see which grasps are free of the object, and which would hold it")
    arrays = "joints_pred, logits, joints_true, object, synset, suite (.npz)"
    flag("--save-predictions", metavar="FILE", help=arrays)
    flag("--json", metavar="FILE", help="save the metrics")
    flag("--picture", metavar="FILE", help="draw six grasps of the first suite, recorded beside predicted (.png)")
    flag("--seed", type=number(int, 0), default=0, help="of the bootstrap over objects, and of the picture's choice")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one")
    flag("--threads", type=number(int, 1, 1024), metavar="N", help="CPU threads (default: one per core)")
    flag("--quiet", action="store_true", help="no progress bars")
    flag("--mesh", type=moved, help=argparse.SUPPRESS)
    return parser


def moved(mesh):
    raise UserError(f"--mesh: joints for one object are another command's: python predict.py RUN {mesh} --pose …")


def parse(argv):
    """The arguments; stops where they contradict each other."""
    args = build_parser().parse_args(argv)
    for flag in ("data", "holds", "save_predictions", "picture"):
        refuse(args.predictions and getattr(args, flag), f"--{flag.replace('_', '-')} goes with a RUN; leave it out")
    alone = "all" not in args.suite or (args.data and len(args.suite) == 1)
    refuse(not alone, "--suite all: goes alone; give --data ROOT of objects that the run has not seen")
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


def evaluate_file(args):
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


def evaluate_run(args):
    """Metrics of a run's suites, its training mean beside them; -> the metrics."""
    check_run(args.run, args.checkpoint)
    device = set_up_torch(args.device, args.threads)
    model = load_run(args.run, args.checkpoint).to(device)
    data, split = open_run(args.run, args.data, args.quiet, everything="all" in args.suite)
    check_joints(data, model)
    only = f"{data.root} has other joints than hand/kinematics.py, the only hand modelled here"
    refuse((args.holds or args.picture) and not knows_hand(data), f"--holds and --picture: {only}")
    suites, predictions = evaluate_suites(model, data, split, args.suite, device, args.quiet, args.seed)
    refuse(not suites, f"--suite {' '.join(args.suite)}: holds no grasps in {data.root}; name another suite")
    means = {}
    for suite, own in suites.items():
        found = compare(model, data, split.rows[suite], own, predictions[suite], args.holds, args.quiet, args.seed)
        means[suite] = found["training mean"]
        rows = {"training mean": means[suite], "this run": own}
        rows |= {"recorded": found["recorded"]} if args.holds else {}
        print(f"{suite}\n{metrics_table(rows | own['synsets'])}")
        for share in ("free", "holds") if args.holds else ():
            print(f"{share:<6}{holds_line(own, share)}")
    if args.save_predictions:
        save_predictions(args.save_predictions, predictions)
    if args.picture:
        draw_predictions(model, data, split, next(iter(suites)), args.picture, device, args.seed)
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
    for path in filter(None, (args.json, args.save_predictions, args.picture)):
        print(f"saved {path}")
    return result


if __name__ == "__main__":
    main()
