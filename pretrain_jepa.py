"""Point-JEPA pretraining: predict the latents of hidden blocks of patches (Saito et al. 2024).

    python pretrain_jepa.py --out checkpoints/small.pt            the encoder that ships
    python pretrain_jepa.py --clouds FOLDER --out my_encoder.pt   meshes or .npy clouds of your own
    python pretrain_jepa.py --start OFFICIAL.ckpt --out my.pt     go on from the file that the authors publish
    python pretrain_jepa.py --picture FILE.png                    patches, blocks and features of four objects
    python pretrain_jepa.py --benchmark                           how fast the pretraining step is here
    python train.py --init jepa --jepa-ckpt my_encoder.pt         fine-tune from it

Writes OUT (the encoder), OUT with .json (its card: settings, shapes seen, wall time, curve) and, for
--resume, OUT with .last.pt.
"""

import dataclasses
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import (
    Parser, UserError, add_machine_flags, atomic, autocast, check_machine_flags, command, deferred_interrupt,
    number, set_up_torch, stable_seed, warmup_cosine, write_csv, write_json,
)  # fmt: skip
from data import MESH_NAMES, stamp
from evaluate import read_cloud
from model import (
    PRESETS, PRETRAINING, PointJEPA, jepa_from, load_encoder, load_strictly, normalize_clouds, read_checkpoint,
    sample_blocks, save_checkpoint, sequence_patches, squared_distances, to_z_up,
)  # fmt: skip
from speed import Stopwatch, measure, no_lap, pretraining_flops, report as report_speed
from synthesize import NO_SYNSET, TRAIN_SYNSETS, VERSION, pretraining_cloud

SHIPPED = Path(__file__).parent / "checkpoints" / "small.pt"
PAPER_STEPS = 40_500
WARMUP_SHARE = 30 / 500  # of the paper's 500 epochs
FIRST_RATE, LAST_RATE = 1e-5, 1e-6  # where the learning rate starts and ends
LAST_TAU = 0.99999
NETWORK_FLAGS = ("width", "depth", "normalize", "up", "points", "patches", "patch_size", "target_norm", "context_low", "context_high")  # not given: the preset's or the file's
PRESET_FIELDS = ("width", "depth", "heads", "w1", "w2", "w3", "predictor_width", "predictor_depth", "predictor_heads")
COLLAPSED = 0.05  # standard deviation per feature; targets have 1 by construction when healthy


# ---------------------------------------------------------------- clouds


def synthetic_pool(count, num_points, seed, up, synsets, quiet):
    """`count` procedural shapes (count, N, 3) float32 in m, none of them part of any dataset.

    Kept in data/pretraining, since making them costs some milliseconds each.
    """
    tag = "all" if set(synsets) == set(TRAIN_SYNSETS) else "-".join(sorted(set(synsets)))
    path = Path("data/pretraining") / f"v{VERSION}-{count}x{num_points}-{up}-seed{seed}-{tag}.npy"
    if path.exists():
        return read_pool(path, (count, num_points, 3))
    bar = tqdm(range(count), desc="making shapes", unit="shape", disable=quiet or None, delay=2)
    clouds = np.stack([pretraining_cloud(seed, i, num_points, up, synsets) for i in bar])
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, clouds)
    return clouds


def read_pool(path, shape):
    """Clouds that `synthetic_pool` has kept; raises `UserError`."""
    try:
        clouds = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        clouds = None
    if getattr(clouds, "shape", None) != shape or clouds.dtype != np.float32:
        raise UserError(f"{path}: broken; remove it, and it will be made again")
    return clouds


def cloud_files(folder):
    """Paths of all meshes and .npy clouds under a folder, in the order of their names."""
    extensions = {".npy", *(Path(name).suffix for name in MESH_NAMES)}
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in extensions)
    if not files:
        raise UserError(f"--clouds {folder}: no meshes and no .npy clouds there; give a folder, or 'synthetic'")
    for path in files:
        stamp(path, Path(folder))  # no link out of the folder is followed
    return files


