"""cli/processes.py: the same results in the same order, here and in processes."""

import math
import os

from cli.processes import map_in_processes


def test_results_in_order_whatever_the_number_of_workers():
    before, numbers = dict(os.environ), [float(i * i) for i in range(20)]
    expected = [float(i) for i in range(20)]
    assert list(map_in_processes(math.sqrt, numbers, workers=1)) == expected
    for chunk in (1, 7):
        assert list(map_in_processes(math.sqrt, numbers, workers=2, chunk=chunk)) == expected
    assert dict(os.environ) == before  # the threads of the workers are no setting of this process


def test_workers_compute_in_one_thread_each():
    (value,) = map_in_processes(os.getenv, ["OMP_NUM_THREADS"], workers=2)
    assert value == "1"


def test_whoever_stops_early_leaves_no_work_behind():
    made = map_in_processes(math.sqrt, [4.0] * 50, workers=2)
    assert next(made) == 2
    before = os.environ.get("MKL_NUM_THREADS")
    assert before == "1"
    made.close()  # as contextlib.closing does after Ctrl-C
    assert list(made) == []
