"""Flags that both training scripts have."""

from cli.errors import UserError
from cli.flags import number

SIZE_FIELDS = ("width", "depth", "heads", "w1", "w2", "w3")  # of the encoder: what a preset stands for


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
