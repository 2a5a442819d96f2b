"""Shape of the networks and the process a generator is trained for: everything needed to use its weights."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from udpm.config.validation import Alpha, Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Section, check

LARGEST_SIDE = 2**14
"""Largest image side; a weight file that declares more is rejected as damaged."""
ADM_HEAD_CHANNELS = 64
"""Channels of one attention head in the adm family."""
Family = Literal["ncsnpp", "ddpmpp", "adm"]


class Process(Section):
    """The forward process: x_l = α_l H x_{l-1} + σ_l ε for l = 1..L."""

    levels: PositiveInt
    """L, the number of halvings, and of network calls per image."""
    factor: Literal[2] = 2
    """γ, the downsampling factor of a level. The method's networks upsample by 2, so it is always 2."""
    alphas: list[Alpha]
    """α_l in (0, 1], one for each level, l = 1 first."""
    sigmas: list[PositiveFloat]
    """σ_l > 0, one for each level, l = 1 first."""
    normalization: Literal["norm", "sum"] = "norm"
    """Normalize the 2×2 box of H by its l2 norm (taps 1/2, H Hᵀ = I) or by its sum (taps 1/4, the plain average)."""

    @check
    def _one_value_per_level(self) -> None:
        counts = {key: len(getattr(self, key)) for key in ("alphas", "sigmas")}
        wrong = [
            f"{key}: has {count} values, but levels is {self.levels}; give one for each level"
            for key, count in counts.items()
            if count != self.levels
        ]
        if wrong:
            raise ValueError("\n".join(wrong))

    @property
    def last_snr(self) -> float:
        """Signal-to-noise ratio of x_L, as a ratio of amplitudes; see `udpm.diffusion.schedule.Schedule.snr`."""
        variance = 0.0
        for alpha, sigma in zip(self.alphas, self.sigmas, strict=True):
            variance = alpha**2 * variance + sigma**2
        scale = 2 if self.normalization == "norm" else 1
        return math.prod(self.alphas) * scale**self.levels / math.sqrt(variance)


class Generator(Section):
    """The U-Net f(x_l, t_l, y) that predicts H^{l-1} x_0; one network for all levels."""

    family: Family = "ncsnpp"
    """Architecture: ncsnpp (the paper's), ddpmpp or adm."""
    channels: Annotated[int, Field(gt=0, le=16_384, multiple_of=2)]
    """Base width C, even."""
    channel_multipliers: Annotated[list[Annotated[int, Field(gt=0, le=256)]], Field(min_length=1, max_length=16)]
    """Width of each U-Net level in multiples of C; their number is the network's depth."""
    blocks: Annotated[int, Field(gt=0, le=256)] = 4
    """Residual blocks per U-Net level (the decoder has one more)."""
    attention: list[PositiveInt] = []
    """U-Net levels with self-attention, given by their side for an input of side N/2. The middle of the network, at the
    coarsest level, always has it."""
    dropout: Fraction = 0.0
    """Dropout probability in the residual blocks."""
    latent_channels: Annotated[int, Field(ge=0, le=64)] = 0
    """k: channels of the latent z_l ~ N(0, I) that each call gets next to x_l, so that its output is a random function
    of x_l; 0 for none, as in the paper."""
    class_conditional: bool = False
    """Condition the network on the class label."""
    label_dropout: Fraction = 0.0
    """Probability of dropping a label in training, which allows unlabelled and guided sampling."""

    @check
    def _labels_to_drop(self) -> None:
        if self.label_dropout and not self.class_conditional:
            raise ValueError("label_dropout: above 0, but class_conditional is false")


class ModelConfig(Section):
    """Configuration stored with weights: the generator's shape and its process."""

    side: Annotated[int, Field(gt=0, le=LARGEST_SIDE)]
    """N, side of the images."""
    classes: NonNegativeInt
    """Number of the generator's classes; 0 for an unconditional one."""
    process: Process
    generator: Generator

    @check
    def _network_fits(self) -> None:
        check_fit(self.side, self.process, self.generator, "these images")


