"""Batches as a pure function of the iteration, so that a resumed run sees the data an uninterrupted one would."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from udpm.core.seeds import derive_seed
from udpm.data.cache import Levels, decoding_table


class Batches:
    """Shuffled batches of a data set's training split, at any level; safe to call from several threads.

    The k-th image that training sees is element k mod N of epoch k div N's permutation; both follow from the seed, so
    the position in the data is the iteration itself. Epochs run on without dropping a last batch.

    Args:
        levels: the data set with its caches.
        scale: s of the process.
        batch: images per iteration.
        seed: the run's.
        flip: whether images are mirrored at random.
        device: where batches go.
    """

    def __init__(self, levels: Levels, scale: int, batch: int, seed: int, *, flip: bool, device: torch.device) -> None:
        split = levels.store.split("train")
        self._first, self._count = split.start, split.stop - split.start
        self._levels = levels
        self._batch, self._seed, self._flip, self._device = batch, seed, flip, device
        self._tables = [torch.from_numpy(decoding_table(level, scale)) for level in range(len(levels.sums))]
        self._order = lru_cache(maxsize=2)(self._permutation)

    def iterations_in(self, epochs: int) -> int:
        """The number of whole batches in so many passes over the training split."""
        return epochs * self._count // self._batch

    def indices(self, iteration: int) -> np.ndarray:
        """Indices into the store of iteration `iteration`'s images, (batch,) int64; iterations count from 0."""
        start = iteration * self._batch
        return np.array([self._index(position) for position in range(start, start + self._batch)])

    def __call__(self, iteration: int, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets of level `level`: H^{level-1} x_0 of iteration `iteration`'s images, and their labels.

        Returns:
            (batch, 3, N/2^{level-1}, N/2^{level-1}) float32, and (batch,) int64.
        """
        indices = self.indices(iteration)
        sums = torch.from_numpy(self._levels.sums[level - 1][indices].astype(np.int32))
        values = self._tables[level - 1][sums].permute(0, 3, 1, 2)
        if self._flip:
            values = torch.where(self._flips(iteration)[:, None, None, None], values.flip(-1), values)
        labels = torch.from_numpy(self._levels.store.labels[indices])
        return values.contiguous().to(self._device), labels.to(self._device)

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        return self._first + int(self._order(epoch)[place])

    def _permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "order", epoch)))
        return generator.permutation(self._count)

    def _flips(self, iteration: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "flip", iteration))
        return torch.rand(self._batch, generator=generator) < 0.5
