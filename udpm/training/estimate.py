"""Resources that a run takes: memory for its state, disk, arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from udpm.config.experiment import RunConfig
from udpm.diffusion.schedule import Schedule
from udpm.networks.discriminator import build_discriminator
from udpm.networks.flops import parameters
from udpm.networks.unet import IMAGE_CHANNELS, build_generator
from udpm.training.batch import TrainingBatch, level_shares, players_at
from udpm.training.losses import LossWeights, Perceptual, discriminator_losses, generator_losses, loss_weights

GB, MB = 1e9, 1e6
WARN_ABOVE_BYTES = 1e9
"""Bytes of milestones above which training says beforehand what they will take."""
FLOAT = 4
"""Bytes of a parameter; all are kept in float32."""
GRADIENTS = 3
"""Passes over a player's gradients: written once, read for their norm and by Adam."""
ADAM = 6
"""Passes over a player's values: weights and two moments, read and written."""
AVERAGE = 3
"""Passes over the generator's values for each average: weights read, the average read and written."""


@dataclass(frozen=True)
class ResourceEstimate:
    """Sizes in bytes of tensors alone; what describes them in a file adds some kilobytes.

    Attributes:
        parameters: number of trainable values, by player.
        weights: of all networks that are trained.
        gradients: of these.
        moments: Adam's.
        averages: of the generator.
        checkpoint: one.
        milestone: one.
        milestones: how many there will be.
        final: the weights at the end.
    """

    parameters: dict[str, int]
    weights: int
    gradients: int
    moments: int
    averages: int
    checkpoint: int
    milestone: int
    milestones: int
    final: int

    @property
    def state(self) -> int:
        """Memory that the state takes on each device."""
        return self.weights + self.gradients + self.moments + self.averages


def estimate_resources(config: RunConfig, iterations: int) -> ResourceEstimate:
    """Return what a run takes.

    Args:
        config: of the run.
        iterations: at its end.
    """
    networks = _networks(config)
    averages = len(config.training.averages)
    generator = _bytes(networks["generator"].state_dict().values())
    weights = sum(_bytes(network.state_dict().values()) for network in networks.values())
    gradients = sum(_bytes(network.parameters()) for network in networks.values())
    # Adam counts its steps in a float32 for each parameter, an average in an int64.
    counters = 4 * sum(len(list(network.parameters())) for network in networks.values()) + 8 * averages
    every = config.training.keep_every
    return ResourceEstimate(
        parameters={name: parameters(network) for name, network in networks.items()},
        weights=weights,
        gradients=gradients,
        moments=2 * gradients,
        averages=averages * generator,
        checkpoint=weights + 2 * gradients + averages * generator + counters,
        milestone=max(averages, 1) * generator,
        milestones=iterations // every if every else 0,
        final=(averages + 1) * generator,
    )


