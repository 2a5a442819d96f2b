"""Decode images chunk by chunk into the store, here or in worker processes, with a journal of finished chunks."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from udpm.config.validation import NonNegativeInt, Record
from udpm.core.errors import StoppedEarly
from udpm.core.files import write_text
from udpm.core.processes import SPAWN, StopRequest, init_worker
from udpm.core.reading import read_json_lines
from udpm.data.decode import ImageError, Preprocessing, fit, quiet_decoders, to_rgb
from udpm.data.source import Reader, Source
from udpm.data.store import HEADER_BYTES


class Journal:
    """Finished chunks of the rows beside it. Use it under the data set's lock.

    A chunk counts after the next `sync`: rows first, then their lines. A torn last line, left by a kill, is dropped.

    Args:
        path: of the journal.
        rows: file with the chunks' rows.
        header: what all chunks depend on, `count` the number of images; a journal with another header is started over.
    """

    def __init__(self, path: Path, rows: Path, header: dict[str, Any]) -> None:
        self._path, self._rows = path, rows
        self._pending: list[Outcome] = []
        self.outcomes: dict[int, Outcome] = {}
        lines = _whole_lines(path)
        if not lines or lines[0] != header or not rows.exists():
            lines = [header]
        self.fresh = len(lines) == 1
        for outcome in filter(None, (_outcome(line, header["count"]) for line in lines[1:])):
            self.outcomes[outcome.number] = outcome
        self._rewrite(header, self.outcomes.values())

    def keep(self, chunk: Chunk, row_bytes: int) -> bool:
        """Whether a chunk is done: the same images, and the rows still hold what was written."""
        outcome = self.outcomes.get(chunk.number)
        if outcome is None:
            return False
        with open(self._rows, "rb") as file:
            file.seek(HEADER_BYTES + chunk.number * CHUNK * row_bytes)
            data = file.read(len(chunk.names) * row_bytes)
        kept = outcome.inputs == chunk.digest and outcome.sha256 == hashlib.sha256(data).hexdigest()
        if not kept:
            del self.outcomes[chunk.number]
        return kept

    def add(self, outcome: Outcome) -> None:
        """Note a finished chunk; it counts after the next `sync`."""
        self._pending.append(outcome)

    def sync(self) -> None:
        """Make the chunks noted so far count."""
        if not self._pending:
            return
        with open(self._rows, "rb") as rows:
            os.fsync(rows.fileno())
        self._append([asdict(outcome) for outcome in self._pending])
        self.outcomes |= {outcome.number: outcome for outcome in self._pending}
        self._pending = []

    def _rewrite(self, header: dict[str, Any], outcomes: Iterable[Outcome]) -> None:
        write_text(self._path, _text([header, *map(asdict, outcomes)]))

    def _append(self, lines: list[dict[str, Any]]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_text(lines))
            file.flush()
            os.fsync(file.fileno())


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = []
    for line in read_json_lines(path, "journal of a preparation"):
        if line is None:
            break
        whole.append(line)
    return whole


class _Line(Record):
    """A chunk that was done; images' numbers are text, for JSON knows no integers as keys."""

    number: NonNegativeInt
    inputs: str
    sha256: str
    refused: dict[Annotated[str, Field(pattern="^[0-9]{1,18}$")], str]
    modes: dict[str, NonNegativeInt]


def _outcome(line: dict[str, Any], count: int) -> Outcome | None:
    """None for a line that tells of no chunk of `count` images: the chunk is done again."""
    try:
        told = _Line.model_validate(line).model_dump()
    except ValidationError:
        return None
    refused = {int(number): reason for number, reason in told["refused"].items()}
    first = told["number"] * CHUNK
    if first >= count or not all(first <= number < min(first + CHUNK, count) for number in refused):
        return None
    return Outcome(**{**told, "refused": refused})


CHUNK = 64
"""Images that are done, and redone after a kill, together: some milliseconds to some seconds of work."""


