"""How fast a run trains on this machine, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from udpm.config.experiment import RunConfig, Training
from udpm.core import provenance, runtime
from udpm.core.errors import UserError
from udpm.core.measure import ceilings, now, paired
from udpm.data.cache import Levels
from udpm.networks.cost import count_cost
from udpm.training.plain import PlainTrainer
from udpm.training.trainer import Trainer

WARM_UP = 5
COMPARISON = "udpm-comparison/1"
PLAIN, FLOAT32, CONFIGURED = "plain", "float32", "as configured"


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


def bench_training(config: RunConfig, levels: Levels, iterations: int) -> list[str]:
    """Train so many iterations twice, first undisturbed for the speed, then with clocks around the parts.

    Args:
        config: of a run; its number of processes is ignored.
        levels: its data set and caches.
        iterations: measured, after a few that are not.

    Returns:
        Lines to print.

    Raises:
        UserError: training is imported.
    """
    training = _trained(config)
    device = runtime.configure(training.device, training.threads, tf32=training.tf32)
    trainer = Trainer(config, levels, device)
    clock = Clock(device)
    for _ in range(WARM_UP):
        trainer.iterate()
    since = clock.now()
    for _ in range(iterations):
        trainer.iterate()
    rate = iterations / (clock.now() - since)
    return [
        f"{config.experiment} on {runtime.describe(device)}: batch {training.batch}, {training.precision}"
        f"{', TF32' * (training.tf32 and device.type == 'cuda')}{', channels last' * training.channels_last}"
        f"{', compiled' * training.compile}",
        f"{rate:.2f} iterations/s, {rate * training.batch:.1f} images/s",
        *_shares(trainer, clock, iterations),
        *_utilisation(trainer, rate),
        *_memory(device),
    ]


def for_speed(config: RunConfig, batch: int | None, threads: int | None, *, random: bool) -> RunConfig:
    """A configuration with another batch or other threads; random images need no trained LPIPS either."""
    if config.training == "imported":
        return config
    changes = {"batch": batch or config.training.batch, "threads": threads or config.training.threads}
    changed = _changed(config, **changes)
    if not random:
        return changed
    return changed.model_copy(update={"losses": config.losses.model_copy(update={"lpips_network": "vgg-random"})})


def compare_training(config: RunConfig, levels: Levels, repetitions: int) -> dict[str, Any]:
    """An iteration, both players at one level: the plain way and as configured, in turn, at every level.

    Where a run is configured for bfloat16, this trainer's float32 is measured too.

    Args:
        config: of a run; its number of processes is ignored.
        levels: its data set and caches.
        repetitions: of each way at each level.

    Returns:
        The record: by level, times and how many times faster than the plain way; and an iteration's mean time over
        levels as training draws them.

    Raises:
        UserError: training is imported.
    """
    training = _trained(config)
    device = runtime.configure(training.device, training.threads, tf32=training.tf32)
    trainers = {PLAIN: PlainTrainer(config, levels, device)}
    if training.precision != "float32":
        trainers[FLOAT32] = Trainer(_changed(config, precision="float32"), levels, device)
    trainers[CONFIGURED] = Trainer(config, levels, device)
    by_level = {}
    for level in range(1, config.process.levels + 1):
        for trainer in trainers.values():
            _fix_level(trainer, level)
        calls = {name: trainer.iterate for name, trainer in trainers.items()}
        by_level[level] = paired(calls, repetitions, device)
    return {
        "format": COMPARISON,
        "of": "training",
        "experiment": config.experiment,
        "batch": training.batch,
        "precision": training.precision,
        "generator_multiply_adds": [call * training.batch for call in count_cost(config).calls],
        "ceilings": ceilings(device),
        "levels": by_level,
        "iteration": {name: _mean_over_levels(config, by_level, name) for name in trainers},
        "device": runtime.describe(device),
        "provenance": provenance.record(),
    }


def _fix_level(trainer: Trainer, level: int) -> None:
    shares = [float(other == level) for other in range(1, trainer.config.process.levels + 1)]
    batches = trainer._batches(trainer.place, trainer.config.training.data)
    trainer.draws = trainer.feed(_changed(trainer.config, level_probabilities=shares), batches)


def _trained(config: RunConfig) -> Training:
    """The training section of a run that trains.

    Raises:
        UserError: training is imported.
    """
    if config.training == "imported":
        raise UserError(f"{config.experiment}: training is imported; there is nothing to measure")
    return config.training


def _changed(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _mean_over_levels(config: RunConfig, by_level: dict[int, dict[str, Any]], name: str) -> dict[str, float]:
    """Seconds of an iteration, medians weighed by how often a level is drawn, and the plain way's over them."""
    shares = config.training.level_probabilities or [1 / len(by_level)] * len(by_level)

    def mean(way: str, kind: str) -> float:
        pairs = zip(shares, by_level.values(), strict=True)
        return sum(share * found[way][kind]["median"] for share, found in pairs)

    told = {kind: mean(name, kind) for kind in ("seconds", "cpu_seconds")}
    speedups = {"speedup": "seconds", "cpu_speedup": "cpu_seconds"}
    return told | {key: mean(PLAIN, kind) / told[kind] for key, kind in speedups.items()}


def _shares(trainer: Trainer, clock: Clock, iterations: int) -> list[str]:
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
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [f"  {part:24} {100 * spent / whole:5.1f} %" for part, spent in ordered]


def _utilisation(trainer: Trainer, rate: float) -> list[str]:
    """The generator's and discriminator's multiply-adds against what a large matrix product reaches here."""
    config = trainer.config
    calls = count_cost(config).calls
    shares = config.training.level_probabilities or [1 / len(calls)] * len(calls)
    forward = sum(share * call for share, call in zip(shares, calls, strict=True))
    # A step costs its forward pass three times; the discriminator's step adds the generator's forward pass.
    per_image = 3 * forward + (forward if config.adversarial else 0)
    used = 2 * per_image * config.training.batch * rate
    reached = ceilings(trainer.device)[f"{config.training.precision}_flops"]
    return [
        f"generator's own arithmetic: {used / 1e9:.4g} GFLOP/s, {100 * used / reached:.1f} % of the "
        f"{reached / 1e9:.4g} GFLOP/s that a large matrix product reaches here"
    ]


def _memory(device: torch.device) -> list[str]:
    if device.type != "cuda":
        return []
    return [f"GPU memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at most"]
