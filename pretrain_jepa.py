"""Point-JEPA pretraining: predict the latents of hidden blocks of patches (Saito et al. 2024).

    python pretrain_jepa.py --out checkpoints/small.pt            the encoder that ships
    python pretrain_jepa.py --clouds FOLDER --out my_encoder.pt   meshes or .npy clouds of your own
    python pretrain_jepa.py --start OFFICIAL.ckpt --out my.pt     go on from the file that the authors publish
    torchrun --nproc-per-node 2 pretrain_jepa.py --out my.pt      one encoder on two GPUs
    python train.py --init jepa --jepa-ckpt my_encoder.pt         fine-tune from it

Writes OUT (the encoder), OUT with .json (its card: settings, shapes seen, wall time), OUT with .csv (its curve) and,
for --resume, OUT with .last.pt. walkthrough.py draws what an encoder makes of an object.
"""

import contextlib
import dataclasses
import functools
import hashlib
import shlex
import sys
import time
from pathlib import Path

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from benchmark.roots import VERSION
from benchmark.shapes import NO_SYNSET, TRAIN_SYNSETS, pretraining_cloud
from cli.errors import UserError, command
from cli.flags import Parser, number
from cli.processes import cores, map_in_processes
from data import read_cloud
from files.checkpoints import jepa_from, read_checkpoint, save_checkpoint
from files.reading import ANY_LENGTH, MESH_TYPES, files_under, stamp
from files.writing import atomic, locked, stable_seed, write_csv, write_json
from loop import fast
from loop.flags import add_encoder_flags, add_machine_flags, check_flags, check_machine_flags
from loop.graphs import Graphs
from loop.last import load_last, save_last, warn_if_moved
from loop.machine import WIDE, autocast, join_processes, set_precision, set_up_torch
from loop.pace import LOOK_EVERY, adamw, paced, set_rate, warmup_cosine
from model import CHOICES, PRESETS, PRETRAINING, PointJEPA, normalize_clouds, start_points

PUBLISHED_STEPS = 40_500  # of Point-JEPA
WARMUP_SHARE = 30 / 500  # of Point-JEPA's 500 epochs
FIRST_RATE, LAST_RATE = 1e-5, 1e-6  # where the learning rate starts and ends
LAST_TAU = 0.99999
NETWORK_FLAGS = (  # not given: the preset's or the file's
    "width", "depth", "normalize", "up", "points", "patches", "patch_size", "patching", "tokenizer",
    "target_norm", "context_low", "context_high",
)  # fmt: skip
# how a pretraining is watched and where it goes; everything else is its identity
NOT_SETTINGS = (
    "out", "resume", "overwrite", "quiet", "log_every", "save_every", "no_graph", "benchmark", "json",
    "picture", "skip_bad",
)  # fmt: skip
FEW_SHAPES = 500  # are made by one process
COLLAPSED = 0.05  # standard deviation per feature; targets have 1 by construction when healthy


# ---------------------------------------------------------------- clouds


def synthetic_pool(count, num_points, seed, up, synsets, quiet):
    """`count` procedural shapes (count, N, 3) float32 in m, none of them part of any dataset.

    Kept in data/pretraining, since making them costs some milliseconds each.
    """
    tag = "all" if set(synsets) == set(TRAIN_SYNSETS) else "-".join(sorted(synsets))
    path = Path("data/pretraining") / f"v{VERSION}-{count}x{num_points}-{up}-seed{seed}-{tag}.npy"
    if path.exists():
        return read_pool(path, (count, num_points, 3))
    make = functools.partial(pretraining_cloud, seed, num_points=num_points, up=up, synsets=synsets)
    workers = cores() if count > FEW_SHAPES else 1  # starting processes takes longer than a few shapes
    with contextlib.closing(map_in_processes(make, range(count), workers, chunk=50)) as made:
        bar = tqdm(made, "making shapes", count, unit="shape", disable=quiet or None, delay=2)
        clouds = np.stack(list(bar))
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
    files = files_under(folder, (".npy", *MESH_TYPES))
    if not files:
        raise UserError(f"--clouds {folder}: no meshes and no .npy clouds there; give a folder, or 'synthetic'")
    return files


