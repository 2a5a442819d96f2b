"""Members of a .zip, read in place: nothing is extracted, and no member grows beyond a limit."""

from __future__ import annotations

import zipfile
import zlib
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from udpm.core.errors import UserError
from udpm.core.reading import opened
from udpm.core.zipped import Members, enter_member
from udpm.data.picture import Refused

_WHY_NOT = "not a readable member of its archive"


def list_members(path: Path) -> tuple[list[bytes], np.ndarray]:
    """Names of an archive's files, as the bytes stored in it, and where they lie.

    The directory is read as a stream: the standard library would make an object of 700 bytes of each member.

    Returns:
        n names, and (n, 5) int64: offset, compressed size, size, method (-1: encrypted), CRC-32.

    Raises:
        UserError: missing, or no archive.
    """
    names, keys = [], array("q")
    with opened(path, ".zip") as file:
        try:
            for name, key in Members(file):
                names.append(name)
                keys.extend(key)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a readable .zip: {error}") from None
    return names, np.frombuffer(keys, dtype=np.int64).reshape(-1, 5) if names else np.zeros((0, 5), dtype=np.int64)


def read_member(file: BinaryIO, key: np.ndarray, limit: int) -> bytes:
    """One member's bytes, checked against its CRC-32.

    Args:
        file: the archive.
        key: the member's row of `list_members`.
        limit: largest size in bytes.

    Raises:
        Refused: larger than the limit, whatever its header says; encrypted; compressed in a rare way; damaged.
        OSError: the archive cannot be read.
    """
    offset, packed, size, method, crc = (int(value) for value in key)
    if max(packed, size) > limit:
        raise Refused(f"has {max(packed, size)} bytes, more than max_file_bytes {limit}")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused("is encrypted" if method == -1 else f"compressed by method {method}; only deflate is read")
    if not enter_member(file, offset):
        raise Refused(_WHY_NOT)
    data = file.read(packed)
    if method == zipfile.ZIP_DEFLATED:
        data = _inflate(data, size)
    if len(data) != size or zlib.crc32(data) != crc:
        raise Refused(f"{_WHY_NOT}: its checksum is wrong")
    return data


def _inflate(data: bytes, size: int) -> bytes:
    # A byte more than announced is enough to see that a member lies about its size; the rest never comes to memory.
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error:
        raise Refused(f"{_WHY_NOT}: damaged") from None
