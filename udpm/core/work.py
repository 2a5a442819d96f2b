"""Long work: its progress, results computed ahead, requests to stop, and processes that end with their parent."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TypeVar

SECONDS_BETWEEN_LINES = 10
UNITS = (("days", 86400, 2 * 86400), ("h", 3600, 2 * 3600), ("min", 60, 120))
"""Name of a unit, its length in seconds, and the shortest duration shown in it."""


def duration(seconds: float) -> str:
    """Format a duration, such as "45 s", "12 min" or "2.3 days"."""
    for name, length, least in UNITS:
        if seconds >= least:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {name}"
    return f"{max(seconds, 0):.0f} s"


class Progress:
    """Show progress, rate and remaining time: as a bar on a terminal, else as a line every ten seconds.

    Args:
        doing: the work, e.g. "prepare".
        unit: an item, e.g. "image".
        initial: number of items that an earlier attempt finished.
    """

    def __init__(self, total: int, doing: str, unit: str, initial: int = 0) -> None:
        from tqdm import tqdm

        interactive = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=initial, desc=doing, unit=unit, disable=not interactive)
        self._quiet, self._doing, self._unit = interactive, doing, unit
        self._total, self._initial, self._done = total, initial, initial
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """Add `count` finished items."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._quiet or now - self._shown < SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        rate = (self._done - self._initial) / (now - self._start)
        minutes, digits = (self._total - self._done) / max(rate, 1e-9) / 60, 0 if rate >= 10 else 2
        print(
            f"{self._doing}: {self._done} of {self._total} {self._unit}s, {rate:.{digits}f} per second, "
            f"{minutes:.1f} minutes left",
            file=sys.stderr,
        )


Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetch(
    function: Callable[[Item], Made], items: Iterable[Item], depth: int = 2, begin: Callable[[], object] | None = None
) -> Generator[Made, None, None]:
    """Yield a function's results in order, computed ahead in a thread. An error is raised where its result would be.

    Args:
        function: called with one item after the other.
        depth: number of results to compute ahead, >= 1.
        begin: called first in the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="udpm-ahead", initializer=begin) as pool:
        yield from map_ordered(pool, function, items, depth)


def map_ordered(pool: Executor, function: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Iterator[Made]:
    """Yield a function's results in order, computed by a pool. Cancel the rest after an error, or if closed early.

    Args:
        depth: number of results to compute ahead, >= 1.
    """
    left = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(left, depth))
    try:
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(left, 1))
            yield made
    finally:
        for future in waiting:
            future.cancel()


def delay_by_one(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after taking the next, so that work launched for the next overlaps with waiting for this one."""
    last: list[Item] = []
    for item in items:
        yield from last
        last = [item]
    yield from last


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