def folder_pool(folder, num_points, quiet):
    """Clouds (n, N, 3) float32 of all meshes and .npy clouds under a folder, in the order of their names."""
    bar = tqdm(cloud_files(folder), desc="reading clouds", unit="cloud", disable=quiet or None, delay=2)
    return np.stack([read_cloud(path, num_points, longest=1e6) for path in bar])  # of any unit: clouds are normalised


def augment(clouds, config, generator, jitter=0.2):
    """Scale each axis by 1 - jitter to 1 + jitter, centre, normalise, rotate about the up axis; (B, N, 3) -> (B, N, 3).

    # DEVIATION: every sample draws its own; the original draws once per batch.
    """
    scale = 1 - jitter + 2 * jitter * torch.rand(len(clouds), 1, 3, generator=generator)
    clouds = clouds * scale.to(clouds.device, non_blocking=True)
    clouds = clouds - clouds.mean(1, keepdim=True)
    clouds = normalize_clouds(clouds, config)[0]
    angle = 2 * torch.pi * torch.rand(len(clouds), generator=generator).to(clouds.device, non_blocking=True)
    cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    rows = {
        "z": (cos, -sin, zero, sin, cos, zero, zero, zero, one),
        "y": (cos, zero, sin, zero, one, zero, -sin, zero, cos),
    }[config.up]
    rotation = torch.stack(rows, 1).view(-1, 3, 3)
    return clouds @ rotation.transpose(1, 2)


def batches(num_clouds, args, step):
    """Index arrays (batch,) from step `step` on: shuffled epochs, each a function of (seed, epoch) alone."""
    per_epoch = num_clouds // args.batch
    while True:
        epoch, first = divmod(step, per_epoch)
        order = np.random.default_rng(stable_seed("pretrain-batches", args.seed, epoch)).permutation(num_clouds)
        for i in range(first, per_epoch):
            yield order[i * args.batch : (i + 1) * args.batch]
        step = (epoch + 1) * per_epoch


# ---------------------------------------------------------------- schedules


def first_tau(steps):
    """EMA momentum at step 0: 0.9995 in the paper's 40,500 steps, else the same share of the run as memory."""
    return min(0.9995, max(0.0, 1 - 5e-4 * PAPER_STEPS / steps))


def tau_at(step, steps, start):
    """EMA momentum: linear from `start` to 0.99999 over the run."""
    return start + (LAST_TAU - start) * step / steps


def rate_at(step, steps, peak):
    """Learning rate: linear warm-up from 1e-5 over 6 % of the steps, cosine to 1e-6 (never over `peak`)."""
    warmup = round(WARMUP_SHARE * steps)
    return peak * warmup_cosine(step, steps, warmup, min(1, FIRST_RATE / peak), min(1, LAST_RATE / peak))


def spread(features):
    """Standard deviation over batch and tokens per feature, averaged; (..., D) -> scalar. Near 0: collapse."""
    return features.detach().float().flatten(0, -2).std(0).mean()


# ---------------------------------------------------------------- the run