def folder_pool(folder, num_points, skip_bad, quiet):
    """Clouds (n, N, 3) float32 of all meshes and .npy clouds under a folder, in the order of their names.

    Of any unit, since clouds are normalised. With `skip_bad`, bad files are left out; also returns why, a text each.
    """
    clouds, left_out = [], []
    for path in tqdm(cloud_files(folder), desc="reading clouds", unit="cloud", disable=quiet or None, delay=2):
        try:
            stamp(path, Path(folder))  # no link out of the folder is followed
            clouds.append(read_cloud(path, num_points, ANY_LENGTH))
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error} (--skip-bad leaves such files out)") from None
            left_out.append(str(error))
    if not clouds:
        raise UserError(f"--clouds {folder}: every file is bad; the first: {left_out[0]}")
    return np.stack(clouds), left_out


def draw_augmentation(count, generator, jitter=0.2):
    """Factors per axis (B, 1, 3) in 1 - jitter … 1 + jitter, and turns about the vertical (B,) rad, of B clouds."""
    # DEVIATION: every sample draws its own; the original draws once per batch
    scale = 1 - jitter + 2 * jitter * torch.rand(count, 1, 3, generator=generator)
    return scale, 2 * torch.pi * torch.rand(count, generator=generator)


def augment(clouds, config, scale, angle):
    """Scale each axis, centre, normalise, rotate about the up axis; (B, N, 3), (B, 1, 3), (B,) rad -> (B, N, 3)."""
    # DEVIATION: the original first thins every cloud by farthest point sampling from a random start, in every step
    clouds = clouds * scale
    clouds = clouds - clouds.mean(1, keepdim=True)
    clouds = normalize_clouds(clouds, config)[0]
    cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    rows = {
        "z": (cos, -sin, zero, sin, cos, zero, zero, zero, one),
        "y": (cos, zero, sin, zero, one, zero, -sin, zero, cos),
    }[config.up]
    rotation = torch.stack(rows, 1).view(-1, 3, 3)
    with fast.exact_products():
        return clouds @ rotation.transpose(1, 2)


def cloud_batches(num_clouds, args, step):
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
    """EMA momentum at step 0: 0.9995 in Point-JEPA's 40,500 steps; else the EMA spans the same share of the run."""
    return min(0.9995, max(0.0, 1 - 5e-4 * PUBLISHED_STEPS / steps))


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


# ---------------------------------------------------------------- settings


