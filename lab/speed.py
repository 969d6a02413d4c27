"""What --benchmark of both training scripts is made of: operation counts, a stopwatch, the measurement, its table.

FLOPs are those of the matrix products that a step executes, two for a multiplication and its addition. A linear
layer of `rows` x in -> out takes 2 · rows · in · out forward and as much for each of its two gradients; layers on
bare coordinates, which need no gradient, spare one of them. Elementwise work, norms and distances count nothing.
Not part of the training: `python train.py --benchmark` and `python pretrain_jepa.py --benchmark` print the result.
"""

import dataclasses
import shlex
import statistics
import sys
import time
from itertools import pairwise

import torch
from tqdm import tqdm

from plumbing.common import computes_bf16, write_json
from model import NO_ENCODER, POSITION_HIDDEN, PROBES, linear

SECONDS = 12  # per precision and number of threads; at least two rounds of steps
PRODUCT = 1024  # size of the square matrices whose product is the yardstick


# ---------------------------------------------------------------- operation counts


def linear_flops(rows, *widths):
    """Linear layers one after another, forward."""
    return sum(2 * rows * left * right for left, right in pairwise(widths))


def transformer_flops(sequences, tokens, width, depth):
    """Blocks: qkv, projection, MLP of ratio 4, and the two products of attention, forward."""
    rows = sequences * tokens
    linear = linear_flops(rows, width, 3 * width) + linear_flops(rows, width, width) + linear_flops(rows, width, 4 * width, width)
    return depth * (linear + 2 * 2 * rows * tokens * width)


def tokenizer_flops(config, clouds):
    """The mini-PointNet, the pooled half of whose second stage runs once per patch -> forward, backward."""
    patches, points = clouds * config.patches, clouds * config.patches * config.patch_size
    forward = linear_flops(points, 3, config.w1, config.w2) + linear_flops(patches, config.w2, config.w3)
    forward += linear_flops(points, config.w2, config.w3, config.width)
    return forward, 2 * forward - linear_flops(points, 3, config.w1)


def position_flops(rows, width):
    """The positional encoding -> forward, backward."""
    forward = linear_flops(rows, 3, POSITION_HIDDEN, width)
    return forward, 2 * forward - linear_flops(rows, 3, POSITION_HIDDEN)


def pooling_flops(model, objects, grasps):
    """Attention or hand pooling of a GraspModel -> forward, backward."""
    config = model.config
    width, tokens = config.width, objects * config.patches
    if config.pool.startswith("attention"):
        forward = linear_flops(tokens, width, 2 * width) + 2 * linear_flops(objects, width, width)  # keys and values; query, out
        forward += 2 * 2 * tokens * width
        return forward, 2 * forward
    if config.pool == "hand":
        rows, hidden, heads = grasps * config.patches, model.pool.score.in_features, model.pool.score.out_features
        inputs = linear_flops(rows, 4, hidden) + linear_flops(grasps, 9, hidden)  # coordinates: no gradient
        forward = inputs + linear_flops(tokens, width, hidden) + linear_flops(rows, hidden, hidden, heads)
        forward += 2 * rows * hidden * heads + linear_flops(grasps, heads * hidden, width)
        # turning the centers into the hand's frame is a product of 3 x 3 per center and grasp
        return forward + 2 * rows * 9, 2 * forward - inputs
    return 0, 0


def training_flops(model, objects, grasps):
    """A fine-tuning step of a GraspModel, forward and backward; a frozen encoder has no backward."""
    config = model.config
    forward, backward = pooling_flops(model, objects, grasps)
    head = linear_flops(grasps, *[layer.in_features for layer in model.head if hasattr(layer, "in_features")], model.head[-1].out_features)
    total = forward + backward + 3 * head
    if "surface" in config.pool:  # turning the points into the hand's frame, and their products with the probes
        total += 2 * grasps * config.points * (9 + 3 * len(PROBES))
    if config.pool not in NO_ENCODER:
        parts = [tokenizer_flops(config, objects), position_flops(objects * config.patches, config.width)]
        blocks = transformer_flops(objects, config.patches, config.width, config.depth)
        trained = any(parameter.requires_grad for parameter in model.encoder.parameters())
        total += blocks + sum(forward for forward, _ in parts)
        total += trained * (2 * blocks + sum(backward for _, backward in parts))
    else:
        total -= linear_flops(grasps, model.head[0].in_features, model.head[0].out_features)  # bare coordinates need no gradient
    return total


def pretraining_flops(config, clouds, context, blocks, length):
    """A pretraining step with C context tokens and M target blocks of T tokens, forward and backward."""
    width, rows, hidden = config.predictor_width, clouds * context, clouds * blocks * length
    both = [tokenizer_flops(config, clouds), position_flops(clouds * config.patches, config.width),
            position_flops(rows, width), position_flops(hidden, width)]  # fmt: skip
    trained = transformer_flops(clouds, context, config.width, config.depth)
    trained += linear_flops(rows, config.width, width) + linear_flops(hidden, width, config.width)
    trained += transformer_flops(clouds * blocks, context + length, width, config.predictor_depth)
    targets = transformer_flops(clouds, config.patches, config.width, config.depth)
    return 3 * trained + targets + sum(forward + backward for forward, backward in both)


