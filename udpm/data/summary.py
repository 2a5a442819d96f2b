"""Summary of a data set: counts, mean and standard deviation, mean square, contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from udpm.core.arrays import image_grid
from udpm.core.errors import UserError
from udpm.core.files import atomic_path
from udpm.core.kinds import SHEET_TITLE, mark, seal_file
from udpm.data.levels import CHUNK, block_sums
from udpm.data.store import IMAGES, LABELS, RECORD, Store, check_files, class_counts


def mean_square(store: Store, level: int, split: str = "train") -> float:
    """Compute m₂, the mean square of the means of blocks of 2^level × 2^level pixels, over images in [-1, 1].

    A block's mean is 2S/(255·4^level) - 1 for its integer sum S, so the squares are summed in integers.

    The side must be divisible by 2^level, level >= 0. The result is in [0, 1].

    Raises:
        UserError: no such split.
    """
    images = store.images[store.split(split)]
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
GAP, MARGIN, TEXT = 2, 110, 14


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
        return [RECORD] if "files" in store.record else [f"{IMAGES} or {LABELS}"]
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
    step, left = store.side * factor + GAP, MARGIN if names else 0
    sheet = Image.new("RGB", (left + images.width, images.height), "white")
    sheet.paste(images, (left, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for row, name in enumerate(names):
        draw.text((4, row * step + step // 2), name, fill="black", font=font, anchor="lm")
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
    return [name if len(name) <= TEXT else f"{name[: TEXT - 1]}…" for name in names]
