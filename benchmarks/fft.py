"""The plain diffusion process, with H as a circular convolution by FFT."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from udpm.diffusion.process import Network, SamplingStep, marginal
from udpm.diffusion.schedule import Schedule, coefficients


def downsample_by_fft(image: torch.Tensor, scale: int, times: int = 1) -> torch.Tensor:
    """H^times x: a product with the box's spectrum, then every other pixel; see `udpm.diffusion.process.downsample`."""
    for _ in range(times):
        image = _filtered(image, _spectrum(image, scale))[..., ::2, ::2]
    return image


def adjoint_by_fft(image: torch.Tensor, scale: int) -> torch.Tensor:
    """Hᵀ y: zeros between the pixels, then the box's conjugate spectrum; see `udpm.diffusion.process.adjoint`."""
    *batch, height, width = image.shape
    apart = image.new_zeros(*batch, 2 * height, 2 * width)
    apart[..., ::2, ::2] = image
    return _filtered(apart, _spectrum(apart, scale).conj())


def sample_by_fft(
    schedule: Schedule,
    network: Network,
    base: torch.Tensor,
    noises: Sequence[torch.Tensor],
    labels: torch.Tensor | None = None,
    inputs: Sequence[torch.Tensor] = (),
) -> list[SamplingStep]:
    """The chain with the scalar posterior; see `udpm.diffusion.process.sample`."""

    coarsest = downsample_by_fft(base, schedule.scale, schedule.levels)
    state = marginal(schedule, coarsest, schedule.levels, noises[0])
    steps: list[SamplingStep] = []
    for index, (level, noise) in enumerate(zip(range(schedule.levels, 0, -1), [*noises[1:], None], strict=True)):
        seen = torch.cat([state, inputs[index]], dim=1) if inputs else state
        output = network(seen, schedule.time(level), labels)
        steps.append(SamplingStep(level, state, output))
        if noise is not None:
            numbers = coefficients(schedule, level, "scalar")
            back = numbers.state * adjoint_by_fft(state, schedule.scale) + numbers.output * output
            state = numbers.variance_blocks * back + numbers.variance_blocks**0.5 * noise
    return steps


def _spectrum(image: torch.Tensor, scale: int) -> torch.Tensor:
    """Return the spectrum of the 2×2 box whose taps sum to s, placed such that an even pixel covers its own block."""
    kernel = image.new_zeros(image.shape[-2:])
    for row in (0, -1):
        for column in (0, -1):
            kernel[row, column] = scale / 4
    return torch.fft.fft2(kernel)


def _filtered(image: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    return torch.fft.ifft2(torch.fft.fft2(image) * spectrum).real
