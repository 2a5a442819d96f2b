"""Sample sets: one .npz of lossless images and labels, with a JSON record beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from udpm.core.errors import UserError
from udpm.core.files import atomic_path, read_json, sha256, write_json
from udpm.data.arrays import UNREADABLE

FORMAT = "udpm-samples/1"


@dataclass(frozen=True)
class SampleSet:
    """Images that a model drew.

    Attributes:
        images: (n, side, side, 3) uint8, RGB.
        labels: (n,) int64, the class asked for; all zero for an unconditional model.
        record: what made them (run, iteration, seed, posterior, NFE, ...), plus their count and SHA-256.
        outputs: by level, the network's outputs at levels above 1, shown at full side; empty unless asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    record: dict[str, Any]
    outputs: dict[int, np.ndarray] = field(default_factory=dict)


def save_samples(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    record: dict[str, Any],
    outputs: dict[int, np.ndarray] | None = None,
) -> None:
    """Write a sample set to `path` (.npz) and its record to the same name with .json, record last.

    Args:
        path: where to; its suffix must be .npz.
        images: (n, side, side, 3) uint8.
        labels: (n,) int64.
        record: what made them.
        outputs: by level, of the images' shape.
    """
    path = Path(path)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        shown = {f"output_{level}": values for level, values in (outputs or {}).items()}
        np.savez_compressed(handle, images=images, labels=labels, **shown)
    write_json(record_path(path), {"format": FORMAT, "count": len(images), "sha256": sha256(path), **record})


def load_samples(path: str | Path) -> SampleSet:
    """Read a sample set and its record.

    Raises:
        UserError: missing or unreadable, or the file is not the one its record describes.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
            levels = [int(name.removeprefix("output_")) for name in arrays.files if name.startswith("output_")]
            outputs = {level: arrays[f"output_{level}"] for level in levels}
    except FileNotFoundError:
        raise UserError(f"{path}: sample set not found; `udpm sample` makes it") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable sample set: {error}") from None
    record = read_json(record_path(path), "sample set's record")
    if record.get("format") != FORMAT or record.get("sha256") != sha256(path):
        raise UserError(f"{record_path(path)}: does not describe {path.name}; draw the sample set again")
    return SampleSet(images, labels, record, outputs)


def record_path(path: str | Path) -> Path:
    """The record that belongs to a sample set's .npz."""
    return Path(path).with_suffix(".json")
