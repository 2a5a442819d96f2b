"""Turn minutes into iterations: a short measurement, and the schedule of a training of that length."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from udpm.config.experiment import RunConfig

if TYPE_CHECKING:
    import torch

LONGEST_START, LONGEST_DECAY, LONGEST_WARMUP = 800, 1000, 100
"""Iterations of the shipped photos32 and photos64: a long training has theirs, a short one a share of its length."""
PREVIEW_SECONDS, CHECKPOINT_SECONDS = 20.0, 60.0
MOST_PREVIEWS, USUAL_PREVIEWS, FEWEST_PREVIEWS = 200, 20, 5
LEAST = 20
"""Iterations of a training for which there is no time."""


@dataclass(frozen=True)
class Speed:
    """Seconds on this machine.

    Attributes:
        before, after: of an iteration without and with the discriminator.
        image: of sampling an image.
        features: of an image's features; 0 without scores.
        job: of starting a job of the workflow.
    """

    before: float
    after: float
    image: float
    features: float
    job: float

    def rounded(self) -> dict[str, float]:
        """Return the values with four digits, as they are recorded."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Length:
    """Iterations of a training, and of its parts."""

    iterations: int
    adversarial_start: int
    decay_iterations: int
    warmup: int
    preview_every: int
    log_every: int
    checkpoint_every: int


def length_of(iterations: int, seconds: float | None = None) -> Length:
    """Return the parts of a training of `iterations` iterations, one of which takes `seconds`, if that is known."""
    decay = min(LONGEST_DECAY, max(2, iterations * 5 // 8))
    often = iterations // USUAL_PREVIEWS if seconds is None else round(PREVIEW_SECONDS / seconds)
    preview = max(1, min(iterations // FEWEST_PREVIEWS, max(iterations // MOST_PREVIEWS, often)))
    return Length(
        iterations=iterations,
        adversarial_start=min(LONGEST_START, iterations // 2),
        decay_iterations=decay,
        warmup=min(LONGEST_WARMUP, decay // 10),
        preview_every=preview,
        log_every=max(1, preview // 5),
        checkpoint_every=max(1, 500 if seconds is None else round(CHECKPOINT_SECONDS / seconds)),
    )


MARGIN = 1.1
"""Factor on measured times: previews, checkpoints and other work on the machine make a whole training slower."""


def iterations_in(seconds: float, speed: Speed) -> int:
    """Return the number of iterations that a training of this many seconds has time for; at least `LEAST`."""
    seconds /= MARGIN
    short = int(2 * seconds / (speed.before + speed.after))
    if short <= 2 * LONGEST_START:
        return max(short, LEAST)
    return LONGEST_START + int((seconds - LONGEST_START * speed.before) / speed.after)


JOBS, JOBS_OF_SCORES = 8, 6
"""Jobs after training, and starts of Snakemake, of which some run at the same time; and those that scores add."""


def seconds_after_training(speed: Speed, sampled: int, scored: int) -> float:
    """Return about how long the rest takes, for numbers of images to sample, and to extract features of."""
    jobs = JOBS + (JOBS_OF_SCORES if scored else 0)
    return MARGIN * (sampled * speed.image + scored * speed.features) + jobs * speed.job


REPETITIONS = 3


def measure(config: RunConfig, dataset: Path, cache: Path, job: float, extractor: str | None) -> Speed:
    """Measure iterations at each level, and features; takes some seconds. `job` becomes part of the result.

    Args:
        config: of the run to train.
        dataset, cache: its prepared data.
        extractor: whose features score the images; None without scores.
    """
    from udpm.bench.measure import now
    from udpm.core import devices
    from udpm.data.levels import open_levels
    from udpm.training.batch import level_shares
    from udpm.training.trainer import Trainer

    assert config.training != "imported"
    count = config.process.levels
    device = devices.configure(config.training.device, config.training.threads, tf32=config.training.tf32)
    levels, found = open_levels(dataset, cache, count), []
    for level in range(count):
        shares = [float(other == level) for other in range(count)]
        training = config.training.model_copy(update={"level_probabilities": shares})
        # The first iteration with and without the discriminator also starts something up, and is not counted.
        losses = config.losses.model_copy(update={"adversarial_start": REPETITIONS + 1})
        trainer = Trainer(config.model_copy(update={"training": training, "losses": losses}), levels, device)
        seconds = []
        for _ in range(2 * (REPETITIONS + 1)):
            began = now(device)
            trainer.iterate()
            seconds.append(now(device) - began)
        found.append([statistics.median(part[1:]) for part in (seconds[: REPETITIONS + 1], seconds[REPETITIONS + 1 :])])
    shares = level_shares(config)
    before, after = (sum(share * level[part] for share, level in zip(shares, found, strict=True)) for part in (0, 1))
    # A step takes about three times as long as the forward pass; an image passes every level once.
    image = sum(level[0] for level in found) / 3 / config.training.batch
    return Speed(before, after, image, _features(extractor, config.dataset.side, device), job)


FEATURES_MEASURED = 32


def _features(name: str | None, side: int, device: torch.device) -> float:
    if name is None:
        return 0.0
    import numpy as np

    from udpm.bench.measure import now
    from udpm.config import Scoring
    from udpm.metrics.extractor import open_extractor

    extractor = open_extractor(Scoring(extractor=name), None, device)
    images = np.zeros((FEATURES_MEASURED, side, side, 3), np.uint8)
    extractor.features(images, FEATURES_MEASURED)
    began = now(device)
    extractor.features(images, FEATURES_MEASURED)
    return (now(device) - began) / FEATURES_MEASURED
