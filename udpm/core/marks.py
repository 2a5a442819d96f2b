"""The mark that text files and pictures carry: that udpm wrote them, and whether anything was changed since."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from pathlib import Path

from udpm.core.errors import UserError
from udpm.core.files import leading
from udpm.core.reading import read_bytes

CSV = re.compile(rb"udpm; csv SHA-256 ([0-9a-f]{64})")
OWN = re.compile(rb"udpm; (?:csv SHA-256 [0-9a-f]{64}; )?file SHA-256 ([0-9a-f]{64})")
"""Files of earlier versions hold no digest of themselves."""
EMPTY = "0" * 64
LARGEST = 1 << 28
"""Bytes of a marked file. A larger one is not read, and counts as edited."""
PNG = b"\x89PNG"


def mark(csv: str | None = None) -> str:
    """What a file says of itself. `seal` fills in the digest of the rest of the file.

    Args:
        csv: contents of the .csv that is written with it, if any.
    """
    of_csv = "" if csv is None else f"csv SHA-256 {hashlib.sha256(csv.encode()).hexdigest()}; "
    return f"udpm; {of_csv}file SHA-256 {EMPTY}"


def seal(data: bytes) -> bytes:
    """A file's bytes with the digest in its mark filled in: the SHA-256 of everything but that digest.

    In a PNG the mark ends a text chunk, whose checksum follows: it is updated, and not part of what is digested.
    """
    found = re.search(rb"file SHA-256 (0{64})", data)
    if found is None:
        raise ValueError("no mark to fill in")
    start, end = found.span(1)
    own = _digest(data, start, end).encode()
    if data.startswith(PNG):
        chunk = data[data.rindex(b"tEXt", 0, start) : start] + own
        return data[:start] + own + struct.pack(">I", zlib.crc32(chunk)) + data[end + 4 :]
    return data[:start] + own + data[end:]


def seal_text(text: str) -> str:
    """`seal` of a text, in UTF-8."""
    return seal(text.encode()).decode()


def seal_file(path: Path) -> None:
    """`seal` of a file, in its place: of a picture that a library wrote."""
    path.write_bytes(seal(path.read_bytes()))


def is_sealed(path: Path) -> bool:
    """Whether a file's mark has a digest of the file itself, right or wrong."""
    return OWN.search(ends(path)) is not None


def is_unedited(path: Path) -> bool:
    """Whether a file is exactly what `seal` made."""
    try:
        data = read_bytes(path, "file", LARGEST)
    except UserError:
        return False
    found = OWN.search(data)
    return found is not None and _digest(data, *found.span(1)) == found[1].decode()


def _digest(data: bytes, start: int, end: int) -> str:
    rest = hashlib.sha256(data[:start])
    rest.update(data[end + 4 if data.startswith(PNG) else end :])
    return rest.hexdigest()


def csv_digests(path: Path) -> list[str]:
    """SHA-256 of the .csv that a table or figure says it belongs to; none of a file without a mark."""
    return [found.decode() for found in CSV.findall(ends(path))]


def ends(path: Path) -> bytes:
    """The beginning and the end of a file, where its mark is; nothing of what is no regular file."""
    text = leading(path)
    if not text:
        return b""
    try:
        with open(path, "rb") as file:
            file.seek(max(len(text), path.stat().st_size - 4096))
            return text + file.read(4096)
    except OSError:
        return b""
