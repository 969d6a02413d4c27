"""What both training loops share: machine and precision, schedule, Ctrl-C, the checkpoint to resume from."""

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from plumbing import fast
from plumbing.checkpoint import load_strictly, read_checkpoint, save_checkpoint
from plumbing.common import UserError, number
from plumbing.fast import use_library

SIZE_FIELDS = ("width", "depth", "heads", "w1", "w2", "w3")  # of the encoder: what a preset stands for
WIDE = 384  # width D of the preset `paper`: from here on bf16 pays on a GPU
LOOK_EVERY = 20  # steps between looks at whether the loss is finite: on a GPU every look waits for it


# ---------------------------------------------------------------- flags


def add_encoder_flags(flag, choices, of_preset, least_patches=1):
    """The flags about what an encoder sees, the same in both training scripts; flag: a group's add_argument.

    choices: model.CHOICES; of_preset: whose the default is, for --help.
    """
    normalize = "the encoder's units: unit_sphere centres every cloud and gives it radius 1, metric leaves it in place"
    flag("--normalize", choices=choices["normalize"], help=f"{normalize} {of_preset}")
    flag("--points", type=number(int, 1), metavar="N", help=f"points per cloud {of_preset}")
    patches = f"patches, that is tokens, per cloud {of_preset}"
    flag("--patches", type=number(int, least_patches), metavar="N", help=patches)
    flag("--patch-size", type=number(int, 1), metavar="N", help=f"points per patch {of_preset}")
    patching = "where centers lie and how wide patches are, see variants.py"
    flag("--patching", choices=choices["patching"], help=f"{patching} {of_preset}")
    tokenizer = "geometric: points come with normals, angles and surface variation"
    flag("--tokenizer", choices=choices["tokenizer"], help=f"{tokenizer} {of_preset}")


def add_machine_flags(parser):
    """The flags about the machine, the same in both training scripts; `parser`: an argparse parser."""
    group = parser.add_argument_group("machine")
    flag = group.add_argument
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one")
    flag(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        default="auto",
        help="of products; fp32 is exact; tf32 needs CUDA; bf16 on a CPU saves time with AVX512_BF16 or AMX only; "
        "auto: fp32 on CPU; on CUDA bf16 where that was measured to be faster than tf32, else tf32",
    )
    flag("--threads", type=number(int, 1, 1024), metavar="N", help="CPU threads (default: one per core)")
    flag("--no-graph", action="store_true", help="on CUDA, start every operation by itself instead of a captured step")
    flag("--quiet", action="store_true", help="no progress bars")
    flag(
        "--benchmark",
        action="store_true",
        help="instead of training, time the step on random clouds; the same as python -m lab.speed",
    )
    flag("--json", metavar="FILE", help="write what --benchmark measures here too")


def check_machine_flags(args):
    if args.json and not args.benchmark:
        raise UserError("--json goes with --benchmark; a run writes its own files")


def set_up_torch(device="auto", threads=None):
    """Choose the device ("auto" takes CUDA where there is one), set threads, flush denormals; -> torch.device."""
    if threads:
        torch.set_num_threads(threads)
    use_library()
    keep_freed_memory()
    torch.set_flush_denormal(True)  # tiny Adam moments otherwise slow CPU arithmetic down many times
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device here; use --device cpu or auto")
    found = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    # of a GPU's fused forms of attention one stays: cuDNN's plans anew for every length of a sequence, which in
    # pretraining changes with every step, and FlashAttention is slower at a few dozen tokens: 1.3 ms, not 0.9, at
    # 2,048 x 34. On a CPU that second switch is the one of its only fused form, so there it stays on
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_flash_sdp(found.type == "cpu")
    return found


def set_precision(precision, device, fastest="tf32"):
    """Set how products are computed and resolve "auto": on CUDA `fastest`; -> "fp32", "tf32" or "bf16"."""
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else fastest
    if precision == "tf32" and device.type == "cpu":
        raise UserError("--precision tf32: only a CUDA device has it; take fp32 or auto")
    if precision == "bf16" and not computes_bf16(device):
        print(
            "warning: --precision bf16: this processor has no instructions for bfloat16; values are rounded to it, "
            "but that saves no time; leave the flag out for fp32",
            file=sys.stderr,
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return precision


def join_processes(device):
    """Rank of this process and the number of processes: (0, 1) unless torchrun started several.

    Each of several takes a GPU of its own where `device` is CUDA; they speak through torch.distributed.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return int(os.environ.get("RANK", 0)), count


def keep_freed_memory():
    """Let the C library keep what is freed, where it is glibc.

    It would give blocks of some MB back to the system at once, and every step would have them mapped and cleared anew.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: no mappings for single blocks
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink


def reset_peak_memory(device):
    """Let `peak_memory` count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # only Linux can; elsewhere it counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device):
    """The most memory in use, bytes: of tensors on a GPU, of the whole process where it is a CPU's; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def computes_bf16(device):
    """Whether `device` has instructions for bfloat16."""
    return device.type == "cuda" or fast.BF16


def autocast(device, precision):
    """Context of the forward pass: bfloat16 for "bf16", float32 otherwise."""
    # on a GPU without the cache of cast weights, which a captured step would share with the next one
    cache = device.type == "cpu"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=cache)


# ---------------------------------------------------------------- the loop


