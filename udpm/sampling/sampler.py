"""Images from a trained generator."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from udpm.core.errors import UserError
from udpm.core.seeds import derive_seed
from udpm.networks.weights import Model
from udpm.process.chain import Step, noise_sides, sample
from udpm.process.posterior import Form
from udpm.process.schedule import Schedule


class Sampler:
    """Draws images; each one's noise comes from (seed, its number), whatever else is drawn beside it.

    Args:
        model: loaded weights.
        posterior: "scalar" or "exact".
        batch: images per network call.
    """

    def __init__(self, model: Model, posterior: Form = "scalar", batch: int = 250) -> None:
        self.model = model
        self.schedule = Schedule.from_config(model.config.process)
        self.posterior: Form = posterior
        self.batch = batch
        self.classes = model.generator.shape.classes
        self._device = next(model.generator.parameters()).device

    def balanced_labels(self, count: int) -> np.ndarray:
        """Labels of images 0..count - 1: their number modulo the number of classes; zeros if unconditional."""
        return np.arange(count, dtype=np.int64) % max(self.classes, 1)

    def sample(self, count: int, labels: Sequence[int] | int | None = None, seed: int = 0) -> np.ndarray:
        """Images 0..count - 1 of a seed.

        Args:
            count: how many, > 0.
            labels: one class for all, or one for each; default balanced.
            seed: of the sample set.

        Returns:
            (count, N, N, 3) uint8, RGB.

        Raises:
            UserError: labels of the wrong number or range.
        """
        chosen = self._checked(count, labels)
        return np.concatenate([to_bytes(steps[-1].output) for steps in self.chains(chosen, seed)])

    @torch.inference_mode()
    def chains(self, labels: np.ndarray, seed: int) -> Iterator[list[Step]]:
        """The sampling chains of images 0..len(labels) - 1, batch by batch.

        Args:
            labels: (n,) int64.
            seed: of the sample set.
        """
        numbers = range(0, len(labels), self.batch)
        with tqdm(total=len(labels), unit="image", desc="sample", disable=not sys.stderr.isatty()) as progress:
            for start in numbers:
                part = labels[start : start + self.batch]
                base, noises = self._noise(range(start, start + len(part)), seed)
                chosen = torch.from_numpy(part).to(self._device) if self.classes else None
                yield sample(self.schedule, self.model.generator, base, noises, chosen, self.posterior)
                progress.update(len(part))

    def _noise(self, numbers: range, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        side = self.model.config.side
        sides = [side, *noise_sides(self.schedule, side)]
        maps: list[list[torch.Tensor]] = [[] for _ in sides]
        for number in numbers:
            generator = torch.Generator().manual_seed(derive_seed(seed, "image", number))
            for drawn, size in zip(maps, sides, strict=True):
                drawn.append(torch.randn(3, size, size, generator=generator))
        base, *noises = [torch.stack(drawn).to(self._device) for drawn in maps]
        return base, noises

    def _checked(self, count: int, labels: Sequence[int] | int | None) -> np.ndarray:
        if count < 1:
            raise UserError(f"count: must be at least 1, got {count}")
        if labels is None:
            return self.balanced_labels(count)
        chosen = np.full(count, labels) if isinstance(labels, int) else np.asarray(labels, dtype=np.int64)
        if chosen.shape != (count,):
            raise UserError(f"labels: {count} images need {count} labels, got {len(chosen)}")
        if not self.classes:
            raise UserError("labels: this model is unconditional; leave them out")
        if chosen.min() < 0 or chosen.max() >= self.classes:
            raise UserError(f"labels: must lie in 0..{self.classes - 1}, got {chosen.min()}..{chosen.max()}")
        return chosen.astype(np.int64)


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1], (B, 3, h, w), to (B, h, w, 3) uint8, rounded; what lies outside is clipped."""
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
