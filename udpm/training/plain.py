"""Training the plain way: what `udpm bench train` compares with, used nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from udpm.config.experiment import RunConfig
from udpm.data.batches import Batches
from udpm.data.cache import Levels
from udpm.data.store import Store
from udpm.process.plain import downsample_by_fft
from udpm.process.schedule import Schedule
from udpm.training.draws import Draws
from udpm.training.metrics import Metrics
from udpm.training.noise import draw_level, draw_noise
from udpm.training.objective import Draw, LevelTerms
from udpm.training.trainer import Trainer


class PlainTrainer(Trainer):
    """A trainer in float32, eager, whose batches a DataLoader puts together and whose targets come from an FFT.

    Losses are read on the host in every step, and the average is updated one parameter after the other. Networks,
    losses and optimisers are the trainer's own.

    Args:
        config: of the run.
        levels: the data set.
        device: where to train.
    """

    def __init__(self, config: RunConfig, levels: Levels, device: torch.device) -> None:
        changes = {"precision": "float32", "channels_last": False, "compile": False, "workers": 0, "data": "memory"}
        plain = config.model_copy(update={"training": config.training.model_copy(update=changes)})
        super().__init__(plain, levels, device)
        self.state.average = self._average_one_by_one

    def feed(self, config: RunConfig, batches: Batches) -> PlainDraws:
        """What each player's step is fed, by this trainer's way."""
        return PlainDraws(config, self.terms, batches, self._levels.store, self.device)

    def iterate(self, metrics: Metrics | None = None) -> None:
        """One iteration; the host waits for every loss."""
        for player in self.players(self.state.iteration):
            _, losses = self._step(player, self.state.iteration)
            self.told = {name: value.item() for name, value in losses.items()}
        self.state.average()
        self.state.iteration += 1

    @torch.no_grad()
    def _average_one_by_one(self) -> None:
        state = self.state
        for name, average in state.averages.items():
            decay = state.decays[name]
            for kept, value in zip(average.module.parameters(), state.generator.parameters(), strict=True):
                kept.copy_(decay * kept + (1 - decay) * value)


class PlainDraws(Draws):
    """Batches from a DataLoader, each brought to its level by FFT; noise as always.

    Args:
        config: of the run.
        terms: of each level.
        batches: for the order of the images.
        store: the images.
        device: where batches go.
    """

    def __init__(
        self, config: RunConfig, terms: list[LevelTerms], batches: Batches, store: Store, device: torch.device
    ) -> None:
        super().__init__(config, terms, batches)
        self._schedule, self._device = Schedule.from_config(config.process), device
        order: Iterable[np.ndarray] = (batches.indices(iteration) for iteration in itertools.count())
        self._loaded = iter(DataLoader(_Images(store, config.training.flip), batch_sampler=order))
        self._current: tuple[int, list[torch.Tensor]] | None = None

    def __call__(self, player: str, iteration: int) -> Draw:
        """What `player` is fed; both players of an iteration share a batch."""
        if self._current is None or self._current[0] != iteration:
            self._current = iteration, next(self._loaded)
        images, labels = (values.to(self._device) for values in self._current[1])
        level = draw_level(self._config, player, iteration)
        target = downsample_by_fft(images, self._schedule.scale, level - 1)
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
