"""What each job asks a scheduler for: what its experiment says, as far as the cluster grants it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from udpm.config import ClusterConfig
from udpm.config.resources import JobResources
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
    "measure_speed": "sampling",
    "compute_reference": "scoring",
    "score_samples": "scoring",
    "score_yardstick": "scoring",
    "score_milestone": "scoring",
    "score_best": "scoring",
    "render_neighbours": "scoring",
}
"""By rule, the section of `resources` that says what its jobs ask for."""
OF_FIGURES = {"sample_chain", "explore_latents", "render_neighbours"}
"""Rules of which a job makes what one figure shows: they have `resources.figure_hours`."""


class Jobs:
    """Resources of the rules, as Snakemake's functions of wildcards and attempt.

    Args:
        plan: the experiments.
        cluster: what it grants.

    Attributes:
        most_memory: megabytes of the largest node: no job asks for more.
        training: of a run's training.
        sampling: of drawing images.
        scoring: of passes of the feature extractor.
        figures: of drawing what one figure shows.
        neighbours: of looking for the nearest training images, which one figure shows.
    """

    def __init__(self, plan, cluster: ClusterConfig) -> None:
        self._plan, self._cluster = plan, cluster
        self._killed: set[frozenset[tuple[str, str]]] = set()
        self.most_memory: Callable[[], float] = lambda: math.inf
        self.training: dict[str, Callable] = {
            "runtime": lambda wildcards: cluster.minutes(self._asked(wildcards).training.hours),
            "mem_mb": self._training_memory,
            "nodes": lambda wildcards: plan.training(wildcards).nodes,
            "gpu": self._training_gpus,
            "gpu_model": lambda wildcards: cluster.gpu_model if self._training_gpus(wildcards) else None,
            "gres": self._training_gres,
            "mpi": lambda wildcards: "srun" if self._several_nodes(wildcards) else None,
            "tasks": self._tasks,
            "tasks_per_node": self._tasks_per_node,
        }
        self.sampling = self._on_one_node("sampling")
        self.scoring = self._on_one_node("scoring")
        self.figures = self.sampling | {"runtime": self._figure_minutes}
        self.neighbours = self.scoring | {"runtime": self._figure_minutes}

    def is_local(self, rule: str, wildcards) -> bool:
        """Whether a job runs next to `snakemake` because its experiment says so."""
        section = SECTIONS.get(rule, "training")
        return section != "training" and getattr(self._asked(wildcards), section).local

    def note_killed(self, wildcards) -> None:
        """Remember that a job was killed while it ran: its next attempt gets twice the memory."""
        self._killed.add(_key(wildcards))

    def _figure_minutes(self, wildcards) -> int:
        return self._cluster.minutes(self._asked(wildcards).figure_hours)

    def _asked(self, wildcards):
        return self._plan.experiment(wildcards).resources

    def _several_nodes(self, wildcards) -> bool:
        return self._plan.training(wildcards).nodes > 1

    def _training_memory(self, wildcards, attempt) -> int:
        once = round(self._asked(wildcards).training.memory_gb * MEGABYTES)
        # Whoever was killed may have run out of memory; one that was stopped by its wall time had enough.
        if attempt > 1 and any_killed(Path(self._plan.run_folder(wildcards))):
            return self._twice(once)
        return once

    def _twice(self, megabytes: int) -> int:
        return int(max(megabytes, min(2 * megabytes, self.most_memory())))

    def _gpus_per_node(self, wildcards) -> int:
        training, asked = self._plan.training(wildcards), self._asked(wildcards).training.gpus_per_node
        if asked is None:
            return 0 if training.device == "cpu" else training.processes_per_node
        return asked

    def _training_gpus(self, wildcards) -> int | None:
        return None if self._several_nodes(wildcards) else self._gpus_per_node(wildcards) or None

    def _training_gres(self, wildcards) -> str | None:
        # `gpu` is a number for the whole job, which a scheduler may spread unevenly over nodes; this is one for each.
        count = self._gpus_per_node(wildcards)
        if not count or not self._several_nodes(wildcards):
            return None
        return ":".join(["gpu", *([self._cluster.gpu_model] if self._cluster.gpu_model else []), str(count)])

    def _tasks_per_node(self, wildcards) -> int | None:
        each = self._plan.training(wildcards).processes_per_node
        return each if self._several_nodes(wildcards) and each > 1 else None

    def _tasks(self, wildcards) -> int | None:
        # The plugin takes tasks_per_node only above 1, and only one of the two.
        training = self._plan.training(wildcards)
        return training.processes if self._several_nodes(wildcards) and training.processes_per_node == 1 else None

    def _on_one_node(self, section: str) -> dict[str, Callable]:
        def asked(wildcards) -> JobResources:
            return getattr(self._asked(wildcards), section)

        def gpus(wildcards) -> int | None:
            count = asked(wildcards).gpus
            if count is None:
                # The extractor takes a GPU where there is one.
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
        }


def _key(wildcards) -> frozenset[tuple[str, str]]:
    return frozenset((name, str(value)) for name, value in wildcards.items())
