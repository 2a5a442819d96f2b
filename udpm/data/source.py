"""What a source of images is: a list of them in a fixed order, and a reader that fetches any one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Reader(Protocol):
    """Reads a source's images; can be sent to another process."""

    @property
    def parallel(self) -> bool:
        """Whether reading and decoding take so long that more processes help."""

    @property
    def identity(self) -> str:
        """Identity of what the images are read from, where names and keys do not say."""

    def load(self, name: bytes, key: np.ndarray) -> bytes | np.ndarray:
        """An encoded file, or (height, width, 3) uint8 pixels; raises `picture.ImageError`."""


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
        notes: for the record: splits (folders by split), labels (where they come from), left_out (numbers of files and
            images by kind), and what else the source knows.
        warnings: what to tell of it.
        label_file: whether the labels come from a file of labels.
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
        """Whether labels are known where the images' names are: of class folders in alphabetical order, or of none."""
        return not self.label_file and self.class_names == sorted(self.class_names)

    def label_digest(self) -> str:
        """SHA-256 of labels and class names."""
        names = json.dumps(self.class_names).encode()
        return hashlib.sha256(self.labels.astype("<i8").tobytes() + names).hexdigest()


def shown(name: bytes | str) -> str:
    """A file's name as it can stand in a line of text: line breaks and bytes that are no UTF-8 as escapes."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
