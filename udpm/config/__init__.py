"""Typed, strict configuration. Imports no torch.

`load_study`, `load_experiment` and `load_dataset` read what a user writes (``config/``); `resolve_*` turn it into the
small, complete JSON files that commands read.
"""

from udpm.config.dataset import DatasetConfig
from udpm.config.evaluation import Latents, Sampling, Scoring
from udpm.config.experiment import Experiment, RunConfig
from udpm.config.load import (
    load_cluster,
    load_dataset,
    load_experiment,
    load_study,
    load_sweep,
    read_resolved,
    resolve_run,
    run_config,
    source_file,
    to_json,
)
from udpm.config.model import Discriminator, Generator, ModelConfig, Process
from udpm.config.points import LoadedSweep, Point, Resolved
from udpm.config.study import ClusterConfig, Study, Sweep
from udpm.config.training import Losses, Training
from udpm.config.validation import list_configs

__all__ = [
    "ClusterConfig",
    "DatasetConfig",
    "Discriminator",
    "Experiment",
    "Generator",
    "Latents",
    "LoadedSweep",
    "Losses",
    "ModelConfig",
    "Point",
    "Process",
    "Resolved",
    "RunConfig",
    "Sampling",
    "Scoring",
    "Study",
    "Sweep",
    "Training",
    "list_configs",
    "load_cluster",
    "load_dataset",
    "load_experiment",
    "load_study",
    "load_sweep",
    "read_resolved",
    "resolve_run",
    "run_config",
    "source_file",
    "to_json",
]
