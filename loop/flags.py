"""Flags that both training scripts have."""

import dataclasses

from cli.errors import refuse
from cli.flags import number
from files.config import CHOICES
from model import PRESETS, ModelConfig

SIZE_FIELDS = ("width", "depth", "heads", "w1", "w2", "w3")  # of the encoder: what a preset stands for
HEAD_FIELDS = ("k", "pool", "loss")  # not of the encoder: train.py's flags for them have defaults


def add_encoder_flags(flag, own, least_patches=1):
    """The flags about what an encoder sees; flag: a group's add_argument; own: whose the default is, for --help."""
    count = number(int, 1)
    flag("--normalize", choices=CHOICES["normalize"],
         help=f"units of clouds; unit_sphere: centred and of radius 1; metric: left in place {own}")  # fmt: skip
    flag("--points", type=count, metavar="N", help=f"points per cloud {own}")
    flag("--patches", type=number(int, least_patches), metavar="N", help=f"patches, that is tokens, per cloud {own}")
    flag("--patch-size", type=count, metavar="N", help=f"points per patch {own}")


def add_device_flags(flag):
    """The flags that `set_up_torch` takes; flag: the add_argument of a parser or of its group."""
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one")
    flag("--threads", type=number(int, 1, 1024), metavar="N", help="CPU threads (default: one per core)")


def add_machine_flags(parser):
    """The flags about the machine that a training has; `parser`: an argparse parser."""
    flag = parser.add_argument_group("machine").add_argument
    add_device_flags(flag)
    flag(
        "--precision", choices=("auto", "fp32", "tf32", "bf16"), default="auto",
        help="of products; fp32 is exact; tf32 needs CUDA; bf16 on a CPU needs AVX512_BF16 or AMX; "
        "auto: fp32 on CPU; on CUDA bf16 where that was measured to be faster than tf32, else tf32",
    )  # fmt: skip
    flag("--no-graph", action="store_true", help="on CUDA, start every operation by itself instead of a captured step")
    flag("--quiet", action="store_true", help="no progress bars")


def given_flags(args):
    """Field of ModelConfig -> value, of the flags about the encoder that were given: None means that one was not."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)} - set(HEAD_FIELDS)
    return {name: value for name, value in vars(args).items() if name in fields and value is not None}


def check_network_flags(given, preset, config, path):
    """Stop where a flag contradicts the configuration that the checkpoint `path` brings along.

    given: see `given_flags`; preset: the name that --preset gave, or None.
    """
    for name, value in given.items():
        theirs, flag = getattr(config, name), "--" + name.replace("_", "-")
        refuse(theirs != value, f"{path}: was pretrained with {name} {theirs}, not {value}; leave {flag} out")
    other = preset and any(getattr(config, name) != getattr(PRESETS[preset], name) for name in SIZE_FIELDS)
    sizes = f"width {config.width}, depth {config.depth}"
    refuse(other, f"{path}: is not of --preset {preset} ({sizes}); leave --preset out")
