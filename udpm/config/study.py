"""Targets of one workflow call, sweeps, and the resources that jobs request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from udpm.config.validation import NAME, NonNegativeInt, PositiveFloat, Section, Seed, WorkflowPath, check


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Word = Annotated[str, BeforeValidator(_number_as_text), Field(pattern=r"^[A-Za-z0-9_.@+-]+$")]
"""A name on a cluster, which may be a number."""


class JobResources(Section):
    """Resources of a job on one node."""

    hours: PositiveFloat = 4.0
    """Wall time."""
    memory_gb: PositiveFloat = 16.0
    """Main memory; doubled for a second attempt after the first was killed."""
    gpus: NonNegativeInt | None = None
    """GPUs; default: 1, or 0 where the section's device is cpu."""
    local: bool = False
    """Run where `snakemake` runs instead of as a SLURM job; for jobs of a few seconds."""


class TrainingResources(Section):
    """Resources of a training run; training.nodes and training.processes_per_node set its nodes and processes."""

    hours: PositiveFloat = 24.0
    """Wall time of the whole training. It runs as several jobs, one after another, if the partition allows less."""
    memory_gb: PositiveFloat = 32.0
    """Main memory on each node; doubled after an attempt that was killed."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs on each node, one for each process, or 0; default: according to training.device."""


class Resources(Section):
    """Resources that an experiment's jobs request. Results do not depend on them: change them at any time."""

    training: TrainingResources = TrainingResources()
    """Each job of a training run."""
    sampling: JobResources = JobResources()
    """A job that samples a set, or one shard of it."""
    scoring: JobResources = JobResources()
    """A job that extracts features or computes scores."""
    figure_hours: PositiveFloat = 0.5
    """Wall time of the data of one figure: latents, a denoising chain, the nearest training images."""


class ClusterConfig(Section):
    """``config/cluster.yaml``: a cluster's account, partition and limits. An environment variable overrides any key."""

    account: Word | None = None
    """Account to charge jobs to (sbatch -A); default: the scheduler's default. Or: UDPM_ACCOUNT."""
    partition: Word | None = None
    """Partition to submit jobs to (sbatch -p); default: the scheduler's default. Or: UDPM_PARTITION."""
    gpu_model: Annotated[str, BeforeValidator(_number_as_text), Field(pattern=r"^[A-Za-z0-9_.]+$")] | None = None
    """GPU type to request, as named by `sinfo -o %G` (gpu:a100:4 is a100); default: any. Or: UDPM_GPU_MODEL."""
    max_hours: PositiveFloat = 24.0
    """Time limit of the partition (sinfo -o %l); longer trainings run as several jobs. Or: UDPM_MAX_HOURS."""
    grace_seconds: Annotated[int, Field(ge=30)] = 120
    """Seconds before the time limit at which a training is signalled to save and stop. Or: UDPM_GRACE_SECONDS."""
    slurm_patience: PositiveFloat = 30.0
    """Minutes that a submission waits for an unresponsive SLURM. Or: UDPM_SLURM_PATIENCE."""
    # Snakemake puts it into a shell command as it is.
    container: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:@+-]+$")] = "envs/udpm.sif"
    """Image for `--sdm apptainer`: a file, or a URL such as docker://owner/name:tag. Or: UDPM_CONTAINER."""

    def minutes(self, hours: float) -> int:
        """Return the wall time in minutes of one job of a task that takes `hours`, within the partition's limit."""
        return max(1, math.ceil(min(hours, self.max_hours) * 60))


MOST_POINTS = 5000


