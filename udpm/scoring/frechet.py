"""The Fréchet distance between Gaussians fitted to features."""

from __future__ import annotations

import numpy as np

from udpm.core.errors import UserError


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance in float64: (N, d) to (d,) and (d, d).

    Raises:
        UserError: fewer than two vectors.
    """
    if len(features) < 2:
        raise UserError(f"a covariance needs at least 2 images, got {len(features)}")
    features = features.astype(np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(mu: np.ndarray, sigma: np.ndarray, other_mu: np.ndarray, other_sigma: np.ndarray) -> float:
    """‖μ₁ - μ₂‖² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^{1/2} Σ₂ Σ₁^{1/2})^{1/2}  (Dowson and Landau 1982).

    The trace of the root is the sum of the roots of the eigenvalues of hᵀ Σ₂ h for any h with h hᵀ = Σ₁. This symmetric
    form needs no root of a non-symmetric matrix, so it stays real and stable where covariances are singular.

    Args:
        mu: μ₁, (d,).
        sigma: Σ₁, (d, d).
        other_mu: μ₂, (d,).
        other_sigma: Σ₂, (d, d).
    """
    half = _half(sigma)
    products = np.linalg.eigvalsh(half.T @ other_sigma @ half) if half.size else np.zeros(1)
    cross = np.sqrt(products[products > _rounding(products)]).sum()
    difference = mu - other_mu
    return max(0.0, float(difference @ difference + np.trace(sigma) + np.trace(other_sigma) - 2 * cross))


def distance_of_features(one: np.ndarray, other: np.ndarray) -> float:
    """The same of two sets of features, (n, d) and (m, d); quick where these are few.

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
    """A matrix h, (d, rank), with h hᵀ = Σ: any such has the eigenvalues of Σ₁^{1/2} Σ₂ Σ₁^{1/2} in hᵀ Σ₂ h."""
    # By far the fastest, but it refuses most singular matrices.
    try:
        return np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(sigma)
    kept = values > _rounding(values)
    return vectors[:, kept] * np.sqrt(values[kept])


def _rounding(values: np.ndarray) -> float:
    """What an eigenvalue of 0 may come out as. The root of it, once for each of many, would be no small number."""
    return max(0.0, float(values.max())) * len(values) * np.finfo(np.float64).eps
