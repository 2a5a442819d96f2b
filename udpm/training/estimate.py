"""Resources that a run takes: memory for its state, disk, arithmetic; and what a dry run prints."""

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
from udpm.core import devices
from udpm.data.levels import Levels
from udpm.diffusion.schedule import Schedule
from udpm.networks.discriminator import build_discriminator
from udpm.networks.flops import parameters
from udpm.networks.unet import IMAGE_CHANNELS, build_generator
from udpm.runs.config_guard import check_config
from udpm.runs.records import is_run
from udpm.runs.status import read_status
from udpm.training.batch import TrainingBatch, players_at
from udpm.training.checkpoint import KEPT
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
    shares = training.level_probabilities or [1 / levels] * levels
    means = [
        IterationCost.mean([counter.count(level, iteration) for iteration in cycle], [1 / length] * length)
        for level in range(1, levels + 1)
    ]
    return IterationCost.mean(means, shares)


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
        generator, discriminator = self._generator, self._discriminator
        generator.train(player == "generator")
        if discriminator is not None:
            discriminator.train(player == "discriminator").requires_grad_(player == "discriminator")
        batch = self._batch(level, weights)
        with _Flops() as counted:
            if player == "discriminator" and discriminator is not None:
                losses = discriminator_losses(generator, discriminator, self._schedule, weights, batch)
            else:
                losses = generator_losses(generator, discriminator, self._perceptual, self._schedule, weights, batch)
            losses["total"].backward()
        return counted.flops // 2

    def _batch(self, level: int, weights: LossWeights) -> TrainingBatch:
        side, batch = self._config.dataset.side >> (level - 1), self._config.training.batch
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


def describe_run(config: RunConfig, levels: Levels | None, run: Path | None) -> str:
    """Configuration, networks, memory, disk, arithmetic and devices, as lines to read.

    Args:
        config: of the run, which trains.
        levels: the data set and its caches, if there.
        run: the run's folder, if known.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    iterations = _describe_iterations(config, levels)
    needs = estimate_resources(config, iterations)
    lines = {
        "run": f"{config.experiment}, seed {config.seed}{_describe_standing(config, run)}",
        "data": _describe_data(config, levels),
        "process": f"{config.process.levels} levels, alphas {config.process.alphas}, sigmas {config.process.sigmas}",
        "networks": _describe_networks(config, needs),
        "losses": _describe_losses(config),
        "training": _describe_training(config, iterations),
        "memory": (
            f"{format_bytes(needs.state)} for the state on each device: weights {format_bytes(needs.weights)}, "
            f"gradients {format_bytes(needs.gradients)}, Adam {format_bytes(needs.moments)}, averages "
            f"{format_bytes(needs.averages)}; what the networks keep of a batch comes on top and is not estimated"
        ),
        "disk": _describe_disk(config, needs),
        "devices": f"{devices.found()} here; training.device: {config.training.device}",
        "arithmetic": _describe_arithmetic(config),
    }
    return "".join(f"{name:<11}{text}\n" for name, text in lines.items())


def _describe_iterations(config: RunConfig, levels: Levels | None) -> int:
    if levels is None:
        return config.training.iterations
    split = levels.store.split("train")
    return config.training.ends_at(split.stop - split.start)


def _describe_standing(config: RunConfig, run: Path | None) -> str:
    if run is None:
        return ""
    if not is_run(run):
        return f"; {run} is new"
    check_config(run, config, allow_world_size_change=False, writes=False)
    standing = read_status(run)
    at = "" if standing.checkpoint is None else f", last checkpoint {standing.checkpoint}"
    return f"; {run} is {standing.state}{at}"


def _describe_data(config: RunConfig, levels: Levels | None) -> str:
    side, classes = config.dataset.side, config.classes
    told = f"{config.dataset_name}, {side}×{side}, {f'{classes} classes' if classes else 'no labels'}"
    if levels is None:
        return told
    split = levels.store.split("train")
    return f"{told}, {split.stop - split.start} training images"


def _describe_networks(config: RunConfig, needs: ResourceEstimate) -> str:
    section, counts = config.generator, needs.parameters
    told = f"generator {section.family} {counts['generator'] / 1e6:.2f} M parameters"
    if "discriminator" in counts:
        told += f", discriminator {counts['discriminator'] / 1e6:.2f} M"
    return told + f"; averages {', '.join(config.training.averages) or 'none'}"


def _describe_losses(config: RunConfig) -> str:
    losses = config.losses
    keys = {
        losses.reconstruction: "reconstruction_weight",
        "LPIPS": "lpips_weight",
        "adversarial": "adversarial_weight",
    }
    parts = {name: config.per_level(f"losses.{key}") for name, key in (keys | {"R1": "r1_gamma"}).items()}
    return ", ".join(f"{name} {values}" for name, values in parts.items() if any(values))


def _describe_training(config: RunConfig, iterations: int) -> str:
    training = config.training
    share = training.batch // training.processes
    told = f"{iterations} iterations of {training.batch} images"
    if training.processes > 1:
        told += (
            f": {share} for each of {training.processes} processes ({training.nodes} × {training.processes_per_node})"
        )
    if training.accumulate > 1:
        told += f", in {training.accumulate} parts"
    switches = {"TF32": training.tf32, "channels last": training.channels_last, "compiled": training.compile}
    switches["CUDA graphs"] = training.cuda_graphs
    return ", ".join(
        [told, f"rate {training.learning_rate:g}", training.precision, *(k for k, on in switches.items() if on)]
    )


def _describe_disk(config: RunConfig, needs: ResourceEstimate) -> str:
    told = f"checkpoints {format_total(KEPT, needs.checkpoint)}, one more during a save; "
    if needs.milestones:
        told += (
            f"milestones {format_total(needs.milestones, needs.milestone)}, one every {config.training.keep_every}; "
        )
    return told + f"weights at the end {format_bytes(needs.final)}"


def _describe_arithmetic(config: RunConfig) -> str:
    text = f"{iteration_cost(config).multiply_adds / 1e9:.4g} G multiply-adds per iteration"
    if any(config.per_level("losses.lpips_weight")):
        text += " without LPIPS"
    return f"{text}; udpm bench train measures how long it takes"
