"""Nearest neighbours: precision and recall of features, and distances of images to the training set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from udpm.core.errors import UserError

BLOCK = 1024


def precision_recall(real: np.ndarray, drawn: np.ndarray, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    The manifold of a set is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
    Precision is the share of drawn points in the real manifold, recall the share of real points in the drawn one.

    Args:
        real: (N, d) features.
        drawn: (M, d) features.
        neighbours: k.

    Raises:
        UserError: a set has not more than k points.
    """
    for name, points in (("real", real), ("drawn", drawn)):
        if len(points) <= neighbours:
            raise UserError(f"scoring.neighbours: {neighbours} needs more than {neighbours} {name} images")
    return _covered(drawn, real, neighbours), _covered(real, drawn, neighbours)


def nearest_distances(images: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Distance of each image to the nearest in a bank: root mean square over pixels in [0, 1].

    Args:
        images: (N, side, side, 3) uint8.
        bank: (M, side, side, 3) uint8.

    Returns:
        (N,) float64.
    """
    flat = images.reshape(len(images), -1) / 255.0
    nearest = [block.min(axis=1) for block in _distances(flat, bank.reshape(len(bank), -1) / 255.0)]
    return np.concatenate(nearest) / np.sqrt(flat.shape[1])


def _covered(points: np.ndarray, centres: np.ndarray, neighbours: int) -> float:
    # A point is its own nearest neighbour, at distance 0: the k-th other one stands at place k.
    radii = np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in _distances(centres)])
    inside = [(block <= radii).any(axis=1) for block in _distances(points, centres)]
    return float(np.concatenate(inside).mean())


def _distances(points: np.ndarray, others: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Euclidean distances in float64, a block of points at a time: (block, M)."""
    bank = torch.from_numpy(np.ascontiguousarray(points if others is None else others, dtype=np.float64))
    for block in torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64)).split(BLOCK):
        # Not by way of inner products, which would lose the digits that decide a point on the edge of a ball.
        yield torch.cdist(block, bank, compute_mode="donot_use_mm_for_euclid_dist").numpy()
