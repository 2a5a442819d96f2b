"""Processes: requests to stop, worker processes that end with their parent, private caches inside cluster jobs."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import MutableMapping
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Flag that becomes true when a signal arrives. Install before slow imports, to catch early signals too.

    A second SIGINT interrupts immediately, so that pressing Ctrl-C twice always works.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._interrupts = 0

    @classmethod
    def install(cls) -> StopRequest:
        """Install handlers for SIGTERM, SIGUSR1 and SIGINT in this process."""
        request = cls()
        for number in SIGNALS:
            signal.signal(number, request._remember)
        # A signal during interpreter shutdown would replace the exit code.
        atexit.register(_ignore)
        return request

    def __bool__(self) -> bool:
        return self._received is not None

    def __str__(self) -> str:
        return self._received.name if self._received else "no request"

    def _remember(self, number: int, _frame: object) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


VARIABLES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def use_private_cache_dirs(environment: MutableMapping[str, str] = os.environ) -> None:
    """In a SLURM job, give this process private cache folders on the node's disk, removed when it ends.

    By default the libraries use the home folder, which nodes often cannot write, and names in /tmp that another user's
    job on the same node may own. Variables that are already set stay, except a TMPDIR that leaked from the login node
    and does not exist here.
    """
    if "SLURM_JOB_ID" not in environment:
        return
    # Checks TMPDIR first and skips folders that are not writable.
    tempfile.tempdir = None
    environment["TMPDIR"] = tempfile.gettempdir()
    missing = [name for name in VARIABLES if name not in environment]
    if not missing:
        return
    folder = tempfile.mkdtemp(prefix=f"udpm-{environment['SLURM_JOB_ID']}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:
        environment[name] = os.path.join(folder, name.lower())


class _Worker(SpawnProcess):
    """A process that signals to the whole process group cannot end before `init_worker` has run in it."""

    def start(self) -> None:
        # A new process inherits the signal mask of the starting thread. Signals that arrive meanwhile stay pending.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # The resource tracker starts with the first worker and unblocks signals.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Worker


SPAWN = _Context()
"""A forked process would inherit locks that other threads hold; a spawned one starts clean. Pass `init_worker` as its
initializer."""


def init_worker() -> None:
    """Initialize a worker: ignore signals, which its parent handles, and end when the parent ends."""
    _ignore()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's worker would outlive a killed parent and wait for work forever.
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