def build_parser():
    parser = Parser(__doc__)
    group = parser.add_argument_group("shapes")
    group.add_argument("--clouds", default="synthetic", metavar="WHERE", help="'synthetic', or a folder of meshes or .npy clouds")
    group.add_argument("--num-clouds", type=number(int, 1), default=20000, metavar="N", help="synthetic shapes to make; they are augmented anew each time")
    group.add_argument("--jitter", type=number(float, 0, 0.9), default=0.2, metavar="SHARE", help="augmentation: every axis is scaled by 1 - SHARE to 1 + SHARE")
    group.add_argument("--synsets", nargs="+", choices=(*TRAIN_SYNSETS, NO_SYNSET), default=list(TRAIN_SYNSETS), metavar="SYNSET", help=f"categories of the synthetic shapes, '{NO_SYNSET}' for simple parts put together at random (default: the twelve categories that train)")

    group = parser.add_argument_group("network")
    group.add_argument("--preset", choices=tuple(PRESETS), help="network size (default: small, or the file's)")
    group.add_argument("--start", metavar="FILE", help="go on from this .last.pt of another run, or from the official Point-JEPA file: its network and weights, predictor and EMA included; a fresh optimiser")
    group.add_argument("--width", type=number(int, 1), metavar="N", help="features per token, a multiple of the preset's heads (default: the preset's or the file's)")
    group.add_argument("--depth", type=number(int, 1), metavar="N", help="blocks of the encoder (default: the preset's or the file's)")
    group.add_argument("--normalize", choices=("unit_sphere", "metric"), help="what the encoder sees (default: the preset's or the file's)")
    group.add_argument("--up", choices=("z", "y"), help="vertical axis of the clouds, which the augmentation rotates about (default: the preset's or the file's)")
    group.add_argument("--points", type=number(int, 1), metavar="N", help="points per cloud (default: the preset's or the file's)")
    group.add_argument("--patches", type=number(int, 2), metavar="N", help="patches per cloud (default: the preset's or the file's)")
    group.add_argument("--patch-size", type=number(int, 1), metavar="N", help="points per patch (default: the preset's or the file's)")

    group = parser.add_argument_group("objective")
    group.add_argument("--target-norm", choices=("instance", "layer"), help="targets are normalised over features, with 'instance' then over the tokens of a cloud too; the original stops at 'layer' (default: the preset's or the file's)")
    group.add_argument("--context-low", type=number(float, above=0, high=1), metavar="SHARE", help="least share of the patches outside all targets that the context takes (default: the preset's or the file's; 0.4 in the paper)")
    group.add_argument("--context-high", type=number(float, above=0, high=1), metavar="SHARE", help="largest such share (default: the preset's or the file's; 0.75 in the paper)")

    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=number(int, 1), default=9000, metavar="N", help="optimiser steps")
    group.add_argument("--batch", type=number(int, 2), default=64, metavar="N", help="clouds per step")
    group.add_argument("--lr", type=number(float, above=0), default=1e-3, help="peak learning rate")
    group.add_argument("--weight-decay", type=number(float, 0), default=0.05, help="AdamW's, on all parameters")
    group.add_argument("--tau", type=number(float, 0, 1), help="EMA momentum at the start (default: scaled to --steps; with --start, where that run's schedule had come to)")
    group.add_argument("--save-every", type=number(int, 1), default=500, metavar="N", help="steps between checkpoints for --resume")
    group.add_argument("--log-every", type=number(int, 1), default=100, metavar="N", help="steps between rows of the curve")
    group.add_argument("--seed", type=number(int, 0), default=0, help="of shapes, weights, batches and masks")
    add_machine_flags(parser)

    group = parser.add_argument_group("output")
    group.add_argument("--out", default="runs/pretrained.pt", metavar="FILE", help="the encoder checkpoint")
    group.add_argument("--resume", action="store_true", help="go on from OUT's .last.pt, to the same result")
    group.add_argument("--overwrite", action="store_true", help="start anew even if OUT is there")
    group.add_argument("--picture", metavar="FILE", help="instead of training, draw the patches, blocks and token features of four shapes (.png)")
    group.add_argument("--encoder", metavar="FILE", help="the trained encoder of the picture (default: the one that ships)")
    return parser


def resolve_config(args):
    """`ModelConfig` from the preset and the flags that were given."""
    given = {name: getattr(args, name) for name in NETWORK_FLAGS if getattr(args, name) is not None}
    return dataclasses.replace(PRESETS[args.preset], **given, **PRETRAINING)


def check_flags(args, config, path):
    """Stop where a flag contradicts the configuration that a checkpoint brings along."""
    for name in NETWORK_FLAGS:
        if getattr(args, name) not in (None, getattr(config, name)):
            raise UserError(f"{path}: was pretrained with {name} {getattr(config, name)}, not {getattr(args, name)}; leave --{name.replace('_', '-')} out")
    if args.preset and any(getattr(config, name) != getattr(PRESETS[args.preset], name) for name in PRESET_FIELDS):
        raise UserError(f"{path}: is not of --preset {args.preset} (width {config.width}, depth {config.depth}); leave --preset out")


def load_start(args):
    """The PointJEPA of --start and the EMA momentum that its schedule had reached."""
    content = read_checkpoint(args.start)
    jepa = jepa_from(content, args.start)
    check_flags(args, jepa.config, args.start)
    settings = content.get("settings", {"steps": PAPER_STEPS, "tau": None})  # the official file stores no schedule: the paper's
    try:
        steps, tau = settings["steps"], settings["tau"]
        return jepa, tau_at(min(jepa.step, steps), steps, first_tau(steps) if tau is None else tau)
    except (KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"{args.start}: its settings tell no EMA schedule; fetch or make it again") from None


