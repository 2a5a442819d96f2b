"""Scores of one set of images, with the protocol that makes them comparable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udpm.config.evaluation import Scoring
from udpm.core import devices, provenance
from udpm.core.arrays import derive_seed
from udpm.core.errors import UserError
from udpm.data.open import left_out_of
from udpm.data.store import Store
from udpm.metrics.distances import (
    PRDC,
    class_agreement,
    class_distances,
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest_distances,
    prdc,
    statistics,
)
from udpm.metrics.extractor import Extractor, Images, extract
from udpm.metrics.protocol import FORMAT
from udpm.metrics.reference import Reference
from udpm.metrics.selection import chosen_as
from udpm.sampling.sample_set import SampleSet

NOISE_SEED = 0

FID_COUNT = 50_000
"""Number of images of a Fréchet Inception distance that is called just FID."""


@dataclass(frozen=True)
class ScoredImages:
    """Images to score.

    Attributes:
        images: (n, h, w, 3) uint8.
        labels: (n,) int64.
        labelled: False if the labels mean nothing.
        identity: of the images, for the record.
    """

    images: Images
    labels: np.ndarray
    labelled: bool
    identity: dict[str, Any]


def sampled(samples: SampleSet, count: int | None = None, selection: str | Path | None = None) -> ScoredImages:
    """Return a sample set, or its first `count` images; `selection` is the file that its milestone was selected by.

    Raises:
        UserError: the set has fewer images, or is not of the selected milestone.
    """
    found = len(samples.images)
    if count is not None and count > found:
        raise UserError(f"the sample set has {found} images, fewer than --count {count}; lower --count")
    record = samples.record
    identity = {key: value for key, value in record.items() if key not in {"format", "provenance", "class_names"}}
    identity["samples_sha256"] = identity.pop("sha256")
    if selection is not None:
        identity["selection"] = chosen_as(selection, identity)
    return ScoredImages(
        samples.images[:count],
        samples.labels[:count],
        record.get("classes", 0) > 0,
        {"kind": "samples", **identity, "made_by": record.get("provenance")},
    )


def external_images(images: Images, name: str) -> ScoredImages:
    """Return images of unknown origin, read from `name`."""
    identity = {"kind": "images", "source": name, **left_out_of(images)}
    return ScoredImages(images, np.zeros(len(images), np.int64), False, identity)


def heldout(store: Store) -> ScoredImages:
    """Return the floor: real images of the test split, which training does not use."""
    part = store.split("test")
    identity = {"kind": "heldout", "dataset": store.folder.name, "split": "test"}
    return ScoredImages(np.array(store.images[part]), store.labels[part], store.classes > 0, identity)


def noise(store: Store, count: int) -> ScoredImages:
    """Return the ceiling: every byte of every pixel drawn uniformly from 0..255, with balanced labels."""
    # An earlier name of baselines, kept because the images depend on it.
    generator = np.random.Generator(np.random.PCG64(derive_seed("noise yardstick", NOISE_SEED)))
    images = generator.integers(0, 256, (count, store.side, store.side, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % max(store.classes, 1)
    return ScoredImages(images, labels, store.classes > 0, {"kind": "noise", "seed": NOISE_SEED})


def score(
    subject: ScoredImages,
    store: Store | None,
    reference: Reference,
    extractor: Extractor,
    config: Scoring,
    cache: str | Path | None = None,
    match: int | None = None,
) -> dict:
    """Compute all metrics, each with its value or the reason for having none.

    Args:
        store: the reference's data set; None leaves out distances to training images.
        cache: folder of features from earlier passes.
        match: number of samples that held-out images are the floor of.

    Raises:
        UserError: reference, extractor and data set do not belong together, or the images have another side.
    """
    check_match(subject, store, reference, extractor)
    count = _range_count(subject, config)
    features, digest = extract(subject.images, extractor, config.batch, cache)
    first, labels = features[:count], subject.labels[:count]
    frechet = _frechet(features, count, reference, extractor)
    metrics = {
        **frechet,
        **_matched(subject, store, first, reference, extractor, match, frechet["frechet_distance"]["value"]),
        **_against_features(first, reference, extractor, config),
        "inception_score": _inception_score(first, extractor, config),
        "class_frechet_distance": _by_class(subject, labels, first, reference),
        "class_agreement": _agreement(subject, labels, first, extractor),
        **_memorization(subject, store, count),
    }
    return {
        "format": FORMAT,
        "subject": subject.identity | {"images_sha256": digest},
        "metrics": {name: _finite(metric) for name, metric in metrics.items()},
        "protocol": {
            "n": count,
            "extractor": extractor.describe() | {"format": "TorchScript, a program that was run"},
            "preprocessing": extractor.inputs.describe(),
            "reference": {
                key: reference.record.get(key)
                for key in ("dataset", "dataset_sha256", "imported_sha256", "split", "n", "flips")
            }
            | {"sha256": reference.sha256},
            "neighbours": config.neighbours,
            "ranges": len(features) // count,
            "device": devices.describe(extractor.device),
            "tf32": devices.uses_tf32(extractor.device),
        },
        "provenance": provenance.record(),
    }


def _finite(metric: dict[str, Any]) -> dict[str, Any]:
    """Return a metric, without its value if any of its numbers is NaN or infinite."""
    numbers = [metric.get("value"), metric.get("std"), *metric.get("values", []), *metric.get("by_class", {}).values()]
    if all(number is None or math.isfinite(number) for number in numbers):
        return metric
    kept: dict[str, Any] = {key: metric[key] for key in ("label", "name") if key in metric}
    return {"value": None, **kept, "reason": "it is not a finite number: the features are too large or too small"}


def frechet_label(extractor: Extractor, count: int) -> tuple[str, str]:
    """Return the name of a Fréchet distance of N images in records, and its label in tables.

    Only Inception's is FID, and with fewer than 50 000 images the name says how many: the distance falls with N.
    """
    short = f"{count // 1000}k" if count % 1000 == 0 else str(count)
    if not extractor.is_inception:
        return f"fd_{short}", f"FD ({extractor.name} features)"
    return ("fid", "FID") if count == FID_COUNT else (f"fid_{short}", f"FID-{short}")


def check_match(subject: ScoredImages, store: Store | None, reference: Reference, extractor: Extractor) -> None:
    """Check that images, data set, reference and extractor belong together.

    Raises:
        UserError: they do not.
    """
    made_with = reference.record["extractor"]["sha256"]
    if made_with != extractor.sha256:
        raise UserError(
            f"{extractor.path}: not the extractor of the reference (SHA-256 {extractor.sha256[:12]}, the reference's "
            f"{made_with[:12]}); make the reference again"
        )
    if reference.preprocessing != extractor.inputs.describe():
        raise UserError(
            f"{extractor.path}: preprocessing is {extractor.inputs.describe()}, but the reference's is "
            f"{reference.preprocessing}; make the reference again"
        )
    height, width = subject.images.shape[1:3]
    if store is not None and (differs := store.difference(reference.record)):
        raise UserError(
            f"{store.folder}: not the data set of the reference, which is of {differs}; make the reference again"
        )
    if store is not None and (height, width) != (store.side, store.side):
        raise UserError(f"images have side {height}, but data set {store.folder} has {store.side}")
    size = reference.record.get("size")
    if size is not None and [height, width] != size:
        raise UserError(
            f"images have {width}×{height} pixels, but the reference {reference.record['dataset']} was made of "
            f"{size[1]}×{size[0]}; bring them to its size (udpm prepare)"
        )


def _range_count(subject: ScoredImages, config: Scoring) -> int:
    """Return N: all images, or those of one range of a sample set."""
    found = len(subject.images)
    ranges = config.ranges if subject.identity["kind"] == "samples" else 1
    if found % ranges or found < 2 * ranges:
        wrong = f"{found} samples cannot be cut into {ranges} equal ranges of 2 or more"
        raise UserError(f"scoring.ranges: {wrong}; change the count")
    return found // ranges


def _frechet(features: np.ndarray, count: int, reference: Reference, extractor: Extractor) -> dict[str, Any]:
    """Return the first range's distance and, with several ranges, all distances and the least."""
    if features.shape[1] != len(reference.mu):
        raise UserError(f"{extractor.path}: has {features.shape[1]} features, but the reference {len(reference.mu)}")
    parts = [features[start : start + count] for start in range(0, len(features), count)]
    values = [frechet_distance(reference.mu, reference.sigma, *statistics(part)) for part in parts]
    name, label = frechet_label(extractor, count)
    found: dict[str, dict[str, Any]] = {"frechet_distance": {"value": values[0], "label": label, "name": name}}
    if count <= features.shape[1]:
        few = f"{count} images are too few for {features.shape[1]} features: the covariance is singular"
        found["frechet_distance"]["warning"] = few
    if len(values) > 1:
        best = {"value": min(values), "values": values, "label": f"{label}, best of {len(values)}"}
        found["frechet_distance_best"] = best
    return found


