"""Sample sets and chains, drawn from a run's weights.

Arrays of a chain list levels in the order of sampling: coarsest first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from udpm.config.evaluation import Sampling
from udpm.core import devices, provenance
from udpm.core.errors import UserError
from udpm.data.npz import save_arrays
from udpm.networks.weights import load_model
from udpm.runs.layout import milestone
from udpm.sampling.grid import check_grid, save_grid
from udpm.sampling.sample_set import save_batches
from udpm.sampling.sampler import NOT_FINITE, NoiseSource, Sampler, read_noise

UNLABELLED_CHAINS = 8


def draw_samples(
    weights: Path, config: Sampling, output: Path | None, chain: Path | None = None, shard: tuple[int, int] = (1, 1)
) -> list[str]:
    """Draw `config.count` images, or one shard of them, and write them with their record.

    Args:
        output: .npz of the sample set, with a record of the same name (.json); or .png of a grid of the images, which
            contains the record. None draws chains only.
        chain: .npz of the states and network outputs of one image per class (arrays x_l, f_l, labels, record).
        shard: (i, k), 1 <= i <= k: the i-th of k parts, cut at multiples of the batch. The images do not depend on k.

    Returns:
        Lines that describe what was written.

    Raises:
        UserError: weights missing or damaged, more shards than batches, or a grid of too many images.
    """
    numbers = shard_numbers(config.count, config.batch, *shard)
    is_grid = output is not None and output.suffix.lower() == ".png"
    if is_grid:
        check_grid(len(numbers))
        if config.intermediate:
            raise UserError(
                f"{output}: a grid has no outputs of other levels; write an .npz, or leave intermediate out"
            )
    sampler, device = load_sampler(weights, config)
    labels = sampler.labels(config.count, config.labels)[numbers.start : numbers.stop]
    source, identity = _open_noise(sampler, config)
    record = {
        **sampler.model.record,
        "classes": 0 if config.labels == "none" else sampler.classes,
        **identity,
        "posterior": config.posterior,
        "guidance": config.guidance,
        "precision": config.precision,
        "tf32": devices.uses_tf32(device),
        **({"compiled": True} if config.compile else {}),
        "nfe": sampler.nfe,
        "scale": sampler.schedule.scale,
        "device": devices.describe(device),
        "provenance": provenance.record(),
    }
    written = []
    if chain is not None:
        shown = _chain_labels(sampler, config)
        _write_chain(sampler, shown, source, chain, record)
        written.append(f"{chain}: chains of {len(shown)} images")
    if output is not None:
        part: dict[str, Any] = {}
        if isinstance(config.labels, list):
            part["labels"] = sampler.class_numbers(config.labels).tolist()
        if shard != (1, 1):
            part |= {"shard": list(shard), "numbers": [numbers.start, numbers.stop], "total": config.count}
        if is_grid:
            images = sampler.images(labels, source, numbers.start)[1]
            save_grid(output, images, labels if record["classes"] else None, record | part)
        else:
            levels = range(1, 1 + (sampler.schedule.levels if config.intermediate else 1))
            batches = sampler.batches(labels, source, numbers.start, levels)
            save_batches(output, batches, labels.clip(0), record | part)
        asked = f" of {len(set(labels.tolist()))} classes" if record["classes"] else ""
        side = sampler.model.config.side
        written.append(f"{output}: {len(labels)} images{asked}, {side}×{side}")
    return written


def _open_noise(sampler: Sampler, config: Sampling) -> tuple[int | NoiseSource, dict[str, Any]]:
    """Return the seed, or the source of the noise in a file, and what records say of it."""
    if config.noise is None:
        return config.seed, {"seed": config.seed, **kind_of_noise(config)}
    model = sampler.model.config
    source, file = read_noise(config.noise, sampler.schedule, model.side, config.count, model.generator.latent_channels)
    return source, {"seed": None, "noise": file}


def load_sampler(weights: Path, config: Sampling) -> tuple[Sampler, torch.device]:
    """Load weights, or those of the milestone that the configuration names, to draw images from.

    Raises:
        UserError: weights missing or damaged, or without this average.
    """
    device = devices.configure(config.device, config.threads, tf32=config.tf32)
    if config.iteration is not None:
        weights = milestone_weights(weights, config.iteration)
    model = load_model(weights, config.weights, device)
    sampler = Sampler(
        model,
        config.posterior,
        config.batch,
        config.guidance,
        config.precision,
        compiles=config.compile,
        graphs=config.cuda_graphs,
        noise_kind=config.noise_kind,
    )
    return sampler, device


def kind_of_noise(config: Sampling) -> dict[str, str]:
    """Return a record's entry on the generator of noise from a seed; records without one have the host's."""
    return {} if config.noise_kind == "host" else {"noise_kind": config.noise_kind}


def shard_numbers(count: int, batch: int, index: int, shards: int) -> range:
    """Return the numbers of the images of shard `index`, 1..shards: whole batches, except the last of the set.

    Raises:
        UserError: `index` is out of range, or there are more shards than batches.
    """
    batches = -(-count // batch)
    if not 1 <= index <= shards:
        raise UserError(f"shard {index} of {shards}: the first number must be 1 or more, and at most the second")
    if shards > batches:
        raise UserError(
            f"shard {index} of {shards}: there is at most one for each batch; {count} images in batches "
            f"of {batch} make {batches}"
        )
    start, stop = ((part * batches // shards) * batch for part in (index - 1, index))
    return range(start, min(stop, count))


def milestone_weights(weights: Path, iteration: int) -> Path:
    """Return the file of a milestone.

    Raises:
        UserError: none is kept of this iteration.
    """
    path = milestone(Path(weights).parent, iteration)
    if not path.exists():
        kept = sorted(int(found.stem) for found in path.parent.glob("*.safetensors"))
        held = f"kept are {', '.join(map(str, kept))}" if kept else "none are kept (training.keep_every)"
        remedy = "take one of those (sampling.iteration, selection.milestones), or train the run again"
        raise UserError(f"{path}: no weights of iteration {iteration}; {held}; {remedy}")
    return path


def _chain_labels(sampler: Sampler, config: Sampling) -> np.ndarray:
    """Return every class once, or several times none; at most `count` with a noise file."""
    unlabelled = config.labels == "none"
    count = UNLABELLED_CHAINS if unlabelled else sampler.classes or UNLABELLED_CHAINS
    labels = sampler.labels(count, "none" if unlabelled else "balanced")
    return labels if config.noise is None else labels[: config.count]


def _write_chain(sampler: Sampler, labels: np.ndarray, source: int | NoiseSource, path: Path, record: dict) -> None:
    arrays: dict[str, list[np.ndarray]] = {}
    for steps in sampler.chains(labels, source):
        for step in steps:
            arrays.setdefault(f"x_{step.level}", []).append(step.state.float().cpu().numpy())
            arrays.setdefault(f"f_{step.level}", []).append(step.output.float().cpu().numpy())
    joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
    if not all(np.isfinite(values).all() for values in joined.values()):
        raise UserError(NOT_FINITE)
    save_arrays(path, {"labels": labels.clip(0), **joined}, record)
