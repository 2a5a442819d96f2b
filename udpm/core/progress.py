"""Progress of long work, and results computed ahead in other threads or processes."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

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
        minutes = (self._total - self._done) / max(rate, 1e-9) / 60
        print(
            f"{self._doing}: {self._done} of {self._total} {self._unit}s, {rate:.0f} per second, "
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
