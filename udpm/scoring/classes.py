"""Scores that know classes: Inception score, and Fréchet distance and agreement class by class."""

from __future__ import annotations

import numpy as np

from udpm.core.seeds import derive_seed
from udpm.scoring.frechet import distance_of_features


def inception_score(probabilities: np.ndarray, splits: int) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) ‖ p(y)), mean and standard deviation over splits (Salimans et al. 2016).

    The images are shuffled first, from a fixed seed: a set that is sorted by class would have splits of few classes.

    Args:
        probabilities: (N, K) p(y|x), rows sum to 1.
        splits: parts that p(y) is taken over, N at most.
    """
    generator = np.random.Generator(np.random.PCG64(derive_seed("inception score", "order")))
    shuffled = probabilities[generator.permutation(len(probabilities))].astype(np.float64)
    parts = np.array_split(shuffled, min(splits, len(shuffled)))
    scores = [np.exp(_divergence(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def class_distances(
    real: np.ndarray, real_labels: np.ndarray, drawn: np.ndarray, labels: np.ndarray
) -> dict[int, float]:
    """Fréchet distance between the real and the drawn images of each class that has two or more of both.

    Args:
        real: (N, d) features.
        real_labels: (N,) int64.
        drawn: (M, d) features.
        labels: (M,) int64, the classes asked for.
    """
    found = {}
    for label in np.intersect1d(real_labels, labels):
        one, other = real[real_labels == label], drawn[labels == label]
        if min(len(one), len(other)) >= 2:
            found[int(label)] = distance_of_features(one, other)
    return found


def class_agreement(classes: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Share of the images of each class that a classifier sees as it: (N,) and (N,) int64."""
    return {int(label): float((classes[labels == label] == label).mean()) for label in np.unique(labels)}


def _divergence(part: np.ndarray, marginal: np.ndarray) -> np.ndarray:
    """p·log(p/q), 0 where p is 0: (n, K) and (K,) to (n, K)."""
    ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
    return part * np.log(ratio)
