"""Fine-tune the grasp model on a share of the labels, and validate it (Sec. III-D, IV-C).

    python train.py --budget 0.1 --init jepa        pretrained encoder, 10 % of the training objects
    python train.py --budget 0.1 --init scratch     the same without pretraining
    python train.py --budget 0.1 --pool none        the pose-only baseline
    python train.py --benchmark                     how fast the training step is here

A run is a folder, runs/<name>/: config.json, metrics.csv, result.json, best.pt, last.pt.
Only validation is reported here; the test suites are evaluate.py's.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import (
    Parser, UserError, add_machine_flags, autocast, check_machine_flags, command, deferred_interrupt, number,
    read_json, set_up_torch, stable_seed, warmup_cosine, write_csv, write_json,
)  # fmt: skip
from data import GraspData, add_data_flags, epoch_batches, load_dataset
from evaluate import constant_predictions, evaluate_suites, report, table
from model import CHOICES, FINE_TUNING, NO_ENCODER, PRESETS, GraspModel, load_encoder, load_strictly, read_checkpoint, save_checkpoint
from speed import Stopwatch, measure, no_lap, report as report_speed, training_flops
from splits import add_split_flags, make_split
from synthesize import ensure_root

CHECKPOINTS = Path(__file__).parent / "checkpoints"  # the encoders that ship, one file per preset
NETWORK_FLAGS = ("group", "radius", "points", "patches", "patch_size")  # not given: the preset's or the checkpoint's
# what a run is called by and how it is watched; everything else is its identity
NOT_SETTINGS = ("runs", "name", "resume", "overwrite", "config", "quiet", "benchmark", "json")
LOG_EVERY = 20  # steps between looks at the loss where looking means waiting for the GPU


# ---------------------------------------------------------------- settings


def build_parser():
    parser = Parser(__doc__)
    add_data_flags(parser)
    add_split_flags(parser)

    group = parser.add_argument_group("network")
    group.add_argument("--init", choices=("scratch", "jepa"), default="scratch", help="random weights, or a Point-JEPA encoder")
    group.add_argument("--jepa-ckpt", metavar="FILE", help="encoder for --init jepa (default: the one that ships for the preset)")
    group.add_argument("--preset", choices=tuple(PRESETS), help="network size (default: small, or the checkpoint's)")
    group.add_argument("--k", type=number(int, 1), default=5, metavar="N", help="hypotheses per grasp; 1 is plain regression")
    group.add_argument("--pool", choices=CHOICES["pool"], default="attention", help="tokens to object embedding; hand: as seen from the hand; attention_surface: also distances from the hand to the surface; surface: these alone, no encoder; none: pose only")
    group.add_argument("--group", choices=("knn", "ball"), help="how a patch gathers its points (default: the preset's or the checkpoint's)")
    group.add_argument("--radius", type=number(float, above=0), metavar="M", help="ball radius, in m if clouds are metric, else in cloud radii")
    group.add_argument("--points", type=number(int, 1), metavar="N", help="points per cloud")
    group.add_argument("--patches", type=number(int, 1), metavar="N", help="patches, that is tokens, per cloud")
    group.add_argument("--patch-size", type=number(int, 1), metavar="N", help="points per patch")

    group = parser.add_argument_group("training")
    group.add_argument("--loss", choices=CHOICES["loss"], default="wta", help="winner-takes-all; mixture density; hedged: one hypothesis learns the average, and the logits choose by expected error")
    group.add_argument("--alpha", type=number(float, 0), default=0.1, help="weight of the logits' part in the losses wta and hedged")
    group.add_argument("--lr-backbone", type=number(float, 0), default=1e-5, help="peak learning rate of tokenizer and transformer; 0 freezes them")
    group.add_argument("--lr-head", type=number(float, 0), default=1e-3, help="peak learning rate of pooling and head")
    group.add_argument("--weight-decay", type=number(float, 0), default=0.02, help="AdamW's weight decay")
    group.add_argument("--warmup", type=number(float, 0, 1), default=0.1, metavar="SHARE", help="share of the steps with rising learning rates")
    group.add_argument("--steps", type=number(int, 1), default=2000, metavar="N", help="optimiser steps, the same for every budget")
    group.add_argument("--objects-per-batch", type=number(int, 1), default=16, metavar="N", help="distinct clouds per batch, each encoded once")
    group.add_argument("--grasps-per-object", type=number(int, 1), default=32, metavar="N", help="at most so many grasps of each cloud per batch")
    group.add_argument("--eval-every", type=number(int, 1), metavar="N", help="steps between validations (default: a twentieth of --steps)")
    group.add_argument("--save-every", type=number(int, 1), default=200, metavar="N", help="steps between checkpoints for --resume")
    group.add_argument("--seed", type=number(int, 0), default=0, help="of weights, batches, dropout and patch starts; not of the split")

    add_machine_flags(parser)
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")

    group = parser.add_argument_group("run")
    group.add_argument("--runs", default="runs", metavar="DIR", help="folder of all runs")
    group.add_argument("--name", help="the run's folder name (default: from settings, seed and a short hash)")
    group.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, to the same result")
    group.add_argument("--overwrite", action="store_true", help="start the run anew even if it has finished")
    group.add_argument("--from", dest="config", metavar="FILE", help="settings from another run's config.json; explicit flags beat it")
    return parser


def parse(argv):
    """Arguments, with --from's settings as defaults under the explicit flags."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.config:
        settings = read_json(args.config, "settings")["settings"]
        try:
            args = parser.parse_args([*as_flags(settings), *(sys.argv[1:] if argv is None else argv)])
        except UserError as error:
            raise UserError(f"{args.config}, or a flag beside it: {error}") from None
    args.eval_every = args.eval_every or max(1, args.steps // 20)
    check_machine_flags(args)
    if args.jepa_ckpt and args.init != "jepa":
        raise UserError("--jepa-ckpt contradicts --init scratch; add --init jepa or leave it out")
    return args


def as_flags(settings):
    """Settings of a config.json as a command line, so that they are checked as one."""
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not None and value is not False:
            flags.append(flag if value is True else f"{flag}={value}")
    return flags


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
        old = read_json(folder / "config.json", "settings")["settings"]
        changed = [name for name in settings if old.get(name) != settings[name]]
        if changed:
            raise UserError(f"{folder}: was started with other settings ({', '.join(changed)}); repeat them to --resume")
    return folder


def shipped_encoder(preset):
    """Path of the encoder that ships for a preset."""
    path = CHECKPOINTS / f"{preset}.pt"
    if not path.exists():
        have = ", ".join(sorted(p.stem for p in CHECKPOINTS.glob("*.pt") if p.stem in PRESETS)) or "none"
        raise UserError(f"--init jepa: no encoder ships for --preset {preset} (presets with weights: {have}); give --jepa-ckpt FILE")
    return path


def resolve_network(args):
    """`ModelConfig` of the run and its pretrained `PointEncoder` (None for scratch).

    With --init jepa the encoder's settings come from its checkpoint, and a flag that contradicts one is an
    error: the published code reads a checkpoint with another head count, grouping and scale, silently.
    """
    given = {name: getattr(args, name) for name in NETWORK_FLAGS if getattr(args, name) is not None}
    head = {"k": args.k, "pool": args.pool, "loss": args.loss}
    if args.init == "scratch" or args.pool in NO_ENCODER:  # nothing to initialise
        return dataclasses.replace(PRESETS[args.preset or "small"], **given, **head), None
    path = args.jepa_ckpt or shipped_encoder(args.preset or "small")
    encoder = load_encoder(path)
    for name, value in given.items():
        if getattr(encoder.config, name) != value:
            raise UserError(f"{path}: was pretrained with {name} {getattr(encoder.config, name)}, not {value}; leave --{name.replace('_', '-')} out or take --init scratch")
    if args.preset and any(getattr(encoder.config, name) != getattr(PRESETS[args.preset], name) for name in ("width", "depth", "heads")):
        raise UserError(f"{path}: is not of --preset {args.preset} (width {encoder.config.width}, depth {encoder.config.depth}); leave --preset out")
    return dataclasses.replace(encoder.config, **FINE_TUNING, **head), encoder


# ---------------------------------------------------------------- one step


def build_optimizer(model, args):
    """AdamW in two tiers (Sec. IV-C): encoder at --lr-backbone, everything after it at --lr-head."""
    backbone = list(model.encoder.parameters())  # none with --pool none
    inside = {id(p) for p in backbone}
    rest = [p for p in model.parameters() if id(p) not in inside]
    for parameter in backbone:
        parameter.requires_grad_(args.lr_backbone > 0)
    groups = [{"params": rest, "peak": args.lr_head}]
    if backbone and args.lr_backbone > 0:
        groups.append({"params": backbone, "peak": args.lr_backbone})
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=args.weight_decay, fused=True)


