"""What both training loops share: schedule, optimiser, counting, clock, Ctrl-C, the look for NaN."""

import contextlib
import dataclasses
import math
import time

import torch
from tqdm import tqdm

from cli.errors import refuse
from cli.processes import hearing

LOOK_EVERY = 20  # steps between looks at whether the loss is finite: on a GPU every look waits for it


# ---------------------------------------------------------------- rates and the optimiser
def warmup_cosine(step, steps, warmup, start=0.0, end=0.0):
    """Learning-rate factor at `step` of `steps`: linear from `start` to 1 over `warmup` steps, cosine to `end`."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rate(group, rate):
    """The learning rate of an optimiser's group: a number, or a tensor that a captured step reads."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def adamw(groups, weight_decay, graph):
    """AdamW over parameter groups (dicts), fused; with `graph` so that a CUDA graph can hold its step."""
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=weight_decay, fused=True, capturable=graph)
    if graph:  # a tensor each, which `set_rate` fills and the captured step reads
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=group["params"][0].device)
        optimizer._warned_capturable_if_run_uncaptured = True  # else it warns of the steps before the capture
    return optimizer


# ---------------------------------------------------------------- the loop
@dataclasses.dataclass
class LoopProgress:
    """What a loop has reached besides its weights; saved in last.pt."""

    step: int = 0
    seconds: float = 0.0
    rows: list = dataclasses.field(default_factory=list)  # of the .csv that the loop writes


@contextlib.contextmanager
def paced(progress, steps, title, device, silent=False):
    """A `Pace` that counts on a `LoopProgress` up to `steps`, with a bar unless `silent`.

    Ctrl-C fills a list, so that the loop stops between two steps and never inside one.
    """
    pressed = []
    bar = tqdm(total=steps, initial=progress.step, desc=title, unit="step", disable=silent or None)
    with bar, hearing(lambda *_: pressed.append(True), "SIGINT"):
        yield Pace(progress, steps, device, bar, pressed)


class Pace:
    """Counts a loop's steps and seconds, and tells when something is due."""

    def __init__(self, progress, steps, device, bar, pressed):
        self.progress, self.steps, self.bar, self.pressed, self.stop = progress, steps, bar, pressed, False
        self.started = time.perf_counter() - progress.seconds
        self.bad_step = torch.tensor(-1, device=device)  # the first that was not finite, -1 for none so far

    def goes_on(self):
        """Whether there is another step; raises KeyboardInterrupt where Ctrl-C was heard, which the loop has saved."""
        if self.stop:
            raise KeyboardInterrupt(f"stopped at step {self.progress.step}; the same command with --resume goes on")
        return self.progress.step < self.steps

    def count(self, finite):
        """One more step; finite: whether its loss and gradient were, a scalar on the device."""
        self.bad_step = torch.where(finite | (self.bad_step >= 0), self.bad_step, self.progress.step)
        self.progress.step += 1
        self.tick()
        self.bar.update()
        self.stop = bool(self.pressed)

    def tick(self):
        """Bring progress.seconds up to now."""
        self.progress.seconds = time.perf_counter() - self.started

    def due(self, every):
        """Whether the step just counted is a multiple of `every`, or the last one."""
        return self.progress.step % every == 0 or self.progress.step == self.steps

    def look(self, last, lower):
        """Stop before a NaN reaches a checkpoint; on a GPU this waits for the steps.

        For the message: `last` is the last checkpoint, `lower` names flags.
        """
        step, good = int(self.bad_step), f"{last} holds the last good state if there is one"
        refuse(step >= 0, f"the loss or its gradient is not finite at step {step}; {good}; lower {lower}")