@dataclass(frozen=True)
class Chunk:
    """Some images of a source that follow one another.

    Attributes:
        number: of the chunk; its first image is number × CHUNK.
        names: of the images.
        keys: of the images, (n, k).
    """

    number: int
    names: list[bytes]
    keys: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of what says which images these are, and in which state."""
        return hashlib.sha256(b"\0".join(self.names) + b"\0\0" + self.keys.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk.

    Attributes:
        number: of the chunk.
        inputs: its `digest`.
        sha256: of its rows as written; a refused image's row is zero.
        refused: reasons, by the image's number in the source.
        modes: number of images by the mode they were stored in.
    """

    number: int
    inputs: str
    sha256: str
    refused: dict[int, str] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """How to do a chunk.

    Attributes:
        reader: of the source.
        recipe: of the pixels.
        rows: file of all rows, in its full size.
    """

    reader: Reader
    recipe: Preprocessing
    rows: Path

    def process_chunk(self, chunk: Chunk) -> Outcome:
        """Decode, resize and write a chunk's images.

        Raises:
            UserError: the source cannot be read at all.
            OSError: the rows cannot be written.
        """
        side = self.recipe.side
        pixels = np.zeros((len(chunk.names), side, side, 3), dtype=np.uint8)
        refused: dict[int, str] = {}
        modes: Counter[str] = Counter()
        with quiet_decoders():
            for row, (name, key) in enumerate(zip(chunk.names, chunk.keys, strict=True)):
                try:
                    image, mode = to_rgb(self.reader.load(name, key), self.recipe)
                    pixels[row] = fit(image, side)
                    modes[mode] += 1
                except ImageError as refusal:
                    refused[chunk.number * CHUNK + row] = str(refusal)
        self.write(chunk.number, pixels)
        return Outcome(chunk.number, chunk.digest, hashlib.sha256(pixels).hexdigest(), refused, dict(modes))

    def write(self, number: int, pixels: np.ndarray) -> None:
        """Put a chunk's pixels into their rows. A mapping would count all rows as this process's memory."""
        with open(self.rows, "r+b") as file:
            file.seek(HEADER_BYTES + number * CHUNK * pixels[0].size)
            file.write(pixels)


def chunks(source: Source) -> Iterator[Chunk]:
    """A source cut into chunks."""
    for number, start in enumerate(range(0, len(source.names), CHUNK)):
        yield Chunk(number, source.names[start : start + CHUNK], source.keys[start : start + CHUNK])


def process_chunks(work: Work, todo: Iterable[Chunk], workers: int, stop: StopRequest | bool) -> Iterator[Outcome]:
    """Do chunks, in this process or in so many others; outcomes come in any order.

    After a request to stop, what is in hand is still finished.

    Args:
        work: how.
        todo: chunks.
        workers: 1: this process does it.
        stop: asked after every chunk.

    Raises:
        StoppedEarly: a worker was killed.
        UserError, OSError: as `Work.process_chunk`.
    """
    if workers > 1:
        yield from _in_processes(work, iter(todo), workers, stop)
        return
    for chunk in todo:
        yield work.process_chunk(chunk)
        if stop:
            return


def _in_processes(work: Work, todo: Iterator[Chunk], workers: int, stop: StopRequest | bool) -> Iterator[Outcome]:
    pool = ProcessPoolExecutor(workers, SPAWN, initializer=_init_worker, initargs=(work,))
    try:
        pending: set[Future[Outcome]] = set()
        stopping = False
        while True:
            if not stopping:
                # Enough in hand that no worker waits, and no more: memory and the time to stop depend on it.
                pending |= {pool.submit(_process_chunk, chunk) for chunk in islice(todo, 3 * workers - len(pending))}
            if not pending:
                return
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            stopping = stopping or bool(stop)
    except BrokenProcessPool:
        if stop:
            # Whoever asks all processes of a group to stop may also end workers; what is done is kept either way.
            return
        raise StoppedEarly("a worker was killed, perhaps for want of memory: run the same command again") from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Work | None = None


def _init_worker(work: Work) -> None:
    global _work
    _work = work
    init_worker()


def _process_chunk(chunk: Chunk) -> Outcome:
    assert _work is not None
    return _work.process_chunk(chunk)
