"""What became of each attempt at a run: ``attempts.jsonl``, a line when it begins and one when it ends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from udpm.core import provenance
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.reading import read_json_lines
from udpm.training.owner import is_at_work, is_dead, is_here, read_owner
from udpm.training.reasons import kind_of, reason_of
from udpm.training.records import ATTEMPTS, AttemptLine, is_valid, last_saved

FILE = ATTEMPTS
SERIES = "UDPM_SERIES"
"""Environment variable that names the `snakemake` whose retries an attempt is one of."""
BLOCK, END, LONGEST = 4096, 2048, 1000
"""Bytes that a file takes of a disk at once, bytes of the line of an end, and characters of its reason."""


class Attempt:
    """One attempt at a run. All methods pass over a disk on which nothing can be written.

    Args:
        run: the run's folder, existing.
        record: who attempts it (`owner.identity`): its `token`, `host`, `job` and the like.
        rank: of this process among those that train together. Others than the first tell only of their own failures.
        start: what all these processes, and no others, know of their start; empty for a single one.
    """

    def __init__(self, run: Path, record: dict[str, Any], rank: int = 0, start: str = "") -> None:
        self.record = record
        self._run, self._rank, self._start = run, rank, start
        self._begun = self._waits = False

    def begin(self) -> None:
        """Record that the attempt began, once."""
        if self._begun or self._rank:
            return
        self._begun, owner = True, read_owner(self._run)
        self._waits = owner is not None and owner["token"] != self.record.get("token") and not is_dead(owner)
        known = self.record | {"began": time.time(), "saved": last_saved(self._run)}
        waits = {"waits": True} if self._waits else {}
        _append(self._run, provenance.record() | known | self._places() | waits, END)

    def take_over(self) -> None:
        """Record that the folder is this attempt's, if another trainer was at work there when it began."""
        if self._waits:
            self._waits = False
            _append(self._run, {"token": self.record.get("token"), "owns": time.time()})

    def end(self, ended: str, reason: str) -> None:
        """Record how the attempt ended: "complete", "stopped" or "failed"."""
        told = {"reason": reason[:LONGEST], "time": time.time()}
        if self._begun:
            line = {"token": self.record.get("token"), "ended": ended, **told, "saved": last_saved(self._run)}
            _append(self._run, line)
        elif self._rank and ended == "failed":
            known = {key: self.record.get(key) for key in ("host", "job")}
            _append(self._run, {"rank": self._rank, "failed": True, **known, **self._places(), **told})

    def _places(self) -> dict[str, str]:
        """What the attempt is a part of."""
        places = {"start": self._start, "series": os.environ.get(SERIES)}
        return {key: value for key, value in places.items() if value}


@contextmanager
def recorded(
    run: Path, record: dict[str, Any], rank: int = 0, start: str = "", *, begins: bool = True
) -> Iterator[Attempt]:
    """Record that an attempt began, and how it ended: complete, stopped (on request) or failed.

    Args:
        run: the run's folder, existing.
        record: see `Attempt`.
        rank: see `Attempt`.
        start: see `Attempt`.
        begins: whether it begins at once; else with `Attempt.begin`, and nothing is recorded if that is never called.
    """
    attempt = Attempt(run, record, rank, start)
    if begins:
        attempt.begin()
    ended, reason = "complete", ""
    try:
        yield attempt
    except (StoppedEarly, KeyboardInterrupt) as stop:
        ended, reason = "stopped", reason_of(stop)
        raise
    except BaseException as error:
        ended, reason = "failed", reason_of(error)
        raise
    finally:
        attempt.end(ended, reason)


@dataclass
class Told:
    """What ``attempts.jsonl`` tells of one attempt.

    Attributes:
        record: who attempted it; empty where its beginning is not told.
        ended: "complete", "stopped", "failed"; None: it did not say.
        reason: why it stopped or failed, in one line.
        saved: iteration of the last checkpoint when it ended; None where that is unknown.
        waits: whether another trainer was at work, and the folder was never this attempt's.
    """

    record: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None
    reason: str = ""
    saved: int | None = None
    waits: bool = False


