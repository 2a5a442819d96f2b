"""The losses of the discriminator's and the generator's step, each at one level.

The losses draw no random numbers: noise is part of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from udpm.config.experiment import RunConfig
from udpm.diffusion.schedule import Schedule
from udpm.networks.layers import NO_LABEL
from udpm.training.adversarial import gradient_penalty, gradient_share, separation
from udpm.training.augmentation import move_state, transform
from udpm.training.batch import TrainingBatch
from udpm.training.perceptual import Perceptual

Network = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class LossWeights:
    """Weights and settings of the losses at one level.

    Attributes:
        reconstruction: λ1.
        lpips: λp; 0 leaves LPIPS out.
        adversarial: λa.
        energy: λe.
        r1: γ of the penalty on real images.
        r2: γ of the penalty on generated images.
        noise: standard deviation of the instance noise, added to the discriminator's input.
        scale: factor of an image before noise is added.
        dropout: of the discriminator.
        divisor: of output and target before every loss (s^{l-1}, or 1).
        squared: squared error instead of absolute.
        energy_exponent: β of the energy score.
        energy_patch: side of its patches; 0 for whole images.
        relativistic: compare D's outputs on an image and its target.
        sees_state: D sees x_l, too.
        discriminator_size: side to which the discriminator's input is enlarged; 0 keeps its side.
        noise_decay: factor of `noise` every 1000 iterations.
        r1_decay: factor of `r1` and `r2` every 1000 iterations.
        adversarial_start: first iteration with λa; 0 before.
        r1_every: apply R1 and R2 in every n-th discriminator step, with n·γ.
        discriminator_every: iterations from one discriminator step to the next.
    """

    reconstruction: float
    lpips: float
    adversarial: float
    r1: float
    noise: float
    scale: float
    dropout: float
    divisor: float
    squared: bool
    energy: float = 0.0
    energy_exponent: float = 1.0
    energy_patch: int = 0
    r2: float = 0.0
    relativistic: bool = False
    sees_state: bool = False
    discriminator_size: int = 0
    noise_decay: float = 1.0
    r1_decay: float = 1.0
    adversarial_start: int = 0
    r1_every: int = 1
    discriminator_every: int = 1

    @property
    def penalised(self) -> bool:
        """True if a discriminator step differentiates D's gradient: R1 or R2."""
        return self.r1 > 0 or self.r2 > 0

    def at(self, iteration: int) -> LossWeights:
        """Return the weights in force at an iteration, counted from 0: decay goes in steps of 1000."""
        thousands = iteration // 1000
        lazy = 0 if iteration // self.discriminator_every % self.r1_every else self.r1_every
        return replace(
            self,
            noise=self.noise * self.noise_decay**thousands,
            r1=lazy * self.r1 * self.r1_decay**thousands,
            r2=lazy * self.r2 * self.r1_decay**thousands,
            adversarial=self.adversarial if iteration >= self.adversarial_start else 0.0,
        )


def loss_weights(config: RunConfig) -> list[LossWeights]:
    """Return the weights of each level before any decay, l = 1 first."""
    losses = config.losses
    schedule = Schedule.from_config(config.process)
    keys = ("reconstruction_weight", "energy_weight", "lpips_weight", "adversarial_weight")
    by_level = {key.rpartition("_")[0]: config.per_level(f"losses.{key}") for key in (*keys, "r1_gamma", "r2_gamma")}
    by_level["dropout"] = config.per_level("discriminator.dropout") if config.discriminator else [0.0] * schedule.levels
    return [
        LossWeights(
            **{name: values[level - 1] for name, values in by_level.items()},
            divisor=_divisor(config, schedule, level),
            squared=losses.reconstruction == "l2",
            energy_exponent=losses.energy_exponent,
            energy_patch=losses.energy_patch,
            relativistic=losses.adversarial == "relativistic",
            sees_state=config.discriminator is not None and config.discriminator.sees_state,
            discriminator_size=config.dataset.side if losses.upsample_discriminator_input else 0,
            r1_decay=losses.r1_decay_per_1000,
            adversarial_start=losses.adversarial_start,
            r1_every=losses.r1_every,
            discriminator_every=1 if config.training == "imported" else config.training.discriminator_every,
            **_instance_noise(config, schedule, level),
        )
        for level in range(1, schedule.levels + 1)
    ]


def _divisor(config: RunConfig, schedule: Schedule, level: int) -> float:
    return float(schedule.scale ** (level - 1)) if config.losses.normalize else 1.0


