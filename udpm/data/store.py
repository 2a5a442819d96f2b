"""The prepared image store: ``images.npy``, ``labels.npy`` and ``dataset.json`` in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udpm.core.errors import UserError
from udpm.core.files import read_json

FORMAT = "udpm-dataset/1"
RECORD = "dataset.json"


@dataclass(frozen=True)
class Store:
    """A prepared data set, memory-mapped.

    Attributes:
        folder: where it lies.
        images: (N, side, side, 3) uint8, RGB, read-only memory map.
        labels: (N,) int64; all zero where the data set has no classes.
        record: contents of ``dataset.json``.
    """

    folder: Path
    images: np.ndarray
    labels: np.ndarray
    record: dict[str, Any]

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.record["side"]

    @property
    def classes(self) -> int:
        """Number of classes; 0 if unlabelled."""
        return self.record["classes"]

    @property
    def digest(self) -> str:
        """SHA-256 over images and labels: the data set's identity."""
        return self.record["sha256"]

    def split(self, name: str) -> slice:
        """The contiguous range of images that make up a split ("train" or "test").

        Raises:
            UserError: the data set has no such split, or it is empty.
        """
        start, stop = self.record["splits"].get(name, (0, 0))
        if start == stop:
            raise UserError(f"{self.folder}: has no {name} split; its splits are {', '.join(self.record['splits'])}")
        return slice(start, stop)


def open_store(folder: str | Path) -> Store:
    """Open a data set written by `udpm prepare`.

    Raises:
        UserError: missing, incomplete or not a data set.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD, "dataset record (run `udpm prepare` first)")
    if record.get("format") != FORMAT:
        raise UserError(f"{folder / RECORD}: format is {record.get('format')!r}, expected {FORMAT!r}; prepare it again")
    images = open_array(folder / "images.npy", (record["count"], record["side"], record["side"], 3), np.uint8)
    labels = np.array(open_array(folder / "labels.npy", (record["count"],), np.int64))
    return Store(folder, images, labels, record)


def open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Memory-map a .npy file, checking that it holds what its record says.

    Raises:
        UserError: missing, unreadable, or of another shape or type.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found, though its record is there; delete the folder and make it again") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable array: {error}") from None
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path}: holds {array.dtype} {array.shape}, but its record says {np.dtype(dtype)} {shape}; make it again"
        )
    return array
