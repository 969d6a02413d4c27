"""What every script needs: user errors and their one-line report, atomic writing, argument types, stable seeds."""

import argparse
import contextlib
import csv
import errno
import functools
import hashlib
import json
import math
import os
import re
import sys
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

LARGEST = 2**31 - 1  # of whole numbers on the command line
LOCK_AT = 2**30  # byte of a file that Windows locks, beyond all content: there a lock keeps others from reading


class UserError(Exception):
    """Something the user can mend; the message names the file or flag and the fix."""


def command(main):
    """Make `main(argv)` a command: user errors are one line and exit code 2, Ctrl-C is 130, a closed pipe (`| head`) 0.

    KeyboardInterrupt("what to do now") says so; a character that the terminal lacks is printed as a question mark.
    """

    @functools.wraps(main)
    def wrapped(argv=None):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # not where tests or notebooks put something else in its place
                stream.reconfigure(errors="replace")
        try:
            result = main(argv)
            sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
            raise SystemExit(0) from None
        except (UserError, OSError) as error:
            text = str(error)
            if isinstance(error, OSError) and error.strerror:
                text = f"{error.filename or 'output'}: {error.strerror}; mend that or choose another place"
            print("error: " + " ".join(text.split()), file=sys.stderr)
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
                raise
            print(
                "error: out of memory; take fewer objects or points per batch, or a smaller --preset", file=sys.stderr
            )
            raise SystemExit(2) from None
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr)
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
        unsaid = any(action.default is value for value in (None, False, argparse.SUPPRESS))  # 0 == False, and is said
        silent = unsaid or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def number(kind, low=-math.inf, high=math.inf, above=None):
    """An argparse type: a finite `kind` (int, up to LARGEST, or float) in [low, high], strictly over `above`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"'{text}' is not {'a whole number' if kind is int else 'a number'}"
            ) from None
        if kind is int and abs(value) > LARGEST:
            raise argparse.ArgumentTypeError(f"a whole number must be at most {LARGEST}, with either sign")
        if not math.isfinite(value) or value < low or value > high or (above is not None and value <= above):
            bounds = f"over {above}" if above is not None else f"at least {low}" if low > -math.inf else "finite"
            bounds += f" and at most {high}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"'{text}' must be {bounds}")
        return value

    return parse


def refuse(wrong, message):
    """Stop with that message where something is wrong."""
    if wrong:
        raise UserError(message)


def told(names):
    """A dict of name -> what it is, for --help."""
    return "; ".join(f"{name}: {what}" for name, what in names.items())


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


@contextlib.contextmanager
def locked(path, wait=False):
    """Lock the file `path`, made where it is missing, and yield whether that worked; `wait` until it does.

    The operating system's own lock: it ends with its process, however that ends, so a file that stays behind means
    nothing. It binds only those who ask for it, and within one process too.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        while not (mine := try_lock(file)) and wait:
            time.sleep(0.05)
        yield mine


def try_lock(file):
    """Lock an open file until it is closed; False where somebody else has locked it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(LOCK_AT)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        # whatever else goes wrong, say a file system without locks, must not keep anybody from working
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


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
        lacking = f" with {' and '.join(objects)}" if objects else ""
        raise UserError(f"{path}: not a JSON object{lacking}; give a file that these scripts wrote")
    return content


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