def _instance_noise(config: RunConfig, schedule: Schedule, level: int) -> dict[str, float]:
    """Return scale and standard deviation of scale·v + noise·ε for an image v after division."""
    section = config.losses.discriminator_noise
    if section.kind == "noisy":
        std = config.per_level("losses.discriminator_noise.std")[level - 1]
        return {"scale": 1.0, "noise": std, "noise_decay": section.decay_per_1000}
    if section.kind == "diffusion":
        # The marginal of level l-1, (ᾱ·divisor·v + σ̃ ε)/divisor; at l = 1 nothing is added.
        std = schedule.sigma_tilde(level - 1) / _divisor(config, schedule, level)
        return {"scale": schedule.alpha_bar(level - 1), "noise": std}
    return {"scale": 1.0, "noise": 0.0}


def predict(generator: Network, schedule: Schedule, batch: TrainingBatch, state: torch.Tensor) -> torch.Tensor:
    """Return m draws of f([x_l, z_l], t_l, y), (m·B, 3, 2h, 2w), all images' first draw first; m is 1 but for the
    energy score."""
    labels = batch.labels
    if labels is not None and batch.dropped_labels is not None:
        labels = labels.masked_fill(batch.dropped_labels, NO_LABEL)
    inputs = batch.inputs(schedule, state)
    if labels is not None and len(inputs) > len(labels):
        labels = labels.repeat(len(inputs) // len(labels))
    return generator(inputs, schedule.time(batch.level), labels)


def discriminator_losses(
    generator: Network, discriminator: Network, schedule: Schedule, weights: LossWeights, batch: TrainingBatch
) -> dict[str, torch.Tensor]:
    """Compute ½ softplus(D(fake + n)) + ½ softplus(-D(real + n')) + (γ/2)·mean ‖∇ ΣD(real + n')‖².

    The relativistic loss is softplus(D(fake + n) - D(real + n')), of an output and its own target. R2 is the penalty at
    fake + n. The generator must be in eval mode, the discriminator in train mode.

    Returns:
        Scalars: "total" to minimize; for the record "loss" (without penalties), D's mean outputs "real" and "fake",
        "auc" (see `separation`), and "r1" and "r2" (unweighted, if γ > 0).
    """
    state = batch.state(schedule)
    with torch.no_grad():
        fake = predict(generator, schedule, batch, state).float() / weights.divisor
    real = batch.target / weights.divisor
    fakes = show(weights, batch, state, fake, "fake", penalised=weights.r2 > 0)
    reals = show(weights, batch, state, real, "real", penalised=weights.r1 > 0)
    on_fake, on_real = (
        discriminator(shown.image, schedule.time(batch.level), batch.labels, weights.dropout, shown.state).float()
        for shown in (fakes, reals)
    )
    if weights.relativistic:
        loss = F.softplus(on_fake - on_real).mean()
    else:
        loss = 0.5 * (F.softplus(on_fake).mean() + F.softplus(-on_real).mean())
    seen = on_real.detach(), on_fake.detach()
    auc = separation(*seen, paired=weights.relativistic)
    stats = {"loss": loss.detach(), "real": seen[0].mean(), "fake": seen[1].mean(), "auc": auc}
    for name, weight, logits, shown in (("r1", weights.r1, on_real, reals), ("r2", weights.r2, on_fake, fakes)):
        if weight > 0:
            penalty = gradient_penalty(logits, shown.before)
            stats[name] = penalty.detach()
            loss = loss + weight / 2 * penalty
    return {"total": loss, **stats}


def generator_losses(
    generator: Network,
    discriminator: Network | None,
    perceptual: Perceptual | None,
    schedule: Schedule,
    weights: LossWeights,
    batch: TrainingBatch,
) -> dict[str, torch.Tensor]:
    """Compute λ1·error(out, target) + λe·energy score + λp·LPIPS(out, target) + λa·softplus(-D(out + n)).

    The relativistic adversarial loss is softplus(D(target + n') - D(out + n)), whose gradient is the output's alone.
    With several draws of the output, the error is the mean over all of them; LPIPS and D see the first.
    The generator must be in train mode; the discriminator in eval mode, its weights not requiring gradients.

    Returns:
        Scalars: "total" to minimize; for the record, unweighted, "reconstruction" and, with weights above 0, "energy"
        with "spread" (see `energy_score`), "lpips", and "adversarial" with "adversarial_share"
        (`gradient_share`).
    """
    state = batch.state(schedule)
    output = predict(generator, schedule, batch, state).float() / weights.divisor
    target = batch.target / weights.divisor
    draws = len(output) // len(target)
    targets = target if draws == 1 else target.repeat(draws, 1, 1, 1)
    reconstruction = F.mse_loss(output, targets) if weights.squared else F.l1_loss(output, targets)
    stats = {"reconstruction": reconstruction.detach()}
    total = weights.reconstruction * reconstruction
    if weights.energy > 0:
        score, spread = energy_score(
            output.unflatten(0, (draws, -1)), target, weights.energy_exponent, weights.energy_patch
        )
        stats |= {"energy": score.detach(), "spread": spread.detach()}
        total = total + weights.energy * score
    first = output[: len(target)]
    if weights.lpips > 0:
        assert perceptual is not None
        distance = perceptual(first, target).mean()
        stats["lpips"] = distance.detach()
        total = total + weights.lpips * distance
    if weights.adversarial > 0:
        assert discriminator is not None
        branch = first.view_as(first)
        stats["adversarial_share"] = gradient_share(output, branch)
        adversarial = _adversarial(discriminator, schedule, weights, batch, state, branch, target)
        stats["adversarial"] = adversarial.detach()
        total = total + weights.adversarial * adversarial
    return {"total": total, **stats}


def _adversarial(
    discriminator: Network,
    schedule: Schedule,
    weights: LossWeights,
    batch: TrainingBatch,
    state: torch.Tensor,
    output: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """Return the unweighted adversarial loss of the generator."""

    def judge(shown: Shown) -> torch.Tensor:
        return discriminator(shown.image, schedule.time(batch.level), batch.labels, 0.0, shown.state).float()

    logits = judge(show(weights, batch, state, output, "fake"))
    if weights.relativistic:
        with torch.no_grad():
            on_real = judge(show(weights, batch, state, target, "real"))
        logits = logits - on_real
    return F.softplus(-logits).mean()


SMOOTHING = 1e-5
"""c of the energy score's distances: small compared to a grey level, 8e-3, and large enough for float32."""


def energy_score(
    draws: torch.Tensor, target: torch.Tensor, exponent: float = 1.0, patch: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute mean_i d(f_i, v) - ½ mean_{i≠j} d(f_i, f_j) with d(a, b) = (‖a - b‖² + c²)^{β/2}, averaged over images.

    ‖·‖ is the root mean square over an image, or over each patch of it, then averaged over patches. With the distances
    of whole images, the law of draws that minimizes the expected score is the target's own given what the draws share
    (Gneiting & Raftery 2007: the score is strictly proper for 0 < β < 2; c > 0 keeps d of negative type, and its
    gradient finite where draws coincide). The mean over pairs i ≠ j makes the estimate unbiased for every m.

    Args:
        draws: f_1 … f_m, (m, B, 3, H, W) float32, m ≥ 2.
        target: v, (B, 3, H, W) float32.
        exponent: β in (0, 2).
        patch: side of the patches, which divides H and W; 0 for whole images.

    Returns:
        The score, and the mean distance between draws over that from the target: 0 where a latent has no effect, 1
        where draws differ from each other as much as from the target.
    """

    def distance(difference: torch.Tensor) -> torch.Tensor:
        squared = difference.square()
        if patch:
            squares = F.avg_pool2d(squared.flatten(0, -4).mean(1, keepdim=True), patch)
        else:
            squares = squared.mean(dim=(-3, -2, -1))
        return (squares + SMOOTHING**2).pow(exponent / 2)

    error = distance(draws - target).mean()
    pairs = [distance(draws[later:] - draws[later - 1]) for later in range(1, len(draws))]
    apart = torch.cat([pair.flatten() for pair in pairs]).mean()
    return error - apart / 2, apart / error


@dataclass(frozen=True)
class Shown:
    """Inputs of the discriminator.

    Attributes:
        before: images that R1 or R2 differentiates by, before T; with their noise unless T comes between.
        image: images as it sees them.
        state: x_l as it sees it.
    """

    before: torch.Tensor
    image: torch.Tensor
    state: torch.Tensor


def show(
    weights: LossWeights,
    batch: TrainingBatch,
    state: torch.Tensor,
    image: torch.Tensor,
    whose: str,
    *,
    penalised: bool = False,
) -> Shown:
    """Return what the discriminator sees of images v: scale·T(v) + noise, enlarged.

    Args:
        weights: at the batch's level.
        batch: with the noise and the parameters of T.
        state: x_l that the images were made from, which T moves, too.
        image: v, divided by the divisor.
        whose: "fake" or "real".
        penalised: whether R1 or R2 differentiates by the images.
    """
    noise, parameters = getattr(batch, f"{whose}_noise"), getattr(batch, f"{whose}_transform")
    before = add_instance_noise(image, weights, noise if parameters is None else None)
    if penalised:
        before.requires_grad_()
    seen = before
    if parameters is not None:
        seen = add_instance_noise(transform(before / weights.scale, parameters), weights, noise)
        state = move_state(state, image, parameters) if weights.sees_state else state
    return Shown(before, upsample_for_discriminator(seen, weights), state)


def add_instance_noise(image: torch.Tensor, weights: LossWeights, noise: torch.Tensor | None) -> torch.Tensor:
    """Return scale·image + noise; the noise is already scaled."""
    if weights.scale != 1:
        image = weights.scale * image
    return image if noise is None else image + noise


def upsample_for_discriminator(image: torch.Tensor, weights: LossWeights) -> torch.Tensor:
    """Enlarge an image bilinearly if the discriminator takes all levels at full side."""
    size = weights.discriminator_size
    if not size or image.shape[-1] == size:
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
