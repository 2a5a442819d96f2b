"""The resources that jobs request from a scheduler, and the groups of jobs that share one SLURM job.

An experiment sets its jobs' resources; config/cluster.yaml limits them. Small jobs run in groups, since starting a
SLURM job takes longer than most of them. Members of a group run one after another. Outputs of finished members are kept
if others fail, and are not made again.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from typing import Any

from content import TRAINING
from experiments import Experiments
from targets import Arguments

from udpm.config import ClusterConfig
from udpm.config.study import JobResources
from udpm.core import gpus
from udpm.runs.attempts import any_killed

MEGABYTES = 1000
SECTIONS = {
    "train_model": "training",
    "sample_images": "sampling",
    "sample_shard": "sampling",
    "sample_chain": "sampling",
    "sample_milestone": "sampling",
    "sample_best": "sampling",
    "explore_latents": "sampling",
    "diagnose_run": "sampling",
    "measure_speed": "sampling",
    "compute_reference": "scoring",
    "score_samples": "scoring",
    "score_baseline": "scoring",
    "score_milestone": "scoring",
    "score_best": "scoring",
    "render_neighbours": "scoring",
}
"""By rule, the section of `resources` that its jobs use."""
FIGURE_RULES = {"sample_chain", "explore_latents", "diagnose_run", "render_neighbours"}
"""Rules whose jobs make the contents of one figure, and take `resources.figure_hours`."""

GROUPED = {
    "prepare_dataset": ("data", "dataset"),
    "cache_levels": ("data", "dataset"),
    "compute_reference": ("reference", "experiment"),
    "score_baseline": ("reference", "experiment"),
    "sample_images": ("run", "experiment", "seed"),
    "sample_chain": ("run", "experiment", "seed"),
    "explore_latents": ("run", "experiment", "seed"),
    "score_samples": ("run", "experiment", "seed"),
    "diagnose_run": ("run", "experiment", "seed"),
    "render_neighbours": ("run", "experiment", "seed"),
    "sample_milestone": ("milestone", "experiment", "seed", "iteration"),
    "score_milestone": ("milestone", "experiment", "seed", "iteration"),
    "sample_best": ("best", "experiment", "seed"),
    "score_best": ("best", "experiment", "seed"),
}
"""Kind of group and shared wildcards by rule, in the order of dependencies. Trainings run alone, and so do shards of a
sample set, which should run at the same time."""

PER_MEMBER = {"runtime", "mem", "mem_mb", "mem_mib", "disk", "disk_mb", "disk_mib", "tmpdir", "cpus_per_task", "_cores"}
"""Resources that may differ between members; all others must be equal."""

FINISHED: set[Any] = set()
"""Members that finished in a group that failed."""


class Jobs:
    """Resources of the rules, as Snakemake's functions of wildcards and attempt.

    Attributes:
        max_memory: returns the megabytes of the largest node, the most that a job requests.
        scoring: of passes of the feature extractor.
        figures: of drawing the images of one figure.
        neighbours: of the figure of nearest training images.
    """

    def __init__(self, plan: Experiments, cluster: ClusterConfig, has_scheduler: bool) -> None:
        self._plan, self._cluster, self._has_scheduler = plan, cluster, has_scheduler
        self._killed: set[frozenset[tuple[str, str]]] = set()
        self.max_memory: Callable[[], float] = lambda: math.inf
        self.training: dict[str, Callable] = {
            "runtime": lambda wildcards: cluster.minutes(self._asked(wildcards).training.hours),
            "mem_mb": self._training_memory,
            "nodes": lambda wildcards: plan.training(wildcards).nodes,
            **{key: self._placement(key) for key in ("gpu", "gpu_model", "gres", "mpi", "tasks", "tasks_per_node")},
            **self.cpus(self.training_threads),
        }
        self.sampling = self._on_one_node("sampling")
        self.scoring = self._on_one_node("scoring")
        self.figures = self.sampling | {"runtime": self._figure_minutes}
        self.neighbours = self.scoring | {"runtime": self._figure_minutes, **self.cpus(1)}

    def cpus(self, threads: Callable[..., int] | int) -> dict[str, Any]:
        """Return a request for CPUs. Snakemake reduces `threads` to the CPUs of its host, often a small login node."""
        return {"cpus_per_task": threads} if self._has_scheduler else {}

    def sampling_threads(self, wildcards) -> int:
        """Return the CPU threads of drawing images."""
        return self._plan.experiment(wildcards).sampling.threads

    def scoring_threads(self, wildcards) -> int:
        """Return the CPU threads of scoring images."""
        return self._plan.scoring(wildcards.experiment, "threads")

    def training_threads(self, wildcards) -> int:
        """Return the CPU threads of a run: of all processes on one node, or of each process on several nodes."""
        training = self._plan.training(wildcards)
        each = training.threads + training.workers
        return each if training.nodes > 1 else training.processes_per_node * each

    def training_command(self, wildcards) -> Arguments:
        """Return the shell function, with arguments, that starts a run: one process, several, or several nodes."""
        training = self._plan.training(wildcards)
        if training.nodes > 1:
            threads = training.threads + training.workers
            return Arguments("tasks", training.nodes, training.processes_per_node, threads)
        if training.processes == 1:
            return Arguments("udpm")
        return Arguments("ranks" if training.device == "cpu" else "gpu_ranks", training.processes)

    def preparation_threads(self, wildcards) -> int:
        """Return the CPU threads of preparing a data set: one for each worker."""
        return self._plan.dataset_config(wildcards.dataset).workers or 1

    def is_local(self, rule: str, wildcards) -> bool:
        """Return whether an experiment makes a job run next to `snakemake`, not on a node."""
        section = SECTIONS.get(rule, "training")
        return section != "training" and getattr(self._asked(wildcards), section).local

    def note_killed(self, wildcards) -> None:
        """Double the memory of the next attempt of a job that was killed."""
        self._killed.add(_key(wildcards))

    def _figure_minutes(self, wildcards) -> int:
        return self._cluster.minutes(self._asked(wildcards).figure_hours)

    def _asked(self, wildcards):
        return self._plan.experiment(wildcards).resources

    def _training_memory(self, wildcards, attempt) -> int:
        once = round(self._asked(wildcards).training.memory_gb * MEGABYTES)
        # A killed attempt may have run out of memory; one that reached its wall time had enough.
        if attempt > 1 and any_killed(Path(self._plan.layout.run(wildcards.experiment, wildcards.seed))):
            return self._twice(once)
        return once

    def _twice(self, megabytes: int) -> int:
        return int(max(megabytes, min(2 * megabytes, self.max_memory())))

    def _placement(self, key: str) -> Callable:
        """Return the function of one resource that places a training's GPUs and processes on its nodes."""

        def place(wildcards) -> int | str | None:
            training, gpus = self._plan.training(wildcards), self._asked(wildcards).training.gpus_per_node
            each = training.processes_per_node
            if gpus is None:
                gpus = 0 if training.device == "cpu" else each
            model = self._cluster.gpu_model if gpus else None
            if training.nodes == 1:
                return {"gpu": gpus or None, "gpu_model": model}.get(key)
            # `gpu` is a number for the whole job, and a scheduler may spread it unevenly; `gres` is one for each node.
            gres = ":".join(["gpu", *([model] if model else []), str(gpus)]) if gpus else None
            # The plugin accepts tasks_per_node only above 1, and never both.
            tasks = {"tasks": training.processes} if each == 1 else {"tasks_per_node": each}
            return {"gres": gres, "mpi": "srun", **tasks}.get(key)

        return place

    def _on_one_node(self, section: str) -> dict[str, Callable]:
        def asked(wildcards) -> JobResources:
            return getattr(self._asked(wildcards), section)

        def gpus(wildcards) -> int | None:
            count = asked(wildcards).gpus
            if count is None:
                # The extractor has no `device`: it uses a GPU if it finds one.
                device = getattr(getattr(self._plan.experiment(wildcards), section), "device", "auto")
                count = int(device != "cpu")
            return count or None

        def memory(wildcards, attempt) -> int:
            once = round(asked(wildcards).memory_gb * MEGABYTES)
            return self._twice(once) if attempt > 1 and _key(wildcards) in self._killed else once

        return {
            "runtime": lambda wildcards: self._cluster.minutes(asked(wildcards).hours),
            "mem_mb": memory,
            "nodes": lambda _wildcards: 1,
            "gpu": gpus,
            "gpu_model": lambda wildcards: self._cluster.gpu_model if gpus(wildcards) else None,
            **self.cpus(getattr(self, f"{section}_threads")),
        }


