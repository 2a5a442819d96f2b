"""Run Snakemake in a study, as its user would, and watch the training."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import write_text
from udpm.core.reading import read_text
from udpm.core.work import StopRequest

LOG = "snakemake.log"
"""Output of Snakemake, in the study."""
PROCESS = ".snakemake/udpm-run"
"""Process of the Snakemake that `udpm run` started, while it runs."""
LOCKS = ".snakemake/locks"
LOG_BYTES = 1 << 24
BETWEEN_LOOKS = 0.5
LOOKS = 60
"""Number of looks at jobs of a killed call, which save their state, before the call is refused."""
PR_SET_PDEATHSIG = 1
NEEDED = {"snakemake": "workflow", "matplotlib": "reporting", "pandas": "reporting"}
"""Packages that the workflow needs, and the extra that installs each."""


def check_packages() -> None:
    """Check that the packages are installed that the workflow needs.

    Raises:
        UserError: one is missing.
    """
    from importlib.util import find_spec

    missing = {extra for package, extra in NEEDED.items() if find_spec(package) is None}
    if missing:
        raise UserError(f"udpm run needs more packages: pip install 'udpm[{','.join(sorted(missing))}]'")


def snakemake(study: Path, targets: list[str], stop: StopRequest, watch: Callable[[], None] = lambda: None) -> None:
    """Make targets in a study; call `watch` twice per second meanwhile.

    Raises:
        UserError: a job failed, with its own error.
        StoppedEarly: a signal arrived; training has saved its state.
    """
    _unlock(study)
    if stop:
        raise _stopped(study, stop)
    command = [sys.executable, "-m", "udpm.study.guard", sys.executable, "-m", "snakemake", "--", *targets]
    with open(study / LOG, "ab") as log:
        start = log.tell()
        # A group of processes: Ctrl-C reaches this process alone, which hands it on once.
        process = subprocess.Popen(
            command, cwd=study, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=_end_with_parent,
        )  # fmt: skip
        (study / PROCESS).parent.mkdir(exist_ok=True)
        write_text(study / PROCESS, f"{process.pid}\n")
        try:
            stopping = False
            while process.poll() is None:
                if stop and not stopping:
                    stopping = True
                    os.killpg(process.pid, signal.SIGINT)
                watch()
                time.sleep(BETWEEN_LOOKS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    # After a signal, jobs may end later than Snakemake: training saves its state.
    while _is_alive(process.pid):
        time.sleep(BETWEEN_LOOKS)
    _unlock(study)
    (study / PROCESS).unlink(missing_ok=True)
    if stop:
        raise _stopped(study, stop)
    if process.returncode:
        raise UserError(f"{study}: {_why(study / LOG, start)} (see {study / LOG})")


def _stopped(study: Path, stop: StopRequest) -> StoppedEarly:
    return StoppedEarly(f"{study}: stopped by {stop}; the same command continues")


def _is_alive(group: int) -> bool:
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def _ends(group: int) -> bool:
    """Wait for the end of a group of processes; return whether it came."""
    for _ in range(LOOKS):
        if not _is_alive(group):
            return True
        time.sleep(BETWEEN_LOOKS)
    return False


def _end_with_parent() -> None:
    # If `udpm run` is killed, Snakemake and its jobs end, too, so that the same command can continue.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)


def _unlock(study: Path) -> None:
    """Remove the lock of a Snakemake that `udpm run` started and that was killed.

    Raises:
        UserError: another Snakemake works in the study, or was killed.
    """
    if not (study / LOCKS).is_dir() or not any((study / LOCKS).iterdir()):
        return
    mark = study / PROCESS
    if not mark.exists():
        raise UserError(f"{study}: another snakemake works here; wait for it, or if it was killed: snakemake --unlock")
    number = read_text(mark, "process", 100).strip()
    if number.isdecimal() and not _ends(int(number)):
        raise UserError(f"{study}: jobs of an earlier udpm run still work here; wait for them, then try again")
    # A Snakemake that was interrupted removes them, too.
    for lock in (study / LOCKS).glob("*"):
        lock.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)


def _why(log: Path, start: int) -> str:
    """Return the error of the job that failed, from Snakemake's output."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read(LOG_BYTES).decode(errors="replace")
    errors = re.findall(r"^ *error: (.*)$", text, re.M)
    return errors[0] if errors else "a job of the workflow failed"
