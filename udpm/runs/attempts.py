"""Attempts at a run. ``attempts.jsonl`` gets a line when one begins, before torch can fail, and one when it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udpm.config.experiment import RunConfig
from udpm.config.validation import is_valid
from udpm.core import provenance
from udpm.core.devices import as_user_errors
from udpm.core.distributed import RankInfo, launched, start_of
from udpm.core.errors import StoppedEarly, UserError, first_line
from udpm.core.files import through_links
from udpm.core.reading import read_json_lines
from udpm.runs.config_guard import check_config, check_weights
from udpm.runs.lock import identity, is_at_work, is_dead, is_here, read_owner
from udpm.runs.records import ATTEMPTS, AttemptLine, last_saved, may_be_finished

NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""Messages of a full disk: the same kind of failure for every file."""

_UNIT = r"(?:\s?(?:[kKMGTP]i?B|bytes?|[kMG]?Hz|ms|s|seconds?|minutes?|min|h|hours?|%))?"
_WORD = r"[^\s:;,'\"`()/]"
_SIGNS = [
    # Quoted paths, which may contain spaces.
    (r"""(?<!\w)(['"`])(?:(?!\1).)*/(?:(?!\1).)*\1""", "PATH"),
    # Temporary files: their names are random, or contain the host and the process.
    (r"""(?<!\w)(['"`])(?:\.|tmp)(?:(?!\1).)*\1""", "PATH"),
    # Absolute paths; relative ones with two slashes, or with a digit, dot, underscore or hyphen, so that "Input/output
    # error" and "generator/lpips" are kept.
    (r"(?<![\w/.])(?:~|\.{1,2})?/[^\s:;,'\"`()]+", "PATH"),
    (rf"(?<![\w/.-]){_WORD}+(?:/{_WORD}*){{2,}}", "PATH"),
    (rf"(?<![\w/.-])(?=(?:{_WORD}|/)*(?:\d|[._-]\w)){_WORD}+/{_WORD}*", "PATH"),
    (r"(?<![\w.])(?:\.[\w.-]+\.tmp-[\w.-]+|\.?tmp[\w.-]*|[\w.-]+\.(?:tmp|part|partial)\b)", "PATH"),
    # Addresses, and hosts with a port.
    (r"\[[\w.:-]+\]:\d+|\b[a-zA-Z][\w-]*(?:\.[\w-]+)+:\d+\b", "HOST"),
    (r"(?<![\w:])(?:[\da-fA-F]{0,4}:){2,}[\da-fA-F]{0,4}(?![\w:])", "HOST"),
    # Numbers: UUIDs, decimal ones with units, hexadecimal ones, and digits within a word such as "node3".
    (r"\b[\da-fA-F]{8}(?:-[\da-fA-F]{4}){3}-[\da-fA-F]{12}\b|\b0[xX][\da-fA-F]+\b", "#"),
    (rf"(?<![\w.])[-+]?\d[\d_]*(?:[.,:]\d+)*(?:[eE][-+]?\d+)?{_UNIT}(?!\w)", "#"),
    (r"(?<![\w.])(?=[a-fA-F]*\d)[\da-fA-F]{8,}(?!\w)", "#"),
    (r"\d+", "#"),
    (rf"#(?:[.,:-]#)*{_UNIT}(?!\w)", "#"),
]


def reason_of(error: BaseException) -> str:
    """Return one line about the exception that ended an attempt."""
    if isinstance(error, UserError):
        reason = "; ".join(error.mistakes)
    elif isinstance(error, KeyboardInterrupt):
        reason = "interrupted"
    elif isinstance(error, StoppedEarly):
        reason = str(error)
    elif isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    else:
        kind, text = type(error).__name__, first_line(error)
        reason = text if text == kind else f"{kind}: {text}"
    return " ".join(reason.split())


def kind_of(reason: str, host: str | None = None) -> str:
    """Strip paths, numbers, hosts and temporary files from a reason, so that failures of one kind compare equal.

    Args:
        reason: one line.
        host: name of the host it was recorded on, which is removed too.
    """
    for text in NO_ROOM:
        if re.search(rf"{re.escape(text)}(?: \(os error \d+\))?(?:: ['\"]?[^\s'\"]*['\"]?)?\.?$", reason):
            return text
    for name in sorted({host, host.partition(".")[0]} if host else (), key=len, reverse=True):
        reason = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "HOST", reason)
    for pattern, sign in _SIGNS:
        reason = re.sub(pattern, sign, reason)
    return " ".join(reason.split())


SERIES = "UDPM_SERIES"
"""Environment variable that identifies one invocation of `snakemake`; its retries share it."""
BLOCK, END, LONGEST = 4096, 2048, 1000
"""Bytes of a disk block, maximal bytes of the line for an end, and maximal characters of its reason."""


