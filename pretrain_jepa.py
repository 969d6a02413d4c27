"""Point-JEPA pretraining: predict the latents of hidden blocks of patches (Saito et al. 2024).

    python pretrain_jepa.py --out my_encoder.pt                   on shapes of the benchmark's generator
    python pretrain_jepa.py --clouds FOLDER --out my_encoder.pt   meshes or .npy clouds of your own
    python train.py --init jepa --jepa-ckpt my_encoder.pt         fine-tune from it

Writes OUT (the encoder), OUT with _predictor.pt (what walkthrough.py needs besides, to show how it was pretrained), OUT
with .json (its card: settings, shapes seen, wall time), OUT with .csv (its curve) and, for --resume, OUT with .last.pt.
"""

import dataclasses
import functools
import hashlib
import shlex
import sys
from pathlib import Path

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch
from tqdm import tqdm

from benchmark.clouds import add_cloud_flags, load_clouds
from cli.errors import command, refuse
from cli.flags import Parser, file_name, number
from files.checkpoints import save_checkpoint, save_predictor
from files.config import CHOICES, LEAST_PATCHES, changed
from files.writing import check_writable, stable_seed, write_csv, write_json
from loop.fast import exact_products, speed_up
from loop.flags import add_encoder_flags, add_machine_flags, given_flags
from loop.graphs import Graphs
from loop.machine import WIDE, autocast, set_precision, set_up_torch
from loop.pace import LOOK_EVERY, LoopProgress, adamw, paced, set_rate, warmup_cosine
from loop.runs import held, load_last, run_settings, save_last
from model import PRESETS, PRETRAINING, PointJEPA, normalize_clouds, start_points

PUBLISHED_STEPS = 40_500  # of Point-JEPA
WARMUP_SHARE = 30 / 500  # of Point-JEPA's 500 epochs
FIRST_RATE, LAST_RATE = 1e-5, 1e-6  # where the learning rate starts and ends
LAST_TAU = 0.99999
# how a pretraining is watched and where it goes; everything else is its identity
NOT_SETTINGS = ("out", "resume", "overwrite", "quiet", "log_every", "save_every", "no_graph", "skip_bad")
COLLAPSED = 0.05  # standard deviation per feature; targets have 1 by construction when healthy


# ---------------------------------------------------------------- settings
def build_parser():
    parser = Parser(__doc__)
    count, share, own = number(int, 1), number(float, above=0, high=1), "(default: the preset's)"
    add_cloud_flags(parser)

    flag = parser.add_argument_group("network").add_argument
    flag("--preset", choices=tuple(PRESETS), default="small", help="network size")
    flag("--width", type=count, metavar="N", help=f"features per token, a multiple of the heads and of 4 {own}")
    flag("--depth", type=count, metavar="N", help=f"blocks of the encoder {own}")
    flag("--up", choices=CHOICES["up"], help=f"vertical axis of the clouds, which augmentation rotates about {own}")
    add_encoder_flags(flag, own, LEAST_PATCHES)

    flag = parser.add_argument_group("objective").add_argument
    flag("--target-norm", choices=CHOICES["target_norm"], help="targets are normalised over features and, with "
         f"'instance', over the tokens of a cloud; the original stops at 'layer' {own}")  # fmt: skip
    flag("--context-low", type=share, metavar="SHARE", help="least share of the patches outside all targets that the "
         f"context takes; 0.4 in Point-JEPA {own}")  # fmt: skip
    flag("--context-high", type=share, metavar="SHARE", help=f"largest such share; 0.75 in Point-JEPA {own}")

    flag = parser.add_argument_group("training").add_argument
    flag("--steps", type=count, default=9000, metavar="N", help="optimiser steps")
    flag("--batch", type=number(int, 2), default=64, metavar="N", help="clouds per step")
    flag("--lr", type=number(float, above=0), default=1e-3, help="peak learning rate")
    flag("--weight-decay", type=number(float, 0), default=0.05, help="AdamW's, on all parameters")
    flag("--tau", type=number(float, 0, 1), help="EMA momentum at the start (default: scaled to --steps)")
    flag("--save-every", type=count, default=500, metavar="N", help="steps between checkpoints for --resume")
    flag("--log-every", type=count, default=100, metavar="N", help="steps between rows of the curve")
    flag("--seed", type=number(int, 0), default=0, help="of shapes, weights, batches and masks")
    add_machine_flags(parser)

    group = parser.add_argument_group("output")
    flag, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    flag("--out", type=file_name(".pt"), default="runs/pretrained.pt", metavar="FILE",
         help="the encoder checkpoint, a .pt; card, curve and .last.pt have its name")  # fmt: skip
    either("--resume", action="store_true", help="go on from OUT's .last.pt, to the same result")
    either("--overwrite", action="store_true", help="start anew even if OUT is there")
    return parser


