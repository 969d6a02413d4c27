"""What a training step needs at least, counted without running it: products' operations, and bytes to and fro.

A step cannot be faster than a machine makes its products, nor than it moves its tensors: two floors for its time.
"""

import contextlib
import copy
import dataclasses
import functools
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import pretrain_jepa
import train

TAU = 0.999  # EMA momentum in pretraining; its value costs nothing
ADAMW = 7 * 4  # bytes per parameter: fused AdamW reads it, its gradient, two moments, and writes it and the moments
FREE = ("empty", "_unsafe_view")  # operations that reserve memory or look at it otherwise, beside views


class Work(NamedTuple):
    flops: int  # of the matrix products, two for a multiplication and its addition
    bytes: int  # that operations read and write in float32, each for itself: fusing them saves some


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; a view moves nothing, nor does memory that is only reserved."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith(FREE):
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors)
        return out


def count(take_step, trained):
    """The `Work` of `take_step()`, on tensors of the device "meta", which have shapes and no values.

    There loop/fast.py takes PyTorch's plain layers, whose products PyTorch's counter sees. trained: parameters
    that the optimiser, which takes no step there, would move.
    """
    # the device knows no autocast; the products in bfloat16 are the same ones
    no_autocast = mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext())
    with no_autocast, FlopCounterMode(display=False) as counter, Traffic() as traffic:
        take_step()
    return Work(counter.get_total_flops(), traffic.bytes + ADAMW * sum(p.numel() for p in trained))


def without_values(network):
    """A copy of a network on the device "meta", its trained parameters, and an optimiser that leaves them alone."""
    network = copy.deepcopy(network).to("meta")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0)
    optimizer.step = lambda: None
    return network, trained, optimizer


def training_work(run):
    """-> function (objects, grasps) -> `Work` of a `training_step` of that size; `run`: a train.Run without hooks."""
    model, trained, optimizer = without_values(run.model)
    run = dataclasses.replace(run, device=torch.device("meta"), model=model, optimizer=optimizer)

    @functools.cache
    def work(objects, grasps):
        scenes, rows, object_index, starts = (
            torch.zeros(count, dtype=torch.long, device="meta") for count in (objects, grasps, grasps, objects)
        )
        return count(lambda: train.training_step(run, scenes, rows, object_index, None, starts), trained)

    return work


def pretraining_work(run):
    """-> function (C, M, T) -> `Work` of a `pretraining_step` with such blocks; `run`: a Pretraining without hooks."""
    jepa, trained, optimizer = without_values(run.jepa)
    run = dataclasses.replace(run, device=torch.device("meta"), jepa=jepa, optimizer=optimizer)
    run.clouds = run.clouds.to("meta")

    @functools.cache
    def work(context, blocks, length):
        drawn = pretrain_jepa.draw_step(run, np.zeros(run.args.batch, int), TAU)
        index = drawn[0]
        hidden, visible = index.new_zeros(blocks, length), index.new_zeros(context)  # the drawn ones have other sizes
        return count(lambda: pretrain_jepa.pretraining_step(run, *drawn[:4], hidden, visible, TAU), trained)

    return work
