"""Let trackers follow a training, each in a thread: what they do, or fail to do, never delays or changes it."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from PIL import Image
from pydantic import Field

from udpm.config.experiment import RunConfig
from udpm.config.validation import Exactly, Record, read_record
from udpm.core.errors import UserError
from udpm.core.files import write_json
from udpm.runs.attempts import reason_of
from udpm.runs.layout import tracker_record
from udpm.runs.records import iteration_of, numbered
from udpm.training.metrics import preview_path
from udpm.training.trackers.base import TrackedRun, Tracker
from udpm.training.trackers.mlflow import MLflow
from udpm.training.trackers.tensorboard import TensorBoard
from udpm.training.trackers.wandb import WandB

KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
FORMAT = "udpm-trackers/1"
CLOSE_SECONDS = 20.0
"""Longest wait for all trackers at the end of an attempt."""


class TrackerRecord(Record):
    """``trackers.json``: the name that trackers know a run by."""

    format: Annotated[str, Exactly(FORMAT)]
    run: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


def check_installed(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed, without importing them.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(KINDS[name].package) is None:
            raise UserError(f"training.trackers: {name} needs the {name} extra: pip install 'udpm[{name}]'")


class Trackers:
    """The trackers of a run, in this process.

    Args:
        run: the run's folder.
        start: iterations before this attempt.
        may_write: returns whether the run's folder is still this process's.
    """

    def __init__(self, run: Path, config: RunConfig, start: int, may_write: Callable[[], bool]) -> None:
        self._all: list[Follower] = []
        if names := config.training.trackers:
            tracked = TrackedRun(run, _known_id(run), config, start)
            self._all = [Follower(name, KINDS[name](tracked), run, start, may_write) for name in names]

    def note(self, iteration: int) -> None:
        """Let the trackers read all metrics and previews up to an iteration, which are written. Never waits."""
        for follower in self._all:
            follower.note(iteration)

    def close(self, complete: bool) -> None:
        """Let the trackers take what is left, and wait for them for a limited time."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for follower in self._all:
            follower.end(complete)
        for follower in self._all:
            follower.join(deadline - time.monotonic())
        self._all = []


class Follower:
    """A thread that reads ``metrics.jsonl`` and previews after training wrote them, and hands them to a tracker.

    It begins with what the tracker lacks of earlier attempts. A tracker that raises is not called again.
    """

    def __init__(self, name: str, tracker: Tracker, run: Path, start: int, may_write: Callable[[], bool]) -> None:
        self._name, self._tracker, self._run, self._may_write = name, tracker, run, may_write
        self._changed = threading.Condition()
        self._until, self._ends, self._complete, self._given_up = start, False, False, False
        self._thread = threading.Thread(target=self._follow, name=f"udpm-{name}", daemon=True)
        self._thread.start()

    def note(self, iteration: int) -> None:
        """Let the tracker have everything up to an iteration."""
        with self._changed:
            self._until = iteration
            self._changed.notify()

    def end(self, complete: bool) -> None:
        """Let the tracker end after that."""
        with self._changed:
            self._ends, self._complete = True, complete
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Wait until it has ended, and give up on it after some seconds."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._given_up = True
            _warn(f"{self._name} does not end within {CLOSE_SECONDS:g} s; training ends without it")
            self._tracker.abandon()

    def _follow(self) -> None:
        try:
            if not self._may_write():
                return
            last = self._tracker.open()
            with open(self._run / "metrics.jsonl", "rb") as file:
                ends = False
                while not ends:
                    until, ends = self._next(last)
                    for iteration, values in self._written(file, last, until):
                        if not self._may_write():
                            return
                        self._tracker.add(iteration, values, self._preview(iteration))
                    last = max(last, until)
            self._tracker.close(self._complete)
        except (Exception, SystemExit) as error:
            if not self._given_up:
                _warn(f"{self._name} is left out from now on ({reason_of(error)}); training continues without it")

    def _next(self, last: int) -> tuple[int, bool]:
        """Wait for more, and return the iteration up to which everything is written, and whether that is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._until > last or self._ends)
            return self._until, self._ends

    def _written(self, file: BinaryIO, after: int, until: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield iterations in order, with the values of their lines; those that only have a preview have none."""
        found = (iteration_of(path) for path in numbered(preview_path(self._run, 0).parent, ".png"))
        alone = deque(iteration for iteration in found if after < iteration <= until)
        for line in _lines(file, until):
            iteration = line.pop("iteration")
            while alone and alone[0] < iteration:
                yield alone.popleft(), {}
            if alone and alone[0] == iteration:
                alone.popleft()
            if iteration > after:
                yield iteration, line
        yield from ((iteration, {}) for iteration in alone)

    def _preview(self, iteration: int) -> np.ndarray | None:
        path = preview_path(self._run, iteration)
        if not path.is_file():
            return None
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))


def _lines(file: BinaryIO, until: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of ``metrics.jsonl`` from the file's position up to an iteration, and stay before the next."""
    while True:
        place, text = file.tell(), file.readline()
        # Training may be writing a later line now.
        line = json.loads(text) if text.endswith(b"\n") else None
        if line is None or line["iteration"] > until:
            file.seek(place)
            return
        yield line


def _known_id(run: Path) -> str:
    """Return the name that trackers know a run by, and record it before they first use it."""
    path = tracker_record(run)
    with suppress(UserError):
        return read_record(TrackerRecord, path, "record of trackers")["run"]
    name = uuid.uuid4().hex[:16]
    write_json(path, {"format": FORMAT, "run": name})
    return name


def _warn(text: str) -> None:
    # Nobody may be reading.
    with suppress(OSError):
        print(f"warning: training.trackers: {text}", file=sys.stderr)
