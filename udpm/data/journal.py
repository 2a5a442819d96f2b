"""What of a preparation is known to be whole: a line for each finished chunk, on the disk before it counts."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from udpm.config.base import NonNegativeInt, Record
from udpm.core.files import write_text
from udpm.core.reading import read_json_lines
from udpm.data.fill import CHUNK, Chunk, Outcome
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
        self._path, self._rows, self._pending = path, rows, []
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
    return list(itertools.takewhile(lambda line: line is not None, read_json_lines(path, "journal of a preparation")))


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
