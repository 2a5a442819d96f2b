"""The whole diagnosis of a run, from its weights, its newest checkpoint and held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from udpm.config.evaluation import Sampling, Scoring
from udpm.config.experiment import RunConfig
from udpm.core import devices, provenance
from udpm.core.arrays import derive_seed, sealed
from udpm.core.errors import UserError
from udpm.data.store import Store
from udpm.diagnosis.chain import Measure, diagnose_chain
from udpm.diagnosis.discriminator import Players, diagnose_discriminator, load_state
from udpm.diagnosis.record import FORMAT, SEALED
from udpm.metrics.extractor import open_extractor
from udpm.metrics.reference import Reference
from udpm.metrics.score import check_match, frechet_label, heldout
from udpm.runs.records import WEIGHTS
from udpm.sampling.generate import kind_of_noise, load_sampler
from udpm.sampling.sampler import Sampler


def diagnose(
    run: Path,
    config: RunConfig | None,
    store: Store,
    reference: Reference,
    extractor: Path | None,
    scoring: Scoring,
    sampling: Sampling,
    count: int,
    draws: int,
    cache: Path | None,
) -> dict[str, Any]:
    """Measure by level what a run's chain loses on held-out images, and what its discriminator does. Trains nothing.

    Args:
        run: folder of the run, with its weights.
        config: of its training; None if the weights are imported.
        store: its data set, with a test split.
        reference: that its samples are scored against.
        extractor: TorchScript file; None: the configuration's.
        scoring: configuration of extractor and metrics.
        sampling: how its samples are drawn, and the seed of the first draw.
        count: use at most this many held-out images.
        draws: number of draws of each image; their spread is shown.
        cache: folder of features from earlier passes.

    Returns:
        The record, sealed.

    Raises:
        UserError: weights, data set, reference and extractor do not belong together, there are no held-out images, or a
            checkpoint is damaged.
    """
    sampler, device = load_sampler(run / WEIGHTS, sampling)
    network = open_extractor(scoring, extractor, device)
    subject = heldout(store)
    check_match(subject, store, reference, network)
    images, labels = _chosen(np.asarray(subject.images), subject.labels, count)
    if differs := store.difference({"dataset_sha256": sampler.model.record.get("dataset_sha256")}):
        raise UserError(f"{run}: was trained on {differs}; give its data set")
    if len(images) <= scoring.neighbours:
        raise UserError(
            f"{len(images)} held-out images are too few: scoring.neighbours: {scoring.neighbours} needs more"
        )
    seeds = range(sampling.seed, sampling.seed + draws)
    measure = Measure(images, labels, reference, network, scoring.batch, scoring.neighbours, cache)
    found = {
        "format": FORMAT,
        "subject": _subject(sampler, sampling),
        "protocol": {
            "n": len(images),
            "draws": draws,
            "seed": sampling.seed,
            "label": frechet_label(network, len(images))[1],
            "extractor": network.describe(),
            "preprocessing": network.inputs.describe(),
            "reference": {key: reference.record.get(key) for key in ("dataset", "split", "n")}
            | {"sha256": reference.sha256},
            "neighbours": scoring.neighbours,
            "device": devices.describe(device),
            "tf32": devices.uses_tf32(device),
        },
        "chain": diagnose_chain(sampler, measure, seeds),
        "discriminator": _discriminator(run, config, images, labels, device),
        "provenance": provenance.record(),
    }
    return sealed(found, SEALED)


def _chosen(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `count` images and their labels, chosen with a fixed seed: a split may be sorted by class."""
    if len(images) <= count:
        return images, labels
    generator = np.random.Generator(np.random.PCG64(derive_seed("diagnosis")))
    part = np.sort(generator.choice(len(images), count, replace=False))
    return images[part], labels[part]


def _subject(sampler: Sampler, sampling: Sampling) -> dict[str, Any]:
    record = sampler.model.record
    keys = ("experiment", "run_seed", "iteration", "loss_features", "weights", "weights_sha256", "class_names")
    how = {key: getattr(sampling, key) for key in ("posterior", "guidance", "precision")}
    return {key: record[key] for key in keys if key in record} | how | {"nfe": sampler.nfe, **kind_of_noise(sampling)}


def _discriminator(
    run: Path, config: RunConfig | None, images: np.ndarray, labels: np.ndarray, device: torch.device
) -> dict[str, Any]:
    state = load_state(run, config, device)
    if isinstance(state, str):
        return {"iteration": None, "levels": [], "reason": state}
    assert config is not None
    found = diagnose_discriminator(Players(config, state, images, labels, device))
    if isinstance(found, str):
        return {"iteration": None, "levels": [], "reason": found}
    return {"iteration": state.iteration, "levels": found, "reason": ""}
