"""How a model is trained: losses, optimization, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator as Choice
from pydantic import Field, Tag

from udpm.config.validation import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Threads,
    check,
)

DecayFactor = Annotated[float, Field(gt=0, le=1)]


LpipsExponent = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class DiscriminatorNoise(Section):
    """Noise added to what the discriminator sees."""

    kind: Literal["none", "noisy", "diffusion"] = "none"
    """none; noisy: N(0, std²) whose std decays during training; diffusion: the forward process to level l-1."""
    std: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """Of kind noisy: standard deviation for images in [-1, 1]. One value, or one for each level with l = 1 first."""
    decay_per_1000: DecayFactor = 1.0
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
    lpips_exponent: LpipsExponent = 2.0
    """Exponent on the feature differences inside LPIPS; below 1 its gradient would be infinite."""
    adversarial_weight: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """λa of softplus(-D). One value, or one for each level; all zero means no discriminator is trained."""
    r1_gamma: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """γ of the R1 gradient penalty. One value, or one for each level."""
    r1_every: PositiveInt = 1
    """Apply R1 in every so many discriminator steps only, with so many times γ; not in the paper."""
    r1_decay_per_1000: DecayFactor = 1.0
    """Factor on r1_gamma every 1000 iterations."""
    adversarial_start: NonNegativeInt = 0
    """Iterations at the start without any adversarial loss or discriminator step."""
    discriminator_noise: DiscriminatorNoise = DiscriminatorNoise()
    """Noise added to what the discriminator sees."""
    upsample_discriminator_input: bool = False
    """Show the discriminator every level at the full side N, enlarged bilinearly."""
    normalize: bool = True
    """Divide output and target by s^{l-1} before every loss, which brings them back to [-1, 1]."""


class Training(Section):
    """The optimisation."""

    iterations: PositiveInt
    """Number of iterations (a discriminator step, then a generator step)."""
    epochs: PositiveInt | None = None
    """Stop after so many passes over the training split, if that comes before `iterations`."""
    batch: PositiveInt = 64
    """Images per iteration, over all processes."""
    nodes: PositiveInt = 1
    """Nodes that train together."""
    processes_per_node: PositiveInt = 1
    """Processes on each node, one for each of its GPUs."""
    accumulate: PositiveInt = 1
    """Parts that a process cuts its share of the batch into, one after the other, to save memory."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """How processes exchange gradients; auto: nccl on GPUs, gloo on CPUs."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's rate for the generator after the warm-up."""
    discriminator_learning_rate: PositiveFloat | None = None
    """Adam's rate for the discriminator; default: the generator's."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Adam's β1 and β2, for both networks."""
    warmup: NonNegativeInt = 5000
    """Iterations of linear warm-up of both rates: rate × min(1, iteration / warmup)."""
    discriminator_every: PositiveInt = 1
    """A discriminator step every so many iterations."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the exponential moving average of the generator, updated every iteration; 0 for none."""
    more_ema_decays: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """Further averages kept beside it, for sampling.weights: ema-0.999 and the like."""
    ema_warmup: bool = False
    """Begin with shorter averages: decay min(ema_decay, (1 + iteration)/(10 + iteration)); for all averages."""
    level_probabilities: list[NonNegativeFloat] | None = None
    """Probability of drawing each level, l = 1 first; default: uniform, as published."""
    flip: bool = True
    """Random horizontal flips."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast of the networks (GPU); weights, losses and the process stay float32."""
    tf32: bool = True
    """On GPUs, let float32 products be computed with TF32 inputs."""
    channels_last: bool = False
    """Keep feature maps with their channels last in memory, which GPU convolutions in bfloat16 prefer."""
    compile: bool = False
    """Compile the networks (torch.compile): minutes at the start, faster iterations on GPUs."""
    cuda_graphs: bool = False
    """On GPUs, launch the forward and backward pass of a step as one CUDA graph: one is recorded for each network and
    level, and again when a loss weight changes; has no effect on a CPU. Takes memory for further gradients."""
    threads: Threads = 2
    """CPU threads of the training process. CPU results depend on it."""
    checkpoint_every: PositiveInt = 5000
    """Iterations between checkpoints, from which the same command resumes."""
    checkpoint_minutes: PositiveFloat = 30.0
    """Minutes after which a checkpoint is written at the latest."""
    keep_every: NonNegativeInt = 10_000
    """Iterations between milestones: weights that are kept, for sampling.iteration; 0 for none."""
    data: Literal["auto", "device", "memory"] = "auto"
    """Where the images are kept: on the device, memory-mapped, or auto: on a GPU that holds them easily."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads that prepare batches and noise ahead of their iteration; 0 prepares them when they are needed."""
    log_every: PositiveInt = 100
    """Iterations between lines of metrics.jsonl; values are means over them."""
    tensorboard: bool = False
    """Also write these values, and the previews, as TensorBoard event files."""
    preview_every: NonNegativeInt = 0
    """Iterations between previews, a grid of images of the same noise each time; 0 for none."""

    @property
    def averages(self) -> dict[str, float]:
        """Decays of the averages that are kept, by name."""
        first = {"ema": self.ema_decay} if self.ema_decay else {}
        return first | {f"ema-{decay!r}": decay for decay in self.more_ema_decays}

    @property
    def kept_weights(self) -> list[str]:
        """Names of all weights that a run ends with."""
        return [*self.averages, "raw"]

    def ends_at(self, images: int) -> int:
        """Iterations at the end of training, with so many images in the training split."""
        return min(self.iterations, self.epochs * images // self.batch) if self.epochs else self.iterations

    @property
    def processes(self) -> int:
        """All processes that train together."""
        return self.nodes * self.processes_per_node

    @check
    def _averages_differ(self) -> Training:
        decays = [self.ema_decay, *self.more_ema_decays]
        if len(set(decays)) < len(decays) or not all(repr(decay).startswith("0.") for decay in self.more_ema_decays):
            raise ValueError(f"more_ema_decays: must differ, and from ema_decay, and be at least 0.0001: {decays}")
        return self

    @check
    def _one_way_of_calling(self) -> Training:
        if self.compile and self.cuda_graphs:
            raise ValueError("cuda_graphs: compiled networks are not recorded; leave compile or cuda_graphs out")
        return self

    @check
    def _batch_divides(self) -> Training:
        parts = self.processes * self.accumulate
        if self.batch % parts:
            near = sorted({max(parts, self.batch // parts * parts), (self.batch // parts + 1) * parts})
            raise ValueError(
                f"batch: {self.batch} images cannot be shared by {self.processes} processes in {self.accumulate} "
                f"parts each; {' or '.join(map(str, near))} can"
            )
        return self


if TYPE_CHECKING:
    # What trains is only called with a section. A checker takes the value for one, and still allows "imported".
    TrainingOrImported = Training | Any
else:
    TrainingOrImported = Annotated[
        Annotated[Training, Tag("[section]")] | Annotated[Literal["imported"], Tag("[word]")],
        Choice(lambda value: "[word]" if isinstance(value, str) else "[section]"),
    ]
    """A section, or the word that puts given weights in the place of training. The tags only choose; errors leave out
    what stands in brackets."""
