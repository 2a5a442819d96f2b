"""The discriminator of images of level l - 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from udpm.config.experiment import RunConfig
from udpm.config.model import WIDEST, Deviation
from udpm.networks.layers import ADM, ResidualBlock, one_hot, sinusoids, times_like, without_autocast

GROUP = 4
"""Samples over which the minibatch standard deviation is computed."""


@dataclass(frozen=True)
class DiscriminatorShape:
    """Parameters that determine a discriminator's tensors.

    Attributes:
        side: N, the full image side.
        levels: L; its smallest input has side N/2^{L-1}.
        channels: base width F.
        classes: number of classes; 0 if it is not conditioned on the label.
        sees_state: True if it is also conditioned on the state x_l that an image was made from.
        deviation: what its map of the minibatch standard deviation has of channels and positions; "none" for no map.
    """

    side: int
    levels: int
    channels: int
    classes: int = 0
    sees_state: bool = False
    deviation: Deviation = "sum"


class Discriminator(nn.Module):
    """D(x, t_l, y): one logit for an image of side N … N/2^{L-1}, high for real images."""

    def __init__(self, shape: DiscriminatorShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.channels
        self.stem = nn.Conv2d(6 if shape.sees_state else 3, width, 1)
        self.label = nn.Linear(shape.classes, width) if shape.classes else None
        blocks = [
            ResidualBlock(
                min(WIDEST, width * 2**index),
                min(WIDEST, width * 2 ** (index + 1)),
                width,
                ADM,
                resample="down" if index else None,
            )
            for index in range((shape.side >> (shape.levels - 1)).bit_length())
        ]
        self.blocks = cast(Sequence[ResidualBlock], nn.ModuleList(blocks))
        outputs = blocks[-1].conv_out.out_channels + (shape.deviation != "none")
        self.final = nn.Conv2d(outputs, min(WIDEST, 8 * width), 3, padding=1)
        self.head = nn.Linear(min(WIDEST, 8 * width), 1)
        initialize(self)

    def forward(
        self,
        x: torch.Tensor,
        time: float | torch.Tensor,
        labels: torch.Tensor | None = None,
        dropout: float = 0.0,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute logits of a batch.

        Args:
            x: (B, 3, h, w) in about [-1, 1].
            time: t_l, a number or (B,).
            labels: (B,) int64 if D is class-conditional, else ignored.
            dropout: probability in train mode, in the blocks and on the logit.
            state: x_l, (B, 3, h', w'), if D is conditioned on it, else ignored.

        Returns:
            (B, 1) logits.
        """
        condition = sinusoids(times_like(time, x), self.shape.channels)
        if self.label is not None:
            if labels is None:
                raise ValueError("a class-conditional discriminator needs labels")
            condition = condition + self.label(one_hot(labels, self.shape.classes))
        if self.shape.sees_state:
            if state is None:
                raise ValueError("a discriminator that sees the state needs it")
            x = torch.cat([x, F.interpolate(state, size=x.shape[-2:], mode="nearest")], dim=1)
        h = leaky(self.stem(x))
        for block in self.blocks:
            block.dropout = dropout
            h = leaky(block(h, condition))
        # The deviation is summed over thousands of values: bfloat16 would round away the differences between groups.
        with without_autocast(h.device):
            h = h.float()
            if self.shape.deviation != "none":
                h = torch.cat([h, batch_deviation(h, mean=self.shape.deviation == "mean")], dim=1)
            h = leaky(self.final(h)).sum(dim=(2, 3))
            return F.dropout(self.head(h), dropout, self.training)


def build_discriminator(config: RunConfig) -> Discriminator:
    """Build a newly initialized discriminator, which the configuration must have; uses torch's global random state."""
    section = config.discriminator
    assert section is not None
    return Discriminator(
        DiscriminatorShape(
            side=config.dataset.side,
            levels=config.process.levels,
            channels=section.channels,
            classes=config.classes if section.class_conditional else 0,
            sees_state=section.sees_state,
            deviation=section.minibatch_deviation,
        )
    )


def leaky(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU with slope 0.2."""
    return F.leaky_relu(x, 0.2)


def batch_deviation(h: torch.Tensor, *, mean: bool = False) -> torch.Tensor:
    """Compute the minibatch standard deviation as an additional map.

    A group is G = 4 samples, or the largest divisor of B below 4; sample b is grouped with b ± B/G. The population
    standard deviation over the group (variance + 1e-8) is summed or averaged over channels and positions.

    Args:
        h: (B, C, h, w).
        mean: average instead of the sum.

    Returns:
        (B, 1, h, w), equal for all samples of a group.
    """
    batch, _, height, width = h.shape
    size = next(size for size in range(min(GROUP, batch), 0, -1) if batch % size == 0)
    groups = h.reshape(size, batch // size, -1)
    deviations = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt()
    deviation = deviations.mean(dim=1) if mean else deviations.sum(dim=1)
    return deviation.repeat(size)[:, None, None, None].expand(-1, 1, height, width)


@torch.no_grad()
def initialize(network: Discriminator) -> None:
    """Initialize blocks with weights N(0, 1/fan_in) and zero biases; the other layers keep torch's default."""
    for block in network.blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