def _matched(
    subject: ScoredImages,
    store: Store | None,
    features: np.ndarray,
    reference: Reference,
    extractor: Extractor,
    match: int | None,
    distance: float,
) -> dict[str, Any]:
    """Return the distance of as many images as samples and held-out images both have: it falls as N grows.

    `distance` is that of all of them.
    """
    if store is not None and subject.identity["kind"] != "heldout":
        first, end = store.record["splits"].get("test", (0, 0))
        match = end - first
    if match is None or match < 2:
        return {}
    count = min(match, len(features))
    if count < len(features):
        if subject.identity["kind"] in ("heldout", "images"):
            # They may be sorted by class; samples have their classes in turn.
            generator = np.random.Generator(np.random.PCG64(derive_seed("matched", count)))
            features = features[np.sort(generator.choice(len(features), count, replace=False))]
        distance = frechet_distance(reference.mu, reference.sigma, *statistics(features[:count]))
    label = f"{frechet_label(extractor, count)[1]}, as many samples as held-out images"
    return {"frechet_distance_matched": {"value": distance, "label": label, "n": count}}


def _against_features(features: np.ndarray, reference: Reference, extractor: Extractor, config: Scoring) -> dict:
    """Return the metrics that need the reference's features, not only mean and covariance."""
    kernel: dict[str, Any] = {"value": None, "label": "KID" if extractor.is_inception else "kernel distance"}
    shares: dict[str, dict[str, Any]] = {name: {"value": None, "label": name} for name in PRDC._fields}
    if reference.features is None:
        reason = {"reason": "the reference holds mu and sigma only"}
        return {name: metric | reason for name, metric in ({"kernel_distance": kernel} | shares).items()}
    mean, spread, size = kernel_distance(reference.features, features, config.kernel_subsets, config.kernel_subset_size)
    kernel |= {"value": mean, "std": spread, "subsets": config.kernel_subsets, "subset_size": size}
    values = prdc(reference.features, features, config.neighbours, extractor.device)
    for metric, value in zip(shares.values(), values, strict=True):
        metric["value"] = value
    if why := _not_authentic(reference):
        shares["authenticity"] |= {"value": None, "reason": why}
    return {"kernel_distance": kernel} | shares