def settings_of(args):
    """What a resumed run must repeat."""
    return {k: v for k, v in vars(args).items() if k not in ("out", "picture", "encoder", "resume", "overwrite", "quiet", "threads", "log_every", "save_every", "benchmark", "json")}


def load_last(path, args, jepa, optimizer, generator):
    """Restore a stopped run; -> (step, seconds, curve)."""
    content = read_checkpoint(path, "settings", "jepa", "optimizer", "rng", "mask_rng", "step", "seconds", "curve")
    changed = [k for k, v in settings_of(args).items() if content["settings"].get(k) != v]
    if changed:
        raise UserError(f"{path}: was started with other settings ({', '.join(changed)}); repeat them to --resume")
    load_strictly(jepa, content["jepa"], path)
    try:
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["rng"])
        generator.set_state(content["mask_rng"])
    except Exception as error:  # torch raises whatever does not fit
        raise UserError(f"{path}: is not of this run ({error}); give --overwrite to start anew") from None
    return content["step"], content["seconds"], content["curve"]


def save_last(path, args, jepa, optimizer, generator, step, seconds, curve):
    save_checkpoint(path, {
        "config": dataclasses.asdict(jepa.config), "jepa": jepa.state_dict(), "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(), "mask_rng": generator.get_state(), "settings": settings_of(args),
        "step": step, "seconds": seconds, "curve": curve,
    })  # fmt: skip


def build_optimizer(jepa, args):
    """AdamW on all that trains; the learning rate is set before every step."""
    return torch.optim.AdamW([p for p in jepa.parameters() if p.requires_grad], lr=0.0, weight_decay=args.weight_decay, fused=True)


def pretraining_step(jepa, optimizer, clouds, tau, args, generator, lap=no_lap):
    """One step of optimiser and EMA on clouds (B, N, 3) m; -> loss, targets, predictions, whether all was finite.

    On the CPU, where looking costs nothing, a step that is not finite leaves the weights as they are. `lap` is told
    the name of each part as it ends, which is how --benchmark measures; the model's own parts it watches from outside.
    """
    clouds = augment(clouds, jepa.config, generator, args.jitter)
    lap("data")
    with autocast(clouds.device, args.precision):
        loss, targets, predictions = jepa(clouds, generator)
    lap("predictor")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    lap("backward")
    norm = torch.nn.utils.get_total_norm([p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None])
    finite = torch.isfinite(loss.detach() + norm)
    if clouds.device.type != "cpu" or finite:
        optimizer.step()
        jepa.update_target(tau)
    lap("optimiser")
    return loss, targets, predictions, finite


