"""Open images: those that a data set's configuration names, with a list to notice changes, and other programs'."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from udpm.config.dataset import OWN_CLASSES, DatasetConfig
from udpm.core.arrays import derive_seed
from udpm.core.errors import UserError
from udpm.core.files import expanded, write_text
from udpm.core.reading import read_bytes
from udpm.data.cifar import Batches, find_batches, open_cifar10
from udpm.data.decode import ImageError, Preprocessing, quiet_decoders, to_rgb
from udpm.data.labels import Labels, label_images
from udpm.data.layout import Layout, arrange
from udpm.data.npz import array_names, read_npz
from udpm.data.source import Source, TreeReader, ZipReader, format_counts, list_images, shown, tidy


def open_folder(config: DatasetConfig) -> Source:
    """Open the images of a folder or a .zip, with or without folders of splits.

    Raises:
        UserError: missing, empty, a loop of links, ambiguous splits or labels, or other classes than configured.
    """
    assert config.path is not None
    listing = list_images(expanded(config.path, "path"), config.max_file_bytes, config.obtain)
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
        warnings=_warnings(config, layout, labels),
        label_file=labels.from_file,
    )


def _warnings(config: DatasetConfig, layout: Layout, labels: Labels) -> list[str]:
    found = []
    test = [shown(name) for name in layout.folders.get("test", [])]
    if config.holdout and test:
        found.append(f"holdout: {config.holdout} is not used: {' and '.join(test)} is the test split")
    if labels.unused:
        found.append(f"{', '.join(labels.unused)} is not used, since classes is 0 (unlabelled)")
    return found


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
    """Reader of images in memory, (n, height, width, 3) uint8."""

    pixels: np.ndarray
    parallel: bool = False

    @property
    def identity(self) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def load(self, name: bytes, key: np.ndarray) -> np.ndarray:
        """Return the image's pixels."""
        return self.pixels[key[0]]


def _digits(config: DatasetConfig) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("source digits: needs the digits extra: pip install 'udpm[digits]'") from None
    pixels, labels = load_digits(return_X_y=True)
    count = len(labels)
    if config.holdout >= count:
        raise UserError(f"holdout: {config.holdout} leaves no training image of {count}")
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
        reader=ArrayReader(np.repeat(grey[..., None], 3, axis=-1)),
        notes={"labels": "the digits"},
    )


FILE = "source.jsonl"
"""Name of the inventory in a prepared data set's folder."""
LONGEST = 2**30
"""Largest inventory to read in bytes, enough for several million images."""
Inventory = dict[str, str]
"""Digests by name, of an image with its label, or of a file with many images."""
Digest = Callable[[str | os.PathLike], str]
"""Function that returns the SHA-256 of a file."""


@dataclass(frozen=True)
class Difference:
    """Numbers of images added to, removed from and changed in a source since a data set was prepared from it."""

    added: int
    removed: int
    changed: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        return f"{self.added} added, {self.removed} removed, {self.changed} changed"


def difference(before: Inventory, now: Inventory) -> Difference:
    """Compare two inventories."""
    changed = sum(now[name] != digest for name, digest in before.items() if name in now)
    return Difference(len(now.keys() - before.keys()), len(before.keys() - now.keys()), changed)


def take_inventory(config: DatasetConfig, source: Source, digest: Digest) -> Inventory:
    """List the content of an open source.

    Raises:
        UserError: a file changes meanwhile.
    """
    reader = source.reader
    if isinstance(reader, Batches):
        return {path.name: digest(path) for path in reader.files}
    if config.source != "folder":
        return {}
    found = {}
    for name, key, label in zip(source.names, source.keys, source.labels.tolist(), strict=True):
        content = _content(reader, name, key, digest)
        names = source.class_names[label] if source.class_names else ""
        found[os.fsdecode(name)] = hashlib.sha256(f"{content} {label} {names}".encode()).hexdigest()[:32]
    return found


def inventory_now(config: DatasetConfig, digest: Digest) -> Inventory | None:
    """List the present content of a configured source without downloading anything; None if it is missing.

    Raises:
        UserError: the source exists and cannot be used.
    """
    path = None if config.path is None else expanded(config.path, "path")
    if path is None or not path.exists():
        return None
    if config.source == "cifar10":
        batches = find_batches(path)
        return None if batches is None else {path.name: digest(path) for path in batches.files}
    return take_inventory(config, open_folder(config), digest)


def _content(reader, name: bytes, key: np.ndarray, digest: Digest) -> str:
    if not isinstance(reader, TreeReader):
        # An archive's directory has each member's size and checksum.
        return f"crc {key[-1]} {key[-3]}"
    path = os.path.join(reader.root, name)
    try:
        status = os.stat(path)
        if key[0] > reader.limit:
            return f"size {status.st_size}"
        content = digest(os.fsdecode(path))
    except (OSError, UserError):
        return "cannot be read"
    if (status.st_size, status.st_mtime_ns) != (key[0], key[1]):
        raise UserError(f"{shown(path)}: changes while it is read; run the same command again when it is complete")
    return content


def write_inventory(folder: Path, inventory: Inventory) -> None:
    """Write a data set's inventory to its folder."""
    write_text(folder / FILE, "".join(json.dumps([name, digest]) + "\n" for name, digest in inventory.items()))


def read_inventory(folder: Path) -> Inventory | None:
    """Read a prepared data set's inventory; None if it has none, like those of earlier versions.

    Raises:
        UserError: it is damaged.
    """
    if not (folder / FILE).exists():
        return None
    try:
        lines = read_bytes(folder / FILE, "list of images", LONGEST).splitlines()
        return {str(name): str(digest) for name, digest in map(json.loads, lines)}
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{folder / FILE}: not a readable list of images; prepare the data set again") from None


ARRAYS = ("images", "arr_0", "samples", "data", "x", "imgs", "image")
"""Array names for the images of a .npz: ours, numpy's default, and usual ones. Otherwise its only array is used."""


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
    found = _array(path) if path.suffix.lower() == ".npz" and not path.is_dir() else _image_files(path)
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


def _array(path: Path) -> np.ndarray:
    name = _images_name(path, array_names(path, ".npz of images"))
    images = read_npz(path, ".npz of images", names=[name])[name]
    return _as_bytes(path, name, _channels_last(path, name, images))


def _images_name(path: Path, names: Sequence[str]) -> str:
    known = [name for name in ARRAYS if name in names]
    if not known and len(names) != 1:
        raise UserError(
            f"{path}: contains {', '.join(map(repr, names[:5])) or 'no arrays'}, but no array images; save them with "
            "numpy.savez(FILE, images=...)"
        )
    return known[0] if known else names[0]


def _channels_last(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    """Convert images with channels first, or with one channel, to (N, height, width, 3)."""
    shape = images.shape
    if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    elif len(shape) == 3 and shape[2] not in (1, 3):
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}: {name} is {images.dtype} {shape}; expected uint8 (N, height, width, 3), or channels first, "
            "or one channel"
        )
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def _as_bytes(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    """Convert whole numbers from 0 to 255, or fractions from 0 to 1, to uint8; refuse everything else."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise UserError(f"{path}: {name} is {images.dtype}; expected uint8")
    low, high = float(images.min()), float(images.max())
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


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"
