"""Fine-tune the grasp model on a share of the labels, and validate it (Sec. III-E, IV-C).

    python train.py --budget 0.1 --init jepa        pretrained encoder, 10 % of the training objects
    python train.py --budget 0.1 --init scratch     the same without pretraining
    python train.py --budget 0.1 --pool none        the pose-only baseline

A run is a folder, runs/<name>/: config.json, metrics.csv, result.json, best.pt; last.pt until it has finished.
Only validation is reported here; the test suites are evaluate.py's.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import plumbing  # before torch, which reads the environment that it sets
import torch
from tqdm import tqdm

from controls import calibrate, check_oracle, check_start, standardise
from data import GraspData, add_data_flags, epoch_batches, load_dataset, warn_of_frames
from evaluate import add_holds, evaluate_suites, knows_hand, metrics_table, reference_predictions, summarize
from model import CHOICES, FINE_TUNING, POOLS, PRESETS, GraspModel, load_encoder, load_run, start_points
from plumbing.checkpoint import read_checkpoint, save_checkpoint
from plumbing.common import (
    Parser, UserError, as_flags, command, locked, number, read_json, stable_seed, write_csv, write_json,
)  # fmt: skip
from plumbing.fast import exact_products, use_library
from plumbing.graph import Graphs
from plumbing.roots import ensure_root
from plumbing.training import (
    LOOK_EVERY, WIDE, adamw, add_encoder_flags, add_machine_flags, autocast, check_flags, check_machine_flags,
    check_same_settings, deferred_interrupt, first_not_finite, load_last, peak_memory, reset_peak_memory, save_last,
    set_precision, set_rate, set_up_torch, warn_if_moved, warmup_cosine,
)  # fmt: skip
from splits import Split, add_split_flags, make_split
from variants import EMBEDDING_SCALE, PROBE_REACH, add_lora, backbone_tiers, merged, surface_distances, temperature_at

CHECKPOINTS = Path(__file__).parent / "checkpoints"  # the encoders that ship, one file per preset
# of the network; not given, they are the preset's or the checkpoint's
NETWORK_FLAGS = (
    "group", "radius", "normalize", "scale", "points", "patches", "patch_size", "patching", "tokenizer",
)  # fmt: skip
MANY_FAR = 0.6  # share of saturated surface distances that is worth a warning: 0.31 on the open benchmark
# flags that the row "pose and size only" takes over from a run
SAME_AS_RUN = (
    "data", "pack", "budget", "held_out", "min_score", "skip_bad", "cache_dir", "steps", "k", "loss", "no_graph",
)  # fmt: skip
# what a run is called by and how it is watched; everything else is its identity
NOT_SETTINGS = (
    "runs", "name", "resume", "overwrite", "config", "quiet", "keep_last", "no_baseline", "no_graph",
    "benchmark", "json",
)  # fmt: skip


# ---------------------------------------------------------------- settings


def build_parser():
    parser = Parser(__doc__)
    add_data_flags(parser)
    add_split_flags(parser)

    flag = parser.add_argument_group("network").add_argument
    inits = (
        "scratch: random weights; jepa: a Point-JEPA encoder; and two controls, random: random weights that stay, "
        "BatchNorm calibrated on the training pool; oracle: the encoder of a run with all labels"
    )
    flag("--init", choices=("scratch", "jepa", "random", "oracle"), default="scratch", help=inits)
    encoder = "encoder for --init jepa (default: the one that ships for the preset); best.pt of a run for oracle"
    flag("--jepa-ckpt", metavar="FILE", help=encoder)
    flag("--preset", choices=tuple(PRESETS), help="network size (default: small, or the checkpoint's)")
    flag("--k", type=number(int, 1), default=5, metavar="N", help="hypotheses per grasp; 1 is plain regression")
    pools = "; ".join(f"{name}: {pool.about}" for name, pool in POOLS.items())
    flag("--pool", choices=tuple(POOLS), default="attention", help=f"what the head sees of the object; {pools}")
    of_preset = "(default: the preset's or the checkpoint's)"
    flag("--group", choices=CHOICES["group"], help=f"how a patch gathers its points {of_preset}")
    metres = "ball radius, in m if clouds are metric, else in cloud radii"
    flag("--radius", type=number(float, above=0), metavar="M", help=f"{metres} {of_preset}")
    unit = f"metres per unit of the encoder, with --normalize metric {of_preset}"
    flag("--scale", type=number(float, above=0), metavar="M", help=unit)
    add_encoder_flags(flag, CHOICES, of_preset)

    embedding = "standard: embeddings of training objects are given mean zero and the SD --embedding-scale, once"
    flag("--embedding", choices=CHOICES["embedding"], default="raw", help=embedding)
    scale = f"SD of a standard embedding's features (default: {EMBEDDING_SCALE})"
    flag("--embedding-scale", type=number(float, above=0), metavar="SD", help=scale)

    flag = parser.add_argument_group("training").add_argument
    losses = (
        "wta: winner takes all; mdn: mixture density; hedged: one hypothesis learns the average, logits choose by "
        "expected error; relaxed, annealed: the others learn a little too, see variants.py"
    )
    flag("--loss", choices=CHOICES["loss"], default="wta", help=losses)
    flag("--alpha", type=number(float, 0), default=0.1, help="weight of the logits' part in all losses but mdn")
    lora = "freeze the encoder and train adapters of this rank on its attention, at --lr-head"
    flag("--lora", type=number(int, 1), metavar="RANK", help=lora)
    schedule = (
        "of the backbone's rate after the warm-up; layerwise: cosine, and lower block by block from the last one on"
    )
    flag("--schedule", choices=("cosine", "constant", "layerwise"), default="cosine", help=schedule)
    backbone = "peak learning rate of tokenizer and transformer; 0 freezes them, as --init random always does"
    flag("--lr-backbone", type=number(float, 0), default=1e-5, help=backbone)
    flag("--lr-head", type=number(float, 0), default=1e-3, help="peak learning rate of pooling and head")
    flag("--weight-decay", type=number(float, 0), default=0.02, help="AdamW's weight decay")
    warmup = "share of the steps with rising learning rates"
    flag("--warmup", type=number(float, 0, 1), default=0.1, metavar="SHARE", help=warmup)
    steps = "optimiser steps, the same for every budget"
    flag("--steps", type=number(int, 1), default=2000, metavar="N", help=steps)
    clouds = "distinct clouds per batch, each encoded once"
    flag("--objects-per-batch", type=number(int, 1), default=16, metavar="N", help=clouds)
    grasps = "at most so many grasps of each cloud per batch"
    flag("--grasps-per-object", type=number(int, 1), default=32, metavar="N", help=grasps)
    validations = "steps between validations (default: a twentieth of --steps)"
    flag("--eval-every", type=number(int, 1), metavar="N", help=validations)
    saves = "steps between checkpoints for --resume"
    flag("--save-every", type=number(int, 1), default=200, metavar="N", help=saves)
    seed = "of weights, batches, dropout and patch starts; not of the split"
    flag("--seed", type=number(int, 0), default=0, help=seed)

    add_machine_flags(parser)
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")

    flag = parser.add_argument_group("run").add_argument
    flag("--runs", default="runs", metavar="DIR", help="folder of all runs")
    flag("--name", help="the run's folder name (default: from settings, seed and a short hash)")
    flag("--resume", action="store_true", help="go on from the run's last checkpoint, to the same result")
    flag("--overwrite", action="store_true", help="start the run anew even if it has finished")
    baseline = "leave the row 'pose and size only' out, which is trained once per data and budget"
    flag("--no-baseline", action="store_true", help=baseline)
    flag("--keep-last", action="store_true", help="keep last.pt of the finished run, for evaluate.py --checkpoint last")
    settings = "settings from another run's config.json; explicit flags beat it"
    flag("--from", dest="config", metavar="FILE", help=settings)
    return parser


def parse(argv):
    """Arguments, with --from's settings as defaults under the explicit flags."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.config:
        return checked(args)
    settings = read_json(args.config, "settings")["settings"]
    try:
        return checked(parser.parse_args([*as_flags(settings), *(sys.argv[1:] if argv is None else argv)]))
    except UserError as error:
        raise UserError(f"{args.config}, or a flag beside it: {error}") from None


