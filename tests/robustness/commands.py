"""Every command once, on data made for it: python commands.py FOLDER [windows].

With `windows` they run as there, as far as that can be had elsewhere: modules and signals are missing, and text is
cp1252 with CRLF where a file's encoding and line ends are left to the system.
"""

import builtins
import importlib
import io
import multiprocessing
import os
import signal
import subprocess  # noqa: F401 - before `msvcrt` is there, by which it knows Windows
import sys
import types
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

TINY = "--preset tiny --steps 2 --quiet --threads 1"
COMMANDS = f"""
    synthesize      --out {{}}/made --objects 3 --grasps 8 --scenes 1 --workers 1 --quiet
    data            {{}}/made --points 64
    splits          --data {{}}/made --json {{}}/split.json
    pretrain_jepa   --out {{}}/encoder.pt --num-clouds 8 --batch 4 {TINY}
    train           --data {{}}/made --runs {{}} --name run --init jepa --jepa-ckpt {{}}/encoder.pt --no-pictures {TINY}
    evaluate        {{}}/run --quiet --json {{}}/metrics.json
    predict         {{}}/run {{}}/made/03797390/mug_0000/0/mesh.obj --pose 0 0 0.2 0 0 0 1 --json {{}}/joints.json
    sweep           grid --data {{}}/made --k 1 --smoke --runs {{}}/runs --out {{}}/table"""


def commands_in(folder):
    """(main, arguments) of every command in a folder that has no such files yet, in their order."""
    for name, *words in map(str.split, COMMANDS.strip().splitlines()):
        yield importlib.import_module(name).main, [word.format(folder) for word in words]


def be_windows():
    """Take away what Windows lacks, and decide as it does what a file leaves open."""
    lock = types.ModuleType("msvcrt")
    lock.LK_NBLCK, lock.locking = 2, lambda *_: None
    sys.modules |= {"fcntl": None, "resource": None, "msvcrt": lock}
    for owner, names in ((os, "setsid mkfifo geteuid sched_getaffinity"), (signal, "SIGHUP SIGKILL")):
        for name in names.split():
            delattr(owner, name)
    multiprocessing.set_start_method("spawn")
    real = io.open

    def open_there(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **others):
        if "b" not in mode and not isinstance(file, int):
            encoding = "cp1252" if encoding in (None, "locale") else encoding
            newline = "\r\n" if newline is None and mode[0] != "r" else newline
        return real(file, mode, buffering, encoding, errors, newline, *more, **others)

    io.open = builtins.open = open_there


if __name__ == "__main__":
    if sys.argv[2:] == ["windows"]:
        be_windows()
    for main, argv in commands_in(sys.argv[1]):
        main(argv)
