"""The beginning of a safetensors file: what it says of itself and of its tensors, read without torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from udpm.core.errors import UserError
from udpm.core.reading import opened, parse_json

HEADER_BYTES = 16 * 2**20
"""Largest header that is read; one has about 100 bytes for each tensor."""
LENGTH_BYTES = 8
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
BITS |= {"F64": 64, "I64": 64, "U64": 64}


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its tensors.

    Attributes:
        description: this program's own, of the metadata; empty where there is none.
        shapes: of the tensors, by name.
    """

    description: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: str | os.PathLike) -> Header:
    """Read the header of a safetensors file; its tensors are compared with the size of the file, but not read.

    Raises:
        UserError: missing, or not a safetensors file.
    """
    with opened(path, "safetensors file") as file:
        text, held = _header_text(file, str(path))
    header = parse_json(text, f"{path}: not a readable safetensors file: its header")
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a readable safetensors file: its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not isinstance(told := metadata.get("udpm", "{}"), str):
        raise UserError(f"{path}: not a readable safetensors file: its metadata are not texts")
    shapes = {name: _shape(entry, held, f"{path}: tensor {name}") for name, entry in header.items()}
    description = parse_json(told, f"{path}: not a readable safetensors file: its description")
    if not isinstance(description, dict):
        raise UserError(f"{path}: its description is not a JSON object")
    return Header(description, shapes)


def _header_text(file: BinaryIO, path: str) -> tuple[bytes, int]:
    """The header, and the number of bytes after it."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
        raise UserError(
            f"{path}: not a readable safetensors file: its header claims {length} bytes, but the file has {size}"
        )
    if length > HEADER_BYTES:
        raise UserError(
            f"{path}: not a readable safetensors file: its header has {length} bytes, more than {HEADER_BYTES}"
        )
    return file.read(length), size - LENGTH_BYTES - length


def _shape(entry: Any, held: int, where: str) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    whole = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    if not whole or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in BITS:
        raise UserError(f"{where}: has no type and shape that are known")
    if math.prod(shape) * BITS[entry["dtype"]] // 8 > held:
        raise UserError(f"{where}: claims the shape {shape}, but the file holds {held} bytes of tensors")
    return tuple(shape)