def set_learning_rates(optimizer, step, args):
    """Linear warm-up over a share of the steps, equal for all budgets, then cosine to zero; -> the factor."""
    factor = warmup_cosine(step + 1, args.steps + 1, round(args.warmup * args.steps))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor


def training_mode(model, args):
    """Train mode, but a frozen encoder keeps its BatchNorm statistics and drops nothing."""
    model.train()
    if args.lr_backbone == 0:
        model.encoder.eval()


def batches(data, rows, args, first, device):
    """Batches from step `first` on, for ever: (scenes (O,), grasps (B,), object_index (B,)) as int64 tensors.

    Each epoch is a function of (seed, epoch) alone, so a resumed run meets the same batches. An epoch's
    index tensors move to the device together, before its first step.
    """
    epoch, scene = 0, data.scene[rows]
    while True:
        seed = stable_seed("batches", args.seed, epoch)
        batch_list = epoch_batches(scene, args.objects_per_batch, args.grasps_per_object, seed)
        for scenes, index, object_index in [
            tuple(torch.from_numpy(array).to(device) for array in (s, rows[i], o)) for s, i, o in batch_list[first:]
        ]:
            yield scenes, index, object_index
        first = max(0, first - len(batch_list))
        epoch += 1


def compute_loss(model, clouds, object_index, poses, joints, args, generator):
    """The training loss of one batch, in float32."""
    joints_hat, logits = model(clouds, object_index, poses, generator)
    return model.loss(joints_hat.float(), logits.float(), joints, args.alpha)


