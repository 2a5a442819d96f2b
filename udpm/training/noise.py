"""Every random draw of training as a pure function of (run seed, player, iteration).

Noise is drawn for the whole global batch on the CPU, so it depends neither on the device nor on how many processes
share the batch.
"""

from __future__ import annotations

import itertools

import torch

from udpm.config.experiment import RunConfig
from udpm.core.seeds import derive_seed
from udpm.core.transfer import moved
from udpm.training.objective import Draw

EVERYTHING = slice(None)


def draw_level(config: RunConfig, player: str, iteration: int) -> int:
    """The level that a player trains at; uniform in 1..L unless the configuration says otherwise."""
    levels = config.process.levels
    probabilities = config.training.level_probabilities or [1 / levels] * levels
    uniform = torch.rand((), generator=_generator(config.seed, "level", player, iteration), dtype=torch.float64).item()
    bounds = list(itertools.accumulate(probabilities))
    return next((level for level, bound in enumerate(bounds, start=1) if uniform < bound), levels)


def draw_noise(
    config: RunConfig,
    player: str,
    iteration: int,
    level: int,
    target: torch.Tensor,
    labels: torch.Tensor,
    std: float,
    part: slice = EVERYTHING,
) -> Draw:
    """A batch at a level with all the noise that a player's step needs.

    Args:
        config: of the run.
        player: "discriminator" or "generator".
        iteration: counted from 0.
        level: l.
        target: H^{l-1} x_0, (n, 3, 2h, 2w), the part's.
        labels: (n,) int64.
        std: of the noise on what the discriminator sees; none is drawn where it is 0.
        part: of the global batch; each position has its own noise, whoever it belongs to.
    """
    whole = config.training.batch
    _, channels, height, width = target.shape

    def normal(purpose: str, *sides: int) -> torch.Tensor:
        generator = _generator(config.seed, purpose, player, iteration)
        return moved(torch.randn((whole, channels, *sides), generator=generator)[part], target.device)

    return Draw(
        level,
        target,
        labels,
        normal("state", height // 2, width // 2),
        on_fake=normal("fake", height, width) * std if std else None,
        on_real=normal("real", height, width) * std if std and player == "discriminator" else None,
        hidden=_hidden(config, player, iteration, part, target.device),
    )


def _hidden(config: RunConfig, player: str, iteration: int, part: slice, device: torch.device) -> torch.Tensor | None:
    """Whose labels are left out: only where the generator trains, so not in the discriminator's step."""
    probability = config.generator.label_dropout
    if not probability or player != "generator":
        return None
    generator = _generator(config.seed, "hidden labels", player, iteration)
    return moved((torch.rand(config.training.batch, generator=generator) < probability)[part], device)


def drops_out(config: RunConfig, player: str, discriminator: float) -> bool:
    """Whether anything is dropped out in a player's step; only its own network is in train mode.

    Args:
        config: of the run.
        player: "discriminator" or "generator".
        discriminator: probability in the discriminator, at the step's level.
    """
    return bool(config.generator.dropout if player == "generator" else discriminator)


def seed_dropout(config: RunConfig, player: str, iteration: int, rank: int, chunk: int) -> None:
    """Set torch's global random state, which only dropout draws from; each rank's and chunk's differ."""
    place = (rank, chunk) if rank or chunk else ()
    torch.manual_seed(derive_seed(config.seed, "dropout", player, iteration, *place))


def _generator(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))