def build_parser():
    parser = Parser(__doc__)
    of_preset = "(default: the preset's or the file's)"

    flag = parser.add_argument_group("shapes").add_argument
    flag("--clouds", default="synthetic", metavar="WHERE", help="'synthetic', or a folder of meshes or .npy clouds")
    flag("--skip-bad", action="store_true", help="leave bad files of the --clouds folder out and list them")
    made = "synthetic shapes to make; they are augmented anew each time"
    flag("--num-clouds", type=number(int, 1), default=20000, metavar="N", help=made)
    jitter = "augmentation: every axis is scaled by 1 - SHARE to 1 + SHARE"
    flag("--jitter", type=number(float, 0, 0.9), default=0.2, metavar="SHARE", help=jitter)
    flag(
        "--synsets", nargs="+", choices=(*TRAIN_SYNSETS, NO_SYNSET), default=list(TRAIN_SYNSETS), metavar="SYNSET",
        help=f"categories of the synthetic shapes, '{NO_SYNSET}' for simple parts put together at random "
        "(default: the twelve categories that train)",
    )  # fmt: skip

    flag = parser.add_argument_group("network").add_argument
    flag("--preset", choices=tuple(PRESETS), help="network size (default: small, or the file's)")
    flag(
        "--start", metavar="FILE",
        help="go on from this .last.pt of another run, or from the official Point-JEPA file: its network and weights, "
        "predictor and EMA included; a fresh optimiser",
    )  # fmt: skip
    width = "features per token, a multiple of the preset's heads and of 4, the pooling's"
    flag("--width", type=number(int, 1), metavar="N", help=f"{width} {of_preset}")
    flag("--depth", type=number(int, 1), metavar="N", help=f"blocks of the encoder {of_preset}")
    up = "vertical axis of the clouds, which the augmentation rotates about"
    flag("--up", choices=CHOICES["up"], help=f"{up} {of_preset}")
    add_encoder_flags(flag, CHOICES, of_preset, least_patches=2)

    flag = parser.add_argument_group("objective").add_argument
    norm = "targets are normalised over features, with 'instance' then over the tokens of a cloud too; the original "
    flag("--target-norm", choices=CHOICES["target_norm"], help=f"{norm}stops at 'layer' {of_preset}")
    share = number(float, above=0, high=1)
    low = "least share of the patches outside all targets that the context takes; 0.4 in Point-JEPA"
    flag("--context-low", type=share, metavar="SHARE", help=f"{low} {of_preset}")
    high = "largest such share; 0.75 in Point-JEPA"
    flag("--context-high", type=share, metavar="SHARE", help=f"{high} {of_preset}")

    flag = parser.add_argument_group("training").add_argument
    flag("--steps", type=number(int, 1), default=9000, metavar="N", help="optimiser steps")
    flag("--batch", type=number(int, 2), default=64, metavar="N", help="clouds per step")
    flag("--lr", type=number(float, above=0), default=1e-3, help="peak learning rate")
    flag("--weight-decay", type=number(float, 0), default=0.05, help="AdamW's, on all parameters")
    tau = "EMA momentum at the start (default: scaled to --steps; with --start, where that run's schedule had come to)"
    flag("--tau", type=number(float, 0, 1), help=tau)
    saves = "steps between checkpoints for --resume"
    flag("--save-every", type=number(int, 1), default=500, metavar="N", help=saves)
    flag("--log-every", type=number(int, 1), default=100, metavar="N", help="steps between rows of the curve")
    flag("--seed", type=number(int, 0), default=0, help="of shapes, weights, batches and masks")
    add_machine_flags(parser)

    flag = parser.add_argument_group("output").add_argument
    out = "the encoder checkpoint, a .pt; card, curve and .last.pt have its name"
    flag("--out", default="runs/pretrained.pt", metavar="FILE", help=out)
    flag("--resume", action="store_true", help="go on from OUT's .last.pt; with one process to the same result")
    flag("--overwrite", action="store_true", help="start anew even if OUT is there")
    flag("--picture", metavar="FILE", help="has become: python walkthrough.py --out FILE")
    return parser


def parse(argv):
    """The arguments, with the default preset filled in where no checkpoint brings the network along."""
    args = build_parser().parse_args(argv)
    if args.picture:
        raise UserError(
            f"--picture: the picture is part of the walkthrough now: python walkthrough.py --out {args.picture}"
        )
    check_machine_flags(args)
    if Path(args.out).suffix != ".pt" or Path(args.out).is_dir():
        raise UserError(f"--out {args.out}: must be a file that ends in .pt")
    args.synsets = [name for name in (*TRAIN_SYNSETS, NO_SYNSET) if name in args.synsets]  # once each, in one order
    if not args.start:
        args.preset = args.preset or "small"
    return args


def settings_of(args):
    """What identifies a pretraining, and what --resume must repeat."""
    return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}


def given_flags(args):
    """The network flags that were given."""
    return {name: getattr(args, name) for name in NETWORK_FLAGS if getattr(args, name) is not None}


def resolve_config(args):
    """`ModelConfig` from the preset and the flags that were given."""
    return dataclasses.replace(PRESETS[args.preset], **given_flags(args), **PRETRAINING)


def load_start(args):
    """The PointJEPA of --start and the EMA momentum that its schedule had reached."""
    content = read_checkpoint(args.start)
    jepa = jepa_from(content, args.start)
    check_flags(given_flags(args), jepa.config, args.start, args.preset and (args.preset, PRESETS[args.preset]))
    settings = content.get("settings", {"steps": PUBLISHED_STEPS, "tau": None})  # of the official file: Point-JEPA's
    try:
        steps, tau = settings["steps"], settings["tau"]
        return jepa, tau_at(min(jepa.step, steps), steps, first_tau(steps) if tau is None else tau)
    except (KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"{args.start}: its settings tell no EMA schedule; fetch or make it again") from None