class Axis(Section):
    """One axis of a grid: a key and its values, or named groups of keys that change together."""

    key: str | None = None
    """Key of the experiment, such as losses.adversarial_weight, or process.sigmas[3] for only the value of level 3."""
    values: list[Any] | dict[str, Any]
    """Values of the key: plain values, which serve as their names, or NAME: value. Without a key: NAME: {key: value,
    …}."""

    @check
    def _values_have_names(self) -> None:
        if not self.values:
            raise ValueError("values: empty; give at least one")
        for value in self.values if isinstance(self.values, list) else ():
            if self.key is None:
                raise ValueError("key: is missing; without it, values must be named groups, NAME: {key: value}")
            if isinstance(value, (list, dict)) or value is None:
                raise ValueError(f"values: {value!r} needs a name; write NAME: {value!r}")
        for name in self.labels:
            if not NAME.fullmatch(name):
                raise ValueError(f"values: {name!r} is not a valid name; use letters, digits, '.', '_' and '-'")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"values: duplicate value in {self.values}")
        for name, value in self.values.items() if isinstance(self.values, dict) and self.key is None else ():
            if not isinstance(value, dict):
                raise ValueError(f"values.{name}: must be {{key: value}} if the axis has no key, got {value!r}")

    @property
    def labels(self) -> list[str]:
        """Names of the values, which are parts of the points' names."""
        return [str(value).lower() if isinstance(value, bool) else str(value) for value in self.values]

    def changes(self, index: int) -> dict[str, Any]:
        """Return the keys and values that the value at `index` changes."""
        value = self.values[index] if isinstance(self.values, list) else list(self.values.values())[index]
        return value if self.key is None else {self.key: value}


class Sweep(Section):
    """One file of ``config/sweeps/``."""

    description: str = ""
    """One line for reports."""
    base: str
    """Experiment that the points change: a file in ``config/experiments/``."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    """Training seeds of every point; default: the base's. A point's `seeds` override them."""
    budget: dict[str, Any] = {}
    """Keys that make every run of the sweep short, such as training.iterations. A point may add its own `budget`. The
    best point is written out without it, at the base's length."""
    points: dict[str, dict[str, Any]] = {}
    """NAME: {key: value}, or {} for the base itself. Keys are dotted or nested; process.sigmas[3] is only the value of
    level 3."""
    grids: dict[str, dict[str, Axis]] = {}
    """NAME: {axis: {key, values}}. Every combination is a point; a grid of two axes is drawn as a heat map."""
    rank_by: Literal[
        "frechet_distance", "class_frechet_distance", "kernel_distance", "precision", "recall", "class_agreement"
    ] = "frechet_distance"
    """Metric to rank points by, averaged over seeds: distances in ascending order, the others in descending order."""
    multiply_adds_per_second: PositiveFloat = 2e13
    """Assumed speed of one device in training and sampling, for the plan's device-hours: half its FLOP/s."""

    @check
    def _names_can_be_used(self) -> None:
        if not (self.points or self.grids):
            raise ValueError("points: is missing; a sweep needs points or grids")
        named: dict[str, Iterable[str]] = {"points": self.points, "grids": self.grids}
        named |= {f"grids.{grid}": axes for grid, axes in self.grids.items()}
        for where, names in named.items():
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{where}: {name!r} is not a valid name; use letters, digits, '.', '_' and '-'")
        for grid, axes in self.grids.items():
            if not axes:
                raise ValueError(f"grids.{grid}: no axes; give at least one")
        sizes = [math.prod(len(axis.labels) for axis in axes.values()) for axes in self.grids.values()]
        count = len(self.points) + sum(sizes)
        if count > MOST_POINTS:
            raise ValueError(f"grids: {count} points, more than {MOST_POINTS}; split them into several sweeps")

    @property
    def heat_maps(self) -> list[str]:
        """Grids that are drawn as heat maps."""
        return [grid for grid, axes in self.grids.items() if len(axes) == 2]

    @property
    def falls(self) -> bool:
        """True if the greatest value is the best."""
        return not self.rank_by.endswith("distance")


def _one_or_many(value: Any) -> Any:
    if isinstance(value, str) and len(names := re.split(r"[,\s]+", value.strip())) > 1:
        raise PydanticCustomError("names", "list several names in brackets: [{names}]", {"names": ",".join(names)})
    return [value] if isinstance(value, str) else value


class Study(Section):
    """``config/config.yaml``; any key can be overridden with ``snakemake --config key=value``."""

    experiments: Annotated[list[str], BeforeValidator(_one_or_many), Field(min_length=1)]
    """Experiments to run: names of files in ``config/experiments/``, as a list or a single name."""
    sweep: str | None = None
    """Sweep that the targets `sweep` and `sweep_plan` build: a file in ``config/sweeps/``."""
    results: WorkflowPath = "results"
    """Folder for all output, relative to the folder in which `snakemake` is called."""
