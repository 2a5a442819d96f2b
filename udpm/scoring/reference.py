"""Reference statistics of a data set's split in an extractor's features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udpm.core import provenance
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256
from udpm.data.arrays import UNREADABLE
from udpm.data.store import Store
from udpm.scoring.extractor import Extractor
from udpm.scoring.frechet import statistics

FORMAT = "udpm-reference/1"


@dataclass(frozen=True)
class Reference:
    """What scores are measured against.

    Attributes:
        mu: (d,) float64.
        sigma: (d, d) float64.
        features: (N, d) float32.
        record: data set, split, N, extractor.
        sha256: of the file.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: np.ndarray
    record: dict[str, Any]
    sha256: str


def write_reference(store: Store, split: str, extractor: Extractor, batch: int, output: str | Path) -> None:
    """Compute and write mu and sigma (float64), features (float32) and the record, as one .npz.

    Raises:
        UserError: no such split, or the extractor does not fit the images.
    """
    features = extractor.features(store.images[store.split(split)], batch)
    mu, sigma = statistics(features)
    record = {
        "format": FORMAT,
        "dataset": store.folder.name,
        "dataset_sha256": store.digest,
        "split": split,
        "n": len(features),
        "extractor": extractor.describe(),
        "provenance": provenance.record(),
    }
    with atomic_path(output) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, mu=mu, sigma=sigma, features=features, record=np.array(json.dumps(record)))


def load_reference(path: str | Path) -> Reference:
    """Read a reference.

    Raises:
        UserError: missing, unreadable, or not a reference.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            record = json.loads(str(arrays["record"]))
            mu, sigma, features = arrays["mu"], arrays["sigma"], arrays["features"]
    except FileNotFoundError:
        raise UserError(f"{path}: reference not found; `udpm reference` makes it") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable reference: {error}") from None
    if record.get("format") != FORMAT:
        raise UserError(f"{path}: format is {record.get('format')!r}, expected {FORMAT!r}")
    return Reference(mu, sigma, features, record, sha256(path))
