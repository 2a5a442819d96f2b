"""The losses of one iteration: a discriminator step, then a generator step, each at a level of its own.

No I/O and no random draws: noise comes in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn

from udpm.config.experiment import RunConfig
from udpm.diffusion.forward import downsample, marginal
from udpm.diffusion.schedule import Schedule
from udpm.networks.layers import NO_LABEL, without_autocast

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LevelTerms:
    """What weighs how much at one level.

    Attributes:
        reconstruction: λ1.
        lpips: λp; LPIPS is not called where it is 0.
        adversarial: λa.
        r1: γ.
        noise: standard deviation of the noise on what the discriminator sees.
        gain: factor on an image before that noise is added.
        dropout: the discriminator's.
        divisor: what output and target are divided by before every loss (s^{l-1}, or 1).
        squared: squared error instead of absolute.
        shown_side: side to which the discriminator's input is enlarged; 0 leaves it as it is.
        noise_decay: factor on `noise` every 1000 iterations.
        r1_decay: factor on `r1` every 1000 iterations.
        adversarial_start: iteration before which λa counts as 0.
        r1_every: R1 applies in one of so many discriminator steps, with so many times γ.
        plays_every: iterations from one discriminator step to the next.
    """

    reconstruction: float
    lpips: float
    adversarial: float
    r1: float
    noise: float
    gain: float
    dropout: float
    divisor: float
    squared: bool
    shown_side: int = 0
    noise_decay: float = 1.0
    r1_decay: float = 1.0
    adversarial_start: int = 0
    r1_every: int = 1
    plays_every: int = 1

    def at(self, iteration: int) -> LevelTerms:
        """The terms in force at an iteration, counted from 0: decay goes in steps of 1000."""
        thousands = iteration // 1000
        lazy = 0 if iteration // self.plays_every % self.r1_every else self.r1_every
        return replace(
            self,
            noise=self.noise * self.noise_decay**thousands,
            r1=lazy * self.r1 * self.r1_decay**thousands,
            adversarial=self.adversarial if iteration >= self.adversarial_start else 0.0,
        )


def level_terms(config: RunConfig) -> list[LevelTerms]:
    """The terms of each level before any decay, l = 1 first."""
    losses = config.losses
    schedule = Schedule.from_config(config.process)
    dropout = config.per_level("discriminator.dropout") if config.discriminator else [0.0] * schedule.levels
    columns = zip(
        config.per_level("losses.reconstruction_weight"),
        config.per_level("losses.lpips_weight"),
        config.per_level("losses.adversarial_weight"),
        config.per_level("losses.r1_gamma"),
        dropout,
        strict=True,
    )
    return [
        LevelTerms(
            reconstruction=reconstruction,
            lpips=lpips,
            adversarial=adversarial,
            r1=r1,
            dropout=drop,
            divisor=_divisor(config, schedule, level),
            squared=losses.reconstruction == "l2",
            shown_side=config.dataset.side if losses.upsample_discriminator_input else 0,
            r1_decay=losses.r1_decay_per_1000,
            adversarial_start=losses.adversarial_start,
            r1_every=losses.r1_every,
            plays_every=1 if config.training == "imported" else config.training.discriminator_every,
            **_veil(config, schedule, level),
        )
        for level, (reconstruction, lpips, adversarial, r1, drop) in enumerate(columns, start=1)
    ]


def _divisor(config: RunConfig, schedule: Schedule, level: int) -> float:
    return float(schedule.scale ** (level - 1)) if config.losses.normalize else 1.0


def _veil(config: RunConfig, schedule: Schedule, level: int) -> dict[str, float]:
    """Gain and noise on what the discriminator sees, gain·v + noise·ε for a divided image v."""
    section = config.losses.discriminator_noise
    if section.kind == "noisy":
        std = config.per_level("losses.discriminator_noise.std")[level - 1]
        return {"gain": 1.0, "noise": std, "noise_decay": section.decay_per_1000}
    if section.kind == "diffusion":
        # The marginal of level l-1, (ᾱ·divisor·v + σ̃ ε)/divisor; at l = 1 nothing is added.
        std = schedule.sigma_tilde(level - 1) / _divisor(config, schedule, level)
        return {"gain": schedule.alpha_bar(level - 1), "noise": std}
    return {"gain": 1.0, "noise": 0.0}


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
        hidden: (B,) bool, images whose label the generator does not get to see, or None.
    """

    level: int
    target: torch.Tensor
    labels: torch.Tensor | None
    noise: torch.Tensor
    on_fake: torch.Tensor | None = None
    on_real: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    def chunks(self, count: int) -> list[Draw]:
        """This draw cut into so many equal draws."""
        if count == 1:
            return [self]
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "level"}
        cut = {name: value.chunk(count) for name, value in tensors.items() if value is not None}
        return [Draw(self.level, **{name: values[index] for name, values in cut.items()}) for index in range(count)]


