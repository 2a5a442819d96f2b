"""Open images: those that a data set's configuration names, and those of other programs to score."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from udpm.config.dataset import OWN_CLASSES, DatasetConfig
from udpm.core.arrays import derive_seed
from udpm.core.errors import UserError
from udpm.core.files import expanded
from udpm.data.array_files import SUFFIXES as ARRAY_SUFFIXES
from udpm.data.array_files import open_arrays, read_images
from udpm.data.cifar import open_cifar10
from udpm.data.decode import ImageError, Preprocessing, fit, quiet_decoders, to_rgb
from udpm.data.labels import label_images, list_warnings
from udpm.data.layout import arrange
from udpm.data.parquet import SUFFIX, open_parquet
from udpm.data.source import (
    Source,
    TreeReader,
    ZipReader,
    check_images,
    format_counts,
    list_files,
    list_images,
    shown,
    tidy,
)


def open_folder(config: DatasetConfig) -> Source:
    """Open the images of a folder, a .zip, an .npz, an .npy or Parquet files, with or without splits.

    Raises:
        UserError: missing, empty, damaged, a loop of links, ambiguous splits or labels, or other classes than
            configured.
    """
    assert config.path is not None
    root = expanded(config.path, "path")
    if root.suffix.lower() in ARRAY_SUFFIXES and not root.is_dir() and root.exists():
        return open_arrays(config, root)
    if root.suffix.lower() == SUFFIX and not root.is_dir() and root.exists():
        return open_parquet(config, root, [])
    listing = list_files(root, config.max_file_bytes, config.obtain)
    tables = [os.fsdecode(tidy(name)) for name in listing.others if os.fsdecode(name).lower().endswith(SUFFIX)]
    if tables and not listing.names and root.is_dir():
        return open_parquet(config, root, tables)
    check_images(listing)
    paths = listing.paths()
    layout = arrange(paths, [tidy(name) for name in listing.others], config, listing.root)
    labels = label_images(listing, paths, layout, config)
    order = np.concatenate(list(layout.splits.values()))
    folders = {split: [shown(name) for name in names] for split, names in layout.folders.items()}
    left_out = layout.left_out | listing.left_out(labels.used)
    return Source(
        splits={name: len(indices) for name, indices in layout.splits.items()},
        names=[listing.names[i] for i in order],
        keys=listing.keys[order],
        labels=labels.numbers,
        class_names=labels.names,
        reader=listing.reader,
        notes={"splits": folders, "labels": labels.origin, "left_out": left_out},
        warnings=list_warnings(config, layout, labels),
        label_file=labels.from_file,
    )


def open_source(config: DatasetConfig) -> Source:
    """Open the source of a data set's configuration.

    Raises:
        UserError: missing, incomplete or unreadable, an unexpected number of images, or a missing extra.
    """
    source = {"digits": _digits, "cifar10": open_cifar10, "folder": open_folder}[config.source](config)
    _check_count(config, "training", source.splits["train"], config.expected_count)
    _check_count(config, "test", source.splits.get("test", 0), config.expected_test_count)
    return source


def _check_count(config: DatasetConfig, kind: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        hint = f"; {config.obtain}" if config.obtain else ""
        raise UserError(f"{config.path or config.source}: has {found} {kind} images, expected {expected}{hint}")


@dataclass(frozen=True)
class ArrayReader:
    """Reader of images in memory, (n, height, width, 3) uint8, enlarged to `side`."""

    pixels: np.ndarray
    side: int
    parallel: bool = False
    files: tuple[Path, ...] = ()

    @property
    def identity(self) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def load(self, name: bytes, key: np.ndarray) -> np.ndarray:
        """Return the image's pixels."""
        return fit(Image.fromarray(self.pixels[key[0]]), self.side)


