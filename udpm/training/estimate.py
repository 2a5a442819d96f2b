"""Resources of a run: memory of its state, disk, arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

from udpm.config.experiment import RunConfig
from udpm.diffusion.schedule import Schedule
from udpm.networks.discriminator import build_discriminator
from udpm.networks.inference import count_parameters, counted_flops
from udpm.networks.unet import IMAGE_CHANNELS, build_generator
from udpm.training.augmentation import parameter_count
from udpm.training.batch import TrainingBatch, discriminator_is_due, draw_counts, level_shares
from udpm.training.losses import LossWeights, discriminator_losses, generator_losses, loss_weights
from udpm.training.perceptual import Perceptual

GB, MB = 1e9, 1e6
WARN_ABOVE_BYTES = 1e9
"""Bytes of milestones above which training announces them."""
FLOAT = 4
"""Bytes of a parameter, always float32."""
GRADIENTS = 3
"""Passes over a player's gradients: written once, read for their norm and by Adam."""
ADAM = 6
"""Passes over a player's values: weights and two moments, read and written."""
AVERAGE = 3
"""Passes over the generator's values for each average: weights read, the average read and written."""


@dataclass(frozen=True)
class ResourceEstimate:
    """Sizes in bytes, of tensors alone: a file's metadata add some kilobytes.

    Attributes:
        parameters: number of trainable values, by player.
        checkpoint, milestone: size of one.
        milestones: their number at the end.
        snapshot, snapshots: size of one, for `udpm average`, and their number at the end.
        final: size of the weights at the end.
    """

    parameters: dict[str, int]
    weights: int
    gradients: int
    moments: int
    averages: int
    checkpoint: int
    milestone: int
    milestones: int
    snapshot: int
    snapshots: int
    final: int

    @property
    def state(self) -> int:
        """Memory of the state on each device."""
        return self.weights + self.gradients + self.moments + self.averages


