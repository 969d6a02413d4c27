"""The same work on all cores, with results in order whatever their number."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading


def cores():
    """Cores that this process may use, which a container or a scheduler may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def map_in_processes(function, items, workers, chunk=1):
    """Yield function(item) for every item in order, computed here or by `workers` processes, `chunk` items a time."""
    if workers == 1:
        yield from map(function, items)
        return
    executor = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    before = dict(os.environ)
    try:
        # as many workers as cores, so each does its arithmetic in one thread
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        with hearing(signal.SIG_IGN, "SIGINT"):  # the workers inherit that, or would hear Ctrl-C before `start_worker`
            results = executor.map(function, items, chunksize=chunk)
        yield from results
    finally:
        executor.shutdown(cancel_futures=True)
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def hearing(handler, name):
    """Let `handler` hear the signal of that name for the block; in a thread it hears nothing."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(getattr(signal, name), handler) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(getattr(signal, name), before)


def start_worker():
    """In a worker: Ctrl-C is the parent's business, which lets running work end; a killed parent ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
