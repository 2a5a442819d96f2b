"""Level caches: H^l x_0 of every image as exact integer block sums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from udpm.core.errors import UserError
from udpm.core.files import atomic_folder, read_json, sha256, write_json
from udpm.data.store import Store, open_array, open_store

FORMAT = "udpm-cache/1"
RECORD = "cache.json"
CHUNK = 4096


@dataclass(frozen=True)
class Levels:
    """A data set at all levels.

    Attributes:
        store: the images.
        sums: block sums of level l at index l: (N, side/2^l, side/2^l, 3); index 0 is the images themselves.
    """

    store: Store
    sums: list[np.ndarray]


def sum_type(level: int) -> type:
    """Smallest unsigned type that holds 255·4^level."""
    return np.uint8 if level == 0 else np.uint16 if level <= 4 else np.uint32


def block_sums(images: np.ndarray, level: int) -> np.ndarray:
    """Sums over blocks of 2^level × 2^level pixels.

    Args:
        images: (n, side, side, 3) uint8.
        level: >= 0.

    Returns:
        (n, side/2^level, side/2^level, 3) of `sum_type(level)`; exact.
    """
    count, side = images.shape[:2]
    small, block = side >> level, 1 << level
    blocks = images.reshape(count, small, block, small, block, 3)
    return blocks.sum(axis=(2, 4), dtype=sum_type(level))


def decode(sums: np.ndarray, level: int, scale: int) -> np.ndarray:
    """H^l x_0 = s^l·(2S/(255·4^l) - 1), in float64, rounded once to float32.

    Args:
        sums: block sums S of `level`.
        level: l.
        scale: s, the sum of H's taps (2 or 1).
    """
    return decoding_table(level, scale)[sums] if level <= 4 else _value(sums, level, scale)


def decoding_table(level: int, scale: int) -> np.ndarray:
    """The float32 value of every possible sum of `level`, (255·4^level + 1,)."""
    return _value(np.arange(255 * 4**level + 1), level, scale)


def _value(sums: np.ndarray, level: int, scale: int) -> np.ndarray:
    return (scale**level * (2.0 * sums.astype(np.float64) / (255 * 4**level) - 1.0)).astype(np.float32)


def write_cache(dataset: str | Path, folder: str | Path) -> None:
    """Write the block sums of all levels that the side allows (``level_l.npy``) and, last, ``cache.json``.

    Raises:
        UserError: the data set is missing or broken.
    """
    store = open_store(dataset)
    with atomic_folder(folder) as building:
        files = {}
        for level in range(1, (store.side & -store.side).bit_length()):
            path = building / f"level_{level}.npy"
            _write_level(store, level, path)
            files[path.name] = sha256(path)
        write_json(building / RECORD, {"format": FORMAT, "dataset_sha256": store.digest, "files": files})


def _write_level(store: Store, level: int, path: Path) -> None:
    count, small = len(store.images), store.side >> level
    sums = open_memmap(path, mode="w+", dtype=sum_type(level), shape=(count, small, small, 3))
    for start in range(0, count, CHUNK):
        sums[start : start + CHUNK] = block_sums(store.images[start : start + CHUNK], level)
    sums.flush()


def open_levels(dataset: str | Path, cache: str | Path, levels: int) -> Levels:
    """Open a data set with its cached levels 1..levels - 1, as training with L = `levels` needs them.

    Raises:
        UserError: missing or unreadable, or the cache belongs to other images.
    """
    store, cache = open_store(dataset), Path(cache)
    record: dict[str, Any] = read_json(cache / RECORD, "level cache's record (run `udpm cache` first)")
    if record.get("format") != FORMAT or record.get("dataset_sha256") != store.digest:
        raise UserError(f"{cache}: was not made from the images in {store.folder}; delete it and run `udpm cache`")
    sums = [store.images]
    for level in range(1, levels):
        small = store.side >> level
        path = cache / f"level_{level}.npy"
        sums.append(open_array(path, (len(store.images), small, small, 3), sum_type(level)))
    return Levels(store, sums)