def check_fit(side: int, process: Process, generator: Generator, images: str) -> None:
    """Check that a generator accepts every level of images of a given side.

    Args:
        side: N.
        process: used for its number of levels.
        generator: used for its widths, depth and attention.
        images: name of the images in errors.

    Raises:
        ValueError: they do not match; the message names the key.
    """
    _check_widths(generator)
    _check_depth(side, process.levels, len(generator.channel_multipliers), images)
    sides = [side // 2 >> depth for depth in range(len(generator.channel_multipliers))]
    for wanted in generator.attention:
        if wanted not in sides:
            raise ValueError(f"generator.attention: {wanted} is not the side of a U-Net level; these are {sides}")
    if generator.family == "adm":
        _check_heads(generator, sides)


def _check_depth(side: int, levels: int, depth: int, images: str) -> None:
    if side % 2**levels:
        raise ValueError(
            f"process.levels: {levels} levels halve the image {levels} times, but side {side} of {images} is not "
            f"divisible by 2^{levels}"
        )
    coarsest, factor = side // 2**levels, 2 ** (depth - 1)
    if coarsest % factor:
        raise ValueError(
            f"generator.channel_multipliers: a network of {depth} U-Net levels needs inputs whose side is a multiple "
            f"of {factor}, but its smallest input (level {levels} of a {side}-pixel image) has side {coarsest}; use "
            f"at most {(coarsest & -coarsest).bit_length()} multipliers"
        )


def normalized_groups(channels: int) -> int:
    """Groups of a group norm over `channels`: one per 4 channels, at most 32 and at least 1."""
    return max(min(32, channels // 4), 1)


def _check_widths(generator: Generator) -> None:
    """Check that the group count divides the width of every normalized map, also of the decoder's concatenated ones."""
    widths = [generator.channels * multiplier for multiplier in generator.channel_multipliers]
    stem = widths[0] if generator.family == "adm" else generator.channels
    joined = []
    for depth, width in enumerate(widths):
        above, below = (widths[depth - 1] if depth else stem), widths[min(depth + 1, len(widths) - 1)]
        joined += [below + width, *([2 * width] * (generator.blocks > 1)), width + above]
    for width in (stem, *widths, *joined):
        if width % normalized_groups(width):
            raise ValueError(
                f"generator.channels: {generator.channels} gives maps of {width} channels, which "
                f"{normalized_groups(width)} groups of a normalization do not divide; a multiple of 32 does"
            )


def _check_heads(generator: Generator, sides: list[int]) -> None:
    for side, multiplier in zip(sides, generator.channel_multipliers, strict=True):
        width = generator.channels * multiplier
        # The coarsest level has attention even if it is not listed.
        if (side in generator.attention or side == sides[-1]) and (
            width < ADM_HEAD_CHANNELS or width % (width // ADM_HEAD_CHANNELS)
        ):
            raise ValueError(
                f"generator.channels: attention of family adm at side {side} has {width} channels, but its heads of "
                f"{ADM_HEAD_CHANNELS} channels need at least {ADM_HEAD_CHANNELS}, divisible by the number of heads"
            )


WIDEST = 512
"""Channels of the discriminator's widest map."""
Deviation = Literal["sum", "mean", "none"]


class Discriminator(Section):
    """The discriminator D(x, t_l, y) of images of level l - 1."""

    channels: Annotated[int, Field(gt=0, multiple_of=2)]
    """Base width F, even."""
    dropout: Fraction | list[Fraction] = 0.0
    """Dropout probability in its blocks and on the logit. One value, or one for each level with l = 1 first."""
    class_conditional: bool = False
    """Condition it on the class label."""
    sees_state: bool = False
    """Also condition it on the noisy state x_l that an image was made from, as in denoising diffusion GANs; not in the
    paper."""
    minibatch_deviation: Deviation = "sum"
    """Map of the minibatch standard deviation: its sum over channels and positions (as published), its mean over them,
    which is of the features' size, or no such map."""

    @check
    def _widths_can_be_normalized(self) -> None:
        for doubled in range(10):
            width = min(WIDEST, self.channels * 2**doubled)
            if width % normalized_groups(width):
                raise ValueError(
                    f"channels: {self.channels} gives maps of {width} channels, which {normalized_groups(width)} "
                    "groups of a normalization do not divide; a multiple of 4 does"
                )