def _key(wildcards) -> frozenset[tuple[str, str]]:
    return frozenset((name, str(value)) for name, value in wildcards.items())


def limit_gpus(workflow: Any) -> None:
    """Run jobs on this machine's GPUs one to a GPU, unless `--resources gpu=N` allows more than there are."""
    count, limits = len(gpus.visible()), workflow.global_resources
    if not count:
        return
    asked = limits.get("gpu").value
    if asked is None:
        workflow.register_resource("gpu", count)
    if asked is None or asked <= count:
        # Jobs inherit it. GPUs may also be in use by another call of `snakemake`.
        os.environ.setdefault(gpus.POLICY, "exclusive")


def limit_retries(workflow: Any) -> None:
    """Apply the profile's `retries` to training alone, which resumes from checkpoints.

    Other jobs get at most one retry, since the scheduler may have ended the first attempt; local jobs get none.
    """
    from snakemake.jobs import Job

    retries = Job.restart_times.fget

    def limited(job) -> int:
        if job.rule.name == TRAINING:
            return retries(job)
        return 0 if job.rule.name in workflow._localrules else min(1, retries(job))

    Job.restart_times = property(limited)


def group_name(job: Any) -> str | None:
    """Return the name of a job's group; None if the job runs alone."""
    if job.is_local or job.rule.name not in GROUPED:
        return None
    kind, *shared = GROUPED[job.rule.name]
    return "-".join([kind, *(str(job.wildcards[name]) for name in shared)])


