"""Folders of other people, walked with their links: followed wherever they lead, never lost without a word."""

import collections
import os
import sys
from pathlib import Path

from cli.errors import printable
from files.reading import MESH_TYPES, readable


def walk(top):
    """[(path, names of its files)] of a folder and of all below it, in an order of names alone.

    Hidden ones are left out, and what macOS puts beside others in archives.
    A link is followed once, also out of the folder. What leads nowhere or back to a folder around it is not: a warning
    names these links, except those of data, whose readers say so. Raises `UserError` where a folder cannot be read.
    """
    found, left_out, followed = [], [], set()
    todo = collections.deque([(str(top), (os.path.realpath(top),))])  # with the real folders around it, itself the last
    while todo:
        path, around = todo.popleft()
        files = []
        with readable(path):
            entries = [entry for entry in os.scandir(path) if not entry.name.startswith((".", "__MACOSX"))]
        for entry in sorted(entries, key=lambda entry: entry.name):
            place = os.path.join(around[-1], entry.name)  # where the entry itself lies
            reason = entry.is_symlink() and obstacle(entry.path, around)
            if reason and not entry.name.lower().endswith((*MESH_TYPES, ".npy", ".npz")):
                left_out.append(f"{os.path.relpath(entry.path, top)} ({reason})")
            elif reason or not entry.is_dir():
                files.append(entry.name)
            elif not entry.is_symlink():
                todo.appendleft((entry.path, (*around[:-1], place)))
            elif place not in followed:  # the same link may be met by several ways
                followed.add(place)
                todo.append((entry.path, (*around, os.path.realpath(place))))
        found.append((path, files))
    if left_out:
        named = printable(", ".join(sorted(left_out)))
        print(f"warning: {top}: links that cannot be followed: {named}", file=sys.stderr)
    return sorted(found)


def obstacle(link, around):
    """Why a link cannot be followed from inside of these real folders, or None."""
    try:
        os.stat(link)
    except OSError as error:
        return error.strerror
    target = os.path.realpath(link)
    circular = any(os.path.join(real, "").startswith(os.path.join(target, "")) for real in around)
    return f"leads back to {target}" if circular else None


def files_under(folder, types):
    """Sorted paths of the files under a folder, as `walk` finds them, whose names end in one of `types`."""
    found = (Path(path, name) for path, files in walk(folder) for name in files if name.lower().endswith(types))
    return sorted(found, key=lambda path: path.parts)  # paths themselves have another order on Windows
