"""Reference statistics of images in an extractor's features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udpm.core import provenance, runtime
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256
from udpm.data.arrays import UNREADABLE
from udpm.data.images import left_out_of
from udpm.data.store import Store
from udpm.scoring.extractor import Extractor
from udpm.scoring.features import Images, extract
from udpm.scoring.frechet import statistics
from udpm.scoring.inception import WIDTH, Inception
from udpm.scoring.inputs import Inputs

FORMAT = "udpm-reference/1"


@dataclass(frozen=True)
class Reference:
    """What scores are measured against.

    Attributes:
        mu: (d,) float64.
        sigma: (d, d) float64.
        features: (N, d) float32; None for statistics that others published.
        labels: (N,) int64; None where the images have no classes.
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
        """What was done to the images before the extractor saw them."""
        # Older references say nothing of it: they were made when there was only one way.
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
    """Compute and write mu and sigma (float64), features (float32), labels and the record, as one .npz.

    Args:
        store: a prepared data set.
        split: the part of it.
        extractor: whose features are taken.
        batch: images per call.
        output: the .npz.
        flips: whether every image's mirror image belongs to it, too.
        cache: folder of the features of earlier passes.

    Raises:
        UserError: no such split, or the extractor does not fit the images.
    """
    part = store.split(split)
    identity = {"dataset": store.folder.name, "dataset_sha256": store.digest, "split": split}
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
    """The same of a folder, .zip or .npz of images, named `name` in records.

    Raises:
        UserError: an image cannot be read, or the extractor does not fit them.
    """
    features, digest = _passes(images, extractor, batch, flips, cache)
    identity = {"dataset": name, "dataset_sha256": digest, "split": "all", **left_out_of(images)}
    _write(output, features, None, identity | {"flips": flips, "size": list(images.shape[1:3])}, extractor)


def import_reference(path: str | Path, extractor: Extractor, output: str | Path) -> None:
    """Take over statistics that others published: an .npz with mu and sigma, as pytorch-fid and EDM write it.

    Args:
        path: the .npz.
        extractor: whose features its publishers say that these are.
        output: the reference.

    Raises:
        UserError: unreadable, not statistics, or not of this extractor's width.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mu, sigma = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise UserError(f"{path}: statistics not found") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable .npz with mu and sigma: {error}") from None
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: mu {mu.shape} and sigma {sigma.shape} are no finite mean and covariance")
    width = _width(extractor)
    if width is not None and width != len(mu):
        raise UserError(f"{path}: has statistics of {len(mu)} features, but extractor {extractor.name} gives {width}")
    published = {"dataset": Path(path).stem, "dataset_sha256": None, "split": "published", "flips": None, "size": None}
    record = published | {"n": None, "imported_sha256": sha256(path)}
    _save(output, {"mu": mu, "sigma": sigma}, record, extractor)


def load_reference(path: str | Path) -> Reference:
    """Read a reference.

    Raises:
        UserError: missing, unreadable, or not a reference.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "record" not in arrays.files and {"mu", "sigma"} <= set(arrays.files):
                raise UserError(f"{path}: statistics without a record; take them over with `udpm reference --import`")
            record = json.loads(str(arrays["record"]))
            mu, sigma = arrays["mu"], arrays["sigma"]
            features, labels = (arrays[name] if name in arrays.files else None for name in ("features", "labels"))
    except FileNotFoundError:
        raise UserError(f"{path}: reference not found; `udpm reference` makes it") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable reference: {error}") from None
    if record.get("format") != FORMAT:
        raise UserError(f"{path}: format is {record.get('format')!r}, expected {FORMAT!r}")
    return Reference(mu, sigma, features, labels, record, sha256(path))


class _Mirrored:
    """Images as in a mirror.

    Args:
        images: (N, h, w, 3) uint8.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.images[part][:, :, ::-1]


def _passes(images: Images, extractor: Extractor, batch: int, flips: bool, cache: str | Path | None):
    features, digest = extract(images, extractor, batch, cache)
    if flips:
        features = np.concatenate([features, extract(_Mirrored(images), extractor, batch, cache)[0]])
    return features, digest


def _width(extractor: Extractor) -> int | None:
    """Number of features; None where it depends on the side of images, of which published statistics say nothing."""
    if extractor.inputs.side is None:
        return WIDTH if isinstance(extractor.module, Inception) else None
    side = extractor.inputs.side
    return extractor.features(np.zeros((1, side, side, 3), np.uint8), 1).shape[1]


def _write(
    output: str | Path,
    features: np.ndarray,
    labels: np.ndarray | None,
    identity: dict[str, Any],
    extractor: Extractor,
) -> None:
    mu, sigma = statistics(features)
    arrays = {"mu": mu, "sigma": sigma, "features": features} | ({} if labels is None else {"labels": labels})
    _save(output, arrays, identity | {"n": len(features), "tf32": runtime.uses_tf32(extractor.device)}, extractor)


def _save(output: str | Path, arrays: dict[str, np.ndarray], identity: dict[str, Any], extractor: Extractor) -> None:
    record = {
        "format": FORMAT,
        **identity,
        "extractor": extractor.describe(),
        "provenance": provenance.record(),
    }
    with atomic_path(output) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays, record=np.array(json.dumps(record)))
