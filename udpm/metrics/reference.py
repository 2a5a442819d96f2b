"""Reference statistics of images in an extractor's features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from udpm.config.validation import Exactly, PositiveInt, Record, Sha256, SplitRanges, validate
from udpm.core import devices, provenance
from udpm.core.arrays import check_array
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.data.npz import load_arrays, read_npz, save_arrays
from udpm.data.open import left_out_of
from udpm.data.store import Store
from udpm.metrics.distances import statistics
from udpm.metrics.extractor import Extractor, Images, extract
from udpm.metrics.extractor_networks import Inputs

FORMAT = "udpm-reference/1"

ROUNDING = 1e-5
"""Allowed deviation from symmetry and from eigenvalues >= 0, as a share of the largest variance: some published
statistics were accumulated in float32."""

CONSTANT = 1e-11
"""Largest standard deviation that counts as none, as a share of the mean; different float32 features exceed it."""


class ExtractorRecord(Record):
    """The extractor in a reference's record."""

    name: str
    sha256: Sha256
    preprocessing: str = ""


class ReferenceRecord(Record):
    """Required content of a reference's record."""

    format: Annotated[str, Exactly(FORMAT)]
    dataset: str
    dataset_sha256: Sha256 | None
    dataset_splits: SplitRanges | None = None
    split: str
    n: Annotated[int, Field(ge=2)] | None
    flips: bool | None = None
    size: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    extractor: ExtractorRecord


