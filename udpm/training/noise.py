"""Random numbers of a player's step, by kind: from the host's generator, or from a counter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from udpm.config.experiment import RunConfig
from udpm.core.arrays import derive_seed
from udpm.core.devices import to_device
from udpm.diffusion import counter


@dataclass(frozen=True)
class StepNoise:
    """Source of the random numbers of a player's step, as functions of purpose and position in the global batch.

    PyTorch's generator cannot skip numbers: with noise of kind "host", every process draws those of the whole batch.

    Attributes:
        config: of the run.
        player: "discriminator" or "generator".
        iteration: counted from 0.
        part: positions to draw for.
    """

    config: RunConfig
    player: str
    iteration: int
    part: slice

    def normal(self, shapes: dict[str, tuple[int, ...]], device: torch.device) -> dict[str, torch.Tensor]:
        """Draw standard normal numbers by purpose, of these shapes for each image, on a device.

        Raises:
            UserError: the counter has no room for a number.
        """
        if self._from_counter:
            draws = [self._draw(purpose, shape) for purpose, shape in shapes.items()]
            return dict(zip(shapes, counter.normal(self.config.seed, self._positions, draws, device), strict=True))
        whole, drawn = self.config.training.batch, {}
        for purpose, shape in shapes.items():
            values = torch.randn((whole, *shape), generator=self._generator(purpose))
            drawn[purpose] = to_device(values[self.part], device)
        return drawn

    def uniform(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Draw uniform numbers in [0, 1), of this shape for each image, on the CPU: they are few.

        Raises:
            UserError: the counter has no room for a number.
        """
        if self._from_counter:
            # In float32, words near 2^32 would become 1.
            return counter.uniform(self.config.seed, self._positions, self._draw(purpose, shape))
        size = (self.config.training.batch, *shape)
        return torch.rand(size, generator=self._generator(purpose), dtype=dtype)[self.part]

    @property
    def _from_counter(self) -> bool:
        return self.config.training.noise == "counter"

    @property
    def _positions(self) -> range:
        return range(self.config.training.batch)[self.part]

    def _draw(self, purpose: str, shape: tuple[int, ...]) -> counter.Draw:
        return counter.Draw(f"{self.player}: {purpose}", shape, self.iteration)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.config.seed, purpose, self.player, self.iteration))
