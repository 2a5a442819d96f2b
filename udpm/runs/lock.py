"""One trainer per run folder, also across nodes: an owner record with a heartbeat, and a fence before every commit.

A file lock is not enough: not every file system shares it between nodes, and a process that was suspended (or whose
node was presumed dead) still holds it when it wakes.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from udpm.config.validation import NonNegativeFloat, NonNegativeInt, Record, is_valid
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import write_json
from udpm.core.reading import read_json
from udpm.core.work import StopRequest

RECORD = "owner.json"
OWNER_BYTES = 2**16
HEARTBEAT = 5.0
"""Seconds between two heartbeats."""
STALE_SECONDS = 60.0
"""Seconds without a heartbeat after which an owner is presumed dead."""
READINGS = 3
SETTLE = 0.5
"""Seconds after writing the record at which it must still be this process's."""


class ProcessRecord(Record):
    """A process, as `identity` describes it."""

    token: str | None = None
    host: str | None = None
    machine: str | None = None
    pid: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    started: str | None = None
    job: str | None = None
    attempt: str | None = None


class OwnerRecord(ProcessRecord):
    """``owner.json``: the process that is training."""

    token: str
    since: NonNegativeFloat | None = None
    beat: NonNegativeInt = 0
    time: NonNegativeFloat = 0.0


class RunLock:
    """Lock on a run's folder; use as a context manager.

    Entering waits until the folder is free: its owner record is gone, the owner is known to be dead, or its heartbeat
    did not change for `stale` seconds by this process's own clock (clocks of nodes differ).

    Args:
        run: the run's folder; must exist.
        stop: checked while waiting.
        stale: seconds.
        who: this process (`identity`); default: a new identity.

    Attributes:
        record: this process's owner record, which other trainers read.

    Raises:
        StoppedEarly: on entering, if a signal came while waiting.
    """

    def __init__(
        self, run: Path, stop: StopRequest | bool, stale: float = STALE_SECONDS, who: dict[str, Any] | None = None
    ) -> None:
        self._path, self._stop, self._stale = run / RECORD, stop, stale
        now = time.time()
        self.record: dict[str, Any] = (who or identity()) | {"since": now, "beat": 0, "time": now}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="udpm-heartbeat", daemon=True)

    def __enter__(self) -> RunLock:
        while True:
            self._wait_until_free()
            write_json(self._path, self.record)
            # If two processes write at once, the later record remains; both check again before either begins.
            time.sleep(SETTLE)
            if self.is_held():
                self._thread.start()
                return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        # If removal fails, others will find this process dead, or its record stale.
        if self.is_held():
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Return whether this process still owns the folder. Reads an unreadable record again before giving up."""
        for _ in range(READINGS):
            record = read_owner(self._path.parent)
            if record is not None:
                return record.get("token") == self.record["token"]
            time.sleep(SETTLE / READINGS)
        return False

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            # A process that was suspended may find another owner's record here, and must not overwrite it.
            if not self.is_held():
                return
            self.record |= {"beat": self.record["beat"] + 1, "time": time.time()}
            try:
                write_json(self._path, self.record)
            except UserError:
                # Saving a checkpoint reports a full disk. Touching a file takes no space.
                with suppress(OSError):
                    os.utime(self._path)

    def _wait_until_free(self) -> None:
        seen, since, announced = None, time.monotonic(), False
        while (other := read_owner(self._path.parent)) is not None and not is_dead(other):
            beat = (other.get("token"), other.get("beat"), _touched(self._path))
            if beat != seen:
                seen, since = beat, time.monotonic()
            if time.monotonic() - since > self._stale:
                print(f"{name_of(other)} sent no heartbeat for {self._stale:g} s: taking over", file=sys.stderr)
                return
            if not announced:
                print(f"{self._path.parent}: {name_of(other)} is training here; waiting for it to end", file=sys.stderr)
                announced = True
            if self._stop:
                raise StoppedEarly(f"stopped on {self._stop} while waiting for {name_of(other)}")
            time.sleep(min(1.0, self._stale / 10))


def identity() -> dict[str, Any]:
    """Identify this process, with a new token."""
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "attempt": os.environ.get("SLURM_RESTART_COUNT"),
    }


def read_owner(run: Path) -> dict[str, Any] | None:
    """Return the owner record in a run's folder, or None if it is missing or unreadable."""
    try:
        record = read_json(run / RECORD, "owner record", OWNER_BYTES)
    except UserError:
        return None
    return record if is_valid(OwnerRecord, record) else None


def _touched(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def is_at_work(run: Path, token: str | None) -> bool:
    """Return whether the owner of a run's folder has this token and is alive.

    An owner on another machine is alive if its heartbeat changes within two heartbeat intervals of this process's
    clock.
    """
    owner = read_owner(run)
    if owner is None or owner["token"] != token or is_dead(owner):
        return False
    if is_here(owner):
        return True
    beat, until = owner.get("beat"), time.monotonic() + 2 * HEARTBEAT
    while time.monotonic() < until and time.time() - owner.get("time", 0.0) < STALE_SECONDS:
        time.sleep(HEARTBEAT / 10)
        now = read_owner(run)
        if now is None or now["token"] != token:
            # Removed by its owner, or replaced by another trainer.
            return now is None
        if now.get("beat") != beat:
            return True
    return False


def is_here(record: dict[str, Any]) -> bool:
    """Return whether the record's process ran, or runs, on this machine."""
    return record.get("machine") is not None and record["machine"] == _machine()


def is_dead(record: dict[str, Any]) -> bool:
    """Return whether the record's process ran on this machine and has ended, even if its PID was reused."""
    if not is_here(record):
        return False
    started = _started(record.get("pid") or 0)
    return started is None or started != record.get("started")


def _machine() -> str | None:
    """Identify this boot and this PID namespace: host names repeat, and containers share a kernel."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process of this machine started, in kernel ticks; None if it does not exist."""
    try:
        # The name in parentheses may contain any character, so count fields after it: field 22 of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            # A zombie: dead, but not yet reaped by its parent.
            return None
        return fields[19]
    except OSError:
        return None


def name_of(record: dict[str, Any]) -> str:
    """Describe the record's process, e.g. "process 12 on node3, job 7"."""
    job = f", job {record['job']}" if record.get("job") else ""
    process = f"process {record['pid']}" if record.get("pid") else "a process"
    return f"{process} on {record.get('host') or 'an unknown host'}{job}"
