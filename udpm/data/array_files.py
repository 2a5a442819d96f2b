"""Images in .npz and .npy files: read at once to be scored, or one by one to be prepared."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.data.layout import SplitWord, split_word
from udpm.data.npz import Header, array_header, array_names, place_array, read_npz
from udpm.data.rows import Rows, rows_source
from udpm.data.source import Source

ARRAYS = ("images", "arr_0", "samples", "data", "x", "imgs", "image")
"""Array names for the images of a .npz: ours, numpy's default, and usual ones. Otherwise its only array is used."""
LABELS = ("labels", "label", "y", "targets", "target", "classes", "arr_1")
"""Array names for their labels."""
SUFFIXES = (".npz", ".npy")
WHAT, ALONE = ".npz of images", "single array (.npy)"


def read_images(path: Path) -> np.ndarray:
    """Read the images of an .npz, (n, h, w, 3) uint8.

    Raises:
        UserError: damaged, no images, or of values that cannot be converted faithfully.
    """
    name = _images_name(path, array_names(path, WHAT))
    images = read_npz(path, WHAT, names=[name])[name]
    shape = _axes(path, name, images.dtype, images.shape)
    return _as_bytes(path, name, _channels_last(images, shape))


def open_arrays(config: DatasetConfig, root: Path) -> Source:
    """Open the uint8 images of an .npz or .npy as a source, without reading them.

    Arrays named by a split (`x_train`, `test_images`) are the splits.

    Raises:
        UserError: damaged, not uint8 images of at least the configured side, labels that do not match them, or other
            classes than configured.
    """
    alone = root.suffix.lower() == ".npy"
    names = [] if alone else array_names(root, WHAT)
    parts = {"": (None, None)} if alone else _parts(root, names, config)
    what = ALONE if alone else WHAT
    headers = [_checked(root, name, array_header(root, what, name), config) for name, _ in parts.values()]
    labelled = [labels for _, labels in parts.values() if labels]
    rows = Rows(f"{labelled[0]} of {root.name}" if labelled else "")
    status = os.stat(root)
    for number, (split, (name, labels)) in enumerate(parts.items()):
        count = _axes(root, name or root.name, headers[number].dtype, headers[number].shape)[0]
        numbers = _labels(root, labels, name, count) if config.classes else None
        rows.add(number, count, split, f"{(name or 'image').replace('%', '%%')}[%d]", status, numbers)
    images = {name: header for (name, _), header in zip(parts.values(), headers, strict=True)}
    return rows_source(config, root, rows, partial(_reader, root, what, images))


@dataclass(frozen=True)
class _Array:
    """An array in an open file.

    Attributes:
        name: its name; None in an .npy.
        start: position of the first image.
        stored: shape of an image as it is stored.
        shape: shape of all, (n, height, width, 1 or 3).
        own: True if the file is the source itself, False for a temporary one.
    """

    name: str | None
    start: int
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    own: bool
    file: BinaryIO = field(compare=False, repr=False)


@dataclass(frozen=True)
class ArrayFileReader:
    """Reader of single images of an .npz or .npy; (array, row, size and time of change of the file) is a key."""

    path: Path
    arrays: tuple[_Array, ...]
    identity: str = "arrays"

    @property
    def parallel(self) -> bool:
        """True if other processes can open the arrays: they are in the file itself, not unpacked from it."""
        return all(array.own for array in self.arrays)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def load(self, name: bytes, key: np.ndarray) -> np.ndarray:
        """Return an image's pixels.

        Raises:
            UserError: the file was changed, or cannot be read.
        """
        array = self.arrays[key[0]]
        size = int(np.prod(array.stored))
        try:
            now = os.fstat(array.file.fileno())
            data = os.pread(array.file.fileno(), size, array.start + int(key[1]) * size)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        if len(data) < size or (array.own and (now.st_size, now.st_mtime_ns) != (key[2], key[3])):
            raise UserError(f"{self.path}: changes while it is read; run the same command again when it is complete")
        image = np.frombuffer(data, np.uint8).reshape(1, *array.stored)
        return _channels_last(image, (1, *array.shape[1:]))[0]

    def __reduce__(self) -> tuple:
        # Each process opens the file itself.
        return _reopened, (self.path, tuple({**vars(array), "file": None} for array in self.arrays))


def _reader(path: Path, what: str, images: dict[str | None, Header]) -> ArrayFileReader:
    arrays = []
    for name, header in images.items():
        file, start, own = place_array(path, what, name)
        shape = _axes(path, name or path.name, header.dtype, header.shape)
        arrays.append(_Array(name, start, header.shape[1:], shape, own, file))
    return ArrayFileReader(path, tuple(arrays))


def _reopened(path: Path, arrays: tuple[dict[str, Any], ...]) -> ArrayFileReader:
    what = ALONE if arrays[0]["name"] is None else WHAT
    opened = []
    for each in arrays:
        file = open(path, "rb") if each["own"] else place_array(path, what, each["name"])[0]  # noqa: SIM115
        opened.append(_Array(**{**each, "file": file}))
    return ArrayFileReader(path, tuple(opened))


