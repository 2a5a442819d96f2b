"""The sampling chain: L calls of a network from noise of the coarsest side to an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from udpm.diffusion.forward import downsample, marginal
from udpm.diffusion.posterior import posterior
from udpm.diffusion.schedule import Form, Schedule

Network = Callable[[torch.Tensor, float, torch.Tensor | None], torch.Tensor]
"""f(x_l, t_l, labels): (B, 3, h, w) to (B, 3, 2h, 2w), an estimate of H^{l-1} x_0."""


class Step(NamedTuple):
    """One step of the chain: the network's input x_l and its output f."""

    level: int
    state: torch.Tensor
    output: torch.Tensor


def noise_sides(schedule: Schedule, side: int) -> list[int]:
    """Return the sides of the noise maps ε_L, …, ε_1 (coarsest first) of an image of side `side`."""
    return [side >> level for level in range(schedule.levels, 0, -1)]


def sample(
    schedule: Schedule,
    network: Network,
    base: torch.Tensor,
    noises: list[torch.Tensor],
    labels: torch.Tensor | None = None,
    form: Form = "scalar",
) -> list[Step]:
    """Run the chain: x_L = ᾱ_L H^L z + σ̃_L ε_L; x_{l-1} = μ_l + Σ_l^{1/2} ε_{l-1}; x_0 = f(x_1, t_1).

    Args:
        schedule: α, σ and s.
        network: f.
        base: z, a white image, (B, 3, N, N).
        noises: ε_L, …, ε_1 (coarsest first), (B, 3, N/2^l, N/2^l).
        labels: (B,) int64, or None.
        form: of the posterior.

    Returns:
        The L links, coarsest first; the last one's output is the image, in about [-1, 1].
    """

    state = marginal(schedule, downsample(base, schedule.scale, schedule.levels), schedule.levels, noises[0])
    steps: list[Step] = []
    for level, noise in zip(range(schedule.levels, 0, -1), [*noises[1:], None], strict=True):
        output = network(state, schedule.time(level), labels)
        steps.append(Step(level, state, output))
        if noise is not None:
            state = posterior(schedule, state, output, level, form).draw(noise)
    return steps
