"""Long work: its progress, and results prepared before they are asked for."""

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
"""Name, length and where it begins to be used, in seconds."""


def duration(seconds: float) -> str:
    """A time in words, such as "45 s", "12 min" or "2.3 days"."""
    for name, length, least in UNITS:
        if seconds >= least:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {name}"
    return f"{max(seconds, 0):.0f} s"


class Progress:
    """Counts what is done, with rate and time left.

    Args:
        total: how much there is to do.
        doing: what is done, e.g. "prepare".
        unit: what is counted, e.g. "image".
        initial: how much an earlier attempt did.
    """

    def __init__(self, total: int, doing: str, unit: str, initial: int = 0) -> None:
        interactive = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=initial, desc=doing, unit=unit, disable=not interactive)
        self._quiet, self._doing, self._unit = interactive, doing, unit
        self._total, self._initial, self._done = total, initial, initial
        self._start = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._quiet or now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        rate = (self._done - self._initial) / (now - self._start)
        minutes = (self._total - self._done) / max(rate, 1e-9) / 60
        print(
            f"{self._doing}: {self._done} of {self._total} {self._unit}s, {rate:.0f} per second, "
            f"{minutes:.1f} minutes left",
            file=sys.stderr,
        )


Item = TypeVar("Item")
Made = TypeVar("Made")

PREFETCH = 2
"""Results that are there, or in the making, before they are asked for."""


def prefetch(
    function: Callable[[Item], Made],
    items: Iterable[Item],
    depth: int = PREFETCH,
    begin: Callable[[], object] | None = None,
) -> Generator[Made, None, None]:
    """A function's results in order, made in a thread of their own; its errors come where its result would.

    Args:
        function: called for one item after the other.
        items: what for.
        depth: results that may be there or in the making, >= 1.
        begin: called first in the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="udpm-ahead", initializer=begin) as pool:
        yield from map_ordered(pool, function, items, depth)


def map_ordered(pool: Executor, function: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Iterator[Made]:
    """A function's results in order, made by a pool; at an error, or if nobody asks any more, the rest is left out.

    Args:
        pool: of threads or processes.
        function: called for every item.
        items: what for.
        depth: results that may be there or in the making, >= 1.
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
    """Items in order, each one only when the next is there: what was launched is waited for after the next launch."""
    last: list[Item] = []
    for item in items:
        yield from last
        last = [item]
    yield from last
