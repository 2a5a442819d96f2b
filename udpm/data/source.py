"""Sources of images, each a list in a fixed order with a reader of any image; folders and .zip files."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from udpm.core.containers import enter_member, members
from udpm.core.errors import UserError
from udpm.core.identify import IMAGE_SUFFIXES as SUFFIXES
from udpm.core.reading import opened
from udpm.data.decode import ImageError


class Reader(Protocol):
    """Reader of a source's images; can be sent to another process."""

    @property
    def parallel(self) -> bool:
        """True if reading and decoding are slow enough that more processes help."""

    @property
    def identity(self) -> str:
        """Identity of the images' files, if names and keys do not determine it."""

    @property
    def files(self) -> Sequence[Path]:
        """The files, if each holds many images; a change of one is a change of all its images."""

    def load(self, name: bytes, key: np.ndarray) -> bytes | np.ndarray:
        """Return an encoded file, or (height, width, 3) uint8 pixels; raises `ImageError`."""


@dataclass(frozen=True)
class Source:
    """List of a source's unread images, with about 120 bytes of memory for each.

    Attributes:
        splits: number of images by split, training first; images are listed in this order.
        names: names of the images, as bytes in any encoding.
        keys: (n, k) int64, location of each image for the reader; changes when the image does.
        labels: (n,) int64; all zero without classes.
        class_names: by label; empty if unknown or without classes.
        reader: reader of the images.
        notes: entries of the record: splits (folders by split), labels (their origin), left_out (numbers of files and
            images by kind), and others of the source.
        warnings: warnings for the user.
        label_file: True if the labels come from a label file.
    """

    splits: dict[str, int]
    names: list[bytes]
    keys: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    reader: Reader
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    label_file: bool = False

    @property
    def labels_follow_names(self) -> bool:
        """True if the images' names determine the labels: class folders in alphabetical order, or no classes."""
        return not self.label_file and self.class_names == sorted(self.class_names)

    def label_digest(self) -> str:
        """Compute the SHA-256 of labels and class names."""
        names = json.dumps(self.class_names).encode()
        return hashlib.sha256(self.labels.astype("<i8").tobytes() + names).hexdigest()


