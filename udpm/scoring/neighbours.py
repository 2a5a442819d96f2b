"""Nearest neighbours: precision and recall of features, and distances of images to the training set."""

from __future__ import annotations

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
    flat, others = (torch.from_numpy(np.array(part)).flatten(1).double() / 255 for part in (images, bank))
    nearest = []
    for block, squares in _squares(flat, others):
        chosen = squares.topk(min(1 + SPARE, len(others)), largest=False).indices
        nearest.append(_exact(block, others, chosen).amin(1).sqrt())
    return torch.cat(nearest).numpy() / np.sqrt(flat.shape[1])


def _points(features: np.ndarray, centre: np.ndarray, device: torch.device | str) -> torch.Tensor:
    # About their middle the points are short, so that inner products lose few digits of distances. A middle in float32
    # makes the differences themselves exact: points on the edge of a ball stay there.
    return torch.from_numpy(features.astype(np.float64) - centre).to(device)


def _covered(points: torch.Tensor, centres: torch.Tensor, neighbours: int) -> float:
    """Share of points within any centre's ball: the ball's edge belongs to it."""
    radii = torch.cat([_radii(block, squares, centres, neighbours) for block, squares in _squares(centres, centres)])
    inside = [_inside(block, squares, centres, radii) for block, squares in _squares(points, centres)]
    return float(torch.cat(inside).double().mean())


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


def _squares(points: torch.Tensor, others: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Points and their squared distances to others from inner products, (b, d) and (b, M), a block at a time."""
    lengths = others.square().sum(1)
    for block in points.split(max(1, BLOCK_BYTES // (8 * len(others)))):
        yield block, torch.addmm(lengths, block, others.T, alpha=-2).add_(block.square().sum(1)[:, None])
