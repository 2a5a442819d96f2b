"""A data set: where its images come from and how they are prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from udpm.config.base import AnyPath, NonNegativeInt, PositiveInt, Section

CIFAR_SIDE = 32
Channel = Annotated[int, Field(ge=0, le=255)]


class DatasetConfig(Section):
    """One file of ``config/datasets/``."""

    description: str = ""
    """What the images are, in one line; shown in reports."""
    source: Literal["digits", "cifar10", "folder"]
    """digits: scikit-learn's handwritten digits, shipped with the package. cifar10: the official batches, python or
    binary, found under `path` as a folder or an archive, else downloaded there. folder: a tree of images under `path`,
    or a .zip of one, ``train/`` and ``test/`` or just images."""
    path: AnyPath | None = None
    """Folder that holds the data, or an archive of it (sources cifar10 and folder)."""
    obtain: str = ""
    """Where to get the images; shown when they are not there, or are not as many as expected."""
    side: PositiveInt
    """Side of the prepared images in pixels; images are resized (bicubic, antialiased) and centre-cropped to it."""
    classes: NonNegativeInt = 0
    """Number of classes; 0 means unlabelled. For a folder, labels are its first folder level in alphabetical order."""
    holdout: NonNegativeInt = 0
    """Images kept out of training as the `test` split where the source has no split of its own."""
    licence: str = ""
    """Licence or terms of the images; shown in reports."""
    expected_count: PositiveInt | None = Field(default=None)
    """Number of images in the `train` split the source must have; preparation fails on any other count."""
    expected_test_count: PositiveInt | None = Field(default=None)
    """Number of images in the `test` split the source must have, if it matters."""
    background: Annotated[list[Channel], Field(min_length=3, max_length=3)] = [255, 255, 255]
    """Red, green and blue (0..255) behind the transparent parts of images."""
    on_error: Literal["fail", "skip"] = "fail"
    """Images that cannot be read, or are smaller than `side`. fail: they are named and nothing is made. skip: they are
    left out and listed in ``dataset.json``."""
    max_pixels: PositiveInt = 100_000_000
    """Largest image that is decoded, width × height: a small file can claim any, and a pixel takes up to 16 bytes of
    memory. Larger ones count as unreadable."""
    max_file_bytes: PositiveInt = 268_435_456
    """Largest image file that is read, in an archive after unpacking; larger ones count as unreadable."""
    check_md5: bool = True
    """Source cifar10: refuse batches whose MD5 is not the official one."""
    workers: PositiveInt | None = None
    """Processes that decode and resize; default: one for each core that may be used. No influence on the images.
    The workflow asks for as many cores."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> DatasetConfig:
        if self.source == "digits" and self.path is not None:
            raise ValueError("path: source digits takes none")
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path: source {self.source} needs the folder that holds the data")
        if self.source == "cifar10" and self.side > CIFAR_SIDE:
            raise ValueError(f"side: must be at most {CIFAR_SIDE}, the side of CIFAR-10's images, got {self.side}")
        return self
