"""The forward process."""

from __future__ import annotations

import torch

from udpm.process.operator import downsample
from udpm.process.schedule import Schedule


def step(schedule: Schedule, previous: torch.Tensor, level: int, noise: torch.Tensor) -> torch.Tensor:
    """One step, x_l = α_l H x_{l-1} + σ_l ε.

    Args:
        schedule: α, σ and s.
        previous: x_{l-1}, (B, 3, 2h, 2w).
        level: l in 1..L.
        noise: ε ~ N(0, I), (B, 3, h, w).
    """
    return schedule.alpha(level) * downsample(previous, schedule.scale) + schedule.sigma(level) * noise


def marginal(schedule: Schedule, downsampled: torch.Tensor, level: int, noise: torch.Tensor) -> torch.Tensor:
    """A draw from q(x_l | x_0) = N(ᾱ_l H^l x_0, σ̃_l² I).

    Args:
        schedule: α, σ and s.
        downsampled: H^l x_0, (B, 3, h, w).
        level: l in 0..L.
        noise: ε ~ N(0, I), same shape.
    """
    return schedule.alpha_bar(level) * downsampled + schedule.sigma_tilde(level) * noise