# ---------------------------------------------------------------- measuring


class Stopwatch:
    """Adds up seconds by part: `lap(part)` gives it the time since the last lap. Waits for the GPU where there is one."""

    def __init__(self, device):
        self.device, self.seconds, self.last = device, {}, 0.0

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self):
        self.seconds, self.last = {}, self.now()

    def lap(self, part):
        now = self.now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now

    def around(self, module, before, within):
        """Lap where `module` begins, for the part `before` it if that has a name, and where it ends, for `within`."""
        if before:
            module.register_forward_pre_hook(lambda *_: self.lap(before))
        module.register_forward_hook(lambda *_: self.lap(within))


def no_lap(part):
    """What the loops give in place of `Stopwatch.lap`."""


def product_speed(device, precision):
    """FLOP/s of the product of two square matrices at this precision, as the model makes its products: the yardstick."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(2, PRODUCT, PRODUCT, device=device, dtype=dtype)
    watch = Stopwatch(device)
    linear(left, right)
    watch.start()
    for _ in range(10):
        linear(left, right)
    watch.lap("product")
    return 10 * 2 * PRODUCT**3 / watch.seconds["product"]


def peak_memory(device):
    """Largest memory so far in MB: of the process, on CUDA of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def machine_settings(args, device):
    """(precision, threads) to measure: fp32, bf16 where it pays, 1 and 2 threads, unless the flags name one."""
    precisions = (args.precision,) if args.precision != "auto" else ("fp32", "bf16") if computes_bf16(device) else ("fp32",)
    threads = (args.threads or torch.get_num_threads(),) if args.threads or device.type == "cuda" else (1, 2)
    return [(precision, count) for precision in precisions for count in threads]


def measure(variants, watch, args, device, unit):
    """Measure `variants`, a list of (columns, step) where step(precision) -> (things of `unit`, FLOPs); -> table rows.

    All variants of a setting and the yardstick take turns, so that a machine that is busy for a while is busy for
    all; the first round of each setting does not count. Times are medians.
    """
    rows, before, settings = [], torch.get_num_threads(), machine_settings(args, device)
    for precision, threads in tqdm(settings, desc="measuring", unit="setting", disable=args.quiet or None):
        torch.set_num_threads(threads)
        products, taken = [], [[] for _ in variants]
        started = time.perf_counter()
        while len(products) < 3 or (time.perf_counter() - started < SECONDS and len(products) <= args.steps):
            products.append(product_speed(device, precision))
            for (_, step), steps in zip(variants, taken):
                watch.start()
                steps.append((*step(precision), watch.seconds))
        for (columns, _), steps in zip(variants, taken):
            rows.append({"precision": precision, "threads": threads, **columns, **summary(steps[1:], unit, products[1:])})
    torch.set_num_threads(before)
    return rows


def summary(steps, unit, products):
    """What steps of (things, FLOPs, seconds by part) took, their speed against the yardstick, and the shares of the parts."""
    seconds = [sum(parts.values()) for _, _, parts in steps]
    speed = statistics.median(flops / took for (_, flops, _), took in zip(steps, seconds))
    return {
        "ms_per_step": 1e3 * statistics.median(seconds), f"{unit}_per_s": statistics.median(count / took for (count, _, _), took in zip(steps, seconds)),
        "gflop_per_step": statistics.mean(flops for _, flops, _ in steps) / 1e9, "gflop_per_s": speed / 1e9,
        "product_gflop_per_s": statistics.median(products) / 1e9, "share_of_product": speed / statistics.median(products),
        "steps": len(steps), "shares": {part: sum(parts[part] for *_, parts in steps) / sum(seconds) for part in steps[0][2]},
    }  # fmt: skip


def table(rows):
    """Dicts of equal keys as aligned lines; numbers to one decimal."""
    cells = [[name.replace("_per_", "/").replace("_", " ") for name in rows[0]]]
    cells += [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def percent(share):
    return f"{100 * share:.1f} %"


def report(script, rows, unit, config, argv, args, device):
    """Print the rows that `measure` returned as two tables, write them with --json; -> what is written."""
    content = {
        "command": shlex.join(["python", script, *(sys.argv[1:] if argv is None else argv)]), "device": device.type, "torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "peak_memory_mb": round(peak_memory(device)), "network": dataclasses.asdict(config), "rows": rows,
    }  # fmt: skip
    lead = list(rows[0])[: list(rows[0]).index("ms_per_step")]  # what was measured; then its figures
    figures = [*lead, "ms_per_step", f"{unit}_per_s", "gflop_per_s", "product_gflop_per_s"]
    print(table([{name: row[name] for name in figures} | {"of product": percent(row["share_of_product"])} for row in rows]))
    print("\nshares of the time")
    print(table([{name: row[name] for name in lead} | {part: percent(share) for part, share in row["shares"].items()} for row in rows]))
    print(f"\npeak memory {content['peak_memory_mb']} MB; random clouds; FLOPs: matrix products as executed (see speed.py)")
    print(f"product: {PRODUCT} x {PRODUCT} matrices at the same precision and threads, taking turns with the steps")
    if args.json:
        write_json(args.json, content)
    return content
