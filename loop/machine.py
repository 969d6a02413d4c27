"""The machine that a script runs on: device, threads, precision."""

import contextlib
import ctypes
import sys

import torch

from cli.errors import refuse

WIDE = 384  # width D of the preset `paper`: from here on bf16 pays on a GPU


def set_up_torch(device="auto", threads=None):
    """Choose the device ("auto" takes CUDA where there is one), set threads, flush denormals; -> torch.device."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # tiny Adam moments otherwise slow CPU arithmetic down many times
    has_cuda = device != "cpu" and torch.cuda.is_available()
    refuse(device == "cuda" and not has_cuda, "--device cuda: no CUDA device here; use --device cpu or auto")
    found = torch.device("cuda" if has_cuda else "cpu")
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
    on_cpu = device.type == "cpu"
    refuse(precision == "tf32" and on_cpu, "--precision tf32: only a CUDA device has it; take fp32 or auto")
    if precision == "bf16" and on_cpu and not has_bf16():
        precision = "fp32"  # in software products of bfloat16 take ten times as long
        print("warning: --precision bf16: this processor has no instructions for that; taking fp32", file=sys.stderr)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return precision


def has_bf16():
    """Whether this processor has instructions for bfloat16."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in builds without oneDNN
    features = getattr(torch.cpu, "get_capabilities", dict)()
    # oneDNN is content with AVX-512, by which it computes bfloat16 in software
    in_software = features.get("avx512_f") and not (features["avx512_bf16"] or features["amx_bf16"])
    return bool(supported and supported() and not in_software)


def keep_freed_memory():
    """Let the C library keep what is freed, where it is glibc.

    It would give blocks of some MB back to the system at once, and every step would have them mapped and cleared anew.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: no mappings for single blocks
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink


def autocast(device, precision):
    """Context of the forward pass: bfloat16 for "bf16", float32 otherwise."""
    # on a GPU without the cache of cast weights, which a captured step would share with the next one
    cache = device.type == "cpu"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=cache)