def load_pool(args, config, rank=0, processes=1):
    """The clouds to learn from, (n, N, 3) float32; of several processes the first makes them."""
    if rank > 0:
        torch.distributed.barrier()
    if args.clouds == "synthetic":
        pool = synthetic_pool(args.num_clouds, config.points, args.seed, config.up, args.synsets, args.quiet)
    else:
        pool, left_out = folder_pool(args.clouds, config.points, args.skip_bad, args.quiet)
        if left_out and rank == 0:
            print(*(f"left out {reason}" for reason in left_out), sep="\n", file=sys.stderr)
            print(f"{len(left_out)} of {len(left_out) + len(pool)} files left out", file=sys.stderr)
    if len(pool) < args.batch:
        raise UserError(f"--batch {args.batch}: only {len(pool)} clouds; take a smaller batch")
    if rank == 0 and processes > 1:
        torch.distributed.barrier()
    return pool


def use_graph(device, args, processes=1):
    """Whether the steps of one process on CUDA run as graphs."""
    return device.type == "cuda" and processes == 1 and not args.no_graph


def check_output(args, out, last):
    """Stop where OUT or its unfinished run would be lost; -> whether there is a run to go on with."""
    unfinished = args.resume and last.exists()  # also where it was stopped between its last files
    if out.exists() and not (args.overwrite or unfinished):
        raise UserError(f"{out}: is there already; give --overwrite or another --out")
    if last.exists() and not (args.resume or args.overwrite):
        raise UserError(f"{last}: an unfinished run; give --resume to go on or --overwrite to start anew")
    if args.start and Path(args.start).resolve() == last.resolve():
        raise UserError(f"--start {args.start}: this run would write over it; give another --out")
    return unfinished


# ---------------------------------------------------------------- one run


@dataclasses.dataclass
class Progress:
    """What a pretraining has reached besides its weights; saved in .last.pt."""

    step: int = 0
    seconds: float = 0.0
    curve: list = dataclasses.field(default_factory=list)  # rows of OUT's .csv


@dataclasses.dataclass
class Pretraining:
    """Everything that the loop works with, made by `main`."""

    args: object  # the flags
    out: Path
    device: torch.device
    precision: str  # fp32, tf32 or bf16
    clouds: torch.Tensor  # (n, N, 3) float32, m or any unit
    jepa: PointJEPA
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of augmentation, patch starts and masks, on the CPU
    progress: Progress
    rank: int = 0  # of this process; 0 is the one that writes
    processes: int = 1

    def __post_init__(self):
        # settings of the flags, and the clouds themselves: a folder may have changed before --resume
        pool = hashlib.sha256(self.clouds.cpu().numpy().tobytes()).hexdigest()[:16]
        self.settings = settings_of(self.args) | {"clouds_sha256": pool}
        # with several processes every one sees its share of the batch, and gradients are averaged
        self.network = self.jepa if self.processes == 1 else DistributedDataParallel(self.jepa)

    @property
    def graph(self):
        """Whether steps run as CUDA graphs."""
        return use_graph(self.device, self.args, self.processes)

    @property
    def last(self):
        """Path of the checkpoint that --resume goes on from."""
        return self.out.with_suffix(".last.pt")


# ---------------------------------------------------------------- the loop


def build_optimizer(jepa, args, graph=False):
    """AdamW on all that trains; the learning rate is set before every step."""
    trained = [p for p in jepa.parameters() if p.requires_grad]
    return adamw([{"params": trained}], args.weight_decay, graph)


def draw_step(run, index, tau):
    """All that is random in a step on the clouds `index` (batch,), drawn on the CPU: the arguments of the step."""
    scale, angle = draw_augmentation(len(index), run.generator, run.args.jitter)
    starts = start_points(run.generator, len(index), run.clouds.shape[1], "cpu")
    blocks = run.jepa.sample_blocks(run.generator)
    own = slice(run.rank, None, run.processes)  # all processes draw the same and take their clouds
    drawn = torch.from_numpy(index)[own], scale[own], angle[own], starts[own], *blocks
    if run.graph:  # filled there: a copy would wait for the step before
        tau = torch.full((), tau, dtype=torch.float64, device=run.device)
    return *(values.to(run.device, non_blocking=True) for values in drawn), tau


