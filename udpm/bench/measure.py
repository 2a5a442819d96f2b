"""Measure the time of repeated calls and the ceilings of a device, and record both in one format for all benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from udpm.config.validation import (
    Exactly,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Record,
    read_record,
)
from udpm.core import devices, provenance

if TYPE_CHECKING:
    import torch


SMALLEST, LARGEST = 256, 8192
"""Sides of the matrices whose product is a ceiling: on a CPU doubled until a call takes `LONG_ENOUGH` seconds, on a GPU
the largest, since smaller ones do not keep it busy."""
LONG_ENOUGH = 0.05
COPIED_BYTES = 1 << 28
BEST_OF = 8
"""Number of calls, the fastest of which is a ceiling; on a GPU, of groups of `AT_ONCE` calls."""
AT_ONCE = 10
"""Number of calls issued to a GPU before synchronizing."""
BLOCKS = 5
"""Number of repetitions in `repeated`."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one value per repetition.

    Attributes:
        wall: wall time.
        cpu: CPU time of this process's threads; empty on a GPU, where a thread busy-waits.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[], object], device: torch.device, calls: int = 1) -> None:
        """Add a repetition, the mean of several calls; synchronizes the device before and after."""
        wall, cpu = now(device), time.process_time()
        for _ in range(calls):
            call()
        self.add((now(device) - wall) / calls, (time.process_time() - cpu) / calls, device)

    def add(self, wall: float, cpu: float, device: torch.device) -> None:
        """Add a repetition's seconds on a device."""
        self.wall.append(wall)
        if device.type != "cuda":
            self.cpu.append(cpu)


def now(device: torch.device) -> float:
    """Return the time in seconds after synchronizing the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def repeated(call: Callable[[], object], device: torch.device, seconds: float) -> Timing:
    """Time a call over `BLOCKS` repetitions, each of as many calls as fill the time, after one uncounted call.

    The device is synchronized only between repetitions, which together take about the given seconds.
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
    """Return median, lower and upper quartile, and number of values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high, "count": len(values)}


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure the ceilings of a device: FLOP/s of a large matrix product by type, bytes/s of a large copy."""
    import torch

    kinds = {"float32_flops": torch.float32, "bfloat16_flops": torch.bfloat16}
    found = {name: _product_flops(kind, device) for name, kind in kinds.items()}
    # Not zeros, which a GPU computes and moves faster than other values.
    source = torch.empty(COPIED_BYTES // 8, dtype=torch.int64, device=device).random_()
    target = torch.empty_like(source)
    # A copy reads and writes every byte.
    return found | {"copy_bytes": 2 * COPIED_BYTES / _best(lambda: target.copy_(source), device)}


def _product_flops(kind: torch.dtype, device: torch.device) -> float:
    """Measure FLOP/s of a matrix product, large for a GPU and smaller for a CPU, which would take minutes."""
    import torch

    side = LARGEST if device.type == "cuda" else SMALLEST
    while True:
        matrix = torch.randn(side, side, device=device, dtype=kind)
        if side >= LARGEST or _takes_long(matrix):
            return 2 * side**3 / _best(partial(torch.matmul, matrix, matrix), device)
        side *= 2


def _takes_long(matrix: torch.Tensor) -> bool:
    timing = Timing()
    # The first call may load the kernel.
    for _ in range(2):
        timing.measure(lambda: matrix @ matrix, matrix.device)
    return min(timing.wall) > LONG_ENOUGH


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of some calls, after an uncounted one."""
    call()
    if device.type == "cuda":
        return min(_by_events(call) for _ in range(BEST_OF))
    timing = Timing()
    for _ in range(BEST_OF):
        timing.measure(call, device)
    return min(timing.wall)


def _by_events(call: Callable[[], object]) -> float:
    """Return the seconds of a call by the GPU's clock, the mean of `AT_ONCE` consecutive calls."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(AT_ONCE):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / AT_ONCE


FORMAT = "udpm-bench/1"


@dataclass(frozen=True)
class Workload:
    """Counted work of one call.

    Attributes:
        images: sampled, trained on or read.
        multiply_adds: 0 if not counted.
        bytes: read and written at least; 0 if not counted.
        precision: of the products, "float32" or "bfloat16".
    """

    images: int
    multiply_adds: int = 0
    bytes: int = 0
    precision: str = "float32"


def row(part: str, way: str, timing: Timing, work: Workload, best: dict[str, float], **more: Any) -> dict[str, Any]:
    """Return a row of a record: time and work of one call, and its share of the device's ceilings `best`."""
    found: dict[str, Any] = {
        "part": part,
        "way": way,
        "seconds": spread(timing.wall),
        "cpu_seconds": spread(timing.cpu) if timing.cpu else None,
        "images_per_second": spread([work.images / max(value, 1e-9) for value in timing.wall]),
    }
    seconds = max(found["seconds"]["median"], 1e-9)
    if work.multiply_adds:
        found |= {"multiply_adds": work.multiply_adds, "precision": work.precision}
        found["of_matrix_product"] = 2 * work.multiply_adds / seconds / best[f"{work.precision}_flops"]
    if work.bytes:
        found |= {"bytes": work.bytes, "of_copy": work.bytes / seconds / best["copy_bytes"]}
    return found | more


def record(of: str, device: torch.device, best: dict[str, float], rows: list[dict], **more: Any) -> dict[str, Any]:
    """Return the record of a benchmark of "sampling", "training", "scoring" or "data"."""
    return {
        "format": FORMAT,
        "of": of,
        **more,
        "ceilings": best,
        "rows": rows,
        "device": devices.describe(device),
        "provenance": provenance.record(),
    }


class Spread(Record):
    """Quartiles of repetitions."""

    median: NonNegativeFloat
    low: NonNegativeFloat
    high: NonNegativeFloat


class Line(Record):
    """One way of doing a part of the work."""

    part: str
    way: str = ""
    seconds: Spread
    cpu_seconds: Spread | None
    images_per_second: Spread
    speedup: Spread | None = None
    cpu_speedup: Spread | None = None
    multiply_adds: NonNegativeInt | None = None
    of_matrix_product: NonNegativeFloat | None = None
    bytes: NonNegativeInt | None = None
    of_copy: NonNegativeFloat | None = None
    peak_bytes: NonNegativeInt | None = None


class Gain(Record):
    """A gain switched alone."""

    part: str
    gain: str
    used: bool
    seconds_with: Spread
    seconds_without: Spread
    speedup: Spread
    cpu_speedup: Spread | None


class Ceilings(Record):
    """Ceilings of the device."""

    float32_flops: PositiveFloat
    bfloat16_flops: PositiveFloat
    copy_bytes: PositiveFloat


class Benchmark(Record):
    """Required content of a record."""

    format: Annotated[str, Exactly(FORMAT)]
    of: str
    device: str
    precision: str | None = None
    batch: PositiveInt
    ceilings: Ceilings
    rows: Annotated[list[Line], Field(min_length=1)]
    gains: list[Gain] = []
    images_per_second: PositiveFloat | None = None
    steps_per_second: PositiveFloat | None = None


def read_benchmark(path: str | Path) -> dict[str, Any]:
    """Read a record of a benchmark, with None or an empty list for what it lacks.

    Raises:
        UserError: missing, unreadable, not such a record, or changed since it was written.
    """
    return read_record(Benchmark, path, "benchmark record", remedy="`udpm bench` makes it", fill=True)
