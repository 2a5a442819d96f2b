"""From a source to a prepared store."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image
from tqdm import tqdm

from udpm.config.dataset import DatasetConfig
from udpm.core import provenance
from udpm.core.errors import UserError
from udpm.core.files import atomic_folder, write_json
from udpm.data.sources import Split, open_source
from udpm.data.store import FORMAT, RECORD


def prepare(config: DatasetConfig, folder: str | Path) -> None:
    """Write ``images.npy``, ``labels.npy`` and, last, ``dataset.json``.

    Args:
        config: the data set.
        folder: where to; a store already there is replaced once the new one is whole.

    Raises:
        UserError: missing or unreadable images, or not as many as the configuration expects.
    """
    splits = open_source(config)
    if config.expected_count is not None and splits[0].count != config.expected_count:
        raise UserError(f"{config.path}: has {splits[0].count} training images, expected {config.expected_count}")
    with atomic_folder(folder) as building:
        _write(config, splits, building)


def _write(config: DatasetConfig, splits: list[Split], folder: Path) -> None:
    count, side = sum(split.count for split in splits), config.side
    images = open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, side, side, 3))
    labels = np.zeros(count, dtype=np.int64)
    digest = hashlib.sha256()
    start, ranges = 0, {}
    with tqdm(total=count, unit="image", desc="prepare", disable=not sys.stderr.isatty()) as progress:
        for split in splits:
            ranges[split.name] = [start, start + split.count]
            for index, (image, label) in enumerate(split.items, start=start):
                images[index] = resize(image, side)
                labels[index] = label
                digest.update(images[index].tobytes())
                progress.update()
            start += split.count
    images.flush()
    np.save(folder / "labels.npy", labels)
    digest.update(labels.astype("<i8").tobytes())
    write_json(
        folder / RECORD,
        {
            "format": FORMAT,
            "description": config.description,
            "licence": config.licence,
            "side": side,
            "count": count,
            "classes": config.classes,
            "splits": ranges,
            "preprocessing": "RGB, shorter side to the given side (bicubic, antialiased), centre crop",
            "config": config.model_dump(mode="json"),
            "sha256": digest.hexdigest(),
            "provenance": provenance.record(),
        },
    )


def resize(image: Image.Image, side: int) -> np.ndarray:
    """Scale the shorter side to `side` (bicubic, antialiased when shrinking), then crop the centre.

    Returns:
        (side, side, 3) uint8.
    """
    width, height = image.size
    factor = side / min(width, height)
    if factor != 1:
        size = (max(side, round(width * factor)), max(side, round(height * factor)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).convert("RGB"))
