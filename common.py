"""What several scripts need and none of them owns.

User errors and their one-line report, atomic writing, argument types, seeding,
and the learning-rate schedule shared by pretraining and fine-tuning.
"""

import argparse
import contextlib
import csv
import ctypes
import functools
import hashlib
import json
import math
import os
import re
import signal
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can mend; the message names the file or flag and the fix."""


def command(main):
    """Make `main(argv)` a command: user errors are one line and exit code 2, Ctrl-C is 130."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except (UserError, OSError) as error:
            text = str(error)
            if isinstance(error, OSError) and error.strerror:
                text = f"{error.filename or 'output'}: {error.strerror}; mend that or choose another place, then give the command again"
            print("error: " + " ".join(text.split()), file=sys.stderr)
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
                raise
            print("error: out of memory; take fewer objects or points per batch, or a smaller --preset", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; the same command with --resume (where it has one) goes on", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with defaults in --help and errors as `UserError`."""

    def __init__(self, doc):
        super().__init__(description=doc.strip(), allow_abbrev=False, formatter_class=HelpFormatter)
        # argparse takes "-1e-3" for an option; this pattern lets it through as a number
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def error(self, message):
        raise UserError(f"{message} (see --help)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a script's docstring and shows every flag's default."""

    def _get_help_string(self, action):
        silent = action.default in (None, False, argparse.SUPPRESS) or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def number(kind, low=-math.inf, high=math.inf, above=None):
    """An argparse type: a finite `kind` (int or float) in [low, high], strictly over `above`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not {'a whole number' if kind is int else 'a number'}") from None
        if not math.isfinite(value) or value < low or value > high or (above is not None and value <= above):
            bounds = f"over {above}" if above is not None else f"at least {low}" if low > -math.inf else "finite"
            bounds += f" and at most {high}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"'{text}' must be {bounds}")
        return value

    return parse


def stable_seed(*parts):
    """A 63-bit seed from SHA-256 of the parts joined by '/': the same in every version and process."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; rename it onto `path` if the block succeeds, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say which file it was
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content):
    """Write `content` as readable JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_csv(path, rows):
    """Write dicts of equal keys as a CSV table, atomically."""
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_json(path, *objects):
    """Read a JSON object; a user error names the file if it is missing, broken or lacks one of the `objects` in it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore it or make it again") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name in objects):
        raise UserError(f"{path}: not a JSON object{' with ' * bool(objects)}{' and '.join(objects)}; give a file that these scripts wrote")
    return content


def warmup_cosine(step, steps, warmup, start=0.0, end=0.0):
    """Learning-rate factor at `step` of `steps`: linear from `start` to 1 over `warmup` steps, cosine to `end`."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def keep_freed_memory():
    """Let the C library keep what is freed, where it is glibc.

    It would give blocks of some MB back to the system at once, and every step would have them mapped and cleared anew.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: no mappings for single blocks
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink


def set_up_torch(device="auto", threads=None, precision="auto"):
    """Choose the device ("auto" takes CUDA where there is one), set threads, flush denormals, warn of slow bf16; -> torch.device."""
    import torch  # here, so that scripts without a network start fast

    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # tiny Adam moments otherwise slow CPU arithmetic down many times
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device here; use --device cpu or auto")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if precision == "bf16" and not computes_bf16(chosen):
        print("warning: --precision bf16: this processor has no instructions for bfloat16 and takes some ten times as long; leave the flag out for fp32", file=sys.stderr)
    return chosen


def computes_bf16(device):
    """Whether `device` has instructions for bfloat16; without them a step was measured to take ten times as long as in float32."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in builds without oneDNN
    return device.type == "cuda" or (supported is not None and supported())


def autocast(device, precision):
    """Context of the forward pass: bfloat16 for "bf16", and for "auto" on CUDA; float32 otherwise."""
    import torch

    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def deferred_interrupt():
    """Yield a list that Ctrl-C fills, so that a loop stops between two steps and never inside one."""
    pressed = []
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def add_machine_flags(parser):
    """The flags about the machine, the same in both training scripts."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: fp32 on CPU, bf16 on CUDA; bf16 on a CPU needs AVX-512 or AMX to pay")
    group.add_argument("--threads", type=number(int, 1), metavar="N", help="CPU threads (default: one per core)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    group.add_argument("--benchmark", action="store_true", help="instead of training, measure the step on random clouds: time, its parts, FLOP/s; --precision and --threads: only those")
    group.add_argument("--json", metavar="FILE", help="write what --benchmark measures here too")


def check_machine_flags(args):
    if args.json and not args.benchmark:
        raise UserError("--json goes with --benchmark; a run writes its own files")
