"""Scoring of sample sets and selection of the best milestone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from udpm.config.validation import PositiveInt, Section, Seed, Threads, WorkflowPath, check
from udpm.core.download import INCEPTION


class Scoring(Section):
    """Metrics of sample sets."""

    extractor: WorkflowPath
    """digits: the classifier that the workflow trains on the data set's training split; inception: the network whose
    distance is called FID; or the path of a TorchScript file, (N, 3, side, side) float -> (N, d) features. Scoring
    executes such a file as a program: use only files that you trust."""
    inception_mode: Literal["clean", "legacy_tensorflow", "legacy_pytorch"] = "clean"
    """Resizing to Inception's 299 pixels, by clean-fid's names. Published numbers of EDM and StyleGAN use
    legacy_tensorflow, those of pytorch-fid legacy_pytorch."""
    inception_folder: WorkflowPath = "resources/weights"
    """Folder of inception-2015-12-05.pt, which is downloaded into it if missing."""
    inception_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = INCEPTION.sha256
    """Required SHA-256 of this file. The distance is called FID only with the published file."""
    download: bool = True
    """Download inception-2015-12-05.pt if it is missing."""
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
    batch: PositiveInt = 250
    """Images per call of the extractor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""
    threads: Threads = 2
    """CPU threads of the scoring process."""

    @check
    def _published_statistics_stand_alone(self) -> Scoring:
        if self.reference is None:
            return self
        if self.extractor == "digits":
            raise ValueError(
                "reference: published statistics cannot belong to the digits extractor, which is trained here; set "
                "extractor to theirs (inception, or a TorchScript file)"
            )
        if self.reference_flips or self.reference_split != "train":
            key = "reference_flips" if self.reference_flips else "reference_split"
            raise ValueError(
                f"{key}: applies to the data set's statistics, but reference names published ones; leave one out"
            )
        return self


class Selection(Section):
    """Report the milestone with the smallest Fréchet distance as a run's best. Its images are sampled only for the
    selection, so that the reported score is independent of it."""

    milestones: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Iterations of the milestones to choose from; default: all that training keeps (training.keep_every)."""
    count: Annotated[int, Field(ge=2, le=10_000_000)] = 10_000
    """Images sampled from each milestone."""
    seed: Seed = 1
    """Sampling seed of these images; must differ from sampling.seed."""
