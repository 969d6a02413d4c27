"""How fast a training step is on this machine, part by part, and what share of the machine's speed it reaches.

    python -m lab.speed train --preset paper        flags as of train.py
    python -m lab.speed pretrain --batch 16         flags as of pretrain_jepa.py; --json FILE keeps the figures

It times the very step that the training loop takes, on random clouds;
hooks watch the parts from outside:

    batch, data         up to the network: gathering or augmenting what the step needs
    grouping            normalisation, centers, patches; in pretraining their sequence and the masks too
    tokenizer, encoder, targets, predictor, pooling + head    as in model.py
    backward            the loss of fine-tuning, gradients, their norm
    optimiser           AdamW; in pretraining the moving average too

Two yardsticks take turns with the steps, at the same precision and threads: the product of two square matrices, by the
same library, and the copy of a large tensor. What a step needs of them lab/counts.py counts: the operations of its
matrix products, and the bytes that its operations read and write one by one, in bf16 half of those of float32. The
shares tell which of the two floors a step is near; over 100 % of the copy, tensors stay in a cache or are fused.

On a GPU every step is timed twice, operation by operation and as one CUDA graph (not with --no-graph), at each
precision, and there are two yardsticks: small matrices like those of the networks, and large ones that fill the GPU.
"""

import argparse
import dataclasses
import functools
import gc
import os
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
from cli.errors import UserError, command
from cli.flags import Parser
from data import GraspData
from files.writing import write_json
from lab.counts import TAU, pretraining_work, training_work
from loop import fast
from loop.graphs import WARM, Graphs
from loop.machine import computes_bf16, set_precision, set_up_torch
from loop.pace import LoopProgress, set_rate
from model import GraspModel, PointJEPA, start_points
from variants import add_lora

SECONDS = {"cpu": 12, "cuda": 4}  # per precision and number of threads
LEAST_ROUNDS = {"cpu": 2, "cuda": 20}  # of steps, whatever time they take
MOST_ROUNDS = 100
PRODUCT = 1024  # size of the square matrices whose product is the yardstick
LARGE_PRODUCT = 8192  # the same on a GPU, which needs so much to be busy
COPIED = 2**28  # bytes of the tensor whose copy is the other yardstick: more than any cache holds
GRASPS = (1, 32, 64)  # per object, in fine-tuning; 32 is the default of train.py


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
    take: Callable  # () -> (number of clouds or grasps in the step, its sizes for `work`)
    work: Callable  # sizes -> the `Work` of such a step
    watch: Stopwatch  # has laps at the parts of the step
    last_part: str = "optimiser"  # what follows the last of these laps


