"""The numbers in the posterior, functions of the schedule alone. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udpm.process.schedule import Schedule

Form = Literal["scalar", "exact"]


@dataclass(frozen=True)
class Coefficients:
    """The numbers in q(x_{l-1} | x_l, f) = N(μ_l, Σ_l) with μ_l = Σ_l (state · Hᵀ x_l + output · f).

    Attributes:
        state: α_l/σ_l².
        output: ᾱ_{l-1}/σ̃_{l-1}².
        variance_blocks: eigenvalue of Σ_l on images that are constant in every 2×2 block.
        variance_rest: eigenvalue of Σ_l on images whose blocks have mean zero; in the scalar form the same number.
    """

    state: float
    output: float
    variance_blocks: float
    variance_rest: float


def coefficients(schedule: Schedule, level: int, form: Form) -> Coefficients:
    """The numbers of level l: Σ_l = (α_l²/σ_l² · HᵀH + I/σ̃_{l-1}²)^{-1}.

    Args:
        schedule: α, σ and s.
        level: l in 2..L.
        form: "scalar" takes HᵀH for the identity, as the published code does; "exact" uses HᵀH = (s²/4) P.
    """
    alpha, variance = schedule.alpha(level), schedule.sigma(level) ** 2
    prior = schedule.sigma_tilde(level - 1) ** 2
    state, output = alpha / variance, schedule.alpha_bar(level - 1) / prior
    if form == "scalar":
        sigma = 1 / (alpha**2 / variance + 1 / prior)
        return Coefficients(state, output, sigma, sigma)
    blocks = 1 / (alpha**2 / variance * schedule.scale**2 / 4 + 1 / prior)
    return Coefficients(state, output, blocks, prior)
