"""A data set: where its images come from and how they are prepared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from udpm.config.base import NonNegativeInt, PositiveInt, Section


class DatasetConfig(Section):
    """One file of ``config/datasets/``."""

    description: str = ""
    """What the images are, in one line; shown in reports."""
    source: Literal["digits", "cifar10", "folder"]
    """digits: scikit-learn's handwritten digits, shipped with the package. cifar10: the official archive, found under
    `path` or downloaded there. folder: a tree of images under `path`, ``train/`` and ``test/`` or just images."""
    path: str | None = None
    """Folder that holds the data (sources cifar10 and folder)."""
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

    @model_validator(mode="after")
    def _path_where_needed(self) -> DatasetConfig:
        if self.source == "digits" and self.path is not None:
            raise ValueError("path: source digits takes none")
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path: source {self.source} needs the folder that holds the data")
        return self
