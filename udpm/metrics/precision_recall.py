"""Nearest neighbours: precision and recall of features, and distances of images to the training set."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from udpm.core.errors import UserError

BLOCK_BYTES = 1 << 27
"""What a block of distances may take; some three of them are in memory at a time."""

SPARE = 4
"""Candidates beyond the k-th neighbour whose distance is computed again."""

ROUNDING = 1e-11
"""How far a squared distance from inner products may be off, as a share of |x|² + |y|²."""


def precision_recall(
    real: np.ndarray, drawn: np.ndarray, neighbours: int, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    The manifold of a set is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
    Precision is the share of drawn points in the real manifold, recall the share of real points in the drawn one.

    Args:
        real: (N, d) features.
        drawn: (M, d) features.
        neighbours: k.
        device: where the distances are computed.

    Raises:
        UserError: a set has not more than k points.
    """
    for name, points in (("real", real), ("drawn", drawn)):
        if len(points) <= neighbours:
            raise UserError(f"scoring.neighbours: {neighbours} needs more than {neighbours} {name} images")
    centre = real.mean(axis=0, dtype=np.float64).astype(np.float32)
    one, other = (_points(points, centre, device) for points in (real, drawn))
    return _covered(other, one, neighbours), _covered(one, other, neighbours)


def nearest_distances(images: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Distance of each image to the nearest in a bank: root mean square over pixels in [0, 1].

    Args:
        images: (N, side, side, 3) uint8.
        bank: (M, side, side, 3) uint8.

    Returns:
        (N,) float64.
    """
    return nearest_images(images, bank)[1]


def nearest_images(images: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest image of a bank, and the distance to it: root mean square over pixels in [0, 1].

    Args:
        images: (N, side, side, 3) uint8.
        bank: (M, side, side, 3) uint8.

    Returns:
        Numbers in the bank, (N,) int64, and distances, (N,) float64.
    """
    pixels = int(np.prod(images.shape[1:]))
    # Neither the bytes of all images as floats nor all distances are ever in memory.
    size = max(1, min(BLOCK_BYTES // (8 * pixels), math.isqrt(BLOCK_BYTES // 8)))
    found = [_nearest(block, bank, size) for _, block in _blocks(images, size)]
    numbers, squares = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return numbers, np.sqrt(squares) / (255 * math.sqrt(pixels))


def _nearest(block: torch.Tensor, bank: np.ndarray, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest image of a bank to each of a block, and its squared distance in bytes; of equals the first."""
    least = torch.full((len(block),), math.inf, dtype=torch.float64)
    numbers = torch.zeros(len(block), dtype=torch.int64)
    for start, others in _blocks(bank, size):
        # Bytes make these whole numbers far below 2^53: inner products are exact, unlike those of features.
        here = torch.addmm(others.square().sum(1), block, others.T, alpha=-2).min(1)
        nearer = here.values < least
        least[nearer], numbers[nearer] = here.values[nearer], here.indices[nearer] + start
    return numbers, least + block.square().sum(1)


def _blocks(images: np.ndarray, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Number of the first, and float64 rows of bytes, of so many images at a time."""
    for start in range(0, len(images), size):
        yield start, torch.from_numpy(images[start : start + size].astype(np.float64)).flatten(1)


def _points(features: np.ndarray, centre: np.ndarray, device: torch.device | str) -> torch.Tensor:
    # About their middle the points are short, so that inner products lose few digits of distances. A middle in float32
    # makes the differences themselves exact: points on the edge of a ball stay there.
    return torch.from_numpy(features.astype(np.float64) - centre).to(device)


def _covered(points: torch.Tensor, centres: torch.Tensor, neighbours: int) -> float:
    """Share of points within any centre's ball: the ball's edge belongs to it."""
    # One tensor for all results: small ones kept between the large ones would leave the allocator's memory in pieces.
    radii = centres.new_empty(len(centres))
    for part, squares in _squares(centres, centres):
        radii[part] = _radii(centres[part], squares, centres, neighbours)
    inside = radii.new_empty(len(points), dtype=torch.bool)
    for part, squares in _squares(points, centres):
        inside[part] = _inside(points[part], squares, centres, radii)
    # A mean of a GPU would be rounded in another way.
    return int(inside.sum()) / len(points)


def _radii(block: torch.Tensor, squares: torch.Tensor, centres: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Squared distance of each point to its k-th other neighbour."""
    # A point is its own nearest neighbour, at distance 0: the k-th other one stands at place k.
    chosen = squares.topk(min(neighbours + 1 + SPARE, len(centres)), largest=False).indices
    return _exact(block, centres, chosen).kthvalue(neighbours + 1).values


def _exact(block: torch.Tensor, others: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Squared distances from differences: of (b, d) points to the (b, k) others chosen for each, (b, k)."""
    rows = max(1, BLOCK_BYTES // (8 * chosen.shape[1] * others.shape[1]))
    parts = zip(block.split(rows), chosen.split(rows), strict=True)
    return torch.cat([(part[:, None] - others[near]).square().sum(-1) for part, near in parts])


def _inside(block: torch.Tensor, squares: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Whether each point of a block lies in a ball; what rounding leaves open is computed again."""
    lengths = block.square().sum(1)[:, None] + centres.square().sum(1)
    margin = squares.sub_(radii).div_(lengths.clamp_(min=1e-300))
    inside = (margin < -ROUNDING).any(1)
    for row in ((margin.abs() <= ROUNDING).any(1) & ~inside).nonzero().flatten():
        near = (margin[row].abs() <= ROUNDING).nonzero().flatten()
        inside[row] = ((block[row] - centres[near]).square().sum(-1) <= radii[near]).any()
    return inside


def _squares(points: torch.Tensor, others: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """A block of points at a time, and their squared distances to others from inner products, (b, M)."""
    lengths, size = others.square().sum(1), max(1, BLOCK_BYTES // (8 * len(others)))
    for start in range(0, len(points), size):
        block = points[start : start + size]
        squares = torch.addmm(lengths, block, others.T, alpha=-2).add_(block.square().sum(1)[:, None])
        yield slice(start, start + len(block)), squares
