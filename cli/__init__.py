"""What every script stands on. To be imported before torch: OpenMP reads once, when torch loads, how its threads wait.

By default they spin for some milliseconds after every parallel loop. Where other programs compute too, threads then
wait for each other on the same core: a training step of `small` by two threads beside a busy loop on two cores took
9 s, and 0.6 to 0.9 s where they sleep at once. Alone on the machine to sleep at once costs a tenth, since most loops
are short. So they spin for some tenths of a millisecond, then sleep. A user's own setting wins.
"""

import os
import sys
import time

STARTED = time.perf_counter()  # of the script: to load torch takes seconds

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # sleep at once, wherever there are more threads than cores
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # else first spin: looks at the lock, by GNU's OpenMP
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # ms until they sleep: the same to older versions of Intel's OpenMP


def end_with_one_line(kind, error, trace):
    """Ctrl-C while libraries are still loading, before any `command` hears it, ends as it does in one.

    So does a library that is missing, or so old that it lacks what is imported.
    """
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130)
    if issubclass(kind, ImportError):
        print(f"error: {' '.join(str(error).split())}; pip install -r requirements.txt", file=sys.stderr)
        raise SystemExit(2)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = end_with_one_line
