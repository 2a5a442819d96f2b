"""Training with its gains switched one by one: what `udpm bench train` measures with, used nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from udpm.config.experiment import RunConfig
from udpm.data.levels import Levels
from udpm.data.loader import Batches
from udpm.data.store import Store
from udpm.diffusion.forward import downsample
from udpm.diffusion.schedule import Schedule
from udpm.process.plain import downsample_by_fft
from udpm.training import objective
from udpm.training.draws import Ahead, Draws
from udpm.training.metrics import Metrics
from udpm.training.noise import draw_level, draw_noise
from udpm.training.objective import Draw, LevelTerms
from udpm.training.trainer import Trainer

AHEAD_THREADS = 2
"""Where a configuration has none and they are switched on."""


@dataclass(frozen=True)
class TrainingGains:
    """What makes an iteration faster than the plain way, each on or off.

    Attributes:
        cache: targets from the level caches, instead of H applied to whole images that a DataLoader puts together.
        pooling: H as average pooling, instead of a product with its spectrum: in states, and in targets without cache.
        foreach_average: the average updated by one call for all parameters, instead of one by one.
        asynchronous: losses left on the device, instead of read on the host in every step.
        fused_adam: Adam's step by one call for all parameters, instead of one by one.
        bfloat16: the networks by autocast, instead of float32.
        channels_last: weights and feature maps with their channels last.
        ahead: batches and noise prepared by threads ahead of their iteration; not without cache.
        compile: the networks by torch.compile.
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

    @classmethod
    def configured(cls, config: RunConfig) -> TrainingGains:
        """What a run trains with."""
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
        )

    def applied(self, config: RunConfig) -> RunConfig:
        """A run's configuration with these gains, as far as it says."""
        training = config.training
        changes: dict[str, Any] = {
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "channels_last": self.channels_last,
            "compile": self.compile,
            # A DataLoader gives its batches in their order, which threads would not ask for.
            "workers": (training.workers or AHEAD_THREADS) if self.ahead and self.cache else 0,
            "data": training.data if self.cache else "memory",
        }
        return config.model_copy(update={"training": training.model_copy(update=changes)})


class SwitchedTrainer(Trainer):
    """A trainer with some gains; with those it is configured for, it is the trainer itself.

    Args:
        config: of the run.
        levels: the data set.
        device: where to train.
        gains: which.
    """

    def __init__(self, config: RunConfig, levels: Levels, device: torch.device, gains: TrainingGains) -> None:
        self.gains = gains
        super().__init__(gains.applied(config), levels, device)
        if not gains.foreach_average:
            self.state.average = self._average_one_by_one
        if not gains.fused_adam:
            self.state.optimizers = {name: _one_by_one(each) for name, each in self.state.optimizers.items()}

    def at_level(self, level: int) -> None:
        """From now on train at one level alone."""
        shares = [float(other == level) for other in range(1, self.config.process.levels + 1)]
        training = self.config.training
        fixed = self.config.model_copy(update={"training": training.model_copy(update={"level_probabilities": shares})})
        self.draws = self.feed(fixed, self._batches(self.place, training.data))
        if training.workers:
            self.draws = Ahead(self.draws, self.players, training.workers, self.iterations, self.device)

    def feed(self, config: RunConfig, batches: Batches) -> Draws:
        """What each player's step is fed, by this trainer's way."""
        if self.gains.cache:
            return super().feed(config, batches)
        operator = downsample if self.gains.pooling else downsample_by_fft
        return LoadedDraws(config, self.terms, batches, self._levels.store, self.device, operator)

    def iterate(self, metrics: Metrics | None = None) -> None:
        """One iteration; the host waits for every loss where that is this trainer's way."""
        if self.gains.asynchronous:
            super().iterate(metrics)
            return
        for player in self.players(self.state.iteration):
            _, losses = self._step(player, self.state.iteration)
            self.told = {name: value.item() for name, value in losses.items()}
        self.state.average()
        self.state.iteration += 1

    def _losses(self, player: str, draw: Draw, terms: LevelTerms) -> dict[str, torch.Tensor]:
        if self.gains.pooling:
            return super()._losses(player, draw, terms)
        with _states_by_fft():
            return super()._losses(player, draw, terms)

    @torch.no_grad()
    def _average_one_by_one(self) -> None:
        state = self.state
        for name, average in state.averages.items():
            decay = state.decays[name]
            for kept, value in zip(average.module.parameters(), state.generator.parameters(), strict=True):
                kept.copy_(decay * kept + (1 - decay) * value)


class LoadedDraws(Draws):
    """Batches from a DataLoader, each brought to its level from whole images; noise as always.

    Args:
        config: of the run.
        terms: of each level.
        batches: for the order of the images.
        store: the images.
        device: where batches go.
        operator: H, of (image, s, times).
    """

    def __init__(
        self,
        config: RunConfig,
        terms: list[LevelTerms],
        batches: Batches,
        store: Store,
        device: torch.device,
        operator: Callable[[torch.Tensor, int, int], torch.Tensor],
    ) -> None:
        super().__init__(config, terms, batches)
        self._schedule, self._device, self._operator = Schedule.from_config(config.process), device, operator
        order: Iterable[np.ndarray] = (batches.indices(iteration) for iteration in itertools.count())
        self._loaded = iter(DataLoader(_Images(store, config.training.flip), batch_sampler=order))
        self._current: tuple[int, list[torch.Tensor]] | None = None

    def __call__(self, player: str, iteration: int) -> Draw:
        """What `player` is fed; both players of an iteration share a batch."""
        if self._current is None or self._current[0] != iteration:
            self._current = iteration, next(self._loaded)
        images, labels = (values.to(self._device) for values in self._current[1])
        level = draw_level(self._config, player, iteration)
        target = self._operator(images, self._schedule.scale, level - 1)
        std = self._terms[level - 1].at(iteration).noise
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
    """Adam with the same parameters, their steps taken one after the other."""
    (group,) = fused.param_groups
    return torch.optim.Adam(group["params"], lr=group["lr"], betas=group["betas"], foreach=False, fused=False)


@contextmanager
def _states_by_fft() -> Iterator[None]:
    """Let the losses draw their states with H by FFT."""
    # The losses take no operator as an argument: nothing but a benchmark would ever give another one.
    kept = objective.downsample
    objective.downsample = downsample_by_fft
    try:
        yield
    finally:
        objective.downsample = kept
