"""How fast a training step is on this machine: medians of the very step of the training loops, on random clouds.

    python -m lab.speed train --preset paper        flags as of train.py
    python -m lab.speed pretrain --batch 16         flags as of pretrain_jepa.py; --json FILE keeps the figures

On a GPU it is timed operation by operation ("eager") and as one CUDA graph. Where the time goes tells torch.profiler.
"""

import argparse
import dataclasses
import functools
import shlex
import statistics
import sys
import time
from pathlib import Path

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch

import pretrain_jepa
import train
from cli.errors import command
from cli.flags import Parser
from data import GraspData
from files.writing import write_json
from loop.graphs import WARM, Graphs
from loop.machine import peak_memory, reset_peak_memory, set_up_torch
from loop.pace import set_rate
from model import start_points
from splits import Split

SECONDS = 12  # of steps that are timed
LEAST = 20  # steps, whatever time they take
TAU = 0.999  # EMA momentum in pretraining; its value costs nothing


# ---------------------------------------------------------------- fine-tuning


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


def random_run(args, config, device, graph=False):
    """A train.Run on random data, with a model of that `ModelConfig`."""
    data = random_grasps(4 * args.objects_per_batch, config.points, config.joints, args.grasps_per_object)
    rows = np.arange(len(data.scene))
    split = Split("", 1.0, "", {"train": data.object_of_scene}, data.object_of_scene, {}, [], {"train": rows})
    args = argparse.Namespace(**vars(args) | {"no_graph": not graph})
    return train.make_run(args, Path(), device, config, None, data, split)


def training_steps(run):
    """A function that takes a step as the training loop does; -> the grasps that it saw."""
    args, model = run.args, run.model
    train.set_learning_rates(run.optimizer, 0, args)
    train.training_mode(model, args)
    step = Graphs(functools.partial(train.training_step, run), run.graph)
    batches = train.training_batches(run.data, run.split.rows["train"], args, 0, run.device, pad=run.graph)

    def take():
        scenes, rows, object_index, weights = next(batches)
        starts = start_points(run.generator, len(scenes), run.clouds.shape[1], run.device)
        step(scenes, rows, object_index, weights, starts)
        return len(rows)

    return take


# ---------------------------------------------------------------- pretraining


def random_pretraining(args, jepa, device, graph=False):
    """A pretrain_jepa.Pretraining of this network on random clouds."""
    args = argparse.Namespace(**vars(args) | {"no_graph": not graph})
    clouds = np.random.default_rng(0).random((4 * args.batch, jepa.config.points, 3), dtype=np.float32)
    return pretrain_jepa.make_run(args, device, jepa, clouds)


def pretraining_steps(run):
    """A function that takes a step as the pretraining loop does; -> the clouds that it saw."""
    set_rate(run.optimizer.param_groups[0], run.args.lr)
    step = Graphs(functools.partial(pretrain_jepa.pretraining_step, run), run.graph)
    batches = pretrain_jepa.cloud_batches(len(run.clouds), run.args, 0)
    # on a GPU every size of the blocks has a graph of its own, so one of a middling size stands for all
    drawn = sorted((run.jepa.sample_blocks(run.generator) for _ in range(101)), key=lambda pair: pair[0].numel())
    held = [places.to(run.device) for places in drawn[50]] if run.device.type == "cuda" else None

    def take():
        *others, hidden, visible, tau = pretrain_jepa.draw_step(run, next(batches), TAU)
        step(*others, *(held or (hidden, visible)), tau)
        return run.args.batch

    return take


# ---------------------------------------------------------------- the command


def time_steps(take, unit, device):
    """Median time and rate of the steps that `take` takes; the first one does not count."""
    steps, started = [], time.perf_counter()
    while len(steps) <= LEAST or time.perf_counter() - started < SECONDS:
        begun, seen = time.perf_counter(), take()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps.append((seen, time.perf_counter() - begun))
    return {
        "ms_per_step": 1e3 * statistics.median(took for _, took in steps[1:]),
        f"{unit}_per_s": statistics.median(seen / took for seen, took in steps[1:]), "steps": len(steps) - 1,
    }  # fmt: skip


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(__doc__)
    parser.add_argument("script", choices=("train", "pretrain"), help="whose step to time; that script's flags follow")
    parser.add_argument("--json", metavar="FILE", help="write what is measured here too")
    own, words = parser.parse_known_args(argv)
    if own.script == "train":
        args, unit, steps_of = train.parse(words), "grasps", training_steps
        config = train.resolve_network(args)[0]
        make_run = functools.partial(random_run, args, config)
    else:
        args, unit, steps_of = pretrain_jepa.parse(words), "clouds", pretraining_steps
        jepa = pretrain_jepa.build_jepa(args)
        config = jepa.config
        make_run = functools.partial(random_pretraining, args, jepa)
    device = set_up_torch(args.device, args.threads)
    reset_peak_memory(device)
    rows = []
    for graph in (False, True) if device.type == "cuda" and not args.no_graph else (False,):
        run = make_run(device, graph)
        take = steps_of(run)
        for _ in range((WARM + 1) * graph):  # until it is captured
            take()
        mode = {"step": "graph" if graph else "eager", "precision": run.precision}
        rows.append(mode | time_steps(take, unit, device))
        print(f"{mode['step']}, {run.precision}: {rows[-1]['ms_per_step']:.1f} ms a step, "
              f"{rows[-1][f'{unit}_per_s']:.0f} {unit}/s")  # fmt: skip
    content = {
        "command": shlex.join(["python", "-m", "lab.speed", *argv]), "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "peak_memory_mb": round(peak_memory(device) / 1e6),
        "network": dataclasses.asdict(config), "rows": rows,
    }  # fmt: skip
    print(f"{content['device']}, {content['threads']} threads; peak memory {content['peak_memory_mb']} MB")
    if own.json:
        write_json(own.json, content)
    return content


if __name__ == "__main__":
    main()