def warmup_cosine(step, steps, warmup, start=0.0, end=0.0):
    """Learning-rate factor at `step` of `steps`: linear from `start` to 1 over `warmup` steps, cosine to `end`."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@contextlib.contextmanager
def deferred_interrupt():
    """Yield a list that Ctrl-C fills, so that a loop stops between two steps and never inside one."""
    pressed = []
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


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


def first_not_finite(earlier, finite, step):
    """The first step whose loss or gradient was not finite, -1 for none so far: scalars on the device, unseen."""
    return torch.where(finite | (earlier >= 0), earlier, step)


@contextlib.contextmanager
def paced(progress, steps, title, device, silent=False, alone=True):
    """A `Pace` for a loop up to `steps`, with a bar unless `silent`, and deaf to Ctrl-C unless `alone`.

    progress: an object with `step` and `seconds`, which the pace counts on. Several processes must stop at once, and
    they do not hear Ctrl-C between the same two steps.
    """
    bar = tqdm(total=steps, initial=progress.step, desc=title, unit="step", disable=silent or None)
    with bar, deferred_interrupt() if alone else contextlib.nullcontext([]) as pressed:
        yield Pace(progress, steps, device, bar, pressed)


class Pace:
    """Counts a loop's steps and seconds, and tells when something is due."""

    def __init__(self, progress, steps, device, bar, pressed):
        self.progress, self.steps, self.bar, self.pressed, self.stop = progress, steps, bar, pressed, False
        self.started = time.perf_counter() - progress.seconds
        self.bad_step = torch.tensor(-1, device=device)  # the first that was not finite

    def goes_on(self):
        """Whether there is another step; raises KeyboardInterrupt where Ctrl-C was heard, which the loop has saved."""
        if self.stop:
            raise KeyboardInterrupt(f"stopped at step {self.progress.step}; the same command with --resume goes on")
        return self.progress.step < self.steps

    def count(self, finite):
        """One more step; finite: whether its loss and gradient were, a scalar on the device."""
        self.bad_step = first_not_finite(self.bad_step, finite, self.progress.step)
        self.progress.step += 1
        self.tick()
        self.bar.update()
        self.stop = bool(self.pressed)

    def tick(self):
        """Bring progress.seconds up to now; -> how many that were."""
        before, self.progress.seconds = self.progress.seconds, time.perf_counter() - self.started
        return self.progress.seconds - before

    def due(self, every):
        """Whether the step just counted is a multiple of `every`, or the last one."""
        return self.progress.step % every == 0 or self.progress.step == self.steps

    def look(self, batch_of, last, lower):
        """Stop before a NaN reaches a checkpoint; on a GPU this waits for the steps.

        For the message: batch_of(step) tells what was in a batch, `last` is the last checkpoint, `lower` names flags.
        """
        step = int(self.bad_step)
        if step >= 0:
            raise UserError(
                f"the loss or its gradient is not finite at step {step} (batch of {batch_of(step)}); {last} holds the "
                f"last good state if there is one; lower {lower}"
            )


# ---------------------------------------------------------------- last.pt


def save_last(path, content, optimizer, generator, progress):
    """Everything that --resume needs to go on to the bit.

    content: what makes the network again, its weights and the run's settings; generator: the torch.Generator of the
    loop; progress: a dict of plain types.
    """
    content = content | {
        "optimizer": optimizer.state_dict(), "progress": progress,
        "rng": torch.get_rng_state(), "generator": generator.get_state(),
    }  # fmt: skip
    if torch.cuda.is_available():
        content["cuda_rng"] = torch.cuda.get_rng_state()
    save_checkpoint(path, content)


def load_last(path, settings, key, network, optimizer, generator, progress):
    """Restore what `save_last` saved, the network's weights from content[key]; -> the progress, typed as the given one.

    settings: those of this run, which must be the ones that the file was started with.
    """
    content = read_checkpoint(path, key, "settings", "optimizer", "progress", "rng", "generator")
    check_same_settings(content["settings"], settings, path)
    load_strictly(network, content[key], path)
    try:
        kept = [{name: group[name] for name in ("lr", "capturable")} for group in optimizer.param_groups]
        optimizer.load_state_dict(content["optimizer"])
        for group, of_this_run in zip(optimizer.param_groups, kept):  # whose steps may run as graphs, or no longer
            group.update(of_this_run)
        torch.set_rng_state(content["rng"])
        generator.set_state(content["generator"])
        if "cuda_rng" in content and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["cuda_rng"])
        if set(content["progress"]) != set(vars(progress)):
            raise ValueError("its progress has other fields")
        return type(progress)(**content["progress"])
    except Exception as error:  # torch raises whatever does not fit
        raise UserError(f"{path}: is not of this run ({error}); give --overwrite to start anew") from None


def warn_if_moved(started, device, precision, path):
    """Say where a run goes on on another device than it was started on, or in another precision: its bits change.

    started: what the run's file says of that, a dict. --device and --precision may both have been "auto".
    """
    here = {"device": device.type, "precision": precision}
    there = {name: started.get(name) or value for name, value in here.items()}
    if there != here:
        print(
            f"warning: {path}: was started on {there['device']} in {there['precision']} and goes on on "
            f"{device.type} in {precision}: its numbers will not be those of an undisturbed run",
            file=sys.stderr,
        )


def check_same_settings(old, new, path):
    """Stop where a run would be resumed with other settings than it was started with; two dicts."""
    changed = [name for name in new if not isinstance(old, dict) or old.get(name) != new[name]]
    if changed:
        raise UserError(f"{path}: was started with other settings ({', '.join(changed)}); repeat them to --resume")


def check_flags(given, config, path, preset=None):
    """Stop where a flag contradicts the configuration that a checkpoint brings along.

    given: flag name -> value of the network flags that were given; preset: (name, its configuration) if one was.
    """
    for name, value in given.items():
        if getattr(config, name) != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{path}: was pretrained with {name} {getattr(config, name)}, not {value}; leave {flag} out"
            )
    if preset and any(getattr(config, name) != getattr(preset[1], name) for name in SIZE_FIELDS):
        raise UserError(
            f"{path}: is not of --preset {preset[0]} (width {config.width}, depth {config.depth}); leave --preset out"
        )
