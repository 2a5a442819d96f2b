"""States of SLURM's jobs, as Snakemake's plugin for SLURM (2.8) has to see them.

The plugin asks for the states of all jobs at once (`query_job_status`). Here the answer is put into words that it
understands, since it takes four answers for something else:

- "CANCELLED by 1000": it knows "CANCELLED" alone, and waits forever for such a job;
- NODE_FAIL of a job that SLURM put back into the queue: it excludes the job's nodes from all later submissions, by the
  name "None assigned" where the job has no nodes any more, which `sbatch` refuses;
- PREEMPTED, of a job that SLURM cancelled for good: it waits forever for this one, too;
- no answer at all (slurmctld or slurmdbd is down): it forgets all jobs that it asked for.
"""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable
from typing import Any

HOPELESS = {
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
"""Reasons for which a job waits until somebody does something."""


class States:
    """Asks SLURM for the states of jobs.

    Args:
        ask: the plugin's function: (command, logger) -> (state by job, seconds), or (None, None) where SLURM is down.
        run: runs a program and returns what it prints, or None where it fails.
        tell: prints a line for the user.

    Attributes:
        last: by job, the state that was seen last.
    """

    def __init__(
        self,
        ask: Callable[..., Awaitable[tuple[dict[str, str] | None, float | None]]],
        run: Callable[..., Awaitable[str | None]] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._ask, self._run, self._tell = ask, run or output_of, tell or say
        self._told: set[tuple[str, str]] = set()
        self._silent = False
        self.last: dict[str, str] = {}

    async def query(self, command: str, logger: Any) -> tuple[dict[str, str], float]:
        """States by job, in the plugin's words. Empty where SLURM is down: all jobs stay as they are.

        Args:
            command: that prints them.
            logger: of the plugin.
        """
        found, seconds = await self._ask(command, logger)
        if (found is None) != self._silent:
            self._silent = found is None
            self._tell(
                "SLURM does not tell the states of jobs; asking again" if self._silent else "SLURM answers again"
            )
        states = {job: state.split(maxsplit=1)[0] for job, state in (found or {}).items() if state}
        waiting = [job for job, state in states.items() if state == "PENDING"]
        lost = [job for job, state in states.items() if state in ("NODE_FAIL", "PREEMPTED")]
        self.last |= states
        if waiting or lost:
            queued = await self._queue()
            for job in lost:
                # SLURM has put it back into the queue, or it is over.
                states[job] = "REQUEUED" if queued is None or job in queued else "FAILED"
            self._tell_of(queued or {}, set(waiting))
        return states, seconds or 0.0

    async def _queue(self) -> dict[str, str] | None:
        """By job of the user's in the queue, what it waits for; None where SLURM does not tell."""
        printed = await self._run("squeue", "--noheader", "--format=%i|%r", f"--user={getpass.getuser()}")
        if printed is None:
            return None
        rows = [line.strip().split("|", 1) for line in printed.splitlines() if "|" in line]
        return dict(rows)

    def _tell_of(self, queued: dict[str, str], waiting: set[str]) -> None:
        for job, reason in queued.items():
            word = reason.strip("()").partition(",")[0].strip()
            held = word.startswith(("launch failed", "job requeued in held state"))
            if job in waiting and (word in HOPELESS or held) and (job, word) not in self._told:
                self._told.add((job, word))
                way = f"scontrol release {job}" if held or word.startswith("JobHeld") else f"scontrol show job {job}"
                self._tell(
                    f"SLURM job {job} will not start by itself: {word} ({way} says more or helps; else scancel it)"
                )


async def output_of(*command: str) -> str | None:
    """What a program prints; None where it is missing, fails, or takes longer than half a minute."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        printed, _ = await asyncio.wait_for(process.communicate(), timeout=30)
    except (OSError, TimeoutError):
        return None
    return printed.decode(errors="replace") if process.returncode == 0 else None


def say(text: str) -> None:
    """Print a line for the user."""
    print(f"note: {text}", file=sys.stderr, flush=True)