def product_speed(device, precision, size):
    """FLOP/s of the product of two size x size matrices at this precision, as the network makes its products."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.rand(2, size, size, device=device).to(dtype)  # constant ones would be easier on a GPU
    watch = Stopwatch(device)
    fast.linear(left, right)
    watch.start()
    for _ in range(10):
        fast.linear(left, right)
    watch.lap("product")
    return 10 * 2 * size**3 / watch.seconds()["product"]


def copy_speed(device):
    """Bytes per second that the copy of a large tensor reads and writes."""
    source = torch.zeros(COPIED // 4, device=device)
    target, watch = source.clone(), Stopwatch(device)
    watch.start()
    for _ in range(3):
        target.copy_(source)
    watch.lap("copy")
    return 3 * 2 * COPIED / watch.seconds()["copy"]


def forget_peak(device):
    """Let `peak_memory` start anew where that is possible, on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device):
    """Largest memory so far in MB: of the process, on CUDA of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


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
    """Time the `Steps` of make_kinds(precision), a list, at every setting of the machine.

    All kinds and the yardsticks take turns, so that a machine that is busy for a while is busy for all; the first
    round of each setting does not count. Times are medians. unit: what a step sees, "grasps" or "clouds".
    keep(lines, peak): called after every setting with a dict of figures per kind and setting so far, and the largest
    memory that steps took, MB. -> the two in the end.
    """
    lines, peak, before, settings = [], 0.0, torch.get_num_threads(), machine_settings(args, device)
    yardsticks = (PRODUCT, LARGE_PRODUCT) if device.type == "cuda" else (PRODUCT,)
    least, most = LEAST_ROUNDS[device.type], min(args.steps, MOST_ROUNDS)
    for precision, threads in tqdm(settings, desc="timing", unit="setting", disable=args.quiet or None):
        torch.set_num_threads(threads)
        set_precision(precision, device)
        kinds = kind = steps = taken = None  # with the networks and graphs of the setting before
        gc.collect()
        kinds = make_kinds(precision)
        products, taken, copies = {size: [] for size in yardsticks}, [[] for _ in kinds], []
        started = time.perf_counter()
        while len(copies) <= least or (time.perf_counter() - started < SECONDS[device.type] and len(copies) <= most):
            copies.append(copy_speed(device))
            for size, speeds in products.items():
                speeds.append(product_speed(device, precision, size))
            forget_peak(device)
            for kind, steps in zip(kinds, taken):
                kind.watch.start()
                count, sizes = kind.take()
                kind.watch.lap(kind.last_part)
                steps.append((count, sizes, kind.watch.seconds()))
            peak = max(peak, peak_memory(device))
        products = {size: statistics.median(speeds[1:]) for size, speeds in products.items()}
        for kind, steps in zip(kinds, taken):
            counted = [(count, kind.work(*sizes), seconds) for count, sizes, seconds in steps[1:]]
            width = 0.5 if precision == "bf16" else 1
            figures = step_figures(counted, unit, products, statistics.median(copies[1:]), width)
            lines.append({"precision": precision, "threads": threads, **kind.columns, **figures})
        keep(lines, peak)
    torch.set_num_threads(before)
    set_precision("fp32", device)
    return lines, peak


def step_figures(steps, unit, products, copying, width):
    """Time, speed against the yardsticks and shares of the parts, of steps given as (things, `Work`, seconds by part).

    products: size of a yardstick's matrices -> FLOP/s; copying: bytes/s; width: of a number, in those of float32.
    """
    seconds = [sum(parts.values()) for _, _, parts in steps]
    speed = statistics.median(work.flops / took for (_, work, _), took in zip(steps, seconds))
    moving = statistics.median(width * work.bytes / took for (_, work, _), took in zip(steps, seconds))
    figures = {
        "ms_per_step": 1e3 * statistics.median(seconds),
        f"{unit}_per_s": statistics.median(count / took for (count, _, _), took in zip(steps, seconds)),
        "gflop_per_step": statistics.mean(work.flops for _, work, _ in steps) / 1e9,
        "gbyte_per_step": width * statistics.mean(work.bytes for _, work, _ in steps) / 1e9,
        "gflop_per_s": speed / 1e9,
    }
    for size, product in products.items():
        name = "product" if size == PRODUCT else f"product_{size}"
        figures |= {f"{name}_gflop_per_s": product / 1e9, f"share_of_{name}": speed / product}
    figures |= {"copy_gbyte_per_s": copying / 1e9, "share_of_copy": moving / copying}
    shares = {part: sum(parts[part] for *_, parts in steps) / sum(seconds) for part in steps[0][2]}
    return figures | {"steps": len(steps), "shares": shares}


# ---------------------------------------------------------------- showing


def aligned(lines):
    """Dicts of equal keys as aligned lines under their names; numbers to one decimal."""
    cells = [[name.replace("_per_", "/").replace("_", " ") for name in lines[0]]]
    cells += [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in line.values()] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def percent(share):
    return f"{100 * share:.1f} %"


def write_times(config, argv, args, device, failures, lines, peak):
    """Write the figures so far with --json; -> what is written. failures: why graphs could not be captured."""
    content = {
        "command": shlex.join(["python", "-m", "lab.speed", *argv]),
        "device": device.type,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "product_library": fast.library,  # on a CPU, for float32
        "waiting": {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ},
        "peak_memory_mb": round(peak),
        "network": dataclasses.asdict(config),
        "rows": lines,
    }
    if device.type == "cuda":
        content["card"] = torch.cuda.get_device_name(device)
    if failures:
        content["not_captured"] = failures
    if args.json:
        write_json(args.json, content)
    return content


def show_times(content, unit):
    """Print what `write_times` wrote; -> that."""
    lines = content["rows"]
    names = list(lines[0])[: list(lines[0]).index("ms_per_step")]  # what was timed; then its figures
    figures = [*names, "ms_per_step", f"{unit}_per_s", *(name for name in lines[0] if name.endswith("gflop_per_s"))]
    of_products = {name: name.removeprefix("share_") for name in lines[0] if name.startswith("share_")}
    print(aligned([
        {name: line[name] for name in figures}
        | {shown: percent(line[name]) for name, shown in of_products.items()}
        for line in lines
    ]))  # fmt: skip
    print("\nshares of the time")
    print(aligned([
        {name: line[name] for name in names} | {part: percent(share) for part, share in line["shares"].items()}
        for line in lines
        if len(line["shares"]) > 1  # a graph is one part
    ]))  # fmt: skip
    memory = f"peak memory {content['peak_memory_mb']} MB"
    machine = content.get("card", content["device"])
    print(f"\n{machine}; {memory}; random clouds; FLOPs: matrix products (see lab/speed.py)")
    print(f"product: {PRODUCT} x {PRODUCT} matrices at the same precision and threads, taking turns with the steps")
    print("copy: of a large tensor; its share is the bytes of the step's operations over what it would move meanwhile")
    for reason in content.get("not_captured", ()):
        print(f"no graphs: {reason}")
    return content


# ---------------------------------------------------------------- the two scripts


def random_grasps(num_scenes, points, joints, grasps):
    """Data without a dataset: clouds and wrist positions within 20 cm, `grasps` to a scene."""
    rng = np.random.default_rng(0)
    scene = np.arange(num_scenes).repeat(grasps)
    positions, quaternions = 0.1 * rng.normal(size=(len(scene), 3)), rng.normal(size=(len(scene), 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return GraspData(
        root="random",
        scenes=[f"random/{i}/0" for i in range(num_scenes)],
        mesh_hashes=[],
        clouds=rng.uniform(0, 0.2, (num_scenes, points, 3)).astype(np.float32),
        poses=np.concatenate([positions, quaternions], 1).astype(np.float32),
        joints=rng.normal(size=(len(scene), joints)).astype(np.float32),
        scores=scene.astype(np.float32),
        scene=scene,
        row=scene,
        joint_names=[],
        excluded=[],
        num_low=0,
        fingerprint="",
    )


def graphs_to_time(args, device, failures=()):
    """Whether to time steps operation by operation (False), on a GPU as CUDA graphs too (True), unless one failed."""
    return (False, True) if device.type == "cuda" and not args.no_graph and not failures else (False,)


def step_columns(device, graph):
    """What a line says of the step's way to run where there are two."""
    return {"step": "graph" if graph else "eager"} if device.type == "cuda" else {}


