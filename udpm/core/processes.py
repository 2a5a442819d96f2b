"""Worker processes: how they start, and how they end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess

DECIDED_BY_PARENT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class _Worker(SpawnProcess):
    """A process that no signal to the whole group ends before `obey_parent` has run in it."""

    def start(self) -> None:
        # A new process inherits the mask of the thread that starts it. What arrives here meanwhile is kept.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, DECIDED_BY_PARENT)
        try:
            # The library's own helper process, which comes with the first worker, unblocks signals when it starts.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, DECIDED_BY_PARENT)
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Worker


SPAWN = _Context()
"""A forked process would inherit locks that other threads hold; a spawned one starts clean. What runs in it begins with
`obey_parent`."""


def obey_parent() -> None:
    """Start of a worker: signals are its parent's to decide on, and without a parent there is nothing to do."""
    for number in DECIDED_BY_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DECIDED_BY_PARENT)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's worker that outlives a killed parent would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)
