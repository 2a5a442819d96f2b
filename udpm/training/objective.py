"""The losses of one iteration: a discriminator step, then a generator step, each at a level of its own.

No I/O and no random draws: noise comes in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from udpm.config.experiment import RunConfig
from udpm.process.forward import marginal
from udpm.process.operator import downsample
from udpm.process.schedule import Schedule

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LevelTerms:
    """What weighs how much at one level.

    Attributes:
        reconstruction: λ1.
        lpips: λp; LPIPS is not called where it is 0.
        adversarial: λa.
        r1: γ.
        noise: standard deviation of the noise on what the discriminator sees, before any decay.
        dropout: the discriminator's.
        divisor: what output and target are divided by before every loss (s^{l-1}, or 1).
        squared: squared error instead of absolute.
    """

    reconstruction: float
    lpips: float
    adversarial: float
    r1: float
    noise: float
    dropout: float
    divisor: float
    squared: bool


def level_terms(config: RunConfig) -> list[LevelTerms]:
    """The terms of each level, l = 1 first."""
    losses = config.losses
    scale = Schedule.from_config(config.process).scale if losses.normalize else 1
    noisy = losses.discriminator_noise.kind == "noisy"
    dropout = config.per_level("discriminator.dropout") if config.discriminator else [0.0] * config.process.levels
    columns = zip(
        config.per_level("losses.reconstruction_weight"),
        config.per_level("losses.lpips_weight"),
        config.per_level("losses.adversarial_weight"),
        config.per_level("losses.r1_gamma"),
        config.per_level("losses.discriminator_noise.std"),
        dropout,
        strict=True,
    )
    return [
        LevelTerms(
            reconstruction=reconstruction,
            lpips=lpips,
            adversarial=adversarial,
            r1=r1,
            noise=std if noisy else 0.0,
            dropout=drop,
            divisor=float(scale**index),
            squared=losses.reconstruction == "l2",
        )
        for index, (reconstruction, lpips, adversarial, r1, std, drop) in enumerate(columns)
    ]


@dataclass(frozen=True)
class Draw:
    """One batch at one level, with its noise.

    Attributes:
        level: l.
        target: H^{l-1} x_0, (B, 3, 2h, 2w).
        labels: (B,) int64, or None for unlabelled data.
        noise: ε of x_l, (B, 3, h, w).
        on_fake: what is added to generated images before the discriminator sees them, (B, 3, 2h, 2w), or None.
        on_real: the same for real images; only the discriminator's step uses it.
    """

    level: int
    target: torch.Tensor
    labels: torch.Tensor | None
    noise: torch.Tensor
    on_fake: torch.Tensor | None = None
    on_real: torch.Tensor | None = None


def predict(generator: nn.Module, schedule: Schedule, draw: Draw) -> torch.Tensor:
    """f(x_l, t_l, y) for x_l drawn from q(x_l | x_0); needs only the target, whose H is H^l x_0."""
    state = marginal(schedule, downsample(draw.target, schedule.scale), draw.level, draw.noise)
    return generator(state, schedule.time(draw.level), draw.labels)


def discriminator_losses(
    generator: nn.Module, discriminator: nn.Module, schedule: Schedule, terms: LevelTerms, draw: Draw
) -> dict[str, torch.Tensor]:
    """½ softplus(D(fake + n)) + ½ softplus(-D(real + n')) + (γ/2)·mean ‖∇ ΣD(real + n')‖².

    The generator must be in eval mode, the discriminator in train mode.

    Returns:
        Scalars: "total" to minimise; "loss" (without R1), and "r1" (unweighted, where γ > 0), for the record.
    """
    with torch.no_grad():
        fake = predict(generator, schedule, draw).float() / terms.divisor
    real = _plus(draw.target / terms.divisor, draw.on_real).requires_grad_(terms.r1 > 0)
    time = schedule.time(draw.level)
    on_fake = discriminator(_plus(fake, draw.on_fake), time, draw.labels, terms.dropout).float()
    on_real = discriminator(real, time, draw.labels, terms.dropout).float()
    loss = 0.5 * (F.softplus(on_fake).mean() + F.softplus(-on_real).mean())
    if terms.r1 == 0:
        return {"total": loss, "loss": loss.detach()}
    (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
    r1 = gradient.float().square().sum(dim=(1, 2, 3)).mean()
    return {"total": loss + terms.r1 / 2 * r1, "loss": loss.detach(), "r1": r1.detach()}


def generator_losses(
    generator: nn.Module,
    discriminator: nn.Module | None,
    perceptual: Perceptual | None,
    schedule: Schedule,
    terms: LevelTerms,
    draw: Draw,
) -> dict[str, torch.Tensor]:
    """λ1·error(out, target) + λp·LPIPS(out, target) + λa·softplus(-D(out + n)).

    The generator must be in train mode; the discriminator in eval mode, its weights not requiring gradients.

    Returns:
        Scalars: "total" to minimise; "reconstruction", "lpips", "adversarial" (unweighted, where their weight is
        above 0; "reconstruction" always), for the record.
    """
    output = predict(generator, schedule, draw).float() / terms.divisor
    target = draw.target / terms.divisor
    reconstruction = F.mse_loss(output, target) if terms.squared else F.l1_loss(output, target)
    losses = {"reconstruction": reconstruction.detach()}
    total = terms.reconstruction * reconstruction
    if terms.lpips > 0:
        distance = perceptual(output, target).mean()
        losses["lpips"] = distance.detach()
        total = total + terms.lpips * distance
    if terms.adversarial > 0:
        logits = discriminator(_plus(output, draw.on_fake), schedule.time(draw.level), draw.labels).float()
        adversarial = F.softplus(-logits).mean()
        losses["adversarial"] = adversarial.detach()
        total = total + terms.adversarial * adversarial
    return {"total": total, **losses}


def _plus(image: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    return image if noise is None else image + noise
