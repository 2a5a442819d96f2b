"""Check jobs against the limits of SLURM before any job starts, and in dry runs."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import PROFILE, Comparison, Request
from experiments import CONFIG, Experiments, one_line
from jobs import Jobs
from slurm_site import Site

from udpm.config.load import source_of
from udpm.core.errors import UserError, first_line

OTHER_CLUSTER = ("cluster", "clusters", "slurm_cluster")
"""Resources that send a job to another cluster, whose limits are unknown here."""


@dataclass(frozen=True)
class Options:
    """Options of the plugin, from the profile or the command line."""

    array_jobs: str | None = None
    status_command: str | None = None
    partition_config: str | None = None
    qos: str | None = None
    executor: str | None = None

    @property
    def has_scheduler(self) -> bool:
        """True if jobs go to a scheduler: SLURM, or another one that a copy of the profile names."""
        return self.executor not in (None, "local", "dryrun", "touch")


def read_options() -> Options:
    """Read the plugin's options from the command line, since Snakemake drops them in a dry run."""
    from snakemake.cli import parse_args

    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            _, options = parse_args(sys.argv[1:])
    except (SystemExit, Exception):
        # Not started from the command line.
        return Options()
    values = {name: getattr(options, f"slurm_{name}", None) for name in Options.__dataclass_fields__}
    values["executor"] = options.executor
    found = {name: str(value) for name, value in values.items() if isinstance(value, str | Path) and str(value)}
    if "partition_config" not in found and os.environ.get("SNAKEMAKE_SLURM_PARTITIONS"):
        found["partition_config"] = os.environ["SNAKEMAKE_SLURM_PARTITIONS"]
    return Options(**found)


@one_line
def check_config_values(values: Iterable[str]) -> None:
    """Refuse values (KEY=VALUE) of ``--config`` that would change on their way to a job.

    Snakemake passes Python's repr of them to a node's shell, which reads it unchanged only if nothing is escaped.
    """
    for text in values:
        if repr(text) != f"'{text}'":
            where = f"put it into {CONFIG}/config.yaml"
            raise UserError(f"--config {text!r}: this value would reach jobs on nodes changed; {where}")


def check_before_jobs(plan: Experiments, jobs: Jobs, options: Options, workflow: Any) -> Limits:
    """Make Snakemake check all jobs to submit, before the first job of any kind starts.

    Mistakes end the process: one line for each, exit code 2. Returns the limits, for further queries.
    """
    from snakemake.scheduling.job_scheduler import JobScheduler

    limits = Limits(plan, Site(), options)
    prepare = JobScheduler.__init__

    @one_line
    def check(dag: Any) -> None:
        found = [job for job in dag.needrun_jobs() if not is_local(job, jobs, workflow)]
        submitted = len({dag.get_job_group(job) or job for job in found})
        for note in limits.check(found, workflow.dryrun, workflow.resource_settings.nodes, submitted):
            print(f"note: {note}", file=sys.stderr)

    # Here all jobs are known and none has started. Resources cannot be evaluated inside the DAG's coroutines.
    def check_then_prepare(self, workflow, *arguments, **options):
        # With --executor local nothing is submitted.
        if not workflow.touch and (workflow.dryrun or not workflow.local_exec):
            check(workflow.dag)
        prepare(self, workflow, *arguments, **options)

    JobScheduler.__init__ = check_then_prepare
    return limits


def is_local(job: Any, jobs: Jobs, workflow: Any) -> bool:
    """Return whether a job runs next to `snakemake`. `Job.is_local` is true for every job of a dry run."""
    rule = job.rule
    return rule.name in workflow._localrules or rule.norun or jobs.is_local(rule.name, job.wildcards)