def fit(jepa, pool, args, device, generator, optimizer, paths, progress):
    """The loop; -> (seconds, curve). Each curve row: step, loss, tau, lr, clouds/s, target and prediction spread."""
    step, seconds, curve = progress
    tau_start = first_tau(args.steps) if args.tau is None else args.tau
    clouds = torch.from_numpy(pool).to(device)
    stream = batches(len(pool), args, step)
    started, marked, marked_step = time.perf_counter() - seconds, time.perf_counter(), step
    healthy = torch.ones((), dtype=torch.bool, device=device)
    jepa.train()
    bar = tqdm(total=args.steps, initial=step, desc="pretraining", unit="step", disable=args.quiet or None)
    with bar, deferred_interrupt() as interrupted:
        while step < args.steps:
            index = next(stream)
            rate, tau = rate_at(step, args.steps, args.lr), tau_at(step, args.steps, tau_start)
            optimizer.param_groups[0]["lr"] = rate
            batch = clouds[torch.from_numpy(index).to(device, non_blocking=True)]
            loss, targets, predictions, finite = pretraining_step(jepa, optimizer, batch, tau, args, generator)
            healthy = healthy & finite
            if device.type == "cpu":  # a look at a CUDA value waits for it
                check_finite(healthy, step, index, paths["last"])
            step += 1
            bar.update()
            done = step == args.steps
            stop = bool(interrupted)
            log, save = step % args.log_every == 0 or done, step % args.save_every == 0 or done or stop
            if log or save:
                check_finite(healthy, step, index, paths["last"])
            if log:
                now = time.perf_counter()
                row = {
                    "step": step, "loss": loss.item(), "tau": tau, "lr": rate,
                    "clouds_per_s": round((step - marked_step) * args.batch / (now - marked), 1),
                    "target_std": spread(targets).item(), "prediction_std": spread(predictions).item(),
                }  # fmt: skip
                marked, marked_step = now, step
                curve.append(row)
                write_csv(paths["curve"], curve)
                bar.set_postfix_str(f"{row['clouds_per_s']:.0f} clouds/s, loss {row['loss']:.4f}, std {row['target_std']:.2f}/{row['prediction_std']:.2f}")
                if step > WARMUP_SHARE * args.steps and min(row["target_std"], row["prediction_std"]) < COLLAPSED:
                    tqdm.write(f"warning: step {step}: features collapse (std {row['target_std']:.3f}, {row['prediction_std']:.3f})", file=sys.stderr)
            if save:
                save_last(paths["last"], args, jepa, optimizer, generator, step, time.perf_counter() - started, curve)
            if stop:
                print(f"stopped at step {step}; the same command with --resume goes on", file=sys.stderr)
                raise KeyboardInterrupt
    return time.perf_counter() - started, curve


def check_finite(healthy, step, index, last):
    """Stop before a NaN reaches a checkpoint."""
    if not healthy:
        raise UserError(f"the loss or its gradient is not finite at step {step} (batch of shapes {' '.join(map(str, sorted(index)))}); {last} holds the last good state if there is one; lower --lr")


def load_pool(args, config):
    """The clouds to learn from, (n, N, 3) float32."""
    if args.clouds == "synthetic":
        pool = synthetic_pool(args.num_clouds, config.points, args.seed, config.up, args.synsets, args.quiet)
    else:
        pool = folder_pool(args.clouds, config.points, args.quiet)
    if len(pool) < args.batch:
        raise UserError(f"--batch {args.batch}: only {len(pool)} clouds; take a smaller batch")
    return pool


def parse(argv):
    """The arguments, with the default preset filled in where no checkpoint brings the network along."""
    args = build_parser().parse_args(argv)
    for flag in ("start", "resume", "overwrite"):
        if args.picture and getattr(args, flag):
            raise UserError(f"--{flag} does not go with --picture, which trains nothing; leave one out")
    check_machine_flags(args)
    if args.encoder and not args.picture:
        raise UserError("--encoder goes with --picture FILE; give it, or --start to go on from a pretraining")
    if not (args.start or args.picture):
        args.preset = args.preset or "small"
    return args


# ---------------------------------------------------------------- the picture

PICTURED = {"03797390": 13, "02876657": 12, "03636649": 1, "03481172": 14}  # mug, bottle, lamp, hammer: one of each with clear parts
GREY, CONTEXT = (0.82, 0.82, 0.84), (0.16, 0.32, 0.6)
TARGETS = ((0.84, 0.19, 0.15), (0.99, 0.6, 0.15), (0.25, 0.65, 0.35), (0.65, 0.35, 0.7))
VIEW = np.array([[0.819, -0.215, -0.532], [0.574, 0.307, 0.760], [0, 0.927, -0.375]])  # columns right, up, away from the eye


def pictured_shapes(args, config):
    """Up to four shapes to draw, (n, 3) m each: their first N points are the encoder's cloud, more only fill the picture."""
    if args.clouds != "synthetic":
        files = cloud_files(args.clouds)
        files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 4).round().astype(int))]  # from different subfolders
        return [read_cloud(path, config.points, longest=1e6) for path in files]
    synsets = sorted(args.synsets, key=lambda synset: synset not in PICTURED)[:4]
    return [pretraining_cloud(args.seed, PICTURED.get(synset, 0), max(30000, config.points), config.up, [synset]) for synset in synsets]


