"""Training with its gains switched one by one, compared with the plain way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.fft import downsample_by_fft
from benchmarks.gains import PLAIN, gain_by_gain, in_turn, mean_timing, peak_bytes, speedup
from udpm.bench.measure import Workload, ceilings, record, row
from udpm.bench.networks import CONFIGURED, MEAN, BenchmarkData, changed, setting, trained
from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.data.levels import Levels
from udpm.data.store import Store
from udpm.diffusion.process import downsample, marginal
from udpm.diffusion.schedule import Schedule
from udpm.training.batch import Batches, Prefetcher, TrainingBatch, draw_level, draw_noise, level_shares
from udpm.training.estimate import IterationCost, IterationCounter
from udpm.training.losses import LossWeights
from udpm.training.metrics import Metrics
from udpm.training.trainer import Trainer

AHEAD_THREADS = 2
"""Number of prefetching threads if a configuration has none."""


@dataclass(frozen=True)
class TrainingGains:
    """Gains of training over the plain way, each on or off.

    Attributes:
        cache: targets from the level caches, instead of H applied to whole images from a DataLoader.
        pooling: H as average pooling, instead of a product with its spectrum: in states, and in targets without cache.
        foreach_average: the EMA updated by one call for all parameters, instead of one by one.
        asynchronous: losses left on the device, instead of copied to the host in every step.
        fused_adam: Adam's step by one call for all parameters, instead of one by one.
        bfloat16: the networks by autocast, instead of float32.
        channels_last: weights and feature maps with their channels last.
        ahead: batches and noise prefetched by threads; only with `cache`.
        compile: the networks by torch.compile.
        graphs: forward and backward passes as CUDA graphs; no effect on a CPU.
    """

    cache: bool = False
    pooling: bool = False
    foreach_average: bool = False
    asynchronous: bool = False
    fused_adam: bool = False
    bfloat16: bool = False
    channels_last: bool = False
    ahead: bool = False
    compile: bool = False
    graphs: bool = False

    @classmethod
    def configured(cls, config: RunConfig) -> TrainingGains:
        """Return the gains that a run is configured for."""
        training = config.training
        return cls(
            cache=True,
            pooling=True,
            foreach_average=True,
            asynchronous=True,
            fused_adam=True,
            bfloat16=training.precision == "bfloat16",
            channels_last=training.channels_last,
            ahead=training.workers > 0,
            compile=training.compile,
            graphs=training.cuda_graphs,
        )

    def applied(self, config: RunConfig) -> RunConfig:
        """Return a run's configuration with those of these gains that it can express."""
        training = config.training
        changes: dict[str, Any] = {
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "channels_last": self.channels_last,
            "compile": self.compile,
            "cuda_graphs": self.graphs,
            # A DataLoader yields batches in order; threads would request them out of order.
            "workers": (training.workers or AHEAD_THREADS) if self.ahead and self.cache else 0,
            "data": training.data if self.cache else "memory",
        }
        return config.model_copy(update={"training": training.model_copy(update=changes)})


class SwitchedTrainer(Trainer):
    """A trainer with some gains; with the configured ones, it equals `Trainer`.

    Args:
        config: of the run.
        levels: the data set.
        device: where to train.
        gains: to use.
    """

    def __init__(self, config: RunConfig, levels: Levels, device: torch.device, gains: TrainingGains) -> None:
        self.gains = gains
        super().__init__(gains.applied(config), levels, device)
        if not gains.fused_adam:
            self.state.optimizers = {name: _one_by_one(each) for name, each in self.state.optimizers.items()}

    def at_level(self, level: int) -> None:
        """Train at one level alone from now on."""
        shares = [float(other == level) for other in range(1, self.config.process.levels + 1)]
        training = self.config.training
        fixed = self.config.model_copy(update={"training": training.model_copy(update={"level_probabilities": shares})})
        self.batches = self.batch_source(fixed, self._images(self.ranks, training.data))
        if training.workers:
            self.batches = Prefetcher(self.batches, self.players, training.workers, self.iterations, self.device)

    def batch_source(self, config: RunConfig, images: Batches) -> Callable[[str, int], TrainingBatch]:
        """Return the function that makes the batch of a player's step."""
        source = super().batch_source(config, images)
        if not self.gains.cache:
            operator = downsample if self.gains.pooling else downsample_by_fft
            source = LoadedSource(config, self.loss_weights, images, self._levels.store, self.device, operator)
        return source if self.gains.pooling else lambda player, iteration: _by_fft(source(player, iteration))

    def iterate(self, metrics: Metrics | None = None) -> None:
        """Train for one iteration; unless `asynchronous`, the host waits for every loss."""
        for player in self.players(self.state.iteration):
            _, losses = self.train_step(player, self.state.iteration)
            if not self.gains.asynchronous:
                self.logs = {name: value.item() for name, value in losses.items()}
        if self.gains.foreach_average:
            self.state.update_ema()
        else:
            self._average_one_by_one()
        self.state.iteration += 1

    @torch.no_grad()
    def _average_one_by_one(self) -> None:
        state = self.state
        for name, ema in state.ema_models.items():
            decay = state.decays[name]
            for kept, value in zip(ema.module.parameters(), state.generator.parameters(), strict=True):
                kept.copy_(decay * kept + (1 - decay) * value)


