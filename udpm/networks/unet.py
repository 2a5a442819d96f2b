"""The generator: a U-Net of one of three families that predicts an image of twice its input's side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from udpm.config.model import Family, ModelConfig
from udpm.networks.layers import (
    NCSNPP,
    STYLES,
    FourierFeatures,
    Resample,
    ResidualBlock,
    group_norm,
    one_hot,
    sinusoids,
    times_like,
)


class Embedding(nn.Module):
    """Embed time and label, one-hot of width K (0: unconditional), as one vector of width 4C.

    NCSN++ and DDPM++ add the label to the features of time; ADM adds it after the two linear layers.
    """

    def __init__(self, family: str, channels: int, label_inputs: int) -> None:
        super().__init__()
        self.family = family
        self.channels = channels
        self.label_inputs = label_inputs
        features = 2 * channels if family == "ncsnpp" else channels
        self.time = FourierFeatures(channels) if family == "ncsnpp" else None
        self.label = None
        if label_inputs:
            late = family == "adm"
            self.label = nn.Linear(label_inputs, 4 * channels if late else features, bias=not late)
        self.first = nn.Linear(features, 4 * channels)
        self.second = nn.Linear(4 * channels, 4 * channels)

    def forward(self, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """t, (B,) or (1,), and labels, (B,) int64, to (B or 1, 4C); a label below 0 is "no label"."""
        features = self._features(time)
        if self.label is not None:
            if labels is None:
                raise ValueError("a class-conditional network needs labels")
            label = one_hot(labels, self.label_inputs)
            if self.family == "adm":
                return F.silu(self.second(F.silu(self.first(features))) + self.label(label))
            features = features + self.label(label * math.sqrt(self.label_inputs))
        return F.silu(self.second(F.silu(self.first(features))))

    def _features(self, time: torch.Tensor) -> torch.Tensor:
        if self.time is not None:
            return self.time(time)
        if self.family == "adm":
            return sinusoids(time, self.channels)
        # (sin, cos) instead of (cos, sin).
        return sinusoids(time, self.channels, endpoint=True).roll(self.channels // 2, dims=1)


IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class UNetShape:
    """Parameters that determine a generator's tensors.

    Attributes:
        family: "ncsnpp", "ddpmpp" or "adm".
        side: R, the nominal input side (N/2), used only to identify the attention levels.
        channels: base width C.
        multipliers: width of each U-Net level in multiples of C, finest first.
        blocks: residual blocks per level.
        attention: nominal sides of the levels that have self-attention.
        classes: number of classes; 0 for an unconditional network.
        dropout: probability in the residual blocks.
        label_dropout: True if training drops labels, which adds one entry to the one-hot label.
        latent_channels: k, channels of the input after the image's.
        upscale: output side over input side; 1 only to count the cost of a network that does not upsample.
    """

    family: Family
    side: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...] = ()
    classes: int = 0
    dropout: float = 0.0
    label_dropout: bool = False
    latent_channels: int = 0
    upscale: int = 2

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return IMAGE_CHANNELS + self.latent_channels

    @property
    def label_inputs(self) -> int:
        """K, the width of the one-hot label."""
        return self.classes + self.label_dropout if self.classes else 0


class PyramidStep(nn.Module):
    """A step of the residual image pyramid: 3×3 convolution, then the halving filter.

    The convolution has the padding of both, so that the filter's border is convolved values instead of zeros.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        taps = NCSNPP.taps
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1 + (len(taps) - 1) // 2)
        self.filter = Resample("down", taps, padding=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, h, w) to (B, outputs, h/2, w/2)."""
        return self.filter(self.conv(x))


class EncoderLevel(nn.Module):
    """One level of the encoder; all but the first begin by halving the map (and adding NCSN++'s pyramid)."""

    def __init__(self, shape: UNetShape, depth: int) -> None:
        super().__init__()
        width, previous = _width(shape, depth), _width(shape, depth - 1)
        make = _block_maker(shape)
        self.down = make(previous, previous, resample="down") if depth else None
        self.pyramid = None
        if depth and shape.family == "ncsnpp":
            # The pyramid starts as the input; after each step it has the width of the feature map.
            self.pyramid = PyramidStep(_width(shape, depth - 2) if depth > 1 else shape.inputs, previous)
        attention = shape.side >> depth in shape.attention
        self.blocks = nn.ModuleList(
            make(previous if index == 0 else width, width, attention=attention) for index in range(shape.blocks)
        )

    def forward(
        self, h: torch.Tensor, pyramid: torch.Tensor, embedding: torch.Tensor, skips: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform feature map and pyramid image; append the decoder's skip connections to `skips`."""
        if self.down is not None:
            h = self.down(h, embedding)
            if self.pyramid is not None:
                h = pyramid = (h + self.pyramid(pyramid)) * math.sqrt(0.5)
            skips.append(h)
        for block in self.blocks:
            h = block(h, embedding)
            skips.append(h)
        return h, pyramid


class DecoderLevel(nn.Module):
    """One level of the decoder; the coarsest begins with two blocks, all others by doubling the map."""

    def __init__(self, shape: UNetShape, depth: int) -> None:
        super().__init__()
        width = _width(shape, depth)
        deepest = depth == len(shape.multipliers) - 1
        make = _block_maker(shape)
        if deepest:
            self.entry = nn.ModuleList([make(width, width, attention=True), make(width, width)])
        else:
            below = _width(shape, depth + 1)
            self.entry = nn.ModuleList([make(below, below, resample="up")])
        attention = shape.side >> depth in shape.attention
        inputs = width if deepest else _width(shape, depth + 1)
        self.blocks = nn.ModuleList()
        # The skip connections of the encoder's level from last to first, which is the stem's at depth 0.
        for index, skip in enumerate([*[width] * shape.blocks, _width(shape, depth - 1)]):
            attends = attention and (shape.family == "adm" or index == shape.blocks)
            self.blocks.append(make(inputs + skip, width, attention=attends))
            inputs = width

    def forward(self, h: torch.Tensor, embedding: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        """Transform a feature map; pop skip connections from the end of the list."""
        for block in self.entry:
            h = block(h, embedding)
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return h


class UNet(nn.Module):
    """f(x_l, t_l, y): an estimate of H^{l-1} x_0 from x_l, for all levels with the same weights."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        depths = range(len(shape.multipliers))
        self.embedding = Embedding(shape.family, shape.channels, shape.label_inputs)
        self.stem = nn.Conv2d(shape.inputs, _width(shape, -1), 3, padding=1)
        self.encoder = nn.ModuleList(EncoderLevel(shape, depth) for depth in depths)
        self.decoder = nn.ModuleList(DecoderLevel(shape, depth) for depth in reversed(depths))
        self.norm = group_norm(_width(shape, 0), STYLES[shape.family].eps)
        self.head = nn.Conv2d(_width(shape, 0), IMAGE_CHANNELS * shape.upscale**2, 3, padding=1)
        initialize(self, shape.family)

    def forward(self, x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Predict H^{l-1} x_0 from x_l.

        Args:
            x: x_l, and z_l if the network takes a latent, (B, 3 + k, h, w); h and w multiples of
                2^(U-Net levels - 1).
            time: t_l in (0, 1), a number or (B,).
            labels: (B,) int64 if the network is class-conditional, else ignored; negative values mean "no label",
                for networks trained with label dropout.

        Returns:
            (B, 3, 2h, 2w).
        """
        embedding = self.embedding(times_like(time, x), labels)
        h, pyramid = self.stem(x), x
        skips = [h]
        for level in self.encoder:
            h, pyramid = level(h, pyramid, embedding, skips)
        for level in self.decoder:
            h = level(h, embedding, skips)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.shape.upscale)


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
        latent_channels=section.latent_channels,
    )


def build_generator(config: ModelConfig) -> UNet:
    """Build a newly initialized generator; uses torch's global random state."""
    return UNet(generator_shape(config))


def _width(shape: UNetShape, depth: int) -> int:
    if depth < 0:
        # The stem; that of ADM is as wide as the first level.
        return shape.channels * (shape.multipliers[0] if shape.family == "adm" else 1)
    return shape.channels * shape.multipliers[depth]


def _block_maker(shape: UNetShape) -> Callable[..., ResidualBlock]:
    return partial(ResidualBlock, embedding=4 * shape.channels, style=STYLES[shape.family], dropout=shape.dropout)


@torch.no_grad()
def initialize(network: UNet, family: str) -> None:
    """Initialize a `UNet`; last layers start at (nearly) zero, so that every block starts as its skip.

    NCSN++ and DDPM++: Xavier-uniform weights (fans count the kernel's positions), zero biases, last layers times 1e-5,
    qkv times √0.2. ADM: weights and biases U(-1, 1)/√fan_in, last layers zero, the label's N(0, 1/fan_in)·√K.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if family == "adm":
        for module in layers:
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        if network.embedding.label is not None:
            # fan_in is K, so the factor √K gives N(0, 1).
            nn.init.normal_(network.embedding.label.weight)
        for last in _last_layers(network):
            nn.init.zeros_(last.weight)
            _zero_bias(last)
        return
    for module in layers:
        nn.init.xavier_uniform_(module.weight)
        _zero_bias(module)
    for last in _last_layers(network):
        last.weight.mul_(1e-5)
    for block in _blocks(network):
        if block.attention is not None:
            block.attention.qkv.weight.mul_(math.sqrt(0.2))


def _zero_bias(module: nn.Conv2d | nn.Linear) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _blocks(network: nn.Module) -> list[ResidualBlock]:
    return [module for module in network.modules() if isinstance(module, ResidualBlock)]


def _last_layers(network: UNet) -> list[nn.Conv2d]:
    found = [network.head]
    for block in _blocks(network):
        found += [block.conv_out] if block.attention is None else [block.conv_out, block.attention.proj]
    return found
