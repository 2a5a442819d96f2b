"""Work that is begun before its result is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 2
"""Results that are there, or in the making, before they are asked for."""


def ahead(
    function: Callable[[Item], Made],
    items: Iterable[Item],
    depth: int = AHEAD,
    begin: Callable[[], object] | None = None,
) -> Iterator[Made]:
    """A function's results in order, made in a thread of their own; its errors come where its result would.

    Args:
        function: called for one item after the other.
        items: what for.
        depth: results that may be there or in the making, >= 1.
        begin: called first in the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="udpm-ahead", initializer=begin) as pool:
        yield from in_order(pool, function, items, depth)


def in_order(pool: Executor, function: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Iterator[Made]:
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


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Items in order, each one only when the next is there: what was launched is waited for after the next launch."""
    last: list[Item] = []
    for item in items:
        yield from last
        last = [item]
    yield from last