def checked(args):
    """The arguments, if no two of them contradict each other."""
    check_machine_flags(args)
    if args.init == "random":
        args.lr_backbone = 0.0  # these weights stay, whatever rate rows of one sweep share
    check_together(args)
    return args


def check_together(args):
    """Stop where flags contradict each other, or where one asks for what this run does not have."""
    if not POOLS[args.pool].encoder:
        wants = {"--lora": args.lora, "--schedule": args.schedule != "cosine", "--init random": args.init == "random"}
        for flag in [flag for flag, given in wants.items() if given]:
            raise UserError(f"{flag}: --pool {args.pool} has no encoder for that; leave it out")
    if args.schedule != "cosine" and (args.lora or args.lr_backbone == 0):
        raise UserError(f"--schedule {args.schedule}: the backbone is frozen; leave it out")
    if args.resume and args.overwrite:
        raise UserError("--resume goes on, --overwrite starts anew; give one of them")
    if args.jepa_ckpt and args.init not in ("jepa", "oracle"):
        raise UserError(f"--jepa-ckpt contradicts --init {args.init}; add --init jepa or leave it out")
    if args.init == "oracle" and not args.jepa_ckpt:
        raise UserError("--init oracle: name a run that saw all labels, --jepa-ckpt RUN/best.pt")
    if args.embedding_scale and args.embedding != "standard":
        raise UserError("--embedding-scale goes with --embedding standard; add that or leave it out")
    if args.radius and args.group != "ball" and args.init in ("scratch", "random"):
        raise UserError("--radius goes with --group ball; add that or leave it out")
    if args.scale and args.normalize != "metric":
        raise UserError("--scale goes with --normalize metric; add that or leave it out")


