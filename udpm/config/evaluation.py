"""Sampling from a trained model, exploring its latents, scoring, and selection of the best milestone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from udpm.config.validation import (
    AnyPath,
    Count,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Sha256,
    Threads,
    WorkflowPath,
    check,
)
from udpm.core.files import EXTRACTOR_WEIGHTS, PublishedFile

Label = NonNegativeInt | Annotated[str, Field(min_length=1)]
"""A class, by number or name."""


class Sampling(Section):
    """The sample set that scores and figures are made from."""

    count: Count = 50_000
    """Number of images."""
    labels: Literal["balanced", "none"] | list[Label] = "balanced"
    """Classes to sample, in turn: all of them, or those listed by name or number (a name takes precedence over a
    number); none: no label, for a model with label dropout."""
    batch: Count = 250
    """Images per network call; does not change the images."""
    shards: PositiveInt = 1
    """Jobs that sample the set in parallel, each in whole batches; does not change the images."""
    seed: Seed = 0
    """The n-th image's noise is a function of (seed, n) alone."""
    posterior: Literal["scalar", "exact"] = "scalar"
    """Covariance of q(x_{l-1} | x_l, x_0): a scalar (as published), or the exact matrix."""
    guidance: PositiveFloat = 1.0
    """w of classifier-free guidance, f(no label) + w·(f(label) - f(no label)); 1: no guidance; needs label dropout."""
    noise: AnyPath | None = None
    """File of noise to start from (.npz: base, eps_L, …, eps_1), instead of noise from `seed`."""
    noise_kind: Literal["host", "counter"] = "host"
    """Generator of the noise from `seed`. host: PyTorch's, on the CPU; counter: Philox on the device, other images. No
    effect on a file of noise."""
    weights: Annotated[str, Field(pattern=r"^(ema|raw|ema-0\.\d+)$")] = "ema"
    """ema: averaged weights; raw: weights without averaging; ema-0.999: an average of training.more_ema_decays."""
    iteration: PositiveInt | None = None
    """Sample a milestone (training.keep_every) instead of the end of training."""
    intermediate: bool = False
    """Also keep the output of every level, enlarged to full side."""
    images: Literal["none", "flat", "classes"] = "none"
    """Also write one file per image: all in one folder, or one folder per class."""
    image_format: Literal["png", "jpg"] = "png"
    """Format of the image files."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's convolutions and linear layers; the chain between its calls stays float32."""
    tf32: bool = False
    """On GPUs, compute float32 products with TF32 inputs, which have 10 bits of mantissa instead of 23: faster. No
    effect on a CPU."""
    compile: bool = False
    """Compile the network (torch.compile), which takes a minute or more at the start; pixels may differ by rounding.
    Needs a C++ compiler, on GPUs Triton."""
    cuda_graphs: bool = False
    """On GPUs, launch the network's kernels as one CUDA graph per level. No effect on a CPU."""
    threads: Threads = 2
    """CPU threads of the sampling process."""

    @check
    def _one_way_of_calling(self) -> None:
        if self.compile and self.cuda_graphs:
            raise ValueError("cuda_graphs: compile already uses CUDA graphs; leave one of the two out")

    @check
    def _shards_hold_batches(self) -> None:
        batches = -(-self.count // self.batch)
        if self.shards > batches:
            raise ValueError(
                f"shards: must be at most {batches}, the number of batches of {self.batch} in {self.count} images, "
                f"got {self.shards}"
            )


class Latents(Section):
    """The latent-space figures (paper, section 4), which show what a model's noise maps control."""

    labels: list[Label] = []
    """Classes to show, by name or number, one row each; empty: the first four. For a class-conditional model."""
    seeds: Annotated[list[Seed], Field(min_length=4, max_length=4)] = [0, 1, 2, 3]
    """Four latents: the first is perturbed, the first two are swapped, all four are interpolated. Without classes, rows
    are seeds: all four are perturbed, and the other two are swapped too."""
    strengths: Annotated[int, Field(gt=0, le=1_000)] = 5
    """Number of perturbation strengths, from none to the strongest."""
    strongest: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    """Fraction g of a map that its strongest perturbation keeps, g·ε + √(1-g²)·ε', one for each level with l = 1 first;
    default: 0 for the finest, 0.8 for the coarsest, 0.1 between (as published)."""
    grid: Annotated[int, Field(ge=2, le=100)] = 6
    """Side of the four-way interpolation grid."""
    pca_images: Annotated[int, Field(ge=2, le=10_000)] = 128
    """Number of images to compute principal components of."""
    pca_components: PositiveInt = 8
    """Number of principal components."""
    pca_keep: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Fraction g of one level's map that these images share; 0: independent maps."""

    @check
    def _enough_images_for_the_components(self) -> None:
        if self.pca_components >= self.pca_images:
            raise ValueError(
                f"pca_components: {self.pca_components} need at least {self.pca_components + 1} images, "
                f"but pca_images is {self.pca_images}"
            )


NAMED_EXTRACTORS = ("digits", *EXTRACTOR_WEIGHTS, "lite0")
"""Extractors that are not files of the user's."""


EARLIER_NAMES = {"inception_folder": "weights_folder", "inception_sha256": "weights_sha256"}
"""Keys of `scoring` in files of earlier versions, and their names today."""


class Scoring(Section):
    """Metrics of sample sets."""

    extractor: WorkflowPath
    """digits: the classifier that the workflow trains on the data set's training split; inception: the network whose
    distance is called FID; dinov2: DINOv2's ViT-L/14; clip: CLIP's ViT-B/32; lite0: EfficientNet-Lite0, which needs no
    download; or the path of a TorchScript file, (N, 3, side, side) float -> (N, d) features. Scoring executes such a
    file as a program: use only files that you trust. With several, selection, diagnosis and sweeps use this one."""
    # Left out of resolved sections, each of which is about one extractor: more of them change no result of the first.
    extractors: Annotated[list[WorkflowPath], Field(min_length=1)] | None = Field(None, exclude=True)
    """Several extractors, each of which scores all images; the first is `extractor`, which need not be repeated.
    Published statistics (`reference`) belong to the first, `weights_sha256` to the first with downloaded weights, and
    `input_…` to all TorchScript files."""
    inception_mode: Literal["clean", "legacy_tensorflow", "legacy_pytorch"] = "clean"
    """Resizing to Inception's 299 pixels, by clean-fid's names. Published numbers of EDM and StyleGAN use
    legacy_tensorflow, those of pytorch-fid legacy_pytorch."""
    weights_folder: WorkflowPath = "resources/weights"
    """Folder of the weights of inception, dinov2 or clip, which are downloaded into it if missing."""
    weights_sha256: Sha256 | None = None
    """Required SHA-256 of these weights; default: the published one. For dinov2 none is published: set what
    `udpm fetch dinov2` shows. The distance is called FID only with the published Inception."""
    download: bool = True
    """Download these weights if they are missing."""
    input_side: PositiveInt | None = None
    """Side that images are resized to before they enter a TorchScript file; null: no resizing."""
    input_resize: Literal["pil_bicubic", "pil_bilinear", "pil_lanczos", "pil_box", "pytorch_bilinear"] = "pil_bicubic"
    """Library and filter of this resizing, by clean-fid's functions and without rounding to bytes."""
    input_range: Literal["0..255", "0..1", "-1..1"] = "0..255"
    """Range that pixel values 0 to 255 are mapped to before they enter a TorchScript file."""
    reference: WorkflowPath | None = None
    """Published statistics for this extractor (.npz with mu and sigma, as written by pytorch-fid and EDM) to use
    instead of the data set's. Without features there is no kernel distance, precision or recall."""
    reference_split: Literal["train", "test"] = "train"
    """Split of the data set that the reference statistics are computed from."""
    reference_flips: bool = False
    """Add every image's mirror image to the reference."""
    ranges: PositiveInt = 1
    """Number of equal ranges of a sample set, in order of sample number. All scores are those of the first range; the
    Fréchet distances of all ranges and their minimum are reported too. EDM reports the minimum of 3."""
    neighbours: PositiveInt = 3
    """k of the k-nearest-neighbour precision and recall."""
    kernel_subsets: PositiveInt = 100
    """Random subsets that the kernel distance (KID) is averaged over."""
    kernel_subset_size: Annotated[int, Field(ge=2)] = 1000
    """Samples and reference images in one subset, limited to the number available."""
    inception_splits: PositiveInt = 10
    """Parts of a set that the Inception score is averaged over."""
    batch: Count = 250
    """Images per call of the extractor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""
    threads: Threads = 2
    """CPU threads of the scoring process."""

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for earlier, name in EARLIER_NAMES.items():
            if earlier in values and name in values:
                raise ValueError(f"{earlier}: is called {name} now; leave one out")
        named = {EARLIER_NAMES.get(key, key): value for key, value in values.items()}
        match named.get("extractors"):
            case [str(first), *_] if "extractor" not in named:
                named["extractor"] = first
        return named

    @property
    def each(self) -> list[Scoring]:
        """One section for each extractor; the first is this one."""
        first, *others = self.extractors or [self.extractor]
        owner = next((name for name in [first, *others] if name in EXTRACTOR_WEIGHTS), None)
        found = [self.model_copy(update={"extractors": None})]
        for name in others:
            own = {"extractor": name, "reference": None}
            own |= {} if name == owner else {"weights_sha256": None}
            found.append(found[0].model_copy(update=own))
        return found

    @property
    def weights(self) -> PublishedFile | None:
        """The extractor's downloaded weights, with the required SHA-256; None if it has none."""
        file = EXTRACTOR_WEIGHTS.get(self.extractor)
        return file and replace(file, sha256=self.weights_sha256 or file.sha256)

    @check
    def _extractors_differ(self) -> None:
        listed = self.extractors or [self.extractor]
        if listed[0] != self.extractor:
            raise ValueError(
                f"extractors: the first is {listed[0]}, but extractor is {self.extractor}; put {self.extractor} first, "
                f"or set extractor: {listed[0]}"
            )
        for name in listed:
            if [Path(other) for other in listed].count(Path(name)) > 1:
                raise ValueError(f"extractors: {name} is listed twice; list each extractor once")

    @check
    def _published_statistics_stand_alone(self) -> None:
        if self.reference is None:
            return
        if self.extractor == "digits":
            raise ValueError(
                "reference: published statistics cannot belong to the digits extractor, which is trained here; set "
                "extractor to theirs (inception, or a TorchScript file)"
            )
        if self.reference_flips or self.reference_split != "train":
            key = "reference_flips" if self.reference_flips else "reference_split"
            raise ValueError(f"{key}: is about the data set's statistics, but reference names others; leave one out")


class Diagnosis(Section):
    """Images and draws of a run's diagnosis (`udpm diagnose`)."""

    count: Annotated[int, Field(ge=2, le=10_000_000)] = 1000
    """Use at most this many held-out images."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 3
    """Draws of each image; their spread is shown."""


class Selection(Section):
    """Report the milestone with the smallest Fréchet distance as a run's best. Its images are sampled only for the
    selection, so that the reported score is independent of it."""

    milestones: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Iterations of the milestones to choose from; default: all that training keeps (training.keep_every)."""
    count: Annotated[int, Field(ge=2, le=10_000_000)] = 10_000
    """Images sampled from each milestone."""
    seed: Seed = 1
    """Sampling seed of these images; must differ from sampling.seed."""
