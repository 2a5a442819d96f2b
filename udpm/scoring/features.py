"""The feature pass: part by part, each kept by what it was made from, so that no pass is ever made twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from udpm.core import runtime
from udpm.core.files import atomic_path
from udpm.core.progress import Progress
from udpm.core.usage import count_images
from udpm.scoring.extractor import Extractor

PART = 1000
"""Images in one file of the cache: what a killed pass loses at most."""


class Images(Protocol):
    """What features can be taken of: an array (n, h, w, 3) uint8, or what reads one when it is sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> np.ndarray: ...


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
            progress.update(len(part))
            count_images(len(part))
    return np.concatenate(found), digest.hexdigest()


def _features(part: np.ndarray, digest: bytes, extractor: Extractor, batch: int, cache: str | Path | None):
    if cache is None:
        return extractor.features(part, batch)
    identity = f"{extractor.sha256} {extractor.inputs.describe()} {_arithmetic(extractor)}".encode()
    path = Path(cache) / f"{hashlib.sha256(identity + digest).hexdigest()}.npy"
    kept = _kept(path, len(part))
    if kept is not None:
        return kept
    features = extractor.features(part, batch)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, features)
    return features


def _arithmetic(extractor: Extractor) -> str:
    """What makes a network's features differ by more than the order of sums: features of a GPU that were kept before
    TF32 was switched off are not these."""
    kind = extractor.device.type
    return kind if kind == "cpu" or runtime.uses_tf32(extractor.device) else f"{kind} without TF32"


def _kept(path: Path, count: int) -> np.ndarray | None:
    """What an earlier pass left; None where it left nothing, or something damaged."""
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == count and np.isfinite(features).all() else None