@torch.no_grad()
def look_through(encoder, points, seed):
    """What the picture shows of one shape (n, 3) m.

    -> points (n, 3) in units of the encoder, z up; patch (n,), the one whose center is nearest; place (G,) of each
    patch in the sequence; tokens (G, D); places of the targets (M, T) and of the context (C,).
    """
    config = encoder.config
    points = torch.from_numpy(points)[None]
    points = points - points[:, : config.points].mean(1, keepdim=True)  # as `augment` does, without its chance
    cloud, centroid, radius = normalize_clouds(points[:, : config.points], config)
    points = (points - centroid[:, None]) / radius[:, None]
    tokens, centers = encoder(cloud)
    order = sequence_patches(centers)[0]
    patch = squared_distances(points, centers).argmin(2)[0]
    shares = config.context_low, config.context_high
    targets, context = sample_blocks(config.patches, torch.Generator().manual_seed(seed), context_ratio=shares)
    return to_z_up(points[0], config.up), patch, order.argsort(), tokens[0], targets, context


def feature_colours(tokens):
    """Tokens (..., D) -> RGB (..., 3): their ranks along the three main directions of variation."""
    flat = tokens.flatten(0, -2)
    flat = flat - flat.mean(0)
    main = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:3].T
    ranks = main.argsort(0).argsort(0) / (len(main) - 1)  # ranks: one odd token does not take the contrast from the others
    return (0.2 + 0.75 * ranks).view(*tokens.shape[:-1], 3)


