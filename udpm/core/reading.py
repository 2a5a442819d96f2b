"""Read regular files of bounded size: as bytes, text, JSON of bounded depth, or JSON lines."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, BinaryIO

from udpm.core.errors import UserError

JSON_BYTES = 16 * 2**20
"""Largest JSON file to read, unless a caller allows more."""
JSON_DEPTH = 64
JSON_BYTES_PER_VALUE = 8
"""A file may contain one value per this many bytes of its limit: a value takes about 100 bytes of memory."""
LINE_BYTES = 2**20
LINES_BYTES = 256 * 2**20
"""Longest line, and largest file of JSON lines, to read."""
INTEGERS = range(-(2**63), 2**63)
"""Signed 64-bit integers, the range of tables and arrays."""

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
"""Characters that no file name can contain (NUL), or that cannot be encoded (lone surrogates)."""
_ESCAPED = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


@contextmanager
def opened(path: str | os.PathLike, what: str, limit: int | None = None) -> Iterator[BufferedReader]:
    """Open a regular file for reading bytes. Refuses a pipe, device, socket or folder without waiting for it.

    Args:
        what: the expected kind of file, for the error ("dataset record").
        limit: largest size in bytes; None: any.

    Raises:
        UserError: missing, not a regular file, too large, or it cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UserError(_why_not(path, what, error)) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: not a readable {what}: it is {_kind(status.st_mode)}, not a file")
    with os.fdopen(descriptor, "rb") as file:
        if limit is not None and status.st_size > limit:
            raise UserError(_too_large(path, what, status.st_size, limit))
        try:
            yield file
        except OSError as error:
            raise UserError(f"{path}: not a readable {what}: {error.strerror or error}") from None


def read_bytes(path: str | os.PathLike, what: str, limit: int) -> bytes:
    """Read all bytes of a file.

    Raises:
        UserError: as `opened`.
    """
    with opened(path, what, limit) as file:
        # Some files report size 0, and others grow.
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(_too_large(path, what, len(data), limit))
    return data


def read_text(path: str | os.PathLike, what: str, limit: int) -> str:
    """Read a file as UTF-8 text, without the byte order mark that some editors write.

    Raises:
        UserError: as `opened`, or not UTF-8.
    """
    return _decoded(read_bytes(path, what, limit), f"{path}: not a readable {what}")


def read_json(path: str | os.PathLike, what: str, limit: int = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        what: the expected kind of file, for the error ("dataset record").

    Raises:
        UserError: missing, unreadable, or not a JSON object.
    """
    value = parse_json(read_bytes(path, what, limit), f"{path}: not a readable {what}", limit)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a {what}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json(data: bytes | str, where: str, limit: int = JSON_BYTES) -> Any:
    """Parse JSON of bounded size and depth, with finite numbers, 64-bit integers and unique keys in every object.

    Args:
        data: UTF-8.
        where: prefix of the error ("run.json: not a readable configuration").
        limit: largest size in bytes (characters of a text).

    Raises:
        UserError: the JSON is invalid or exceeds these limits.
    """
    if len(data) > limit:
        raise UserError(f"{where}: it has {len(data)} bytes, more than {limit}")
    text = _decoded(data, where) if isinstance(data, bytes) else data
    values = sum(text.count(mark) for mark in ",[{")
    if values > limit // JSON_BYTES_PER_VALUE:
        raise UserError(f"{where}: it contains more than {limit // JSON_BYTES_PER_VALUE} values")
    try:
        parse: dict[str, Any] = {"parse_int": _integer, "parse_float": _finite, "parse_constant": _constant}
        value = json.loads(text, object_pairs_hook=_object, **parse)
        _check_depth(value)
        if _ESCAPED.search(text) or NO_TEXT.search(text):
            _check_text(value)
    except RecursionError:
        raise UserError(f"{where}: it is nested more than {JSON_DEPTH} levels deep") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return value


def read_json_lines(path: str | os.PathLike, what: str, tail: int | None = None) -> Iterator[dict[str, Any] | None]:
    """Yield the objects of a file of JSON lines, in order, with one line in memory at a time.

    Args:
        tail: read only this many bytes at the end; the line in which they begin counts as unreadable.

    Yields:
        The object of each line, or None for an unreadable one. Omits an incomplete last line, which a killed process
        left.

    Raises:
        UserError: as `opened`.
    """
    with opened(path, what, LINES_BYTES if tail is None else None) as file:
        if tail is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - tail))
        while line := file.readline(LINE_BYTES + 1):
            whole = line.endswith(b"\n")
            if not whole and len(line) > LINE_BYTES:
                whole = _skip_line(file)
                found = None
            else:
                found = _line_object(line)
            if found is not None or whole:
                yield found


def _skip_line(file: BinaryIO) -> bool:
    """Skip to the end of the line; return whether it ends with a newline."""
    while part := file.readline(LINE_BYTES):
        if part.endswith(b"\n"):
            return True
    return False


def _line_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line, "")
    except UserError:
        return None
    return value if isinstance(value, dict) else None


def _why_not(path: str | os.PathLike[str], what: str, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return f"{os.fsdecode(path)!r}: not a readable {what}: not a valid file name: {error}"
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return f"{path}: not a readable {what}: it is a symbolic link to {os.readlink(path)}, which does not exist"
        return f"{path}: {what} not found"
    if error.errno == errno.ELOOP:
        return f"{path}: not a readable {what}: it is a symbolic link that points to itself"
    if error.errno == errno.ENXIO:
        return f"{path}: not a readable {what}: it is {_kind(os.stat(path).st_mode)}, not a file"
    return f"{path}: not a readable {what}: {error.strerror or error}"


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS.items() if test(mode)), "something else")


def _too_large(path: str | os.PathLike, what: str, size: int, limit: int) -> str:
    return f"{path}: not a readable {what}: it has {size} bytes, more than {limit}"


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {twice[:80]!r} is duplicated")
    return found


def _integer(digits: str) -> int:
    # The time of int() grows quadratically with the number of digits.
    if len(digits) > 20 or int(digits) not in INTEGERS:
        raise ValueError(f"an integer of {len(digits)} digits does not fit into 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is out of range")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a valid JSON number")


def _check_depth(value: Any) -> None:
    layer = [value]
    for _ in range(JSON_DEPTH):
        layer = [inner for outer in layer for inner in _inside(outer) if isinstance(inner, (dict, list))]
        if not layer:
            return
    raise RecursionError


def _check_text(value: Any) -> None:
    layer = [value]
    while layer:
        for text in layer:
            if isinstance(text, str) and (found := NO_TEXT.search(text)):
                raise ValueError(f"a text contains the character U+{ord(found[0]):04X}")
        layer = [inner for outer in layer for inner in (*_inside(outer), *(outer if isinstance(outer, dict) else ()))]


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
