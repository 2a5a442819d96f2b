"""A configured sample set, and the chains behind its first images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from udpm.config.experiment import Sampling
from udpm.core import provenance, runtime
from udpm.core.files import atomic_path
from udpm.data.samples import save_samples
from udpm.networks.weights import load_model
from udpm.sampling.sampler import Sampler, to_bytes

UNLABELLED_CHAINS = 8


def draw_samples(weights: Path, config: Sampling, output: Path, chain: Path | None = None) -> None:
    """Draw `config.count` images and write them with their record.

    Args:
        weights: a run's weight file.
        config: of the sampling.
        output: .npz of the sample set; its record gets the same name with .json.
        chain: .npz of the states and network outputs of one image per class (arrays x_l, f_l, labels, record).

    Raises:
        UserError: weights missing or damaged.
    """
    device = runtime.configure(config.device, config.threads)
    model = load_model(weights, config.weights, device)
    sampler = Sampler(model, config.posterior, config.batch)
    labels = sampler.balanced_labels(config.count)
    images = np.concatenate([to_bytes(steps[-1].output) for steps in sampler.chains(labels, config.seed)])
    record = {
        **model.record,
        "classes": sampler.classes,
        "seed": config.seed,
        "posterior": config.posterior,
        "nfe": sampler.schedule.levels,
        "scale": sampler.schedule.scale,
        "device": runtime.describe(device),
        "provenance": provenance.record(),
    }
    if chain is not None:
        _write_chain(sampler, config.seed, chain, record)
    save_samples(output, images, labels, record)


def _write_chain(sampler: Sampler, seed: int, path: Path, record: dict) -> None:
    labels = sampler.balanced_labels(sampler.classes or UNLABELLED_CHAINS)
    arrays: dict[str, list[np.ndarray]] = {}
    for steps in sampler.chains(labels, seed):
        for step in steps:
            arrays.setdefault(f"x_{step.level}", []).append(step.state.float().cpu().numpy())
            arrays.setdefault(f"f_{step.level}", []).append(step.output.float().cpu().numpy())
    joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, labels=labels, record=np.array(json.dumps(record)), **joined)