def milestone_warning(estimate: ResourceEstimate, done: int, every: int, run: Path) -> str | None:
    """Return one line on the disk that milestones still to come will take, or None where it is not much.

    Args:
        estimate: of the run.
        done: iterations done.
        every: training.keep_every.
        run: the run's folder, existing.
    """
    ahead = estimate.milestones - (done // every if every else 0)
    if ahead * estimate.milestone <= WARN_ABOVE_BYTES:
        return None
    text = (
        f"milestones will take {format_total(ahead, estimate.milestone)} (training.keep_every: {every}; 0 keeps none)"
    )
    free = shutil.disk_usage(run).free
    return text if free > ahead * estimate.milestone else f"warning: {text}, but only {format_bytes(free)} are free"


def format_total(count: int, size: int) -> str:
    """Return "60 × 0.23 GB = 13.86 GB" for 60 files of this size."""
    return f"{count} × {format_bytes(size)} = {format_bytes(count * size)}"


def format_bytes(size: int) -> str:
    """Return a number of bytes as text."""
    return f"{size / GB:.2f} GB" if size >= GB / 10 else f"{size / MB:.2f} MB"


@dataclass(frozen=True)
class IterationCost:
    """What one iteration takes.

    Attributes:
        discriminator: multiply-adds of its step; 0 where it takes none.
        generator: multiply-adds of its step.
        bytes: of parameters, gradients, moments and averages, read and written at the least; no feature maps.
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
        """Of both steps."""
        return self.discriminator + self.generator


def iteration_cost(config: RunConfig, perceptual: Perceptual | None = None) -> IterationCost:
    """Return the mean cost of an iteration over all processes, over levels as training draws them.

    It is the mean of as many iterations as it takes until discriminator steps and R1 repeat, once the adversarial loss
    has begun.

    Args:
        config: of a run that trains.
        perceptual: LPIPS; without it, its arithmetic is left out.
    """
    training, levels = config.training, config.process.levels
    counter = IterationCounter(config, perceptual)
    start, length = config.losses.adversarial_start, training.discriminator_every * config.losses.r1_every
    cycle = range(start, start + length)
    means = [
        IterationCost.mean([counter.count(level, iteration) for iteration in cycle], [1 / length] * length)
        for level in range(1, levels + 1)
    ]
    return IterationCost.mean(means, level_shares(config))


class IterationCounter:
    """Counts iterations of a run; computes nothing.

    Args:
        config: of the run.
        perceptual: LPIPS; without it, its arithmetic is left out.
    """

    def __init__(self, config: RunConfig, perceptual: Perceptual | None = None) -> None:
        self._config, self._schedule = config, Schedule.from_config(config.process)
        self._weights = loss_weights(config)
        networks = _networks(config)
        self._generator, self._discriminator = networks["generator"], networks.get("discriminator")
        self._perceptual = deepcopy(perceptual).to("meta") if perceptual is not None else None
        self._known: dict[tuple, IterationCost] = {}

    def count(self, level: int, iteration: int = 0) -> IterationCost:
        """Return what an iteration, counted from 0, takes at a level l.

        Counted by the formulas of PyTorch's FLOP counter, halved, over each step's forward and backward passes:
        convolutions, linear layers, products of attention; of the discriminator twice (generated and real images),
        where γ > 0 also the gradient with respect to the images and what backward passes through it; of LPIPS both
        images' features.
        """
        weights, players = self._weights[level - 1].at(iteration), tuple(players_at(self._config, iteration))
        if self._perceptual is None:
            weights = replace(weights, lpips=0.0)
        if (level, weights, players) not in self._known:
            steps = {"discriminator": 0, "generator": 0}
            steps |= {player: self._step(player, level, weights) for player in players}
            self._known[level, weights, players] = IterationCost(**steps, bytes=self._bytes(weights, players))
        return self._known[level, weights, players]

    def _step(self, player: str, level: int, weights: LossWeights) -> int:
        with _Flops() as counted:
            self.forward(player, level, weights, self._config.training.batch).backward()
        return counted.flops // 2

    def forward(self, player: str, level: int, weights: LossWeights, batch: int) -> torch.Tensor:
        """Compute the loss that a player's step minimises, of a batch of a size, without values."""
        generator, discriminator = self._generator, self._discriminator
        generator.train(player == "generator")
        if discriminator is not None:
            discriminator.train(player == "discriminator").requires_grad_(player == "discriminator")
        given = self._batch(level, weights, batch)
        if player == "discriminator" and discriminator is not None:
            return discriminator_losses(generator, discriminator, self._schedule, weights, given)["total"]
        return generator_losses(generator, discriminator, self._perceptual, self._schedule, weights, given)["total"]

    def parameters(self, player: str) -> list[nn.Parameter]:
        """Return a player's parameters, without values."""
        network = self._generator if player == "generator" else self._discriminator
        return list(network.parameters()) if network is not None else []

    def _batch(self, level: int, weights: LossWeights, batch: int) -> TrainingBatch:
        side = self._config.dataset.side >> (level - 1)
        with torch.device("meta"):
            target = torch.empty(batch, IMAGE_CHANNELS, side, side)
            noise = torch.empty(batch, IMAGE_CHANNELS, side // 2, side // 2)
            added = torch.empty_like(target) if weights.noise else None
            labels = torch.empty(batch, dtype=torch.int64)
        return TrainingBatch(level, target, labels, noise, fake_noise=added, real_noise=added)

    def _bytes(self, weights: LossWeights, players: tuple[str, ...]) -> int:
        """Each call reads its network's weights once, and so does each backward pass through it."""
        own, judge = _size(self._generator), _size(self._discriminator)
        passes = own * (2 + GRADIENTS + ADAM + AVERAGE * len(self._config.training.averages))
        passes += judge * (2 if weights.adversarial > 0 else 0)
        if "discriminator" in players:
            # Two calls, each with a backward pass; R1's gradient, and the pass through it.
            passes += own + judge * (4 + GRADIENTS + ADAM + (2 if weights.r1 > 0 else 0))
        if weights.lpips > 0:
            passes += 3 * _size(self._perceptual)
        return FLOAT * passes


class _Flops(TorchDispatchMode):
    """Adds up the FLOPs of what is called in its context, gradients of gradients included."""

    # PyTorch's FlopCounterMode also follows modules, by hooks that cannot be where a gradient is differentiated.

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


def _networks(config: RunConfig) -> dict[str, nn.Module]:
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {"generator": build_generator(config.model)}
        if config.adversarial:
            networks["discriminator"] = build_discriminator(config)
    return networks


def _size(network: nn.Module | None) -> int:
    return 0 if network is None else parameters(network)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
