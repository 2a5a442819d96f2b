"""What an iteration of training costs: multiply-adds, counted on the meta device, and bytes of parameters."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from udpm.config.experiment import RunConfig
from udpm.diffusion.schedule import Schedule
from udpm.networks.build import build_discriminator, build_generator
from udpm.networks.discriminator import Discriminator
from udpm.networks.flops import parameters
from udpm.networks.unet import IMAGE_CHANNELS, UNet
from udpm.training.draws import players_at
from udpm.training.objective import Draw, LevelTerms, discriminator_losses, generator_losses
from udpm.training.perceptual import Perceptual

FLOAT = 4
"""Bytes of a parameter; all are kept in float32."""
GRADIENTS = 3
"""Passes over a player's gradients: written once, read for their norm and by Adam."""
ADAM = 6
"""Passes over a player's values: weights and two moments, read and written."""
AVERAGE = 3
"""Passes over the generator's values for each average: weights read, the average read and written."""


@dataclass(frozen=True)
class IterationCost:
    """Of one iteration at one level.

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
        """The weighted mean of several levels'; shares sum to 1."""
        names = [field.name for field in fields(cls)]
        pairs = list(zip(shares, costs, strict=True))
        return cls(**{name: round(sum(share * getattr(cost, name) for share, cost in pairs)) for name in names})

    @property
    def multiply_adds(self) -> int:
        """Of both steps."""
        return self.discriminator + self.generator


class IterationCounter:
    """Counts iterations of a run; computes nothing.

    Args:
        config: of the run.
        terms: of each level, before any decay.
        perceptual: LPIPS, where it is a loss.
    """

    def __init__(self, config: RunConfig, terms: list[LevelTerms], perceptual: Perceptual | None) -> None:
        self._config, self._terms, self._schedule = config, terms, Schedule.from_config(config.process)
        with torch.device("meta"):
            self._generator: UNet = build_generator(config.model)
            self._discriminator: Discriminator | None = build_discriminator(config) if config.adversarial else None
        self._perceptual = deepcopy(perceptual).to("meta") if perceptual is not None else None
        self._known: dict[tuple, IterationCost] = {}

    def count(self, level: int, iteration: int = 0) -> IterationCost:
        """An iteration, counted from 0, at a level l.

        Counted by the formulas of PyTorch's FLOP counter, halved, over each step's forward and backward passes:
        convolutions, linear layers, products of attention; of the discriminator twice (generated and real images),
        where γ > 0 also the gradient with respect to the images and what backward passes through it; of LPIPS both
        images' features.
        """
        terms, players = self._terms[level - 1].at(iteration), tuple(players_at(self._config, iteration))
        if (level, terms, players) not in self._known:
            steps = {"discriminator": 0, "generator": 0}
            steps |= {player: self._step(player, level, terms) for player in players}
            self._known[level, terms, players] = IterationCost(**steps, bytes=self._bytes(terms, players))
        return self._known[level, terms, players]

    def _step(self, player: str, level: int, terms: LevelTerms) -> int:
        generator, discriminator = self._generator, self._discriminator
        generator.train(player == "generator")
        if discriminator is not None:
            discriminator.train(player == "discriminator").requires_grad_(player == "discriminator")
        draw = self._draw(level, terms)
        with _Flops() as counted:
            if player == "discriminator":
                losses = discriminator_losses(generator, discriminator, self._schedule, terms, draw)
            else:
                losses = generator_losses(generator, discriminator, self._perceptual, self._schedule, terms, draw)
            losses["total"].backward()
        return counted.flops // 2

    def _draw(self, level: int, terms: LevelTerms) -> Draw:
        side, batch = self._config.dataset.side >> (level - 1), self._config.training.batch
        with torch.device("meta"):
            target = torch.empty(batch, IMAGE_CHANNELS, side, side)
            noise = torch.empty(batch, IMAGE_CHANNELS, side // 2, side // 2)
            veil = torch.empty_like(target) if terms.noise else None
            labels = torch.empty(batch, dtype=torch.int64)
        return Draw(level, target, labels, noise, on_fake=veil, on_real=veil)

    def _bytes(self, terms: LevelTerms, players: tuple[str, ...]) -> int:
        """Each call reads its network's weights once, and so does each backward pass through it."""
        own, judge = _size(self._generator), _size(self._discriminator)
        passes = own * (2 + GRADIENTS + ADAM + AVERAGE * len(self._config.training.averages))
        passes += judge * (2 if terms.adversarial > 0 else 0)
        if "discriminator" in players:
            # Two calls, each with a backward pass; R1's gradient, and the pass through it.
            passes += own + judge * (4 + GRADIENTS + ADAM + (2 if terms.r1 > 0 else 0))
        if self._perceptual is not None and terms.lpips > 0:
            passes += 3 * _size(self._perceptual)
        return FLOAT * passes


def _size(network: nn.Module | None) -> int:
    return 0 if network is None else parameters(network)


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