def training_step(model, optimizer, batch, clouds, poses, joints, args, generator, lap=no_lap):
    """One optimiser step on the grasps of `batch`; -> loss, whether it and its gradient are finite: scalars on the device.

    On the CPU, where looking costs nothing, a step that is not finite leaves the weights as they are. `lap` is told
    the name of each part as it ends, which is how --benchmark measures; the model's own parts it watches from outside.
    """
    scenes, index, object_index = batch
    clouds, poses, joints = clouds[scenes], poses[index], joints[index]
    lap("batch")
    with autocast(clouds.device, args.precision):
        loss = compute_loss(model, clouds, object_index, poses, joints, args, generator)
    lap("pooling + head")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    lap("backward")
    norm = torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    finite = torch.isfinite(loss.detach() + norm)
    if clouds.device.type != "cpu" or finite:
        optimizer.step()
    lap("optimiser")
    return loss.detach(), finite


# ---------------------------------------------------------------- the run


@dataclasses.dataclass
class Progress:
    """What a run has reached besides its weights; saved in last.pt."""

    step: int = 0
    best: float = math.inf  # val top-logit RMSE, rad
    best_step: int = 0
    loss_sum: float = 0.0  # of the training loss since the last validation
    loss_count: int = 0
    seconds: float = 0.0
    history: list = dataclasses.field(default_factory=list)  # rows of metrics.csv


def save_last(folder, model, optimizer, progress, generator):
    """Everything that --resume needs to go on to the bit."""
    content = model_content(model) | {
        "optimizer": optimizer.state_dict(), "progress": dataclasses.asdict(progress),
        "rng": torch.get_rng_state(), "patch_rng": generator.get_state(),
    }  # fmt: skip
    if torch.cuda.is_available():
        content["cuda_rng"] = torch.cuda.get_rng_state()
    save_checkpoint(folder / "last.pt", content)


def load_last(folder, model, optimizer, generator):
    """Restore what `save_last` saved; -> Progress."""
    path = folder / "last.pt"
    content = read_checkpoint(path, "model", "optimizer", "progress", "rng", "patch_rng")
    load_strictly(model, content["model"], path)
    try:
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["rng"])
        generator.set_state(content["patch_rng"])
        if "cuda_rng" in content and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["cuda_rng"])
        return Progress(**content["progress"])
    except Exception as error:  # torch raises whatever does not fit
        raise UserError(f"{path}: is not of this run ({error}); give --overwrite to start anew") from None


def model_content(model):
    """What a checkpoint must hold to be a grasp model again."""
    return {"config": dataclasses.asdict(model.config), "model": model.state_dict(), "joint_names": model.joint_names}


