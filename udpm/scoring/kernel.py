"""Kernel Inception distance: the unbiased squared maximum mean discrepancy of features, over seeded subsets."""

from __future__ import annotations

import numpy as np

from udpm.core.errors import UserError
from udpm.core.seeds import derive_seed


def kernel_distance(real: np.ndarray, drawn: np.ndarray, subsets: int, size: int) -> tuple[float, float, int]:
    """Mean and standard deviation of MMD² over subsets (Bińkowski et al. 2018, KID).

    Each subset takes as many of both sets, without replacement, from a seed that is its number's alone.

    Args:
        real: (N, d) features.
        drawn: (M, d) features.
        subsets: how many subsets.
        size: features of either set in one; never more than the smaller set has.

    Returns:
        Mean, population standard deviation, and the size that was used.

    Raises:
        UserError: fewer than two features in a set.
    """
    size = min(size, len(real), len(drawn))
    if size < 2:
        raise UserError(f"a kernel distance needs at least 2 images of each kind, got {len(real)} and {len(drawn)}")
    found = [_discrepancy(_subset(real, size, "real", k), _subset(drawn, size, "drawn", k)) for k in range(subsets)]
    return float(np.mean(found)), float(np.std(found)), size


def _subset(features: np.ndarray, size: int, kind: str, number: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(derive_seed("kernel distance", kind, number)))
    return features[generator.choice(len(features), size, replace=False)].astype(np.float64)


def _discrepancy(one: np.ndarray, other: np.ndarray) -> float:
    """Unbiased MMD² of two (m, d) sets for k(a, b) = (a·b/d + 1)³; may come out slightly negative."""
    count = len(one)
    within = sum((kernel.sum() - np.trace(kernel)) for kernel in (_kernel(one, one), _kernel(other, other)))
    return float(within / (count * (count - 1)) - 2 * _kernel(one, other).mean())


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3
