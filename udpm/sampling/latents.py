"""Latent-space experiments (paper, section 4): perturb, swap and interpolate noise maps, and vary one at a time.

Arrays list levels in the order of sampling: coarsest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from udpm.config.evaluation import Latents, Sampling
from udpm.core import devices, provenance
from udpm.core.arrays import derive_seed
from udpm.core.devices import to_bytes
from udpm.core.errors import UserError
from udpm.data.npz import save_arrays
from udpm.diffusion import counter
from udpm.diffusion.process import Latent, interpolate, mix
from udpm.sampling.generate import kind_of_noise, load_sampler
from udpm.sampling.sampler import Sampler

LATENTS_FORMAT = "udpm-latents/1"
DEFAULT_LABELS = 4

Arrays = dict[str, np.ndarray]


def explore_latents(weights: Path, kind: str, config: Latents, sampling: Sampling, output: Path) -> int:
    """Run one experiment, write images, axes and record as one .npz, and return the number of images.

    Args:
        kind: a key of EXPERIMENTS.
        sampling: of the sampler; its count, labels, seed and file of noise are not used.

    Raises:
        UserError: weights missing or damaged, or a configuration that does not fit the model.
    """
    sampler, device = load_sampler(weights, sampling)
    arrays = EXPERIMENTS[kind](sampler, config)
    record = {
        "format": LATENTS_FORMAT,
        "kind": kind,
        **sampler.model.record,
        "classes": sampler.classes,
        "posterior": sampling.posterior,
        "guidance": sampling.guidance,
        "precision": sampling.precision,
        "tf32": devices.uses_tf32(device),
        "nfe": sampler.nfe,
        "latents": config.model_dump(mode="json"),
        **kind_of_noise(sampling),
        "device": devices.describe(device),
        "provenance": provenance.record(),
    }
    save_arrays(output, arrays, record)
    return math.prod(arrays["images"].shape[:-3])


def perturb(sampler: Sampler, config: Latents) -> Arrays:
    """Replace one map gradually, ε_l ← mix(ε_l, ε'_l, g), and keep z and the other maps.

    One row per class; without classes, per seed.

    Returns:
        images (M, R, S, N, N, 3) uint8 of the M maps of `noise_maps`; levels, and kinds where there are two, (M,);
        strengths (M, S), the g of each; labels, seeds (R,).
    """
    seeds = config.seeds[:1] if sampler.classes else config.seeds
    rows = [(label, seed) for label in _labels(sampler, config) for seed in seeds]
    strongest = _strongest(sampler.schedule.levels, config)
    maps = noise_maps(sampler)
    strengths = np.stack([np.linspace(1, strongest[found.level - 1], config.strengths) for found in maps])
    latents, labels = [], []
    for found, shares in zip(maps, strengths, strict=True):
        for label, seed in rows:
            latent = sampler.latent(seed)
            other = found.another(sampler, latent, seed)
            latents += [found.replaced(latent, mix(found.of(latent), other, keep)) for keep in shares]
            labels += [label] * len(shares)
    images = _grid(sampler.decode(latents, labels), len(maps), len(rows), config.strengths)
    return {"images": images, **_map_arrays(maps), "strengths": strengths, **_row_arrays(rows)}


def swap(sampler: Sampler, config: Latents) -> Arrays:
    """Draw latent A, then B with its l-th map from A for every l, then B.

    One row per class; without classes, one for the first two seeds and one for the other two.

    Returns:
        images (R, M + 2, N, N, 3) uint8; levels, and kinds where there are two, (M,), of the middle columns;
        labels (R,); seeds (R, 2) of A and B.
    """
    pairs = [config.seeds[:2]] if sampler.classes else [config.seeds[:2], config.seeds[2:]]
    rows = [(label, pair) for label in _labels(sampler, config) for pair in pairs]
    maps = noise_maps(sampler)
    latents, labels = [], []
    for label, pair in rows:
        first, second = map(sampler.latent, pair)
        latents += [first, *(found.replaced(second, found.of(first)) for found in maps), second]
        labels += [label] * (len(maps) + 2)
    images = _grid(sampler.decode(latents, labels), len(rows), len(maps) + 2)
    return {"images": images, **_map_arrays(maps), **_row_arrays(rows)}


def interpolate_four(sampler: Sampler, config: Latents) -> Arrays:
    """Interpolate four latents at the corners of a grid, ε(i, j) = mix(mix(ε¹, ε², δ_j), mix(ε³, ε⁴, δ_j), η_i).

    Returns:
        images (G, G, N, N, 3) uint8; across (G,), δ of the columns; down (G,), η of the rows; labels (1,); seeds (4,).
    """
    label = _labels(sampler, config)[0]
    corners = [sampler.latent(seed) for seed in config.seeds]
    shares = np.linspace(0, 1, config.grid)
    latents = [interpolate(corners, across, down) for down in shares for across in shares]
    images = _grid(sampler.decode(latents, [label] * len(latents)), config.grid, config.grid)
    axes = {"across": shares, "down": shares}
    return {"images": images, **axes, "labels": np.array([label]), "seeds": np.array(config.seeds)}


def pca(sampler: Sampler, config: Latents) -> Arrays:
    """Compute principal components of images that differ in one map, mix(ε_l, ε'_i, g) for i = 0, 1, ….

    Returns:
        images (M, n, N, N, 3) uint8; mean (M, N, N, 3) and components (M, K, N, N, 3), float32, of the images in
        [-1, 1] before rounding; explained (M, K), shares of the variance; levels, and kinds where there are
        two, (M,); labels, seeds (1,).
    """
    label, seed = _labels(sampler, config)[0], config.seeds[0]
    latent, maps = sampler.latent(seed), noise_maps(sampler)
    found: dict[str, list[np.ndarray]] = {"images": [], "mean": [], "components": [], "explained": []}
    for varied in maps:
        others = (varied.another(sampler, latent, seed, number) for number in range(config.pca_images))
        latents = [varied.replaced(latent, mix(varied.of(latent), other, config.pca_keep)) for other in others]
        images = sampler.decode(latents, [label] * len(latents)).clamp(-1, 1)
        parts = principal_components(images.permute(0, 2, 3, 1).numpy(), config.pca_components)
        for name, value in zip(found, (to_bytes(images), *parts), strict=True):
            found[name].append(value)
    arrays = {name: np.stack(values) for name, values in found.items()}
    return {**arrays, **_map_arrays(maps), "labels": np.array([label]), "seeds": np.array([seed])}


EXPERIMENTS: dict[str, Callable[[Sampler, Latents], Arrays]] = {
    "perturb": perturb,
    "swap": swap,
    "interpolate": interpolate_four,
    "pca": pca,
}


def principal_components(images: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, K = `count` < n leading principal components and their shares of the variance: (n, …) float.

    The largest entry of each component is made positive, since its sign is arbitrary.

    Returns:
        mean (…) float32; components (K, …) float32, orthonormal, by decreasing share; shares (K,) float64.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    _, singular, components = np.linalg.svd(flat - mean, full_matrices=False)
    components = components[:count]
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    total = (singular**2).sum()
    shares = singular[:count] ** 2 / total if total else np.zeros(len(components))
    shape = images.shape[1:]
    return mean.reshape(shape).astype(np.float32), components.reshape(-1, *shape).astype(np.float32), shares


class NoiseMap(NamedTuple):
    """One map of a latent: ε_l (kind "eps"), or the z_l that the network is called with (kind "z")."""

    kind: str
    level: int

    @property
    def name(self) -> str:
        """Name as in noise files, "eps_1"."""
        return f"{self.kind}_{self.level}"

    def of(self, latent: Latent) -> torch.Tensor:
        """Return the map of a latent."""
        return latent.noise(self.level) if self.kind == "eps" else latent.input(self.level)

    def replaced(self, latent: Latent, value: torch.Tensor) -> Latent:
        """Replace the map of a latent."""
        return (latent.replaced if self.kind == "eps" else latent.replaced_input)(self.level, value)

    def another(self, sampler: Sampler, latent: Latent, seed: int, number: int = 0) -> torch.Tensor:
        """Draw another such map, one of many independent of each other and of the seed's own."""
        if sampler.noise_kind == "counter":
            shape = tuple(self.of(latent).shape[1:])
            return counter.another(seed, self.kind, self.level, shape, number, sampler.device).cpu()
        purpose = "perturbation" if self.kind == "eps" else "perturbation of z"
        generator = torch.Generator().manual_seed(derive_seed(seed, purpose, self.level, number))
        return torch.randn(self.of(latent).shape, generator=generator)


def noise_maps(sampler: Sampler) -> list[NoiseMap]:
    """List the maps that determine an image, coarsest first: ε_L, …, ε_1, and then z_L, …, z_1."""
    kinds = ["eps", "z"] if sampler.model.config.generator.latent_channels else ["eps"]
    return [NoiseMap(kind, level) for kind in kinds for level in range(sampler.schedule.levels, 0, -1)]


def _map_arrays(maps: list[NoiseMap]) -> Arrays:
    """Return the levels of maps, and their kinds where there are two."""
    kinds = [found.kind for found in maps]
    named = {"kinds": np.array(kinds)} if len(set(kinds)) > 1 else {}
    return {"levels": np.array([found.level for found in maps]), **named}


def _labels(sampler: Sampler, config: Latents) -> list[int]:
    """Return the configured classes; [0], without effect, if unconditional."""
    if config.labels:
        return sampler.class_numbers(config.labels).tolist()
    return list(range(min(DEFAULT_LABELS, sampler.classes))) or [0]


def _strongest(levels: int, config: Latents) -> list[float]:
    """Return the share that each level's strongest perturbation keeps, l = 1 first."""
    given = config.strongest
    if given is None:
        return [0.0, *[0.1] * (levels - 2), 0.8][:levels]
    if len(given) != levels:
        raise UserError(f"strongest: has {len(given)} values, but the model has {levels} levels; give one for each")
    return given


def _grid(images: torch.Tensor, *shape: int) -> np.ndarray:
    """Convert (n, 3, N, N) in [-1, 1] to bytes, (*shape, N, N, 3)."""
    drawn = to_bytes(images)
    return drawn.reshape(*shape, *drawn.shape[1:])


def _row_arrays(rows: list[tuple]) -> Arrays:
    """Return the label and the seed, or the seeds, of each row."""
    labels, seeds = zip(*rows, strict=True)
    return {"labels": np.array(labels), "seeds": np.array(seeds)}