def _digits(config: DatasetConfig) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("source digits: needs the digits extra: pip install 'udpm[digits]'") from None
    pixels, labels = load_digits(return_X_y=True)
    count = len(labels)
    if config.holdout >= count:
        raise UserError(f"holdout: {config.holdout} leaves no training image of {count}; lower it")
    # Grey levels 0..16 to 0..255; the order mixes writers, so it is shuffled once before the test split is cut off.
    grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.Generator(np.random.PCG64(derive_seed("digits", "split"))).permutation(count)
    splits = {"train": count - config.holdout}
    return Source(
        splits=splits | ({"test": config.holdout} if config.holdout else {}),
        names=[b"digit %d" % index for index in order],
        keys=order[:, None].astype(np.int64),
        labels=labels[order].astype(np.int64),
        class_names=OWN_CLASSES["digits"],
        reader=ArrayReader(np.repeat(grey[..., None], 3, axis=-1), config.side),
        notes={"labels": "the digits"},
    )


@dataclass(frozen=True)
class ImageFiles:
    """Image files of one size in a folder or .zip, read and decoded slice by slice.

    Attributes:
        keys: location of each file for the reader.
        shape: (n, h, w, 3).
        left_out: numbers of other files in it, by kind.
    """

    root: Path
    names: Sequence[bytes]
    keys: np.ndarray
    reader: TreeReader | ZipReader
    shape: tuple[int, int, int, int]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Read and decode some images, (n, h, w, 3) uint8.

        Raises:
            UserError: a file cannot be decoded, or has another size than the first.
        """
        # A .zip is one open file with one position: read its members one by one, then decode them in parallel.
        keyed = zip(self.names[part], self.keys[part], strict=True)
        files = [_bytes_of(self.root, self.reader, name, key) for name, key in keyed]
        with quiet_decoders(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            images = list(pool.map(partial(_decode, self.root), self.names[part], files))
        for name, image in zip(self.names[part], images, strict=True):
            if image.shape != self.shape[1:]:
                raise UserError(
                    f"{self.root}: {shown(name)} has {_size(image.shape)} pixels, but {shown(self.names[0])} has "
                    f"{_size(self.shape[1:])}; bring them to one size (udpm prepare)"
                )
        return np.stack(images)


def open_images(path: str | Path, count: int | None = None) -> np.ndarray | ImageFiles:
    """Open the images of a folder, .zip or .npz as an array, or an object that is sliced like one, (n, h, w, 3) uint8.

    Args:
        path: the folder or file.
        count: number of images to choose at random with a fixed seed, since names are often sorted by class; None: all.

    Raises:
        UserError: missing, empty, fewer than `count`, or not images.
    """
    path = expanded(str(path), "images")
    found = read_images(path) if path.suffix.lower() == ".npz" and not path.is_dir() else _image_files(path)
    if count is None or count == len(found):
        return found
    if count > len(found):
        raise UserError(f"{path}: has {len(found)} images, fewer than --count {count}")
    generator = np.random.Generator(np.random.PCG64(derive_seed("images", "count")))
    chosen = np.sort(generator.choice(len(found), count, replace=False))
    if isinstance(found, np.ndarray):
        return found[chosen]
    names = [found.names[i] for i in chosen]
    return replace(found, names=names, keys=found.keys[chosen], shape=(count, *found.shape[1:]))


def left_out_of(images: object) -> dict[str, dict[str, int]]:
    """Return the numbers of files that were not read, under "left_out"; empty if there were none."""
    left_out = getattr(images, "left_out", {})
    return {"left_out": left_out} if left_out else {}


def _image_files(path: Path) -> ImageFiles:
    limits = Preprocessing(1)
    found = list_images(path, limits.max_file_bytes)
    name, left_out = found.names[0], found.left_out()
    with quiet_decoders():
        first = _decode(path, name, _bytes_of(path, found.reader, name, found.keys[0]))
    if left_out:
        print(f"{path}: {len(found.names)} images; left out: {format_counts(left_out)}", file=sys.stderr)
    return ImageFiles(path, found.names, found.keys, found.reader, (len(found.names), *first.shape), left_out)


def _bytes_of(root: Path, reader: TreeReader | ZipReader, name: bytes, key: np.ndarray) -> bytes:
    try:
        return reader.load(name, key)
    except ImageError as refusal:
        raise UserError(f"{root}: {shown(name)} {refusal}") from None


def _decode(root: Path, name: bytes, content: bytes) -> np.ndarray:
    try:
        return np.asarray(to_rgb(content, Preprocessing(1))[0])
    except ImageError as refusal:
        raise UserError(f"{root}: {shown(name)} {refusal}") from None


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"
