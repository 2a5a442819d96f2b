"""Reader and writer of .npz and .npy files; sizes are checked against the file before any memory is allocated."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from udpm.core.arrays import content_digest
from udpm.core.containers import check_unpacked, enter_member, members
from udpm.core.errors import UserError
from udpm.core.files import atomic_path
from udpm.core.reading import opened, parse_json

MEMBERS = 4096
PLAIN = "biufcSU"
"""Kinds of types whose values are plain bytes: no Python objects, and no records."""
_BLOCK, _PACKED_BLOCK = 2**20, 2**16
_LONGEST_HEADER = 2**16
_MAGIC = npy.MAGIC_PREFIX


@dataclass(frozen=True)
class Header:
    """Header of an array: its shape, order and type, and its own size in bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    size: int

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def values_bytes(self) -> int:
        """Size of the values in bytes."""
        return self.count * self.dtype.itemsize

    def shaped(self, flat: np.ndarray) -> np.ndarray:
        """Give an array's flat values its shape."""
        return flat.reshape(self.shape[::-1]).T if self.fortran else flat.reshape(self.shape)


class Damaged(Exception):
    """An array file whose content is invalid; the message gives a short reason."""


def read_npz(
    path: str | Path, what: str, made_by: str = "", names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz, or those of `names` that exist.

    Args:
        what: expected content, for the error.
        made_by: command that makes the file, for the error.
        names: arrays to read; default: all.

    Raises:
        UserError: missing, not an .npz, damaged, or its arrays unpack to more than the limits allow.
    """
    if made_by and not os.path.lexists(path):
        raise UserError(f"{path}: {what} not found; `{made_by}` makes it")
    with opened(path, what) as file:
        try:
            keys = _arrays_in(file)
            wanted = [name for name in keys if names is None or name in names]
            check_unpacked(sum(keys[name][2] for name in wanted), os.fstat(file.fileno()).st_size)
            return {name: _read_member(file, name, keys[name]) for name in wanted}
        except (Damaged, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: not a readable {what}: {error}") from None


def array_names(path: str | Path, what: str) -> list[str]:
    """List the arrays of an .npz.

    Raises:
        UserError: missing, not an .npz, or damaged.
    """
    with opened(path, what) as file:
        try:
            return list(_arrays_in(file))
        except (Damaged, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a readable {what}: {error}") from None


def array_header(path: str | Path, what: str, name: str | None) -> Header:
    """Read the header of one array of an .npz, or with None that of an .npy.

    Raises:
        UserError: as `read_npz`.
    """
    with _entered(path, what, name) as (file, size, where):
        return _header(file, size, where)


def place_array(path: str | Path, what: str, name: str | None) -> tuple[BinaryIO, int, bool]:
    """Open the values of one array of an .npz, or with None of an .npy, for reading at any place.

    A checksum is checked. A compressed array is first unpacked to a temporary file that vanishes with the process.

    Returns:
        An open file, the position of the first value in it, and whether it is the given file itself.

    Raises:
        UserError: as `read_npz`.
    """
    with _entered(path, what, name) as (file, size, where):
        header = _header(file, size, where)
        if not isinstance(file, _Member):
            return open(path, "rb"), header.size, True
        check_unpacked(size, os.path.getsize(path))
        file, start, stored = file.again()
        target: BinaryIO = open(path, "rb") if stored else tempfile.TemporaryFile()  # noqa: SIM115
        while part := file.read(_BLOCK):
            if not stored:
                _keep(target, part, path)
        file.check(where)
        return target, (start if stored else 0) + header.size, stored


def _keep(target: BinaryIO, part: bytes, path: str | Path) -> None:
    try:
        target.write(part)
        target.flush()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be unpacked to {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR to a folder "
            "with more space"
        ) from None


@contextmanager
def _entered(path: str | Path, what: str, name: str | None) -> Iterator[tuple[BinaryIO | _Member, int, str]]:
    """Open an array for reading from its first byte; also return its size with its header, and its name for errors."""
    with opened(path, what) as file:
        try:
            if name is None:
                yield file, os.fstat(file.fileno()).st_size, "it"
            else:
                key = _arrays_in(file)[name]
                yield _Member(file, key), key[2], f"array {name}"
        except (Damaged, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: not a readable {what}: {error}") from None


def map_npy(path: str | Path, what: str) -> np.ndarray:
    """Map the array of an .npy to memory, read-only.

    Raises:
        UserError: missing, not an .npy, or damaged.
    """
    with opened(path, what) as file:
        try:
            header = _header(file, os.fstat(file.fileno()).st_size, "it")
        except Damaged as error:
            raise UserError(f"{path}: not a readable {what}: {error}") from None
        if not header.count:
            return header.shaped(np.empty(0, header.dtype))
        order = "F" if header.fortran else "C"
        # numpy's stubs require a writable file.
        return np.memmap(file, header.dtype, "r", header.size, header.shape, order)  # type: ignore[call-overload]


def _arrays_in(file: BinaryIO) -> dict[str, tuple[int, int, int, int, int]]:
    """Read the keys of an archive's arrays, by name."""
    if file.read(len(_MAGIC)) == _MAGIC:
        raise Damaged("it is one array (.npy), not an archive of them (.npz)")
    found: dict[str, tuple[int, int, int, int, int]] = {}
    for name, key in members(file):
        array = name.decode("utf-8", "backslashreplace").removesuffix(".npy")
        if array in found:
            raise Damaged(f"array {array} exists twice")
        if len(found) >= MEMBERS:
            raise Damaged(f"it holds more than {MEMBERS} arrays")
        found[array] = key
    return found


def _read_member(file: BinaryIO, name: str, key: tuple[int, ...]) -> np.ndarray:
    member = _Member(file, key)
    header = _header(member, key[2], f"array {name}")
    flat = np.empty(header.values_bytes, np.uint8)
    view, filled = memoryview(flat), 0
    while filled < len(flat):
        part = member.read(min(_BLOCK, len(flat) - filled))
        if not part:
            raise Damaged(f"array {name} is cut short")
        view[filled : filled + len(part)] = part
        filled += len(part)
    member.check(f"array {name}")
    return header.shaped(flat.view(header.dtype))


class _Member:
    """Stream of a member's unpacked bytes."""

    def __init__(self, file: BinaryIO, key: tuple[int, ...]) -> None:
        offset, packed, size, method, crc = key
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Damaged("it is encrypted" if method == -1 else f"it is compressed by method {method}")
        if not enter_member(file, offset):
            raise Damaged("its directory leads to no member")
        self._file, self._packed, self._left, self._wanted = file, packed, size, crc
        self._key, self._start = key, file.tell()
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if method == zipfile.ZIP_DEFLATED else None
        self._crc = 0

    def again(self) -> tuple[_Member, int, bool]:
        """Return to the first byte: a new stream, the byte's position in the file, and whether it is not compressed."""
        return _Member(self._file, self._key), self._start, self._inflater is None

    def read(self, count: int) -> bytes:
        """Read at most `count` bytes; none at the end."""
        count = min(count, self._left)
        part = self._stored(count) if self._inflater is None else self._inflated(self._inflater, count)
        self._left -= len(part)
        self._crc = zlib.crc32(part, self._crc)
        return part

    def check(self, where: str) -> None:
        """Check that all bytes were read, and their checksum."""
        if self._left:
            raise Damaged(f"{where} is cut short")
        if self._crc != self._wanted:
            raise Damaged(f"the checksum of {where} is wrong")

    def _stored(self, count: int) -> bytes:
        part = self._file.read(min(count, self._packed))
        self._packed -= len(part)
        return part

    def _inflated(self, inflater: zlib._Decompress, count: int) -> bytes:
        part = b""
        while not part and count and not inflater.eof:
            packed = inflater.unconsumed_tail or self._stored(_PACKED_BLOCK)
            part = inflater.decompress(packed, count)
            if not packed:
                break
        return part


def _header(file: BinaryIO | _Member, size: int, where: str) -> Header:
    """Read the header of an array's `size` bytes, and check that the values fill the rest exactly."""
    limited = _Counted(file)
    try:
        version = npy.read_magic(limited)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(limited)
    except Exception:  # numpy evaluates the header as a Python literal, which raises errors of any type.
        raise Damaged(f"{where} has no readable header of an array") from None
    if dtype.kind not in PLAIN or dtype.subdtype is not None or not dtype.itemsize:
        raise Damaged(f"{where} holds values of type {str(dtype)[:40]}, not plain numbers or text")
    header = Header(shape, fortran, dtype, limited.count)
    whole = len(shape) <= 32 and all(type(side) is int and side >= 0 for side in shape)
    if not whole or header.values_bytes != size - header.size:
        raise Damaged(f"{where} claims {dtype} {shape}, {header.values_bytes} bytes, but has {size - header.size}")
    return header


class _Counted:
    """Stream that limits and counts the bytes of a header."""

    def __init__(self, file: BinaryIO | _Member) -> None:
        self._file, self.count = file, 0

    def read(self, count: int = _LONGEST_HEADER) -> bytes:
        part = self._file.read(min(count, _LONGEST_HEADER - self.count))
        self.count += len(part)
        return part


DIGEST = "content_sha256"
"""Key of a record: SHA-256 of the arrays and the rest of the record; missing from files of older versions."""


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the header of an .npy of values in C order, as numpy writes it."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return header.getvalue()


def save_arrays(
    path: str | Path, arrays: dict[str, np.ndarray], record: dict[str, Any], *, compressed: bool = True
) -> None:
    """Write arrays and their record, with a digest of both, as JSON in an array `record`, atomically."""
    sealed = np.array(json.dumps(record | {DIGEST: content_digest(arrays, record)}))
    contents: dict[str, Any] = {**arrays, "record": sealed}
    write = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        write(handle, **contents)


def load_arrays(path: str | Path, what: str, made_by: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the record that `save_arrays` wrote; the caller checks the values.

    Args:
        what: expected content, for the error ("chain").
        made_by: command that makes the file, for the error.

    Raises:
        UserError: missing, unreadable, or changed since it was written.
    """
    arrays = read_npz(path, what, made_by)
    if "record" not in arrays:
        raise UserError(f"{path}: not a {what}: it has no record; `{made_by}` makes it")
    record = parse_json(str(arrays.pop("record")), f"{path}: not a readable {what}: its record")
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a {what}: its record is not a JSON object")
    digest = record.pop(DIGEST, None)
    if digest is not None and digest != content_digest(arrays, record):
        raise UserError(f"{path}: its content was changed since it was written (SHA-256); make it again")
    return arrays, record
