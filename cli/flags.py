"""Flags of the command line: help that shows defaults, numbers within bounds, settings as flags."""

import argparse
import math
import re
import sys
from pathlib import Path

from cli.errors import UserError, refuse

LARGEST = 2**31 - 1  # of whole numbers on the command line


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with defaults in --help and errors as `UserError`."""

    def __init__(self, doc):
        description = (doc or "").strip()  # `python -OO` leaves docstrings out
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)
        # argparse takes "-1e-3" for an option; this pattern lets it through as a number
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for word in args:
            whole = str(word).encode(errors="ignore").decode() == word  # else torch cannot open the file of that name
            refuse(not whole, f"{ascii(word)}: not valid UTF-8; rename that file or folder")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        raise UserError(f"{message} (see --help)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a script's docstring and shows every flag's default."""

    def _get_help_string(self, action):
        unsaid = any(action.default is value for value in (None, False, argparse.SUPPRESS))  # 0 == False, and is said
        silent = unsaid or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def number(kind, low=-math.inf, high=math.inf, above=None):
    """An argparse type: a finite `kind` (int, at most LARGEST, or float) in [low, high], strictly over `above`."""
    high = min(high, LARGEST) if kind is int else high

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}") from None
        fits = low <= value <= high and (above is None or value > above)  # which NaN does not
        if not fits or abs(value) == math.inf:
            bounds = f"over {above}" if above is not None else f"at least {low}" if low > -math.inf else "finite"
            bounds += f" and at most {high}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"'{text}' must be {bounds}")
        return value

    return parse


def file_name(suffix):
    """An argparse type: the name of a file of the kind that is written there."""

    def parse(text):
        if Path(text).suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"'{text}' must be a file that ends in {suffix}")
        return text

    return parse


def told(names):
    """A dict of name -> what it is, a text or the first line of a docstring, for --help."""
    docs = {name: what if isinstance(what, str) else what.__doc__ or "" for name, what in names.items()}
    lines = {name: doc.partition("\n")[0] for name, doc in docs.items()}
    return "; ".join(f"{name}: {line}" for name, line in lines.items())


def as_flags(settings):
    """Settings of a config.json as a command line, so that they are checked as one."""
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not None and value is not False:
            flags.append(flag if value is True else f"{flag}={value}")
    return flags
