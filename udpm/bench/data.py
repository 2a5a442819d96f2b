"""Measure the speed of preparing images and of feeding training, and find the bottleneck."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from udpm.bench.measure import BLOCKS, Timing, Workload, repeated, row
from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.data import fill
from udpm.data.decode import ImageError, Preprocessing, fit, quiet_decoders, to_rgb
from udpm.data.levels import Levels, block_sums
from udpm.data.open import open_source
from udpm.data.source import Source
from udpm.data.store import HEADER_BYTES, Store
from udpm.training.batch import Batches

IMAGES = 50_000
SECONDS = 1.0
LEVELS = 3


def bench_feeding(side: int, batch: int, device: torch.device, best: dict[str, float]) -> list[dict[str, Any]]:
    """Measure batches of random images with flips, sent to a device whose ceilings are `best`; nothing is kept.

    Returns:
        Rows of a record. Bytes are the block sums read and the float32 values written.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        levels = random_levels(Path(folder), side, LEVELS, IMAGES)
        for location in ("memory", "device"):
            feed = Batches(levels, 2, batch, 0, flip=True, device=device, location=location)
            for level in range(1, LEVELS + 1):
                timing = repeated(_caller(feed, level), device, SECONDS)
                values = batch * 3 * (side >> (level - 1)) ** 2
                work = Workload(batch, 0, values * (4 + levels.sums[level - 1].itemsize))
                rows.append(row(f"l = {level}", location, timing, work, best, float32_bytes=4 * values))
    return rows


def feeding_lines(found: dict[str, Any]) -> list[str]:
    """Format the rows of `bench_feeding` in a record."""
    fed = [each for each in found["rows"] if "float32_bytes" in each]
    what = f"feeding batches of {found['batch']} at side {found['side']} to {found['device']}"
    return [
        f"{what}: {found['fed']} images, flipped at random",
        *(
            f"  {each['way']:6} {each['part']} {each['images_per_second']['median']:9.0f} images per second, "
            f"{each['float32_bytes'] / each['seconds']['median'] / 1e9:.2f} GB/s of float32"
            for each in fed
        ),
    ]


def random_levels(folder: Path, side: int, levels: int, count: int) -> Levels:
    """Make an unlabelled data set of random bytes, with its arrays in a folder."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    arrays = [images, *(block_sums(images, level) for level in range(1, levels))]
    maps = []
    for level, values in enumerate(arrays):
        np.save(folder / f"{level}.npy", values)
        maps.append(np.load(folder / f"{level}.npy", mmap_mode="r"))
    record = {"side": side, "classes": 0, "count": count, "splits": {"train": [0, count]}, "sha256": ""}
    return Levels(Store(folder, maps[0], np.zeros(count, dtype=np.int64), record), maps)


def _caller(feed: Batches, level: int) -> Callable[[], object]:
    """Return a function that makes the next iteration's batch."""
    iterations = itertools.count()
    return lambda: feed(next(iterations), level)


STAGES = ("read", "decode", "resize", "write")
PREPARATION = "preparation"
SAMPLE = 1024
CHUNKS_PER_PROCESS = 8
"""Least number of chunks for each process. Most of fewer chunks would end at the same time: far too high a speed."""


def open_for_bench(path: str, side: int) -> tuple[DatasetConfig, Source]:
    """Open a folder or .zip of images for preparation at a side.

    Raises:
        UserError: no images found.
    """
    config = DatasetConfig(source="folder", path=path, side=side)
    return config, open_source(config)


