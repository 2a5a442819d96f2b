"""Images as others hand them over: a folder, a .zip or a .npz, decoded as they are asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from udpm.core.arrays import check_array
from udpm.core.errors import UserError
from udpm.core.paths import expanded
from udpm.core.seeds import derive_seed
from udpm.data.arrays import read_npz
from udpm.data.listing import TreeReader, ZipReader, list_images, told_counts
from udpm.data.picture import Recipe, Refused, quiet_decoders, to_rgb
from udpm.data.source import shown

ARRAYS = ("images", "arr_0")
"""Names that a .npz may have its images under, ours and what numpy gives an array without one."""


@dataclass(frozen=True)
class Pictures:
    """Image files, read and decoded by the slice; all have one size.

    Attributes:
        root: the folder or .zip.
        names: of the files.
        keys: where the reader finds each.
        reader: of the files.
        shape: (n, h, w, 3).
        left_out: number of other files there, by kind.
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
        """(n, h, w, 3) uint8.

        Raises:
            UserError: a file cannot be decoded, or has another size than the first.
        """
        # A .zip is one open file with one position: its members are read one by one, and decoded together.
        files = [self._content(name, key) for name, key in zip(self.names[part], self.keys[part], strict=True)]
        with quiet_decoders(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            images = list(pool.map(self._decoded, self.names[part], files))
        for name, image in zip(self.names[part], images, strict=True):
            if image.shape != self.shape[1:]:
                raise UserError(
                    f"{self.root}: {shown(name)} has {_size(image.shape)} pixels, but {shown(self.names[0])} has "
                    f"{_size(self.shape[1:])}; bring them to one size (udpm prepare)"
                )
        return np.stack(images)

    def _content(self, name: bytes, key: np.ndarray) -> bytes:
        try:
            return self.reader.load(name, key)
        except Refused as refusal:
            raise UserError(f"{self.root}: {shown(name)} {refusal}") from None

    def _decoded(self, name: bytes, content: bytes) -> np.ndarray:
        return _decode(self.root, name, content)


def open_images(path: str | Path, count: int | None = None) -> np.ndarray | Pictures:
    """The images of a folder, .zip or .npz: an array or something to be sliced like one, (n, h, w, 3) uint8.

    Args:
        path: where they are.
        count: how many to take, drawn from a fixed seed: the order of names often is that of classes; None: all.

    Raises:
        UserError: not there, empty, fewer than asked for, or no images.
    """
    path = expanded(str(path), "images")
    found = _array(path) if path.suffix.lower() == ".npz" and not path.is_dir() else _pictures(path)
    if count is None or count == len(found):
        return found
    if count > len(found):
        raise UserError(f"{path}: has {len(found)} images, fewer than the {count} asked for; lower --count")
    generator = np.random.Generator(np.random.PCG64(derive_seed("images", "count")))
    chosen = np.sort(generator.choice(len(found), count, replace=False))
    if isinstance(found, np.ndarray):
        return found[chosen]
    names = [found.names[i] for i in chosen]
    return replace(found, names=names, keys=found.keys[chosen], shape=(count, *found.shape[1:]))


def left_out_of(images: np.ndarray | Pictures) -> dict[str, dict[str, int]]:
    """Numbers of files that lay next to images and were not read, under "left_out"; empty where there were none."""
    left_out = getattr(images, "left_out", {})
    return {"left_out": left_out} if left_out else {}


def _pictures(path: Path) -> Pictures:
    limits = Recipe(1)
    found = list_images(path, limits.max_file_bytes)
    name, left_out = found.names[0], found.left_out()
    try:
        with quiet_decoders():
            first = _decode(path, name, found.reader.load(name, found.keys[0]))
    except Refused as refusal:
        raise UserError(f"{path}: {shown(name)} {refusal}") from None
    if left_out:
        print(f"{path}: {len(found.names)} images; left out: {told_counts(left_out)}", file=sys.stderr)
    return Pictures(path, found.names, found.keys, found.reader, (len(found.names), *first.shape), left_out)


def _decode(root: Path, name: bytes, content: bytes) -> np.ndarray:
    try:
        return np.asarray(to_rgb(content, Recipe(1))[0])
    except Refused as refusal:
        raise UserError(f"{root}: {shown(name)} {refusal}") from None


def _array(path: Path) -> np.ndarray:
    arrays = read_npz(path, ".npz of images", names=ARRAYS)
    for name in ARRAYS:
        if name in arrays:
            check_array(f"{path}: {name}", arrays[name], np.uint8, ("N", "height", "width", 3))
            return arrays[name]
    raise UserError(f"{path}: has no array called {' or '.join(ARRAYS)}")


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"
