"""What a call of the workflow builds, worked out from the configuration before any job starts."""

from __future__ import annotations

import hashlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from udpm.config import (
    DatasetConfig,
    Experiment,
    RunConfig,
    load_dataset,
    load_experiment,
    load_study,
    resolve_run,
    to_json,
)
from udpm.core.errors import EXIT_USER_ERROR, UserError
from udpm.core.published import INCEPTION
from udpm.training.claim import claim

CONFIG = "config"
RUN_FIGURES = ("samples", "chain", "curves")
YARDSTICKS = ("heldout", "noise")
LATENTS = ("perturb", "swap", "interpolate", "pca")


def one_line(function):
    """End with one line and code 2 on a mistake in the configuration."""

    def wrapped(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            # Not Snakemake's WorkflowError, which adds the lines of code that the mistake passed through.
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)

    return wrapped


class Plan:
    """The experiments that are asked for, their seeds and data sets.

    Args:
        config: Snakemake's merged configuration.

    Raises:
        SystemExit: a mistake, told in one line that names file, key and what would be right; code 2.
    """

    @one_line
    def __init__(self, config: dict[str, Any]) -> None:
        study = load_study(config, f"{CONFIG}/config.yaml (or --config)")
        self.results = study.results
        self.experiments = {name: load_experiment(name, CONFIG) for name in study.experiments}
        for name, seed in self.runs():
            self._check(name, seed)
        self.any_experiment = _any_of(self.experiments)
        self.any_imported = _any_of(name for name in self.experiments if self.is_imported(name))
        self.any_trained = _any_of(name for name in self.experiments if not self.is_imported(name))
        self.any_inception_folder = _any_of(
            experiment.scoring.inception_folder
            for experiment in self.experiments.values()
            if experiment.scoring.extractor == "inception"
        )
        self.any_dataset = _any_of(experiment.dataset for experiment in self.experiments.values())

    def _check(self, name: str, seed: int) -> None:
        """Find before any job starts what would stop one, or cost a finished run its files."""
        run, experiment = self.run(name, seed), self.experiments[name]
        # Snakemake removes a job's outputs before it runs it again: training's refusal would come too late for them.
        claim(Path(self.results) / "runs" / name / f"seed{seed}", run, False, writes=False)
        for key, file in (("weights", experiment.weights), ("sampling.noise", experiment.sampling.noise)):
            if file is not None and not Path(file).exists():
                raise UserError(f"{CONFIG}/experiments/{name}.yaml: {key}: {file} is not there")
        if not self.is_imported(name) and experiment.training.nodes > 1:
            raise UserError(
                f"{CONFIG}/experiments/{name}.yaml: training.nodes: the workflow starts processes on one node; start "
                "this run by srun -n N udpm train (docs/training.md)"
            )

    def runs(self) -> list[tuple[str, int]]:
        """(experiment, seed) of every training run."""
        return [(name, seed) for name, experiment in self.experiments.items() for seed in experiment.seeds]

    def is_imported(self, name: str) -> bool:
        """Whether an experiment takes given weights in the place of training."""
        return self.experiments[name].training == "imported"

    def given_weights(self, wildcards) -> list[str]:
        """The weights that a run starts from or consists of, as an input."""
        weights = self.experiment(wildcards).weights
        return [] if weights is None else [weights]

    def experiment(self, wildcards) -> Experiment:
        """The experiment that a job belongs to."""
        return self.experiments[wildcards.experiment]

    @cache  # noqa: B019 - one plan lives as long as the process
    def run(self, name: str, seed: int) -> RunConfig:
        """A run's resolved configuration."""
        return resolve_run(name, seed, CONFIG)

    def training(self, wildcards):
        """The training section of a job's run."""
        return self.run(wildcards.experiment, int(wildcards.seed)).training

    def training_command(self, wildcards) -> str:
        """How a run is started: as one process, or as several on one node."""
        processes = self.training(wildcards).processes_per_node
        return "udpm" if processes == 1 else f"ranks {processes}"

    def training_threads(self, wildcards) -> int:
        """CPU threads of all processes of a run on one node."""
        training = self.training(wildcards)
        return training.processes_per_node * training.threads

    def run_digest(self, wildcards) -> str:
        """Identity of a run's resolved configuration: the run's file is rewritten when it changes."""
        run = self.run(wildcards.experiment, int(wildcards.seed))
        return _digest(run.model_copy(update={"dataset": _silent(run.dataset)}))

    def section_digest(self, wildcards) -> str:
        """Identity of an experiment's sampling, scoring or latents section."""
        return _digest(getattr(self.experiment(wildcards), wildcards.section))

    def model_digests(self, _wildcards) -> list[str]:
        """Identities of what the experiments' networks are built from: a count of them changes with these."""
        runs = [self.run(name, experiment.seeds[0]) for name, experiment in self.experiments.items()]
        parts = [part for run in runs for part in (run.model, run.discriminator if run.adversarial else None)]
        return [_digest(part) for part in parts if part is not None]

    def dataset_digest(self, wildcards) -> str:
        """Identity of a data set's configuration."""
        return _digest(_silent(load_dataset(wildcards.dataset, CONFIG)))

    def preparation_workers(self, wildcards) -> int:
        """Cores that preparing a data set is given: as many as its configuration has workers, else one."""
        return load_dataset(wildcards.dataset, CONFIG).workers or 1

    def dataset(self, wildcards) -> str:
        """Folder of the prepared data set that a job reads."""
        return f"{self.results}/datasets/{self.experiment(wildcards).dataset}"

    def cache(self, wildcards) -> str:
        """Folder of the level cache that a job reads."""
        return f"{self.results}/caches/{self.experiment(wildcards).dataset}"

    def extractor(self, wildcards) -> str:
        """The TorchScript file of the feature extractor that an experiment is scored with."""
        experiment = self.experiment(wildcards)
        scoring = experiment.scoring
        files = {
            "digits": f"{self.results}/extractors/{experiment.dataset}.pt",
            "inception": f"{scoring.inception_folder}/{INCEPTION.name}",
        }
        return files.get(scoring.extractor, scoring.extractor)

    def made_extractor(self, wildcards) -> list[str]:
        """The extractor as an input, where the workflow itself makes or fetches it."""
        made = self.experiment(wildcards).scoring.extractor in ("digits", "inception")
        return [self.extractor(wildcards)] if made or Path(self.extractor(wildcards)).exists() else []

    def inception_options(self, wildcards) -> str:
        """How `udpm fetch` gets the Inception weights of a folder, or only looks at them."""
        scoring = next(
            experiment.scoring
            for experiment in self.experiments.values()
            if experiment.scoring.inception_folder == wildcards.folder
        )
        return f"--sha256 {scoring.inception_sha256}" + ("" if scoring.download else " --offline")

    def latent_options(self, wildcards) -> str:
        """How the latents of a run are decoded, as `udpm latents` takes it: as its samples are."""
        sampling = self.experiment(wildcards).sampling
        keys = ("weights", "iteration", "posterior", "guidance", "batch", "device", "threads")
        values = {key: getattr(sampling, key) for key in keys}
        return " ".join(f"--{key} {value}" for key, value in values.items() if value is not None)

    def scores(self) -> list[str]:
        """All score files: runs and yardsticks."""
        runs = [f"{name}/seed{seed}" for name, seed in self.runs()]
        yardsticks = [f"{name}/{kind}" for name in self.experiments for kind in self.yardsticks(name)]
        return [f"{self.results}/scores/{subject}.json" for subject in runs + yardsticks]

    @one_line
    def yardsticks(self, name: str) -> tuple[str, ...]:
        """Yardsticks that can be measured beside an experiment: held-out images need a test split."""
        dataset = load_dataset(self.experiments[name].dataset, CONFIG)
        split = dataset.holdout or dataset.source == "cifar10" or dataset.expected_test_count
        return YARDSTICKS if split else YARDSTICKS[1:]

    def figures(self) -> list[str]:
        """All figures, as png."""
        schedules = [f"{name}/schedule" for name in self.experiments]
        runs = [f"{name}/seed{seed}/{kind}" for name, seed in self.runs() for kind in self._figure_kinds(name)]
        return [f"{self.results}/figures/{figure}.png" for figure in schedules + runs]

    def _figure_kinds(self, name: str) -> list[str]:
        figures = [figure for figure in RUN_FIGURES if figure != "curves" or not self.is_imported(name)]
        return [*figures, *(f"latents_{kind}" for kind in LATENTS)]

    def exported(self) -> list[str]:
        """Folders of image files, where an experiment asks for them."""
        wanted = [(name, seed) for name, seed in self.runs() if self.experiments[name].sampling.images != "none"]
        return [f"{self.results}/images/{name}/seed{seed}" for name, seed in wanted]

    def targets(self) -> list[str]:
        """What `all` asks for."""
        return [f"{self.results}/tables/scores.csv", *self.figures(), *self.exported()]


def _silent(dataset: DatasetConfig) -> DatasetConfig:
    """A data set without its words, which nothing is made from."""
    return dataset.model_copy(update=dict.fromkeys(("description", "licence", "obtain"), ""))


def _digest(model) -> str:
    return hashlib.sha256(to_json(model).encode()).hexdigest()[:16]


def _any_of(names) -> str:
    # Of no names at all: what no text matches.
    return "|".join(sorted({re.escape(name) for name in names})) or "(?!)"