def settings_of(args):
    """What identifies a run: every flag but those that name or watch it."""
    return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}


def run_folder(args):
    """The run's folder, free to be written; a finished run is kept unless --overwrite."""
    settings = settings_of(args)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    name = f"{Path(args.data).name}-{args.pack}-{args.budget:g}-{args.init}-{args.pool}-k{args.k}-s{args.seed}-{digest}"
    folder = Path(args.runs) / (args.name or name)
    if (folder / "result.json").exists() and not args.overwrite:
        raise UserError(f"{folder}: this run has finished; see its result.json, or give --overwrite or another --name")
    if (folder / "config.json").exists() and not (args.resume or args.overwrite):
        raise UserError(f"{folder}: an unfinished run; give --resume to go on or --overwrite to start anew")
    if args.resume and (folder / "config.json").exists():
        check_same_settings(read_json(folder / "config.json", "settings")["settings"], settings, folder)
    return folder


def shipped_encoder(preset):
    """Path of the encoder that ships for a preset."""
    path = CHECKPOINTS / f"{preset}.pt"
    if not path.exists():
        have = ", ".join(sorted(p.stem for p in CHECKPOINTS.glob("*.pt") if p.stem in PRESETS)) or "none"
        raise UserError(
            f"--init jepa: no encoder ships for --preset {preset} (presets with weights: {have}); give --jepa-ckpt FILE"
        )
    return path


def resolve_network(args):
    """`ModelConfig` of the run and its pretrained `PointEncoder` (None for scratch).

    With --init jepa the encoder's settings come from its checkpoint, and a flag that contradicts one is an
    error: the published code reads a checkpoint with another head count, grouping and scale, silently.
    """
    given = {name: getattr(args, name) for name in NETWORK_FLAGS if getattr(args, name) is not None}
    head = {name: getattr(args, name) for name in ("k", "pool", "loss", "embedding")}
    head["embedding_scale"] = args.embedding_scale or EMBEDDING_SCALE
    if args.init in ("scratch", "random") or not POOLS[args.pool].encoder:  # nothing to initialise
        return dataclasses.replace(PRESETS[args.preset or "small"], **given, **head), None
    path = args.jepa_ckpt or shipped_encoder(args.preset or "small")
    check_start(args, read_checkpoint(path), path)
    encoder = load_encoder(path)
    check_flags(given, encoder.config, path, args.preset and (args.preset, PRESETS[args.preset]))
    return dataclasses.replace(encoder.config, **FINE_TUNING, **head), encoder