def bench_preparation(
    config: DatasetConfig, source: Source, workers: int, limit: int, best: dict[str, float]
) -> dict[str, Any]:
    """Measure the preparation of a folder or .zip; nothing is kept.

    Args:
        workers: number of processes of the last measurement; fewer if there are too few images to measure them.
        limit: maximum number of images in each measurement of the whole.
        best: ceilings of the CPU.

    Returns:
        Entries of a record: rows for the stages of one image, with quartiles over images (over chunks for writing),
        and for the whole; the number of images found, and of measured ones that were refused.

    Raises:
        UserError: none of the measured images can be used.
    """
    path, side = config.path, config.side
    with tempfile.TemporaryDirectory() as folder:
        work = fill.Work(source.reader, Preprocessing.from_config(config), Path(folder) / "rows")
        with open(work.rows, "wb") as file:
            file.truncate(HEADER_BYTES + (min(limit, len(source.names)) + 2 * fill.CHUNK) * side**2 * 3)
        stages, refused, stored = _time_stages(work, source)
        if not stored:
            raise UserError(f"{path}: none of the measured images can be used")
        chunks = list(itertools.islice(fill.chunks(source), max(2, limit // fill.CHUNK)))
        workers = max(1, min(workers, len(chunks) // CHUNKS_PER_PROCESS))
        whole = {count: _time_whole(work, chunks, count) for count in sorted({1, workers})}
    moved = {"read": stored, "write": 3 * side**2}
    rows = [
        row(stage, PREPARATION, timing, Workload(1, 0, moved.get(stage, 0)), best, mean_seconds=fmean(timing.wall))
        for stage, timing in stages.items()
    ]
    rows += [
        row("whole", f"{count} process{'es' if count > 1 else ''}", timing, Workload(1, 0, sum(moved.values())), best)
        for count, timing in whole.items()
    ]
    return {"path": path, "side": side, "images": len(source.names), "refused": refused, "rows": rows}


def preparation_lines(found: dict[str, Any]) -> list[str]:
    """Format the rows of `bench_preparation` in a record."""
    seconds = {each["part"]: each["mean_seconds"] for each in found["rows"] if each["way"] == PREPARATION}
    slowest = max(seconds, key=seconds.__getitem__)
    return [
        f"preparation of {found['path']} at side {found['side']}: {found['images']} images",
        *(f"  {stage:<8} {spent * 1e6:8.1f} µs per image" for stage, spent in seconds.items()),
        f"  limited by {slowest}: {seconds[slowest] / sum(seconds.values()):.0%} of the time",
        *([f"  {found['refused']} of the measured images cannot be used"] if found["refused"] else []),
        *(
            f"  {each['images_per_second']['median']:8.0f} images per second with {each['way']}"
            for each in found["rows"]
            if each["part"] == "whole"
        ),
    ]


def _time_stages(work: fill.Work, source: Source) -> tuple[dict[str, Timing], int, int]:
    """Time the stages of evenly spaced images in one process.

    Returns:
        Timings of an image by stage, the number of refused images, and the mean size of an image file in bytes.
    """
    chosen = np.unique(np.linspace(0, len(source.names) - 1, SAMPLE).astype(np.int64))
    timings, refused, fitted, stored = {stage: Timing() for stage in STAGES}, 0, [], 0
    with quiet_decoders():
        for number in chosen:
            ends = [_clocks()]
            try:
                content = source.reader.load(source.names[number], source.keys[number])
                ends.append(_clocks())
                image, _ = to_rgb(content, work.recipe)
                ends.append(_clocks())
                fitted.append(fit(image, work.recipe.side))
                ends.append(_clocks())
            except ImageError:
                refused += 1
                continue
            stored += len(content)
            for stage, begin, end in zip(STAGES, ends, ends[1:], strict=False):
                _add(timings[stage], begin, end, 1)
    for first in range(0, len(fitted), fill.CHUNK):
        part = np.stack(fitted[first : first + fill.CHUNK])
        begin = _clocks()
        work.write(0, part)
        _add(timings["write"], begin, _clocks(), len(part))
    return timings, refused, round(stored / max(1, len(fitted)))


def _time_whole(work: fill.Work, chunks: list[fill.Chunk], workers: int) -> Timing:
    """Time an image in whole chunks, in a few blocks; the CPU time of several processes is unknown.

    With several processes, which take a while to start, timing starts after as many chunks.
    """
    stamps = [(0, _clocks())]
    for outcome in fill.process_chunks(work, chunks, workers, False):
        stamps.append((stamps[-1][0] + sum(outcome.modes.values()) + len(outcome.refused), _clocks()))
    stamps = stamps[workers:] if workers > 1 else stamps
    bounds = np.unique(np.linspace(0, len(stamps) - 1, BLOCKS + 1).astype(int))
    timing = Timing()
    for first, last in itertools.pairwise(bounds):
        (before, begin), (after, end) = stamps[first], stamps[last]
        _add(timing, begin, end, after - before)
    return timing if workers == 1 else Timing(timing.wall)


def _clocks() -> tuple[float, float]:
    """Return wall and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def _add(timing: Timing, begin: tuple[float, float], end: tuple[float, float], images: int) -> None:
    timing.wall.append((end[0] - begin[0]) / images)
    timing.cpu.append((end[1] - begin[1]) / images)
