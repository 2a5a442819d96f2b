"""Training the plain way and ours, in turn; and with each gain switched over alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.baseline_training import SwitchedTrainer, TrainingGains
from benchmarks.gains import PLAIN, gain_by_gain
from udpm.bench.measure import Timing, ceilings, in_turn, peak_bytes, speedup
from udpm.bench.record import Work, record, row
from udpm.bench.training import CONFIGURED, MEAN, Images, changed, level_shares, setting, trained
from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.data.levels import Levels
from udpm.training.estimate import IterationCost, IterationCounter

TWICE = 2
FLOAT32 = "float32"


def compare_training(
    config: RunConfig,
    images: Images,
    repetitions: int,
    at: list[int] | None = None,
    *,
    gains: bool = False,
    memory: bool = False,
) -> dict[str, Any]:
    """An iteration, both players at one level: the plain way and as configured, in turn, level by level.

    Where a run is configured for bfloat16, this trainer's float32 is measured too.

    Args:
        config: of a run; its number of processes is ignored. Both players take a step in every iteration, with R1 where
            γ > 0.
        images: to train on.
        repetitions: of each way at each level.
        at: levels l to measure at; default all.
        gains: also switch each gain over alone.
        memory: also measure each way's peak memory at the finest level, in a process of its own.

    Returns:
        The record: by level, times and how many times faster than the plain way; an iteration's mean time over levels
        as training draws them, where all are measured.

    Raises:
        UserError: training is imported, or no such level.
    """
    training = trained(config)
    config, at = _both_play(config), _checked(at, config.process.levels)
    device = devices.configure(training.device, training.threads, tf32=training.tf32)
    full, best = TrainingGains.configured(config), ceilings(device)
    with images.opened(config) as levels:
        rows = _compare(config, levels, device, full, at, repetitions, best)
        switched = [
            gain
            for level in (at if gains else [])
            for gain in gain_by_gain(
                _part(level), full, partial(_call, config, levels, device, level), repetitions, device
            )
        ]
    if memory:
        for each in rows[: len(_ways(full))]:
            each["peak_bytes"] = peak_bytes(iterate_twice, config, images, _ways(full)[each["way"]], at[0])
    found = record("training", device, best, rows, **setting(config), repetitions=repetitions)
    return found | ({"gains": switched} if gains else {})


def iterate_twice(config: RunConfig, images: Images, gains: TrainingGains, level: int) -> None:
    """Two iterations at a level with some gains; for the memory that they take."""
    training = config.training
    device = devices.configure(training.device, training.threads, tf32=training.tf32)
    with images.opened(config) as levels:
        call = _call(config, levels, device, level, gains)
        for _ in range(TWICE):
            call()


def _compare(
    config: RunConfig,
    levels: Levels,
    device: torch.device,
    full: TrainingGains,
    at: list[int],
    repetitions: int,
    best: dict[str, float],
) -> list[dict[str, Any]]:
    """The rows: by level and way, then the levels' mean."""
    ways = _ways(full)
    trainers = {name: SwitchedTrainer(config, levels, device, way) for name, way in ways.items()}
    timings = {}
    for level in at:
        for trainer in trainers.values():
            trainer.at_level(level)
        timings[level] = in_turn({name: trainer.iterate for name, trainer in trainers.items()}, repetitions, device)
    counter = IterationCounter(config, trainers[PLAIN].perceptual)
    costs = {level: counter.count(level) for level in at}
    parts = {_part(level): (timings[level], costs[level]) for level in at}
    if len(at) == config.process.levels > 1:
        shares = level_shares(config)
        means = {name: Timing.mean([found[name] for found in timings.values()], shares) for name in ways}
        parts[MEAN] = means, IterationCost.mean(list(costs.values()), shares)
    return [
        row(part, name, found[name], _work(config, way, cost), best) | speedup(found[PLAIN], found[name])
        for part, (found, cost) in parts.items()
        for name, way in ways.items()
    ]


def _call(
    config: RunConfig, levels: Levels, device: torch.device, level: int, gains: TrainingGains
) -> Callable[[], object]:
    trainer = SwitchedTrainer(config, levels, device, gains)
    trainer.at_level(level)
    return trainer.iterate


def _work(config: RunConfig, way: TrainingGains, cost: IterationCost) -> Work:
    precision = "bfloat16" if way.bfloat16 else "float32"
    return Work(config.training.batch, cost.multiply_adds, cost.bytes, precision)


def _ways(full: TrainingGains) -> dict[str, TrainingGains]:
    between = {FLOAT32: replace(full, bfloat16=False)} if full.bfloat16 else {}
    return {PLAIN: TrainingGains(), **between, CONFIGURED: full}


def _part(level: int) -> str:
    return f"l = {level}"


def _both_play(config: RunConfig) -> RunConfig:
    losses = config.losses.model_copy(update={"adversarial_start": 0, "r1_every": 1})
    return changed(config, discriminator_every=1).model_copy(update={"losses": losses})


def _checked(at: list[int] | None, levels: int) -> list[int]:
    every = list(range(1, levels + 1))
    wrong = sorted(set(at or []) - set(every))
    if wrong:
        raise UserError(f"--levels: {wrong[0]} is not among {every[0]}..{every[-1]}")
    return sorted(set(at or every))
