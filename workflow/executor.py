"""The SLURM plugin's executor (2.8), but more patient with SLURM, and less with jobs that cannot succeed."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import shlex
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import snakemake_executor_plugin_slurm as plugin
from content import TRAINING
from experiments import Experiments
from jobs import FINISHED, Jobs, has_outputs
from slurm_patches import States, print_note
from snakemake.jobs import Job
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from udpm.core.commands import ask
from udpm.runs.attempts import failed_twice_identically

DOWN = re.compile(
    r"unable to contact slurm|connection (refused|timed out|reset)|(socket|message) timed out|connect failure"
    r"|zero bytes were transmitted|standby mode|communication (connection|shutdown) failure"
    r"|temporarily un(able|available)"
    r"|munge (encode|decode) failed|unable to establish|slurmctld.*(not|restart)|try again",
    re.IGNORECASE,
)
"""Matches errors of SLURM commands while SLURM is down, restarting or overloaded."""
FULL = re.compile(r"\w*Submit\w*Limit|MaxJobCount|job submit limit", re.IGNORECASE)
"""Matches errors of `sbatch` when too many jobs are queued."""
LIMIT = re.compile(r"\b(?!\w*Submit)\w+(Limit|PerJob|PerUser|Minutes)\b")
"""Matches limits of other kinds. Waiting does not help."""
SAYS_WHY = re.compile(r"^(error: |Error: |Traceback )", re.MULTILINE)
"""Matches the log of a command that printed why it failed, so it was not killed."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
"""States of jobs that have ended."""
OWN_JOB = os.environ.get("SLURM_JOB_ID")
"""The SLURM job that `snakemake` itself runs in. The plugin deletes the variable later."""
SHORTEST, LONGEST = 5.0, 60.0
"""Seconds between two tries to submit; they grow."""


