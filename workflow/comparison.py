"""Compare the resources that a job requests with the partitions that it may go to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import CONFIG, Experiments
from jobs import FIGURE_RULES, MEGABYTES, SECTIONS
from slurm_site import Partition, Site

from udpm.config import source_file
from udpm.config.load import named_file, source_of

PROFILE = "slurm/config.yaml"
HOURS = 1.0
"""Wall time of jobs whose experiment sets none: `default-resources` of the profile."""


@dataclass(frozen=True)
class Request:
    """Request of one job; CPUs, memory and GPUs are for each of its nodes. Zero minutes of wall time: none requested;
    no `gpu_model`: any."""

    partition: str | None
    minutes: int
    memory_mb: int
    cpus: int
    gpus: int
    gpu_model: str | None
    nodes: int

    @classmethod
    def of(cls, job: Any) -> Request:
        """Read the request from a job of Snakemake's."""
        resources = {name: job.resources.get(name) for name in job.resources.keys()}  # noqa: SIM118 - not a dictionary

        def number(name: str, default: int = 0) -> int:
            try:
                return int(resources.get(name) or default)
            except (TypeError, ValueError):
                return default

        nodes = max(1, number("nodes", 1))
        gpus, model = _gpus(resources, nodes)
        tasks = number("tasks_per_node") or math.ceil(max(1, number("tasks", 1)) / nodes)
        cpus = tasks * max(1, number("cpus_per_task") or job.threads)
        if gpus and not resources.get("cpus_per_task") and number("cpus_per_gpu") > 0:
            cpus = gpus * number("cpus_per_gpu")
        memory = cpus * number("mem_mb_per_cpu") or number("mem_mb")
        partition = resources.get("slurm_partition")
        return cls(str(partition) if partition else None, number("runtime"), memory, cpus, gpus, model, nodes)


def _gpus(resources: dict[str, Any], nodes: int) -> tuple[int, str | None]:
    """Return the number of GPUs for each node, and their type."""
    for entry in str(resources.get("gres") or "").split(","):
        name, *words = entry.split(":")
        if name == "gpu":
            count = int(words.pop()) if words and words[-1].isdecimal() else 1
            return count, words[0] if words else None
    model = resources.get("gpu_model")
    try:
        count = int(resources.get("gpu") or bool(model))
    except (TypeError, ValueError):
        count = 0
    return math.ceil(count / nodes), str(model) if count and model else None


