"""How samples are scored, and how the best snapshot is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from udpm.config.validation import PositiveInt, Section, Seed, Threads, WorkflowPath, check
from udpm.core.download import INCEPTION


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