class Executor(plugin.Executor):
    """The plugin's executor, but:

    - a submission waits while SLURM is down or the user has too many jobs, and uses no attempt;
    - jobs that SLURM refuses permanently, and trainings that fail twice for the same reason, are not retried;
    - short jobs start Snakemake once, not twice;
    - job states are polled often after a change, and rarely while nothing changes.

    Attributes:
        patience: seconds that submissions wait for SLURM.
        alike: returns why a training's SLURM job failed if the attempt before failed for the same reason, else None.
        killed: called with each job that was killed while it ran.
        states: queries job states.
    """

    patience: float
    alike: Callable[[Any, str | None], str | None]
    killed: Callable[[Any], None]
    states: States

    def __init__(self, workflow, logger) -> None:
        self._over = threading.Event()
        self._current = threading.local()
        self._refused_since: float | None = None
        self._submitted: dict[str, SubmittedJobInfo] = {}
        self._seen: set[str] = set()
        self._pause = 0.0
        super().__init__(workflow, logger)

    # Submission, in the plugin's threads.

    def run_job(self, job) -> None:
        """Submit a job. Wait as long as that may help."""
        if job.is_group() and FINISHED.issuperset(job.jobs):
            self.report_job_success(SubmittedJobInfo(job))
            return
        while not self._over.is_set():
            self._current.refusal = None
            try:
                super().run_job(job)
            # If the thread ended here, Snakemake would wait for the job forever.
            except Exception as error:
                self._current.refusal = f"Job submission failed: {error.__context__ or error}"
            refusal = self._current.refusal
            if refusal is None:
                return
            if not self._waits(refusal):
                NO_RETRY.update(_members(job))
                super()._report_job_error_threadsafe(SubmittedJobInfo(job), refusal)
                return
            if self._adopts(job):
                return

    def _report_job_error_threadsafe(self, job_info, msg) -> None:
        self._current.refusal = msg

    def _report_job_submission_threadsafe(self, job_info) -> None:
        self._submitted[job_info.external_jobid] = job_info
        if self._refused_since is not None:
            self._refused_since = None
            print_note("SLURM takes jobs again")
        super()._report_job_submission_threadsafe(job_info)

    def _waits(self, refusal: str) -> bool:
        """Wait before the next try. Return False if waiting is useless."""
        # All submissions share one clock; otherwise each job in turn would wait for the full time.
        now, first = time.monotonic(), self._refused_since is None
        since = now if self._refused_since is None else self._refused_since
        waited = now - since
        if FULL.search(_plain(refusal)):
            # Ends with one of the user's jobs, however long that takes. Without any, other users fill the account.
            what, passes = "SLURM takes no more jobs for now", waited < self.patience or has_queued()
        elif _plain(refusal) != refusal and not LIMIT.search(_plain(refusal)):
            # SLURM uses this message for all limits. If the user has jobs, it may mean their number.
            what, passes = "SLURM takes no more jobs for now", waited < self.patience and has_queued()
        else:
            what, passes = "SLURM does not answer", waited < self.patience and DOWN.search(refusal) is not None
        if not passes:
            return False
        if first:
            self._refused_since = since
            reason = refusal.partition("The error message was ")[2] or refusal
            print_note(
                f"{what} ({reason.strip().splitlines()[0]}); waiting, for {self.patience / 60:g} minutes or more"
            )
        return not self._over.wait(min(LONGEST, max(SHORTEST, waited / 4)))

    def _adopts(self, job) -> bool:
        """Return True if SLURM accepted the job although `sbatch` failed, and register it as submitted."""
        kind, wildcards = "group" if job.is_group() else "rule", plugin.get_job_wildcards(job)
        comment = f"{kind}_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
        answer = ask(("squeue", "--noheader", f"--name={self.run_uuid}", "--format=%i|%k"))
        rows = [line.strip().partition("|") for line in answer.lines]
        found = next((number for number, _, text in rows if text == comment and number not in self._submitted), None)
        if found is not None:
            log = self.slurm_logdir / f"{kind}_{job.name}" / wildcards / f"{found}.log"
            submitted = SubmittedJobInfo(job, external_jobid=found, aux={"slurm_logfile": log})
            self._report_job_submission_threadsafe(submitted)
        return found is not None

    def get_account_arg(self, job):
        """Yield the account option; empty for SLURM's default. (The plugin queries the database for each job.)"""
        account = re.split(r"[,\s]+", str(job.resources.get("slurm_account") or "").strip())[0]
        yield f" -A {shlex.quote(account)}" if account else ""

    # The command that a job runs.

    def format_job_exec(self, job) -> str:
        """Return the command of a job."""
        self._current.cpus = job.resources.get("cpus_per_task") or job.threads
        self._current.step = any(member.rule.name == TRAINING for member in _members(job))
        return super().format_job_exec(job)

    @property
    def cores(self) -> int | str:
        """CPUs of the job, not of this host."""
        return getattr(self._current, "cpus", "all")

    def additional_general_args(self) -> str:
        """Return options of the job's Snakemake: trainings run as job steps, since only steps get the `--signal`."""
        # --jobs 1: members of a group run one after another.
        return super().additional_general_args() if self._current.step else "--executor local --jobs 1 --keep-going"

    # The jobs' states, in the thread that looks at them.

    def report_job_error(self, job_info, msg=None, **kwargs) -> None:
        """Report a failed job, after deciding whether and how to retry it."""
        state = self.states.last.get(job_info.external_jobid or "")
        unfinished = [job for job in _members(job_info.job) if not (job_info.job.is_group() and has_outputs(job))]
        silent = state == "FAILED" and not any(map(_says_why, unfinished))
        for job in unfinished:
            if job.rule.name == TRAINING:
                # Only attempts of this `snakemake` call count, so that a new call after a fix may retry.
                reason = self.alike(job, job_info.external_jobid) if job.attempt > 1 else None
                if reason is not None:
                    NO_RETRY.add(job)
                    print_note(f"{_shown(job)}: failed twice for the same reason, so it is not retried: {reason}")
            elif state == "OUT_OF_MEMORY" or silent:
                self.killed(job)
        super().report_job_error(job_info, msg=msg, **kwargs)

    async def sleep(self) -> None:
        """Wait for the next poll, with increasing pauses while nothing changes."""
        with self.lock:
            active = {job.external_jobid for job in self.active_jobs}
        least = self.workflow.executor_settings.init_seconds_before_status_checks
        most = max(least, self.workflow.remote_execution_settings.seconds_between_status_checks)
        if self.get_status_command() == "squeue":
            # squeue drops a job MinJobAge seconds after its end.
            most = max(least, min(most, (plugin.get_min_job_age() or 0) / 3))
        self._pause = least if active != self._seen else min(most, self._pause * 1.3)
        self._seen = set(active)
        until = time.monotonic() + self._pause
        while self.wait and time.monotonic() < until:
            await asyncio.sleep(min(1.0, self._pause))
            with self.lock:
                # A job was submitted meanwhile.
                if any(job.external_jobid not in active for job in self.active_jobs):
                    until = min(until, time.monotonic() + least)
                    active |= {job.external_jobid for job in self.active_jobs}

    def cancel(self) -> None:
        """Cancel all jobs."""
        self._over.set()
        # No job may be submitted after the others are cancelled.
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        super().cancel()

    def cancel_jobs(self, active_jobs) -> None:
        """Cancel jobs, including those being polled and those submitted a moment ago."""
        known = {job.external_jobid: job for job in active_jobs} | {
            number: job for number, job in self._submitted.items() if self.states.last.get(number) not in ENDED
        }
        super().cancel_jobs(list(known.values()))

    def shutdown(self) -> None:
        """Stop waiting and shut down."""
        self._over.set()
        super().shutdown()


