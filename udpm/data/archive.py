"""Members of a .zip, read in place: nothing is extracted, and no member grows beyond a limit."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from udpm.core.errors import UserError
from udpm.data.picture import Refused

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_UTF8, _ENCRYPTED = 0x800, 0x1
_WHY_NOT = "not a readable member of its archive"


def list_members(path: Path) -> tuple[list[bytes], np.ndarray]:
    """Names of an archive's files, as the bytes stored in it, and where they lie.

    Returns:
        n names, and (n, 5) int64: offset, compressed size, size, method (-1: encrypted), CRC-32. All of it is small: the
        library's own objects, some 700 bytes for each member, do not outlive this call.

    Raises:
        UserError: missing, or no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: not a readable .zip: {error}") from None
    keys = np.zeros((len(members), 5), dtype=np.int64)
    for row, member in zip(keys, members, strict=True):
        method = -1 if member.flag_bits & _ENCRYPTED else member.compress_type
        row[:] = (member.header_offset, member.compress_size, member.file_size, method, member.CRC)
    return [_stored_name(member) for member in members], keys


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
    file.seek(offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise Refused(_WHY_NOT)
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    file.seek(name_length + extra_length, 1)
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


def _stored_name(member: zipfile.ZipInfo) -> bytes:
    # The library decodes names without the UTF-8 flag as code page 437; what was stored may be any encoding.
    try:
        return member.filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437")
    except UnicodeEncodeError:
        return member.filename.encode("utf-8", "surrogateescape")
