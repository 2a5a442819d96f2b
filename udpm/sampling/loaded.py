"""A trained model in Python: what `udpm.load` returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from udpm.config.evaluation import Latents, Sampling
from udpm.config.validation import validate
from udpm.core import devices
from udpm.networks.inference import count_parameters
from udpm.networks.weights import load_model
from udpm.runs.records import find_weights
from udpm.sampling.generate import milestone_weights
from udpm.sampling.grid import arrange, check_grid
from udpm.sampling.latents import EXPERIMENTS
from udpm.sampling.sampler import Sampler

Label = int | str


class LoadedModel(Sampler):
    """A trained model, ready to draw images.

    Args:
        path: a weight file, or a folder or an address that stands for one.
        weights: "ema" (averaged), "raw", or another average.
        device: "auto", "cpu", "cuda" or "cuda:N".
        sampling: `posterior`, `guidance`, `precision`, `batch`, `iteration` and `noise_kind` of the section.

    Raises:
        UserError: weights missing or damaged, a device that is missing, or guidance that the model cannot have.
    """

    def __init__(self, path: str | Path, weights: str, device: str, sampling: Sampling) -> None:
        file = find_weights(path)
        if sampling.iteration is not None:
            file = milestone_weights(file, sampling.iteration)
        model = load_model(file, weights, devices.choose(device))
        self._sampling, self._parameters = sampling, count_parameters(model.generator)
        how = sampling.posterior, sampling.batch, sampling.guidance, sampling.precision
        super().__init__(model, *how, noise_kind=sampling.noise_kind)

    def __repr__(self) -> str:
        record, side = self.model.record, self.model.config.side
        seed = "" if record["run_seed"] is None else f", seed {record['run_seed']}"
        of = record["experiment"] or ("imported" if record["origin"] else "unnamed")
        guidance = "" if self._sampling.guidance == 1 else f", guidance {self._sampling.guidance:g}"
        name = devices.describe(self.device) if self.device.type == "cuda" else ""
        parts = [
            f"{of}{seed}" + (f" on {record['dataset']}" if record["dataset"] else ""),
            f"{side}×{side} in {self.schedule.levels} levels, {self.classes or 'no'} classes, "
            f"{self._parameters / 1e6:.3g} M parameters",
            f"{record['weights']} weights"
            + ("" if record["iteration"] is None else f" of iteration {record['iteration']}"),
            f"{self.device}{f' ({name})' if name else ''}, {self._sampling.precision}, "
            f"{self.posterior} posterior{guidance}",
        ]
        return f"<udpm model: {'; '.join(parts)}>"

    def grid(
        self,
        images: int | Sequence[np.ndarray] | np.ndarray = 64,
        labels: Sequence[Label] | Label | None = None,
        seed: int = 0,
    ) -> Image:
        """Draw images side by side: `udpm sample --output grid.png` writes the same picture.

        Args:
            images: number of images to sample; or drawn ones, (n, N, N, 3) uint8, or with more axes as `interpolate`,
                `perturb` and `swap` return them: the last before the images are columns, the others rows.
            labels: as of `sample`; one row per class, unless the grid would be long and narrow. For drawn images of n:
                their classes, or None for rows of about equal length.
            seed: of the images to sample.

        Returns:
            A picture in RGB; images of less than 64 pixels are enlarged by a whole factor.

        Raises:
            UserError: more than 1024 images, arrays of another shape or type, or labels that do not fit.
        """
        if isinstance(images, int | np.integer):
            check_grid(int(images))
            chosen = self._checked(int(images), labels)
            return arrange(self.images(chosen, seed)[1], chosen if self.classes else None)
        drawn = np.asarray(images)
        return arrange(drawn, None if labels is None else self._checked(len(drawn), labels))

    def interpolate(
        self, label: Label | None = None, seeds: Sequence[int] = (0, 1, 2, 3), grid: int | None = None
    ) -> np.ndarray:
        """Interpolate all maps of four latents over a grid with the four at its corners (paper, Figure 5).

        Args:
            label: class by name, else by number; default: the first.
            seeds: of the four latents; the fourth is at the top left, the first at the bottom right.
            grid: side G; default 6.

        Returns:
            (G, G, N, N, 3) uint8.

        Raises:
            UserError: an unknown class, or values out of range.
        """
        return self._explored("interpolate", label, seeds=seeds, grid=grid)

    def perturb(
        self,
        labels: Sequence[Label] | Label | None = None,
        seeds: Sequence[int] = (0, 1, 2, 3),
        strengths: int | None = None,
        strongest: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Replace one level's noise map step by step, with the others fixed (paper, Figure 6).

        Args:
            labels: R classes by name, else by number; default: the first four.
            seeds: of four latents: the first is perturbed; without classes all four are, and R is 4.
            strengths: S, from none to the strongest; default 5.
            strongest: fraction of its map that each level's strongest keeps, l = 1 first; default as published.

        Returns:
            (M, R, S, N, N, 3) uint8, of the maps ε_L, …, ε_1 and, for a model with a latent, z_L, …, z_1.

        Raises:
            UserError: an unknown class, or values out of range.
        """
        return self._explored("perturb", labels, seeds=seeds, strengths=strengths, strongest=strongest)

    def swap(self, labels: Sequence[Label] | Label | None = None, seeds: Sequence[int] = (0, 1, 2, 3)) -> np.ndarray:
        """Swap one level's noise map between two latents A and B, for every level (paper, Figure 13).

        Args:
            labels: R classes by name, else by number; default: the first four.
            seeds: of four latents: the first two are A and B; without classes, the other two are in a second row.

        Returns:
            (R, M + 2, N, N, 3) uint8: A, B with one map of A for each of the M maps (as of `perturb`), and B.

        Raises:
            UserError: an unknown class, or values out of range.
        """
        return self._explored("swap", labels, seeds=seeds)

    def _explored(self, kind: str, labels: Sequence[Label] | Label | None, **given: Any) -> np.ndarray:
        several = [labels] if isinstance(labels, int | str | np.integer) else labels
        values = {key: _plain(value) for key, value in {"labels": several, **given}.items() if value is not None}
        return EXPERIMENTS[kind](self, validate(Latents, values, kind))["images"]


def _plain(value: Any) -> Any:
    """Convert sequences to lists, and NumPy's numbers to Python's, as the configuration has them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if isinstance(value, str) or not isinstance(value, Sequence) else list(map(_plain, value))