NO_RETRY: set[Any] = set()
"""Jobs that are not retried, even with attempts left."""


def install(plan: Experiments, jobs: Jobs) -> None:
    """Replace the plugin's executor. `jobs` knows which jobs are local, and records which were killed."""

    def alike(job, slurm: str | None) -> str | None:
        return failed_twice_identically(Path(plan.layout.run(job.wildcards.experiment, job.wildcards.seed)), job=slurm)

    Executor.patience = 60 * plan.cluster.slurm_patience
    Executor.alike = staticmethod(alike)
    Executor.killed = staticmethod(lambda job: jobs.note_killed(job.wildcards))
    Executor.states = States(plugin.query_job_status)
    plugin.query_job_status = Executor.states.query
    ExecutorPluginRegistry().get_plugin("slurm").executor = Executor
    times, is_local = Job.restart_times.fget, Job.is_local.fget
    Job.restart_times = property(lambda job: 0 if job in NO_RETRY else times(job))
    Job.is_local = property(lambda job: is_local(job) or jobs.is_local(job.rule.name, job.wildcards))


def _members(job) -> list[Any]:
    return list(job.jobs) if job.is_group() else [job]


def _shown(job) -> str:
    return " ".join([job.rule.name, *(str(value) for value in job.wildcards)])


def _says_why(job) -> bool:
    """Return whether the log of a job contains the reason of its failure."""
    for path in map(Path, job.log):
        with suppress(OSError):
            if SAYS_WHY.search(path.read_text(errors="replace")[-20_000:]):
                return True
    return False


def _plain(refusal: str) -> str:
    """Return a refusal without the phrase that SLURM adds for all limits."""
    return refusal.replace("job submit limit, user's size and/or time limits", "")


def has_queued() -> bool:
    """Return whether the user has jobs in the queue other than the one that this process runs in."""
    answer = ask(("squeue", "--noheader", "--format=%i", f"--user={getpass.getuser()}"))
    # If squeue fails, assume so.
    return answer.trouble is not None or bool({line.strip() for line in answer.lines} - {OWN_JOB})
