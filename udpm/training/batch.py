"""Batches as a pure function of (seed, player, iteration): images of a data set at one level, and a step's noise.

Noise depends neither on the device nor on the number of processes. Of kind "host", every process draws that of the
global batch on the CPU, and takes its part; of kind "counter", it draws its part alone, on its device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from udpm.config.experiment import RunConfig
from udpm.core.arrays import derive_seed
from udpm.core.devices import bind_thread, to_device
from udpm.data.levels import Levels, decoding_table
from udpm.diffusion.process import downsample, marginal
from udpm.diffusion.schedule import Schedule
from udpm.training.augmentation import DRAWS, draw_parameters, probability_at
from udpm.training.noise import StepNoise

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


EVERYTHING = slice(None)
AHEAD = 4
"""Iterations prepared in advance."""


@dataclass(frozen=True)
class TrainingBatch:
    """Images at one level, with the noise of a step.

    Attributes:
        level: l.
        target: H^{l-1} x_0, (B, 3, 2h, 2w).
        labels: (B,) int64, or None for unlabelled data.
        noise: ε of x_l, (B, 3, h, w).
        fake_noise: instance noise for generated images, (B, 3, 2h, 2w), or None.
        real_noise: instance noise for real images; None where a step does not show them to the discriminator.
        dropped_labels: (B,) bool, images whose label the generator does not see, or None.
        latent: z_l of each of the m draws of the output, (B, m, k, h, w), or None for a generator without.
        redraws: ε of x_L for all draws but the first, (B, m - 1, 3, h, w); None where all draws share x_l.
        fake_transform: parameters of the transforms of generated images that the discriminator sees, or None.
        real_transform: those of real images.
    """

    level: int
    target: torch.Tensor
    labels: torch.Tensor | None
    noise: torch.Tensor
    fake_noise: torch.Tensor | None = None
    real_noise: torch.Tensor | None = None
    dropped_labels: torch.Tensor | None = None
    latent: torch.Tensor | None = None
    redraws: torch.Tensor | None = None
    fake_transform: torch.Tensor | None = None
    real_transform: torch.Tensor | None = None

    def state(self, schedule: Schedule) -> torch.Tensor:
        """Return x_l drawn from q(x_l | x_0), (B, 3, h, w): H of the target is H^l x_0."""
        return marginal(schedule, downsample(self.target, schedule.scale), self.level, self.noise)

    def inputs(self, schedule: Schedule, state: torch.Tensor) -> torch.Tensor:
        """Return [x_l, z_l] for each draw of the output, (m·B, 3 + k, h, w), all images' first draw first.

        `state` is x_l of the first draw, (B, 3, h, w).
        """
        states = [state]
        if self.redraws is not None:
            states += [replace(self, noise=noise).state(schedule) for noise in self.redraws.unbind(1)]
        if self.latent is None:
            return state if len(states) == 1 else torch.cat(states)
        draws = self.latent.shape[1]
        states = states if len(states) == draws else states * draws
        return torch.cat([torch.cat(states), self.latent.transpose(0, 1).flatten(0, 1)], dim=1)

    def tensors(self) -> dict[str, Any]:
        """Return all tensors by name, without those that are None."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def split(self, count: int) -> list[TrainingBatch]:
        """Cut the batch into equal parts."""
        if count == 1:
            return [self]
        parts = {name: value.chunk(count) for name, value in self.tensors().items()}
        return [replace(self, **{name: values[index] for name, values in parts.items()}) for index in range(count)]


class Prefetcher:
    """Call a function of (player, iteration) in threads, a few iterations ahead.

    Args:
        function: to call; must not depend on the order of calls.
        players: of an iteration, in order.
        workers: number of threads, > 0.
        end: number of iterations.
        device: of the results.
    """

    def __init__(
        self,
        function: Callable[[str, int], TrainingBatch],
        players: Callable[[int], list[str]],
        workers: int,
        end: int,
        device: torch.device,
    ) -> None:
        self._function, self._players, self._end = function, players, end
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="udpm-batches", initializer=bind_thread, initargs=(device,)
        )
        self._pending: dict[tuple[str, int], Future[TrainingBatch]] = {}

    def __call__(self, player: str, iteration: int) -> TrainingBatch:
        """Return the function's result and start on later ones."""
        for ahead in range(iteration, min(iteration + AHEAD, self._end)):
            for name in self._players(ahead):
                # Of this iteration only the player's: another may have taken its batch already.
                if (name, ahead) not in self._pending and (ahead > iteration or name == player):
                    self._pending[name, ahead] = self._pool.submit(self._function, name, ahead)
        return self._pending.pop((player, iteration)).result()


def players_at(config: RunConfig, iteration: int) -> list[str]:
    """Return the players of an iteration, counted from 0, in order."""
    weights = config.per_level("losses.adversarial_weight")
    plays = discriminator_is_due(config, iteration)
    if plays and not all(weights):
        plays = weights[draw_level(config, "discriminator", iteration) - 1] > 0
    return ["discriminator", "generator"] if plays else ["generator"]


