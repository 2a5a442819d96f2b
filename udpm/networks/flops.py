"""Cost of a network call: multiply-adds, counted on the meta device, and parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from udpm.config.experiment import RunConfig
from udpm.config.model import check_fit
from udpm.core.errors import UserError
from udpm.networks.discriminator import build_discriminator
from udpm.networks.unet import UNet, generator_shape


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one image, and numbers of parameters.

    Attributes:
        side: N.
        calls: multiply-adds of the generator's call at level l, whose input has side N/2^l; l = 1 first.
        full_side: multiply-adds of one call of a network built for the full side.
        generator_at_full_side: multiply-adds of the generator with an input of side N.
        generator_parameters: parameters of the generator.
        full_side_parameters: parameters of the network built for the full side.
        discriminator_parameters: parameters of the discriminator, or None if none is trained.
    """

    side: int
    calls: tuple[int, ...]
    full_side: int
    generator_at_full_side: int
    generator_parameters: int
    full_side_parameters: int
    discriminator_parameters: int | None

    @property
    def total(self) -> int:
        """Multiply-adds of one image, with all L calls."""
        return sum(self.calls)

    @property
    def ratio(self) -> float:
        """Ratio of all L calls to one call of the network built for the full side."""
        return self.total / self.full_side

    @property
    def own_ratio(self) -> float:
        """Ratio of all L calls to one call of the generator itself at the full side."""
        return self.total / self.generator_at_full_side


def count_cost(config: RunConfig) -> Cost:
    """Count the cost of a configured model's networks, without allocating or computing anything.

    The network built for the full side has the generator's architecture with R = N and an output of the input's side.
    Its attention is at those of the same sides that are among its U-Net levels.

    Raises:
        UserError: the architecture cannot be built for the full side.
    """
    side, shape = config.dataset.side, generator_shape(config.model)
    _check_full_side(config)
    with torch.device("meta"):
        generator, full = UNet(shape), UNet(replace(shape, side=side, upscale=1))
        discriminator = build_discriminator(config) if config.adversarial else None
    return Cost(
        side=side,
        calls=tuple(multiply_adds(generator, side >> level) for level in range(1, config.process.levels + 1)),
        full_side=multiply_adds(full, side),
        generator_at_full_side=multiply_adds(generator, side),
        generator_parameters=parameters(generator),
        full_side_parameters=parameters(full),
        discriminator_parameters=parameters(discriminator) if discriminator is not None else None,
    )


def multiply_adds(network: UNet, side: int) -> int:
    """Count the multiply-adds of one call for one image, half of PyTorch's FLOPs.

    Includes convolutions (also resampling filters that are convolutions), linear layers and the two products of
    attention. Excludes normalisations, activations, softmax, and the pooling and repetition that implement filter
    [1, 1]. The network must be on the meta device.
    """
    image = torch.empty(1, network.shape.inputs, side, side, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image, 0.5, label)
    return counter.get_total_flops() // 2


def parameters(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _check_full_side(config: RunConfig) -> None:
    # A network with R = N is the generator for images of side 2N.
    side, section = config.dataset.side, config.generator
    sides = [side >> depth for depth in range(len(section.channel_multipliers))]
    attention = [wanted for wanted in section.attention if wanted in sides]
    try:
        check_fit(2 * side, config.process, section.model_copy(update={"attention": attention}), "twice the side")
    except ValueError as error:
        raise UserError(f"{config.experiment}: as a network for the full side {side}: {error}") from None
