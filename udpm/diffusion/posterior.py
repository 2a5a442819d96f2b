"""The posterior q(x_{l-1} | x_l, x_0) = N(μ_l, Σ_l), with the network's f instead of H^{l-1} x_0.

Σ_l = (α_l²/σ_l² · HᵀH + I/σ̃_{l-1}²)^{-1},  μ_l = Σ_l (α_l/σ_l² · Hᵀ x_l + ᾱ_{l-1}/σ̃_{l-1}² · f).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from udpm.diffusion.forward import adjoint, project
from udpm.diffusion.schedule import Form, Schedule, coefficients


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


def posterior(schedule: Schedule, state: torch.Tensor, output: torch.Tensor, level: int, form: Form) -> Posterior:
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
    pull = numbers.state * adjoint(state, schedule.scale) + numbers.output * output
    if form == "scalar":
        return Posterior(blocks * pull, blocks, rest)
    return Posterior(rest * pull + (blocks - rest) * project(pull), blocks, rest)
