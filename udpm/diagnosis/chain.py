"""Share of each level, noise map and frequency band in what the sampling chain loses, on held-out images.

The chain started from x_l ~ q(x_l | x_0) of a real image takes only its last l steps. What its images lose between two
starts is lost by the level in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udpm.data.levels import block_sums, decode
from udpm.diagnosis.record import NOISE
from udpm.diffusion.process import Latent
from udpm.metrics.distances import frechet_distance, prdc, statistics
from udpm.metrics.extractor import Extractor, extract
from udpm.metrics.reference import Reference
from udpm.sampling.latents import NoiseMap, noise_maps
from udpm.sampling.sampler import NoiseSource, Sampler, Start


@dataclass(frozen=True)
class Measure:
    """Real images and features to compare images with.

    Attributes:
        images: held-out real images, (n, N, N, 3) uint8.
        labels: (n,) int64.
        reference: features of the training images.
        extractor: of the features.
        batch: images per call of the extractor.
        neighbours: k of precision and recall.
        cache: folder of features from earlier passes.
    """

    images: np.ndarray
    labels: np.ndarray
    reference: Reference
    extractor: Extractor
    batch: int
    neighbours: int
    cache: Path | None = None

    def scores(self, images: np.ndarray) -> dict[str, float | None]:
        """Return Fréchet distance, precision and recall of images, (n, N, N, 3) uint8."""
        features, _ = extract(images, self.extractor, self.batch, self.cache)
        found = {"frechet_distance": frechet_distance(self.reference.mu, self.reference.sigma, *statistics(features))}
        precision, recall = None, None
        if self.reference.features is not None:
            precision, recall, *_ = prdc(self.reference.features, features, self.neighbours, self.extractor.device)
        return found | {"precision": precision, "recall": recall}


def diagnose_chain(sampler: Sampler, measure: Measure, seeds: Sequence[int]) -> dict[str, Any]:
    """Measure the chain from every start, once per seed; each number is a list with a value per seed.

    Returns:
        "starts": by start (0: the held-out images themselves, 1 … L, and "noise"), "frechet_distance", "precision",
        "recall", and "variance" (`variance_ratio`). "levels": "variance" of the full chain's f_l, l = L first.
        "bands": "variance" of its images, coarsest first. "maps": "share" of each noise map (`noise_shares`).
    """
    levels = range(1, sampler.schedule.levels + 1)
    # An unconditional model does not know the images' classes, so it has only one.
    real, labels = measure.images, measure.labels if sampler.classes else np.zeros_like(measure.labels)
    starts: list[dict[str, Any]] = [{"start": 0, **_lists([measure.scores(real) | {"variance": 1.0}])}]
    for level in levels:
        images = [sampler.images(labels, seed, start=Start(level, real))[1] for seed in seeds]
        starts.append({"start": level, **_scores(measure, images, labels)})
    chains = [sampler.images(labels, seed, levels=levels) for seed in seeds]
    full = [chain[1] for chain in chains]
    starts.append({"start": NOISE, **_scores(measure, full, labels)})
    means = {level: _mean_blocks(real, level) for level in reversed(levels)}
    return {
        "starts": starts,
        "levels": [
            {"level": level, "variance": [variance_ratio(chain[level], mean, labels) for chain in chains]}
            for level, mean in means.items()
        ],
        "bands": _bands(real, full, labels, len(levels)),
        "maps": noise_shares(sampler, labels, seeds),
    }


def _scores(measure: Measure, sets: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, list[Any]]:
    rows = [measure.scores(images) | {"variance": variance_ratio(images, measure.images, labels)} for images in sets]
    return _lists(rows)


def _lists(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _mean_blocks(images: np.ndarray, level: int) -> np.ndarray:
    """Return H^{l-1} of images at full side, as the sampler shows f_l: block means, repeated, in 0..255."""
    size = 1 << (level - 1)
    means = (decode(block_sums(images, level - 1), level - 1, 1) + 1) * 127.5
    return means.repeat(size, axis=1).repeat(size, axis=2)


def variance_ratio(drawn: np.ndarray, real: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the variance within classes of drawn images over that of real ones, both (n, …), summed over pixels.

    Image n of both has class n of `labels`, (n,), so that both have the same sizes of classes. None if the real images
    have no variance, as with one image of each class.
    """
    total, found = (np.square(_deviations(part, labels), dtype=np.float64).sum() for part in (real, drawn))
    return float(found / total) if total else None


