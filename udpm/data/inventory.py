"""What a data set was prepared from, image by image: to notice changed sources, and to find duplicates."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.core.files import expanded, write_text
from udpm.core.reading import read_bytes
from udpm.data.cifar import Batches, find_batches
from udpm.data.listing import TreeReader
from udpm.data.open import open_folder
from udpm.data.source import Source, shown

EXAMPLES = 10


def content_hash(images: np.ndarray) -> np.ndarray:
    """128 bits of each image's bytes (BLAKE2b).

    Args:
        images: (n, bytes) uint8.

    Returns:
        (n, 2) uint64.
    """
    sums = b"".join(hashlib.blake2b(image, digest_size=16).digest() for image in images)
    return np.frombuffer(sums, dtype="<u8").reshape(-1, 2)


def find_duplicates(
    hashes: np.ndarray, labels: np.ndarray, splits: np.ndarray, name: Callable[[int], str]
) -> dict[str, Any]:
    """Groups of images with equal content.

    Args:
        hashes: (n, 2) uint64, of the content.
        labels: (n,).
        splits: (n,), number of each image's split.
        name: of an image, by its row.

    Returns:
        images: number of images that repeat an earlier one; groups: of equal images; label_conflicts, across_splits:
        groups under several labels, and in several splits; examples: names of the first groups.
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    same = (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    sizes = np.diff(np.append(starts, len(order)))
    runs = zip(starts[sizes > 1], sizes[sizes > 1], strict=True)
    groups = sorted(np.sort(order[start : start + size]).tolist() for start, size in runs)
    return {
        "images": int(same.sum()),
        "groups": len(groups),
        "label_conflicts": sum(len(set(labels[group].tolist())) > 1 for group in groups),
        "across_splits": sum(len(set(splits[group].tolist())) > 1 for group in groups),
        "examples": [[name(row) for row in group[:EXAMPLES]] for group in groups[:EXAMPLES]],
    }


FILE = "source.jsonl"
"""Name of the list in a prepared data set's folder."""
LONGEST = 2**30
"""Bytes of the largest list that is read: several million images."""

Inventory = dict[str, str]
"""By name, a digest of what an image and its label are, or of a file that holds many images."""
Digest = Callable[[str | os.PathLike], str]
"""Gives the SHA-256 of a file."""


@dataclass(frozen=True)
class Difference:
    """How many images a source has more, fewer or others than a data set was prepared from."""

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
    """The inventory of a source that was opened.

    Raises:
        UserError: a file changes meanwhile.
    """
    reader = source.reader
    if isinstance(reader, Batches):
        return {path.name: digest(path) for path in reader.files}
    if config.source != "folder":
        return {}
    found = {}
    for name, key, label in zip(source.names, source.keys, source.labels.tolist(), strict=True):
        content = _content(reader, name, key, digest)
        names = source.class_names[label] if source.class_names else ""
        found[os.fsdecode(name)] = hashlib.sha256(f"{content} {label} {names}".encode()).hexdigest()[:32]
    return found


def inventory_now(config: DatasetConfig, digest: Digest) -> Inventory | None:
    """The inventory of a configured source as it is now; None where it is not there. Nothing is downloaded.

    Raises:
        UserError: the source is there and cannot be used.
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
        raise UserError(f"{shown(path)}: changes while it is read; run the same command again when it is whole")
    return content


def write_inventory(folder: Path, inventory: Inventory) -> None:
    """Write a data set's inventory into its folder."""
    write_text(folder / FILE, "".join(json.dumps([name, digest]) + "\n" for name, digest in inventory.items()))


def read_inventory(folder: Path) -> Inventory | None:
    """A prepared data set's inventory; None where it has none, as those made by earlier versions.

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