def parse(argv):
    """The arguments, none of which would do nothing."""
    parser = build_parser()
    args = parser.parse_args(argv)
    refuse(Path(args.out).is_dir(), f"--out {args.out}: is a folder; name a file that ends in .pt")
    synthetic, own_number = args.clouds == "synthetic", args.num_clouds != parser.get_default("num_clouds")
    refuse(synthetic and args.skip_bad, "--skip-bad goes with a folder of --clouds; leave it out")
    refuse(own_number and not synthetic, "--num-clouds goes with --clouds synthetic; leave it out")
    return args


def unfinished_run(args):
    """Stop where OUT or its unfinished run would be lost; -> whether there is a run to go on with."""
    out, last = Path(args.out), Path(args.out).with_suffix(".last.pt")
    unfinished = args.resume and last.exists()  # also where it was stopped between its last files
    refuse(out.exists() and not (args.overwrite or unfinished), f"{out}: is there; give --overwrite or another --out")
    anew = "give --resume to go on or --overwrite to start anew"
    refuse(last.exists() and not (args.resume or args.overwrite), f"{last}: an unfinished run; {anew}")
    return unfinished


# ---------------------------------------------------------------- batches
def draw_augmentation(count, generator):
    """Factors per axis (B, 1, 3) in 0.8 … 1.2, and turns about the vertical (B,) rad, of B clouds."""
    # DEVIATION: every sample draws its own; the original draws once per batch
    scale = 0.8 + 0.4 * torch.rand(count, 1, 3, generator=generator)
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
    with exact_products():
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


# ---------------------------------------------------------------- one run
@dataclasses.dataclass
class Pretraining:
    """Everything that the loop works with, made by `make_run`."""

    args: object  # the flags
    out: Path
    device: torch.device
    precision: str  # fp32, tf32 or bf16
    graph: bool  # whether steps run as CUDA graphs
    clouds: torch.Tensor  # (n, N, 3) float32, m or any unit
    jepa: PointJEPA
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of augmentation, patch starts and masks, on the CPU
    progress: LoopProgress

    def __post_init__(self):
        self.last = self.out.with_suffix(".last.pt")  # which --resume goes on from
        # settings of the flags, and the clouds themselves: a folder may have changed before --resume
        pool = hashlib.sha256(self.clouds.cpu().numpy().tobytes()).hexdigest()[:16]
        self.settings = run_settings(self.args, NOT_SETTINGS) | {"clouds_sha256": pool}


def build_jepa(args, network=PointJEPA):
    """The `PointJEPA`, or a class made of it, before step 1, random by --seed."""
    torch.manual_seed(stable_seed("pretrain-weights", args.seed))
    return speed_up(network(changed(PRESETS[args.preset], **given_flags(args), **PRETRAINING)))


def make_run(args, device, jepa, clouds):
    """The `Pretraining` before step 1 on this device."""
    jepa, config = jepa.to(device), jepa.config
    # on an H200 a step of `small` takes 5.8 ms in bf16, 6.3 in tf32; operation by operation 31 and 23 (`paper` 65, 94)
    graph = device.type == "cuda" and not args.no_graph
    precision = set_precision(args.precision, device, "bf16" if graph or config.width >= WIDE else "tf32")
    optimizer = adamw([{"params": [p for p in jepa.parameters() if p.requires_grad]}], args.weight_decay, graph)
    generator = torch.Generator().manual_seed(stable_seed("masks", args.seed))
    out, clouds = Path(args.out), torch.from_numpy(clouds).to(device)
    return Pretraining(args, out, device, precision, graph, clouds, jepa, optimizer, generator, LoopProgress())


