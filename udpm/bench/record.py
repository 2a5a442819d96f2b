"""The record of a benchmark: one format for drawing, training, scoring and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udpm.bench.measure import Timing, spread
from udpm.core import devices, provenance
from udpm.core.arrays import check_seal
from udpm.core.errors import UserError
from udpm.core.reading import read_json

if TYPE_CHECKING:
    import torch

FORMAT = "udpm-bench/1"


@dataclass(frozen=True)
class Work:
    """What one call does, counted.

    Attributes:
        images: drawn, trained on or read.
        multiply_adds: 0 where none are counted.
        bytes: read and written at the least; 0 where none are counted.
        precision: of the products, "float32" or "bfloat16".
    """

    images: int
    multiply_adds: int = 0
    bytes: int = 0
    precision: str = "float32"


def row(part: str, way: str, timing: Timing, work: Work, best: dict[str, float], **more: Any) -> dict[str, Any]:
    """A line of a record: what one call took and did, and its share of what the device reaches at best.

    Args:
        part: of the work.
        way: of doing it.
        timing: of the call.
        work: of the call.
        best: the device's ceilings.
        more: further entries.
    """
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
    """The record of a benchmark.

    Args:
        of: "sampling", "training", "scoring" or "data".
        device: where it ran.
        best: its ceilings.
        rows: as `row` makes them.
        more: further entries.
    """
    return {
        "format": FORMAT,
        "of": of,
        **more,
        "ceilings": best,
        "rows": rows,
        "device": devices.describe(device),
        "provenance": provenance.record(),
    }


def read_record(path: str | Path) -> dict[str, Any]:
    """Read what `udpm bench` wrote.

    Raises:
        UserError: missing, unreadable, not such a record, or changed since it was written.
    """
    found = read_json(path, "benchmark record")
    if found.get("format") != FORMAT:
        raise UserError(f"{path}: format is {found.get('format')!r}, expected {FORMAT!r}; udpm bench makes it")
    check_seal(path, found)
    return found
