"""The diffusion process in both directions: H, one step, marginals, posterior; the sampling chain and its latents.

Σ_l = (α_l²/σ_l² · HᵀH + I/σ̃_{l-1}²)^{-1},  μ_l = Σ_l (α_l/σ_l² · Hᵀ x_l + ᾱ_{l-1}/σ̃_{l-1}² · f).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from udpm.core.arrays import derive_seed
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


Network = Callable[[torch.Tensor, float, torch.Tensor | None], torch.Tensor]
"""f(x_l, t_l, labels): (B, 3, h, w) to (B, 3, 2h, 2w), an estimate of H^{l-1} x_0."""


class SamplingStep(NamedTuple):
    """One step of the chain: the network's input x_l and its output f."""

    level: int
    state: torch.Tensor
    output: torch.Tensor


def noise_sides(schedule: Schedule, side: int) -> list[int]:
    """Return the sides of the noise maps ε_L, …, ε_1 (coarsest first) of an image of side `side`."""
    return [side >> level for level in range(schedule.levels, 0, -1)]


def sample(
    schedule: Schedule,
    network: Network,
    base: torch.Tensor,
    noises: Sequence[torch.Tensor],
    labels: torch.Tensor | None = None,
    form: PosteriorForm = "scalar",
    inputs: Sequence[torch.Tensor] = (),
) -> list[SamplingStep]:
    """Run the chain: x_L = ᾱ_L H^L z + σ̃_L ε_L; x_{l-1} = μ_l + Σ_l^{1/2} ε_{l-1}; x_0 = f(x_1, t_1).

    A network that takes a latent is called with [x_l, z_l].

    Args:
        schedule: α, σ and s.
        network: f.
        base: z, a white image, (B, 3, N, N).
        noises: ε_L, …, ε_1 (coarsest first), (B, 3, N/2^l, N/2^l).
        labels: (B,) int64, or None.
        form: form of the posterior.
        inputs: z_L, …, z_1 (coarsest first), (B, k, N/2^l, N/2^l); none for a network without.

    Returns:
        The L steps, coarsest first; the output of the last is the image, in about [-1, 1].
    """
    state = marginal(schedule, downsample(base, schedule.scale, schedule.levels), schedule.levels, noises[0])
    return sample_from(schedule, network, state, noises[1:], labels, form, inputs)


def sample_from(
    schedule: Schedule,
    network: Network,
    state: torch.Tensor,
    noises: Sequence[torch.Tensor],
    labels: torch.Tensor | None = None,
    form: PosteriorForm = "scalar",
    inputs: Sequence[torch.Tensor] = (),
) -> list[SamplingStep]:
    """Run the last l steps of the chain, from x_l on; the other arguments and the result are those of `sample`.

    Args:
        state: x_l, (B, 3, N/2^l, N/2^l).
        noises: ε_{l-1}, …, ε_1.
        inputs: z_l, …, z_1; none for a network without.
    """
    steps: list[SamplingStep] = []
    for index, (level, noise) in enumerate(zip(range(len(noises) + 1, 0, -1), [*noises, None], strict=True)):
        seen = torch.cat([state, inputs[index]], dim=1) if inputs else state
        output = network(seen, schedule.time(level), labels)
        steps.append(SamplingStep(level, state, output))
        if noise is not None:
            state = posterior(schedule, state, output, level, form).draw(noise)
    return steps


