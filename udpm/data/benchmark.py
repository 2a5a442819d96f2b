"""How fast images are prepared on this machine, and what that is limited by."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.data.fill import CHUNK, Chunk, Work, chunks, do_chunks
from udpm.data.picture import Recipe, Refused, fit, quiet_decoders, to_rgb
from udpm.data.source import Source
from udpm.data.sources import open_source
from udpm.data.store import HEADER_BYTES

STAGES = ("read", "decode", "resize", "write")
SAMPLE = 1024


def bench_preparation(path: str, side: int, workers: int, limit: int) -> Iterator[str]:
    """Measure the preparation of a folder or .zip; nothing is kept.

    Args:
        path: folder or .zip of images.
        side: of the prepared images.
        workers: processes of the last measurement.
        limit: images of each measurement of the whole, at most.

    Yields:
        Lines of text.

    Raises:
        UserError: no images there.
    """
    config = DatasetConfig(source="folder", path=path, side=side)
    source = open_source(config)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(source.reader, Recipe.from_config(config), Path(folder) / "rows")
        _make_room(work.rows, min(limit, len(source.names)), side)
        yield f"preparation of {path} at side {side}: {len(source.names)} images"
        stages, refused = _time_stages(work, source)
        for stage, seconds in stages.items():
            yield f"  {stage:<8} {seconds * 1e6:8.1f} µs per image"
        slowest = max(stages, key=stages.__getitem__)
        yield f"  limited by {slowest}: {stages[slowest] / sum(stages.values()):.0%} of the time"
        if refused:
            yield f"  {refused} of the images measured cannot be used"
        for count in sorted({1, workers}):
            rate = _time_whole(work, source, count, limit)
            yield f"  {rate:8.0f} images per second with {count} process{'es' if count > 1 else ''}"


def _time_stages(work: Work, source: Source) -> tuple[dict[str, float], int]:
    """Seconds for an image by stage, in one process, over images spread evenly; and how many were refused."""
    chosen = np.unique(np.linspace(0, len(source.names) - 1, SAMPLE).astype(np.int64))
    seconds, refused, fitted = dict.fromkeys(STAGES, 0.0), 0, []
    with quiet_decoders():
        for number in chosen:
            start = time.perf_counter()
            try:
                content = source.reader.load(source.names[number], source.keys[number])
                read = time.perf_counter()
                image, _ = to_rgb(content, work.recipe)
                decoded = time.perf_counter()
                fitted.append(fit(image, work.recipe.side))
                resized = time.perf_counter()
            except Refused:
                refused += 1
                continue
            seconds["read"] += read - start
            seconds["decode"] += decoded - read
            seconds["resize"] += resized - decoded
    start = time.perf_counter()
    for first in range(0, len(fitted), CHUNK):
        work.write(0, np.stack(fitted[first : first + CHUNK]))
    seconds["write"] = time.perf_counter() - start
    return {stage: spent / max(1, len(fitted)) for stage, spent in seconds.items()}, refused


def _time_whole(work: Work, source: Source, workers: int, limit: int) -> float:
    """Images per second of whole chunks; the clock starts with the first one done, as workers take a while to start."""
    some: Iterator[Chunk] = itertools.islice(chunks(source), max(2, limit // CHUNK))
    done, start = 0, None
    for _ in do_chunks(work, some, workers, False):
        if start is None:
            start = time.perf_counter()
        else:
            done += CHUNK
    return done / (time.perf_counter() - start) if done else 0.0


def _make_room(rows: Path, count: int, side: int) -> None:
    with open(rows, "wb") as file:
        file.truncate(HEADER_BYTES + (count + 2 * CHUNK) * side**2 * 3)
