"""How fast a training step is on this machine, part by part.

    python -m lab.speed train --preset paper        flags as of train.py
    python -m lab.speed pretrain --batch 16         flags as of pretrain_jepa.py; --json FILE keeps the figures

The very step of the training loop is timed, on random clouds, and hooks watch its parts from outside:

    batch, data         up to the network: gathering or augmenting what the step needs
    grouping            normalisation, centers, patches; in pretraining their sequence and the masks too
    tokenizer, encoder, targets, predictor, pooling + head    as in model.py
    backward            the loss of fine-tuning, gradients, their norm
    optimiser           AdamW; in pretraining the moving average too

Every precision that pays on this machine is timed, on a CPU with one thread and two; on a GPU each step operation by
operation ("eager") and as one CUDA graph, which has no parts (not with --no-graph). Times are medians.
"""

import argparse
import dataclasses
import functools
import itertools
import shlex
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Callable

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch
from tqdm import tqdm

import pretrain_jepa
import train
from cli.errors import command
from cli.flags import Parser
from data import GraspData
from files.writing import write_json
from loop import fast
from loop.graphs import WARM, Graphs
from loop.machine import computes_bf16, peak_memory, reset_peak_memory, set_precision, set_up_torch
from loop.pace import set_rate
from model import PointJEPA, start_points
from variants import add_lora

SECONDS = {"cpu": 12, "cuda": 4}  # for each precision and number of threads
LEAST_ROUNDS = {"cpu": 2, "cuda": 20}  # of steps, whatever time they take
MOST_ROUNDS = 100
GRASPS = (1, 32, 64)  # per object, in fine-tuning; 32 is the default of train.py
TAU = 0.999  # EMA momentum in pretraining; its value costs nothing


# ---------------------------------------------------------------- timing