def validate(model, data, split, device, folder, progress, loss, factor, args):
    """Validate, keep the best step, append a row to metrics.csv."""
    result = evaluate_suites(model, data, split, ["val"], device, quiet=True)[0]["val"]
    names = ("top_logit_rmse", "best_of_k_rmse", "selection_gap", "coverage_15", "selector_accuracy")
    row = {"step": progress.step, "train_loss": loss, "lr_factor": factor, **{f"val_{name}": result[name] for name in names}}
    progress.history.append(row | {"seconds": round(progress.seconds, 1)})
    write_csv(folder / "metrics.csv", progress.history)
    if result["top_logit_rmse"] < progress.best:
        progress.best, progress.best_step = result["top_logit_rmse"], progress.step
        save_checkpoint(folder / "best.pt", model_content(model) | {"step": progress.step})
    training_mode(model, args)
    return result["top_logit_rmse"]


def check_finite(healthy, step, scenes, data, folder):
    """Stop before a NaN reaches a checkpoint."""
    if not healthy:
        names = " ".join(sorted({data.objects[i] for i in scenes.tolist()}))
        raise UserError(f"the loss or its gradient is not finite at step {step} (batch of {names}); {folder}/last.pt holds the last good state if there is one; lower --lr-head or --lr-backbone")


def fit(model, optimizer, data, split, args, folder, device, generator, progress):
    """The training loop; returns when all steps are done, raises KeyboardInterrupt once a Ctrl-C is saved."""
    clouds, poses, joints = (torch.from_numpy(array).to(device) for array in (data.clouds, data.poses, data.joints))
    stream = batches(data, split.rows["train"], args, progress.step, device)
    loss_sum = torch.tensor(progress.loss_sum, device=device)  # stays on the device between looks
    healthy = torch.ones((), dtype=torch.bool, device=device)
    started = time.perf_counter() - progress.seconds
    training_mode(model, args)
    bar = tqdm(total=args.steps, initial=progress.step, desc="training", unit="step", disable=args.quiet or None)
    with bar, deferred_interrupt() as interrupted:
        while progress.step < args.steps:
            batch = next(stream)
            factor = set_learning_rates(optimizer, progress.step, args)
            loss, finite = training_step(model, optimizer, batch, clouds, poses, joints, args, generator)
            healthy = healthy & finite
            if device.type == "cpu" or progress.step % LOG_EVERY == 0:  # a look at a CUDA value waits for it
                check_finite(healthy, progress.step, batch[0], data, folder)
            progress.step += 1
            progress.loss_count += 1
            loss_sum += loss
            progress.seconds = time.perf_counter() - started
            bar.update()
            last, stop = progress.step == args.steps, bool(interrupted)
            evaluate, save = progress.step % args.eval_every == 0 or last, progress.step % args.save_every == 0 or last
            if evaluate or save or stop:
                check_finite(healthy, progress.step, batch[0], data, folder)
            if evaluate:
                rmse = validate(model, data, split, device, folder, progress, loss_sum.item() / progress.loss_count, factor, args)
                loss_sum.zero_()
                progress.loss_count = 0
                bar.set_postfix_str(f"val RMSE {rmse:.4f} rad")
            if save or stop:
                progress.loss_sum = loss_sum.item()
                save_last(folder, model, optimizer, progress, generator)
            if stop:
                print(f"stopped at step {progress.step}; the same command with --resume goes on", file=sys.stderr)
                raise KeyboardInterrupt


def finish(model, data, split, args, folder, device, progress):
    """Validate the best step, compare it with the training mean, write result.json and print the table."""
    load_strictly(model, read_checkpoint(folder / "best.pt", "model")["model"], folder / "best.pt")
    constant = report(constant_predictions(data, split.rows["train"], split.rows["val"]))
    result = {
        "suites": evaluate_suites(model, data, split, ["val"], device, args.quiet)[0],
        "training_mean": constant, "best_step": progress.best_step, "steps": args.steps, "seed": args.seed,
        "train_objects": len(split.suites["train"]), "train_grasps": len(split.rows["train"]),
        "device": device.type, "threads": torch.get_num_threads(), "seconds": round(progress.seconds, 1),
    }  # fmt: skip
    write_json(folder / "result.json", result)
    print("\n" + table({"training mean": constant, f"this run, step {progress.best_step}": result["suites"]["val"]}))
    print(f"\nval of pack {args.pack}, {progress.seconds:.0f} s; brackets: 95 % over objects. Saved in {folder}")
    return result


# ---------------------------------------------------------------- --benchmark

BENCHMARK_GRASPS = (1, 16, 64)  # per object


