"""How fast a run trains on this machine, and where the time goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from udpm.bench.data import random_levels
from udpm.bench.measure import BLOCKS, Timing, ceilings, now
from udpm.bench.record import Work, record, row
from udpm.config.experiment import RunConfig
from udpm.config.training import Training
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.data.levels import Levels, open_levels
from udpm.training.cost import IterationCost, IterationCounter
from udpm.training.trainer import Trainer

WARM_UP = 5
RECORDED_WARM_UP = 40
"""With recorded passes: enough that each player has come to each level, where its pass is recorded."""
RANDOM_IMAGES = 1000
CONFIGURED, MEAN = "as configured", "mean"


@dataclass(frozen=True)
class Images:
    """What to train on for speed: a prepared data set with its cache, or random images where these are None."""

    dataset: Path | None = None
    cache: Path | None = None

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[Levels]:
        """The data for a run; random images are gone afterwards."""
        levels = config.process.levels
        if self.dataset is not None and self.cache is not None:
            yield open_levels(self.dataset, self.cache, levels)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield random_levels(Path(folder), config.dataset.side, levels, RANDOM_IMAGES)


class Clock:
    """Seconds spent in named parts; waits for the device on both sides of each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    def now(self) -> float:
        """Seconds, once the device has done all it was given."""
        return now(self._device)

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, its time added to `part`."""

        def call(*arguments, **options):
            with self.of(part):
                return function(*arguments, **options)

        return call

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of a block to `part`."""
        since = self.now()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + self.now() - since


def bench_training(config: RunConfig, levels: Levels, iterations: int) -> dict[str, Any]:
    """Train so many iterations twice, first undisturbed for the speed, then with clocks around the parts.

    Args:
        config: of a run; its number of processes is ignored.
        levels: its data set and caches.
        iterations: measured, after a few that are not.

    Returns:
        The record, with the share of the time that each part takes.

    Raises:
        UserError: training is imported.
    """
    training = trained(config)
    device = devices.configure(training.device, training.threads, tf32=training.tf32)
    trainer = Trainer(config, levels, device)
    warm_up = RECORDED_WARM_UP if training.cuda_graphs and device.type == "cuda" else WARM_UP
    for _ in range(warm_up):
        trainer.iterate()
    timing, blocks = Timing(), min(BLOCKS, iterations)
    for block in range(blocks):
        timing.measure(trainer.iterate, device, (block + 1) * iterations // blocks - block * iterations // blocks)
    counter, shares = IterationCounter(config, trainer.terms, trainer.perceptual), level_shares(config)
    cycle = range(warm_up, warm_up + training.discriminator_every * config.losses.r1_every)
    levels_costs = [
        IterationCost.mean([counter.count(level, iteration) for iteration in cycle], [1 / len(cycle)] * len(cycle))
        for level in range(1, config.process.levels + 1)
    ]
    cost = IterationCost.mean(levels_costs, shares)
    work = Work(training.batch, cost.multiply_adds, cost.bytes, training.precision)
    best = ceilings(device)
    return record(
        "training",
        device,
        best,
        [row(MEAN, CONFIGURED, timing, work, best)],
        **setting(config),
        iterations=iterations,
        tf32=training.tf32 and device.type == "cuda",
        channels_last=training.channels_last,
        compile=training.compile,
        cuda_graphs=training.cuda_graphs,
        shares=_time_shares(trainer, Clock(device), iterations),
        gpu_peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def training_lines(found: dict[str, Any]) -> list[str]:
    """What `bench_training` found, as text."""
    (each,) = found["rows"]
    reached = found["ceilings"][f"{found['precision']}_flops"]
    rate = each["images_per_second"]["median"]
    marks = {"TF32": found["tf32"], "channels last": found["channels_last"], "compiled": found["compile"]}
    marks["recorded"] = found["cuda_graphs"]
    setting = ", ".join([found["precision"], *(mark for mark, there in marks.items() if there)])
    share = each["of_matrix_product"]
    lines = [
        f"{found['experiment']} on {found['device']}: batch {found['batch']}, {setting}",
        f"{rate / found['batch']:.2f} iterations/s, {rate:.1f} images/s",
        *(f"  {part:24} {100 * spent:5.1f} %" for part, spent in found["shares"].items()),
        f"arithmetic of both players and LPIPS: {share * reached / 1e9:.4g} GFLOP/s, {100 * share:.1f} % of the "
        f"{reached / 1e9:.4g} GFLOP/s that a large matrix product reaches here",
    ]
    if found["gpu_peak_bytes"]:
        lines.append(f"GPU memory: {found['gpu_peak_bytes'] / 2**30:.2f} GiB at most")
    return lines


def for_speed(config: RunConfig, batch: int | None, threads: int | None, *, random: bool) -> RunConfig:
    """A configuration with another batch or other threads; random images need no trained LPIPS either."""
    if config.training == "imported":
        return config
    changes = {"batch": batch or config.training.batch, "threads": threads or config.training.threads}
    found = changed(config, **changes)
    if not random:
        return found
    return found.model_copy(update={"losses": config.losses.model_copy(update={"lpips_network": "vgg-random"})})


def setting(config: RunConfig) -> dict[str, Any]:
    """What a record says of a run."""
    training = config.training
    return {"experiment": config.experiment, "batch": training.batch, "precision": training.precision}


def level_shares(config: RunConfig) -> list[float]:
    """How often each level is drawn, l = 1 first."""
    levels = config.process.levels
    return config.training.level_probabilities or [1 / levels] * levels


def trained(config: RunConfig) -> Training:
    """The training section of a run that trains.

    Raises:
        UserError: training is imported.
    """
    if config.training == "imported":
        raise UserError(f"{config.experiment}: training is imported; there is nothing to measure")
    return config.training


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    """The run with other values in its training section."""
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _time_shares(trainer: Trainer, clock: Clock, iterations: int) -> dict[str, float]:
    """Time by part; a step's own share is what remains of it without its parts."""
    trainer.draws = clock.timed("data and noise", trainer.draws)
    if trainer.perceptual is not None:
        trainer.perceptual.forward = clock.timed("LPIPS", trainer.perceptual.forward)
    for player, optimizer in trainer.state.optimizers.items():
        optimizer.step = clock.timed(f"optimiser, {player}", optimizer.step)
    trainer.state.average = clock.timed("averages", trainer.state.average)
    gradients = trainer._gradients

    def timed(player: str, *arguments):
        with clock.of(f"{player} step"):
            return gradients(player, *arguments)

    trainer._gradients = timed
    with clock.of("all"):
        for _ in range(iterations):
            trainer.iterate()
    seconds, whole = clock.seconds, clock.seconds.pop("all")
    if "LPIPS" in seconds:
        seconds["generator step"] -= seconds["LPIPS"]
    seconds["rest"] = whole - sum(seconds.values())
    return {part: spent / whole for part, spent in sorted(seconds.items(), key=lambda item: -item[1])}