class Limits:
    """The limits of SLURM, to find jobs that it would refuse or never start."""

    def __init__(self, plan: Experiments, site: Site, options: Options) -> None:
        self._plan, self.site, self._options = plan, site, options

    def check(self, jobs: list[Any], dry_run: bool, most: int | None, submitted: int) -> list[str]:
        """Find what SLURM would refuse or never start.

        Args:
            jobs: the jobs to submit.
            dry_run: whether this is a dry run.
            most: `jobs` of the profile, the number of jobs in the queue at a time.
            submitted: number of SLURM jobs; fewer than `jobs` because of groups.

        Returns:
            Notes to print.

        Raises:
            UserError: one line for each mistake.
        """
        if self._options.array_jobs:
            raise UserError(
                f"{PROFILE} (or the command line): slurm-array-jobs: leave it out: with plugin 2.8 all jobs of an array"
                " get the resources of the first, and none is noticed when it ends"
            )
        if not jobs:
            return []
        if absence := self.site.absence:
            return self._without_slurm(absence, dry_run)
        known = self.site.trouble is None
        mistakes = dict.fromkeys(
            [
                *self._check_accounting(),
                *self._check_account(),
                *(self._check_partition_file() if known else ()),
                *(self.mistakes(jobs) if known else ()),
            ]
        )
        if mistakes:
            raise UserError(*mistakes)
        if known:
            return self._notes(jobs, most, submitted)
        return [f"what SLURM grants is not known ({self.site.trouble}); jobs are submitted without a comparison"]

    def _without_slurm(self, absence: str, dry_run: bool) -> list[str]:
        if dry_run:
            return [f"{absence}: this is the plan, but it cannot run here; without SLURM: snakemake"]
        advice = "start it on a cluster's login node, or run everything on this machine: snakemake"
        raise UserError(f"--profile slurm: {absence}; {advice}")

    def _check_accounting(self) -> Iterable[str]:
        trouble = self.site.accounting_trouble or ""
        # A database that does not answer may come back; a missing one will not.
        if self._options.status_command != "squeue" and ("sacct not found" in trouble or "is disabled" in trouble):
            yield f"{PROFILE}: sacct cannot report how jobs end ({trouble}); set slurm-status-command: squeue"

    def _check_account(self) -> Iterable[str]:
        account, accounts = self._plan.cluster.account, self.site.accounts
        # SLURM knows accounts in lower case.
        if account is not None and accounts and account.lower() not in map(str.lower, accounts):
            yield f"{source_of('account')}: {account} is not one of yours; these are: {', '.join(accounts)}"

    def _check_partition_file(self) -> Iterable[str]:
        from snakemake_executor_plugin_slurm.partitions import read_partition_file

        path = self._options.partition_config
        if path is None:
            return
        try:
            names = [partition.name for partition in read_partition_file(Path(path)) if not partition.partition_cluster]
        except Exception as error:
            yield f"slurm-partition-config: {path}: {first_line(error)}"
            return
        for name in names:
            if name not in self.site.partitions:
                partitions = ", ".join(self.site.partitions)
                yield f"slurm-partition-config: {path}: {name} not found; this cluster has: {partitions}"

    def mistakes(self, jobs: Iterable[Any]) -> list[str]:
        """Return one line for each request that no node can satisfy."""
        seen = set()
        found: dict[str, list[str]] = {}
        for job in jobs:
            if any(job.resources.get(name) for name in OTHER_CLUSTER):
                continue
            asked = Request.of(job)
            # Seeds and shards of an experiment make the same request.
            key = (job.rule.name, getattr(job.wildcards, "experiment", None), getattr(job.wildcards, "dataset", None))
            if (key, asked) not in seen:
                seen.add((key, asked))
                compared = Comparison(self._plan, self.site, bool(self._options.partition_config), job, asked)
                for mistake, asker in compared.mistakes():
                    found.setdefault(mistake, []).extend([asker] if asker else [])
        return sorted(f"{mistake}{_asked_by(askers)}" for mistake, askers in found.items())

    def _notes(self, jobs: list[Any], most: int | None, submitted: int) -> list[str]:
        named = sorted({Request.of(job).partition or "" for job in jobs})
        alone = {found[0].name: found[0].state for found in map(self.site.candidates, named) if len(found) == 1}
        notes = [
            f"partition {name} takes no jobs at present (sinfo: {state})"
            for name, state in alone.items()
            if state in ("drain", "inact")
        ]
        if self._options.partition_config and self._plan.cluster.partition:
            notes.append(
                f"{source_of('partition')}: {self._plan.cluster.partition}: all jobs go there, so "
                f"slurm-partition-config ({self._options.partition_config}) has no effect; leave one of them out"
            )
        cluster = self._plan.cluster
        queued = self.site.max_jobs(cluster.account, cluster.partition, self._options.qos)
        if queued is not None and most is not None and queued < min(most, submitted):
            notes.append(
                f"SLURM takes at most {queued} jobs of yours at a time (MaxSubmit): of {submitted} jobs, {queued} will"
                f" be in the queue at once, not the {most} that `jobs` of the profile allows"
            )
        return notes

    def longest(self, partition: str | None) -> int:
        """Return the time limit of a partition in minutes; None: of the site's default."""
        granted = [found.minutes for found in self.site.candidates(partition, bool(self._options.partition_config))]
        return int(min(self._plan.cluster.minutes(self._plan.cluster.max_hours), max(granted, default=math.inf)))


def _asked_by(askers: list[str]) -> str:
    """Name the requesters of one mistake, at most three."""
    named = list(dict.fromkeys(askers))
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"; requested by {', '.join(named[:3])}{more}" if named else ""
