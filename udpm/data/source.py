"""What a source of images is: a list of them in a fixed order, and a reader that fetches any one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Reader(Protocol):
    """Reads a source's images; can be sent to another process.

    Attributes:
        parallel: whether reading and decoding take so long that more processes help.
        identity: what the images are read from, as far as names and keys do not say.
    """

    parallel: bool
    identity: str

    def load(self, name: bytes, key: np.ndarray) -> bytes | np.ndarray:
        """An encoded file, or (height, width, 3) uint8 pixels; raises `picture.Refused`."""


@dataclass(frozen=True)
class Source:
    """A source's images, none of them read yet. Some 120 bytes of memory for each.

    Attributes:
        splits: number of images by split, training first; a split's images follow one another in this order.
        names: of the images, as bytes: they may be of any encoding.
        keys: (n, k) int64, where the reader finds each; changes when the image does.
        labels: (n,) int64; all zero where there are no classes.
        class_names: by label; empty where they are unknown or there are none.
        reader: of the images.
        notes: for the record.
    """

    splits: dict[str, int]
    names: list[bytes]
    keys: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    reader: Reader
    notes: dict[str, Any] = field(default_factory=dict)


def shown(name: bytes | str) -> str:
    """A file's name as it can stand in a line of text: line breaks and bytes that are no UTF-8 as escapes."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
