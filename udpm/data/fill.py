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
from udpm.core.reading import read_json_lines
from udpm.core.work import SPAWN, StopRequest, init_worker
from udpm.data.decode import ImageError, Preprocessing, fit, quiet_decoders, to_rgb
from udpm.data.source import Reader, Source
from udpm.data.store import HEADER_BYTES


class Journal:
    """Journal of finished chunks; used under the data set's lock.

    A chunk counts after the next `sync`, which writes rows first, then their lines. A torn last line is dropped.

    Args:
        path: file of the journal.
        rows: file with the chunks' rows.
        header: everything that all chunks depend on, `count` being the number of images; a journal with another header
            is started over.
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
        write_text(path, _text([header, *map(asdict, self.outcomes.values())]))

    def keep(self, chunk: Chunk, row_bytes: int) -> bool:
        """Return True if a chunk is finished: for the same images, and with its rows unchanged since."""
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
        """Add a finished chunk; it counts after the next `sync`."""
        self._pending.append(outcome)

    def sync(self) -> None:
        """Flush rows, then the lines of the chunks added so far."""
        if not self._pending:
            return
        with open(self._rows, "rb") as rows:
            os.fsync(rows.fileno())
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_text(map(asdict, self._pending)))
            file.flush()
            os.fsync(file.fileno())
        self.outcomes |= {outcome.number: outcome for outcome in self._pending}
        self._pending = []


def _text(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    whole: list[dict[str, Any]] = []
    for line in read_json_lines(path, "journal of a preparation") if path.exists() else ():
        if line is None:
            break
        whole.append(line)
    return whole


class _Line(Record):
    """A finished chunk; image numbers are text, since JSON has no integer keys."""

    number: NonNegativeInt
    inputs: str
    sha256: str
    refused: dict[Annotated[str, Field(pattern="^[0-9]{1,18}$")], str]
    modes: dict[str, NonNegativeInt]


def _outcome(line: dict[str, Any], count: int) -> Outcome | None:
    """Parse a line of the journal; None if it is not a chunk of `count` images, which is then processed again."""
    try:
        values = _Line.model_validate(line).model_dump()
    except ValidationError:
        return None
    refused = {int(number): reason for number, reason in values["refused"].items()}
    first = values["number"] * CHUNK
    if first >= count or not all(first <= number < min(first + CHUNK, count) for number in refused):
        return None
    return Outcome(**{**values, "refused": refused})


CHUNK = 64
"""Images that are processed, and after a kill repeated, together: milliseconds to seconds of work."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of a source, from image number × CHUNK, with their names and keys, (n, k)."""

    number: int
    names: list[bytes]
    keys: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of names and keys, which identify the images and their state."""
        return hashlib.sha256(b"\0".join(self.names) + b"\0\0" + self.keys.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """Result of a chunk.

    Attributes:
        number: number of the chunk.
        inputs: `digest` of the chunk.
        sha256: SHA-256 of its rows; the row of a refused image is zero.
        refused: reasons by the image's number in the source.
        modes: number of images by the mode they were stored in.
    """

    number: int
    inputs: str
    sha256: str
    refused: dict[int, str] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """Everything needed to process a chunk, whose rows go to the file of all rows, which has its full size."""

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
        """Write a chunk's pixels to their rows; a memory map would count as this process's memory."""
        with open(self.rows, "r+b") as file:
            file.seek(HEADER_BYTES + number * CHUNK * pixels[0].size)
            file.write(pixels)


def chunks(source: Source) -> Iterator[Chunk]:
    """Split a source into chunks."""
    for number in range(-(-len(source.names) // CHUNK)):
        yield chunk_of(source, number)


def chunk_of(source: Source, number: int) -> Chunk:
    """Return one chunk of a source."""
    some = slice(number * CHUNK, (number + 1) * CHUNK)
    return Chunk(number, source.names[some], source.keys[some])


def process_chunks(work: Work, todo: Iterable[Chunk], workers: int, stop: StopRequest | bool) -> Iterator[Outcome]:
    """Process chunks, with one worker in this process, and yield their outcomes in any order.

    After a request to stop, which is checked after every chunk, finish those already started.

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
                # Enough that no worker waits, but no more, to limit memory and the time to stop.
                pending |= {pool.submit(_process_chunk, chunk) for chunk in islice(todo, 3 * workers - len(pending))}
            if not pending:
                return
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            stopping = stopping or bool(stop)
    except BrokenProcessPool:
        if stop:
            # A signal to the process group may also end workers; finished chunks are kept either way.
            return
        raise StoppedEarly("a worker was killed, perhaps for lack of memory: run the same command again") from None
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
