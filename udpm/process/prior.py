"""How far the state that sampling starts from is from the state that training ends at. Imports no torch."""

from __future__ import annotations

import math

from udpm.process.schedule import Schedule


def prior_variance(schedule: Schedule) -> float:
    """τ² of the sampling prior: x_L = ᾱ_L H^L z + σ̃_L ε with white z and ε is N(0, τ² I).

    τ² = ᾱ_L² (s²/4)^L + σ̃_L², since H Hᵀ = (s²/4) I.
    """
    levels = schedule.levels
    return (schedule.alpha_bar(levels) * (schedule.scale / 2) ** levels) ** 2 + schedule.sigma_tilde(levels) ** 2


def divergence_bound(schedule: Schedule, variance: float, mean_square: float = 1.0) -> float:
    """An upper bound on KL(q(x_L) ‖ N(0, τ² I)), in nats per dimension of x_L.

    KL is convex, so KL(q(x_L) ‖ p) ≤ E KL(q(x_L | x_0) ‖ p) over images x_0, and q(x_L | x_0) = N(ᾱ_L H^L x_0, σ̃_L² I):
    ½ (σ̃_L²/τ² - 1 - ln(σ̃_L²/τ²) + (ᾱ_L s^L)² m₂/τ²).

    Args:
        schedule: α, σ and s.
        variance: τ².
        mean_square: m₂, mean square of the means of blocks of 2^L × 2^L pixels; at most 1 for images in [-1, 1].
    """
    levels = schedule.levels
    shrink = math.log(schedule.sigma_tilde(levels) ** 2 / variance)
    # e^d - 1 - d loses no digits where the two variances are nearly the same.
    return (math.expm1(shrink) - shrink + schedule.signal(levels) ** 2 * mean_square / variance) / 2