def group_jobs(jobs: Iterable[Any], longest: Callable[[str | None], int]) -> dict[str, frozenset[Any]]:
    """Return groups of at least two of the jobs that will run, by name. Jobs that request different nodes or accounts
    are not grouped, and groups that take longer than their partition's `longest`, in minutes, are split."""
    found: dict[tuple[str, frozenset], set[Any]] = defaultdict(set)
    for job in jobs:
        name = group_name(job)
        if name is not None:
            wanted = frozenset((key, value) for key, value in job.resources.items() if key not in PER_MEMBER)
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


def group_resources(jobs: Iterable[Any]) -> dict[str, Any]:
    """Return the resources of a group: the sum of its members' times, and the maximum of everything else."""
    from snakemake.common.tbdstring import TBDString

    # A TBDString stands for a value that is not known yet.
    known = [{key: value for key, value in job.resources.items() if not isinstance(value, TBDString)} for job in jobs]
    found: dict[str, Any] = {}
    for resources in known:
        for key, value in resources.items():
            found[key] = max(found[key], value) if isinstance(found.get(key), int) else value
    return found | {"runtime": sum(resources.get("runtime", 0) for resources in known), "_nodes": 1}


def install_groups(longest: Callable[[str | None], int]) -> None:
    """Make Snakemake's main process group jobs, and keep the outputs of finished members if a group fails.

    `longest` returns the time limit of a partition in minutes.
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
            # Snakemake warns that it does not know the sizes of inputs; no resource depends on them.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = group_jobs(jobs, longest)
        for name, members in found.items():
            group = self.group_job_factory.new(name, members, self.workflow.global_resources)
            group.finalize()
            for job in members:
                job.group, self._group[job] = name, group
        self._check_groups()

    def basic_layered(toposorted_jobs, **_options):
        return group_resources([job for level in toposorted_jobs for job in level])

    def register(self, external_jobid=None):
        for job in self.jobs:
            if job not in FINISHED:
                job.register(external_jobid=external_jobid)
                submitted.add(job)

    async def keep_finished(self, *arguments, error=False, **options):
        ran = self in submitted or self in FINISHED
        submitted.discard(self)
        finished = error and ran and has_outputs(self)
        if finished and self not in FINISHED:
            # Outputs of a member that has not finished are still marked as incomplete.
            finished = not await self.dag.workflow.persistence.incomplete(self)
        (FINISHED.add if finished else FINISHED.discard)(self)
        await postprocess(self, *arguments, error=error and not finished, **options)

    def unfinished(self):
        return [spec for job in self.jobs if job not in FINISHED for spec in job.get_target_spec()] or targets(self)

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


def has_outputs(job: Any) -> bool:
    """Return whether all outputs of a job exist."""
    return all(Path(output).exists() for output in job.output)
