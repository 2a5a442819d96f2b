"""Inventories of sources: the images that a data set was prepared from, to notice changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.core.files import expanded, write_text
from udpm.core.reading import read_bytes
from udpm.data.cifar import find_batches
from udpm.data.open import open_folder
from udpm.data.source import Source, TreeReader, shown

FILE = "source.jsonl"
"""Name of the inventory in a prepared data set's folder."""
LONGEST = 2**30
"""Largest inventory to read in bytes, enough for several million images."""
Inventory = dict[str, str]
"""Digests by name, of an image with its label, or of a file with many images."""
Digest = Callable[[str | os.PathLike], str]
"""Function that returns the SHA-256 of a file."""


@dataclass(frozen=True)
class Difference:
    """Numbers of images added to, removed from and changed in a source since a data set was prepared from it."""

    added: int
    removed: int
    changed: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        return f"{self.added} added, {self.removed} removed, {self.changed} changed"


def difference(before: Inventory, now: Inventory) -> Difference:
    """Compare two inventories."""
    changed = sum(now[name] != digest for name, digest in before.items() if name in now)
    return Difference(len(now.keys() - before.keys()), len(before.keys() - now.keys()), changed)


def take_inventory(config: DatasetConfig, source: Source, digest: Digest) -> Inventory:
    """List the content of an open source.

    Raises:
        UserError: a file changes meanwhile.
    """
    reader = source.reader
    if reader.files:
        names = [path.name for path in reader.files]
        if len(set(names)) < len(names):
            # Below the root, as with images: the folder may be moved, or its path spelled differently.
            assert config.path is not None
            root = expanded(config.path, "path")
            names = [str(path.relative_to(root)) for path in reader.files]
        return {name: digest(path) for name, path in zip(names, reader.files, strict=True)}
    if config.source != "folder":
        return {}
    found = {}
    for image, key, label in zip(source.names, source.keys, source.labels.tolist(), strict=True):
        content = _content(reader, image, key, digest)
        name = source.class_names[label] if source.class_names else ""
        found[os.fsdecode(image)] = hashlib.sha256(f"{content} {label} {name}".encode()).hexdigest()[:32]
    return found


def inventory_now(config: DatasetConfig, digest: Digest) -> Inventory | None:
    """List the present content of a configured source without downloading anything; None if it is missing.

    Raises:
        UserError: the source exists and cannot be used.
    """
    path = None if config.path is None else expanded(config.path, "path")
    if path is None or not path.exists():
        return None
    if config.source == "cifar10":
        batches = find_batches(path)
        return None if batches is None else {path.name: digest(path) for path in batches.files}
    return take_inventory(config, open_folder(config), digest)


def _content(reader, name: bytes, key: np.ndarray, digest: Digest) -> str:
    if not isinstance(reader, TreeReader):
        # An archive's directory has each member's size and checksum.
        return f"crc {key[-1]} {key[-3]}"
    path = os.path.join(reader.root, name)
    try:
        status = os.stat(path)
        if key[0] > reader.limit:
            return f"size {status.st_size}"
        content = digest(os.fsdecode(path))
    except (OSError, UserError):
        return "cannot be read"
    if (status.st_size, status.st_mtime_ns) != (key[0], key[1]):
        raise UserError(f"{shown(path)}: changes while it is read; run the same command again when it is complete")
    return content


def write_inventory(folder: Path, inventory: Inventory) -> None:
    """Write a data set's inventory to its folder."""
    write_text(folder / FILE, "".join(json.dumps([name, digest]) + "\n" for name, digest in inventory.items()))


def read_inventory(folder: Path) -> Inventory | None:
    """Read a prepared data set's inventory; None if it has none, like those of earlier versions.

    Raises:
        UserError: it is damaged.
    """
    if not (folder / FILE).exists():
        return None
    try:
        lines = read_bytes(folder / FILE, "list of images", LONGEST).splitlines()
        return {str(name): str(digest) for name, digest in map(json.loads, lines)}
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{folder / FILE}: not a readable list of images; prepare the data set again") from None