def draw_patches(encoder, shapes, path, seed):
    """A column per shape: patches by their place in the sequence, context and targets of one draw, token features as RGB."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    seen = [look_through(encoder, points, seed) for points in shapes]
    features = feature_colours(torch.stack([tokens for *_, tokens, _, _ in seen])).numpy()  # (shapes, G, 3)
    figure = Figure(figsize=(3 * len(shapes), 10), layout="constrained")
    rows = figure.subfigures(3, 1, height_ratios=(1, 1.12, 1))  # the middle one has a legend
    axes = np.stack([row.subplots(1, len(shapes), squeeze=False)[0] for row in rows], 1)  # (shapes, 3)
    for column, (points, patch, place, _, targets, context), rgb in zip(axes, seen, features):
        points = points.numpy() @ VIEW
        blocks = np.tile(GREY, (len(place), 1))
        blocks[context] = CONTEXT
        for target, colour in zip(targets, TARGETS):
            blocks[target] = colour
        sequence = colormaps["turbo"](np.linspace(0.05, 0.95, len(place)))[:, :3]
        order = points[:, 2].argsort()[::-1]  # far points first: near ones cover them
        light = 1 - 0.35 * (points[:, 2] - points[:, 2].min()) / np.ptp(points[:, 2])
        low, high = points.min(0), points.max(0)
        reach = 0.53 * (high - low)[:2].max()
        for ax, colours in zip(column, (sequence[place], blocks[place], rgb)):
            ax.scatter(*points[order, :2].T, c=(colours[patch] * light[:, None])[order], s=220000 / len(points), linewidths=0)
            ax.set(**{f"{axis}lim": (c - reach, c + reach) for axis, c in zip("xy", (low + high) / 2)}, aspect="equal")
            ax.axis("off")
    rows[0].suptitle("patches by their place in the sequence, from blue (first) to red (last)")
    rows[1].suptitle("context and target blocks of one draw (overlaps in the later target's colour)")
    rows[2].suptitle("features of the patches' tokens, three main directions of variation as red, green and blue")
    names = [("context", CONTEXT), *((f"target {i + 1}", colour) for i, colour in enumerate(TARGETS)), ("left out", GREY)]
    rows[1].legend(handles=[Patch(color=colour, label=name) for name, colour in names], ncols=6, loc="outside lower center", frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def picture_command(args):
    """`--picture`: draw what a trained encoder makes of four shapes."""
    path = args.encoder or SHIPPED
    encoder = load_encoder(path)
    check_flags(args, encoder.config, path)
    draw_patches(encoder, pictured_shapes(args, encoder.config), args.picture, args.seed)
    print(f"saved {args.picture}")


# ---------------------------------------------------------------- --benchmark


def benchmark(args, argv, device):
    """Measure `pretraining_step` on random clouds; -> the report."""
    config = load_start(args)[0].config if args.start else resolve_config(args)
    generator = torch.Generator().manual_seed(0)
    jepa = PointJEPA(config).to(device)
    optimizer = build_optimizer(jepa, args)
    optimizer.param_groups[0]["lr"] = args.lr
    clouds = torch.rand(4 * args.batch, config.points, 3, generator=generator).to(device)
    stream, watch, seen = batches(len(clouds), args, 0), Stopwatch(device), []
    watch.around(jepa.encoder.embed, "grouping", "tokenizer")
    watch.around(jepa.encoder.transformer, "targets", "encoder")
    # the blocks are drawn anew in every step, and so is the work
    jepa.predictor.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].shape[1], *inputs[2].shape[1:3])))

    def step(precision):
        args.precision = precision
        batch = clouds[torch.from_numpy(next(stream)).to(device)]
        pretraining_step(jepa, optimizer, batch, 0.999, args, generator, watch.lap)
        return args.batch, pretraining_flops(config, args.batch, *seen.pop())

    rows = measure([({"batch": args.batch}, step)], watch, args, device, "clouds")
    return report_speed("pretrain_jepa.py", rows, "clouds", config, argv, args, device)


@command
def main(argv=None):
    args = parse(argv)
    device = set_up_torch(args.device, args.threads, args.precision)
    if args.benchmark:
        return benchmark(args, argv, device)
    if args.picture:
        return picture_command(args)
    out = Path(args.out)
    paths = {"last": out.with_suffix(".last.pt"), "curve": out.with_suffix(".csv"), "card": out.with_suffix(".json")}
    unfinished = args.resume and paths["last"].exists()  # also where it was stopped between its last files
    if out.exists() and not (args.overwrite or unfinished):
        raise UserError(f"{out}: is there already; give --overwrite or another --out")
    if paths["last"].exists() and not (args.resume or args.overwrite):
        raise UserError(f"{paths['last']}: an unfinished run; give --resume to go on or --overwrite to start anew")
    jepa = None
    if args.start:
        if Path(args.start).resolve() == paths["last"].resolve():
            raise UserError(f"--start {args.start}: this run would write over it; give another --out")
        jepa, reached = load_start(args)
        args.tau = reached if args.tau is None else args.tau
    config = jepa.config if jepa else resolve_config(args)
    pool = load_pool(args, config)

    torch.manual_seed(stable_seed("pretrain-weights", args.seed))
    generator = torch.Generator().manual_seed(stable_seed("masks", args.seed))
    jepa = (jepa or PointJEPA(config)).to(device)
    optimizer = build_optimizer(jepa, args)
    progress = 0, 0.0, []
    if unfinished:
        progress = load_last(paths["last"], args, jepa, optimizer, generator)
    num_parameters = sum(p.numel() for p in jepa.encoder.parameters())
    print(f"{out}: {len(pool)} clouds, {num_parameters / 1e6:.2f} M encoder parameters, {args.steps} steps of {args.batch}; {device.type}")
    if args.start:
        print(f"on from {args.start}, step {jepa.step}: EMA momentum {args.tau:.5f} at the start, a fresh optimiser")

    seconds, curve = fit(jepa, pool, args, device, generator, optimizer, paths, progress)
    save_checkpoint(out, {"config": dataclasses.asdict(config), "encoder": jepa.encoder.state_dict(), "step": args.steps})
    card = {
        "command": shlex.join(["python", "pretrain_jepa.py", *(sys.argv[1:] if argv is None else argv)]),
        "seed": args.seed, "settings": settings_of(args), "network": dataclasses.asdict(config), "shapes": len(pool),
        "clouds_seen": args.steps * args.batch, "seconds": round(seconds), "device": device.type,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "curve": curve[:: max(1, len(curve) // 50)],
    }  # fmt: skip
    write_json(paths["card"], card)
    paths["last"].unlink(missing_ok=True)
    print(f"saved {out} after {seconds:.0f} s: loss {curve[-1]['loss']:.4f}, std of targets {curve[-1]['target_std']:.2f}, of predictions {curve[-1]['prediction_std']:.2f}")
    return card


if __name__ == "__main__":
    main()
