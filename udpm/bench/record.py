"""The record of a benchmark, in one format for sampling, training, scoring and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from udpm.bench.measure import Timing, spread
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
