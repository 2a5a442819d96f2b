"""Chunks of images, decoded and written to their rows: here or by other processes, with the same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from udpm.core.errors import StoppedEarly
from udpm.core.processes import SPAWN, obey_parent
from udpm.core.signals import StopRequest
from udpm.data.picture import Recipe, Refused, fit, quiet_decoders, to_rgb
from udpm.data.source import Reader, Source
from udpm.data.store import HEADER_BYTES

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
    recipe: Recipe
    rows: Path

    def do(self, chunk: Chunk) -> Outcome:
        """Decode, resize and write a chunk's images.

        Raises:
            UserError: the source cannot be read at all.
            OSError: the rows cannot be written.
        """
        side = self.recipe.side
        pixels = np.zeros((len(chunk.names), side, side, 3), dtype=np.uint8)
        refused, modes = {}, Counter()
        with quiet_decoders():
            for row, (name, key) in enumerate(zip(chunk.names, chunk.keys, strict=True)):
                try:
                    image, mode = to_rgb(self.reader.load(name, key), self.recipe)
                    pixels[row] = fit(image, side)
                    modes[mode] += 1
                except Refused as refusal:
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


def do_chunks(work: Work, todo: Iterable[Chunk], workers: int, stop: StopRequest | bool) -> Iterator[Outcome]:
    """Do chunks, in this process or in so many others; outcomes come in any order.

    After a request to stop, what is in hand is still finished.

    Args:
        work: how.
        todo: chunks.
        workers: 1: this process does it.
        stop: asked after every chunk.

    Raises:
        StoppedEarly: a worker was killed.
        UserError, OSError: as `Work.do`.
    """
    if workers > 1:
        yield from _in_processes(work, iter(todo), workers, stop)
        return
    for chunk in todo:
        yield work.do(chunk)
        if stop:
            return


def _in_processes(work: Work, todo: Iterator[Chunk], workers: int, stop: StopRequest | bool) -> Iterator[Outcome]:
    pool = ProcessPoolExecutor(workers, SPAWN, initializer=_begin, initargs=(work,))
    try:
        pending: set[Future[Outcome]] = set()
        stopping = False
        while True:
            if not stopping:
                # Enough in hand that no worker waits, and no more: memory and the time to stop depend on it.
                pending |= {pool.submit(_do, chunk) for chunk in islice(todo, 3 * workers - len(pending))}
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


def _begin(work: Work) -> None:
    global _work
    _work = work
    obey_parent()


def _do(chunk: Chunk) -> Outcome:
    return _work.do(chunk)