def random_run(args, config, device, precision="fp32", graph=False):
    """A train.Run on random data, with a model of that `ModelConfig`; as many grasps per object as are ever timed."""
    args = argparse.Namespace(**vars(args) | {"no_graph": not graph})
    data = random_grasps(4 * args.objects_per_batch, config.points, config.joints, max(GRASPS))
    model = GraspModel(config)
    adapters = add_lora(model.encoder.transformer, args.lora) if args.lora else ()
    optimizer = train.build_optimizer(model.to(device), args, graph, adapters)
    train.set_learning_rates(optimizer, 0, args)
    train.training_mode(model, args)
    return train.Run(
        args=args, folder=Path(), device=device, precision=precision, graph=graph, data=data, split=None, model=model,
        optimizer=optimizer, generator=torch.Generator().manual_seed(0), progress=train.Progress(),
    )  # fmt: skip


def watch_training(run):
    """A stopwatch with laps at the parts of the run's steps."""
    watch, model = Stopwatch(run.device), run.model
    watch.until(model, "batch")
    if model.pool is not None:
        watch.until(model.encoder.embed, "grouping")
        watch.within(model.encoder.embed, "tokenizer")
        watch.within(model.encoder.transformer, "encoder")
    watch.within(model, "pooling + head")
    watch.until_optimizer(run.optimizer, "backward")
    return watch


def training_steps(run, step, grasps, work, watch):
    """`Steps` of fine-tuning by `step`, a `Graphs` as in the training loop, with `grasps` of each object."""
    args = argparse.Namespace(**vars(run.args) | {"grasps_per_object": grasps})
    stream = train.training_batches(run.data, np.arange(len(run.data.scene)), args, 0, run.device, pad=run.graph)
    stream = (batch for batch in stream if len(batch[0]) == args.objects_per_batch)  # an epoch's last may be smaller

    def take():
        scenes, rows, object_index, weights = next(stream)
        starts = start_points(run.generator, len(scenes), run.clouds.shape[1], run.device)
        step(scenes, rows, object_index, weights, starts)
        return len(rows), (len(scenes), len(rows))

    columns = step_columns(run.device, run.graph) | {"objects": args.objects_per_batch, "grasps_per_object": grasps}
    return Steps(columns, take, work, watch)


def as_graphs(kinds, failures):
    """`Steps` on CUDA whose graphs are captured before they are timed; [] and a reason in `failures` if one fails."""
    try:
        for _ in range(WARM + 1):
            for kind in kinds:
                kind.take()
    except UserError as error:
        failures.append(str(error))
        return []
    return [dataclasses.replace(kind, last_part="graph") for kind in kinds]