# ---------------------------------------------------------------- one run


@dataclasses.dataclass
class Progress:
    """What a run has reached besides its weights; saved in last.pt."""

    step: int = 0
    best: float = math.inf  # val top-logit RMSE, rad
    best_step: int = 0
    loss_sum: float = 0.0  # of the training loss since the last validation
    loss_count: int = 0
    seconds: float = 0.0
    validating: float = 0.0  # of these, seconds in validations
    eager_steps: int = 0  # steps that ran operation by operation: all on a CPU, few with CUDA graphs
    history: list = dataclasses.field(default_factory=list)  # rows of metrics.csv


@dataclasses.dataclass
class Run:
    """Everything that the loop works with, made by `train_one`."""

    args: object  # the flags
    folder: Path
    device: torch.device
    precision: str  # fp32, tf32 or bf16
    graph: bool  # whether steps run as CUDA graphs
    data: GraspData
    split: Split
    model: GraspModel
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of patch starts, on the CPU: the same on every device
    progress: Progress

    def __post_init__(self):
        arrays = self.data.clouds, self.data.poses, self.data.joints
        # (C, N, 3) m, (n, 7), (n, J) rad, all of the dataset
        self.clouds, self.poses, self.joints = (torch.from_numpy(array).to(self.device) for array in arrays)


def build_optimizer(model, args, graph=False, adapters=()):
    """Two tiers (Sec. IV-C), by AdamW as in the published code: encoder at --lr-backbone, all after it at --lr-head."""
    inside = {id(p) for p in model.encoder.parameters()}
    rest = [p for p in model.parameters() if id(p) not in inside]
    trains = args.lr_backbone > 0 and not args.lora
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(trains)
    for parameter in adapters:
        parameter.requires_grad_(True)
    groups = [{"params": [*rest, *adapters], "peak": args.lr_head, "schedule": "cosine"}]
    if trains and inside:
        for share, parameters in backbone_tiers(model.encoder, args.schedule == "layerwise"):
            groups.append({"params": parameters, "peak": share * args.lr_backbone, "schedule": args.schedule})
    return adamw(groups, args.weight_decay, graph)


def set_learning_rates(optimizer, step, args):
    """Linear warm-up over a share of the steps, equal for all budgets, then cosine to zero; -> that factor.

    A group of schedule "constant" keeps its peak after the warm-up.
    """
    warmup = round(args.warmup * args.steps)
    factor = warmup_cosine(step + 1, args.steps + 1, warmup)
    for group in optimizer.param_groups:
        constant = group["schedule"] == "constant" and step + 1 >= warmup
        set_rate(group, group["peak"] * (1.0 if constant else factor))
    return factor


def training_mode(model, args):
    """Train mode, but a frozen encoder keeps its BatchNorm statistics and drops nothing."""
    model.train()
    if args.lr_backbone == 0 or args.lora:
        model.encoder.eval()


def training_batches(data, rows, args, first, device, pad=False):
    """Batches from step `first` on, for ever: scenes (O,), grasps (B,), object_index (B,) int64, weights (B,) or None.

    Each epoch is a function of (seed, epoch) alone, so a resumed run meets the same batches. An epoch's index
    tensors move to the device together, before its first step. With `pad` every batch of O clouds has
    O · --grasps-per-object grasps, the last of them of weight zero: a CUDA graph wants constant shapes.
    """
    epoch, scene = 0, data.scene[rows]
    while True:
        seed = stable_seed("batches", args.seed, epoch)
        of_epoch = epoch_batches(scene, args.objects_per_batch, args.grasps_per_object, seed)
        ready = []
        for scenes, grasps, object_index in of_epoch[first:]:
            arrays = [scenes, rows[grasps], object_index]
            if pad:
                arrays = padded(*arrays, len(scenes) * args.grasps_per_object)
            ready.append([torch.from_numpy(array).to(device, non_blocking=True) for array in arrays])
        for batch in ready:
            yield batch if pad else (*batch, None)
        first = max(0, first - len(of_epoch))
        epoch += 1


