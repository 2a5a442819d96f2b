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
    """Becomes true when a signal arrives. Install before slow imports, so that an early signal also ends well.

    A second SIGINT interrupts at once, so that Ctrl-C twice always works.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._interrupts = 0

    @classmethod
    def install(cls) -> StopRequest:
        """Handle SIGTERM, SIGUSR1 and SIGINT of this process from now on."""
        request = cls()
        for number in SIGNALS:
            signal.signal(number, request._remember)
        # While the interpreter takes itself apart, a signal would end it with another exit code than its own.
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
    """In a SLURM job, give this process a cache folder of its own on the node's disk, removed at its end.

    The libraries' own places are the home, which nodes often cannot write, and names in /tmp that another user's job on
    the same node may already own. What the environment already says stays, but for a TMPDIR that leaked from the login
    node and is not here.

    Args:
        environment: variables, changed in place.
    """
    if "SLURM_JOB_ID" not in environment:
        return
    # Looks at TMPDIR and passes over what cannot be written.
    tempfile.tempdir = None
    environment["TMPDIR"] = tempfile.gettempdir()
    missing = [name for name in VARIABLES if name not in environment]
    if not missing:
        return
    folder = tempfile.mkdtemp(prefix=f"udpm-{environment['SLURM_JOB_ID']}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:
        environment[name] = os.path.join(folder, name.lower())


DECIDED_BY_PARENT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class _Worker(SpawnProcess):
    """A process that no signal to the whole group ends before `init_worker` has run in it."""

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
`init_worker`."""


def init_worker() -> None:
    """Start of a worker: signals are its parent's to decide on, and without a parent there is nothing to do."""
    for number in DECIDED_BY_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DECIDED_BY_PARENT)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's worker that outlives a killed parent would wait for work for ever.
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
