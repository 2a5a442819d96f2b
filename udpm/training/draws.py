"""What each player's step is fed, prepared when it is needed or by threads ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from udpm.config.experiment import RunConfig
from udpm.core.transfer import bind_thread
from udpm.data.loader import Batches
from udpm.training.noise import draw_level, draw_noise
from udpm.training.objective import Draw, LevelTerms

AHEAD = 4
"""Iterations that threads prepare in advance."""


def players_at(config: RunConfig, iteration: int) -> list[str]:
    """Who takes a step in an iteration, counted from 0, in order."""
    starts = iteration >= config.losses.adversarial_start
    plays = config.adversarial and starts and iteration % config.training.discriminator_every == 0
    return ["discriminator", "generator"] if plays else ["generator"]


class Draws:
    """The batch, level and noise of a player's step, a function of (run seed, player, iteration) alone.

    Args:
        config: of the run.
        terms: of each level, before any decay.
        batches: the data, of this process's part of the global batch.
    """

    def __init__(self, config: RunConfig, terms: list[LevelTerms], batches: Batches) -> None:
        self._config, self._terms, self._batches = config, terms, batches

    def __call__(self, player: str, iteration: int) -> Draw:
        """What `player` is fed in an iteration, counted from 0."""
        level = draw_level(self._config, player, iteration)
        target, labels = self._batches(iteration, level)
        std = self._terms[level - 1].at(iteration).noise
        return draw_noise(self._config, player, iteration, level, target, labels, std, self._batches.part)


class Ahead:
    """Calls a function of (player, iteration) in threads, a few iterations before its results are asked for.

    Args:
        function: what is called; must not depend on the order of calls.
        players: who takes a step in an iteration.
        workers: number of threads, > 0.
        end: number of iterations.
        device: that the results are moved to.
    """

    def __init__(
        self,
        function: Callable[[str, int], Draw],
        players: Callable[[int], list[str]],
        workers: int,
        end: int,
        device: torch.device,
    ) -> None:
        self._function, self._players, self._end = function, players, end
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="udpm-draws", initializer=bind_thread, initargs=(device,)
        )
        self._pending: dict[tuple[str, int], Future[Draw]] = {}

    def __call__(self, player: str, iteration: int) -> Draw:
        """The function's result; later ones are begun."""
        for ahead in range(iteration, min(iteration + AHEAD, self._end)):
            for name in self._players(ahead):
                if (name, ahead) not in self._pending and (ahead > iteration or name == player):
                    self._pending[name, ahead] = self._pool.submit(self._function, name, ahead)
        return self._pending.pop((player, iteration)).result()