def corrupt(schedule: Schedule, draw: Draw) -> torch.Tensor:
    """x_l drawn from q(x_l | x_0); needs only the target, whose H is H^l x_0."""
    return marginal(schedule, downsample(draw.target, schedule.scale), draw.level, draw.noise)


def predict(generator: nn.Module, schedule: Schedule, draw: Draw, state: torch.Tensor) -> torch.Tensor:
    """f(x_l, t_l, y)."""
    labels = draw.labels if draw.hidden is None else draw.labels.masked_fill(draw.hidden, NO_LABEL)
    return generator(state, schedule.time(draw.level), labels)


def discriminator_losses(
    generator: nn.Module, discriminator: nn.Module, schedule: Schedule, terms: LevelTerms, draw: Draw
) -> dict[str, torch.Tensor]:
    """½ softplus(D(fake + n)) + ½ softplus(-D(real + n')) + (γ/2)·mean ‖∇ ΣD(real + n')‖².

    The generator must be in eval mode, the discriminator in train mode.

    Returns:
        Scalars: "total" to minimise; for the record "loss" (without R1), "r1" (unweighted, where γ > 0), and "real" and
        "fake", D's mean outputs on either.
    """
    state = corrupt(schedule, draw)
    with torch.no_grad():
        fake = predict(generator, schedule, draw, state).float() / terms.divisor
    real = _veiled(draw.target / terms.divisor, terms, draw.on_real).requires_grad_(terms.r1 > 0)
    time = schedule.time(draw.level)
    seen = _veiled(fake, terms, draw.on_fake)
    on_fake = discriminator(_shown(seen, terms), time, draw.labels, terms.dropout, state).float()
    on_real = discriminator(_shown(real, terms), time, draw.labels, terms.dropout, state).float()
    loss = 0.5 * (F.softplus(on_fake).mean() + F.softplus(-on_real).mean())
    told = {"loss": loss.detach(), "real": on_real.detach().mean(), "fake": on_fake.detach().mean()}
    if terms.r1 == 0:
        return {"total": loss, **told}
    # Each operation's gradient in the type that the operation had; autocast would choose another for some of them.
    with without_autocast(real.device):
        (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
    r1 = gradient.float().square().sum(dim=(1, 2, 3)).mean()
    return {"total": loss + terms.r1 / 2 * r1, **told, "r1": r1.detach()}


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
    state = corrupt(schedule, draw)
    output = predict(generator, schedule, draw, state).float() / terms.divisor
    target = draw.target / terms.divisor
    reconstruction = F.mse_loss(output, target) if terms.squared else F.l1_loss(output, target)
    losses = {"reconstruction": reconstruction.detach()}
    total = terms.reconstruction * reconstruction
    if terms.lpips > 0:
        distance = perceptual(output, target).mean()
        losses["lpips"] = distance.detach()
        total = total + terms.lpips * distance
    if terms.adversarial > 0:
        seen = _shown(_veiled(output, terms, draw.on_fake), terms)
        logits = discriminator(seen, schedule.time(draw.level), draw.labels, 0.0, state).float()
        adversarial = F.softplus(-logits).mean()
        losses["adversarial"] = adversarial.detach()
        total = total + terms.adversarial * adversarial
    return {"total": total, **losses}


def _veiled(image: torch.Tensor, terms: LevelTerms, noise: torch.Tensor | None) -> torch.Tensor:
    if terms.gain != 1:
        image = terms.gain * image
    return image if noise is None else image + noise


def _shown(image: torch.Tensor, terms: LevelTerms) -> torch.Tensor:
    if not terms.shown_side or image.shape[-1] == terms.shown_side:
        return image
    return F.interpolate(image, size=(terms.shown_side, terms.shown_side), mode="bilinear", align_corners=False)