class Attempt:
    """One attempt at a run. Writing is best effort: a full disk raises nothing here.

    Args:
        run: the run's folder; must exist.
        record: identifies the process (`lock.identity`): `token`, `host`, `job` and so on.
        rank: of this process. Only rank 0 records the attempt; the others record their own failures.
        start: identifies this launch of several processes (`distributed.start_of`); empty for a single process.
    """

    def __init__(self, run: Path, record: dict[str, Any], rank: int = 0, start: str = "") -> None:
        self.record = record
        self._run, self._rank, self._start = run, rank, start
        self._begun = self._known = self._waits = False

    def begin(self) -> None:
        """Record that the attempt began, once."""
        if self._begun or self._rank:
            return
        self._begun, owner = True, read_owner(self._run)
        self._waits = owner is not None and owner["token"] != self.record.get("token") and not is_dead(owner)
        known = self.record | {"began": time.time(), "saved": last_saved(self._run)}
        waits = {"waits": True} if self._waits else {}
        self._known = _append(self._run, provenance.record() | known | self._context() | waits, END)

    def take_over(self) -> None:
        """Record that this attempt now owns the folder, if another trainer owned it when the attempt began."""
        if self._waits:
            self._waits = False
            _append(self._run, {"token": self.record.get("token"), "owns": time.time()})

    def end(self, ended: str, reason: str) -> None:
        """Record how the attempt ended: "complete", "stopped" or "failed"."""
        line = {"reason": reason[:LONGEST], "time": time.time()}
        if not self._known:
            line |= {key: self.record.get(key) for key in ("host", "job")} | self._context()
        if self._begun:
            token = {"token": self.record.get("token"), "ended": ended}
            _append(self._run, token | line | {"saved": last_saved(self._run)})
        elif self._rank and ended == "failed":
            _append(self._run, {"rank": self._rank, "failed": True, **line})

    def _context(self) -> dict[str, str]:
        """Return the launch and the series that the attempt belongs to, if any."""
        known = {"start": self._start, "series": os.environ.get(SERIES)}
        return {key: value for key, value in known.items() if value}


