"""An experiment: process, networks, losses, training, sampling and scoring of one model."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Discriminator as Choice
from pydantic import Field, Tag

from udpm.config.dataset import DatasetConfig
from udpm.config.model import Generator, ModelConfig, Process, check_fit, normalized_groups
from udpm.config.resources import Resources
from udpm.config.validation import (
    AnyPath,
    Count,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Threads,
    WorkflowPath,
    check,
)
from udpm.core.download import INCEPTION

WIDEST = 512
"""Channels of the discriminator's widest map."""
DecayFactor = Annotated[float, Field(gt=0, le=1)]
Label = NonNegativeInt | Annotated[str, Field(min_length=1)]
"""A class, by number or name."""
LpipsExponent = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Discriminator(Section):
    """The discriminator D(x, t_l, y) of images of level l - 1."""

    channels: Annotated[int, Field(gt=0, multiple_of=2)]
    """Base width F, even."""
    dropout: Fraction | list[Fraction] = 0.0
    """Dropout probability in its blocks and on the logit. One value, or one for each level with l = 1 first."""
    class_conditional: bool = False
    """Whether it sees the class label."""
    sees_state: bool = False
    """Whether it also sees the noisy state x_l that an image was made from, as in denoising diffusion GANs; not in the
    paper."""

    @check
    def _widths_can_be_normalized(self) -> Discriminator:
        for doubled in range(10):
            width = min(WIDEST, self.channels * 2**doubled)
            if width % normalized_groups(width):
                raise ValueError(
                    f"channels: {self.channels} gives maps of {width} channels, which {normalized_groups(width)} "
                    "groups of a normalisation do not divide; a multiple of 4 does"
                )
        return self


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


