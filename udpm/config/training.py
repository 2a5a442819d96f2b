"""Training of a model: losses, optimization, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator as Choice
from pydantic import Field, Tag, model_validator

from udpm.config.validation import (
    Count,
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
POWER_WIDTHS = (0.05, 0.1)
"""Widths of the averages that `posthoc_average` tracks: standard deviation of the iterations in units of the last."""
EnergyExponent = Annotated[float, Field(gt=0, lt=2)]


class DiscriminatorNoise(Section):
    """Noise added to what the discriminator sees."""

    kind: Literal["none", "noisy", "diffusion"] = "none"
    """none; noisy: N(0, std²) with std decaying during training; diffusion: the forward process to level l-1."""
    std: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """For kind noisy: standard deviation for images in [-1, 1]. One value, or one for each level with l = 1 first."""
    decay_per_1000: DecayFactor = 1.0
    """Factor on std every 1000 iterations."""


class Augmentation(Section):
    """Random transforms of the images that the discriminator sees, real and generated ones alike; not in the paper."""

    flip: bool = False
    """Mirror half of the images horizontally."""
    translation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift in each direction as a fraction of the side, at least 1 pixel if above 0; the rest becomes 0."""
    cutout: Fraction = 0.0
    """Side of a square that becomes 0 as a fraction of the image's, at least 1 pixel if above 0."""
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of random brightness, saturation and contrast; 1 is that of DiffAugment. Not for grey images."""
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability of each transform, at the end of the ramp."""
    ramp: NonNegativeInt = 0
    """Iterations over which the probability rises from 0, along half a cosine; 0: from the start."""

    @property
    def transforms(self) -> bool:
        """True if any transform is on."""
        return self.flip or max(self.translation, self.cutout, self.colour) > 0


class Losses(Section):
    """Weights of the loss terms; lists hold one value for each level, l = 1 (finest) first."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance between output and target H^{l-1} x_0: mean absolute (as published) or mean squared error."""
    reconstruction_weight: NonNegativeFloat | list[NonNegativeFloat] = 1.0
    """λ1. One value, or one for each level."""
    lpips_weight: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """λp of LPIPS-VGG. One value, or one for each level; LPIPS needs images of side 16 or more."""
    lpips_network: Literal["vgg", "vgg-random"] = "vgg"
    """vgg: ImageNet weights, downloaded once to TORCH_HOME; vgg-random: untrained, for tests without the download."""
    lpips_exponent: LpipsExponent = 2.0
    """Exponent on the feature differences inside LPIPS; below 1 its gradient would be infinite."""
    energy_weight: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """λe of the energy score, a proper scoring rule of several draws of the output that share x_l: their mean distance
    from the target minus half their mean distance from each other. One value, or one for each level; needs
    generator.latent_channels, or energy_redraw at the coarsest level. Not in the paper."""
    energy_exponent: EnergyExponent = 1.0
    """β: exponent on the distances of the energy score, between 0 and 2."""
    energy_draws: Annotated[int, Field(ge=2, le=64)] = 2
    """m: draws of the output per image where the energy score has a weight; each costs a call of the generator."""
    energy_patch: NonNegativeInt = 0
    """Side of the square patches whose distances the energy score averages; 0 for the distance of whole images."""
    energy_redraw: bool = False
    """Also draw x_L anew for each draw. Only where x_L carries next to nothing of the image (SNR below 0.01)."""
    adversarial_weight: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """λa of softplus(-D). One value, or one for each level: where it is 0, no discriminator step is taken."""
    adversarial: Literal["standard", "relativistic"] = "standard"
    """standard: the discriminator judges each image alone, as published; relativistic: it compares each output with its
    target, softplus(D(fake) - D(real)), as in R3GAN."""
    r1_gamma: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """γ of the R1 gradient penalty, on real images. One value, or one for each level."""
    r2_gamma: NonNegativeFloat | list[NonNegativeFloat] = 0.0
    """γ of the R2 gradient penalty, the same on generated images. Not in the paper."""
    r1_every: PositiveInt = 1
    """Apply R1 and R2 only in every k-th discriminator step, with k times γ, k being this value; not in the paper."""
    r1_decay_per_1000: DecayFactor = 1.0
    """Factor on r1_gamma and r2_gamma every 1000 iterations."""
    adversarial_start: NonNegativeInt = 0
    """Number of iterations at the start without adversarial loss and discriminator step."""
    discriminator_noise: DiscriminatorNoise = DiscriminatorNoise()
    """Noise added to what the discriminator sees."""
    augmentation: Augmentation = Augmentation()
    """Random transforms of the images that the discriminator sees."""
    upsample_discriminator_input: bool = False
    """Upsample the discriminator's input to the full side N at every level, bilinearly."""
    normalize: bool = True
    """Divide output and target by s^{l-1} before every loss, which scales them back to [-1, 1]."""