def _parts(path: Path, names: list[str], config: DatasetConfig) -> dict[str, tuple[str | None, str | None]]:
    """Find the names of the arrays of images and of labels, by split; one split "" if no name has a word for one.

    Raises:
        UserError: no images; two arrays of images, or with classes of labels, for one split; or images of other splits
            than training only.
    """
    words = {name: word for name in names if (word := split_word(name)) and not word.short}
    images = [name for name, word in words.items() if word.rest in ("", *ARRAYS)]
    if any(words[name].split == "train" for name in images):
        labels = [name for name, word in words.items() if word.rest in LABELS]
        if config.classes:
            _refuse_two(path, "labels", labels, words)
        _refuse_two(path, "images", images, words)
        numbers = {words[name].split: name for name in labels}
        return {words[name].split: (name, numbers.get(words[name].split)) for name in images}
    others = [name for name in images if len(array_header(path, WHAT, name).shape) > 2]
    if others and config.splits is None:
        raise UserError(
            f"{path}: {', '.join(map(repr, others))} is named as images of a split, but no array as those to train on; "
            "call one train_images, or set splits: none if no array is a split"
        )
    name = _images_name(path, names)
    return {"": (name, next((label for label in LABELS if label in names and label != name), None))}


def _refuse_two(path: Path, what: str, names: list[str], words: dict[str, SplitWord]) -> None:
    first: dict[str, str] = {}
    for name in names:
        split = words[name].split
        if first.setdefault(split, name) != name:
            raise UserError(f"{path}: {first[split]!r} and {name!r} are both {what} of the split {split}; keep one")


def _checked(path: Path, name: str | None, header: Header, config: DatasetConfig) -> Header:
    """Check that an array is images that can be prepared, before any is read."""
    where = name or path.name
    _, height, width, _ = _axes(path, where, header.dtype, header.shape)
    if header.dtype != np.uint8:
        raise UserError(f"{path}: {where} is {header.dtype} {header.shape}; expected uint8, from 0 to 255")
    if header.fortran:
        raise UserError(f"{path}: {where} is in Fortran order; save numpy.ascontiguousarray(images)")
    if min(height, width) < config.side:
        raise UserError(f"{path}: {where} has images of {width}×{height} pixels, smaller than side {config.side}")
    if height * width > config.max_pixels:
        raise UserError(
            f"{path}: {where} has images of {width}×{height} pixels, more than max_pixels {config.max_pixels}"
        )
    return header


def _labels(path: Path, name: str | None, images: str | None, count: int) -> np.ndarray | None:
    """Read the labels of some images, (count,) int64; None if there are none."""
    if name is None:
        return None
    labels = read_npz(path, WHAT, names=[name])[name]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {name} is {labels.dtype} {labels.shape}; expected whole numbers ({count},), one per image"
        )
    if len(labels) != count:
        raise UserError(f"{path}: {name} has {len(labels)} labels for the {count} images of {images}")
    return labels.astype(np.int64)


def _images_name(path: Path, names: Sequence[str]) -> str:
    known = [name for name in ARRAYS if name in names]
    if not known and len(names) != 1:
        raise UserError(
            f"{path}: contains {', '.join(map(repr, names[:5])) or 'no arrays'}, but no array images; save them with "
            "numpy.savez(FILE, images=...)"
        )
    return known[0] if known else names[0]


def _axes(path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of images with channels last, (n, height, width, 1 or 3)."""
    found = shape
    if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        found = (shape[0], shape[2], shape[3], shape[1])
    elif len(shape) == 3 and shape[2] not in (1, 3):
        found = (*shape, 1)
    if len(found) != 4 or found[3] not in (1, 3) or 0 in found:
        raise UserError(
            f"{path}: {name} is {dtype} {shape}; expected uint8 (N, height, width, 3), or channels first, "
            "or one channel"
        )
    return found


def _channels_last(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert images to (n, height, width, 3), given their shape by `_axes`."""
    if images.ndim == 4 and images.shape != shape:
        images = images.transpose(0, 2, 3, 1)
    images = images.reshape(shape)
    return np.repeat(images, 3, axis=3) if shape[3] == 1 else images


def _as_bytes(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    """Convert whole numbers from 0 to 255, or fractions from 0 to 1, to uint8; refuse everything else."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise UserError(f"{path}: {name} is {images.dtype}; expected uint8")
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{path}: {name} contains values that are not finite (NaN or infinite); expected uint8")
    whole = images.dtype.kind != "f" or bool((images == np.floor(images)).all())
    if low >= 0 and high <= 255 and whole and high > 1:
        return images.astype(np.uint8)
    if low >= 0 and high <= 1 and not whole:
        # As torchvision's save_image rounds.
        return np.floor(images * images.dtype.type(255) + images.dtype.type(0.5)).astype(np.uint8)
    scale = "((x + 1) * 127.5)" if -1 <= low < 0 and high <= 1 else "x"
    raise UserError(
        f"{path}: {name} is {images.dtype} from {low:g} to {high:g}; expected uint8, or fractions from 0 to 1; convert "
        f"it: numpy.clip(numpy.rint({scale}), 0, 255).astype('uint8')"
    )