def shown(name: bytes | str) -> str:
    """Format a file's name for a message: escape line breaks and bytes that are not UTF-8."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


_WHY_NOT = "not a readable member of its archive"


def list_members(path: Path) -> tuple[list[bytes], np.ndarray]:
    """List an archive's files by their stored names, and their locations.

    Reads the directory as a stream: the standard library would create an object of 700 bytes for each member.

    Returns:
        n names, and (n, 5) int64: offset, compressed size, size, method (-1: encrypted), CRC-32.

    Raises:
        UserError: missing, or not an archive.
    """
    names, keys = [], array("q")
    with opened(path, ".zip") as file:
        try:
            for name, key in members(file):
                names.append(name)
                keys.extend(key)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a readable .zip: {error}") from None
    return names, np.frombuffer(keys, dtype=np.int64).reshape(-1, 5) if names else np.zeros((0, 5), dtype=np.int64)


def read_member(file: BinaryIO, key: np.ndarray, limit: int) -> bytes:
    """Read the bytes of one member of an archive, `key` being its row from `list_members`; check their CRC-32.

    Raises:
        ImageError: really larger than the limit, encrypted, compressed by an unusual method, or damaged.
        OSError: the archive cannot be read.
    """
    offset, packed, size, method, crc = (int(value) for value in key)
    if max(packed, size) > limit:
        raise ImageError(f"has {max(packed, size)} bytes, more than max_file_bytes {limit}")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError("is encrypted" if method == -1 else f"compressed by method {method}; only deflate is read")
    if not enter_member(file, offset):
        raise ImageError(_WHY_NOT)
    data = file.read(packed)
    if method == zipfile.ZIP_DEFLATED:
        data = _inflate(data, size)
    if len(data) != size or zlib.crc32(data) != crc:
        raise ImageError(f"{_WHY_NOT}: its checksum is wrong")
    return data


def _inflate(data: bytes, size: int) -> bytes:
    # One byte more than the stated size proves it wrong; the rest is never decompressed.
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error:
        raise ImageError(f"{_WHY_NOT}: damaged") from None


OTHER_PICTURES = (
    *(b".gif", b".ppm", b".pgm", b".pbm", b".pnm", b".avif", b".heic", b".heif", b".jxl", b".jp2", b".j2k", b".tga"),
    *(b".exr", b".hdr", b".psd", b".dng", b".cr2", b".nef", b".arw", b".raw", b".ico", b".svg", b".npy", b".dcm"),
)
"""Suffixes of images that are not read."""
PACKED = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"}
"""Suffixes of archives, which are not read inside another archive or a folder."""
SYSTEM_FILES = (b"__macosx", b"@eadir", b"thumbs.db", b"desktop.ini")
"""Files and folders that operating systems add, in lower case."""


@dataclass(frozen=True)
class TreeReader:
    """Reader of files of at most `limit` bytes below the folder `root`."""

    root: bytes
    limit: int
    parallel: bool = True
    identity: str = "folder"
    files: tuple[Path, ...] = ()

    def load(self, name: bytes, key: np.ndarray) -> bytes:
        """Read the file's bytes.

        Raises:
            ImageError: too large or unreadable.
        """
        if key[0] > self.limit:
            raise ImageError(f"has {key[0]} bytes, more than max_file_bytes {self.limit}")
        try:
            with open(os.path.join(self.root, name), "rb") as file:
                return file.read(self.limit)
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class ZipReader:
    """Reader of members of at most `limit` bytes of the .zip `path`."""

    path: Path
    limit: int
    parallel: bool = True
    identity: str = "zip"
    files: tuple[Path, ...] = ()
    _open: list[BinaryIO] = field(default_factory=list, compare=False, repr=False)

    def load(self, name: bytes, key: np.ndarray) -> bytes:
        """Read the member's bytes.

        Raises:
            ImageError: too large, encrypted or damaged.
            UserError: the archive is no longer readable.
        """
        try:
            if not self._open:
                self._open.append(open(self.path, "rb"))  # noqa: SIM115 - stays open as long as its process
            return read_member(self._open[0], key, self.limit)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def __getstate__(self) -> dict:
        # Each process opens the archive itself, since processes that share an open file share its position.
        return {**self.__dict__, "_open": []}


@dataclass(frozen=True)
class Listing:
    """The files of a folder or a .zip.

    Attributes:
        root: the folder or .zip.
        names: names of the images, in order.
        keys: (n, k) int64, location of each image for the reader.
        reader: reader of all files.
        others: keys of the other files by name.
        ignored: numbers of files that are hidden, added by an operating system, or not regular.
    """

    root: Path
    names: list[bytes]
    keys: np.ndarray
    reader: TreeReader | ZipReader
    others: dict[bytes, np.ndarray]
    ignored: dict[str, int]

    def paths(self) -> list[bytes]:
        """Return the images' names with folders separated by slashes."""
        return [tidy(name) for name in self.names]

    def left_out(self, used: Collection[bytes] = ()) -> dict[str, int]:
        """Count the files that are not images by suffix, except the label files `used`, and those ignored."""
        suffixes = Counter(_suffix(name) for name in self.others if name not in used)
        return dict(sorted(suffixes.items())) | {what: count for what, count in self.ignored.items() if count}


def list_images(root: Path, limit: int) -> Listing:
    """List all files of a folder or .zip of images.

    Raises:
        UserError: as `list_files`, or without images.
    """
    listing = list_files(root, limit)
    check_images(listing)
    return listing


def check_images(listing: Listing) -> None:
    """Refuse a folder or .zip without images.

    Raises:
        UserError: it has none.
    """
    if listing.names:
        return
    counts = listing.left_out()
    found = f"; found {format_counts(counts)}" if counts else ""
    hint = "; unpack the archives in it" if counts.keys() & PACKED else ""
    raise UserError(
        f"{listing.root}: no images; looked for {', '.join(name.decode() for name in SUFFIXES)}{found}{hint}"
    )


