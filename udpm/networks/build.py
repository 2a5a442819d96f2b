"""From a run's configuration to its networks."""

from __future__ import annotations

from udpm.config.experiment import RunConfig
from udpm.networks.discriminator import Discriminator, DiscriminatorShape
from udpm.networks.unet import UNet, UNetShape


def build_generator(config: RunConfig) -> UNet:
    """A freshly initialised generator; draws from torch's global random state."""
    section = config.generator
    return UNet(
        UNetShape(
            side=config.dataset.side // 2,
            channels=section.channels,
            multipliers=tuple(section.channel_multipliers),
            blocks=section.blocks,
            attention=tuple(section.attention),
            classes=config.classes if section.class_conditional else 0,
            dropout=section.dropout,
        )
    )


def build_discriminator(config: RunConfig) -> Discriminator:
    """A freshly initialised discriminator; draws from torch's global random state."""
    section = config.discriminator
    return Discriminator(
        DiscriminatorShape(
            side=config.dataset.side,
            levels=config.process.levels,
            channels=section.channels,
            classes=config.classes if section.class_conditional else 0,
        )
    )
