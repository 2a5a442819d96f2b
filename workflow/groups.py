"""Groups of small jobs that share one SLURM job, since starting a job takes longer than most of them.

Members of a group run one after another. Outputs of finished members are kept if others fail, and are not made again.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from typing import Any

GROUPED = {
    "prepare_dataset": ("data", "dataset"),
    "cache_levels": ("data", "dataset"),
    "compute_reference": ("reference", "experiment"),
    "score_yardstick": ("reference", "experiment"),
    "sample_images": ("run", "experiment", "seed"),
    "sample_chain": ("run", "experiment", "seed"),
    "explore_latents": ("run", "experiment", "seed"),
    "score_samples": ("run", "experiment", "seed"),
    "render_neighbours": ("run", "experiment", "seed"),
    "sample_milestone": ("milestone", "experiment", "seed", "iteration"),
    "score_milestone": ("milestone", "experiment", "seed", "iteration"),
    "sample_best": ("best", "experiment", "seed"),
    "score_best": ("best", "experiment", "seed"),
}
"""Kind of group and shared wildcards by rule, in the order of dependencies. Trainings never share a job, nor do shards
of a sample set, which should run at the same time."""

OWN = {"runtime", "mem", "mem_mb", "mem_mib", "disk", "disk_mb", "disk_mib", "tmpdir", "cpus_per_task", "_cores"}
"""Resources that may differ between members; all others must be equal."""

DONE: set[Any] = set()
"""Members that finished in a group that failed."""


def name_of(job: Any) -> str | None:
    """Return the name of a job's group; None if the job runs alone."""
    if job.is_local or job.rule.name not in GROUPED:
        return None
    kind, *shared = GROUPED[job.rule.name]
    return "-".join([kind, *(str(job.wildcards[name]) for name in shared)])


def partition(jobs: Iterable[Any], longest: Callable[[str | None], int]) -> dict[str, frozenset[Any]]:
    """Return groups of at least two jobs by name. Jobs that request different nodes or accounts are not grouped.

    Args:
        jobs: all jobs that will run.
        longest: returns the longest time in minutes that a partition allows. Groups that take longer are split.
    """
    found: dict[tuple[str, frozenset], set[Any]] = defaultdict(set)
    for job in jobs:
        name = name_of(job)
        if name is not None:
            wanted = frozenset((key, value) for key, value in job.resources.items() if key not in OWN)
            found[name, wanted].add(job)
    named: dict[str, frozenset[Any]] = {}
    for (name, _), members in found.items():
        for chunk in _chunks(members, longest):
            if len(chunk) > 1:
                named[name if name not in named else f"{name}-{len(named)}"] = frozenset(chunk)
    return named


def _chunks(members: Iterable[Any], longest: Callable[[str | None], int]) -> list[list[Any]]:
    """Split members, in the order of their dependencies, into parts that fit into the time limit."""
    order = list(GROUPED)
    chunks: list[list[Any]] = []
    left = 0
    for job in sorted(members, key=lambda job: order.index(job.rule.name)):
        minutes = job.resources.get("runtime") or 0
        if not chunks or minutes > left:
            chunks.append([])
            left = longest(job.resources.get("slurm_partition"))
        chunks[-1].append(job)
        left -= minutes
    return chunks


def together(jobs: Iterable[Any]) -> dict[str, Any]:
    """Return the resources of a group: the sum of its members' times, and the maximum of everything else."""
    asked = [{key: value for key, value in job.resources.items() if _is_known(value)} for job in jobs]
    found: dict[str, Any] = {}
    for resources in asked:
        for key, value in resources.items():
            found[key] = max(found[key], value) if isinstance(found.get(key), int) else value
    found["runtime"] = sum(resources.get("runtime", 0) for resources in asked)
    return found | {"_nodes": 1}


def _is_known(value: Any) -> bool:
    from snakemake.common.tbdstring import TBDString

    return not isinstance(value, TBDString)


def install(longest: Callable[[str | None], int]) -> None:
    """Make Snakemake's main process group jobs, and keep the outputs of finished members if a group fails.

    Args:
        longest: returns the longest time in minutes that a partition allows.
    """
    from snakemake.dag import DAG
    from snakemake.jobs import GroupJob, Job
    from snakemake.resources import GroupResources

    submitted: set[Any] = set()
    postprocess, targets, log_error = Job.postprocess, GroupJob.get_target_spec, GroupJob.log_error

    def update_groups(self):
        self._group, jobs = {}, list(self.needrun_jobs())
        for job in jobs:
            job.group = None
        with warnings.catch_warnings():
            # Snakemake cannot determine the sizes of inputs here, and warns about it. They are not needed.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = partition(jobs, longest)
        for name, members in found.items():
            group = self.group_job_factory.new(name, members, self.workflow.global_resources)
            group.finalize()
            for job in members:
                job.group, self._group[job] = name, group
        self._check_groups()

    def basic_layered(toposorted_jobs, **_options):
        return together([job for level in toposorted_jobs for job in level])

    def register(self, external_jobid=None):
        for job in self.jobs:
            if job not in DONE:
                job.register(external_jobid=external_jobid)
                submitted.add(job)

    async def keep_finished(self, *arguments, error=False, **options):
        ran = self in submitted or self in DONE
        submitted.discard(self)
        if error and ran and has_outputs(self) and (self in DONE or not await _is_marked(self)):
            error = False
            DONE.add(self)
        else:
            DONE.discard(self)
        await postprocess(self, *arguments, error=error, **options)

    def unfinished(self):
        return [spec for job in self.jobs if job not in DONE for spec in job.get_target_spec()] or targets(self)

    def log_unfinished(self, *arguments, **options):
        shown = copy(self)
        shown._jobs = frozenset(job for job in self.jobs if not has_outputs(job)) or self.jobs
        log_error(shown, *arguments, **options)

    DAG.update_groups = update_groups
    GroupResources.basic_layered = staticmethod(basic_layered)
    Job.postprocess = keep_finished
    GroupJob.register = register
    GroupJob.get_target_spec = unfinished
    GroupJob.log_error = log_unfinished


async def _is_marked(job: Any) -> bool:
    """Return whether any output of a job is still marked as incomplete, so that the job has not finished."""
    return bool(await job.dag.workflow.persistence.incomplete(job))


def has_outputs(job: Any) -> bool:
    """Return whether all outputs of a job exist."""
    return all(Path(output).exists() for output in job.output)