def discriminator_is_due(config: RunConfig, iteration: int) -> bool:
    """Return whether the discriminator takes a step in an iteration if its level has an adversarial weight."""
    starts = iteration >= config.losses.adversarial_start
    return config.adversarial and starts and iteration % config.training.discriminator_every == 0


def level_shares(config: RunConfig) -> list[float]:
    """Return the probability of each level, l = 1 first; uniform by default."""
    levels = config.process.levels
    return config.training.level_probabilities or [1 / levels] * levels


def draw_level(config: RunConfig, player: str, iteration: int) -> int:
    """Draw the level of a player's step."""
    uniform = torch.rand((), generator=_generator(config.seed, "level", player, iteration), dtype=torch.float64).item()
    shares = level_shares(config)
    # Their sum may fall short of 1: what is missing goes to the last level that is drawn at all.
    last = max(level for level, share in enumerate(shares, start=1) if share)
    return next((level for level, bound in enumerate(itertools.accumulate(shares), start=1) if uniform < bound), last)


def draw_noise(
    config: RunConfig,
    player: str,
    iteration: int,
    level: int,
    target: torch.Tensor,
    labels: torch.Tensor,
    std: float,
    part: slice = EVERYTHING,
) -> TrainingBatch:
    """Draw all noise of a player's step for images at a level.

    Args:
        config: of the run.
        player: "discriminator" or "generator".
        iteration: counted from 0.
        level: l.
        target: H^{l-1} x_0, (n, 3, 2h, 2w), of this part.
        labels: (n,) int64.
        std: of the instance noise; 0 draws none.
        part: of the global batch; noise depends on the position there.

    Raises:
        UserError: noise of kind counter has no room for a number.
    """
    _, channels, height, width = target.shape
    step = StepNoise(config, player, iteration, part)

    def transform(whose: str) -> torch.Tensor:
        uniform = step.uniform(f"{whose} transform", (DRAWS,))
        section = config.losses.augmentation
        parameters = draw_parameters(section, height, probability_at(section, iteration), uniform)
        return to_device(parameters, target.device)

    state, image = (channels, height // 2, width // 2), (channels, height, width)
    augments, real = config.losses.augmentation.transforms, shows_real(config, player, level)
    draws, redraws = draw_counts(config, player, level)
    latent = config.generator.latent_channels
    shapes: dict[str, tuple[int, ...]] = {"state": state}
    shapes |= {"fake": image} if std else {}
    shapes |= {"real": image} if std and real else {}
    shapes |= {"latent": (draws, latent, *state[1:])} if latent else {}
    shapes |= {"state of further draws": (redraws, *state)} if redraws else {}
    drawn = step.normal(shapes, target.device)
    return TrainingBatch(
        level,
        target,
        labels,
        drawn["state"],
        fake_noise=drawn["fake"] * std if "fake" in drawn else None,
        real_noise=drawn["real"] * std if "real" in drawn else None,
        dropped_labels=_dropped_labels(step, target.device),
        latent=drawn.get("latent"),
        redraws=drawn.get("state of further draws"),
        fake_transform=transform("fake") if augments else None,
        real_transform=transform("real") if augments and real else None,
    )


def shows_real(config: RunConfig, player: str, level: int) -> bool:
    """Return whether a player's step shows real images to the discriminator."""
    adversarial = config.per_level("losses.adversarial_weight")[level - 1]
    return player == "discriminator" or (adversarial > 0 and config.losses.adversarial == "relativistic")


def draw_counts(config: RunConfig, player: str, level: int) -> tuple[int, int]:
    """Return the number of draws of the output in a step, and for how many of them x_L is drawn anew."""
    scores = player == "generator" and config.per_level("losses.energy_weight")[level - 1] > 0
    draws = config.losses.energy_draws if scores else 1
    return draws, draws - 1 if config.losses.energy_redraw and level == config.process.levels else 0


def _dropped_labels(step: StepNoise, device: torch.device) -> torch.Tensor | None:
    """Choose the labels to drop; none in the discriminator's step."""
    probability = step.config.generator.label_dropout
    if not probability or step.player != "generator":
        return None
    # An earlier name of dropped labels, kept because the numbers depend on it.
    return to_device(step.uniform("hidden labels", (), torch.float32) < probability, device)


def drops_out(config: RunConfig, player: str, discriminator_dropout: float) -> bool:
    """Return True if a player's step uses dropout: only the player's network is in train mode.

    `discriminator_dropout` is the probability at the step's level; the generator's is one for all levels.
    """
    return bool(config.generator.dropout if player == "generator" else discriminator_dropout)


def seed_dropout(config: RunConfig, player: str, iteration: int, part: int) -> None:
    """Seed torch's global generator, used by dropout alone, differently for every part of the global batch.

    Parts are numbered over all processes, so that N processes drop what one that splits its batch into N parts drops.
    """
    # Earlier versions counted a process's parts, next to its rank: those of the first keep their seeds.
    which = (0, part) if part else ()
    torch.manual_seed(derive_seed(config.seed, "dropout", player, iteration, *which))


def _generator(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))
