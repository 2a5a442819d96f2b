"""What a run will take: memory for its state, disk, arithmetic. Allocates and computes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from udpm.config.experiment import RunConfig
from udpm.diffusion.schedule import Schedule
from udpm.networks.build import build_discriminator, build_generator
from udpm.networks.flops import parameters
from udpm.networks.unet import IMAGE_CHANNELS
from udpm.training.objective import Draw, discriminator_losses, generator_losses, level_terms

GB, MB = 1e9, 1e6
MUCH = 1e9
"""Bytes of milestones above which training says beforehand what they will take."""


@dataclass(frozen=True)
class Needs:
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


def count_needs(config: RunConfig, iterations: int) -> Needs:
    """What a run of so many iterations takes.

    Args:
        config: of the run.
        iterations: at its end.
    """
    players = _players(config)
    averages = len(config.training.averages)
    generator = _bytes(players["generator"].state_dict().values())
    weights = sum(_bytes(network.state_dict().values()) for network in players.values())
    gradients = sum(_bytes(network.parameters()) for network in players.values())
    # Adam counts its steps in a float32 for each parameter, an average in an int64.
    counters = 4 * sum(len(list(network.parameters())) for network in players.values()) + 8 * averages
    every = config.training.keep_every
    return Needs(
        parameters={name: parameters(network) for name, network in players.items()},
        weights=weights,
        gradients=gradients,
        moments=2 * gradients,
        averages=averages * generator,
        checkpoint=weights + 2 * gradients + averages * generator + counters,
        milestone=max(averages, 1) * generator,
        milestones=iterations // every if every else 0,
        final=(averages + 1) * generator,
    )


def milestone_needs(needs: Needs, done: int, every: int, run: Path) -> str | None:
    """One line on the disk that milestones still to come will take, or None where it is not much.

    Args:
        needs: of the run.
        done: iterations done.
        every: training.keep_every.
        run: the run's folder, existing.
    """
    ahead = needs.milestones - (done // every if every else 0)
    if ahead * needs.milestone <= MUCH:
        return None
    told = f"milestones will take {times(ahead, needs.milestone)} (training.keep_every: {every}; 0 keeps none)"
    free = shutil.disk_usage(run).free
    return told if free > ahead * needs.milestone else f"warning: {told}, but only {amount(free)} are free"


def times(count: int, size: int) -> str:
    """E.g. "60 × 0.23 GB = 13.86 GB"."""
    return f"{count} × {amount(size)} = {amount(count * size)}"


def amount(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / GB:.2f} GB" if size >= GB / 10 else f"{size / MB:.2f} MB"


def count_arithmetic(config: RunConfig) -> float:
    """Multiply-adds of an iteration's forward and backward passes, over all processes, in the mean over levels.

    Counted as `udpm.networks.flops` does; LPIPS, Adam and the averages are left out.
    """
    training, levels = config.training, config.process.levels
    players = _players(config)
    chances = dict(enumerate(training.level_probabilities or [1 / levels] * levels, start=1))
    counts = {
        name: sum(chance * _step(config, players, name, level) for level, chance in chances.items() if chance)
        for name in players
    }
    return training.batch * (counts["generator"] + counts.get("discriminator", 0) / training.discriminator_every)


def _step(config: RunConfig, players: dict[str, nn.Module], player: str, level: int) -> int:
    """Multiply-adds of one player's step for one image."""
    generator, discriminator = players["generator"], players.get("discriminator")
    schedule, draw = Schedule.from_config(config.process), _draw(config, level)
    terms = replace(level_terms(config)[level - 1], lpips=0.0)
    if discriminator is not None:
        discriminator.requires_grad_(player == "discriminator")
    with _Counter() as counter:
        if player == "discriminator":
            losses = discriminator_losses(generator, discriminator, schedule, terms, draw)
        else:
            losses = generator_losses(generator, discriminator, None, schedule, terms, draw)
        losses["total"].backward()
    return counter.flops // 2


class _Counter(TorchDispatchMode):
    """Counts FLOPs by PyTorch's own formulas; its FlopCounterMode cannot be where a gradient's gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _draw(config: RunConfig, level: int) -> Draw:
    """One image's."""
    side = config.dataset.side >> level
    return Draw(
        level,
        torch.empty(1, IMAGE_CHANNELS, 2 * side, 2 * side, device="meta"),
        torch.zeros(1, dtype=torch.int64, device="meta"),
        torch.empty(1, IMAGE_CHANNELS, side, side, device="meta"),
    )


def _players(config: RunConfig) -> dict[str, nn.Module]:
    with torch.device("meta"):
        players: dict[str, nn.Module] = {"generator": build_generator(config.model)}
        if config.adversarial:
            players["discriminator"] = build_discriminator(config)
    return players


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
