"""Distances between sets of features or images: Fréchet, kernel, Inception score, precision and recall, nearest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from udpm.core.arrays import derive_seed
from udpm.core.errors import UserError

BLOCK_BYTES = 1 << 27
"""Memory of a block of features or distances; about three blocks are in memory at a time."""


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and unbiased covariance in float64: (N, d) to (d,) and (d, d).

    Raises:
        UserError: fewer than two vectors.
    """
    count, width = features.shape
    if count < 2:
        raise UserError(f"a covariance needs at least 2 images, got {count}")
    rows = max(1, BLOCK_BYTES // (8 * width))
    if count <= rows:
        features = features.astype(np.float64)
        return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
    # np.cov makes two whole copies in float64, 1.6 GB of 50 000 images.
    mean = features.mean(axis=0, dtype=np.float64)
    products = np.zeros((width, width))
    for start in range(0, count, rows):
        centred = features[start : start + rows] - mean
        products += centred.T @ centred
    return mean, products / (count - 1)


def frechet_distance(mu: np.ndarray, sigma: np.ndarray, other_mu: np.ndarray, other_sigma: np.ndarray) -> float:
    """‖μ₁ - μ₂‖² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^{1/2} Σ₂ Σ₁^{1/2})^{1/2}  (Dowson and Landau 1982).

    The trace of the root is the sum of the roots of the eigenvalues of hᵀ Σ₂ h for any h with h hᵀ = Σ₁. This form is
    symmetric, so it stays real and stable for singular covariances. Means are (d,), covariances (d, d).
    """
    half = _half(sigma)
    products = np.linalg.eigvalsh(half.T @ other_sigma @ half) if half.size else np.zeros(1)
    cross = np.sqrt(products[products > _rounding(products)]).sum()
    difference = mu - other_mu
    return max(0.0, float(difference @ difference + np.trace(sigma) + np.trace(other_sigma) - 2 * cross))


def distance_of_features(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features, (n, d) and (m, d); fast for small sets.

    For centred X/√(n-1) and Y/√(m-1) the trace of the root is the sum of the singular values of X Yᵀ.
    """
    if max(len(one), len(other)) > one.shape[1]:
        return frechet_distance(*statistics(one), *statistics(other))
    means = [part.mean(axis=0, dtype=np.float64) for part in (one, other)]
    parts = [(part - mean) / np.sqrt(len(part) - 1) for part, mean in zip((one, other), means, strict=True)]
    cross = np.linalg.svd(parts[0] @ parts[1].T, compute_uv=False).sum()
    spread = sum(float((part**2).sum()) for part in parts)
    return max(0.0, float(((means[0] - means[1]) ** 2).sum()) + spread - 2 * float(cross))


def _half(sigma: np.ndarray) -> np.ndarray:
    """Return h, (d, rank), with h hᵀ = Σ."""
    # Cholesky is by far the fastest, but fails for most singular matrices.
    try:
        return np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(sigma)
    kept = values > _rounding(values)
    return vectors[:, kept] * np.sqrt(values[kept])


def _rounding(values: np.ndarray) -> float:
    """Return the rounding error of an eigenvalue of 0; summed over many, its roots would not be small."""
    return max(0.0, float(values.max())) * len(values) * np.finfo(np.float64).eps


def kernel_distance(real: np.ndarray, drawn: np.ndarray, subsets: int, size: int) -> tuple[float, float, int]:
    """Return mean and standard deviation of MMD² over subsets (Bińkowski et al. 2018, KID).

    A subset takes `size` features of each set, (N, d) and (M, d), without replacement, seeded by its number alone; at
    most as many as the smaller set has.

    Returns:
        Mean, population standard deviation, and the size used.

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
    """Return the unbiased MMD² of two (m, d) sets for k(a, b) = (a·b/d + 1)³; may be slightly negative."""
    count = len(one)
    within = sum((kernel.sum() - np.trace(kernel)) for kernel in (_kernel(one, one), _kernel(other, other)))
    return float(within / (count * (count - 1)) - 2 * _kernel(one, other).mean())


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3


def inception_score(probabilities: np.ndarray, splits: int) -> tuple[float, float]:
    """Return exp of the mean KL(p(y|x) ‖ p(y)): mean and standard deviation over splits (Salimans et al. 2016).

    The images are shuffled first, with a fixed seed: splits of a set sorted by class would have few classes.

    Args:
        probabilities: (N, K) p(y|x), rows sum to 1.
        splits: number of parts with a p(y) each; capped at N.
    """
    generator = np.random.Generator(np.random.PCG64(derive_seed("inception score", "order")))
    shuffled = probabilities[generator.permutation(len(probabilities))].astype(np.float64)
    parts = np.array_split(shuffled, min(splits, len(shuffled)))
    scores = [np.exp(_divergence(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def class_distances(
    real: np.ndarray, real_labels: np.ndarray, drawn: np.ndarray, labels: np.ndarray
) -> dict[int, float]:
    """Return the Fréchet distance between real and drawn images of each class with at least two of both.

    Features are (N, d) and (M, d), their labels (N,) and (M,) int64: of drawn images, the classes to draw.
    """
    found = {}
    for label in np.intersect1d(real_labels, labels):
        one, other = real[real_labels == label], drawn[labels == label]
        if min(len(one), len(other)) >= 2:
            found[int(label)] = distance_of_features(one, other)
    return found


def class_agreement(classes: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Return the share of each class's images that a classifier assigns to it; both arguments (N,) int64."""
    return {int(label): float((classes[labels == label] == label).mean()) for label in np.unique(labels)}


def _divergence(part: np.ndarray, marginal: np.ndarray) -> np.ndarray:
    """p·log(p/q), 0 where p is 0: (n, K) and (K,) to (n, K)."""
    ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
    return part * np.log(ratio)


IMAGES, ROWS, COLUMNS = 4096, 512, 1024
"""Images of a block, and rows and columns of a block of distances that stays in a core's cache."""

FLOAT32_TERMS, INT32_TERMS = 2**24 >> 14, (2**31 - 1) >> 14
"""Products of bytes - 128, at most 2^14 each, whose sum is exact in a type in any order."""

SPARE = 4
"""Candidates beyond the k-th neighbour whose distance is recomputed."""

ROUNDING = 1e-11
"""Largest error of a squared distance from inner products, as a share of |x|² + |y|²."""


class PRDC(NamedTuple):
    """Overlap of two sets of points. The ball of a point has its k-th nearest neighbour of the same set on its edge.

    Attributes:
        precision: share of drawn points in any real point's ball (Kynkäänniemi et al. 2019).
        recall: share of real points in any drawn point's ball.
        density: mean number of real points' balls that a drawn point is in, divided by k (Naeem et al. 2020); about 1
            for sets of one distribution, and more where drawn points crowd among real ones.
        coverage: share of real points with a drawn point in their ball.
        authenticity: share of drawn points that are further from their nearest real point than that is from its own
            nearest (Alaa et al. 2022); copies of real points are not.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    authenticity: float


def prdc(real: np.ndarray, drawn: np.ndarray, neighbours: int, device: torch.device | str = "cpu") -> PRDC:
    """Compute how sets of features overlap, (N, d) and (M, d); `neighbours` is k.

    Raises:
        UserError: a set has not more than k points.
    """
    for name, points in (("real", real), ("drawn", drawn)):
        if len(points) <= neighbours:
            raise UserError(f"scoring.neighbours: {neighbours} needs more than {neighbours} {name} images")
    # A centre in float32 makes differences of float32 features from it exact: points on the edge of a ball stay there.
    centre = real.mean(axis=0, dtype=np.float64).astype(np.float32)
    one, other = (_Points(points, centre, device) for points in (real, drawn))
    (nearest, radii), (_, other_radii) = _radii(one, neighbours), _radii(other, neighbours)
    # One tensor for all results: small ones between the large ones would fragment memory.
    precise, authentic = radii.new_empty((2, len(other)), dtype=torch.bool)
    covered, recalled = radii.new_zeros((2, len(one)), dtype=torch.bool)
    balls = 0
    for part, squares in _squares(other, one):
        inside = _inside(other, part, one, squares, radii)
        balls += int(inside.sum())
        precise[part] = inside.any(1)
        covered |= inside.any(0)
        recalled |= _inside(other, part, one, squares, other_radii[part, None]).any(0)
        chosen = squares.topk(min(1 + SPARE, len(one)), largest=False).indices
        least, place = _exact(other[part], one, chosen).min(1)
        authentic[part] = least > nearest[chosen.gather(1, place[:, None])[:, 0]]
    # Not mean(): a GPU rounds it differently.
    shares = {"precision": precise, "recall": recalled, "coverage": covered, "authenticity": authentic}
    found = {name: int(marks.sum()) / len(marks) for name, marks in shares.items()}
    return PRDC(density=balls / (neighbours * len(other)), **found)


def nearest_distances(images: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Return the distances of `nearest_images` alone."""
    return nearest_images(images, bank)[1]


def nearest_images(images: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find each image's nearest in a bank; distances are root mean squares over pixels in [0, 1].

    Images are (n, side, side, 3) uint8.

    Returns:
        Numbers in the bank, (N,) int64, and distances, (N,) float64.
    """
    pixels = int(np.prod(images.shape[1:]))
    kind = torch.int8 if has_int8_products() else torch.float32
    # Blocks: neither all images as floats nor all distances fit into memory.
    size = max(1, min(BLOCK_BYTES // (4 * pixels), IMAGES))
    found = [_nearest(block, bank, size) for _, block in _blocks(images, size, kind)]
    numbers, squares = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return numbers, np.sqrt(squares) / (255 * math.sqrt(pixels))


def has_int8_products() -> bool:
    """Return True if one instruction of this CPU multiplies bytes and adds the products to 32 bits, unsaturated."""
    return getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _nearest(block: torch.Tensor, bank: np.ndarray, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest bank image of each in a block and its squared distance in bytes; ties go to the first."""
    least = torch.full((len(block),), math.inf, dtype=torch.float64)
    numbers = torch.zeros(len(block), dtype=torch.int64)
    for start, others in _blocks(bank, size, block.dtype):
        lengths = _lengths(others)
        for first in range(0, len(others), COLUMNS):
            columns = slice(first, first + COLUMNS)
            for rows in (slice(row, row + ROWS) for row in range(0, len(block), ROWS)):
                products = _products(block[rows], others[columns])
                here = torch.sub(lengths[columns], products, alpha=2).min(1)
                nearer = here.values < least[rows]
                least[rows] = torch.where(nearer, here.values, least[rows])
                numbers[rows] = torch.where(nearer, here.indices + (start + first), numbers[rows])
    return numbers, least + _lengths(block)


def _blocks(images: np.ndarray, size: int, kind: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first image's number and rows of bytes - 128, `size` images at a time."""
    for start in range(0, len(images), size):
        # Without the highest bit, the same bits are the difference as a signed byte.
        shifted = torch.from_numpy(images[start : start + size] ^ np.uint8(128)).view(torch.int8)
        yield start, shifted.flatten(1).to(kind)


def _products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the inner products of (n, d) and (m, d) rows of bytes - 128, (n, m) float64; exact, unlike of features."""
    terms, multiply = (INT32_TERMS, torch._int_mm) if one.dtype == torch.int8 else (FLOAT32_TERMS, torch.mm)
    total = torch.zeros(len(one), len(other), dtype=torch.float64)
    for part, others in zip(one.split(terms, dim=1), other.split(terms, dim=1), strict=True):
        total += multiply(part, others.T)
    return total


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.double().square().sum(1) for part in rows.split(ROWS)])


class _Points:
    """Features as points in float64, (N, d), centred when they are taken: a copy of all would be twice their size.

    Centred points are short, so inner products lose few digits of distances.
    """

    def __init__(self, features: np.ndarray, centre: np.ndarray, device: torch.device | str) -> None:
        # torch warns of arrays that may not be written.
        arrays = (np.require(array, requirements="W") for array in (features, centre))
        self._features, self._centre = (torch.from_numpy(array).to(device) for array in arrays)
        self.width = features.shape[1]
        self.lengths = torch.cat([self[part].square().sum(1) for part in self.blocks()])
        """‖p‖² of each point p, (N,)."""

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, chosen: slice | torch.Tensor) -> torch.Tensor:
        return self._features[chosen].double() - self._centre

    def blocks(self) -> Iterator[slice]:
        size = max(1, BLOCK_BYTES // (8 * self.width))
        return (slice(start, start + size) for start in range(0, len(self), size))


def _radii(points: _Points, neighbours: int) -> torch.Tensor:
    """Return the squared distances, (2, N), of each point to its nearest and to its k-th other neighbour."""
    radii = points.lengths.new_empty((2, len(points)))
    for part, squares in _squares(points, points):
        # A point is its own nearest neighbour, at distance 0, hence k + 1.
        chosen = squares.topk(min(neighbours + 1 + SPARE, len(points)), largest=False).indices
        squares = _exact(points[part], points, chosen)
        radii[:, part] = torch.stack([squares.kthvalue(k + 1).values for k in (1, neighbours)])
    return radii


def _exact(block: torch.Tensor, others: _Points, chosen: torch.Tensor) -> torch.Tensor:
    """Return squared distances from differences, (b, k): of (b, d) points to the (b, k) chosen others."""
    rows = max(1, BLOCK_BYTES // (8 * chosen.shape[1] * others.width))
    parts = zip(block.split(rows), chosen.split(rows), strict=True)
    return torch.cat([(part[:, None] - others[near]).square().sum(-1) for part, near in parts])


def _inside(points: _Points, part: slice, others: _Points, squares: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Test which squared distances of a part of the points to others, (b, M), are within radii that broadcast;
    recompute what rounding leaves undecided."""
    lengths = points.lengths[part, None] + others.lengths
    margin = (squares - radii).div_(lengths.clamp_(min=1e-300))
    inside, radii = margin < -ROUNDING, radii.expand_as(squares)
    for near in (margin.abs_() <= ROUNDING).nonzero().split(max(1, BLOCK_BYTES // (8 * points.width))):
        rows, columns = near.unbind(1)
        apart = points[rows + part.start] - others[columns]
        inside[rows, columns] = apart.square().sum(-1) <= radii[rows, columns]
    return inside


def _squares(points: _Points, others: _Points) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield parts of points and their squared distances to others, (b, M), from inner products."""
    size = max(1, BLOCK_BYTES // (8 * len(others)))
    for start in range(0, len(points), size):
        part = slice(start, min(start + size, len(points)))
        block, lengths = points[part], points.lengths[part, None]
        squares = block.new_empty(len(block), len(others))
        for columns in others.blocks():
            squares[:, columns] = torch.addmm(others.lengths[columns], block, others[columns].T, alpha=-2).add_(lengths)
        yield part, squares
