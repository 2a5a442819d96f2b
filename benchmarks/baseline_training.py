"""Training with its gains switched one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.fft import downsample_by_fft
from udpm.config.experiment import RunConfig
from udpm.data.levels import Levels
from udpm.data.loader import Batches
from udpm.data.store import Store
from udpm.diffusion.process import downsample, marginal
from udpm.diffusion.schedule import Schedule
from udpm.training.batch import Prefetcher, TrainingBatch, draw_level, draw_noise
from udpm.training.losses import LossWeights
from udpm.training.metrics import Metrics
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
            graphs=training.cuda_graphs,
        )

    def applied(self, config: RunConfig) -> RunConfig:
        """A run's configuration with these gains, as far as it says."""
        training = config.training
        changes: dict[str, Any] = {
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "channels_last": self.channels_last,
            "compile": self.compile,
            "cuda_graphs": self.graphs,
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
        if not gains.fused_adam:
            self.state.optimizers = {name: _one_by_one(each) for name, each in self.state.optimizers.items()}

    def at_level(self, level: int) -> None:
        """Train at one level alone from now on."""
        shares = [float(other == level) for other in range(1, self.config.process.levels + 1)]
        training = self.config.training
        fixed = self.config.model_copy(update={"training": training.model_copy(update={"level_probabilities": shares})})
        self.batches = self.batch_source(fixed, self._images(self.place, training.data))
        if training.workers:
            self.batches = Prefetcher(self.batches, self.players, training.workers, self.iterations, self.device)

    def batch_source(self, config: RunConfig, images: Batches) -> Callable[[str, int], TrainingBatch]:
        """Return what makes the batch of a player's step, this trainer's way."""
        source = super().batch_source(config, images)
        if not self.gains.cache:
            operator = downsample if self.gains.pooling else downsample_by_fft
            source = LoadedSource(config, self.loss_weights, images, self._levels.store, self.device, operator)
        return source if self.gains.pooling else lambda player, iteration: _by_fft(source(player, iteration))

    def iterate(self, metrics: Metrics | None = None) -> None:
        """Train for one iteration; the host waits for every loss where that is this trainer's way."""
        for player in self.players(self.state.iteration):
            _, losses = self.train_step(player, self.state.iteration)
            if not self.gains.asynchronous:
                self.told = {name: value.item() for name, value in losses.items()}
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
    """Batches from a DataLoader, each brought to its level from whole images; noise as always.

    Args:
        config: of the run.
        weights: of each level.
        images: for their order.
        store: the images.
        device: where batches go.
        operator: H, of (image, s, times).
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
    """Adam with the same parameters, their steps taken one after the other."""
    (group,) = fused.param_groups
    return torch.optim.Adam(group["params"], lr=group["lr"], betas=group["betas"], foreach=False, fused=False)