def random_data(num_scenes, points, joints, grasps):
    """Data without a dataset: clouds and wrist positions within 20 cm, `grasps` to a scene."""
    rng = np.random.default_rng(0)
    scene = np.arange(num_scenes).repeat(grasps)
    poses = rng.normal(size=(len(scene), 7))
    poses = np.concatenate([0.1 * poses[:, :3], poses[:, 3:] / np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)], 1)
    return GraspData(
        root="random", scenes=[f"random/{i}/0" for i in range(num_scenes)], mesh_hashes=[], scene=scene, row=scene, scores=scene,
        clouds=rng.uniform(0, 0.2, (num_scenes, points, 3)).astype(np.float32), poses=poses.astype(np.float32),
        joints=rng.normal(size=(len(scene), joints)).astype(np.float32), joint_names=[], excluded=[], num_low=0, fingerprint="",
    )  # fmt: skip


def benchmark(args, argv, device):
    """Measure `training_step` on random data, with few and many grasps per object; -> the report."""
    config, _ = resolve_network(args)
    data = random_data(4 * args.objects_per_batch, config.points, config.joints, max(BENCHMARK_GRASPS))
    clouds, poses, joints = (torch.from_numpy(array).to(device) for array in (data.clouds, data.poses, data.joints))
    generator = torch.Generator().manual_seed(0)
    model = GraspModel(config).to(device)
    optimizer = build_optimizer(model, args)
    set_learning_rates(optimizer, 0, args)
    training_mode(model, args)
    watch = Stopwatch(device)
    if args.compile:
        model.compile()
    elif config.pool not in NO_ENCODER:
        watch.around(model.encoder.embed, "grouping", "tokenizer")
        watch.around(model.encoder.transformer, None, "encoder")

    def variant(grasps):
        own = argparse.Namespace(**vars(args) | {"grasps_per_object": grasps})
        stream = batches(data, np.arange(len(data.scene)), own, 0, device)
        stream = (batch for batch in stream if len(batch[0]) == args.objects_per_batch)  # an epoch's last ones may not be full

        def step(precision):
            own.precision = precision
            batch = next(stream)
            training_step(model, optimizer, batch, clouds, poses, joints, own, generator, watch.lap)
            return len(batch[1]), training_flops(model, len(batch[0]), len(batch[1]))

        return {"objects": args.objects_per_batch, "grasps_per_object": grasps}, step

    rows = measure([variant(grasps) for grasps in BENCHMARK_GRASPS], watch, args, device, "grasps")
    return report_speed("train.py", rows, "grasps", config, argv, args, device)


@command
def main(argv=None):
    args = parse(argv)
    device = set_up_torch(args.device, args.threads, args.precision)
    if args.benchmark:
        return benchmark(args, argv, device)
    folder = run_folder(args)
    config, encoder = resolve_network(args)

    root = ensure_root(args.data, args.quiet)
    data = load_dataset(root, config.points, args.min_score, args.skip_bad, args.cache_dir, args.quiet)
    split = make_split(data, args.pack, args.budget, args.held_out)

    torch.manual_seed(stable_seed("weights", args.seed))
    generator = torch.Generator().manual_seed(stable_seed("patches", args.seed))  # on the CPU, the same on every device
    config = dataclasses.replace(config, joints=data.joints.shape[1])
    model = GraspModel(config, data.joints[split.rows["train"]].mean(0))
    if encoder is not None:
        model.encoder.load_state_dict(encoder.state_dict())
    model.joint_names = data.joint_names
    model.to(device)
    optimizer = build_optimizer(model, args)
    if args.compile:
        model.compile()

    resumed = args.resume and (folder / "last.pt").exists()
    progress = load_last(folder, model, optimizer, generator) if resumed else Progress()
    if resumed and read_json(folder / "config.json").get("fingerprint") != data.fingerprint:
        raise UserError(f"{data.root}: has changed since {folder} was started; restore it or give --overwrite to start anew")
    if args.resume and not resumed:
        print(f"{folder}: nothing to resume; starting at step 0", file=sys.stderr)
    if not resumed:
        start_run(folder, args, config, data, device)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {len(split.suites['train'])} objects, {len(split.rows['train'])} grasps to train on; {len(split.suites['val'])} objects to validate on; {num_parameters / 1e6:.2f} M parameters; {device.type}")
    fit(model, optimizer, data, split, args, folder, device, generator, progress)
    return finish(model, data, split, args, folder, device, progress)


def start_run(folder, args, config, data, device):
    """Clear the folder of an earlier run's files and write config.json."""
    for name in ("result.json", "last.pt", "best.pt", "metrics.csv"):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "config.json", {
        "settings": settings_of(args), "network": dataclasses.asdict(config), "fingerprint": data.fingerprint,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": device.type,
    })  # fmt: skip


if __name__ == "__main__":
    main()
