"""What is wrong is one line: user errors, and how a command ends."""

import contextlib
import functools
import os
import re
import sys


class UserError(Exception):
    """Something the user can mend; the message names the file or flag and the fix."""

    def __str__(self):
        return printable(super().__str__())  # it may quote what somebody else's file holds


def printable(text):
    """Text in which what a terminal would obey, and what no file of text may hold, is spelt out: \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def refuse(wrong, message):
    """Stop with that message where something is wrong."""
    if wrong:
        raise UserError(message)


def command(main):
    """Make `main(argv)` a command: user errors are one line and exit code 2, Ctrl-C is 130, a closed pipe (`| head`) 0.

    KeyboardInterrupt("what to do now") says so; a character that the terminal lacks is printed as a question mark.
    """

    @functools.wraps(main)
    def wrapped(argv=None):
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None or getattr(stream, "closed", False):  # a program without a terminal has none
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
            elif hasattr(stream, "reconfigure"):  # not where tests or notebooks put something else in its place
                stream.reconfigure(errors="replace")
        try:
            result = main(argv)
            sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
            return result
        except BrokenPipeError:
            for stream in (sys.stdout, sys.stderr):  # for what is still in the buffer
                with contextlib.suppress(OSError):  # somebody's own stream has no number
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
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
            less = "take fewer objects or points per batch, or a smaller --preset"
            print(f"error: out of memory; {less}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