def pretraining_step(run, index, scale, angle, starts, hidden, visible, tau):
    """One step on the clouds `index` (B,): predict the targets, learn, move the target encoder by momentum tau.

    scale, angle: see `augment`; starts (B,): the points that patches start from; hidden (M, T), visible (C,): places
    in the patch sequence. -> loss, `spread` of targets and of predictions, whether all was finite: scalars.
    """
    clouds = augment(run.clouds[index], run.jepa.config, scale, angle)
    with autocast(run.device, run.precision):
        loss, targets, predictions = run.network(clouds, starts, (hidden, visible))
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for p in run.optimizer.param_groups[0]["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    run.optimizer.step()
    run.jepa.update_target(tau)
    return loss.detach(), spread(targets), spread(predictions), torch.isfinite(loss.detach() + norm)


def pretraining_loop(run):
    """Pretrain to the last step; raises KeyboardInterrupt once a Ctrl-C is saved."""
    args, progress = run.args, run.progress
    tau_start = first_tau(args.steps) if args.tau is None else args.tau
    stream = cloud_batches(len(run.clouds), args, progress.step)
    take_step = Graphs(functools.partial(pretraining_step, run), run.graph)
    marked, marked_step = time.perf_counter(), progress.step
    run.jepa.train()
    silent, alone = args.quiet or run.rank > 0, run.processes == 1
    with paced(progress, args.steps, "pretraining", run.device, silent, alone) as pace:
        while pace.goes_on():
            rate, tau = rate_at(progress.step, args.steps, args.lr), tau_at(progress.step, args.steps, tau_start)
            set_rate(run.optimizer.param_groups[0], rate)
            loss, target_std, prediction_std, finite = take_step(*draw_step(run, next(stream), tau))
            pace.count(finite)

            log_now, save_now = pace.due(args.log_every), pace.due(args.save_every) or pace.stop
            if log_now or save_now or pace.due(LOOK_EVERY):
                pace.look(functools.partial(shapes_in_batch, run), run.last, "--lr")
            if log_now:
                now = time.perf_counter()
                speed = (progress.step - marked_step) * args.batch / (now - marked)
                marked, marked_step = now, progress.step
                log_row(run, pace.bar, {
                    "step": progress.step, "loss": loss.item(), "tau": tau, "lr": rate, "clouds_per_s": round(speed, 1),
                    "target_std": target_std.item(), "prediction_std": prediction_std.item(),
                })  # fmt: skip
            if save_now:
                save_progress(run)


def log_row(run, bar, row):
    """Append a row to the curve and show it; warn where the features have collapsed."""
    run.progress.curve.append(row)
    if run.rank > 0:
        return
    write_csv(run.out.with_suffix(".csv"), run.progress.curve)
    spreads = row["target_std"], row["prediction_std"]
    bar.set_postfix_str(
        f"{row['clouds_per_s']:.0f} clouds/s, loss {row['loss']:.4f}, std {spreads[0]:.2f}/{spreads[1]:.2f}"
    )
    if row["step"] > WARMUP_SHARE * run.args.steps and min(spreads) < COLLAPSED:
        warning = f"warning: step {row['step']}: features collapse (std {spreads[0]:.3f}, {spreads[1]:.3f})"
        tqdm.write(warning, file=sys.stderr)


def shapes_in_batch(run, step):
    """The clouds that are in the batch of a step."""
    return "shapes " + " ".join(map(str, sorted(next(cloud_batches(len(run.clouds), run.args, step)))))


def save_progress(run):
    """Write .last.pt, from which --resume, and --start of another run, go on."""
    if run.rank > 0:
        return
    content = {
        "config": dataclasses.asdict(run.jepa.config), "jepa": run.jepa.state_dict(),
        "settings": run.settings, "step": run.progress.step, "product_library": fast.library,
        "device": run.device.type, "precision": run.precision,
    }  # fmt: skip
    save_last(run.last, content, run.optimizer, run.generator, dataclasses.asdict(run.progress))


def finish(run, argv):
    """Write the encoder and its card, and remove .last.pt; -> the card, None in a process that does not write."""
    if run.rank > 0:
        return None
    args, curve = run.args, run.progress.curve
    config = dataclasses.asdict(run.jepa.config)
    save_checkpoint(run.out, {"config": config, "encoder": run.jepa.encoder.state_dict(), "step": args.steps})
    start = ["torchrun", "--nproc-per-node", str(run.processes)] if run.processes > 1 else ["python"]
    norm = "per process" if run.processes > 1 and run.device.type == "cpu" else "over the batch"
    card = {
        "command": shlex.join([*start, "pretrain_jepa.py", *(sys.argv[1:] if argv is None else argv)]),
        "seed": args.seed, "settings": run.settings, "network": config, "shapes": len(run.clouds),
        "clouds_seen": args.steps * args.batch, "seconds": round(run.progress.seconds),
        "device": run.device.type, "precision": run.precision, "processes": run.processes,
        "batch_norm": norm, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "curve": curve[:: max(1, len(curve) // 50)],
    }  # fmt: skip
    write_json(run.out.with_suffix(".json"), card)
    run.last.unlink(missing_ok=True)
    print(
        f"saved {run.out} after {run.progress.seconds:.0f} s: loss {curve[-1]['loss']:.4f}, "
        f"std of targets {curve[-1]['target_std']:.2f}, of predictions {curve[-1]['prediction_std']:.2f}"
    )
    return card


@command
def main(argv=None):
    args = parse(argv)
    if args.benchmark:
        from lab.speed import time_pretraining  # the same as python -m lab.speed pretrain

        return time_pretraining(args, argv)
    device = set_up_torch(args.device, args.threads)
    rank, processes = join_processes(device)
    if args.batch % processes:
        raise UserError(f"--batch {args.batch}: must be a multiple of the {processes} processes")
    out = Path(args.out)
    check_output(args, out, out.with_suffix(".last.pt"))  # says what is wrong before anything is read
    jepa = None
    if args.start:
        jepa, reached = load_start(args)
        args.tau = reached if args.tau is None else args.tau
    config = jepa.config if jepa else resolve_config(args)
    clouds = torch.from_numpy(load_pool(args, config, rank, processes)).to(device)

    torch.manual_seed(stable_seed("pretrain-weights", args.seed))
    generator = torch.Generator().manual_seed(stable_seed("masks", args.seed))
    jepa = (jepa or fast.speed_up(PointJEPA(config))).to(device)
    if processes > 1:
        torch.manual_seed(stable_seed("pretrain-dropout", args.seed, rank))  # other dropout on other clouds
        if device.type == "cuda":  # on CPUs every process normalises its own share of the batch
            jepa = torch.nn.SyncBatchNorm.convert_sync_batchnorm(jepa)
    # on an H200 a step of `small` takes 5.8 ms in bf16, 6.3 in tf32; operation by operation 31 and 23 (`paper` 65, 94)
    graph = use_graph(device, args, processes)
    precision = set_precision(args.precision, device, "bf16" if graph or config.width >= WIDE else "tf32")
    optimizer = build_optimizer(jepa, args, graph)
    run = Pretraining(args, out, device, precision, clouds, jepa, optimizer, generator, Progress(), rank, processes)
    if rank == 0:
        num_parameters = sum(p.numel() for p in jepa.encoder.parameters())
        print(
            f"{out}: {len(clouds)} clouds, {num_parameters / 1e6:.2f} M encoder parameters, "
            f"{args.steps} steps of {args.batch}; {device.type}"
        )
        if args.start:
            start = f"on from {args.start}, step {jepa.step}"
            print(f"{start}: EMA momentum {args.tau:.5f} at the start, a fresh optimiser")
    writer = locked(out.with_name(f".{out.name}.lock")) if rank == 0 else contextlib.nullcontext(True)
    with writer as mine:
        if not mine:
            raise UserError(f"{out}: another process trains it; wait for it, or give another --out")
        if check_output(args, out, run.last):  # again: that other process may have just finished
            # or the bits would change where another processor goes on
            started = read_checkpoint(run.last)
            fast.use_library(started.get("product_library"))
            warn_if_moved(started, device, precision, run.last)
            run.progress = load_last(run.last, run.settings, "jepa", jepa, optimizer, generator, run.progress)
            if processes > 1:
                torch.manual_seed(stable_seed("pretrain-dropout", args.seed, rank, run.progress.step))
        pretraining_loop(run)
        card = finish(run, argv)
    if processes > 1:
        torch.distributed.destroy_process_group()
    return card


if __name__ == "__main__":
    main()