# ---------------------------------------------------------------- the loop
def draw_step(run, index, tau):
    """All that is random in a step on the clouds `index` (batch,), drawn on the CPU: the arguments of the step."""
    scale, angle = draw_augmentation(len(index), run.generator)
    starts = start_points(run.generator, len(index), run.clouds.shape[1], "cpu")
    blocks = run.jepa.sample_blocks(run.generator)
    drawn = torch.from_numpy(index), scale, angle, starts, *blocks
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
        loss, targets, predictions = run.jepa(clouds, starts, (hidden, visible))
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
    take_step = functools.partial(pretraining_step, run)
    take_step = Graphs(take_step) if run.graph else take_step
    run.jepa.train()
    with paced(progress, args.steps, "pretraining", run.device, args.quiet) as pace:
        while pace.goes_on():
            rate, tau = rate_at(progress.step, args.steps, args.lr), tau_at(progress.step, args.steps, tau_start)
            set_rate(run.optimizer.param_groups[0], rate)
            loss, target_std, prediction_std, finite = take_step(*draw_step(run, next(stream), tau))
            pace.count(finite)

            log_now, save_now = pace.due(args.log_every), pace.due(args.save_every) or pace.stop
            if log_now or save_now or pace.due(LOOK_EVERY):
                pace.look(run.last, "--lr")
            if log_now:
                log_row(run, pace.bar, {
                    "step": progress.step, "loss": loss.item(), "tau": tau, "lr": rate,
                    "clouds_per_s": round(progress.step * args.batch / progress.seconds, 1),
                    "target_std": target_std.item(), "prediction_std": prediction_std.item(),
                })  # fmt: skip
            if save_now:
                config = dataclasses.asdict(run.jepa.config)  # `load_with_predictor` reads it
                save_last(run, {"config": config, "jepa": run.jepa.state_dict(), "step": progress.step})


def log_row(run, bar, row):
    """Append a row to the curve and show it; warn where the features have collapsed."""
    run.progress.rows.append(row)
    write_csv(run.out.with_suffix(".csv"), run.progress.rows)
    spreads = row["target_std"], row["prediction_std"]
    std = "{:.2f}/{:.2f}".format(*spreads)
    bar.set_postfix_str(f"{row['clouds_per_s']:.0f} clouds/s, loss {row['loss']:.4f}, std {std}")
    if row["step"] > WARMUP_SHARE * run.args.steps and min(spreads) < COLLAPSED:
        tqdm.write(f"warning: step {row['step']}: features collapse (std {std})", file=sys.stderr)


# ---------------------------------------------------------------- from the flags to the encoder
def finish(run, words):
    """Write the encoder, its predictor and its card, and remove .last.pt; words: the command's; -> the card."""
    args, curve, config = run.args, run.progress.rows, dataclasses.asdict(run.jepa.config)
    save_checkpoint(run.out, {"config": config, "encoder": run.jepa.encoder.state_dict(), "step": args.steps})
    save_predictor(run.jepa, run.out)
    card = {
        "command": shlex.join(["python", *words]),
        "seed": args.seed, "settings": run.settings, "network": config, "shapes": len(run.clouds),
        "clouds_seen": args.steps * args.batch, "seconds": round(run.progress.seconds),
        "device": run.device.type, "precision": run.precision, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "curve": curve[:: max(1, len(curve) // 50)],
    }  # fmt: skip
    write_json(run.out.with_suffix(".json"), card)
    run.last.unlink(missing_ok=True)
    print(
        f"saved {run.out} after {run.progress.seconds:.0f} s: loss {curve[-1]['loss']:.4f}, "
        f"std of targets {curve[-1]['target_std']:.2f}, of predictions {curve[-1]['prediction_std']:.2f}"
    )
    return card


def pretrain(argv, script=("pretrain_jepa.py",), network=PointJEPA, load=load_clouds):
    """Pretrain as the flags say; -> the card.

    script: words of the command, for the card; network: a `PointJEPA` or a class made of it; load: of its clouds.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    device = set_up_torch(args.device, args.threads)
    check_writable(Path(args.out).parent, "--out")
    unfinished_run(args)  # says what is wrong before anything is read
    jepa = build_jepa(args, network)
    clouds = load(args, jepa.config.points, jepa.config.up)
    refuse(len(clouds) < args.batch, f"--batch {args.batch}: only {len(clouds)} clouds; take a smaller batch")
    run = make_run(args, device, jepa, clouds)
    size = f"{sum(p.numel() for p in jepa.encoder.parameters()) / 1e6:.2f} M encoder parameters"
    print(f"{run.out}: {len(clouds)} clouds, {size}, {args.steps} steps of {args.batch}; {device.type}")
    with held(run.out, run.out.with_name(f".{run.out.name}.lock"), "--out"):
        if unfinished_run(args):  # again: another process may have just finished it
            load_last(run, "jepa", run.jepa)
        pretraining_loop(run)
        return finish(run, [*script, *argv])


@command
def main(argv=None):
    return pretrain(argv)


if __name__ == "__main__":
    main()
