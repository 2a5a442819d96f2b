"""A sample set as image files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from udpm.config.dataset import class_folders
from udpm.core.errors import StoppedEarly
from udpm.core.files import write_json
from udpm.core.folders import atomic_folder
from udpm.core.kinds import IMAGES
from udpm.core.processes import SPAWN, init_worker
from udpm.core.progress import map_ordered
from udpm.sampling.sample_set import load_samples

FORMAT = "udpm-images/1"
RECORD = "export.json"
JPEG_QUALITY = 95
AT_ONCE = 250
"""Files that a process is given to write at a time."""
PER_PROCESS = 2000
"""Files for which one more process is worth its start: some tenths of a second of work."""

Job = tuple[np.ndarray, Path]
"""An image and its file."""


def export_images(samples: Path, folder: Path, layout: str, image_format: str) -> int:
    """Write one file per image, named by its number; outputs of other levels go into folders ``level_l``.

    Args:
        samples: .npz of a sample set.
        folder: where to; an unchanged export is replaced once the new one is whole, anything else is refused.
        layout: "flat", or "classes" for a folder for each class, called by its name where that is known.
        image_format: "png" (lossless) or "jpg" (quality 95).

    Returns:
        The number of files.

    Raises:
        UserError: no readable sample set, or the folder holds something else.
    """
    found = load_samples(samples)
    sets = {"": found.images} | {f"level_{level}": images for level, images in found.outputs.items()}
    digits = max(5, len(str(len(found.images) - 1)))
    total = len(found.images) * len(sets)
    names, classes = found.record.get("class_names", []), found.record.get("classes", 0)
    folders = class_folders(names, classes, {RECORD, *sets})
    by_class = layout == "classes" and classes > 0
    with (
        atomic_folder(folder, IMAGES) as building,
        tqdm(total=total, unit="file", desc="export", disable=not sys.stderr.isatty()) as progress,
    ):
        jobs: list[Job] = []
        for name, images in sets.items():
            for number, (image, label) in enumerate(zip(images, found.labels, strict=True)):
                place = building / name / (folders[label] if by_class else "")
                jobs.append((image, place / f"{number:0{digits}d}.{image_format}"))
        for place in {path.parent for _, path in jobs}:
            place.mkdir(parents=True, exist_ok=True)
        for count in _written(jobs):
            progress.update(count)
        write_json(building / RECORD, {"format": FORMAT, "layout": layout, "samples": found.record})
    return total


def _written(jobs: list[Job]) -> Iterator[int]:
    """Write files, in this process or, where they are many, in several; yields how many more there are."""
    workers = min(len(os.sched_getaffinity(0)), len(jobs) // PER_PROCESS)
    parts = [jobs[start : start + AT_ONCE] for start in range(0, len(jobs), AT_ONCE)]
    if workers < 2:
        yield from map(_write_all, parts)
        return
    try:
        # PNG is compressed by code that holds Python's lock, so that threads would wait for each other.
        with ProcessPoolExecutor(workers, SPAWN, initializer=init_worker) as pool:
            yield from map_ordered(pool, _write_all, parts, 2 * workers)
    except BrokenProcessPool:
        raise StoppedEarly("a worker was killed, perhaps for want of memory: run the same command again") from None


def _write_all(jobs: list[Job]) -> int:
    for image, path in jobs:
        _write(image, path)
    return len(jobs)


def _write(image: np.ndarray, path: Path) -> None:
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(image).save(path, **options)
