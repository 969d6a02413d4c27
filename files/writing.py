"""Files of ours: written atomically, locked, JSON and CSV; and seeds from names."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from cli.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


LOCK_AT = 2**30  # byte of a file that Windows locks, beyond all content: there a lock keeps others from reading


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


def check_writable(folder, flag):
    """Stop where a folder cannot be written in, or made: before the work whose results go there."""
    there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if os.path.exists(path))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written ({error.strerror}); choose another place") from None


@contextlib.contextmanager
def locked(path, wait=False):
    """Lock the file `path`, made where it is missing, and yield whether that worked; `wait` until it does.

    The operating system's own lock: it ends with its process, however that ends, so a file that stays behind means
    nothing. It binds only those who ask for it, and within one process too.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
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
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def write_csv(path, rows):
    """Write dicts of equal keys as a CSV table, atomically."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
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
