"""Images from other programs: a folder, a .zip or a .npz, decoded slice by slice."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from udpm.core.arrays import derive_seed
from udpm.core.errors import UserError
from udpm.core.files import expanded
from udpm.data.decode import ImageError, Preprocessing, quiet_decoders, to_rgb
from udpm.data.npz import array_names, read_npz
from udpm.data.source import TreeReader, ZipReader, format_counts, list_images, shown

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
        files = [_content(self.root, self.reader, name, key) for name, key in keyed]
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
        first = _decode(path, name, _content(path, found.reader, name, found.keys[0]))
    if left_out:
        print(f"{path}: {len(found.names)} images; left out: {format_counts(left_out)}", file=sys.stderr)
    return ImageFiles(path, found.names, found.keys, found.reader, (len(found.names), *first.shape), left_out)


def _content(root: Path, reader: TreeReader | ZipReader, name: bytes, key: np.ndarray) -> bytes:
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