def read_attempts(run: Path) -> list[Told]:
    """All attempts at a run, in the order in which they ended or, where they did not say, began."""
    order: dict[int, tuple[int, Told]] = {}
    by_token: dict[str | None, Told] = {}
    by_start: dict[str, Told] = {}
    for number, line in enumerate(_read(run)):
        token, start = line.get("token"), line.get("start") or str(number)
        if line.get("began") is not None:
            told = by_token[token] = by_start.setdefault(start, Told())
            told.record, told.waits = line, bool(line.get("waits"))
        elif line.get("owns") is not None:
            by_token.get(token, Told()).waits = False
            continue
        elif line.get("ended"):
            told = by_token.pop(token, Told())
            told.waits, told.saved = False, line.get("saved")
            if told.ended is None:
                told.ended, told.reason = line["ended"], line.get("reason", "")
        elif line.get("failed"):
            # Of a process other than the first, which may only say that another ended, or nothing at all.
            told = by_start.setdefault(start, Told(line))
            if told.ended in (None, "stopped"):
                told.ended, told.reason = "failed", line.get("reason", "")
        else:
            continue
        order[id(told)] = (number, told)
    return [told for _, told in sorted(order.values(), key=lambda placed: placed[0])]


def one_was_killed(run: Path) -> bool:
    """Whether an attempt began and never told how it ended, and is not the one that is still at work."""
    return any(was_killed(run, attempt) for attempt in read_attempts(run))


def was_killed(run: Path, attempt: Told) -> bool:
    """Whether this attempt did; watches the heartbeat of one on another machine for up to two beats."""
    if attempt.ended is not None or attempt.waits:
        return False
    if is_here(attempt.record):
        return is_dead(attempt.record)
    return not is_at_work(run, attempt.record.get("token"))


def failed_alike(run: Path, series: str | None = None) -> str | None:
    """Why the last two attempts failed, if for the same reason, apart from paths, numbers, hosts and temporary files.

    One that was stopped between them is passed over, but they are not alike if anything was saved since the first.

    Args:
        run: the run's folder.
        series: only attempts of this one count (`SERIES`); None: all do.

    Returns:
        The reason that the last one gave, or None.
    """
    last = alike(run, series)
    return last.reason if last is not None else None


def alike(run: Path, series: str | None = None) -> Told | None:
    """The last attempt, if it failed like the one before; see `failed_alike`."""
    *earlier, last = [told for told in read_attempts(run) if series in (None, told.record.get("series"))] or [Told()]
    if last.ended != "failed":
        return None
    for told in reversed(earlier):
        if told.ended == "failed":
            same = _kind(told) == _kind(last)
            return last if same and not _got_on(told, last) else None
        if not (told.waits or (told.ended == "stopped" and told.saved is not None)):
            return None
    return None


def _kind(told: Told) -> str:
    return kind_of(told.reason, told.record.get("host"))


def _got_on(earlier: Told, later: Told) -> bool:
    return earlier.saved is not None and later.saved is not None and later.saved > earlier.saved


def _append(run: Path, line: dict[str, Any], room: int = 0) -> None:
    """Add a line and, on a disk that may be full before the next one, the room that this will need."""
    # A full disk is told by whoever saves something that matters.
    with suppress(OSError), open(run / FILE, "a+b") as file:
        torn = file.tell() > 0 and not _ends_a_line(file)
        text = ("\n" * torn + json.dumps(line, ensure_ascii=False)).encode()
        left = -(file.tell() + len(text) + 1) % BLOCK
        file.write(text + b" " * (left + 1 if left < room else 0) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _read(run: Path) -> list[dict[str, Any]]:
    # One that cannot be read tells of no attempt, and is no reason to end one.
    with suppress(UserError):
        lines = read_json_lines(run / FILE, "record of attempts")
        return [line for line in lines if is_valid(AttemptLine, line)]
    return []