class Latent(NamedTuple):
    """All random numbers of the sampling chain for a batch of images; with weights and label they determine the image.

    Attributes:
        base: z, a white image, (B, 3, N, N).
        noises: ε_L, …, ε_1 (coarsest first), (B, 3, N/2^l, N/2^l).
        inputs: z_L, …, z_1 (coarsest first), (B, k, N/2^l, N/2^l); none for a network that takes no latent.
    """

    base: torch.Tensor
    noises: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor, ...] = ()

    def noise(self, level: int) -> torch.Tensor:
        """Return ε_l."""
        return self.noises[len(self.noises) - level]

    def replaced(self, level: int, noise: torch.Tensor) -> Latent:
        """Replace ε_l and keep z and all other maps."""
        index = len(self.noises) - level
        return self._replace(noises=(*self.noises[:index], noise, *self.noises[index + 1 :]))

    def input(self, level: int) -> torch.Tensor:
        """Return z_l."""
        return self.inputs[len(self.inputs) - level]

    def replaced_input(self, level: int, value: torch.Tensor) -> Latent:
        """Replace z_l and keep all other maps."""
        index = len(self.inputs) - level
        return self._replace(inputs=(*self.inputs[:index], value, *self.inputs[index + 1 :]))

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Latent:
        """Apply a function to every map."""
        return Latent(function(self.base), tuple(map(function, self.noises)), tuple(map(function, self.inputs)))


def latent_shapes(schedule: Schedule, side: int, channels: int = 0) -> list[tuple[int, int, int]]:
    """Return the shapes of an image's z, ε_L, …, ε_1 and, with `channels` > 0, z_L, …, z_1."""
    sides = noise_sides(schedule, side)
    shapes = [(3, size, size) for size in (side, *sides)]
    return shapes + [(channels, size, size) for size in sides] if channels else shapes


def seeded(schedule: Schedule, side: int, seed: int, numbers: Sequence[int], channels: int = 0) -> Latent:
    """Draw the latents of numbered images, each a function of only (seed, number), on the CPU.

    z_l is drawn last, so base and noises are the same with and without.

    Args:
        schedule: used for the number of levels.
        side: N.
        seed: seed of the sample set.
        numbers: numbers of the images.
        channels: k of the z_l.
    """
    shapes = latent_shapes(schedule, side, channels)
    maps: list[list[torch.Tensor]] = [[] for _ in shapes]
    for number in numbers:
        generator = torch.Generator().manual_seed(derive_seed(seed, "image", number))
        for drawn, shape in zip(maps, shapes, strict=True):
            drawn.append(torch.randn(shape, generator=generator))
    return latent_of([torch.stack(drawn) for drawn in maps], schedule.levels)


def latent_of(maps: Sequence[torch.Tensor], levels: int) -> Latent:
    """Return the latent of maps z, ε_L, …, ε_1 and perhaps z_L, …, z_1, in this order."""
    base, *others = maps
    return Latent(base, tuple(others[:levels]), tuple(others[levels:]))


def _maps(latents: Sequence[Latent]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same map of several latents, one map after the other."""
    return zip(*((latent.base, *latent.noises, *latent.inputs) for latent in latents), strict=True)


def join(latents: Sequence[Latent]) -> Latent:
    """Concatenate several batches."""
    return latent_of([torch.cat(parts) for parts in _maps(latents)], len(latents[0].noises))


def mix(first: torch.Tensor, second: torch.Tensor, keep: float) -> torch.Tensor:
    """Compute mix(a, b, g) = g·a + √(1-g²)·b, which has unit variance if a and b are independent and have it.

    Args:
        first: a.
        second: b, same shape.
        keep: g in [0, 1]: 1 gives a, 0 gives b.
    """
    return keep * first + math.sqrt(1 - keep**2) * second


def interpolate(corners: Sequence[Latent], across: float, down: float) -> Latent:
    """Mix every map of four latents, ε(δ, η) = mix(mix(ε¹, ε², δ), mix(ε³, ε⁴, δ), η), and z, so corners are exact.

    Args:
        corners: four latents; (δ, η) = (1, 1), (0, 1), (1, 0), (0, 0) give the first to the fourth.
        across: δ in [0, 1].
        down: η in [0, 1].
    """
    mixed = [
        mix(mix(first, second, across), mix(third, fourth, across), down)
        for first, second, third, fourth in _maps(corners)
    ]
    return latent_of(mixed, len(corners[0].noises))
