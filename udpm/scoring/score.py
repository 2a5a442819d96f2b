"""Scores of one set of images, with everything that has to be known to compare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from udpm.config.experiment import Scoring
from udpm.core import provenance, runtime
from udpm.core.errors import UserError
from udpm.core.seeds import derive_seed
from udpm.data.samples import SampleSet
from udpm.data.store import Store
from udpm.scoring.extractor import Extractor
from udpm.scoring.frechet import frechet_distance, statistics
from udpm.scoring.neighbours import nearest_distances, precision_recall
from udpm.scoring.reference import Reference

FORMAT = "udpm-score/1"
NOISE_SEED = 0


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        images: (n, side, side, 3) uint8.
        labels: (n,) int64.
        labelled: whether the labels mean anything.
        identity: what the images are, for the record.
    """

    images: np.ndarray
    labels: np.ndarray
    labelled: bool
    identity: dict[str, Any]


def sampled(samples: SampleSet) -> Subject:
    """A model's sample set."""
    identity = {key: value for key, value in samples.record.items() if key not in {"format", "provenance"}}
    identity["samples_sha256"] = identity.pop("sha256")
    return Subject(
        samples.images,
        samples.labels,
        samples.record.get("classes", 0) > 0,
        {"kind": "samples", **identity, "made_by": samples.record.get("provenance")},
    )


def heldout(store: Store) -> Subject:
    """The floor: real images of the test split, which training never saw."""
    part = store.split("test")
    identity = {"kind": "heldout", "dataset": store.folder.name, "split": "test"}
    return Subject(np.array(store.images[part]), store.labels[part], store.classes > 0, identity)


def noise(store: Store, count: int) -> Subject:
    """The ceiling: every byte of every pixel drawn uniformly from 0..255, with balanced labels."""
    generator = np.random.Generator(np.random.PCG64(derive_seed("noise yardstick", NOISE_SEED)))
    images = generator.integers(0, 256, (count, store.side, store.side, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % max(store.classes, 1)
    return Subject(images, labels, store.classes > 0, {"kind": "noise", "seed": NOISE_SEED})


def score(subject: Subject, store: Store, reference: Reference, extractor: Extractor, config: Scoring) -> dict:
    """All metrics of a subject, each with its value or the reason why it has none.

    Raises:
        UserError: reference, extractor and data set do not belong together, or the images have another side.
    """
    _belong_together(subject, store, reference, extractor)
    features = extractor.features(subject.images, config.batch)
    precision, recall = precision_recall(reference.features, features, config.neighbours)
    distance = frechet_distance(reference.mu, reference.sigma, *statistics(features))
    return {
        "format": FORMAT,
        "subject": subject.identity,
        "metrics": {
            "frechet_distance": {"value": distance, "label": f"FD ({extractor.name} features)"},
            "precision": {"value": precision, "label": "precision"},
            "recall": {"value": recall, "label": "recall"},
            "class_agreement": _agreement(subject, extractor, features),
            **_memorisation(subject, store),
        },
        "protocol": {
            "n": len(subject.images),
            "extractor": extractor.describe(),
            "preprocessing": "none: images enter the extractor at their own side, in [0, 255]",
            "reference": {key: reference.record[key] for key in ("dataset", "dataset_sha256", "split", "n")}
            | {"sha256": reference.sha256},
            "neighbours": config.neighbours,
            "device": runtime.describe(extractor.device),
        },
        "provenance": provenance.record(),
    }


def _belong_together(subject: Subject, store: Store, reference: Reference, extractor: Extractor) -> None:
    made_with = reference.record["extractor"]["sha256"]
    if made_with != extractor.sha256:
        raise UserError(
            f"{extractor.path}: is not the extractor of the reference (SHA-256 {extractor.sha256[:12]}, the "
            f"reference's {made_with[:12]}); make the reference again"
        )
    if reference.record["dataset_sha256"] != store.digest:
        raise UserError(f"{store.folder}: is not the data set of the reference; make the reference again")
    if subject.images.shape[1] != store.side:
        raise UserError(f"images have side {subject.images.shape[1]}, but data set {store.folder} has {store.side}")


def _agreement(subject: Subject, extractor: Extractor, features: np.ndarray) -> dict[str, Any]:
    metric = {"value": None, "label": "class agreement"}
    if not subject.labelled:
        return metric | {"reason": "the images have no labels"}
    if not extractor.classifies:
        return metric | {"reason": f"extractor {extractor.name} does not classify"}
    return metric | {"value": float((extractor.classes(features) == subject.labels).mean())}


def _memorisation(subject: Subject, store: Store) -> dict[str, Any]:
    """Mean distance to the nearest training image, and its ratio to what held-out images have (1 = like new ones)."""
    training = np.array(store.images[store.split("train")])
    distance = float(nearest_distances(subject.images, training).mean())
    ratio: dict[str, Any] = {"value": None, "label": "nearest-image distance ratio"}
    try:
        unseen = np.array(store.images[store.split("test")])
    except UserError:
        ratio["reason"] = "the data set has no test split"
    else:
        ratio["value"] = distance / float(nearest_distances(unseen, training).mean())
    return {
        "nearest_distance": {"value": distance, "label": "distance to the nearest training image"},
        "nearest_distance_ratio": ratio,
    }
