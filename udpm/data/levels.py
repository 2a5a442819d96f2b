"""Derived from a data set's images: level caches (H^l x_0 as exact integer block sums), moments, a contact sheet."""

from __future__ import annotations

import hashlib
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from udpm.config.validation import Exactly, NonNegativeInt, Record, Sha256, read_record
from udpm.core.arrays import derive_seed, image_grid, sealed
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256, write_json
from udpm.core.folders import atomic_folder
from udpm.core.kinds import CACHE, SHEET_TITLE, mark, seal_file
from udpm.core.work import Progress
from udpm.data.store import IMAGES, LABELS, Store, array_header, check_files, class_counts, open_array, open_store
from udpm.data.store import RECORD as DATASET_RECORD

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
        UserError: the data set is missing, was changed or has an odd side, the disk lost what was written, or another
            process makes this cache.
    """
    store = open_store(dataset)
    if not levels_of(store.side):
        raise UserError(f"{dataset}: images of side {store.side} cannot be halved, so they have no levels to cache")
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
    what = "level cache's record (run `udpm cache` first)"
    return read_record(CacheRecord, cache / RECORD, what, remedy="run `udpm cache` again")


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


def mean_square(store: Store, level: int) -> float:
    """Compute m₂, the mean square of the means of blocks of 2^level × 2^level pixels, of training images in [-1, 1].

    A block's mean is 2S/(255·4^level) - 1 for its integer sum S, so the squares are summed in integers.

    The side must be divisible by 2^level, level >= 0. The result is in [0, 1].
    """
    images = store.images[store.split("train")]
    whole = 255 * 4**level
    total = count = 0
    for start in range(0, len(images), CHUNK):
        centred = 2 * block_sums(images[start : start + CHUNK], level).astype(np.int64) - whole
        total += int(np.square(centred).sum())
        count += centred.size
    return total / (whole**2 * count)


COLUMNS, ROWS = 12, 20
SHOWN_SIDE = 64
"""Smaller images are enlarged by a whole factor up to about this side."""
GAP, SPACE, TEXT, LONGEST_NAME = 2, 8, 20, 14


def summarize(store: Store) -> dict[str, Any]:
    """Count the images of each class in each split; compute mean and standard deviation of the training split.

    Values are by channel, in 0..255, exact except for the last rounding; takes one pass over the images.
    """
    train = store.split("train")
    histogram = np.zeros((3, 256), dtype=np.int64)
    start = 0
    for images in store.blocks():
        some = images[max(train.start - start, 0) : max(train.stop - start, 0)]
        start += len(images)
        for channel in range(3):
            histogram[channel] += np.bincount(some[..., channel].ravel(), minlength=256)
    values, total = np.arange(256), histogram.sum(axis=1)
    mean = histogram @ values / total
    deviation = np.sqrt(histogram @ values**2 / total - mean**2)
    return {
        "class_counts": class_counts(store.labels, store.record["splits"], store.classes),
        "mean": [round(float(value), 4) for value in mean],
        "std": [round(float(value), 4) for value in deviation],
    }


def differences(store: Store) -> list[str]:
    """List the files of a store that were changed since it was prepared.

    Also checks the identity in the record. The record of an older store lists no sums, so the file remains unknown.
    """
    changed = check_files(store.folder, store.record)
    if changed:
        return changed
    try:
        store.verify()
    except UserError:
        return [DATASET_RECORD] if "files" in store.record else [f"{IMAGES} or {LABELS}"]
    return []


def draw_sheet(store: Store, path: Path) -> list[int]:
    """Draw a contact sheet of the training split: one row per class, with images spread evenly over the split.

    Without classes, fill the rows in order. Shows at most the first `ROWS` classes. The file is a .png or .jpg.

    Returns:
        Numbers of the images shown, row by row.
    """
    rows, names = _rows(store), _row_names(store)
    factor = max(1, SHOWN_SIDE // store.side)
    images = Image.fromarray(image_grid([np.asarray(store.images[numbers]) for numbers in rows], COLUMNS, GAP, factor))
    font = ImageFont.load_default(TEXT)
    # Names end at the images.
    right = math.ceil(max(map(font.getlength, names), default=0)) + SPACE
    step, left = store.side * factor + GAP, right + SPACE if names else 0
    sheet = Image.new("RGB", (left + images.width, images.height), "white")
    sheet.paste(images, (left, 0))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        draw.text((right, row * step + step // 2), name, fill="black", font=font, anchor="rm")
    with atomic_path(path) as temporary:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            sheet.save(temporary, format="JPEG", comment=f"{SHEET_TITLE}\n{mark()}")
        else:
            written = PngInfo()
            written.add_text("Title", SHEET_TITLE)
            written.add_text("Description", mark())
            sheet.save(temporary, format="PNG", pnginfo=written)
        seal_file(temporary)
    return [number for numbers in rows for number in numbers]


def _rows(store: Store) -> list[list[int]]:
    train = store.split("train")
    numbers = np.arange(train.start, train.stop)
    if not store.classes:
        chosen = _spread(numbers, COLUMNS * min(ROWS, COLUMNS))
        return [chosen[start : start + COLUMNS] for start in range(0, len(chosen), COLUMNS)]
    labels = store.labels[train]
    return [_spread(numbers[labels == label], COLUMNS) for label in range(min(store.classes, ROWS))]


def _spread(numbers: np.ndarray, count: int) -> list[int]:
    positions = np.linspace(0, len(numbers) - 1, min(count, len(numbers)))
    return numbers[positions.round().astype(np.int64)].tolist()


def _row_names(store: Store) -> list[str]:
    names = store.record.get("class_names") or [str(label) for label in range(store.classes)]
    return [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
