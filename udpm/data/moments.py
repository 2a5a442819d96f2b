"""Moments of a data set's images, exact."""

from __future__ import annotations

import numpy as np

from udpm.data.cache import CHUNK, block_sums
from udpm.data.store import Store


def mean_square(store: Store, level: int, split: str = "train") -> float:
    """m₂: mean square of the means of blocks of 2^level × 2^level pixels, over a split's images in [-1, 1].

    A block's mean is 2S/(255·4^level) - 1 for its integer sum S, so that the squares are added up in integers.

    Args:
        store: the data set; its side is divisible by 2^level.
        level: >= 0.
        split: of the store.

    Returns:
        In [0, 1].

    Raises:
        UserError: no such split.
    """
    images = store.images[store.split(split)]
    whole = 255 * 4**level
    total = count = 0
    for start in range(0, len(images), CHUNK):
        centred = 2 * block_sums(images[start : start + CHUNK], level).astype(np.int64) - whole
        total += int(np.square(centred).sum())
        count += centred.size
    return total / (whole**2 * count)
