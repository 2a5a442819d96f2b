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

    The symmetric form needs no square root of a non-symmetric matrix, so it stays real and stable where covariances
    are singular.

    Args:
        mu: μ₁, (d,).
        sigma: Σ₁, (d, d).
        other_mu: μ₂, (d,).
        other_sigma: Σ₂, (d, d).
    """
    values, vectors = np.linalg.eigh(sigma)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_sigma @ root).clip(0)).sum()
    difference = mu - other_mu
    return max(0.0, float(difference @ difference + np.trace(sigma) + np.trace(other_sigma) - 2 * cross))
