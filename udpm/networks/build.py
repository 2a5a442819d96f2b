"""Build networks from a configuration."""

from __future__ import annotations

from udpm.config.experiment import RunConfig
from udpm.config.model import ModelConfig
from udpm.networks.discriminator import Discriminator, DiscriminatorShape
from udpm.networks.unet import UNet, UNetShape


def generator_shape(config: ModelConfig) -> UNetShape:
    """Return the shape of a configured generator."""
    section = config.generator
    return UNetShape(
        family=section.family,
        side=config.side // 2,
        channels=section.channels,
        multipliers=tuple(section.channel_multipliers),
        blocks=section.blocks,
        attention=tuple(section.attention),
        classes=config.classes,
        dropout=section.dropout,
        label_dropout=section.label_dropout > 0,
    )


def build_generator(config: ModelConfig) -> UNet:
    """Build a newly initialised generator; uses torch's global random state."""
    return UNet(generator_shape(config))


def build_discriminator(config: RunConfig) -> Discriminator:
    """Build a newly initialised discriminator, which the configuration must have; uses torch's global random state."""
    section = config.discriminator
    assert section is not None
    return Discriminator(
        DiscriminatorShape(
            side=config.dataset.side,
            levels=config.process.levels,
            channels=section.channels,
            classes=config.classes if section.class_conditional else 0,
            sees_state=section.sees_state,
        )
    )
