"""Level caches: H^l x_0 of every image as exact integer block sums."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from udpm.config.validation import Exactly, NonNegativeInt, Record, Sha256, validate
from udpm.core.arrays import check_seal, derive_seed, sealed
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json
from udpm.core.folders import atomic_folder
from udpm.core.kinds import CACHE
from udpm.core.reading import read_json
from udpm.core.work import Progress
from udpm.data.store import Store, array_header, check_files, open_array, open_store

FORMAT = "udpm-cache/1"
RECORD = "cache.json"
CHUNK = 4096
SAMPLE = 256
"""Number of images on which a new cache is checked."""


class CacheRecord(Record):
    """Required content of ``cache.json``."""

    format: Annotated[str, Exactly(FORMAT)]
    dataset_sha256: Sha256
    files: dict[str, Sha256]
    images_checked: NonNegativeInt = 0


@dataclass(frozen=True)
class Levels:
    """A data set at all levels.

    `sums` has the block sums of level l at index l: (N, side/2^l, side/2^l, 3); index 0 is the images themselves.
    """

    store: Store
    sums: list[np.ndarray]


def sum_type(level: int) -> type:
    """Return the smallest unsigned type that holds 255·4^level."""
    return np.uint8 if level == 0 else np.uint16 if level <= 4 else np.uint32


def block_sums(images: np.ndarray, level: int) -> np.ndarray:
    """Sum over blocks of 2^level × 2^level pixels.

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
    """Compute H^l x_0 = s^l·(2S/(255·4^l) - 1) from block sums S in float64, rounded once to float32; s is `scale`."""
    return decoding_table(level, scale)[sums] if level <= 4 else _value(sums, level, scale)


def decoding_table(level: int, scale: int) -> np.ndarray:
    """Compute the float32 value of every possible sum of `level`, (255·4^level + 1,)."""
    return _value(np.arange(255 * 4**level + 1), level, scale)


def _value(sums: np.ndarray, level: int, scale: int) -> np.ndarray:
    return (scale**level * (2.0 * sums.astype(np.float64) / (255 * 4**level) - 1.0)).astype(np.float32)


def write_cache(dataset: str | Path, folder: str | Path) -> list[int]:
    """Write the block sums of all levels that the side allows (``level_l.npy``) and, last, ``cache.json``.

    One pass over the images computes each level from the previous one; a sample is checked against direct sums.

    Returns:
        The sides of the levels, finest first.

    Raises:
        UserError: the data set is missing or was changed, the disk lost what was written, or another process makes this
            cache.
    """
    store = open_store(dataset)
    with atomic_folder(folder, CACHE) as building:
        paths = {level: building / f"level_{level}.npy" for level in levels_of(store.side)}
        _write_levels(store, paths)
        checked = _check_sample(store, paths)
        files = {path.name: sha256(path) for path in paths.values()}
        record = {"format": FORMAT, "dataset_sha256": store.digest, "files": files, "images_checked": checked}
        write_json(building / RECORD, sealed(record))
    return [store.side >> level for level in paths]


def levels_of(side: int) -> range:
    """Return the levels above 0 of images with this side, one for each time it can be halved."""
    return range(1, (side & -side).bit_length())


def _write_levels(store: Store, paths: dict[int, Path]) -> None:
    digest = hashlib.sha256()
    with ExitStack() as stack, Progress(len(store.images), "cache", "image") as progress:
        files = {level: stack.enter_context(open(path, "wb")) for level, path in paths.items()}
        for level, file in files.items():
            small = store.side >> level
            file.write(array_header((len(store.images), small, small, 3), sum_type(level)))
        for images in store.blocks():
            digest.update(images)
            sums = images
            for level, file in files.items():
                sums = _halved(sums, level)
                file.write(sums)
            progress.update(len(images))
    store.check_digest(digest)


def _halved(sums: np.ndarray, level: int) -> np.ndarray:
    """Compute sums of `level` from those of the previous level, exactly."""
    wide = sum_type(level)
    rows = sums[:, 0::2].astype(wide) + sums[:, 1::2]
    return np.ascontiguousarray(rows[:, :, 0::2] + rows[:, :, 1::2])


def _check_sample(store: Store, paths: dict[int, Path]) -> int:
    """Compare the written sums of some images with direct ones; return the number of images."""
    generator = np.random.Generator(np.random.PCG64(derive_seed("cache", store.digest)))
    count = len(store.images)
    chosen = np.sort(generator.choice(count, min(count, SAMPLE), replace=False))
    images = np.asarray(store.images[chosen])
    for level, path in paths.items():
        small = store.side >> level
        written = open_array(path, (count, small, small, 3), sum_type(level))
        if not np.array_equal(written[chosen], block_sums(images, level)):
            raise UserError(f"{path.name}: contains other values than were written; check the disk")
    return len(chosen)


def read_cache_record(cache: Path) -> dict[str, Any]:
    """Read ``cache.json`` of a level cache.

    Raises:
        UserError: missing, changed since it was written, or not such a record.
    """
    record = read_json(cache / RECORD, "level cache's record (run `udpm cache` first)")
    validate(CacheRecord, record, str(cache / RECORD))
    check_seal(cache / RECORD, record)
    return record


def open_levels(dataset: str | Path, cache: str | Path, levels: int) -> Levels:
    """Open a data set with its cached levels 1..levels - 1, as training with L = `levels` needs them.

    Reads all bytes, about 2 GB per second (0.2 s for CIFAR-10 and three levels), and checks their SHA-256, so that
    nothing trains on changed images.

    Raises:
        UserError: missing or unreadable, the cache belongs to other images, or bytes were changed.
    """
    store, cache = open_store(dataset), Path(cache)
    record = read_cache_record(cache)
    if record["dataset_sha256"] != store.digest:
        raise UserError(f"{cache}: made from other images than those in {store.folder}; delete it and run `udpm cache`")
    sums = [store.images]
    for level in range(1, levels):
        small = store.side >> level
        path = cache / f"level_{level}.npy"
        sums.append(open_array(path, (len(store.images), small, small, 3), sum_type(level)))
    store.verify()
    changed = check_files(cache, record, [f"level_{level}.npy" for level in range(1, levels)])
    if changed:
        raise UserError(f"{cache / changed[0]}: its bytes were changed; delete the folder and run `udpm cache`")
    return Levels(store, sums)
