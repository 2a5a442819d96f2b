"""Image files in a folder or a .zip: which there are, in an order that is the names' alone, and how to read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.core.seeds import derive_seed
from udpm.data.archive import list_members, read_member
from udpm.data.picture import Refused
from udpm.data.source import Source, shown

SUFFIXES = (b".png", b".jpg", b".jpeg", b".webp", b".bmp")
SPLITS = (b"train", b"test")


@dataclass(frozen=True)
class TreeReader:
    """Reads files below a folder.

    Attributes:
        root: the folder.
        limit: largest file in bytes.
    """

    root: bytes
    limit: int
    parallel: bool = True
    identity: str = "folder"

    def load(self, name: bytes, key: np.ndarray) -> bytes:
        """The file's bytes.

        Raises:
            Refused: too large or unreadable.
        """
        if key[0] > self.limit:
            raise Refused(f"has {key[0]} bytes, more than max_file_bytes {self.limit}")
        try:
            with open(os.path.join(self.root, name), "rb") as file:
                return file.read(self.limit)
        except OSError as error:
            raise Refused(f"cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class ZipReader:
    """Reads members of a .zip.

    Attributes:
        path: the archive.
        limit: largest member in bytes.
    """

    path: Path
    limit: int
    parallel: bool = True
    identity: str = "zip"
    _open: list[BinaryIO] = field(default_factory=list, compare=False, repr=False)

    def load(self, name: bytes, key: np.ndarray) -> bytes:
        """The member's bytes.

        Raises:
            Refused: too large, encrypted or damaged.
            UserError: the archive cannot be read any more.
        """
        try:
            if not self._open:
                self._open.append(open(self.path, "rb"))  # noqa: SIM115 - stays open as long as its process
            return read_member(self._open[0], key, self.limit)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def __getstate__(self) -> dict:
        # A process that gets a copy opens the archive itself: an open file has one position for all who share it.
        return {**self.__dict__, "_open": []}


def open_folder(config: DatasetConfig) -> Source:
    """The images of a folder or a .zip, with ``train/`` and ``test/`` in it or just images.

    Raises:
        UserError: not there, empty, a loop of links, or not the classes that are configured.
    """
    root = Path(config.path)
    names, keys, reader = list_images(root, config.max_file_bytes, config.obtain)
    prefix, splits, ignored = _layout(names, config, root)
    order = np.concatenate([indices for _, indices in splits])
    labels, classes = _labels([names[i][len(prefix) :] for i in order], 0 if ignored is None else 1, config, root)
    return Source(
        splits={name: len(indices) for name, indices in splits},
        names=[names[i] for i in order],
        keys=keys[order],
        labels=labels,
        class_names=classes,
        reader=reader,
        notes={"images_in_no_split": ignored} if ignored else {},
    )


def list_images(root: Path, limit: int, obtain: str = "") -> tuple[list[bytes], np.ndarray, TreeReader | ZipReader]:
    """Names of all images in a folder or .zip in their order, their keys, and what reads them.

    Args:
        root: the folder or .zip.
        limit: largest file in bytes.
        obtain: how to come by it, for the error.

    Raises:
        UserError: not there, empty, or a loop of links.
    """
    if root.is_dir():
        names, keys = _walk(os.fsencode(root))
        reader = TreeReader(os.fsencode(root), limit)
    elif root.suffix.lower() == ".zip" and root.is_file():
        names, keys = list_members(root)
        reader = ZipReader(root, limit)
    else:
        hint = f"; {obtain}" if obtain else ""
        raise UserError(f"{root}: no such folder or .zip; `path` must name what holds the images{hint}")
    wanted = sorted((i for i, name in enumerate(names) if _is_image(name)), key=names.__getitem__)
    if not wanted:
        raise UserError(f"{root}: no images in it; looked for {', '.join(suffix.decode() for suffix in SUFFIXES)}")
    return [names[i] for i in wanted], keys[wanted], reader


def _walk(root: bytes) -> tuple[list[bytes], np.ndarray]:
    """Files below a folder, names relative to it, in any order; and (n, 2) int64: size, time of change in ns."""
    names, keys = [], []
    for name, status in _files(root, b"", ()):
        names.append(name)
        keys.append((status.st_size, status.st_mtime_ns) if status else (0, 0))
    return names, np.array(keys, dtype=np.int64).reshape(-1, 2)


def _files(root: bytes, below: bytes, above: tuple) -> Iterator[tuple[bytes, os.stat_result | None]]:
    folder = os.path.join(root, below)
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(f"{shown(folder)}: a symbolic link to a folder above itself; remove it")
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read: {error.strerror}") from None
    for entry in found:
        name = os.path.join(below, entry.name)
        try:
            status = entry.stat()
        except OSError:
            # A link that leads nowhere or to itself: reading it will fail, and be told with its name.
            status = None
        if status and stat.S_ISDIR(status.st_mode):
            yield from _files(root, name, (*above, here))
        elif _is_image(name) and (status is None or stat.S_ISREG(status.st_mode)):
            yield name, status


def _is_image(name: bytes) -> bool:
    """Whether the suffix is an image's; hidden files and what macOS adds to archives are passed over."""
    parts = name.split(b"/")
    hidden = any((part.startswith(b".") and part not in (b".", b"..")) or part == b"__MACOSX" for part in parts)
    return not hidden and name.lower().endswith(SUFFIXES)


