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
from udpm.config.model import Generator, ModelConfig, Process
from udpm.config.study import ClusterConfig, Study
from udpm.config.validation import list_configs

__all__ = [
    "ClusterConfig",
    "DatasetConfig",
    "Experiment",
    "Generator",
    "Latents",
    "ModelConfig",
    "Process",
    "RunConfig",
    "Sampling",
    "Scoring",
    "Study",
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