def _not_authentic(reference: Reference) -> str:
    """Return the reason why a comparison with nearest training images means nothing; empty if it does."""
    if reference.record.get("flips"):
        return "the reference contains mirror images, so its images are near each other"
    if reference.record.get("split") == "test":
        return "the reference is not of training images"
    return ""


def _inception_score(features: np.ndarray, extractor: Extractor, config: Scoring) -> dict[str, Any]:
    label = "Inception score" if extractor.is_inception else f"Inception score ({extractor.name} classes)"
    if not extractor.classifies:
        return {"value": None, "label": label, "reason": f"extractor {extractor.name} does not classify"}
    mean, spread = inception_score(extractor.probabilities(features), config.inception_splits)
    return {"value": mean, "std": spread, "splits": min(config.inception_splits, len(features)), "label": label}


def _by_class(subject: ScoredImages, labels: np.ndarray, features: np.ndarray, reference: Reference) -> dict[str, Any]:
    metric = {"value": None, "label": "mean Fréchet distance within a class"}
    if not subject.labelled:
        return metric | {"reason": "the images have no labels"}
    if reference.labels is None or reference.features is None:
        return metric | {"reason": "the reference has no labels"}
    values = class_distances(reference.features, reference.labels, features, labels)
    if not values:
        return metric | {"reason": "no class has two images"}
    return metric | {"value": float(np.mean(list(values.values()))), "by_class": values}


def _agreement(subject: ScoredImages, labels: np.ndarray, features: np.ndarray, extractor: Extractor) -> dict[str, Any]:
    metric = {"value": None, "label": "class agreement"}
    if not subject.labelled:
        return metric | {"reason": "the images have no labels"}
    if not extractor.knows_labels:
        return metric | {"reason": f"extractor {extractor.name} does not classify"}
    classes = extractor.probabilities(features).argmax(axis=1)
    return metric | {"value": float((classes == labels).mean()), "by_class": class_agreement(classes, labels)}


def _memorization(subject: ScoredImages, store: Store | None, count: int) -> dict[str, Any]:
    """Return the mean distance to the nearest training image and its ratio to held-out images' (1: no memorization)."""
    distance: dict[str, Any] = {"value": None, "label": "distance to the nearest training image"}
    ratio: dict[str, Any] = {"value": None, "label": "nearest-image distance ratio"}
    if store is None:
        metrics = {"nearest_distance": distance, "nearest_distance_ratio": ratio}
        return {name: metric | {"reason": "no data set was given"} for name, metric in metrics.items()}
    training = store.images[store.split("train")]
    distance["value"] = float(nearest_distances(subject.images[:count], training).mean())
    try:
        unseen = store.images[store.split("test")]
    except UserError:
        ratio["reason"] = "the data set has no test split"
    else:
        usual = float(nearest_distances(unseen, training).mean())
        if usual == 0:
            ratio["reason"] = "all images of the test split are training images, too"
        else:
            ratio["value"] = distance["value"] / usual
    return {"nearest_distance": distance, "nearest_distance_ratio": ratio}
