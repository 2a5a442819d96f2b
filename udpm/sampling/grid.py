"""Drawn images side by side: as a picture, and as a .png that says how they were drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from udpm.core.arrays import check_array, image_grid
from udpm.core.errors import UserError
from udpm.core.files import atomic_path
from udpm.core.kinds import GRID_TITLE, mark, seal_file
from udpm.data.levels import GAP, SHOWN_SIDE

MOST = 1024
"""Largest number of images in a grid."""
LONGEST = 4
"""Ratio of the longer to the shorter side, in images, of a grid with one row per class."""
RECORD = "Record"
"""Key of the record, JSON, in the text of a .png."""


def check_grid(count: int) -> None:
    """Check that a grid may have this many images.

    Raises:
        UserError: they are too many.
    """
    if count > MOST:
        raise UserError(f"count: a grid has at most {MOST} images, got {count}; sample fewer, or write an .npz")


def arrange(images: np.ndarray, labels: np.ndarray | None = None) -> Image.Image:
    """Return images side by side on white; small ones are enlarged by a whole factor.

    Args:
        images: (n, h, w, 3) uint8, in rows of about equal length; or (…, columns, h, w, 3), with one row for each index
            of the other axes.
        labels: (n,) classes of n images: one row per class, unless the grid would be long and narrow.

    Raises:
        UserError: other arrays, or too many images.
    """
    axes = [f"n{axis}" for axis in range(images.ndim - 3)] if images.ndim > 4 else ["n"]
    check_array("images", images, np.uint8, (*axes, "h", "w", 3))
    if labels is not None and images.ndim > 4:
        raise UserError(
            "labels: are for images in one row after the other, but these have rows and columns; leave them out"
        )
    check_grid(math.prod(images.shape[:-3]))
    rows = list(images.reshape(-1, *images.shape[-4:])) if images.ndim > 4 else _rows(images, labels)
    factor = max(1, SHOWN_SIDE // max(images.shape[-3:-1]))
    return Image.fromarray(image_grid(rows, max(map(len, rows)), GAP, factor))


def _rows(images: np.ndarray, labels: np.ndarray | None) -> list[np.ndarray]:
    if labels is not None:
        by_class = [images[labels == label] for label in np.unique(labels)]
        longest = max(map(len, by_class))
        if len(by_class) <= LONGEST * longest and longest <= LONGEST * len(by_class):
            return by_class
    columns = math.ceil(math.sqrt(len(images)))
    return [images[start : start + columns] for start in range(0, len(images), columns)]


def save_grid(path: Path, images: np.ndarray, labels: np.ndarray | None, record: dict[str, Any]) -> None:
    """Write images as `arrange` does, as a .png with their record in its text, atomically.

    Raises:
        UserError: too many images, or the file cannot be written.
    """
    picture, text = arrange(images, labels), PngInfo()
    text.add_text("Title", GRID_TITLE)
    text.add_text("Description", mark())
    text.add_text(RECORD, json.dumps({"count": len(images), **record}))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)
        seal_file(temporary)
