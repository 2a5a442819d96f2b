"""Images that are exactly the same after preparation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

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
