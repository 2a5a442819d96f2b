"""What jobs ask a cluster's scheduler for, and what it grants."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from udpm.config.validation import NonNegativeInt, PositiveFloat, Section


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Word = Annotated[str, BeforeValidator(_number_as_text), Field(pattern=r"^[A-Za-z0-9_.@+-]+$")]
"""A name on a cluster; some are numbers."""


class JobResources(Section):
    """Of one job that runs on one node."""

    hours: PositiveFloat = 4.0
    """Wall time."""
    memory_gb: PositiveFloat = 16.0
    """Main memory; twice as much at a second attempt, after one that was killed."""
    gpus: NonNegativeInt | None = None
    """GPUs; default: 1, or 0 where the section's device is cpu."""
    local: bool = False
    """Run where `snakemake` runs, not as a SLURM job: for jobs of seconds."""


class TrainingResources(Section):
    """Of a training run. How many nodes and processes it takes is training.nodes and training.processes_per_node."""

    hours: PositiveFloat = 24.0
    """Wall time of the whole training. Where a partition grants less, several jobs do it, one after the other."""
    memory_gb: PositiveFloat = 32.0
    """Main memory on each node; twice as much after an attempt that was killed."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs on each node, one for each process, or 0; default: as training.device says."""


class Resources(Section):
    """What the jobs of an experiment ask a cluster for. No result depends on it: it may change at any time."""

    training: TrainingResources = TrainingResources()
    """Of each job of a training run."""
    sampling: JobResources = JobResources()
    """Of drawing a sample set, or one shard of it."""
    scoring: JobResources = JobResources()
    """Of a pass of the feature extractor, and of a score."""
    figure_hours: PositiveFloat = 0.5
    """Wall time of what one figure shows: latents, a denoising chain, the nearest training images."""


class ClusterConfig(Section):
    """``config/cluster.yaml``: what a cluster grants, and to whom. Any key can be given by environment instead."""

    account: Word | None = None
    """Account that jobs are charged to (sbatch -A); default: the scheduler's own. Or: UDPM_ACCOUNT."""
    partition: Word | None = None
    """Partition that jobs are sent to (sbatch -p); default: the scheduler's own. Or: UDPM_PARTITION."""
    gpu_model: Annotated[str, BeforeValidator(_number_as_text), Field(pattern=r"^[A-Za-z0-9_.]+$")] | None = None
    """Type of GPU to ask for, as `sinfo -o %G` names it (gpu:a100:4 is a100); default: any. Or: UDPM_GPU_MODEL."""
    max_hours: PositiveFloat = 24.0
    """Longest job that the partition takes (sinfo -o %l); longer trainings take several. Or: UDPM_MAX_HOURS."""
    grace_seconds: Annotated[int, Field(ge=30)] = 120
    """A training is told to save so long before its time is up. Or: UDPM_GRACE_SECONDS."""
    slurm_patience: PositiveFloat = 30.0
    """Minutes that a submission waits for a SLURM that does not answer. Or: UDPM_SLURM_PATIENCE."""

    def minutes(self, hours: float) -> int:
        """Wall time of one job of something that takes `hours`."""
        return max(1, math.ceil(min(hours, self.max_hours) * 60))