class FFTBatch(TrainingBatch):
    """A batch whose state is drawn with H by FFT."""

    def state(self, schedule: Schedule) -> torch.Tensor:
        """Return x_l drawn from q(x_l | x_0)."""
        return marginal(schedule, downsample_by_fft(self.target, schedule.scale), self.level, self.noise)


def _by_fft(batch: TrainingBatch) -> FFTBatch:
    return FFTBatch(**{field.name: getattr(batch, field.name) for field in fields(batch)})


class LoadedSource:
    """Batches from a DataLoader, downsampled to their level from whole images; with the usual noise.

    Args:
        config: of the run.
        weights: of each level.
        images: define the order.
        store: the images.
        device: of the batches.
        operator: H, called with (image, s, times).
    """

    def __init__(
        self,
        config: RunConfig,
        weights: list[LossWeights],
        images: Batches,
        store: Store,
        device: torch.device,
        operator: Callable[[torch.Tensor, int, int], torch.Tensor],
    ) -> None:
        self._config, self._weights = config, weights
        self._schedule, self._device, self._operator = Schedule.from_config(config.process), device, operator
        order: Iterable[np.ndarray] = (images.indices(iteration) for iteration in itertools.count())
        self._loaded = iter(DataLoader(_Images(store, config.training.flip), batch_sampler=order))
        self._current: tuple[int, list[torch.Tensor]] | None = None

    def __call__(self, player: str, iteration: int) -> TrainingBatch:
        """Return the batch of `player`; both players of an iteration share its images."""
        if self._current is None or self._current[0] != iteration:
            self._current = iteration, next(self._loaded)
        images, labels = (values.to(self._device) for values in self._current[1])
        level = draw_level(self._config, player, iteration)
        target = self._operator(images, self._schedule.scale, level - 1)
        std = self._weights[level - 1].at(iteration).noise
        return draw_noise(self._config, player, iteration, level, target, labels, std)


class _Images(Dataset):
    """Images of a store one by one, decoded and mirrored at random."""

    def __init__(self, store: Store, flip: bool) -> None:
        self._store, self._flip = store, flip

    def __len__(self) -> int:
        return len(self._store.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(self._store.images[index].copy()).permute(2, 0, 1).float() / 127.5 - 1
        if self._flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image, torch.tensor(self._store.labels[index])


def _one_by_one(fused: torch.optim.Adam) -> torch.optim.Adam:
    """Return Adam with the same parameters, updated one by one."""
    (group,) = fused.param_groups
    return torch.optim.Adam(group["params"], lr=group["lr"], betas=group["betas"], foreach=False, fused=False)


TWICE = 2
FLOAT32 = "float32"


def compare_training(
    config: RunConfig,
    images: BenchmarkData,
    repetitions: int,
    at: list[int] | None = None,
    *,
    gains: bool = False,
    memory: bool = False,
) -> dict[str, Any]:
    """Time an iteration of both players at one level, the plain way and as configured, in turn, level by level.

    For a run configured for bfloat16, float32 is measured, too.

    Args:
        config: of a run; its number of processes is ignored. Both players take a step in every iteration, with R1 where
            γ > 0.
        images: to train on.
        repetitions: of each way at each level.
        at: levels l to measure at; default all.
        gains: also switch each gain alone.
        memory: also measure each way's peak memory at the finest level, in a separate process.

    Returns:
        The record: by level, times and speedups over the plain way; if all levels are measured, also the mean over
        levels with the probabilities of training.

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


def iterate_twice(config: RunConfig, images: BenchmarkData, gains: TrainingGains, level: int) -> None:
    """Run two iterations at a level with some gains, to measure memory."""
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
    """Return rows by level and way, then the mean over levels."""
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
        means = {name: mean_timing([found[name] for found in timings.values()], shares) for name in ways}
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


def _work(config: RunConfig, way: TrainingGains, cost: IterationCost) -> Workload:
    precision = "bfloat16" if way.bfloat16 else "float32"
    return Workload(config.training.batch, cost.multiply_adds, cost.bytes, precision)


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
