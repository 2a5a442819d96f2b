"""Batches as a pure function of the iteration, so that a resumed run sees the same data as an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from udpm.core.arrays import derive_seed
from udpm.core.devices import to_device
from udpm.data.levels import Levels, decoding_table

DataLocation = Literal["auto", "device", "memory"]
LARGEST_SHARE = 0.25
"""Largest fraction of a device's free memory that images may take by default."""
Fetch = Callable[[np.ndarray, int], torch.Tensor]
"""Function of image indices and level that returns block sums, (n, h, w, 3) integers on the device."""


class Batches:
    """Shuffled batches of a data set's training split, at any level; safe to call from several threads.

    The k-th image that training sees is element k mod N of epoch k div N's permutation; both follow from the seed, so
    the position in the data is the iteration itself. Batches may span epochs, so none is dropped. Neither the location
    nor the number of ranks changes an image or its position in the global batch.

    Args:
        levels: the data set with its caches.
        scale: s of the process.
        batch: images per iteration, over all ranks.
        seed: seed of the run.
        flip: True to mirror images at random.
        device: device of the batches.
        location: storage of the images: on the device, memory-mapped, or "auto": on the device if they fit easily.
        rank: index of this process's part of each global batch.
        world: number of parts; divides `batch`.
    """

    def __init__(
        self,
        levels: Levels,
        scale: int,
        batch: int,
        seed: int,
        *,
        flip: bool,
        device: torch.device,
        location: DataLocation = "auto",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        split = levels.store.split("train")
        self._first, self._count = split.start, split.stop - split.start
        self._levels = levels
        self._batch, self._seed, self._flip, self._device = batch, seed, flip, device
        share = batch // world
        self.part = slice(rank * share, (rank + 1) * share)
        self._tables = [torch.from_numpy(decoding_table(level, scale)).to(device) for level in range(len(levels.sums))]
        self._order = lru_cache(maxsize=2)(self._permutation)
        self.resident = location == "device" or (location == "auto" and _fits(levels, split, device))
        self._fetch: Fetch = _resident(levels, split, device) if self.resident else _mapped(levels, device)

    def iterations_in(self, epochs: int) -> int:
        """Return the number of whole batches in `epochs` passes over the training split."""
        return epochs * self._count // self._batch

    def indices(self, iteration: int) -> np.ndarray:
        """Return this rank's indices into the store for an iteration (from 0), (n,) int64."""
        start = iteration * self._batch
        positions = range(start, start + self._batch)[self.part]
        found = [
            self._order(epoch)[index] for epoch, index in (divmod(position, self._count) for position in positions)
        ]
        return self._first + np.array(found, dtype=np.int64)

    def __call__(self, iteration: int, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the targets H^{level-1} x_0 of an iteration's images, and their labels.

        Returns:
            (n, 3, N/2^{level-1}, N/2^{level-1}) float32, and (n,) int64, n the batch or the rank's part of it.
        """
        indices = self.indices(iteration)
        # Permute small integers, then look values up: exact, with a quarter of the bytes to move.
        sums = self._fetch(indices, level - 1).permute(0, 3, 1, 2).contiguous()
        values = self._tables[level - 1].index_select(0, sums.flatten().int()).view(sums.shape)
        if self._flip:
            flips = to_device(self._flips(iteration)[self.part], self._device)
            values = torch.where(flips[:, None, None, None], values.flip(-1), values)
        return values, to_device(torch.from_numpy(self._levels.store.labels[indices]), self._device)

    def _permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "order", epoch)))
        return generator.permutation(self._count)

    def _flips(self, iteration: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "flip", iteration))
        return torch.rand(self._batch, generator=generator) < 0.5


def _mapped(levels: Levels, device: torch.device) -> Fetch:
    """Read only the requested images and level from the memory maps."""

    def fetch(indices: np.ndarray, level: int) -> torch.Tensor:
        return to_device(_tensor(levels.sums[level][indices]), device)

    return fetch


def _resident(levels: Levels, split: slice, device: torch.device) -> Fetch:
    """Copy the training split's levels to the device once."""
    kept = [_tensor(np.array(sums[split])).to(device) for sums in levels.sums]

    def fetch(indices: np.ndarray, level: int) -> torch.Tensor:
        return kept[level].index_select(0, to_device(torch.from_numpy(indices - split.start), device))

    return fetch


def _fits(levels: Levels, split: slice, device: torch.device) -> bool:
    if device.type != "cuda":
        # The memory map is already in the same memory.
        return False
    # Sums of levels above 0 are kept as int32.
    size = sum(sums[split].size * (1 if level == 0 else 4) for level, sums in enumerate(levels.sums))
    return size <= LARGEST_SHARE * torch.cuda.mem_get_info(device)[0]


def _tensor(sums: np.ndarray) -> torch.Tensor:
    # torch supports few operations on unsigned types other than uint8.
    return torch.from_numpy(sums if sums.dtype == np.uint8 else sums.astype(np.int32))