def _deviations(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each image minus the mean of its class."""
    values = images.astype(np.float32)
    for label in np.unique(labels):
        values[labels == label] -= values[labels == label].mean(axis=0)
    return values


def _bands(real: np.ndarray, drawn: Sequence[np.ndarray], labels: np.ndarray, levels: int) -> list[dict[str, Any]]:
    """Return `variance_ratio` by octaves of frequency, coarsest first; the upper ends are in cycles per pixel."""
    side = real.shape[1]
    frequencies = np.abs(np.fft.fftfreq(side))
    highest = np.maximum(frequencies[:, None], frequencies[None, : side // 2 + 1])
    ends = [0.5 / 2**octave for octave in range(levels, -1, -1)]
    octave = np.searchsorted(ends, highest)
    expected = _powers(real, labels, octave)
    powers = [_powers(images, labels, octave) for images in drawn]
    return [
        {"below": end, "variance": [float(power[band] / expected[band]) for power in powers]}
        for band, end in enumerate(ends)
        if expected[band]
    ]


def _powers(images: np.ndarray, labels: np.ndarray, octave: np.ndarray) -> np.ndarray:
    """Return the power of deviations from class means in each band."""
    spectrum = np.abs(np.fft.rfft2(_deviations(images, labels), axes=(1, 2))) ** 2
    # The real transform leaves out half of the columns, except the first and, for even sides, the last.
    weights = np.full(spectrum.shape[2], 2.0)
    weights[0] = 1
    if images.shape[2] % 2 == 0:
        weights[-1] = 1
    return np.bincount(octave.ravel(), (spectrum.sum(axis=(0, 3)) * weights).ravel(), minlength=octave.max() + 1)


def noise_shares(sampler: Sampler, labels: np.ndarray, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the share of the images' variance, given the label, that each noise map alone determines.

    The share of ε_l is Var E[x | ε_l] / Var x = 1 - E‖x - x'‖² / E‖x - x''‖², where x' has the same ε_l as x and other
    noise otherwise, and x'' has other noise throughout (Sobol's first-order index). Shares of maps that act
    independently add up to 1. The base noise counts with ε_L. None if the images do not vary.
    """
    maps = sorted(noise_maps(sampler), key=lambda each: -each.level)
    found: dict[str, list[float | None]] = {each.name: [] for each in maps}
    for seed in seeds:
        sources = sampler.noise_of(seed), sampler.noise_of(seed + len(seeds))
        one, other = (sampler.images(labels, source)[1].astype(np.float32) for source in sources)
        apart = float(np.square(one - other).mean(dtype=np.float64))
        for kept in maps:
            images = sampler.images(labels, _mixed(*sources, kept, sampler.schedule.levels))[1]
            near = float(np.square(one - images).mean(dtype=np.float64))
            found[kept.name].append(1 - near / apart if apart else None)
    return [{"map": name, "share": shares} for name, shares in found.items()]


def _mixed(one: NoiseSource, other: NoiseSource, kept: NoiseMap, levels: int) -> NoiseSource:
    """Return a source of the second's noise with one map of the first's; ε_L brings its base noise."""

    def draw(numbers: range) -> Latent:
        first, second = one(numbers), other(numbers)
        mixed = kept.replaced(second, kept.of(first))
        return mixed._replace(base=first.base) if kept == NoiseMap("eps", levels) else mixed

    return draw
