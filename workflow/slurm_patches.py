"""Corrections of Snakemake's plugin for SLURM (2.8), which pyproject.toml pins below 2.9 because of them.

The plugin queries the states of all jobs at once (`query_job_status`). It misreads four answers, which `States`
translates:

- "CANCELLED by 1000": it knows only "CANCELLED", and waits for such a job forever;
- NODE_FAIL of a job that SLURM requeued: it excludes the job's nodes from all later submissions; if it has no nodes
  yet, the plugin excludes "None assigned", which `sbatch` refuses;
- PREEMPTED of a job that SLURM cancelled: it waits for the job forever;
- no answer, while slurmctld or slurmdbd is down: it forgets all jobs.

It handles no error of its efficiency report: without sacct, or on a line that it cannot parse, a study that succeeded
would end in a traceback. It also waits for sacct without a limit.
"""

from __future__ import annotations

import asyncio
import getpass
import sys
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from udpm.core.commands import Answer
from udpm.core.commands import ask as ask_slurm

STUCK = {
    "AccountNotAllowed",
    "AssocMaxCpuMinutesPerJobLimit",
    "AssocMaxWallDurationPerJobLimit",
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeldAdmin",
    "JobHeldUser",
    "PartitionDown",
    "PartitionInactive",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSMaxCpuPerJobLimit",
    "QOSMaxMemoryPerJob",
    "QOSMaxNodePerJobLimit",
    "QOSMaxWallDurationPerJobLimit",
    "QOSNotAllowed",
    "ReservationDeleted",
}
"""Reasons of pending jobs that never start without intervention."""
PATIENCE = 60.0
"""Seconds that the efficiency report may take."""


class States:
    """Queries SLURM for job states.

    Args:
        ask: the plugin's function: (command, logger) -> (state by job, seconds), or (None, None) if the command fails.

    Attributes:
        last: last known state by job, not translated.
    """

    def __init__(
        self,
        ask: Callable[..., Awaitable[tuple[dict[str, str] | None, float | None]]],
        run: Callable[[tuple[str, ...]], Answer] = ask_slurm,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._ask, self._run, self._say = ask, run, say or print_note
        self._reported: set[tuple[str, str]] = set()
        self._silent = False
        self.last: dict[str, str] = {}

    async def query(self, command: str, logger: Any) -> tuple[dict[str, str], float]:
        """Return states by job, as the plugin understands them; empty if SLURM is down. `command` prints them."""
        found, seconds = await self._ask(command, logger)
        if (found is None) != self._silent:
            self._silent = found is None
            self._say(
                "SLURM does not report job states; retrying" if self._silent else "SLURM reports job states again"
            )
        states = {job: state.split(maxsplit=1)[0] for job, state in (found or {}).items() if state}
        waiting = [job for job, state in states.items() if state == "PENDING"]
        lost = [job for job, state in states.items() if state in ("NODE_FAIL", "PREEMPTED")]
        self.last |= states
        if waiting or lost:
            queued = await self._queue()
            for job in lost:
                # If it is not in the queue, it has ended.
                states[job] = "REQUEUED" if queued is None or job in queued else "FAILED"
            self._report_stuck(queued or {}, set(waiting))
        return states, seconds or 0.0

    async def _queue(self) -> dict[str, str] | None:
        """Return the pending reason of each of the user's queued jobs; None if squeue fails."""
        command = ("squeue", "--noheader", "--format=%i|%r", f"--user={getpass.getuser()}")
        answer = await asyncio.to_thread(self._run, command)
        if answer.trouble is not None:
            return None
        return dict(line.strip().split("|", 1) for line in answer.lines if "|" in line)

    def _report_stuck(self, queued: dict[str, str], waiting: set[str]) -> None:
        for job, reason in queued.items():
            word = reason.strip("()").partition(",")[0].strip()
            held = word.startswith(("launch failed", "job requeued in held state"))
            if job in waiting and (word in STUCK or held) and (job, word) not in self._reported:
                self._reported.add((job, word))
                way = f"scontrol release {job}" if held or word.startswith("JobHeld") else f"scontrol show job {job}"
                self._say(f"SLURM job {job} will not start by itself: {word} (see {way}, or cancel it: scancel {job})")


def print_note(text: str) -> None:
    """Print a line for the user."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def guard_report() -> None:
    """Make the plugin's efficiency report fail silently, and end in bounded time."""
    import snakemake_executor_plugin_slurm as plugin

    create = plugin.create_efficiency_report

    def create_if_possible(*, logger, **options):
        # Its warnings about single jobs repeat what the report contains.
        quiet = SimpleNamespace(info=logger.info, debug=logger.debug, warning=logger.debug, error=logger.debug)

        def write() -> None:
            try:
                create(logger=quiet, **options)
            except Exception as error:
                logger.debug(f"no efficiency report: {error!r}")

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(PATIENCE)

    plugin.create_efficiency_report = create_if_possible