@contextmanager
def recorded(
    run: Path, record: dict[str, Any], rank: int = 0, start: str = "", *, begins: bool = True
) -> Iterator[Attempt]:
    """Record that an attempt began, and how it ended: complete, stopped (on request) or failed.

    Args:
        run: the run's folder; must exist.
        begins: record the beginning now. If false, the caller calls `Attempt.begin`; nothing is recorded without it.
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
class PastAttempt:
    """One attempt, as read from ``attempts.jsonl``.

    Attributes:
        record: the line of its beginning, or else its first line.
        ended: "complete", "stopped" or "failed"; None if no end is recorded.
        reason: why it stopped or failed, in one line.
        saved: iteration of the newest checkpoint when it ended; None if unknown.
        waits: whether it began while another trainer owned the folder, and never took over.
    """

    record: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None
    reason: str = ""
    saved: int | None = None
    waits: bool = False


def read_attempts(run: Path) -> list[PastAttempt]:
    """Return all attempts at a run, ordered by their last line: the end, or the beginning if no end is recorded."""
    order: dict[int, tuple[int, PastAttempt]] = {}
    by_token: dict[str | None, PastAttempt] = {}
    by_start: dict[str, PastAttempt] = {}
    for number, line in enumerate(_read(run)):
        token, start = line.get("token"), line.get("start") or str(number)
        if line.get("began") is not None:
            attempt = by_start.get(start)
            # Users may name a launch, so one name may appear twice.
            if attempt is None or "began" in attempt.record:
                attempt = by_start[start] = PastAttempt()
            by_token[token], attempt.record, attempt.waits = attempt, line, bool(line.get("waits"))
        elif line.get("owns") is not None:
            by_token.get(token, PastAttempt()).waits = False
            continue
        elif line.get("ended"):
            # On a full disk the beginning may be missing.
            attempt = by_token.pop(token, PastAttempt(line))
            attempt.waits, attempt.saved = False, line.get("saved")
            if attempt.ended is None:
                attempt.ended, attempt.reason = line["ended"], line.get("reason", "")
        elif line.get("failed"):
            # From a rank other than 0. Rank 0 may only have recorded that another process ended, or nothing.
            attempt = by_start.setdefault(start, PastAttempt(line))
            if attempt.ended in (None, "stopped"):
                attempt.ended, attempt.reason = "failed", line.get("reason", "")
                attempt.record = {**attempt.record, "host": line.get("host")}
        else:
            continue
        order[id(attempt)] = (number, attempt)
    return [attempt for _, attempt in sorted(order.values(), key=lambda placed: placed[0])]


def any_killed(run: Path) -> bool:
    """Return whether any attempt began, recorded no end, and is no longer running or waiting."""
    return any(was_killed(run, attempt) for attempt in read_attempts(run))


def was_killed(run: Path, attempt: PastAttempt) -> bool:
    """Return whether this attempt was killed. On another machine, watches its heartbeat for up to two beats."""
    if attempt.ended is not None or attempt.waits:
        return False
    if is_here(attempt.record):
        return is_dead(attempt.record)
    return not is_at_work(run, attempt.record.get("token"))


def failed_twice_identically(run: Path, series: str | None = None, job: str | None = None) -> str | None:
    """Return why the last two attempts failed, if the reasons differ only in paths, numbers, hosts and temporary files.

    Skips attempts that were stopped between the two. Two failures do not count as identical if a checkpoint was saved
    between them, or if an attempt between them was killed or completed.

    Args:
        series: consider only attempts of this series (`SERIES`); None: all of them.
        job: SLURM job that the last attempt must belong to; None: any. A job that never started recorded nothing, so
            older lines say nothing about it.

    Returns:
        The reason of the last attempt, or None.
    """
    last = _repeated_failure(run, series)
    return last.reason if last is not None and job in (None, last.record.get("job")) else None


def _repeated_failure(run: Path, series: str | None = None) -> PastAttempt | None:
    """Return the last attempt if it failed like the one before it; see `failed_twice_identically`."""
    row = [attempt for attempt in read_attempts(run) if series in (None, attempt.record.get("series"))]
    last = row.pop() if row else PastAttempt()
    if last.ended != "failed":
        return None
    for attempt in reversed(row):
        if attempt.ended == "failed":
            progressed = attempt.saved is not None and (last.saved or 0) > attempt.saved
            return last if _kind(attempt) == _kind(last) and not progressed else None
        if not (attempt.waits or (attempt.ended == "stopped" and attempt.saved is not None)):
            return None
    return None


def _kind(attempt: PastAttempt) -> str:
    return kind_of(attempt.reason, attempt.record.get("host"))


def _append(run: Path, line: dict[str, Any], room: int = 0) -> bool:
    """Append a line, and return whether that worked.

    Keeps at least `room` bytes of its last block free, so that the next line fits even if the disk fills up.
    """
    # A full disk is reported when a checkpoint is saved.
    with suppress(OSError), open(run / ATTEMPTS, "a+b") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        text = ("\n" * torn + json.dumps(line, ensure_ascii=False)).encode()
        left = -(file.tell() + len(text) + 1) % BLOCK
        file.write(text + b" " * (left + 1 if left < room else 0) + b"\n")
        file.flush()
        os.fsync(file.fileno())
        return True
    return False


def _read(run: Path) -> list[dict[str, Any]]:
    # An unreadable file counts as no attempts: it must not end this one.
    with suppress(UserError):
        lines = read_json_lines(run / ATTEMPTS, "record of attempts")
        return [line for line in lines if line is not None and is_valid(AttemptLine, line)]
    return []


@contextmanager
def attempted(
    run: Path, config: RunConfig, allow_world_size_change: bool = False, environment: Mapping[str, str] = os.environ
) -> Iterator[Attempt]:
    """Record an attempt at a run from its first moment to its end. Creates the run's folder.

    Writes nothing if the folder holds anything but this run. If the run may be finished, or a user starts a new run by
    hand, the attempt begins only when the caller calls `Attempt.begin`: nothing retries such a start, and a mistyped
    command should leave no folder.

    Args:
        environment: variables; those of the launcher and `SERIES` are read.

    Raises:
        UserError: nothing to train, the folder holds something else (`check_config`, `is_finished`) or cannot
            be created, the initial weights do not exist, or two attempts of the same `snakemake` failed for the same
            reason.
    """
    if config.training == "imported":
        raise UserError(f"{run}: training is imported, so nothing is left to train; `udpm import` makes this run")
    check_config(run, config, allow_world_size_change, writes=False)
    finished, who, series = may_be_finished(run, config.training), identity(), environment.get(SERIES)
    if not finished:
        check_weights(run, config)
        _check_series(run, who, series)
    begins = not finished and bool(run.exists() or series or who["job"])
    if begins:
        make_folder(run)
    ranks = launched(config.training.processes, environment) or RankInfo()
    start = start_of(ranks, environment)
    with recorded(run, who, ranks.rank, start, begins=begins) as attempt, as_user_errors():
        yield attempt


def make_folder(run: Path) -> None:
    """Create a run's folder.

    Raises:
        UserError: it cannot be created.
    """
    try:
        through_links(run).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run}: cannot be created: {error.strerror or error}") from None


def _check_series(run: Path, who: dict[str, Any], series: str | None) -> None:
    """Refuse a third attempt after two that failed for the same reason, unless the user requeued the failed job."""
    last = _repeated_failure(run, series) if series else None
    if last is None:
        return
    before = last.record
    if who["job"] is not None and before.get("job") == who["job"] and before.get("attempt") != who["attempt"]:
        return
    raise UserError(
        f"{run}: failed twice for the same reason ({last.reason}); fix the cause, then run snakemake again, or udpm "
        "train by hand, to retry"
    )
