"""An experiment: process, networks, losses, training, sampling and scoring of one model."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from udpm.config.base import (
    Alpha,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from udpm.config.dataset import DatasetConfig

PER_LEVEL = "One value, or one for each level with l = 1 (finest) first."


class Process(Section):
    """The forward process: x_l = α_l H x_{l-1} + σ_l ε for l = 1..L."""

    levels: PositiveInt
    """L, the number of halvings, and of network calls per image."""
    alphas: list[Alpha]
    """α_l in (0, 1], one for each level, l = 1 first."""
    sigmas: list[PositiveFloat]
    """σ_l > 0, one for each level, l = 1 first."""
    normalization: Literal["norm", "sum"] = "norm"
    """The 2×2 box of H is divided by its l2 norm (taps 1/2, H Hᵀ = I) or by its sum (taps 1/4, the plain average)."""

    @model_validator(mode="after")
    def _one_value_per_level(self) -> Process:
        for key in ("alphas", "sigmas"):
            count = len(getattr(self, key))
            if count != self.levels:
                raise ValueError(f"{key}: has {count} values, but levels is {self.levels}; give one for each level")
        return self


class Generator(Section):
    """The U-Net f(x_l, t_l, y) that predicts H^{l-1} x_0; one network for all levels."""

    family: Literal["ncsnpp"] = "ncsnpp"
    """Architecture; ncsnpp is the paper's."""
    channels: PositiveInt
    """Base width C."""
    channel_multipliers: Annotated[list[PositiveInt], Field(min_length=1)]
    """Width of each U-Net level in multiples of C; their number is the network's depth."""
    blocks: PositiveInt = 4
    """Residual blocks per U-Net level (the decoder has one more)."""
    attention: list[PositiveInt] = []
    """U-Net levels with self-attention, named by their side when the input has side N/2."""
    dropout: Fraction = 0.0
    """Dropout probability in the residual blocks."""
    class_conditional: bool = False
    """Whether the network sees the class label."""


class Discriminator(Section):
    """The discriminator D(x, t_l, y) of images of level l - 1."""

    channels: PositiveInt
    """Base width F."""
    dropout: Fraction | list[Fraction] = 0.0
    """Dropout probability in its blocks and on the logit. One value, or one for each level with l = 1 first."""
    class_conditional: bool = False
    """Whether it sees the class label."""


class DiscriminatorNoise(Section):
    """Noise added to what the discriminator sees."""

    kind: Literal["none", "noisy"] = "none"
    """none, or noisy: N(0, std²) whose std decays during training."""
    std: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """Standard deviation for images in [-1, 1]. One value, or one for each level with l = 1 first."""
    decay_per_1000: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on std every 1000 iterations."""


class Losses(Section):
    """Weights of the loss terms; lists hold one value for each level, l = 1 (finest) first."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance of output and target H^{l-1} x_0: mean absolute (as published) or mean squared error."""
    reconstruction_weight: NonNegativeFloat | list[NonNegativeFloat] = 1.0
    """λ1. One value, or one for each level."""
    lpips_weight: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """λp of LPIPS-VGG. One value, or one for each level; LPIPS needs images of side 16 or more."""
    lpips_network: Literal["vgg", "vgg-random"] = "vgg"
    """vgg: ImageNet weights, downloaded by torchvision; vgg-random: untrained, to try the code without the download."""
    adversarial_weight: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """λa of softplus(-D). One value, or one for each level; all zero means no discriminator is trained."""
    r1_gamma: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """γ of the R1 gradient penalty. One value, or one for each level."""
    discriminator_noise: DiscriminatorNoise = DiscriminatorNoise()
    """Noise added to what the discriminator sees."""
    normalize: bool = True
    """Divide output and target by s^{l-1} before every loss, which brings them back to [-1, 1]."""


class Training(Section):
    """The optimisation."""

    iterations: PositiveInt
    """Number of iterations (a discriminator step, then a generator step)."""
    batch: PositiveInt = 64
    """Images per iteration, over all processes."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's rate for the generator after the warm-up."""
    discriminator_learning_rate: PositiveFloat | None = None
    """Adam's rate for the discriminator; default: the generator's."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Adam's β1 and β2, for both networks."""
    warmup: NonNegativeInt = 5000
    """Iterations of linear warm-up of both rates: rate × min(1, iteration / warmup)."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Decay of the exponential moving average of the generator, updated every iteration."""
    level_probabilities: list[NonNegativeFloat] | None = None
    """Probability of drawing each level, l = 1 first; default: uniform, as published."""
    flip: bool = True
    """Random horizontal flips."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast of the networks (GPU); weights, losses and the process stay float32."""
    threads: PositiveInt = 2
    """CPU threads of the training process. CPU results depend on it."""
    checkpoint_every: PositiveInt = 5000
    """Iterations between checkpoints, from which the same command resumes."""
    log_every: PositiveInt = 100
    """Iterations between lines of metrics.jsonl; values are means over them."""


class Sampling(Section):
    """The sample set that scores and figures are made from."""

    count: PositiveInt = 50_000
    """Number of images."""
    batch: PositiveInt = 250
    """Images per network call; has no influence on the images."""
    seed: NonNegativeInt = 0
    """The n-th image's noise is a function of (seed, n) alone."""
    posterior: Literal["scalar", "exact"] = "scalar"
    """Covariance of q(x_{l-1} | x_l, x_0): one number (as published), or the exact matrix."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged weights, or those of the last iteration."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one, else the CPU."""
    threads: PositiveInt = 2
    """CPU threads of the sampling process."""