class Comparison:
    """Compare one job with the partitions that it may go to."""

    def __init__(self, plan: Experiments, site: Site, any_partition: bool, job: Any, request: Request) -> None:
        self._plan, self.site, self._job, self._request = plan, site, job, request
        self._rule = job.rule.name
        self._partitions = site.candidates(request.partition, any_partition)
        self._any = request.partition is None and len(self._partitions) > 1
        named = request.partition or (self._partitions[0].name if self._partitions else "")
        self._of = "here" if self._any else f"of partition {named}"
        self._name = "any partition" if self._any else f"partition {named}"
        self._kinds = [kind for partition in self._partitions for kind in partition.nodes]
        self._section = SECTIONS.get(self._rule, "") if hasattr(job.wildcards, "experiment") else ""

    def mistakes(self) -> list[tuple[str, str | None]]:
        """Return (line, requester) for each mistake; a requester only if many jobs may make the same one."""
        request = self._request
        unknown = [name for name in (request.partition or "").split(",") if name and name not in self.site.partitions]
        if unknown:
            where = source_of("partition")
            if request.partition != self._plan.cluster.partition:
                where = f"{PROFILE}: slurm_partition of {self._rule}"
            return [(f"{where}: {unknown[0]} not found; this cluster has: {', '.join(self.site.partitions)}", None)]
        found = [self._memory(), self._cpus(), self._model() or self._gpus(), self._nodes()]
        mistakes: list[tuple[str, str | None]] = [(mistake, None) for mistake in found if mistake]
        if time := self._time():
            mistakes.insert(0, time)
        together = None if mistakes else self._together()
        return [(together, None)] if together else mistakes

    def _takes(self) -> str:
        return "no partition here takes jobs of more than" if self._any else f"{self._name} takes jobs of at most"

    def _time(self) -> tuple[str, str | None] | None:
        request, cluster = self._request, self._plan.cluster
        longest = max(partition.minutes for partition in self._partitions)
        if request.minutes <= longest:
            return None
        takes = f"{self._takes()} {_duration(longest)}"
        own = request.partition == cluster.partition
        if own and request.minutes == cluster.minutes(self._hours()):
            # Rounded down, so that a job of that time fits.
            hours = math.floor(longest / 60 * 100) / 100
            where, then = source_of("max_hours"), f"set max_hours: {hours:g} (or UDPM_MAX_HOURS={hours:g})"
            return f"{where}: {cluster.max_hours:g}, but {takes}; {then}", self._asker()
        of = f"runtime of {self._rule}: {request.minutes} minutes"
        return f"{PROFILE}: {of}, but {takes}; set its runtime in set-resources", None

    def _hours(self) -> float:
        """Return the hours that the job would request without max_hours."""
        if self._section and self._rule in FIGURE_RULES:
            return self._plan.experiment(self._job.wildcards).resources.figure_hours
        return self._resources.hours if self._section else HOURS

    def _asker(self) -> str:
        name = getattr(self._job.wildcards, "experiment", None) or getattr(self._job.wildcards, "dataset", None)
        return f"{self._rule} of {name}" if name else self._rule

    def _memory(self) -> str | None:
        most = max((kind.memory_mb for kind in self._kinds), default=math.inf)
        return None if self._request.memory_mb <= most else self._too_much(self._memory_key(), f"{_gb(most)} GB")

    def _cpus(self) -> str | None:
        most = max((kind.cpus for kind in self._kinds), default=math.inf)
        return None if self._request.cpus <= most else self._too_much(self._cpus_key(), f"{most}")

    def _too_much(self, key: str, most: str) -> str:
        return f"{key}, but no node {self._of} has more than {most}{self._others()}"

    def _model(self) -> str | None:
        model, kinds = self._request.gpu_model, self._kinds
        if model is None or not kinds or any(kind.gpus_of(model) for kind in kinds):
            return None
        types = sorted({name for kind in kinds for name in kind.gpus})
        if not types:
            return None
        named = [name for name in types if name]
        rest = f"has {', '.join(named)}" if named else "does not name the types of its GPUs: leave gpu_model out"
        where = source_of("gpu_model")
        if model != self._plan.cluster.gpu_model:
            where = f"{PROFILE}: gpu_model of {self._rule}"
        return f"{where}: {model}, but {self._name} {rest}{self._others()}"

    def _gpus(self) -> str | None:
        request, kinds = self._request, self._kinds
        most = max((kind.gpus_of(request.gpu_model) for kind in kinds), default=math.inf)
        if not request.gpus or request.gpus <= most:
            return None
        if not any(kind.gpus for kind in kinds):
            none = "no partition here has GPUs" if self._any else f"{self._name} has no GPUs"
            return f"{self._gpus_key()}, but {none}{self._others()}"
        of_type = f" of type {request.gpu_model}" if request.gpu_model else ""
        return self._too_much(self._gpus_key(), f"{most}{of_type}")

    def _nodes(self) -> str | None:
        nodes, partitions = self._request.nodes, self._partitions
        available = max(sum(kind.count for kind in partition.nodes) or math.inf for partition in partitions)
        most = max(partition.max_nodes for partition in partitions)
        if nodes > most:
            return f"{self._nodes_key()}, but {self._takes()} {most:g} {_plural(most, 'node')}{self._others()}"
        if nodes > available:
            has = "no partition here has more than" if self._any else f"{self._name} has only"
            return f"{self._nodes_key()}, but {has} {available:g}{self._others()}"
        return None

    def _together(self) -> str | None:
        """Return the mistake if each part of the request can be satisfied, but no node satisfies all of them."""
        request = self._request
        if any(self._has(partition) for partition in self._partitions):
            return None
        each = [f"{request.cpus} {_plural(request.cpus, 'CPU')}"]
        each += [f"{_gb(request.memory_mb)} GB"] if request.memory_mb else []
        if request.gpus:
            model = f" of type {request.gpu_model}" if request.gpu_model else ""
            each.append(f"{request.gpus} {_plural(request.gpus, 'GPU')}{model}")
        if self._any and request.minutes:
            each.append(_duration(request.minutes))
        whole = f"{', '.join(each[:-1])} and {each[-1]}" if len(each) > 1 else each[0]
        who = f"{self._experiment_file()}: {self._rule}" if self._section else f"{PROFILE}: {self._rule}"
        if request.nodes == 1:
            return f"{who} requests {whole} on one node, but no node {self._of} has all of that{self._others()}"
        lacks = "no partition here has" if self._any else f"{self._name} does not have"
        return f"{who} requests {whole} on each of {request.nodes} nodes, but {lacks} enough such nodes{self._others()}"

    def _has(self, partition: Partition) -> bool:
        request = self._request
        return partition.has(
            request.minutes, request.memory_mb, request.cpus, request.gpus, request.gpu_model, nodes=request.nodes
        )

    def _others(self) -> str:
        """Name the partitions that satisfy the request."""
        names = [name for name, partition in self.site.partitions.items() if partition.nodes and self._has(partition)]
        return f" ({'this partition has' if len(names) == 1 else 'these have'} it: {', '.join(names)})" if names else ""

    # The key that a value of the request comes from: of the experiment if it has that value, else of the profile.

    def _experiment_file(self) -> str:
        name, sweep = self._job.wildcards.experiment, self._plan.sweep
        if sweep and name in sweep.loaded.points:
            # Most points request what their base does: report it once, not a thousand times.
            same = self._resources == getattr(sweep.loaded.base.resources, self._section)
            name = sweep.loaded.sweep.base if same else name
        return source_file(name, CONFIG)

    @property
    def _resources(self):
        return getattr(self._plan.experiment(self._job.wildcards).resources, self._section)

    def _in_profile(self, name: str, value: Any) -> str:
        return f"{PROFILE}: {name} of {self._rule}: {value}"

    def _memory_key(self) -> str:
        memory = self._request.memory_mb
        if self._section:
            gigabytes = self._resources.memory_gb
            once = round(gigabytes * MEGABYTES)
            if memory in (once, 2 * once):
                twice = "" if memory == once else ", twice that after an attempt that was killed"
                return f"{self._experiment_file()}: resources.{self._section}.memory_gb: {gigabytes:g}{twice}"
        return self._in_profile("mem_mb", memory)

    def _cpus_key(self) -> str:
        cpus = self._request.cpus
        if self._section == "training":
            training = self._plan.training(self._job.wildcards)
            if cpus == training.processes_per_node * (training.threads + training.workers):
                parts = [f"training.threads: {training.threads}"]
                parts += [f"training.workers: {training.workers}"] if training.workers else []
                each = f" for each of training.processes_per_node: {training.processes_per_node}"
                whole = each if training.processes_per_node > 1 else ""
                sums = f" make {cpus} CPUs" if len(parts) > 1 or whole else ""
                return f"{self._experiment_file()}: {' and '.join(parts)}{whole}{sums}"
        elif self._section:
            threads = getattr(self._plan.experiment(self._job.wildcards), self._section).threads
            if cpus == threads:
                return f"{self._experiment_file()}: {self._section}.threads: {threads}"
        elif self._rule == "prepare_dataset":
            return f"{named_file(Path(CONFIG, 'datasets'), self._job.wildcards.dataset)}: workers: {cpus}"
        return self._in_profile("CPUs", cpus)

    def _gpus_key(self) -> str:
        gpus = self._request.gpus
        if not self._section:
            return self._in_profile("gpu", gpus)
        key = "gpus_per_node" if self._section == "training" else "gpus"
        configured = getattr(self._resources, key)
        if configured is None:
            why = "training.processes_per_node" if self._section == "training" else f"{self._section}.device"
            return f"{self._experiment_file()}: resources.{self._section}.{key} is {gpus}, by {why}"
        if configured == gpus:
            return f"{self._experiment_file()}: resources.{self._section}.{key}: {gpus}"
        return self._in_profile("gpu", gpus)

    def _nodes_key(self) -> str:
        if self._section == "training":
            return f"{self._experiment_file()}: training.nodes: {self._request.nodes}"
        return self._in_profile("nodes", self._request.nodes)


def _duration(minutes: float) -> str:
    if minutes < 60:
        return f"{minutes:g} {_plural(minutes, 'minute')}"
    return f"{round(minutes / 60, 2):g} {_plural(minutes / 60, 'hour')}"


def _gb(megabytes: float) -> str:
    return f"{megabytes / MEGABYTES:g}"


def _plural(count: float, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
