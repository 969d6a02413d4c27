"""What every script stands on. To be imported before torch: OpenMP reads once, when torch loads, how its threads wait.

By default they spin between two parallel loops, and on a machine that also computes something else they then wait for
each other on the same core: with two threads on two cores a training step takes many times as long. A user's own
setting wins.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # ms: the same to older versions of Intel's OpenMP
