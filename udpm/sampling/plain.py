"""Sampling the plain way: what `udpm bench sample` compares with, used nowhere else."""

from __future__ import annotations

import numpy as np
import torch

from udpm.networks.unet import IMAGE_CHANNELS, UNet
from udpm.process.chain import noise_sides
from udpm.process.forward import marginal
from udpm.process.images import to_bytes
from udpm.process.plain import downsample_by_fft, draw_state
from udpm.process.schedule import Schedule


@torch.no_grad()
def sample_plainly(
    schedule: Schedule, generator: UNet, side: int, labels: torch.Tensor | None, batch: int
) -> np.ndarray:
    """A batch of images: float32, eager, H by FFT, noise drawn where it is needed, no inference mode.

    Args:
        schedule: α, σ and s.
        generator: in eval mode, its weights laid out as torch creates them.
        side: N.
        labels: (B,) int64 where the network is class-conditional.
        batch: B.

    Returns:
        (B, N, N, 3) uint8.
    """
    device = next(generator.parameters()).device

    def noise(size: int) -> torch.Tensor:
        return torch.randn(batch, IMAGE_CHANNELS, size, size).to(device)

    levels, sides = schedule.levels, noise_sides(schedule, side)
    base = downsample_by_fft(noise(side), schedule.scale, levels)
    state = marginal(schedule, base, levels, noise(sides[0]))
    for level in range(levels, 0, -1):
        output = generator(state, schedule.time(level), labels)
        if level > 1:
            state = draw_state(schedule, state, output, level, noise(sides[levels - level + 1]))
    return to_bytes(output)
