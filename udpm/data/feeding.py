"""How fast training is fed on this machine, by level and by where the images are kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from udpm.data.batches import Batches
from udpm.data.cache import Levels, block_sums
from udpm.data.store import Store

IMAGES = 50_000
SECONDS = 1.0
LEVELS = 3


def bench_feeding(side: int, batch: int, device: torch.device) -> Iterator[str]:
    """Measure batches of random images (their content costs the same as any) with flips; nothing is kept.

    Args:
        side: N.
        batch: images per batch.
        device: where batches go.

    Yields:
        Lines of text.
    """
    with tempfile.TemporaryDirectory() as folder:
        levels = random_levels(Path(folder), side, LEVELS, IMAGES)
        yield f"feeding batches of {batch} at side {side} to {device.type}: {IMAGES} images, flipped at random"
        for residence in ("memory", "device"):
            feed = Batches(levels, 2, batch, 0, flip=True, device=device, residence=residence)
            for level in range(1, LEVELS + 1):
                rate = _rate(feed, level, batch, device)
                made = 4 * 3 * (side >> (level - 1)) ** 2
                speed = f"{rate:9.0f} images per second, {rate * made / 1e9:.2f} GB/s of float32"
                yield f"  {residence:6} l = {level} {speed}"


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


def _rate(feed: Batches, level: int, batch: int, device: torch.device) -> float:
    """Images per second, from batches that nobody waits for."""
    for iteration in range(5):
        feed(iteration, level)
    _wait(device)
    start, iteration = time.perf_counter(), 5
    while time.perf_counter() - start < SECONDS:
        feed(iteration, level)
        iteration += 1
    _wait(device)
    return (iteration - 5) * batch / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