class Scoring(Section):
    """How sample sets are scored."""

    extractor: str
    """digits: the classifier that the workflow trains on the data set's training split; or the path of a TorchScript
    file, (N, 3, side, side) float in [0, 255] -> (N, d) features."""
    reference_split: Literal["train", "test"] = "train"
    """Split of the data set that the reference statistics are taken from."""
    neighbours: PositiveInt = 3
    """k of the k-nearest-neighbour precision and recall."""
    batch: PositiveInt = 250
    """Images per call of the extractor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one, else the CPU."""
    threads: PositiveInt = 2
    """CPU threads of the scoring process."""


class Experiment(Section):
    """One file of ``config/experiments/``."""

    extends: str | None = None
    """Experiment to inherit from: its values hold where this file says nothing. Lists are replaced whole."""
    description: str = ""
    """One line for reports."""
    dataset: str
    """Name of a file in ``config/datasets/``."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] = [0]
    """Training seeds; each is a run of its own."""
    process: Process
    generator: Generator
    discriminator: Discriminator | None = None
    """Needed where a loss weight is adversarial."""
    losses: Losses
    training: Training
    sampling: Sampling = Sampling()
    scoring: Scoring

    @model_validator(mode="after")
    def _lists_have_one_value_per_level(self) -> Experiment:
        for path, value in _per_level_values(self):
            if isinstance(value, list) and len(value) != self.process.levels:
                raise ValueError(
                    f"{path}: has {len(value)} values, but process.levels is {self.process.levels}; "
                    "give one value, or one for each level"
                )
        return self

    @model_validator(mode="after")
    def _discriminator_where_needed(self) -> Experiment:
        if self.discriminator is None and any(_as_list(self.losses.adversarial_weight, 1)):
            raise ValueError("discriminator: is missing, but losses.adversarial_weight is above 0")
        return self

    @model_validator(mode="after")
    def _probabilities_sum_to_one(self) -> Experiment:
        probabilities = self.training.level_probabilities
        if probabilities is not None and not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
            raise ValueError(f"training.level_probabilities: must sum to 1, but sum to {sum(probabilities):g}")
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Experiment:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: a seed is there twice in {self.seeds}")
        return self


class RunConfig(Section):
    """Everything that one training run depends on, resolved: what `udpm train` reads and what weights carry along."""

    experiment: str
    """Name of the experiment."""
    seed: NonNegativeInt
    """Training seed."""
    dataset_name: str
    """Name of the data set."""
    dataset: DatasetConfig
    process: Process
    generator: Generator
    discriminator: Discriminator | None
    losses: Losses
    training: Training

    @model_validator(mode="after")
    def _network_fits_every_level(self) -> RunConfig:
        side, levels = self.dataset.side, self.process.levels
        if side % 2**levels:
            raise ValueError(
                f"process.levels: {levels} levels halve the image {levels} times, but side {side} of data set "
                f"{self.dataset_name} is not divisible by 2^{levels} = {2**levels}"
            )
        coarsest, factor = side // 2**levels, 2 ** (len(self.generator.channel_multipliers) - 1)
        if coarsest % factor:
            raise ValueError(
                f"generator.channel_multipliers: a network of {len(self.generator.channel_multipliers)} U-Net levels "
                f"needs inputs whose side is a multiple of {factor}, but its smallest input (level {levels} of a "
                f"{side}-pixel image) has side {coarsest}; use at most {_deepest(coarsest)} multipliers"
            )
        return self

    @model_validator(mode="after")
    def _attention_names_a_level(self) -> RunConfig:
        sides = [self.dataset.side // 2 >> depth for depth in range(len(self.generator.channel_multipliers))]
        for side in self.generator.attention:
            if side not in sides:
                raise ValueError(f"generator.attention: {side} is no side of a U-Net level; these are {sides}")
        return self

    @model_validator(mode="after")
    def _classes_where_conditional(self) -> RunConfig:
        for key in ("generator", "discriminator"):
            section = getattr(self, key)
            if section is not None and section.class_conditional and self.dataset.classes < 2:
                raise ValueError(f"{key}.class_conditional: true, but data set {self.dataset_name} has no classes")
        return self

    @model_validator(mode="after")
    def _lpips_takes_the_image(self) -> RunConfig:
        for level, weight in enumerate(self.per_level("losses.lpips_weight"), start=1):
            side = self.dataset.side >> (level - 1)
            if weight > 0 and side < 16:
                raise ValueError(
                    f"losses.lpips_weight: {weight:g} at level {level}, whose images have side {side}; "
                    "LPIPS-VGG needs at least 16, so it must be 0 there"
                )
        return self

    @property
    def classes(self) -> int:
        """Number of classes of the data set; 0 if unlabelled."""
        return self.dataset.classes

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained."""
        return self.discriminator is not None and any(self.per_level("losses.adversarial_weight"))

    def per_level(self, path: str) -> list[float]:
        """The values of a per-level key such as "losses.r1_gamma", one for each level, l = 1 first."""
        value = self
        for key in path.split("."):
            value = getattr(value, key)
        return _as_list(value, self.process.levels)


def _as_list(value: float | list[float], count: int) -> list[float]:
    return list(value) if isinstance(value, list) else [value] * count


def _per_level_values(experiment: Experiment) -> list[tuple[str, object]]:
    losses = experiment.losses
    found = [
        ("losses.reconstruction_weight", losses.reconstruction_weight),
        ("losses.lpips_weight", losses.lpips_weight),
        ("losses.adversarial_weight", losses.adversarial_weight),
        ("losses.r1_gamma", losses.r1_gamma),
        ("losses.discriminator_noise.std", losses.discriminator_noise.std),
        ("training.level_probabilities", experiment.training.level_probabilities),
    ]
    if experiment.discriminator is not None:
        found.append(("discriminator.dropout", experiment.discriminator.dropout))
    return found


def _deepest(side: int) -> int:
    """The largest number of U-Net levels that inputs of this side allow."""
    return (side & -side).bit_length()
