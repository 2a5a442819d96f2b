"""A configured sample set, and the chains behind its first images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from udpm.config.evaluation import Sampling
from udpm.core import devices, provenance
from udpm.core.errors import UserError
from udpm.data.npz import save_arrays
from udpm.networks.weights import Model, load_model
from udpm.runs.layout import milestone
from udpm.sampling.sample_set import save_samples
from udpm.sampling.sampler import NOT_FINITE, NoiseSource, Sampler, stored

UNLABELLED_CHAINS = 8


def draw_samples(
    weights: Path,
    config: Sampling,
    output: Path | None,
    chain: Path | None = None,
    shard: tuple[int, int] = (1, 1),
) -> list[str]:
    """Draw `config.count` images, or one shard of them, and write them with their record.

    Args:
        weights: a run's weight file.
        config: of the sampling.
        output: .npz of the sample set; its record gets the same name with .json. None: draw chains only.
        chain: .npz of the states and network outputs of one image per class (arrays x_l, f_l, labels, record).
        shard: (i, k), 1 <= i <= k: the i-th of k parts, which are cut at multiples of the batch. The images are the
            same whatever k.

    Returns:
        Lines that say what was written.

    Raises:
        UserError: weights missing or damaged, or more shards than batches.
    """
    numbers = shard_numbers(config.count, config.batch, *shard)
    device = devices.configure(config.device, config.threads, tf32=config.tf32)
    if config.iteration is not None:
        weights = kept_weights(weights, config.iteration)
    model = load_model(weights, config.weights, device)
    sampler = configured(model, config)
    labels = sampler.labels(config.count, config.labels)[numbers.start : numbers.stop]
    source: int | NoiseSource = config.seed
    identity: dict[str, Any] = {"seed": config.seed}
    if config.noise is not None:
        source, identity = stored(config.noise, sampler.schedule, model.config.side, config.count)
        identity = {"seed": None, "noise": identity}
    record = {
        **model.record,
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
        levels = range(1, 1 + (sampler.schedule.levels if config.intermediate else 1))
        outputs = sampler.images(labels, source, numbers.start, levels)
        part = {} if shard == (1, 1) else {"shard": list(shard)}
        images = outputs.pop(1)
        save_samples(output, images, labels.clip(0), record | part, outputs)
        asked = f" of {len(set(labels.tolist()))} classes" if record["classes"] else ""
        written.append(f"{output}: {len(images)} images{asked}, {images.shape[2]}×{images.shape[1]}")
    return written


def configured(model: Model, config: Sampling) -> Sampler:
    """The sampler of a model that a configuration asks for."""
    return Sampler(
        model,
        config.posterior,
        config.batch,
        config.guidance,
        config.precision,
        compiles=config.compile,
        graphs=config.cuda_graphs,
    )


def shard_numbers(count: int, batch: int, index: int, shards: int) -> range:
    """Numbers of the images of a shard: whole batches, but for the last of all.

    Args:
        count: images in all.
        batch: images per network call.
        index: 1..shards.
        shards: number of parts.

    Raises:
        UserError: more shards than batches.
    """
    batches = -(-count // batch)
    if not 1 <= index <= shards or shards > batches:
        raise UserError(
            f"shard {index} of {shards}: {count} images in batches of {batch} can be cut into 1 to {batches} shards"
        )
    start, stop = ((part * batches // shards) * batch for part in (index - 1, index))
    return range(start, min(stop, count))


def kept_weights(weights: Path, iteration: int) -> Path:
    """The weights that training kept at an iteration.

    Raises:
        UserError: none are kept of it.
    """
    path = milestone(Path(weights).parent, iteration)
    if not path.exists():
        kept = sorted(int(found.stem) for found in path.parent.glob("*.safetensors"))
        held = f"kept are {', '.join(map(str, kept))}" if kept else "none are kept (training.keep_every)"
        held += "; take one that is (sampling.iteration, selection.milestones), or train the run anew"
        raise UserError(f"{path}: no weights of iteration {iteration}; {held}")
    return path


def _chain_labels(sampler: Sampler, config: Sampling) -> np.ndarray:
    """Every class once, or some images without; no more than a noise file is asked for."""
    wanted = "none" if config.labels == "none" else "balanced"
    classes = 0 if wanted == "none" else sampler.classes
    labels = sampler.labels(classes or UNLABELLED_CHAINS, wanted)
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