def _layout(names: list[bytes], config: DatasetConfig, root: Path) -> tuple[bytes, list, int | None]:
    """What stands before every name that counts, the splits' indices, and how many images lie in no split.

    The last is None where there are no split folders. A single folder around ``train/`` is looked through.
    """
    prefix = b""
    tops = {name.split(b"/", 1)[0] for name in names}
    if len(tops) == 1 and tops != {b"train"}:
        (top,) = tops
        if any(name.startswith(top + b"/train/") for name in names):
            prefix = top + b"/"
    if not any(name.startswith(prefix + b"train/") for name in names):
        return b"", _held_out(np.arange(len(names)), config, root), None
    found = {split: _under(prefix + split + b"/", names) for split in SPLITS}
    ignored = len(names) - sum(map(len, found.values()))
    if not len(found[b"test"]):
        return prefix, _held_out(found[b"train"], config, root), ignored
    return prefix, [("train", found[b"train"]), ("test", found[b"test"])], ignored


def _under(prefix: bytes, names: list[bytes]) -> np.ndarray:
    return np.array([index for index, name in enumerate(names) if name.startswith(prefix)], dtype=np.int64)


def _held_out(indices: np.ndarray, config: DatasetConfig, root: Path) -> list[tuple[str, np.ndarray]]:
    if not config.holdout:
        return [("train", indices)]
    if config.holdout >= len(indices):
        raise UserError(f"{root}: holdout: {config.holdout} images are to be kept out of training, of {len(indices)}")
    order = np.random.Generator(np.random.PCG64(derive_seed("folder", "split"))).permutation(len(indices))
    cut = len(indices) - config.holdout
    return [("train", indices[order[:cut]]), ("test", indices[order[cut:]])]


def _labels(names: list[bytes], depth: int, config: DatasetConfig, root: Path) -> tuple[np.ndarray, list[str]]:
    """Class of each image, (n,) int64, and the classes' names; the class is folder number `depth` of a name."""
    if not config.classes:
        return np.zeros(len(names), dtype=np.int64), []
    outside = [name for name in names if name.count(b"/") <= depth]
    if outside:
        where = f"{shown(outside[0])} and {len(outside) - 1} more lie" if outside[1:] else f"{shown(outside[0])} lies"
        raise UserError(f"{root}: {where} in no class folder, but classes is {config.classes}")
    found = sorted({name.split(b"/", depth + 1)[depth] for name in names})
    if len(found) != config.classes:
        raise UserError(f"{root}: has {len(found)} class folders, but classes is {config.classes}")
    numbers = {name: number for number, name in enumerate(found)}
    labels = np.fromiter((numbers[name.split(b"/", depth + 1)[depth]] for name in names), np.int64, len(names))
    return labels, [shown(name) for name in found]
