"""What the configuration of a network may be: choices of the flags, rules, and a stored one read with care."""

import dataclasses
import math

import controls  # noqa: F401 - adds its poolings, and variants.py with it
from cli.errors import UserError, refuse
from model import LOSSES, POOLS, ModelConfig

CHOICES = {
    "group": ("knn", "ball"), "normalize": ("unit_sphere", "metric"), "up": ("z", "y"),
    "target_norm": ("instance", "layer"), "pool": POOLS, "loss": LOSSES,
}  # fmt: skip
FORMER = {"patching": "fps", "tokenizer": "pointnet"}  # fields that files of before have, and the only choices left
LEAST_PATCHES = 5  # of a pretraining: four blocks of one patch leave a context


def changed(config, **fields):
    """A ModelConfig with other values in some fields; raises `UserError` where it then contradicts itself."""
    config = dataclasses.replace(config, **fields)
    shares = config.context_low, config.context_high
    rules = {
        "heads must divide width": config.width % config.heads == 0,
        "width must be a multiple of 4, the heads of the pooling": config.width % 4 == 0,
        f"patches must not exceed points ({config.points})": config.patches <= config.points,
        f"patch_size must not exceed points ({config.points})": config.patch_size <= config.points,
        "patches · patch_size must be at least 2, for BatchNorm": config.patches * config.patch_size > 1,
        "a ball's radius must be given and positive (--radius)": config.group != "ball" or 0 < config.radius < math.inf,
        "context_low and context_high must be in order": 0 < shares[0] <= shares[1] <= 1,
        "--loss hedged needs a --k of at least 2, one for the average": config.loss != "hedged" or config.k > 1,
        "--pool size: metric clouds hide no size; leave --normalize metric out":
            config.pool != "size" or config.normalize != "metric",
    }  # fmt: skip
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        rules[f"{name} must be one of {', '.join(allowed)}, not {value}"] = value in allowed
    for rule, holds in rules.items():
        refuse(not holds, rule)
    return config


def config_from(stored):
    """The ModelConfig of a dict: every field present and of its type, none too many, and as `changed` checks it."""
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    items = stored.items() if isinstance(stored, dict) else ()
    stored = {name: value for name, value in items if (name, value) not in FORMER.items()}
    wrong = set(fields) ^ set(stored)
    refuse(wrong, f"its config has missing or unknown fields: {listed(wrong)}; make it again with this version")
    for name, value in stored.items():
        kind = fields[name].type
        if not isinstance(value, (float, int) if kind is float else kind) or (kind is int and value < 1):
            raise UserError(f"{name} must be a {kind.__name__} (whole numbers at least 1), not {value!r}")
    return changed(ModelConfig(**stored))


def listed(names):
    names = sorted(map(str, names))
    return (", ".join(names[:4]) or "none") + (f" and {len(names) - 4} more" if len(names) > 4 else "")
