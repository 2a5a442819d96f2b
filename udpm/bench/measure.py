"""What benchmarks measure with: repetitions, alone or in turn, memory, and what the device reaches at best."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udpm.core.errors import UserError
from udpm.core.processes import SPAWN, init_worker

if TYPE_CHECKING:
    import torch

SMALLEST, LARGEST = 256, 8192
"""Sides of the matrices whose product is a ceiling: doubled on a CPU until one call takes `LONG_ENOUGH` seconds. A GPU
takes the largest, for anything smaller leaves it idle part of the time."""
LONG_ENOUGH = 0.05
COPIED_BYTES = 1 << 28
BEST_OF = 8
"""Calls of which a ceiling is the fastest; on a GPU, groups of `AT_ONCE` calls."""
AT_ONCE = 10
"""Calls that a GPU is given before any is waited for."""
BLOCKS = 5
"""Repetitions of what is measured for a time."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, a value for each repetition.

    Attributes:
        wall: by the clock.
        cpu: of this process's threads; none on a GPU, for which a thread waits by asking again and again.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[], object], device: torch.device, calls: int = 1) -> None:
        """Add a repetition, the mean of so many calls; the device is waited for on both sides."""
        wall, cpu = now(device), time.process_time()
        for _ in range(calls):
            call()
        self.add((now(device) - wall) / calls, (time.process_time() - cpu) / calls, device)

    def add(self, wall: float, cpu: float, device: torch.device) -> None:
        """Add a repetition's seconds on a device."""
        self.wall.append(wall)
        if device.type != "cuda":
            self.cpu.append(cpu)

    @classmethod
    def mean(cls, timings: list[Timing], shares: list[float]) -> Timing:
        """Repetition by repetition, the weighted mean of several calls' seconds; shares sum to 1."""

        def mixed(kind: str) -> list[float]:
            repetitions = zip(*(getattr(timing, kind) for timing in timings), strict=True)
            return [sum(share * value for share, value in zip(shares, one, strict=True)) for one in repetitions]

        return cls(mixed("wall"), mixed("cpu"))


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turn(calls: dict[str, Callable[[], object]], repetitions: int, device: torch.device) -> dict[str, Timing]:
    """Time several ways to do the same thing, in turn, so that whatever disturbs the machine disturbs them alike.

    Args:
        calls: by name. Each is called once before, not counted.
        repetitions: of every call; every other time in reverse order.
        device: where they run.
    """
    for call in calls.values():
        call()
    timings = {name: Timing() for name in calls}
    for repetition in range(repetitions):
        for name in list(calls)[:: -1 if repetition % 2 else 1]:
            timings[name].measure(calls[name], device)
    return timings


def repeated(call: Callable[[], object], device: torch.device, seconds: float) -> Timing:
    """Time a call over `BLOCKS` repetitions of as many calls as fill the time, at least one, after one that does not
    count; within a repetition nobody waits for the device.

    Args:
        call: what is timed.
        device: where it runs.
        seconds: of all repetitions together, about.
    """
    call()
    timing = Timing()
    for _ in range(BLOCKS):
        began, cpu, calls = now(device), time.process_time(), 0
        while not calls or time.perf_counter() - began < seconds / BLOCKS:
            call()
            calls += 1
        timing.add((now(device) - began) / calls, (time.process_time() - cpu) / calls, device)
    return timing


def spread(values: list[float]) -> dict[str, float]:
    """Median, lower and upper quartile, and number of values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high, "count": len(values)}


def speedup(slow: Timing, fast: Timing) -> dict[str, Any]:
    """How many times faster, from pairs of one repetition: `speedup` by the clock, `cpu_speedup` in CPU seconds, None
    where these are not known."""
    cpu = spread(_ratios(slow.cpu, fast.cpu)) if slow.cpu and fast.cpu else None
    return {"speedup": spread(_ratios(slow.wall, fast.wall)), "cpu_speedup": cpu}


def ceilings(device: torch.device) -> dict[str, float]:
    """The best that this device reaches: FLOP/s of a large product of matrices by type, bytes/s of a large copy."""
    import torch

    found = {}
    for kind in (torch.float32, torch.bfloat16):
        found[f"{str(kind).removeprefix('torch.')}_flops"] = _product_flops(kind, device)
    # Not zeros: a GPU computes and moves those faster than other values.
    source = torch.empty(COPIED_BYTES // 8, dtype=torch.int64, device=device).random_()
    target = torch.empty_like(source)
    # A copy reads and writes every byte.
    return found | {"copy_bytes": 2 * COPIED_BYTES / _best(lambda: target.copy_(source), device)}


def peak_bytes(function: Callable[..., object], *arguments: object) -> int:
    """Memory that a call needs at most in a process of its own, everything loaded included; on a GPU, what PyTorch
    allocated there.

    Args:
        function: of a module, so that another process finds it.
        arguments: that can be pickled.

    Raises:
        UserError: the process was killed.
    """
    try:
        with ProcessPoolExecutor(1, SPAWN, initializer=init_worker) as pool:
            return pool.submit(_peak, function, *arguments).result()
    except BrokenProcessPool:
        raise UserError("--memory: the process that measures was killed, probably for want of memory") from None


def _peak(function: Callable[..., object], *arguments: object) -> int:
    import torch

    function(*arguments)
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Not getrusage: its maximum is the parent's where that was larger when this process began.
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(kilobytes) * 1024


def _product_flops(kind: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of matrices, as large as this device needs: what a GPU does at once takes a CPU minutes."""
    import torch

    side = LARGEST if device.type == "cuda" else SMALLEST
    while True:
        matrix = torch.randn(side, side, device=device, dtype=kind)
        if side >= LARGEST or _takes_long(matrix):
            return 2 * side**3 / _best(partial(torch.matmul, matrix, matrix), device)
        side *= 2


def _takes_long(matrix: torch.Tensor) -> bool:
    timing = Timing()
    # The first call is of a kernel that may have to be loaded.
    for _ in range(2):
        timing.measure(lambda: matrix @ matrix, matrix.device)
    return min(timing.wall) > LONG_ENOUGH


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    call()
    if device.type == "cuda":
        return min(_by_events(call) for _ in range(BEST_OF))
    timing = Timing()
    for _ in range(BEST_OF):
        timing.measure(call, device)
    return min(timing.wall)


def _by_events(call: Callable[[], object]) -> float:
    """Seconds of a call by the GPU's own clock, the mean of `AT_ONCE` calls one after the other."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(AT_ONCE):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / AT_ONCE


def _ratios(slow: list[float], fast: list[float]) -> list[float]:
    # A clock too coarse for a tiny call must not divide by zero.
    return [max(a, 1e-9) / max(b, 1e-9) for a, b in zip(slow, fast, strict=True)]
