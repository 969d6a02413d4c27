"""What every script stands on. To be imported before torch: OpenMP reads once, when torch loads, how its threads wait.

By default they spin for some milliseconds after every parallel loop. Where other programs compute too, threads then
wait for each other on the same core: a training step of `small` by two threads beside a busy loop on two cores took
9 s, and 0.6 to 0.9 s where they sleep at once. Alone on the machine two threads lose by it, 13 % in the median of nine
turns (from -10 to 50 %, the machine was no quiet one); one thread has nobody to wait for. A user's own setting wins.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # ms: the same to older versions of Intel's OpenMP
