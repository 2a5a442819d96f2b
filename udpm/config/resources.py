"""Resources that jobs request from a cluster's scheduler, and its limits."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from udpm.config.validation import NonNegativeInt, PositiveFloat, Section


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

    def minutes(self, hours: float) -> int:
        """Return the wall time in minutes of one job of a task that takes `hours`, within the partition's limit."""
        return max(1, math.ceil(min(hours, self.max_hours) * 60))