@dataclass(frozen=True)
class Reference:
    """Statistics, and if known features, of real images.

    Attributes:
        mu: (d,) float64.
        sigma: (d, d) float64.
        features: (N, d) float32; None for published statistics.
        labels: (N,) int64; None without classes.
        record: data set, split, N, extractor.
        sha256: of the file.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: np.ndarray | None
    labels: np.ndarray | None
    record: dict[str, Any]
    sha256: str

    @property
    def preprocessing(self) -> str:
        """Preprocessing of the images, in words."""
        # References from before it was recorded had only one.
        return self.record["extractor"].get("preprocessing", Inputs().describe())


def write_reference(
    store: Store,
    split: str,
    extractor: Extractor,
    batch: int,
    output: str | Path,
    *,
    flips: bool = False,
    cache: str | Path | None = None,
) -> None:
    """Compute and write mu and sigma (float64), features (float32), labels and the record as one .npz.

    Args:
        flips: add every image's mirror image.
        cache: folder of features from earlier passes.

    Raises:
        UserError: no such split, or the extractor does not accept the images.
    """
    part = store.split(split)
    identity = {"dataset": store.folder.name, **store.identity, "split": split}
    features, _ = _passes(store.images[part], extractor, batch, flips, cache)
    labels = np.tile(store.labels[part], 1 + flips) if store.classes > 1 else None
    _write(output, features, labels, identity | {"flips": flips, "size": [store.side, store.side]}, extractor)


def write_image_reference(
    images: Images,
    name: str,
    extractor: Extractor,
    batch: int,
    output: str | Path,
    *,
    flips: bool = False,
    cache: str | Path | None = None,
) -> None:
    """Write a reference as `write_reference`, of other images, named `name` in records.

    Raises:
        UserError: an image cannot be read, or the extractor does not accept them.
    """
    features, digest = _passes(images, extractor, batch, flips, cache)
    identity = {"dataset": name, "dataset_sha256": digest, "split": "all", **left_out_of(images)}
    _write(output, features, None, identity | {"flips": flips, "size": list(images.shape[1:3])}, extractor)


def import_reference(path: str | Path, extractor: Extractor, output: str | Path) -> None:
    """Make a reference from published statistics: an .npz with mu and sigma, as pytorch-fid and EDM write it.

    The extractor is the one that their publishers name.

    Raises:
        UserError: unreadable, not statistics, or not of this extractor's width.
    """
    arrays = read_npz(path, ".npz with mu and sigma", names=("mu", "sigma"))
    lacking = [name for name in ("mu", "sigma") if name not in arrays]
    if lacking:
        raise UserError(f"{path}: array {' and '.join(lacking)} not found; expected statistics, mu and sigma")
    mu, sigma = arrays["mu"], arrays["sigma"]
    check_statistics(path, mu, sigma)
    mu, sigma = (values.astype(np.float64) for values in (mu, sigma))
    width = extractor.width()
    if width is not None and width != len(mu):
        raise UserError(f"{path}: has statistics of {len(mu)} features, but extractor {extractor.name} gives {width}")
    published = {"dataset": Path(path).stem, "dataset_sha256": None, "split": "published", "flips": None, "size": None}
    record = published | {"n": None, "imported_sha256": sha256(path)}
    _save(output, {"mu": mu, "sigma": sigma}, record, extractor)


def load_reference(path: str | Path) -> Reference:
    """Read a reference.

    Raises:
        UserError: missing, unreadable, changed since it was written, or not a reference.
    """
    arrays, record = load_arrays(path, "reference", "udpm reference [--import]")
    if record.get("format") != FORMAT:
        raise UserError(f"{path}: format is {record.get('format')!r}, expected {FORMAT!r}")
    known = validate(ReferenceRecord, record, f"{path}: record")
    lacking = [name for name in ("mu", "sigma") if name not in arrays]
    if lacking:
        raise UserError(f"{path}: array {' and '.join(lacking)} not found; make the reference again")
    check_statistics(path, arrays["mu"], arrays["sigma"])
    features, labels = (arrays.get(name) for name in ("features", "labels"))
    if features is not None:
        check_array(f"{path}: features", features, np.floating, (known.n or "N", len(arrays["mu"])))
    if labels is not None:
        check_array(f"{path}: labels", labels, np.integer, ("N" if features is None else len(features),))
    return Reference(arrays["mu"], arrays["sigma"], features, labels, record, sha256(path))


def check_statistics(path: str | Path, mu: np.ndarray, sigma: np.ndarray) -> None:
    """Check that two arrays are a mean and a covariance.

    Raises:
        UserError: mu is not (d,) and finite, or sigma not (d, d), finite, symmetric and positive semidefinite up to
            rounding, or all zero.
    """
    check_array(f"{path}: mu", mu, np.floating, ("d",))
    check_array(f"{path}: sigma", sigma, np.floating, (len(mu), len(mu)))
    sigma = sigma.astype(np.float64, copy=False)
    largest = float(np.diagonal(sigma).max())
    if np.sqrt(max(largest, 0)) <= CONSTANT * np.abs(mu).max():
        raise UserError(f"{path}: sigma has no variance above 0: an extractor that gives all images the same features")
    difference = sigma - sigma.T
    if np.abs(difference, out=difference).max() > ROUNDING * largest:
        raise UserError(f"{path}: sigma is not symmetric, as covariances are")
    shifted = sigma.copy()
    shifted[np.diag_indices(len(mu))] += ROUNDING * largest
    try:
        # Much faster than eigenvalues: succeeds if all of them are above -ROUNDING·largest.
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        raise UserError(f"{path}: sigma has negative eigenvalues, as no covariance has") from None


class _Mirrored:
    """Mirror images of (N, h, w, 3) uint8."""

    def __init__(self, images: Images) -> None:
        self.images, self.shape = images, images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.images[part][:, :, ::-1]


def _passes(
    images: Images, extractor: Extractor, batch: int, flips: bool, cache: str | Path | None
) -> tuple[np.ndarray, str]:
    """Return the features of images, then of their mirror images if `flips`, and the digest of the images."""
    features, digest = extract(images, extractor, batch, cache)
    if flips:
        features = np.concatenate([features, extract(_Mirrored(images), extractor, batch, cache)[0]])
    return features, digest


def _write(
    output: str | Path, features: np.ndarray, labels: np.ndarray | None, identity: dict[str, Any], extractor: Extractor
) -> None:
    mu, sigma = statistics(features)
    check_statistics(output, mu, sigma)
    arrays = {"mu": mu, "sigma": sigma, "features": features} | ({} if labels is None else {"labels": labels})
    _save(output, arrays, identity | {"n": len(features), "tf32": devices.uses_tf32(extractor.device)}, extractor)


def _save(output: str | Path, arrays: dict[str, np.ndarray], identity: dict[str, Any], extractor: Extractor) -> None:
    record = {"format": FORMAT, **identity, "extractor": extractor.describe(), "provenance": provenance.record()}
    save_arrays(output, arrays, record, compressed=False)
