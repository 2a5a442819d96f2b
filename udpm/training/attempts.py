"""What became of each attempt at a run: ``attempts.jsonl``, a line when it begins and one when it ends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from udpm.core import provenance
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.reading import read_json_lines
from udpm.training.records import AttemptLine, is_valid

FILE = "attempts.jsonl"


@contextmanager
def recorded(run: Path, owner: dict[str, Any]) -> Iterator[None]:
    """Record that an attempt began, and how it ended: complete, stopped (its state saved) or failed.

    Args:
        run: the run's folder, this process's own.
        owner: its record: `token`, `host`, `job` and `attempt`.
    """
    known = {key: owner.get(key) for key in ("token", "host", "job", "attempt")}
    _append(run, known | {"began": time.time(), **provenance.record()})
    ended, reason = "failed", ""
    try:
        yield
        ended = "complete"
    except StoppedEarly as stop:
        ended, reason = "stopped", str(stop)
        raise
    except BaseException as error:
        reason = str(error) or type(error).__name__
        raise
    finally:
        _append(run, {"token": owner.get("token"), "ended": ended, "reason": reason, "time": time.time()})


def one_was_killed(run: Path) -> bool:
    """Whether an attempt never told how it ended (killed, or still at work), or none told of itself at all."""
    lines = _read(run)
    ended = {line.get("token") for line in lines if line.get("ended")}
    return not lines or any(line.get("began") is not None and line.get("token") not in ended for line in lines)


def failed_alike(run: Path) -> str | None:
    """Why the last two attempts failed, if for the same reason, word for word."""
    ends = [line for line in _read(run) if line.get("ended")][-2:]
    same = len(ends) == 2 and all(end["ended"] == "failed" for end in ends)
    reasons = {end.get("reason", "") for end in ends}
    return reasons.pop() if same and len(reasons) == 1 else None


def _append(run: Path, line: dict[str, Any]) -> None:
    # A full disk is told by whoever saves something that matters.
    with suppress(OSError), open(run / FILE, "a+b") as file:
        torn = file.tell() > 0 and not _ends_a_line(file)
        file.write(("\n" * torn + json.dumps(line, ensure_ascii=False) + "\n").encode())
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