def estimate_resources(config: RunConfig, iterations: int) -> ResourceEstimate:
    """Estimate the resources of a run of `iterations` iterations."""
    networks = _networks(config)
    kept, powers = len(config.training.averages), len(config.training.power_averages)
    averages = kept + powers
    generator = tensor_bytes(networks["generator"].state_dict().values())
    weights = sum(tensor_bytes(network.state_dict().values()) for network in networks.values())
    gradients = sum(tensor_bytes(network.parameters()) for network in networks.values())
    # Adam counts its steps in a float32 for each parameter, an average in an int64.
    counters = 4 * sum(len(list(network.parameters())) for network in networks.values()) + 8 * averages
    every = config.training.keep_every
    return ResourceEstimate(
        parameters={name: count_parameters(network) for name, network in networks.items()},
        weights=weights,
        gradients=gradients,
        moments=2 * gradients,
        averages=averages * generator,
        checkpoint=weights + 2 * gradients + averages * generator + counters,
        milestone=max(kept, 1) * generator,
        milestones=iterations // every if every else 0,
        snapshot=powers * generator,
        snapshots=-(-iterations // every) if powers else 0,
        final=(kept + 1) * generator,
    )


def milestone_warning(estimate: ResourceEstimate, done: int, every: int, run: Path) -> str | None:
    """Return one line on the disk space of the milestones after `done` iterations, one every `every`, with snapshots;
    None if it is small. The run's folder must exist."""
    ahead, size = estimate.milestones - (done // every if every else 0), estimate.milestone + estimate.snapshot
    if ahead * size <= WARN_ABOVE_BYTES:
        return None
    what, none = ("milestones and snapshots", "") if estimate.snapshot else ("milestones", "; 0 keeps none")
    text = f"{what} will take {format_total(ahead, size)} (training.keep_every: {every}{none})"
    free = shutil.disk_usage(run).free
    return text if free > ahead * size else f"warning: {text}, but only {format_bytes(free)} are free"


def format_total(count: int, size: int) -> str:
    """Return "60 × 0.23 GB = 13.86 GB" for 60 files of this size."""
    return f"{count} × {format_bytes(size)} = {format_bytes(count * size)}"


def format_bytes(size: int) -> str:
    """Return a number of bytes as text."""
    return f"{size / GB:.2f} GB" if size >= GB / 10 else f"{size / MB:.2f} MB"


@dataclass(frozen=True)
class IterationCost:
    """Cost of an iteration.

    Attributes:
        discriminator, generator: multiply-adds of its step; 0 without one.
        bytes: least number read and written, of parameters, gradients, moments and averages; no feature maps.
    """

    discriminator: int
    generator: int
    bytes: int

    @classmethod
    def mean(cls, costs: list[IterationCost], shares: list[float]) -> IterationCost:
        """Return the weighted mean; shares sum to 1."""
        names = [field.name for field in fields(cls)]
        pairs = list(zip(shares, costs, strict=True))
        return cls(**{name: round(sum(share * getattr(cost, name) for share, cost in pairs)) for name in names})

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of both steps."""
        return self.discriminator + self.generator


def iteration_cost(
    config: RunConfig, perceptual: Perceptual | None = None, iterations: int | None = None
) -> IterationCost:
    """Return the mean cost of an iteration, of all processes together, with levels as training draws them.

    The mean is over one period of discriminator steps and R1. Without `perceptual`, it leaves out LPIPS.

    Args:
        iterations: length of the training. The iterations before ``losses.adversarial_start`` then count, too;
            default: only those after it.
    """
    counter = IterationCounter(config, perceptual)
    start, length = config.losses.adversarial_start, config.training.discriminator_every * config.losses.r1_every
    shares = {level: share for level, share in enumerate(level_shares(config), start=1) if share}

    def mean(cycle: range) -> IterationCost:
        return IterationCost.mean(
            [counter.count(level, iteration) for level in shares for iteration in cycle],
            [share / len(cycle) for share in shares.values() for _ in cycle],
        )

    after = mean(range(start, start + length))
    if not start or iterations is None:
        return after
    before = min(start / iterations, 1.0)
    return IterationCost.mean([mean(range(1)), after], [before, 1 - before])


class IterationCounter:
    """Count the cost of a run's iterations, on meta tensors; without `perceptual`, leave out LPIPS."""

    def __init__(self, config: RunConfig, perceptual: Perceptual | None = None) -> None:
        self._config, self._schedule = config, Schedule.from_config(config.process)
        self._weights = loss_weights(config)
        networks = _networks(config)
        self._generator, self._discriminator = networks["generator"], networks.get("discriminator")
        self._perceptual = deepcopy(perceptual).to("meta") if perceptual is not None else None
        self._known: dict[tuple, IterationCost] = {}

    def count(self, level: int, iteration: int = 0) -> IterationCost:
        """Return the cost of an iteration, counted from 0, at level l.

        Halves the FLOPs of PyTorch's formulas, for the forward and backward passes of both steps: convolutions, linear
        layers, products of attention. The discriminator counts twice (generated and real images), R1 and R2 add the
        gradient with respect to the images and its backward pass, and LPIPS counts both images' features.
        """
        weights = self._weights[level - 1].at(iteration)
        plays = discriminator_is_due(self._config, iteration) and weights.adversarial > 0
        players = ("discriminator", "generator") if plays else ("generator",)
        if self._perceptual is None:
            weights = replace(weights, lpips=0.0)
        if (level, weights, players) not in self._known:
            steps = {"discriminator": 0, "generator": 0}
            steps |= {player: self._step(player, level, weights) for player in players}
            self._known[level, weights, players] = IterationCost(**steps, bytes=self._bytes(weights, players))
        return self._known[level, weights, players]

    def _step(self, player: str, level: int, weights: LossWeights) -> int:
        with counted_flops() as counted:
            self.forward(player, level, weights, self._config.training.batch).backward()
        return counted.flops // 2

    def forward(self, player: str, level: int, weights: LossWeights, batch: int) -> torch.Tensor:
        """Compute the loss that a player's step minimizes, of a batch of a size, without values."""
        generator, discriminator = self._generator, self._discriminator
        generator.train(player == "generator")
        if discriminator is not None:
            discriminator.train(player == "discriminator").requires_grad_(player == "discriminator")
        given = self._batch(player, level, weights, batch)
        if player == "discriminator" and discriminator is not None:
            return discriminator_losses(generator, discriminator, self._schedule, weights, given)["total"]
        return generator_losses(generator, discriminator, self._perceptual, self._schedule, weights, given)["total"]

    def parameters(self, player: str) -> list[nn.Parameter]:
        """Return a player's parameters, without values."""
        network = self._generator if player == "generator" else self._discriminator
        return list(network.parameters()) if network is not None else []

    def _batch(self, player: str, level: int, weights: LossWeights, batch: int) -> TrainingBatch:
        side = self._config.dataset.side >> (level - 1)
        draws, redraws = draw_counts(self._config, player, level)
        channels = self._config.generator.latent_channels
        with torch.device("meta"):
            target = torch.empty(batch, IMAGE_CHANNELS, side, side)
            noise = torch.empty(batch, IMAGE_CHANNELS, side // 2, side // 2)
            added = torch.empty_like(target) if weights.noise else None
            labels = torch.empty(batch, dtype=torch.int64)
            latent = torch.empty(batch, draws, channels, side // 2, side // 2) if channels else None
            more = torch.empty(batch, redraws, *noise.shape[1:]) if redraws else None
            count = parameter_count(self._config.losses.augmentation)
            transform = torch.empty(batch, count) if count else None
        return TrainingBatch(
            level, target, labels, noise, fake_noise=added, real_noise=added, latent=latent, redraws=more,
            fake_transform=transform, real_transform=transform,
        )  # fmt: skip

    def _bytes(self, weights: LossWeights, players: tuple[str, ...]) -> int:
        """Return the bytes moved: each call and each backward pass reads its network's weights once."""
        generator, discriminator = _size(self._generator), _size(self._discriminator)
        averages = len(self._config.training.averages) + len(self._config.training.power_averages)
        passes = generator * (2 + GRADIENTS + ADAM + AVERAGE * averages)
        passes += discriminator * (2 + weights.relativistic if weights.adversarial > 0 else 0)
        if "discriminator" in players:
            # Two calls, each with a backward pass; each penalty's gradient, and the pass through it.
            penalties = 2 * ((weights.r1 > 0) + (weights.r2 > 0))
            passes += generator + discriminator * (4 + GRADIENTS + ADAM + penalties)
        if weights.lpips > 0:
            passes += 3 * _size(self._perceptual)
        return FLOAT * passes


def _networks(config: RunConfig) -> dict[str, nn.Module]:
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {"generator": build_generator(config.model)}
        if config.adversarial:
            networks["discriminator"] = build_discriminator(config)
    return networks


def _size(network: nn.Module | None) -> int:
    return 0 if network is None else count_parameters(network)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors' values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
