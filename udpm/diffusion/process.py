"""The diffusion process: operator H (2×2 box blur, then stride 2), one step, marginals, and the posterior.

Σ_l = (α_l²/σ_l² · HᵀH + I/σ̃_{l-1}²)^{-1},  μ_l = Σ_l (α_l/σ_l² · Hᵀ x_l + ᾱ_{l-1}/σ̃_{l-1}² · f).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from udpm.diffusion.schedule import PosteriorForm, Schedule, coefficients


def downsample(image: torch.Tensor, scale: int, times: int = 1) -> torch.Tensor:
    """Compute H^times x.

    Args:
        image: (..., C, h, w) with h and w divisible by 2^times.
        scale: s, the sum of the box's taps: 2 (divided by its l2 norm) or 1 (by its sum).
        times: number of applications of H, >= 0.

    Returns:
        (..., C, h/2^times, w/2^times): s^times times the block means.
    """
    if times == 0:
        return image
    return F.avg_pool2d(image, 2**times) * float(scale**times)


def adjoint(image: torch.Tensor, scale: int, times: int = 1) -> torch.Tensor:
    """Compute (Hᵀ)^times y: nearest-neighbour upsampling times (s/4)^times.

    Args:
        image: (..., C, h, w).
        scale: s, as in `downsample`.
        times: number of applications of Hᵀ, >= 0.

    Returns:
        (..., C, h·2^times, w·2^times). H Hᵀ = (s²/4) I: the identity for s = 2.
    """
    return _repeat(image, 2**times) * (scale / 4) ** times


def project(image: torch.Tensor) -> torch.Tensor:
    """Compute P x for an image (..., C, h, w) with even sides: every 2×2 block becomes its mean; HᵀH = (s²/4) P."""
    return _repeat(F.avg_pool2d(image, 2), 2)


def _repeat(image: torch.Tensor, factor: int) -> torch.Tensor:
    return image.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def step(schedule: Schedule, previous: torch.Tensor, level: int, noise: torch.Tensor) -> torch.Tensor:
    """Compute one step, x_l = α_l H x_{l-1} + σ_l ε.

    Args:
        schedule: α, σ and s.
        previous: x_{l-1}, (B, 3, 2h, 2w).
        level: l in 1..L.
        noise: ε ~ N(0, I), (B, 3, h, w).
    """
    return schedule.alpha(level) * downsample(previous, schedule.scale) + schedule.sigma(level) * noise


def marginal(schedule: Schedule, downsampled: torch.Tensor, level: int, noise: torch.Tensor) -> torch.Tensor:
    """Sample from q(x_l | x_0) = N(ᾱ_l H^l x_0, σ̃_l² I).

    Args:
        schedule: α, σ and s.
        downsampled: H^l x_0, (B, 3, h, w).
        level: l in 0..L.
        noise: ε ~ N(0, I), same shape.
    """
    return schedule.alpha_bar(level) * downsampled + schedule.sigma_tilde(level) * noise


@dataclass(frozen=True)
class Posterior:
    """μ_l and Σ_l for a batch.

    Σ_l acts as `variance_blocks` on 2×2 block means and as `variance_rest` on the image minus its block means; in the
    scalar form the two are equal.

    Attributes:
        mean: μ_l, (B, 3, 2h, 2w).
        variance_blocks: eigenvalue of Σ_l on images that are constant in every block.
        variance_rest: eigenvalue of Σ_l on images whose blocks have mean zero.
    """

    mean: torch.Tensor
    variance_blocks: float
    variance_rest: float

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """Sample μ_l + Σ_l^{1/2} ε for ε ~ N(0, I) of the mean's shape."""
        blocks, rest = self.variance_blocks**0.5, self.variance_rest**0.5
        if blocks == rest:
            return self.mean + blocks * noise
        return self.mean + rest * noise + (blocks - rest) * project(noise)


def posterior(
    schedule: Schedule, state: torch.Tensor, output: torch.Tensor, level: int, form: PosteriorForm
) -> Posterior:
    """Compute q(x_{l-1} | x_l, H^{l-1} x_0 = f).

    Args:
        schedule: α, σ and s.
        state: x_l, (B, 3, h, w).
        output: f, (B, 3, 2h, 2w).
        level: l in 2..L.
        form: "scalar" approximates HᵀH by the identity, like the published code; "exact" uses HᵀH = (s²/4) P.
    """
    numbers = coefficients(schedule, level, form)
    blocks, rest = numbers.variance_blocks, numbers.variance_rest
    natural_mean = numbers.state * adjoint(state, schedule.scale) + numbers.output * output
    if form == "scalar":
        return Posterior(blocks * natural_mean, blocks, rest)
    return Posterior(rest * natural_mean + (blocks - rest) * project(natural_mean), blocks, rest)
