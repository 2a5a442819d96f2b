"""Typed, strict configuration. Imports no torch.

`load_study`, `load_experiment` and `load_dataset` read what a user writes (``config/``); `resolve_*` turn it into the
small, complete JSON files that commands read.
"""

from udpm.config.dataset import DatasetConfig
from udpm.config.experiment import (
    Discriminator,
    Experiment,
    Latents,
    Losses,
    RunConfig,
    Sampling,
    Scoring,
    Training,
)
from udpm.config.load import (
    load_dataset,
    load_experiment,
    load_study,
    names_in,
    read_resolved,
    resolve_run,
    to_json,
)
from udpm.config.model import Generator, ModelConfig, Process
from udpm.config.study import Study

__all__ = [
    "DatasetConfig",
    "Discriminator",
    "Experiment",
    "Generator",
    "Latents",
    "Losses",
    "ModelConfig",
    "Process",
    "RunConfig",
    "Sampling",
    "Scoring",
    "Study",
    "Training",
    "load_dataset",
    "load_experiment",
    "load_study",
    "names_in",
    "read_resolved",
    "resolve_run",
    "to_json",
]