def list_files(root: Path, limit: int, obtain: str = "") -> Listing:
    """List all files of a folder or .zip; `obtain` says in an error how to get the data.

    Raises:
        UserError: missing, a loop of links, or two files of the same name.
    """
    reader: TreeReader | ZipReader
    if root.is_dir():
        names, keys, ignored = _walk(os.fsencode(root))
        reader = TreeReader(os.fsencode(root), limit)
    elif root.suffix.lower() == ".zip" and root.is_file():
        names, keys = list_members(root)
        names, keys, ignored = _visible([tidy(name) for name in names], keys)
        reader = ZipReader(root, limit)
    else:
        hint = f"; {obtain}" if obtain else ""
        wrong = "is neither a folder nor a .zip of images" if root.exists() else "no such folder or .zip of images"
        raise UserError(f"{root}: {wrong}{hint}")
    for name, count in Counter(map(tidy, names)).most_common(1):
        if count > 1:
            raise UserError(f"{root}: contains {shown(name)} {count} times; remove all but one of them")
    order = sorted(range(len(names)), key=names.__getitem__)
    wanted = [i for i in order if _is_image(names[i])]
    others = {names[i]: keys[i] for i in order if not _is_image(names[i])}
    return Listing(root, [names[i] for i in wanted], keys[wanted], reader, others, ignored)


def format_counts(counts: dict[str, int]) -> str:
    """Format counts by kind for a message, "3 .gif, 1 .txt"."""
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _visible(names: list[bytes], keys: np.ndarray) -> tuple[list[bytes], np.ndarray, dict[str, int]]:
    """Remove hidden members of an archive; also return their number."""
    seen = [i for i, name in enumerate(names) if not any(_is_hidden(part) for part in name.split(b"/"))]
    return [names[i] for i in seen], keys[seen], {"hidden": len(names) - len(seen)}


def _walk(root: bytes) -> tuple[list[bytes], np.ndarray, dict[str, int]]:
    """List files below a folder in any order: names, (n, 2) int64 size and time of change in ns, numbers ignored."""
    names, keys, ignored = [], [], {"hidden": 0, "no regular file": 0}
    for name, status in _files(root, b"", (), ignored):
        names.append(name)
        keys.append((status.st_size, status.st_mtime_ns) if status else (0, 0))
    return names, np.array(keys, dtype=np.int64).reshape(-1, 2), ignored


def _files(
    root: bytes, below: bytes, above: tuple, ignored: dict[str, int]
) -> Iterator[tuple[bytes, os.stat_result | None]]:
    folder = os.path.join(root, below)
    status: os.stat_result | None
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
        if _is_hidden(entry.name):
            ignored["hidden"] += _count_files(entry)
            continue
        try:
            status = entry.stat()
        except OSError:
            # Reading a broken link will fail with its name.
            status = None
        if status and stat.S_ISDIR(status.st_mode):
            yield from _files(root, name, (*above, here), ignored)
        elif status is None or stat.S_ISREG(status.st_mode):
            yield name, status
        else:
            ignored["no regular file"] += 1


def _count_files(entry: os.DirEntry) -> int:
    """Count the files in a folder; 1 for a file."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def tidy(name: bytes) -> bytes:
    """Normalize a name: Windows separates folders by backslashes, and some archivers add `./`."""
    if b"\\" in name:
        name = name.replace(b"\\", b"/")
    if b"//" in name or b"./" in name or name.startswith(b"/"):
        name = posixpath.normpath(name).lstrip(b"/")
    return name


def _is_hidden(part: bytes) -> bool:
    return (part.startswith(b".") and part not in (b".", b"..")) or part.lower() in SYSTEM_FILES


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(SUFFIXES)


def _suffix(name: bytes) -> str:
    return shown(os.path.splitext(name)[1].lower()) or "without a suffix"