class Sampling(Section):
    """The sample set that scores and figures are made from."""

    count: Count = 50_000
    """Number of images."""
    labels: Literal["balanced", "none"] | list[Label] = "balanced"
    """Classes asked for, in turn: all of them, or those listed by name or number (a name wins where both are possible);
    none: no label, for a model with label dropout."""
    batch: PositiveInt = 250
    """Images per network call; has no influence on the images."""
    shards: PositiveInt = 1
    """Jobs that draw the set side by side, each whole batches; has no influence on the images."""
    seed: Seed = 0
    """The n-th image's noise is a function of (seed, n) alone."""
    posterior: Literal["scalar", "exact"] = "scalar"
    """Covariance of q(x_{l-1} | x_l, x_0): one number (as published), or the exact matrix."""
    guidance: PositiveFloat = 1.0
    """w of classifier-free guidance, f(no label) + w·(f(label) - f(no label)): 1 is none; needs label dropout."""
    noise: AnyPath | None = None
    """File of the noise to start from (.npz: base, eps_L, …, eps_1), instead of noise from `seed`."""
    weights: Annotated[str, Field(pattern=r"^(ema|raw|ema-0\.\d+)$")] = "ema"
    """ema: averaged weights; raw: the trained ones themselves; ema-0.999: an average of training.more_ema_decays."""
    iteration: PositiveInt | None = None
    """Sample a milestone (training.keep_every) instead of the end of training."""
    intermediate: bool = False
    """Keep every level's output too, shown at full side."""
    images: Literal["none", "flat", "classes"] = "none"
    """Also write one file per image: all in one folder, or in a folder for each class."""
    image_format: Literal["png", "jpg"] = "png"
    """Of those files."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: of the network's convolutions and linear layers; the chain between its calls stays float32."""
    tf32: bool = False
    """On GPUs, let float32 products be computed with TF32 inputs, of 10 bits of mantissa instead of 23: faster; has no
    effect on a CPU."""
    compile: bool = False
    """Compile the network (torch.compile), a minute or more at the start; pixels may differ by rounding. Needs a C++
    compiler, on GPUs Triton."""
    cuda_graphs: bool = False
    """On GPUs, launch the network's kernels as one CUDA graph for each level; has no effect on a CPU."""
    threads: Threads = 2
    """CPU threads of the sampling process."""

    @check
    def _one_way_of_calling(self) -> Sampling:
        if self.compile and self.cuda_graphs:
            raise ValueError("cuda_graphs: compile uses CUDA graphs by itself; leave one of the two out")
        return self

    @check
    def _shards_hold_batches(self) -> Sampling:
        batches = -(-self.count // self.batch)
        if self.shards > batches:
            raise ValueError(f"shards: {self.shards}, but {self.count} images are {batches} batches of {self.batch}")
        return self


class Latents(Section):
    """The latent-space figures (paper, section 4): what a model's noise maps control."""

    labels: list[Label] = []
    """Classes shown, by name or number, a row for each; empty: the first four. For a class-conditional model."""
    seeds: Annotated[list[Seed], Field(min_length=4, max_length=4)] = [0, 1, 2, 3]
    """Four latents: the first is perturbed, the first two are swapped, all four are interpolated. Without classes, rows
    are seeds: all four are perturbed, and the other two are swapped too."""
    strengths: PositiveInt = 5
    """Number of perturbation strengths, from none to the strongest."""
    strongest: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    """Share g of a map that its strongest perturbation keeps, g·ε + √(1-g²)·ε', one for each level with l = 1 first;
    default: 0 for the finest, 0.8 for the coarsest, 0.1 between (as published)."""
    grid: Annotated[int, Field(ge=2)] = 6
    """Side of the grid of four-way interpolation."""
    pca_images: Annotated[int, Field(ge=2)] = 128
    """Images whose principal components are shown."""
    pca_components: PositiveInt = 8
    """Number of principal components."""
    pca_keep: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Share g of one level's map that these images have in common; 0 draws the map anew for each."""

    @check
    def _enough_images_for_the_components(self) -> Latents:
        if self.pca_components >= self.pca_images:
            raise ValueError(
                f"pca_components: {self.pca_components} need at least {self.pca_components + 1} images, "
                f"but pca_images is {self.pca_images}"
            )
        return self


class Scoring(Section):
    """How sample sets are scored."""

    extractor: WorkflowPath
    """digits: the classifier that the workflow trains on the data set's training split; inception: the network whose
    distance is called FID; or the path of a TorchScript file, (N, 3, side, side) float -> (N, d) features, which is
    a program that scoring runs: take only files that you trust."""
    inception_mode: Literal["clean", "legacy_tensorflow", "legacy_pytorch"] = "clean"
    """How images come to Inception's 299 pixels, as clean-fid names it. Published numbers of EDM and StyleGAN are
    legacy_tensorflow, those of pytorch-fid legacy_pytorch."""
    inception_folder: WorkflowPath = "resources/weights"
    """Folder that holds inception-2015-12-05.pt, or that it is downloaded into."""
    inception_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = INCEPTION.sha256
    """SHA-256 that this file must have. The distance of any other file than the published one is not called FID."""
    download: bool = True
    """Whether a missing inception-2015-12-05.pt may be downloaded."""
    input_side: PositiveInt | None = None
    """Side that images are resized to before they enter a TorchScript file; null: they enter at their own."""
    input_resize: Literal["pil_bicubic", "pil_bilinear", "pil_lanczos", "pil_box", "pytorch_bilinear"] = "pil_bicubic"
    """Library and filter of this resizing, by clean-fid's functions and without rounding to bytes."""
    input_range: Literal["0..255", "0..1", "-1..1"] = "0..255"
    """What the values 0 to 255 of a pixel become before they enter a TorchScript file."""
    reference: WorkflowPath | None = None
    """Statistics that others published for this extractor (.npz with mu and sigma, as pytorch-fid and EDM write it) to
    measure against, instead of the data set's. They have no features: no kernel distance, precision and recall."""
    reference_split: Literal["train", "test"] = "train"
    """Split of the data set that the reference statistics are taken from."""
    reference_flips: bool = False
    """Whether the reference also holds every image's mirror image."""
    ranges: PositiveInt = 1
    """Equal parts that a sample set is cut into, in the order of its samples' numbers: the scores are those of the
    first, and the Fréchet distance of each is told beside them with the least. EDM reports the least of 3."""
    neighbours: PositiveInt = 3
    """k of the k-nearest-neighbour precision and recall."""
    kernel_subsets: PositiveInt = 100
    """Random subsets that the kernel distance (KID) is averaged over."""
    kernel_subset_size: Annotated[int, Field(ge=2)] = 1000
    """Images of either kind in one of them, at most as many as there are."""
    inception_splits: PositiveInt = 10
    """Parts of a set that the Inception score is averaged over."""
    batch: PositiveInt = 250
    """Images per call of the extractor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one, else the CPU."""
    threads: Threads = 2
    """CPU threads of the scoring process."""

    @check
    def _published_statistics_stand_alone(self) -> Scoring:
        if self.reference is None:
            return self
        if self.extractor == "digits":
            raise ValueError(
                "reference: published statistics are not of the digits extractor, which is trained here; declare "
                "theirs as extractor (inception, or a TorchScript file)"
            )
        if self.reference_flips or self.reference_split != "train":
            key = "reference_flips" if self.reference_flips else "reference_split"
            raise ValueError(
                f"{key}: is for the data set's statistics, but reference names published ones; leave one out"
            )
        return self


class Selection(Section):
    """Which milestone of a run is reported as its best: the one whose images have the least Fréchet distance. These are
    drawn for the choice alone, so that the score that is reported is not the number that was chosen by."""

    milestones: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Iterations of the milestones to choose from; default: all that training keeps (training.keep_every)."""
    count: Annotated[int, Field(ge=2, le=10_000_000)] = 10_000
    """Images drawn from each."""
    seed: Seed = 1
    """Their sampling seed; must not be sampling.seed."""


TrainingOrImported = Annotated[
    Annotated[Training, Tag("[section]")] | Annotated[Literal["imported"], Tag("[word]")],
    Choice(lambda value: "[word]" if isinstance(value, str) else "[section]"),
]
"""A section, or the word that puts given weights in the place of training. The tags only choose; errors leave out what
stands in brackets."""


class Experiment(Section):
    """One file of ``config/experiments/``."""

    extends: str | None = None
    """Experiment to inherit from: its values hold where this file says nothing. Lists are replaced whole."""
    description: str = ""
    """One line for reports."""
    dataset: str
    """Name of a file in ``config/datasets/``."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Training seeds; each is a run of its own."""
    process: Process
    generator: Generator
    discriminator: Discriminator | None = None
    """Needed where a loss weight is adversarial."""
    losses: Losses
    training: TrainingOrImported
    weights: WorkflowPath | None = None
    """Weights to start training from, or, with ``training: imported``, to use as they are: a file of this project or a
    published checkpoint (.pt)."""
    sampling: Sampling = Sampling()
    scoring: Scoring | None
    """null: nothing is scored. Then there are no reference, scores, nearest training images and selection."""
    selection: Selection | None = None
    """Also report the best milestone; default: the end of training alone."""
    latents: Latents = Latents()
    resources: Resources = Resources()
    """What jobs ask a cluster for."""

    @property
    def candidates(self) -> list[int]:
        """Iterations of the milestones that the best is chosen from, ascending; none without a selection."""
        if self.selection is None or self.training == "imported":
            return []
        every, end = self.training.keep_every, self.training.iterations
        return sorted(self.selection.milestones or range(every, end + 1, every))

    @property
    def selection_sampling(self) -> Sampling:
        """How the images that the choice is made by are drawn: as those that are scored, but for count and seed."""
        selection = self.selection or Selection()
        own = {"count": selection.count, "seed": selection.seed, "noise": None, "iteration": None, "shards": 1}
        return self.sampling.model_copy(update=own | {"intermediate": False, "images": "none"})

    @property
    def selection_scoring(self) -> Scoring | None:
        """How they are scored: as those of the end of training, in one range."""
        return None if self.scoring is None else self.scoring.model_copy(update={"ranges": 1})

    @check
    def _lists_have_one_value_per_level(self) -> Experiment:
        wrong = [
            f"{path}: has {len(value)} values, but process.levels is {self.process.levels}; "
            "give one value, or one for each level"
            for path, value in _per_level_values(self)
            if isinstance(value, list) and len(value) != self.process.levels
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @check
    def _discriminator_where_needed(self) -> Experiment:
        if self.discriminator is None and any(_as_list(self.losses.adversarial_weight, 1)):
            raise ValueError("discriminator: is missing, but losses.adversarial_weight is above 0")
        return self

    @check
    def _probabilities_sum_to_one(self) -> Experiment:
        probabilities = None if self.training == "imported" else self.training.level_probabilities
        if probabilities is not None and not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
            raise ValueError(f"training.level_probabilities: must sum to 1, but sum to {sum(probabilities):g}")
        return self

    @check
    def _imported_weights_have_a_file(self) -> Experiment:
        if self.training == "imported":
            if self.weights is None:
                raise ValueError("weights: is missing, but training is imported; name the file")
            if len(self.seeds) > 1:
                raise ValueError(f"seeds: imported weights are one run, but there are {len(self.seeds)} seeds")
        return self

    @check
    def _sampling_fits_the_model(self) -> Experiment:
        sampling, training = self.sampling, self.training
        if sampling.guidance != 1 and not self.generator.label_dropout:
            raise ValueError("sampling.guidance: needs a generator trained with label_dropout above 0")
        if isinstance(sampling.labels, list) and not self.generator.class_conditional:
            raise ValueError("sampling.labels: the generator is not class_conditional; leave them out")
        if sampling.labels == "none" and sampling.guidance != 1:
            raise ValueError("sampling.guidance: leads to labels, but sampling.labels is none")
        if sampling.labels == "none" and not self.generator.label_dropout:
            raise ValueError("sampling.labels: none, but the generator is not trained with label_dropout above 0")
        if isinstance(training, Training) and sampling.weights not in training.kept_weights:
            raise ValueError(
                f"sampling.weights: {sampling.weights}, but training keeps {', '.join(training.kept_weights)}"
            )
        return self

    @check
    def _sampled_milestone_is_kept(self) -> Experiment:
        iteration, training = self.sampling.iteration, self.training
        if iteration is None:
            return self
        if not isinstance(training, Training):
            raise ValueError("sampling.iteration: imported weights have no milestones; leave it out")
        if not training.keep_every or iteration % training.keep_every or iteration > training.iterations:
            raise ValueError(
                f"sampling.iteration: {iteration} is not kept; training keeps every {training.keep_every} (keep_every) "
                f"up to {training.iterations}"
            )
        if self.sampling.weights == "raw" and training.averages:
            raise ValueError("sampling.weights: raw, but milestones keep averages only; use ema")
        return self

    @check
    def _scores_can_be_measured(self) -> Experiment:
        scoring, count = self.scoring, self.sampling.count
        if scoring is None:
            return self
        if count % scoring.ranges or count < 2 * scoring.ranges:
            raise ValueError(
                f"scoring.ranges: sampling.count is {count}, which makes no {scoring.ranges} equal ranges of 2 or "
                "more; change one of the two, or write scoring: null"
            )
        return self

    @check
    def _selection_has_milestones(self) -> Experiment:
        selection, training = self.selection, self.training
        if selection is None:
            return self
        if self.scoring is None:
            raise ValueError("selection: chooses by scores, but scoring is null; leave one out")
        if not isinstance(training, Training):
            raise ValueError("selection: imported weights have no milestones to choose from; leave it out")
        every = training.keep_every
        if every == 0 or every > training.iterations:
            raise ValueError(
                f"selection: training keeps no milestones; training.keep_every is {every}, must lie in "
                f"1..{training.iterations}"
            )
        for iteration in selection.milestones or []:
            if iteration % every or iteration > training.iterations:
                raise ValueError(
                    f"selection.milestones: {iteration} is not kept; training keeps every {every} (keep_every) up to "
                    f"{training.iterations}"
                )
        if training.epochs and not selection.milestones:
            raise ValueError("selection.milestones: is missing; training.epochs may end before all that are kept")
        return self

    @check
    def _selection_is_independent(self) -> Experiment:
        selection, sampling, training = self.selection, self.sampling, self.training
        if selection is None or not isinstance(training, Training):
            return self
        if selection.seed == sampling.seed:
            raise ValueError(
                f"selection.seed: {selection.seed} is sampling.seed too; take another, so that the score that is "
                "reported is not the one that was chosen by"
            )
        if len(set(selection.milestones or [])) != len(selection.milestones or []):
            raise ValueError(f"selection.milestones: an iteration is there twice in {selection.milestones}")
        if sampling.iteration is not None:
            raise ValueError("sampling.iteration: samples one milestone, selection the best of them; leave one out")
        if sampling.weights == "raw" and training.averages:
            raise ValueError("sampling.weights: raw, but milestones keep averages only; use ema")
        return self

    @check
    def _latents_fit_the_model(self) -> Experiment:
        if self.latents.labels and not self.generator.class_conditional:
            raise ValueError("latents.labels: the generator is not class_conditional; leave them out")
        return self

    @check
    def _gpus_are_one_for_each_process(self) -> Experiment:
        gpus, training = self.resources.training.gpus_per_node, self.training
        if isinstance(training, Training) and gpus not in (None, 0, training.processes_per_node):
            raise ValueError(
                f"resources.training.gpus_per_node: {gpus}, but training.processes_per_node is "
                f"{training.processes_per_node}; each process takes one GPU, or gpus_per_node is 0"
            )
        return self

    @check
    def _seeds_differ(self) -> Experiment:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: a seed is there twice in {self.seeds}")
        return self


class RunConfig(Section):
    """Everything that one training run depends on, resolved: what `udpm train` reads and what weights carry along."""

    experiment: str
    """Name of the experiment."""
    seed: Seed
    """Training seed."""
    dataset_name: str
    """Name of the data set."""
    dataset: DatasetConfig
    process: Process
    generator: Generator
    discriminator: Discriminator | None
    losses: Losses
    training: TrainingOrImported
    weights: str | None

    @check
    def _network_fits(self) -> RunConfig:
        check_fit(self.dataset.side, self.process, self.generator, f"data set {self.dataset_name}")
        return self

    @check
    def _classes_where_conditional(self) -> RunConfig:
        for key in ("generator", "discriminator"):
            section = getattr(self, key)
            if section is not None and section.class_conditional and self.dataset.classes < 2:
                raise ValueError(f"{key}.class_conditional: true, but data set {self.dataset_name} has no classes")
        return self

    @check
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
    def model(self) -> ModelConfig:
        """The part that the generator's tensors and its use in sampling depend on."""
        return ModelConfig(
            side=self.dataset.side,
            classes=self.classes if self.generator.class_conditional else 0,
            process=self.process,
            generator=self.generator,
        )

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
        ("latents.strongest", experiment.latents.strongest),
    ]
    if experiment.training != "imported":
        found.append(("training.level_probabilities", experiment.training.level_probabilities))
    if experiment.discriminator is not None:
        found.append(("discriminator.dropout", experiment.discriminator.dropout))
    return found
