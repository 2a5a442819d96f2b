"""The interface of a tracker, and what it knows of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from udpm.config.experiment import RunConfig


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers know it.

    Attributes:
        folder: of the run.
        id: the same in every attempt, and another run's is another.
        config: with every default.
        start: iterations before this attempt; what a tracker has of later ones is repeated.
    """

    folder: Path
    id: str
    config: RunConfig
    start: int

    @property
    def name(self) -> str:
        """Experiment and seed."""
        return f"{self.config.experiment} seed{self.config.seed}"

    @property
    def parameters(self) -> dict[str, Any]:
        """Configuration of the run, in sections."""
        return self.config.model_dump(mode="json")


class Tracker(ABC):
    """A program that shows how trainings go. Only one thread calls it, and any method may raise anything or hang.

    Attributes:
        package: that must be installed, by the name that is imported.
    """

    package: ClassVar[str]

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    @abstractmethod
    def open(self) -> int:
        """Begin the run, or resume it; return the last iteration that it has wholly, 0 for none."""

    @abstractmethod
    def add(self, iteration: int, values: Mapping[str, float], image: np.ndarray | None) -> None:
        """Add what training wrote at an iteration; iterations grow.

        Args:
            values: of ``metrics.jsonl``, by name; empty if there is only an image.
            image: preview, (height, width, 3) uint8, or None.
        """

    @abstractmethod
    def close(self, complete: bool) -> None:
        """End this attempt; `complete` if the whole training has ended."""

    def abandon(self) -> None:  # noqa: B027
        """Remove what would delay the end of this process, while another method hangs in its thread."""
