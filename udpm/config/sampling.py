"""Sampling images from a trained model and exploring its latents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from udpm.config.validation import (
    AnyPath,
    Count,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Threads,
    check,
)

Label = NonNegativeInt | Annotated[str, Field(min_length=1)]
"""A class, by number or name."""


class Sampling(Section):
    """The sample set that scores and figures are made from."""

    count: Count = 50_000
    """Number of images."""
    labels: Literal["balanced", "none"] | list[Label] = "balanced"
    """Classes to sample, in turn: all of them, or those listed by name or number (a name takes precedence over a
    number); none: no label, for a model with label dropout."""
    batch: PositiveInt = 250
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
    def _one_way_of_calling(self) -> Sampling:
        if self.compile and self.cuda_graphs:
            raise ValueError("cuda_graphs: compile already uses CUDA graphs; leave one of the two out")
        return self

    @check
    def _shards_hold_batches(self) -> Sampling:
        batches = -(-self.count // self.batch)
        if self.shards > batches:
            raise ValueError(
                f"shards: must be at most {batches}, the number of batches of {self.batch} in {self.count} images, "
                f"got {self.shards}"
            )
        return self


class Latents(Section):
    """The latent-space figures (paper, section 4), which show what a model's noise maps control."""

    labels: list[Label] = []
    """Classes to show, by name or number, one row each; empty: the first four. For a class-conditional model."""
    seeds: Annotated[list[Seed], Field(min_length=4, max_length=4)] = [0, 1, 2, 3]
    """Four latents: the first is perturbed, the first two are swapped, all four are interpolated. Without classes, rows
    are seeds: all four are perturbed, and the other two are swapped too."""
    strengths: PositiveInt = 5
    """Number of perturbation strengths, from none to the strongest."""
    strongest: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    """Fraction g of a map that its strongest perturbation keeps, g·ε + √(1-g²)·ε', one for each level with l = 1 first;
    default: 0 for the finest, 0.8 for the coarsest, 0.1 between (as published)."""
    grid: Annotated[int, Field(ge=2)] = 6
    """Side of the four-way interpolation grid."""
    pca_images: Annotated[int, Field(ge=2)] = 128
    """Number of images to compute principal components of."""
    pca_components: PositiveInt = 8
    """Number of principal components."""
    pca_keep: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Fraction g of one level's map that these images share; 0: independent maps."""

    @check
    def _enough_images_for_the_components(self) -> Latents:
        if self.pca_components >= self.pca_images:
            raise ValueError(
                f"pca_components: {self.pca_components} need at least {self.pca_components + 1} images, "
                f"but pca_images is {self.pca_images}"
            )
        return self