def time_training(args, argv):
    """Time `training_step` with few and many grasps per object; args, argv: of train.py. -> what --json writes."""
    device = set_up_torch(args.device, args.threads)
    config, _ = train.resolve_network(args)
    work, failures = training_work(random_run(args, config, device)), []

    def make_kinds(precision):
        kinds = []
        for graph in graphs_to_time(args, device, failures):
            run = random_run(args, config, device, precision, graph)
            watch = Stopwatch(device) if graph else watch_training(run)
            step = Graphs(functools.partial(train.training_step, run), graph)
            timed = [training_steps(run, step, grasps, work, watch) for grasps in GRASPS]
            kinds += as_graphs(timed, failures) if graph else timed
        return kinds

    write = functools.partial(write_times, config, argv, args, device, failures)
    return show_times(write(*time_steps(make_kinds, args, device, "grasps", write)), "grasps")


def random_pretraining(args, config, device, precision="fp32", graph=False):
    """A pretrain_jepa.Pretraining on random clouds, with a network of that `ModelConfig`."""
    args = argparse.Namespace(**vars(args) | {"no_graph": not graph})
    generator, jepa = torch.Generator().manual_seed(0), PointJEPA(config).to(device)
    optimizer = pretrain_jepa.build_optimizer(jepa, args, graph)
    set_rate(optimizer.param_groups[0], args.lr)
    clouds = torch.rand(4 * args.batch, config.points, 3, generator=generator).to(device)
    progress = LoopProgress()
    return pretrain_jepa.Pretraining(
        args, Path("no.pt"), device, precision, graph, clouds, jepa, optimizer, generator, progress
    )


def watch_pretraining(run):
    """A stopwatch with laps at the parts of the pretraining's steps."""
    watch, jepa = Stopwatch(run.device), run.jepa
    watch.until(jepa, "data")
    watch.until(jepa.encoder.embed, "grouping")
    watch.within(jepa.encoder.embed, "tokenizer")
    watch.until(jepa.encoder.transformer, "targets")
    watch.within(jepa.encoder.transformer, "encoder")
    watch.within(jepa, "predictor")
    watch.until_optimizer(run.optimizer, "backward")
    return watch


def middling_blocks(run):
    """Blocks of a middling size: hidden (M, T) and visible (C,), on the run's device."""
    drawn = [run.jepa.sample_blocks(run.generator) for _ in range(101)]
    drawn.sort(key=lambda blocks: sum(places.numel() for places in blocks))
    return [places.to(run.device) for places in drawn[50]]


def pretraining_steps(run, work, watch):
    """`Steps` of pretraining, whose blocks and with them the amount of work are drawn anew each time, on a GPU once."""
    stream = pretrain_jepa.cloud_batches(len(run.clouds), run.args, 0)
    step = Graphs(functools.partial(pretrain_jepa.pretraining_step, run), run.graph)
    # on a GPU every size has a graph of its own, of which one is timed, and the same without a graph
    held = middling_blocks(run) if run.device.type == "cuda" else None

    def take():
        index, scale, angle, starts, hidden, visible, tau = pretrain_jepa.draw_step(run, next(stream), TAU)
        hidden, visible = held or (hidden, visible)
        step(index, scale, angle, starts, hidden, visible, tau)
        return run.args.batch, (len(visible), *hidden.shape)

    return Steps(step_columns(run.device, run.graph) | {"batch": run.args.batch}, take, work, watch)


def time_pretraining(args, argv):
    """Time `pretraining_step`; args, argv: of pretrain_jepa.py. -> what --json writes."""
    device = set_up_torch(args.device, args.threads)
    config = pretrain_jepa.load_start(args)[0].config if args.start else pretrain_jepa.resolve_config(args)
    work, failures = pretraining_work(random_pretraining(args, config, device)), []

    def make_kinds(precision):
        kinds = []
        for graph in graphs_to_time(args, device, failures):
            run = random_pretraining(args, config, device, precision, graph)
            watch = Stopwatch(device) if graph else watch_pretraining(run)
            timed = [pretraining_steps(run, work, watch)]
            kinds += as_graphs(timed, failures) if graph else timed
        return kinds

    write = functools.partial(write_times, config, argv, args, device, failures)
    return show_times(write(*time_steps(make_kinds, args, device, "clouds", write)), "clouds")


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(__doc__)
    parser.add_argument("script", choices=("train", "pretrain"), help="whose step to time; that script's flags follow")
    parser.add_argument("--json", metavar="FILE", help="write what is measured here too")
    own, words = parser.parse_known_args(argv)
    script, time_its_step = {"train": (train, time_training), "pretrain": (pretrain_jepa, time_pretraining)}[own.script]
    args = script.parse(words)
    args.json = own.json
    return time_its_step(args, argv)


if __name__ == "__main__":
    main()