class Training(Section):
    """Optimization, hardware and bookkeeping of a training run."""

    iterations: PositiveInt
    """Number of iterations (a discriminator step, then a generator step)."""
    epochs: PositiveInt | None = None
    """Stop after this number of passes over the training split, if that is before `iterations`."""
    batch: Count = 64
    """Images per iteration, summed over all processes."""
    nodes: PositiveInt = 1
    """Nodes that train one model together."""
    processes_per_node: PositiveInt = 1
    """Processes on each node, one for each of its GPUs."""
    accumulate: PositiveInt = 1
    """Gradient accumulation: parts that a process splits its share of the batch into to save memory."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """Backend of the gradient all-reduce; auto: nccl on GPUs, gloo on CPUs."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's rate for the generator after the warm-up."""
    discriminator_learning_rate: PositiveFloat | None = None
    """Adam's rate for the discriminator; default: the generator's."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Adam's β1 and β2, for both networks."""
    warmup: NonNegativeInt = 5000
    """Iterations of linear warm-up of both rates: rate × min(1, iteration / warmup)."""
    learning_rate_end: DecayFactor = 1.0
    """Fraction of both rates that is left at the end of a cosine decay from the end of the warm-up; 1 for none. Not in
    the paper."""
    decay_iterations: PositiveInt | None = None
    """Iteration at which the decay of both rates ends; constant afterwards. Default: the end of training, which then
    cannot be extended to more iterations."""
    discriminator_every: PositiveInt = 1
    """Iterations between discriminator steps."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.9999
    """Decay of the exponential moving average of the generator, updated every iteration; 0 for none. null: ema_halflife
    gives it."""
    ema_halflife: PositiveFloat | None = None
    """Instead of ema_decay: images after which weights count half in the average; decay is 0.5^(batch/ema_halflife)."""
    more_ema_decays: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """Decays of additional averages, which sampling.weights selects by names such as ema-0.999."""
    ema_warmup: bool = False
    """Start all averages with a smaller decay: min(ema_decay, (1 + iteration)/(10 + iteration))."""
    ema_rampup: DecayFactor | None = None
    """Start all averages with a shorter half-life: at most this fraction of the images so far (StyleGAN2: 0.05)."""
    posthoc_average: bool = False
    """Also track averages of widths 0.05 and 0.1, and save a snapshot of both every keep_every iterations and at the
    end, from which udpm average reconstructs an average of another width. Changes no weights."""
    level_probabilities: list[NonNegativeFloat] | None = None
    """Probability of drawing each level, l = 1 first; default: uniform, as published."""
    flip: bool = True
    """Random horizontal flips."""
    noise: Literal["host", "counter"] = "host"
    """Generator of a step's noise, latents, random transforms and dropped labels. host: PyTorch's, on the CPU, for the
    batch of all processes; counter: Philox on the device, for a process's own part."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast of the networks (GPU); weights, losses and the process stay float32."""
    tf32: bool = True
    """On GPUs, compute float32 products with TF32 inputs."""
    channels_last: bool = False
    """Store feature maps in channels-last memory format, which is faster for bfloat16 convolutions on GPUs."""
    compile: bool = False
    """Compile the networks (torch.compile): minutes at the start, faster iterations on GPUs."""
    cuda_graphs: bool = False
    """On GPUs, launch the forward and backward pass of a step as one CUDA graph. A graph is recorded for each network
    and level, and again when a loss weight changes; it needs memory for another set of gradients. No effect on a
    CPU."""
    threads: Threads = 2
    """CPU threads of the training process; results on a CPU depend on their number."""
    checkpoint_every: PositiveInt = 5000
    """Iterations between checkpoints, from which the same command resumes."""
    checkpoint_minutes: PositiveFloat = 30.0
    """Longest time between checkpoints in minutes."""
    keep_every: NonNegativeInt = 10_000
    """Iterations between milestones, weights that are kept for sampling.iteration; 0 for none."""
    data: Literal["auto", "device", "memory"] = "auto"
    """Location of the images: on the device, memory-mapped on the host, or auto: on a GPU if they fit into a quarter of
    its free memory."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads that prefetch batches and noise; 0 prepares them when they are needed."""
    log_every: PositiveInt = 100
    """Iterations between lines of metrics.jsonl, whose values are means over them."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Programs that also get these values and the previews; each needs the extra of its name. They write into the run's
    folder: MLflow unless MLFLOW_TRACKING_URI is set, W&B unless WANDB_MODE is online."""
    preview_every: NonNegativeInt = 0
    """Iterations between previews, a grid of images sampled from the same noise each time; 0 for none."""

    @property
    def average_decay(self) -> float:
        """Decay of the average "ema"; 0 without one."""
        return (self.ema_decay or 0.0) if self.ema_halflife is None else 0.5 ** (self.batch / self.ema_halflife)

    @property
    def averages(self) -> dict[str, float]:
        """Decays of the exponential moving averages, by name."""
        first = {"ema": self.average_decay} if self.average_decay else {}
        return first | {f"ema-{decay!r}": decay for decay in self.more_ema_decays}

    @property
    def power_averages(self) -> dict[str, float]:
        """Widths of the averages that snapshots hold, by name."""
        return {f"power-{width:g}": width for width in POWER_WIDTHS} if self.posthoc_average else {}

    @property
    def kept_weights(self) -> list[str]:
        """Names of all weights that a run saves at its end."""
        return [*self.averages, "raw"]

    def ends_at(self, images: int) -> int:
        """Return the last iteration of training on a training split of `images` images."""
        return min(self.iterations, self.epochs * images // self.batch) if self.epochs else self.iterations

    @property
    def processes(self) -> int:
        """Number of processes on all nodes."""
        return self.nodes * self.processes_per_node

    @property
    def decays_to_the_end(self) -> bool:
        """True if the learning rates depend on the number of iterations."""
        return self.learning_rate_end < 1 and self.decay_iterations is None

    @check
    def _decay_follows_the_warm_up(self) -> None:
        if self.decay_iterations is not None and self.learning_rate_end == 1:
            raise ValueError(
                f"decay_iterations: {self.decay_iterations}, but learning_rate_end is 1, so the rates do not decay; "
                "set it below 1, or leave decay_iterations out"
            )
        key = "iterations" if self.decay_iterations is None else "decay_iterations"
        if self.learning_rate_end < 1 and getattr(self, key) <= self.warmup:
            raise ValueError(
                f"{key}: {getattr(self, key)}, but the rates decay after {self.warmup} iterations of warmup; "
                "must be more than that"
            )

    @model_validator(mode="before")
    @classmethod
    def _the_half_life_replaces_the_default_decay(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("ema_halflife") is not None:
            return {"ema_decay": None} | values
        return values

    @model_validator(mode="before")
    @classmethod
    def _tensorboard_is_a_tracker(cls, values: Any) -> Any:
        if isinstance(values, dict) and "tensorboard" in values:
            raise ValueError("tensorboard: is one of the trackers now; write trackers: [tensorboard], or leave it out")
        return values

    @check
    def _trackers_differ(self) -> None:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers: must differ from each other, got {self.trackers}")

    @check
    def _the_average_has_one_decay(self) -> None:
        if self.ema_halflife is None:
            if self.ema_decay is None:
                raise ValueError("ema_decay: null, but ema_halflife gives none; set one of them, or 0 for no average")
        elif self.ema_decay is not None:
            raise ValueError(
                f"ema_halflife: {self.ema_halflife:g}, but ema_decay is {self.ema_decay:g}; set ema_decay: null"
            )
        elif not 0 < self.average_decay < 1:
            raise ValueError(
                f"ema_halflife: {self.ema_halflife:g} images give no decay between 0 and 1 for a batch of {self.batch}"
            )
        if self.ema_rampup is not None and self.ema_warmup:
            raise ValueError("ema_rampup: starts the averages, and so does ema_warmup; leave one out")

    @check
    def _snapshots_are_kept(self) -> None:
        if self.posthoc_average and not self.keep_every:
            raise ValueError("posthoc_average: needs snapshots, but keep_every is 0; set keep_every above 0")

    @check
    def _averages_differ(self) -> None:
        decays = [self.average_decay, *self.more_ema_decays]
        if len(set(decays)) < len(decays) or not all(repr(decay).startswith("0.") for decay in self.more_ema_decays):
            raise ValueError(
                f"more_ema_decays: must be at least 0.0001 and differ from each other and from ema_decay, got {decays}"
            )

    @check
    def _one_way_of_calling(self) -> None:
        if self.compile and self.cuda_graphs:
            raise ValueError("cuda_graphs: cannot record compiled networks; leave compile or cuda_graphs out")

    @check
    def _batch_divides(self) -> None:
        parts = self.processes * self.accumulate
        if self.batch % parts:
            near = sorted({max(parts, self.batch // parts * parts), (self.batch // parts + 1) * parts})
            raise ValueError(
                f"batch: cannot split {self.batch} images over {self.processes} processes in {self.accumulate} "
                f"parts each; use {' or '.join(map(str, near))}"
            )


if TYPE_CHECKING:
    # What trains is only called with a section. A checker takes the value for one, and still allows "imported".
    TrainingOrImported = Training | Any
else:
    TrainingOrImported = Annotated[
        Annotated[Training, Tag("[section]")] | Annotated[Literal["imported"], Tag("[word]")],
        Choice(lambda value: "[word]" if isinstance(value, str) else "[section]"),
    ]
    """A section, or the word for given weights instead of training. The tags only select the branch; errors leave out
    bracketed parts of a location."""