class Stopwatch:
    """Gives the seconds since `start` to parts: `lap(part)` ends a part, which may have several laps.

    On a GPU laps are marks in its stream of work, which it passes when it gets there; nothing waits for them.
    """

    def __init__(self, device):
        self.device, self.laps = device, []

    def mark(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.laps = [("start", self.mark())]

    def lap(self, part):
        self.laps.append((part, self.mark()))

    def seconds(self):
        """Part -> seconds, in the order of the laps."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        total = {}
        for (_, begin), (part, end) in pairwise(self.laps):
            took = begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin
            total[part] = total.get(part, 0.0) + took
        return total

    def until(self, module, part):
        """A lap whenever `module` begins."""
        module.register_forward_pre_hook(lambda *_: self.lap(part))

    def within(self, module, part):
        """A lap whenever `module` ends."""
        module.register_forward_hook(lambda *_: self.lap(part))

    def until_optimizer(self, optimizer, part):
        """A lap whenever `optimizer` begins."""
        optimizer.register_step_pre_hook(lambda *_: self.lap(part))


@dataclasses.dataclass
class Steps:
    """Steps of one kind, timed beside others."""

    columns: dict  # what the printed lines say of them
    take: Callable  # () -> number of clouds or grasps in the step
    watch: Stopwatch  # has laps at the parts of the step
    last_part: str  # what follows the last of these laps


def machine_settings(args, device):
    """(precision, threads) to time: all that pay off here, 1 and 2 threads on a CPU, unless the flags name one."""
    precisions = ("fp32", "bf16") if computes_bf16(device) else ("fp32",)
    if device.type == "cuda":
        precisions = ("fp32", "tf32", "bf16")
    if args.precision != "auto":
        precisions = (args.precision,)
    threads = (1, 2)
    if args.threads or device.type == "cuda":
        threads = (args.threads or torch.get_num_threads(),)
    return [(precision, count) for precision in precisions for count in threads]


def time_steps(make_kinds, args, device, unit, keep):
    """Time the `Steps` of make_kinds(precision), a list, at every setting of the machine; keep(lines) after each.

    Kinds take turns, so that a machine that is busy for a while is busy for all; the first round does not count.
    unit: what a step sees, "grasps" or "clouds"; lines: a dict of figures per kind and setting so far.
    """
    lines, before = [], torch.get_num_threads()
    least, most = LEAST_ROUNDS[device.type], min(args.steps, MOST_ROUNDS)
    for precision, threads in tqdm(machine_settings(args, device), "timing", disable=args.quiet or None):
        torch.set_num_threads(threads)
        set_precision(precision, device)
        kinds = make_kinds(precision)
        taken, started = [[] for _ in kinds], time.perf_counter()
        for done in itertools.count():
            if done > least and (done > most or time.perf_counter() - started > SECONDS[device.type]):
                break
            for kind, steps in zip(kinds, taken):
                kind.watch.start()
                count = kind.take()
                kind.watch.lap(kind.last_part)
                steps.append((count, kind.watch.seconds()))
        for kind, steps in zip(kinds, taken):
            figures = step_figures(steps[1:], unit)
            lines.append({"precision": precision, "threads": threads, **kind.columns, **figures})
        keep(lines)
    torch.set_num_threads(before)
    set_precision("fp32", device)


def step_figures(steps, unit):
    """Median time and rate, and shares of the parts, of steps given as (how many things, seconds by part)."""
    seconds = [sum(parts.values()) for _, parts in steps]
    return {
        "ms_per_step": 1e3 * statistics.median(seconds),
        f"{unit}_per_s": statistics.median(count / took for (count, _), took in zip(steps, seconds)),
        "steps": len(steps),
        "shares": {part: sum(parts[part] for _, parts in steps) / sum(seconds) for part in steps[0][1]},
    }


def make_kinds(script, args, config, device, precision):
    """`Steps` of a script operation by operation, on a GPU as CUDA graphs too, captured before they are timed."""
    random_run, watch_parts, steps_of, _ = SCRIPTS[script]
    kinds = []
    for graph in (False, True) if device.type == "cuda" and not args.no_graph else (False,):
        run, watch = random_run(args, config, device, precision, graph), Stopwatch(device)
        if not graph:
            watch_parts(run, watch)
        for columns, take in steps_of(run):
            for _ in range((WARM + 1) * graph):
                take()
            mode = {"step": "graph" if graph else "eager"} if device.type == "cuda" else {}
            kinds.append(Steps(mode | columns, take, watch, "graph" if graph else "optimiser"))
    return kinds


# ---------------------------------------------------------------- steps of fine-tuning


def random_grasps(num_scenes, points, joints, grasps):
    """Data without a dataset: clouds and wrist positions within 20 cm, `grasps` to a scene."""
    rng = np.random.default_rng(0)
    scene = np.arange(num_scenes).repeat(grasps)
    positions, quaternions = 0.1 * rng.normal(size=(len(scene), 3)), rng.normal(size=(len(scene), 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return GraspData(
        root="random", scenes=[f"random/{i}/0" for i in range(num_scenes)], mesh_hashes=[],
        clouds=rng.uniform(0, 0.2, (num_scenes, points, 3)).astype(np.float32),
        poses=np.concatenate([positions, quaternions], 1).astype(np.float32),
        joints=rng.normal(size=(len(scene), joints)).astype(np.float32), scores=scene.astype(np.float32),
        scene=scene, row=scene, joint_names=[], excluded=[], num_low=0, fingerprint="",
    )  # fmt: skip


def random_run(args, config, device, precision="fp32", graph=False):
    """A train.Run on random data, with a model of that `ModelConfig`; as many grasps per object as are ever timed."""
    data = random_grasps(4 * args.objects_per_batch, config.points, config.joints, max(GRASPS))
    model = train.build_model(config, None, data, np.arange(len(data.scene)), args)
    adapters = add_lora(model.encoder.transformer, args.lora) if args.lora else ()
    optimizer = train.build_optimizer(model.to(device), args, graph, adapters)
    train.set_learning_rates(optimizer, 0, args)
    train.training_mode(model, args)
    return train.Run(
        args=args, folder=Path(), device=device, precision=precision, graph=graph, data=data, split=None, model=model,
        optimizer=optimizer, generator=torch.Generator().manual_seed(0), progress=train.Progress(),
    )  # fmt: skip


def watch_training(run, watch):
    """Laps at the parts of the run's steps."""
    model = run.model
    watch.until(model, "batch")
    if model.pool is not None:
        watch.until(model.encoder.embed, "grouping")
        watch.within(model.encoder.embed, "tokenizer")
        watch.within(model.encoder.transformer, "encoder")
    watch.within(model, "pooling + head")
    watch.until_optimizer(run.optimizer, "backward")


def training_steps(run):
    """[(columns, take)]: fine-tuning as in the training loop, with few and many grasps of each object."""
    step = Graphs(functools.partial(train.training_step, run), run.graph)

    def steps_with(grasps):
        args = argparse.Namespace(**vars(run.args) | {"grasps_per_object": grasps})
        stream = train.training_batches(run.data, np.arange(len(run.data.scene)), args, 0, run.device, pad=run.graph)
        whole = (batch for batch in stream if len(batch[0]) == args.objects_per_batch)  # an epoch's last may be smaller

        def take():
            scenes, rows, object_index, weights = next(whole)
            starts = start_points(run.generator, len(scenes), run.clouds.shape[1], run.device)
            step(scenes, rows, object_index, weights, starts)
            return len(rows)

        return {"objects": args.objects_per_batch, "grasps_per_object": grasps}, take

    return [steps_with(grasps) for grasps in GRASPS]


# ---------------------------------------------------------------- steps of pretraining


def random_pretraining(args, config, device, precision="fp32", graph=False):
    """A pretrain_jepa.Pretraining on random clouds, with a network of that `ModelConfig`."""
    args = argparse.Namespace(**vars(args) | {"no_graph": not graph, "precision": precision})
    clouds = np.random.default_rng(0).random((4 * args.batch, config.points, 3), dtype=np.float32)
    run = pretrain_jepa.make_run(args, device, fast.speed_up(PointJEPA(config)), clouds, rank=0, processes=1)
    set_rate(run.optimizer.param_groups[0], args.lr)
    return run


def watch_pretraining(run, watch):
    """Laps at the parts of the pretraining's steps."""
    jepa = run.jepa
    watch.until(jepa, "data")
    watch.until(jepa.encoder.embed, "grouping")
    watch.within(jepa.encoder.embed, "tokenizer")
    watch.until(jepa.encoder.transformer, "targets")
    watch.within(jepa.encoder.transformer, "encoder")
    watch.within(jepa, "predictor")
    watch.until_optimizer(run.optimizer, "backward")


def middling_blocks(run):
    """Blocks of a middling size: hidden (M, T) and visible (C,), on the run's device."""
    drawn = [run.jepa.sample_blocks(run.generator) for _ in range(101)]
    drawn.sort(key=lambda blocks: sum(places.numel() for places in blocks))
    return [places.to(run.device) for places in drawn[50]]


def pretraining_steps(run):
    """[(columns, take)]: pretraining, whose blocks and with them its work are drawn anew each time, on a GPU once."""
    stream = pretrain_jepa.cloud_batches(len(run.clouds), run.args, 0)
    step = Graphs(functools.partial(pretrain_jepa.pretraining_step, run), run.graph)
    # on a GPU every size has a graph of its own, of which one is timed, and the same without a graph
    held = middling_blocks(run) if run.device.type == "cuda" else None

    def take():
        index, scale, angle, starts, hidden, visible, tau = pretrain_jepa.draw_step(run, next(stream), TAU)
        hidden, visible = held or (hidden, visible)
        step(index, scale, angle, starts, hidden, visible, tau)
        return run.args.batch

    return [({"batch": run.args.batch}, take)]


SCRIPTS = {  # a run on random data, laps at its parts, its steps, and what a step sees
    "train": (random_run, watch_training, training_steps, "grasps"),
    "pretrain": (random_pretraining, watch_pretraining, pretraining_steps, "clouds"),
}


# ---------------------------------------------------------------- the command


def aligned(lines):
    """Dicts of equal keys as aligned lines under their names; numbers to one decimal."""
    cells = [[name.replace("_per_", "/").replace("_", " ") for name in lines[0]]]
    cells += [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in line.values()] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def show_times(content):
    """Print what is written with --json."""
    names = [name for name in content["rows"][0] if name not in ("steps", "shares")]
    print(aligned([{name: line[name] for name in names} for line in content["rows"]]))
    print("\nshares of the time, %")
    print(aligned([
        {name: line[name] for name in names[:-2]} | {part: 100 * share for part, share in line["shares"].items()}
        for line in content["rows"] if len(line["shares"]) > 1  # a graph is one part
    ]))  # fmt: skip
    print(f"\n{content['machine']}; peak memory {content['peak_memory_mb']} MB; random clouds")


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(__doc__)
    parser.add_argument("script", choices=("train", "pretrain"), help="whose step to time; that script's flags follow")
    parser.add_argument("--json", metavar="FILE", help="write what is measured here too")
    own, words = parser.parse_known_args(argv)
    if own.script == "train":
        args = train.parse(words)
        config = train.resolve_network(args)[0]
    else:
        args = pretrain_jepa.parse(words)
        config = pretrain_jepa.build_jepa(args).config
    device = set_up_torch(args.device, args.threads)
    content = {
        "command": shlex.join(["python", "-m", "lab.speed", *argv]), "device": device.type, "torch": torch.__version__,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(), "product_library": fast.library,
        "network": dataclasses.asdict(config),
    }  # fmt: skip

    def keep(lines):
        content.update(peak_memory_mb=round(peak_memory(device) / 1e6), rows=lines)
        if own.json:  # after every setting: a machine that is lent for minutes may be gone at any time
            write_json(own.json, content)

    reset_peak_memory(device)
    time_steps(
        functools.partial(make_kinds, own.script, args, config, device), args, device, SCRIPTS[own.script][-1], keep
    )
    show_times(content)
    return content


if __name__ == "__main__":
    main()
