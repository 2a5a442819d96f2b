"""Read a .zip's directory and a safetensors header, with every claim checked against the file's size. No numpy."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from udpm.core.errors import UserError, first_line
from udpm.core.reading import opened, parse_json

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s4xHH4xIIIHHH8xI")
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2IQQQQ")
_LONGEST_COMMENT = 0xFFFF
_BEYOND32 = 0xFFFFFFFF
_LARGEST = 2**62
UNPACKED_BYTES = 2**29
UNPACKED_TIMES = 50
"""A file may unpack to UNPACKED_BYTES or to UNPACKED_TIMES its size, whichever is more: far above what images of more
than one colour and weights need."""
_ENCRYPTED = 0x1


def members(file: BinaryIO) -> Iterator[tuple[bytes, tuple[int, int, int, int, int]]]:
    """Iterate over an archive's files, each with its name as stored bytes and its key.

    A key is offset, compressed size, size, method (-1: encrypted) and CRC-32. Every member is within the file, and no
    two share bytes.

    Raises:
        zipfile.BadZipFile: on iterating, not an archive, or its directory is damaged.
    """
    size, held = os.fstat(file.fileno()).st_size, 0
    try:
        count, shift = _find_directory(file)
        for _ in range(count):
            name, key = _directory_entry(file, shift)
            offset, packed, unpacked, _, _ = key
            held += packed
            if not 0 <= offset <= size or held > size or unpacked > _LARGEST:
                raise zipfile.BadZipFile("its directory claims more than the file holds")
            if not name.endswith(b"/"):
                yield name, key
    except (OverflowError, ValueError, struct.error):
        raise zipfile.BadZipFile("it is cut short, or its directory is damaged") from None


def enter_member(file: BinaryIO, offset: int) -> bool:
    """Seek to the first byte of a member's data; return False if no member begins at this offset."""
    file.seek(offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        return False
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    file.seek(name_length + extra_length, 1)
    return True


def _find_directory(file: BinaryIO) -> tuple[int, int]:
    """Seek to the first entry of the directory.

    Returns:
        The number of entries, and the number of bytes in front of the archive, which all its offsets leave out.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - _LONGEST_COMMENT))
    tail = file.read()
    index = tail.rfind(b"PK\x05\x06")
    if index < 0:
        raise zipfile.BadZipFile("File is not a zip file")
    _, _, _, _, count, length, offset, _ = _END.unpack_from(tail, index)
    end = size - len(tail) + index
    locator = _read_at(file, end - _LOCATOR.size, _LOCATOR.size)
    if locator.startswith(b"PK\x06\x07"):
        end = _LOCATOR.unpack(locator)[2]
        mark, *_, count, length, offset = _END64.unpack(_read_at(file, end, _END64.size))
        if mark != b"PK\x06\x06":
            raise zipfile.BadZipFile("its directory is damaged")
    shift = end - length - offset
    if shift < 0:
        raise zipfile.BadZipFile("it is cut short, or its directory is damaged")
    file.seek(shift + offset)
    return count, shift


def _directory_entry(file: BinaryIO, shift: int) -> tuple[bytes, tuple[int, int, int, int, int]]:
    """Read the next entry's name and key."""
    mark, flags, method, crc, packed, size, name_length, extra_length, comment_length, offset = _ENTRY.unpack(
        file.read(_ENTRY.size)
    )
    if mark != b"PK\x01\x02":
        raise zipfile.BadZipFile("its directory is damaged")
    name, extra = file.read(name_length), file.read(extra_length)
    file.seek(comment_length, 1)
    if _BEYOND32 in (packed, size, offset):
        size, packed, offset = _long_values(extra, (size, packed, offset))
    return name, (offset + shift, packed, size, -1 if flags & _ENCRYPTED else method, crc)


def _long_values(extra: bytes, values: tuple[int, ...]) -> list[int]:
    """Replace values that do not fit into 32 bits by those of the entry's extra field, which keeps their order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            long = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return [next(long, value) if value == _BEYOND32 else value for value in values]
        extra = extra[4 + length :]
    return list(values)


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(max(0, offset))
    return file.read(count)


def check_unpacked(size: int, packed: int) -> None:
    """Refuse a bomb: a file of `packed` bytes that claims to unpack to far more.

    Raises:
        zipfile.BadZipFile: it is.
    """
    limit = max(UNPACKED_BYTES, UNPACKED_TIMES * packed)
    if size > limit:
        raise zipfile.BadZipFile(
            f"it unpacks to {size} bytes, more than {limit}: {UNPACKED_BYTES}, or {UNPACKED_TIMES} times its own size"
        )


def check_archive(path: str | os.PathLike, what: str) -> None:
    """Check an archive before a library opens it; a file that is no .zip, as older PyTorch wrote, is not checked.

    Raises:
        UserError: missing, not a regular file, or a .zip that is damaged or unpacks to more than the limits allow.
    """
    with opened(path, what) as file:
        if file.read(4) != b"PK\x03\x04":
            return
        try:
            check_unpacked(sum(key[2] for _, key in members(file)), os.fstat(file.fileno()).st_size)
            _check_pickles(file)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a readable {what}: {error}") from None


def _check_pickles(file: BinaryIO) -> None:
    """Scan an archive's pickles without building anything: PyTorch allocates as much as a length claims."""
    import pickletools

    name = "directory"
    try:
        with zipfile.ZipFile(file) as archive:
            for name in [name for name in archive.namelist() if name.endswith(".pkl")]:
                data = archive.read(name)
                for code, value, _ in pickletools.genops(data):
                    if code.name.endswith("PUT") and value is not None and value > len(data):
                        raise ValueError(f"an entry of its memo is numbered {value}")
    except Exception as error:  # Damaged bytes raise errors of any type.
        raise zipfile.BadZipFile(f"{name}: {first_line(error)}") from None


HEADER_BYTES = 16 * 2**20
"""Largest header to read; a header has about 100 bytes for each tensor."""
LENGTH_BYTES = 8
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
BITS |= {"F64": 64, "I64": 64, "U64": 64}


@dataclass(frozen=True)
class Header:
    """Header of a safetensors file.

    Attributes:
        description: this program's part of the metadata; empty in another program's file.
        shapes: shapes of the tensors by name.
    """

    description: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: str | os.PathLike) -> Header:
    """Read the header of a safetensors file, and check the size of its tensors without reading them.

    Raises:
        UserError: missing, or not a safetensors file.
    """
    with opened(path, "safetensors file") as file:
        text, held = _header_text(file, str(path))
    header = parse_json(text, f"{path}: not a readable safetensors file: its header")
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a readable safetensors file: its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not isinstance(own := metadata.get("udpm", "{}"), str):
        raise UserError(f"{path}: not a readable safetensors file: its metadata are not texts")
    shapes = {name: _shape(entry, held, f"{path}: tensor {name}") for name, entry in header.items()}
    claimed = sum(math.prod(shape) * BITS[header[name]["dtype"]] // 8 for name, shape in shapes.items())
    if claimed != held:
        raise UserError(
            f"{path}: not a readable safetensors file: its tensors have {claimed} bytes, but {held} follow the header"
        )
    description = parse_json(own, f"{path}: not a readable safetensors file: its description")
    if not isinstance(description, dict):
        raise UserError(f"{path}: its description is not a JSON object")
    return Header(description, shapes)


def _header_text(file: BinaryIO, path: str) -> tuple[bytes, int]:
    """Return the header, and the number of bytes after it."""
    size, what = os.fstat(file.fileno()).st_size, f"{path}: not a readable safetensors file: its header"
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
        raise UserError(f"{what} claims {length} bytes, but the file has {size}")
    if length > HEADER_BYTES:
        raise UserError(f"{what} has {length} bytes, more than {HEADER_BYTES}")
    return file.read(length), size - LENGTH_BYTES - length


def _shape(entry: Any, held: int, where: str) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    whole = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    if shape is None or not whole or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in BITS:
        raise UserError(f"{where}: has no known type and shape")
    if math.prod(shape) * BITS[entry["dtype"]] // 8 > held:
        raise UserError(f"{where}: claims the shape {shape}, but the file holds {held} bytes of tensors")
    return tuple(shape)
