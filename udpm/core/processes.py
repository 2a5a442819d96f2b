"""Worker processes: how they start, and how they end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

SPAWN = multiprocessing.get_context("spawn")
"""A forked process would inherit locks that other threads hold; a spawned one starts clean."""


def obey_parent() -> None:
    """Start of a worker: signals are its parent's to decide on, and without a parent there is nothing to do."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's worker that outlives a killed parent would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)
