"""The feature pass: part by part, each kept by what it was made from, so that no pass is ever made twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from udpm.core import devices
from udpm.core.arrays import check_array
from udpm.core.errors import UserError
from udpm.core.progress import Progress
from udpm.core.provenance import count_images
from udpm.data.npz import load_arrays, save_arrays
from udpm.metrics.extractor import Extractor

FORMAT = "udpm-features/1"
DIFFERENT = 8
"""Images whose pixels range over more than this, 0..255, on average are clearly not the same."""
PART = 1000
"""Images in one file of the cache: what a killed pass loses at most."""


class Images(Protocol):
    """What features can be taken of: an array (n, h, w, 3) uint8, or what reads one when it is sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def extract(
    images: Images, extractor: Extractor, batch: int, cache: str | Path | None = None
) -> tuple[np.ndarray, str]:
    """Features of images, and the identity of these.

    Args:
        images: (N, h, w, 3) uint8.
        extractor: their network.
        batch: images per call.
        cache: folder that keeps the features, by SHA-256 of images and extractor; None: they are not kept.

    Returns:
        (N, d) float32, and a SHA-256 over the images.

    Raises:
        UserError: an image cannot be read, or the extractor does not fit them.
    """
    found, digest = [], hashlib.sha256()
    with Progress(len(images), f"features ({extractor.name})", "image") as progress:
        for start in range(0, len(images), PART):
            part = np.ascontiguousarray(images[start : start + PART])
            own = hashlib.sha256(repr(part.shape).encode())
            own.update(part)
            digest.update(own.digest())
            found.append(_features(part, own.digest(), extractor, batch, cache))
            if np.ptp(part, axis=0).mean() > DIFFERENT:
                extractor.check_varied(found[-1])
            progress.update(len(part))
            count_images(len(part))
    return np.concatenate(found), digest.hexdigest()


def _features(part: np.ndarray, digest: bytes, extractor: Extractor, batch: int, cache: str | Path | None):
    if cache is None:
        return extractor.features(part, batch)
    identity = f"{extractor.sha256} {extractor.inputs.describe()} {_arithmetic(extractor)}".encode()
    path = Path(cache) / f"{hashlib.sha256(identity + digest).hexdigest()}.npz"
    kept = _kept(path, len(part))
    if kept is not None:
        return kept
    features = extractor.features(part, batch)
    save_arrays(path, {"features": features}, {"format": FORMAT, "key": path.stem}, compressed=False)
    return features


def _arithmetic(extractor: Extractor) -> str:
    """What makes a network's features differ by more than the order of sums: features of a GPU that were kept before
    TF32 was switched off are not these."""
    kind = extractor.device.type
    return kind if kind == "cpu" or devices.uses_tf32(extractor.device) else f"{kind} without TF32"


def _kept(path: Path, count: int) -> np.ndarray | None:
    """What an earlier pass left; None where it left nothing, or something damaged, changed or under another name."""
    try:
        arrays, record = load_arrays(path, "entry of the features' cache", "")
        features = arrays.get("features", np.empty(0))
        check_array(f"{path}: features", features, np.float32, (count, "d"))
    except UserError:
        return None
    return features if record == {"format": FORMAT, "key": path.stem} else None