def padded(scenes, grasps, object_index, count):
    """A batch of B grasps filled up to `count` with its first grasp, and weights (count,) float32: 1/B, then zeros."""
    missing = count - len(grasps)
    weights = np.repeat(np.float32([1 / len(grasps), 0]), [len(grasps), missing])
    return scenes, *(np.r_[index, index[:1].repeat(missing)] for index in (grasps, object_index)), weights


# ---------------------------------------------------------------- the loop


def training_step(run, scenes, grasps, object_index, weights, starts):
    """One optimiser step on one batch; starts (O,): the points that patches start from, None for the first ones.

    -> the loss, whether it and its gradient are finite: scalars on the device.
    """
    with autocast(run.device, run.precision):
        joints_hat, logits = run.model(run.clouds[scenes], object_index, run.poses[grasps], starts)
        loss = run.model.loss(joints_hat.float(), logits.float(), run.joints[grasps], run.args.alpha, weights)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trained = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    run.optimizer.step()
    return loss.detach(), torch.isfinite(loss.detach() + norm)


def training_loop(run):
    """Train to the last step; raises KeyboardInterrupt once a Ctrl-C is saved."""
    args, progress = run.args, run.progress
    stream = training_batches(run.data, run.split.rows["train"], args, progress.step, run.device, pad=run.graph)
    take_step = Graphs(functools.partial(training_step, run), run.graph)
    loss_sum = torch.tensor(progress.loss_sum, device=run.device)  # stays on the device between looks
    bad_step = torch.tensor(-1, device=run.device)
    started = time.perf_counter() - progress.seconds
    training_mode(run.model, args)
    bar = tqdm(total=args.steps, initial=progress.step, desc="training", unit="step", disable=args.quiet or None)
    with bar, deferred_interrupt() as interrupted:
        while progress.step < args.steps:
            factor = set_learning_rates(run.optimizer, progress.step, args)
            if args.loss == "annealed":
                run.model.temperature.fill_(temperature_at(progress.step, args.steps))
            scenes, grasps, object_index, weights = next(stream)
            starts = start_points(run.generator, len(scenes), run.clouds.shape[1], run.device)
            loss, finite = take_step(scenes, grasps, object_index, weights, starts)
            bad_step = first_not_finite(bad_step, finite, progress.step)
            loss_sum += loss
            progress.step += 1
            progress.loss_count += 1
            progress.seconds = time.perf_counter() - started
            bar.update()

            stop, last = bool(interrupted), progress.step == args.steps
            validate_now = last or progress.step % (args.eval_every or max(1, args.steps // 20)) == 0
            save_now = last or stop or progress.step % args.save_every == 0
            if validate_now or save_now or progress.step % LOOK_EVERY == 0:
                check_finite(run, int(bad_step))
            if validate_now:
                progress.seconds = time.perf_counter() - started  # again: on a GPU the look waited for the steps
                rmse = validate(run, loss_sum.item() / progress.loss_count, factor)
                before, progress.seconds = progress.seconds, time.perf_counter() - started
                progress.validating += progress.seconds - before
                loss_sum.zero_()
                progress.loss_count = 0
                bar.set_postfix_str(f"val RMSE {rmse:.4f} rad")
            if save_now:
                progress.eager_steps, take_step.eager = progress.eager_steps + take_step.eager, 0
                progress.loss_sum = loss_sum.item()
                save_progress(run)
            if stop:
                raise KeyboardInterrupt(f"stopped at step {progress.step}; the same command with --resume goes on")


def check_finite(run, bad_step):
    """Stop before a NaN reaches a checkpoint; bad_step: the first step that was not finite, -1 for none."""
    if bad_step < 0:
        return
    scenes, *_ = next(training_batches(run.data, run.split.rows["train"], run.args, bad_step, "cpu"))
    names = " ".join(sorted({run.data.objects[i] for i in scenes.tolist()}))
    raise UserError(
        f"the loss or its gradient is not finite at step {bad_step} (batch of {names}); {run.folder}/last.pt holds the "
        "last good state if there is one; lower --lr-head or --lr-backbone"
    )


def validate(run, loss, factor):
    """Validate, keep the best step, append a row to metrics.csv; -> val top-logit RMSE, rad."""
    progress = run.progress
    result = evaluate_suites(run.model, run.data, run.split, ["val"], run.device, quiet=True)[0]["val"]
    names = ("top_logit_rmse", "best_of_k_rmse", "selection_gap", "coverage_15", "selector_accuracy")
    row = {"step": progress.step, "train_loss": loss, "lr_factor": factor}
    row |= {f"val_{name}": result[name] for name in names} | {"seconds": round(progress.seconds, 1)}
    progress.history.append(row)
    write_csv(run.folder / "metrics.csv", progress.history)
    if result["top_logit_rmse"] < progress.best:
        progress.best, progress.best_step = result["top_logit_rmse"], progress.step
        content = model_content(run.model)
        with exact_products():
            content["model"] = merged(content["model"])  # adapters become part of the layers that they correct
        save_checkpoint(run.folder / "best.pt", content | {"step": progress.step})
    training_mode(run.model, run.args)
    return result["top_logit_rmse"]


def model_content(model):
    """What a checkpoint must hold to be a grasp model again."""
    return {
        "config": dataclasses.asdict(model.config),
        "model": model.state_dict(),
        "joint_names": model.joint_names,
        "joint_range": model.joint_range,
    }


def save_progress(run):
    """Write last.pt, from which --resume goes on."""
    content = model_content(run.model) | {"settings": settings_of(run.args)}
    save_last(run.folder / "last.pt", content, run.optimizer, run.generator, dataclasses.asdict(run.progress))


def finish(run):
    """Evaluate the best step beside what it is to be compared with, write result.json; -> its content."""
    args, split, progress, rows = run.args, run.split, run.progress, run.split.rows["val"]
    model = load_run(run.folder).to(run.device)
    suites, predictions = evaluate_suites(model, run.data, split, ["val"], run.device, args.quiet)
    beside = reference_predictions(run.data, model.joint_mean.cpu().numpy(), rows)
    summaries = {name: summarize(found) for name, found in beside.items()} | {"run": suites["val"]}
    if knows_hand(run.data):
        add_holds(summaries, beside | {"run": predictions["val"]}, run.data, rows, args.quiet)
    result = {
        "suites": suites, "training_mean": summaries["training mean"], "recorded": summaries["recorded"],
        "best_step": progress.best_step, "steps": args.steps, "seed": args.seed,
        "train_objects": len(split.suites["train"]), "train_grasps": len(split.rows["train"]),
        "device": run.device.type, "threads": torch.get_num_threads(), "seconds": round(progress.seconds, 1),
        "precision": run.precision, "eager_steps": progress.eager_steps, **costs(run),
    }  # fmt: skip
    write_json(run.folder / "result.json", result)
    if not args.keep_last:
        (run.folder / "last.pt").unlink(missing_ok=True)
    return result


def costs(run):
    """What the run took: parameters, those that trained, time per step without validation, memory of the process."""
    parameters = list(run.model.parameters())
    seconds = run.progress.seconds - run.progress.validating
    return {
        "parameters": sum(p.numel() for p in parameters),
        "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
        "ms_per_step": round(1000 * seconds / run.progress.step, 1),
        "memory_mb": round(peak_memory(run.device) / 1e6),
    }


def pose_and_size(args, device, points, data, split):
    """The val summary of `--pool size`: pose, centroid and radius, no shape; trained once per data, pack and budget."""
    key = [
        data.fingerprint,
        args.pack,
        args.budget,
        args.held_out,
        args.min_score,
        args.steps,
        args.k,
        args.loss,
        points,
    ]
    name = f"pose-and-size-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}"
    folder = Path(args.runs) / name
    if not (folder / "result.json").exists():
        print("\npose and size only, once for this data and budget:", file=sys.stderr)
        same = {name: getattr(args, name) for name in SAME_AS_RUN} | {"points": points}
        more = ["--quiet"] * args.quiet + ["--resume"] * (folder / "config.json").exists()
        own = parse([*as_flags(same), "--pool", "size", "--runs", args.runs, "--name", name, *more])
        with contextlib.redirect_stdout(io.StringIO()):
            train_one(own, device, *resolve_network(own), data, split)
    return read_json(folder / "result.json", "suites")["suites"]["val"]


def print_result(args, folder, result, baseline=None):
    """The table of a finished run, the row "pose and size only" in it if there is one, and how to read it."""
    mean, own = result["training_mean"], result["suites"]["val"]
    rows = {"training mean": mean} | ({"pose and size only": baseline} if baseline else {})
    rows |= {f"this run, step {result['best_step']}": own, "recorded": result["recorded"]}
    print("\n" + metrics_table(rows))
    print(f"\nval of pack {args.pack}; brackets: 95 % over objects. Saved in {folder}")
    in_all = time.perf_counter() - plumbing.STARTED
    print(f"{result['seconds']:.0f} s of training and validation; {in_all:.0f} s since this command was given")
    trained, total = result["parameters_trained"] / 1e6, result["parameters"] / 1e6
    took = result["ms_per_step"]
    time_each = f"{took:.0f} ms per step" if took >= 10 else f"{took:.1f} ms per step"
    if result["device"] == "cuda":
        time_each += f", {result['eager_steps']} of {result['steps']} steps outside CUDA graphs"
    print(
        f"{trained:.2f} of {total:.2f} M parameters trained; {time_each}, "
        f"{result['memory_mb'] / 1000:.1f} GB of memory at most"
    )
    if "holds" in own:
        print(f"holds: the hand, closed from the prediction, would hold the object; of {own['grasps_closed']} grasps")
    else:
        print("free and holds: left out, there is a model of the hand of synthetic/hand.py only")
    if own["top_logit_rmse"] > mean["top_logit_rmse"]:
        print(
            "The mean's RMSE is hard to beat with few objects: a squared error rewards the average of all grasps that "
            "fit a wrist, which seldom holds, and punishes a choice among them."
        )


# ---------------------------------------------------------------- command line


def start(run):
    """Resume where --resume finds something to go on from; else clear the folder and write config.json."""
    args, folder = run.args, run.folder
    if args.resume and (folder / "last.pt").exists():
        settings = settings_of(args)
        last = folder / "last.pt"
        run.progress = load_last(last, settings, "model", run.model, run.optimizer, run.generator, run.progress)
        started = read_json(folder / "config.json")
        use_library(started.get("product_library"))  # or the bits would change where another processor goes on
        warn_if_moved(started, run.device, run.precision, folder)
        if started.get("fingerprint") != run.data.fingerprint:
            raise UserError(
                f"{run.data.root}: has changed since {folder} was started; restore it or give --overwrite to start anew"
            )
        return
    if args.resume:
        print(f"{folder}: nothing to resume; starting at step 0", file=sys.stderr)
    for name in ("result.json", "last.pt", "best.pt", "metrics.csv"):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "config.json", {
        "settings": settings_of(args), "network": dataclasses.asdict(run.model.config),
        "fingerprint": run.data.fingerprint, "device": run.device.type, "precision": run.precision,
        "product_library": use_library(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    })  # fmt: skip


def warn_of_probes(run):
    """Say where --pool surface can see little: its probes fit one hand, and this may be another or another frame."""
    if not POOLS[run.args.pool].surface:
        return
    rows = np.random.default_rng(0).choice(run.split.rows["train"], 256)
    scenes, index = np.unique(run.data.scene[rows], return_inverse=True)
    clouds, poses = torch.from_numpy(run.data.clouds[scenes]), torch.from_numpy(run.data.poses[rows])
    far = (surface_distances(clouds, torch.from_numpy(index), poses) >= PROBE_REACH).float().mean()
    if far > MANY_FAR:
        print(
            f"warning: --pool {run.args.pool}: {far:.0%} of its distances are over {PROBE_REACH:g} m and tell nothing; "
            "its probes fit the hand of synthetic/hand.py and its wrist frame (DATA.md)",
            file=sys.stderr,
        )


def introduce(run):
    """Print what is trained, on how much."""
    suites, rows = run.split.suites, run.split.rows
    print(
        f"{run.folder}: {len(suites['train'])} objects, {len(rows['train'])} grasps to train on; "
        f"{len(suites['val'])} objects to validate on; {run.device.type}"
    )


def build_model(config, encoder, data, rows, args):
    """The `GraspModel` before step 1, by --seed: encoder from a checkpoint or (None) at random; rows train."""
    torch.manual_seed(stable_seed("weights", args.seed))
    config = dataclasses.replace(config, joints=data.joints.shape[1])
    model = GraspModel(config, data.joints[rows].mean(0))
    if encoder is not None:
        model.encoder.load_state_dict(encoder.state_dict())
    model.joint_names = data.joint_names
    model.joint_range = [data.joints[rows].min(0).tolist(), data.joints[rows].max(0).tolist()]
    return model


def train_one(args, device, config, encoder, data, split):
    """Train the network of `config`, its encoder a copy of `encoder` (or None), on a `Split` of data; -> the result."""
    reset_peak_memory(device)
    folder, graph = run_folder(args), device.type == "cuda" and not args.no_graph
    # on an H200 steps of `small` take 2.6 ms in either, so the more exact one; `paper` 6.3 in bf16, 7.5 in tf32, but
    # operation by operation 34 and 28
    precision = set_precision(args.precision, device, "bf16" if graph and config.width >= WIDE else "tf32")

    model = build_model(config, encoder, data, split.rows["train"], args)
    if args.init == "random":
        calibrate(model.encoder, torch.from_numpy(data.clouds[np.isin(data.objects, split.pool)]))
    if config.embedding == "standard":
        scenes = np.unique(data.scene[split.rows["train"]])
        standardise(model, torch.from_numpy(data.clouds[scenes]), calibrated=encoder or args.init == "random")
    adapters = add_lora(model.encoder.transformer, args.lora) if args.lora else ()
    optimizer = build_optimizer(model.to(device), args, graph, adapters)
    generator = torch.Generator().manual_seed(stable_seed("patches", args.seed))
    if args.compile:
        model.compile()
    run = Run(args, folder, device, precision, graph, data, split, model, optimizer, generator, Progress())
    warn_of_probes(run)

    with locked(folder / ".lock") as mine:
        if not mine:
            raise UserError(f"{folder}: another process trains this run; wait for it, or give another --name")
        run_folder(args)  # again: that other process may have just finished
        start(run)
        introduce(run)
        training_loop(run)
        return finish(run)


@command
def main(argv=None):
    args = parse(argv)
    if args.benchmark:
        from lab.speed import time_training  # the same as python -m lab.speed train

        return time_training(args, argv)
    device = set_up_torch(args.device, args.threads)
    folder = run_folder(args)  # says what is wrong with it before anything is read
    config, encoder = resolve_network(args)
    root = ensure_root(args.data, args.quiet)
    data = load_dataset(root, config.points, args.min_score, args.skip_bad, args.cache_dir, args.quiet)
    split = make_split(data, args.pack, args.budget, args.held_out)
    warn_of_frames(data)
    if args.init == "oracle":
        check_oracle(args, data)

    result, baseline, stopped = train_one(args, device, config, encoder, data, split), None, False
    if not args.no_baseline:
        try:
            baseline = pose_and_size(args, device, config.points, data, split)
        except UserError as error:  # this run is done all the same
            print(f"pose and size only: left out ({error})", file=sys.stderr)
        except KeyboardInterrupt:
            stopped = True
    print_result(args, folder, result, baseline)
    if stopped:
        raise KeyboardInterrupt("pose and size only: stopped; the next run on this data and budget goes on with it")
    return result


if __name__ == "__main__":
    main()
