"""The noise schedule α_l, σ_l and derived quantities, in double precision. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from udpm.config.model import Process


@dataclass(frozen=True)
class Schedule:
    """α_l and σ_l for l = 1..L; methods take the level l, counted from 1 (finest).

    x_l = α_l H x_{l-1} + σ_l ε, so q(x_l | x_0) = N(ᾱ_l H^l x_0, σ̃_l² I).

    Attributes:
        alphas: α_1..α_L, each in (0, 1].
        sigmas: σ_1..σ_L, each > 0.
        scale: s, the sum of H's taps: H x = s · avg_pool(x). 2 for the l2-normalized box, 1 for the plain average.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    scale: int = 2

    def __post_init__(self) -> None:
        if not self.alphas or len(self.alphas) != len(self.sigmas):
            raise ValueError(
                f"expected one alpha and one sigma for each level, got {len(self.alphas)} and {len(self.sigmas)}"
            )
        if not all(0 < alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas must be in (0, 1], got {self.alphas}")
        if not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise ValueError(f"sigmas must be positive, got {self.sigmas}")
        if self.scale not in (1, 2):
            raise ValueError(f"scale must be 2 (box divided by its l2 norm) or 1 (by its sum), got {self.scale}")

    @classmethod
    def from_config(cls, process: Process) -> Schedule:
        """Build the schedule of a validated configuration."""
        return cls(tuple(process.alphas), tuple(process.sigmas), 2 if process.normalization == "norm" else 1)

    @property
    def levels(self) -> int:
        """L, the number of levels and of network calls per image."""
        return len(self.alphas)

    def alpha(self, level: int) -> float:
        """α_l."""
        return self.alphas[level - 1]

    def sigma(self, level: int) -> float:
        """σ_l."""
        return self.sigmas[level - 1]

    def alpha_bar(self, level: int) -> float:
        """ᾱ_l = ∏_{k≤l} α_k; ᾱ_0 = 1."""
        return math.prod(self.alphas[:level])

    def sigma_tilde(self, level: int) -> float:
        """σ̃_l, from σ̃_l² = α_l² σ̃_{l-1}² + σ_l²; σ̃_0 = 0.

        The recursion uses H Hᵀ = I. For the plain average (H Hᵀ = I/4) the published code keeps it, and so do we.
        """
        variance = 0.0
        for alpha, sigma in zip(self.alphas[:level], self.sigmas[:level], strict=True):
            variance = alpha**2 * variance + sigma**2
        return math.sqrt(variance)

    def signal(self, level: int) -> float:
        """ᾱ_l s^l, the factor from a constant image to the mean of x_l."""
        return self.alpha_bar(level) * self.scale**level

    def snr(self, level: int) -> float:
        """Signal-to-noise ratio of x_l, as a ratio of amplitudes: ᾱ_l s^l / σ̃_l."""
        return self.signal(level) / self.sigma_tilde(level)

    def time(self, level: int) -> float:
        """t_l = (l - ½)/L, the network's time."""
        return (level - 0.5) / self.levels


PosteriorForm = Literal["scalar", "exact"]


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of q(x_{l-1} | x_l, f) = N(μ_l, Σ_l) with μ_l = Σ_l (state · Hᵀ x_l + output · f).

    Attributes:
        state: α_l/σ_l².
        output: ᾱ_{l-1}/σ̃_{l-1}².
        variance_blocks: eigenvalue of Σ_l on images that are constant in every 2×2 block.
        variance_rest: eigenvalue of Σ_l on images whose blocks have mean zero; equal in the scalar form.
    """

    state: float
    output: float
    variance_blocks: float
    variance_rest: float


def coefficients(schedule: Schedule, level: int, form: PosteriorForm) -> Coefficients:
    """Compute the coefficients of level l: Σ_l = (α_l²/σ_l² · HᵀH + I/σ̃_{l-1}²)^{-1}.

    Args:
        schedule: α, σ and s.
        level: l in 2..L.
        form: "scalar" approximates HᵀH by the identity, like the published code; "exact" uses HᵀH = (s²/4) P.
    """
    alpha, variance = schedule.alpha(level), schedule.sigma(level) ** 2
    prior = schedule.sigma_tilde(level - 1) ** 2
    state, output = alpha / variance, schedule.alpha_bar(level - 1) / prior
    if form == "scalar":
        sigma = 1 / (alpha**2 / variance + 1 / prior)
        return Coefficients(state, output, sigma, sigma)
    blocks = 1 / (alpha**2 / variance * schedule.scale**2 / 4 + 1 / prior)
    return Coefficients(state, output, blocks, prior)


def prior_variance(schedule: Schedule) -> float:
    """Compute τ² of the sampling prior: x_L = ᾱ_L H^L z + σ̃_L ε with white z and ε is N(0, τ² I).

    τ² = ᾱ_L² (s²/4)^L + σ̃_L², since H Hᵀ = (s²/4) I.
    """
    levels = schedule.levels
    return (schedule.alpha_bar(levels) * (schedule.scale / 2) ** levels) ** 2 + schedule.sigma_tilde(levels) ** 2


def divergence_bound(schedule: Schedule, variance: float, mean_square: float = 1.0) -> float:
    """Compute an upper bound on KL(q(x_L) ‖ N(0, τ² I)), in nats per dimension of x_L.

    KL is convex, so KL(q(x_L) ‖ p) ≤ E KL(q(x_L | x_0) ‖ p) over images x_0, and q(x_L | x_0) = N(ᾱ_L H^L x_0, σ̃_L² I):
    ½ (σ̃_L²/τ² - 1 - ln(σ̃_L²/τ²) + (ᾱ_L s^L)² m₂/τ²).

    Args:
        schedule: α, σ and s.
        variance: τ².
        mean_square: m₂, mean square of the means of blocks of 2^L × 2^L pixels; at most 1 for images in [-1, 1].
    """
    levels = schedule.levels
    shrink = math.log(schedule.sigma_tilde(levels) ** 2 / variance)
    # e^d - 1 - d keeps its precision if the two variances are nearly equal.
    return (math.expm1(shrink) - shrink + schedule.signal(levels) ** 2 * mean_square / variance) / 2
