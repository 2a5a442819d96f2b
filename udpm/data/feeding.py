"""How fast training is fed on this machine, by level and by where the images are kept."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udpm.core.measure import repeated
from udpm.core.speed import Work, row
from udpm.data.batches import Batches
from udpm.data.cache import Levels, block_sums
from udpm.data.store import Store

IMAGES = 50_000
SECONDS = 1.0
LEVELS = 3


def bench_feeding(side: int, batch: int, device: torch.device, best: dict[str, float]) -> list[dict[str, Any]]:
    """Measure batches of random images (their content costs the same as any) with flips; nothing is kept.

    Args:
        side: N.
        batch: images per batch.
        device: where batches go.
        best: its ceilings.

    Returns:
        Rows of a record. Bytes are the block sums read and the float32 values written.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        levels = random_levels(Path(folder), side, LEVELS, IMAGES)
        for residence in ("memory", "device"):
            feed = Batches(levels, 2, batch, 0, flip=True, device=device, residence=residence)
            for level in range(1, LEVELS + 1):
                timing = repeated(_caller(feed, level), device, SECONDS)
                values = batch * 3 * (side >> (level - 1)) ** 2
                work = Work(batch, 0, values * (4 + levels.sums[level - 1].itemsize))
                rows.append(row(f"l = {level}", residence, timing, work, best, float32_bytes=4 * values))
    return rows


def feeding_lines(found: dict[str, Any]) -> list[str]:
    """Of a record, what `bench_feeding` found, as text."""
    fed = [each for each in found["rows"] if "float32_bytes" in each]
    what = f"feeding batches of {found['batch']} at side {found['side']} to {found['device']}"
    lines = [f"{what}: {found['fed']} images, flipped at random"]
    for each in fed:
        rate = each["images_per_second"]["median"]
        made = each["float32_bytes"] / each["seconds"]["median"]
        lines.append(
            f"  {each['way']:6} {each['part']} {rate:9.0f} images per second, {made / 1e9:.2f} GB/s of float32"
        )
    return lines


def random_levels(folder: Path, side: int, levels: int, count: int) -> Levels:
    """A data set of random bytes for benchmarks, unlabelled.

    Args:
        folder: where its arrays are written.
        side: of the images.
        levels: L.
        count: images.
    """
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    arrays = [images, *(block_sums(images, level) for level in range(1, levels))]
    maps = []
    for level, values in enumerate(arrays):
        np.save(folder / f"{level}.npy", values)
        maps.append(np.load(folder / f"{level}.npy", mmap_mode="r"))
    record = {"side": side, "classes": 0, "count": count, "splits": {"train": [0, count]}, "sha256": ""}
    return Levels(Store(folder, maps[0], np.zeros(count, dtype=np.int64), record), maps)


def _caller(feed: Batches, level: int) -> Callable[[], object]:
    """The next iteration's batch at every call."""
    iterations = itertools.count()
    return lambda: feed(next(iterations), level)
