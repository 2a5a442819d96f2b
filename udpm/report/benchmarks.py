"""Records of ``udpm bench``, as tables and figures need them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from udpm.bench.record import read_record
from udpm.config.validation import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Record, completed


class Spread(Record):
    """Quartiles of repetitions."""

    median: NonNegativeFloat
    low: NonNegativeFloat
    high: NonNegativeFloat


class Line(Record):
    """A way of doing a part of the work."""

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
    """A gain switched over alone."""

    part: str
    gain: str
    used: bool
    seconds_with: Spread
    seconds_without: Spread
    speedup: Spread
    cpu_speedup: Spread | None


class Ceilings(Record):
    """The best that the device reaches."""

    float32_flops: PositiveFloat
    bfloat16_flops: PositiveFloat
    copy_bytes: PositiveFloat


class Benchmark(Record):
    """Required content of a record."""

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
    """Read what `udpm bench` wrote; what it does not say is None or empty.

    Raises:
        UserError: missing, unreadable, or not such a record.
    """
    return completed(Benchmark, read_record(path), str(path))
