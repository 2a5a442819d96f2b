"""What a call of the workflow builds, worked out from the configuration before any job starts."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from arguments import Arguments
from known import Known, look_at
from pydantic import BaseModel
from sweeps import SweepPlan

from udpm.config import (
    DatasetConfig,
    Experiment,
    RunConfig,
    load_cluster,
    load_dataset,
    load_experiment,
    load_study,
    names_in,
    place_of,
    read_resolved,
    run_of,
    to_json,
)
from udpm.core.classes import class_number
from udpm.core.download import INCEPTION
from udpm.core.errors import EXIT_USER_ERROR, UserError
from udpm.runs.config_guard import MUTABLE_KEYS, differences, mutable_keys
from udpm.runs.records import COMPLETE, read_complete

CONFIG = "config"
RUN_FIGURES = ("samples", "chain", "neighbours", "curves")
YARDSTICKS = ("heldout", "noise")
LATENTS = ("perturb", "swap", "interpolate", "pca")


def one_line(function):
    """End with one line and code 2 on a mistake in the configuration."""

    def wrapped(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            # Not Snakemake's WorkflowError, which adds the lines of code that the mistake passed through.
            print("\n".join(f"error: {mistake}" for mistake in error.mistakes), file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)

    return wrapped


class Plan:
    """The experiments that are asked for, their seeds and data sets.

    Args:
        config: Snakemake's merged configuration.
        on_slurm: whether jobs go to SLURM.

    Attributes:
        finished: runs that there is nothing to train for, once somebody has looked.

    Raises:
        SystemExit: a mistake, told in one line that names file, key and what would be right; code 2.
    """

    @one_line
    def __init__(self, config: dict[str, Any], on_slurm: bool) -> None:
        where = f"{CONFIG}/config.yaml (or --config)"
        study = load_study(config, where)
        if Path(study.results).exists() and not Path(study.results).is_dir():
            raise UserError(f"{where}: results: {study.results} is not a folder")
        self.cluster, self._on_slurm = load_cluster(CONFIG), on_slurm
        self.results = study.results
        self.experiments = {name: load_experiment(name, CONFIG) for name in study.experiments}
        self.sweep = SweepPlan(study.sweep, CONFIG, study.results) if study.sweep else None
        # A sweep's points are experiments like any other, but the targets `all` and `figures` leave them out.
        self.finished: set[tuple[str, int]] = set()
        self.known = self.experiments | (self.sweep.experiments if self.sweep else {})
        for name, seed in self.runs():
            self._check(name, seed)
        if self.sweep:
            self.sweep.check(self._check)
        self.any_experiment = self._any_known(lambda name: True)
        self.any_imported = self._any_known(self.is_imported)
        self.any_trained = self._any_known(lambda name: not self.is_imported(name))
        self.any_sharded = self._any_known(lambda name: self.known[name].sampling.shards > 1)
        self.any_whole = self._any_known(lambda name: self.known[name].sampling.shards == 1)
        scored = self.sweep.scored if self.sweep else {}
        self.any_published = self._any_known(
            lambda name: self._scoring(name, "reference") is not None and scored.get(name, name) == name
        )
        self.any_scored = self._any_known(self.is_scored)
        self.any_dataset = _any_of(experiment.dataset for experiment in self.known.values())

    def _any_known(self, wanted: Callable[[str], bool]) -> str:
        """A pattern for the names of all experiments that are wanted."""
        names = [name for name in self.known if wanted(name)]
        points = set(self.sweep.loaded.points) if self.sweep else set()
        if not points or not points.issubset(names):
            return _any_of(names)
        # Not a choice of all names: matching a thousand of them takes Snakemake half of its time.
        return "|".join(filter(None, (_any_of(set(names) - points, none=""), self.sweep.any_point)))

    def _check(self, name: str, seed: int) -> None:
        """Find before any job starts what would stop one."""
        self.run(name, seed)
        experiment = self.known[name]
        self._check_files(name)
        self._check_labels(name)
        self._check_milestones(name, seed)
        if not self.is_imported(name) and experiment.training.nodes > 1 and not self._on_slurm:
            raise UserError(
                f"{place_of(name, CONFIG)}: training.nodes: several nodes need a scheduler: snakemake --profile slurm"
            )

    def _check_files(self, name: str) -> None:
        """All files that an experiment names, and nothing makes, are there."""
        experiment = self.known[name]
        given = {
            "weights": experiment.weights,
            "sampling.noise": experiment.sampling.noise,
            "scoring.reference": self._scoring(name, "reference"),
        }
        extractor = self._scoring(name, "extractor")
        if extractor == "inception" and not experiment.scoring.download:
            given["scoring.download: false, but scoring.inception_folder"] = self.extractor_file(name)
        elif extractor not in ("digits", "inception"):
            given["scoring.extractor"] = extractor
        for key, file in given.items():
            if file is not None and not Path(file).exists():
                raise UserError(f"{place_of(name, CONFIG)}: {key}: {file} is not there")

    def _check_milestones(self, name: str, seed: int) -> None:
        """Milestones to choose from that a finished run should have kept are there, or what was made of them is."""
        run, made = (Path(self.results) / kind / name / f"seed{seed}" for kind in ("runs", "selection"))
        wanted = self.known[name].candidates
        if not wanted or not (run / COMPLETE).exists():
            return
        done = read_complete(run).get("iterations") or 0
        for iteration in (iteration for iteration in wanted if iteration <= done):
            kept = run / "milestones" / f"{iteration:09d}.safetensors"
            found = (kept, made / f"samples/{iteration}.npz", made / f"scores/{iteration}.json")
            if not any(path.exists() for path in found):
                raise UserError(
                    f"{place_of(name, CONFIG)}: selection: {run} is finished, but {kept} is not there; leave selection "
                    "out, or give the experiment a new name, so that it is trained again and keeps milestones"
                )

    def _check_labels(self, name: str) -> None:
        """Classes that are asked for by name are the data set's, where its names are known."""
        experiment = self.known[name]
        for key, labels in (("sampling", experiment.sampling.labels), ("latents", experiment.latents.labels)):
            if isinstance(labels, list) and any(isinstance(label, str) for label in labels):
                names = self._known_of(experiment.dataset).class_names
                for label in labels if names else []:
                    class_number(label, names, len(names), f"{place_of(name, CONFIG)}: {key}.labels")

    @one_line
    def check_given(self, given: Iterable[str]) -> None:
        """Find out before any job is submitted whether the jobs would get what ``--config`` says.

        Args:
            given: its KEY=VALUE. Snakemake gives them to the shell of a node as Python writes them, which a shell reads
                as they are only where nothing has to be escaped.
        """
        for text in given:
            if repr(text) != f"'{text}'":
                where = f"put it into {CONFIG}/config.yaml"
                raise UserError(f"--config {text!r}: jobs on nodes would not get this value as it is; {where}")

    def runs(self) -> list[tuple[str, int]]:
        """(experiment, seed) of every training run."""
        return [(name, seed) for name, experiment in self.experiments.items() for seed in experiment.seeds]

    def is_imported(self, name: str) -> bool:
        """Whether an experiment takes given weights in the place of training."""
        return self.known[name].training == "imported"

    def is_scored(self, name: str) -> bool:
        """Whether an experiment's images are scored."""
        return self.known[name].scoring is not None

    def _scoring(self, name: str, key: str) -> Any:
        """A value of an experiment's scoring; None where nothing is scored."""
        return getattr(self.known[name].scoring, key, None)

    def given_weights(self, wildcards) -> list[str]:
        """The weights that a run starts from or consists of, as an input."""
        weights = self.experiment(wildcards).weights
        return [] if weights is None else [weights]

    def given_noise(self, wildcards) -> list[str]:
        """The noise that a run's samples start from, as an input, where it is a file's."""
        noise = self.experiment(wildcards).sampling.noise
        return [] if noise is None else [noise]

    def experiment(self, wildcards) -> Experiment:
        """The experiment that a job belongs to."""
        return self.known[wildcards.experiment]

    @cache  # noqa: B019 - one plan lives as long as the process
    def run(self, name: str, seed: int) -> RunConfig:
        """A run's resolved configuration."""
        if self.sweep and (name, seed) in self.sweep.runs:
            return self.sweep.runs[name, seed]
        experiment = self.known[name]
        return run_of(experiment, name, seed, self.dataset_config(experiment.dataset), place_of(name, CONFIG))

    @cache  # noqa: B019
    def _known_of(self, dataset: str) -> Known:
        """What is known of a data set before any job starts."""
        return look_at(self.dataset_config(dataset), Path(self.results) / "datasets" / dataset)

    @cache  # noqa: B019
    def dataset_config(self, name: str) -> DatasetConfig:
        """A data set's configuration."""
        return load_dataset(name, CONFIG)

    def weights(self, wildcards) -> str:
        """The weights that a job samples."""
        name = self.trained_as(wildcards.experiment, int(wildcards.seed))
        return f"{self.results}/runs/{name}/seed{wildcards.seed}/weights.safetensors"

    def trained_as(self, name: str, seed: int) -> str:
        """Points of a sweep that differ only in what comes after training share a run."""
        return self.sweep.trained.get((name, seed), name) if self.sweep else name

    def samples(self, wildcards) -> list[str]:
        """The files of a run's sample set, as inputs."""
        stem = f"{self.results}/samples/{wildcards.experiment}/seed{wildcards.seed}"
        if not self.shards(wildcards):
            return [f"{stem}.npz", f"{stem}.json"]
        return [f"{stem}.json", *self.shards(wildcards)]

    def sample_set(self, wildcards) -> str:
        """What commands are given of them: the images, or the record of shards."""
        return self.samples(wildcards)[0]

    def shards(self, wildcards) -> list[str]:
        """The shards of a run's sample set, where it is drawn in several."""
        count = self.experiment(wildcards).sampling.shards
        stem = f"{self.results}/samples/{wildcards.experiment}/seed{wildcards.seed}"
        return [f"{stem}_{index}of{count}.npz" for index in range(1, count + 1)] if count > 1 else []

    def reference(self, wildcards) -> str:
        """What a job's images are scored against."""
        return f"{self.results}/references/{self._scored_as(wildcards)}.npz"

    def scoring(self, wildcards) -> str:
        """How a job's images are scored: its resolved configuration."""
        return f"{self.results}/configs/{self._scored_as(wildcards)}/scoring.json"

    def _scored_as(self, wildcards) -> str:
        """A sweep's points are scored as its base is, where they say nothing else, and share its reference."""
        name = wildcards.experiment
        return self.sweep.scored.get(name, name) if self.sweep else name

    def run_config(self, wildcards) -> str:
        """A run's resolved configuration."""
        return f"{self.results}/configs/{wildcards.experiment}/seed{wildcards.seed}.json"

    def training_inputs(self, wildcards, forced: bool) -> dict[str, str | list[str]]:
        """What a training reads; nothing where it is finished, so that nothing but force starts it again."""
        if not forced and (wildcards.experiment, int(wildcards.seed)) in self.finished:
            return {}
        return {
            "config": self.run_config(wildcards),
            "dataset": f"{self.dataset(wildcards)}/dataset.json",
            "cache": f"{self.cache(wildcards)}/cache.json",
            "start": self.given_weights(wildcards),
        }

    def training(self, wildcards):
        """The training section of a job's run."""
        return self.run(wildcards.experiment, int(wildcards.seed)).training

    def run_folder(self, wildcards) -> str:
        """Folder of a job's run."""
        return f"{self.results}/runs/{wildcards.experiment}/seed{wildcards.seed}"

    def training_command(self, wildcards) -> Arguments:
        """How a run is started: as one process, as several on one node, or on several nodes."""
        training = self.training(wildcards)
        if training.nodes > 1:
            threads = training.threads + training.workers
            return Arguments("tasks", training.nodes, training.processes_per_node, threads)
        return Arguments("udpm") if training.processes == 1 else Arguments("ranks", training.processes)

    def training_threads(self, wildcards) -> int:
        """CPU threads of a run: of all its processes on one node, or of one of those on several."""
        training = self.training(wildcards)
        each = training.threads + training.workers
        return each if training.nodes > 1 else training.processes_per_node * each

    def is_resolved(self, path: str) -> bool | None:
        """Whether a file holds the resolved configuration that is wanted, but for keys that nothing is made from.

        Returns:
            None of a file that is no such configuration, or not there.
        """
        wanted = self._resolved(path)
        if wanted is None or not Path(path).is_file():
            return None
        try:
            if Path(path).read_bytes() == to_json(wanted).encode():
                return True
            earlier = read_resolved(type(wanted), path)
        except (OSError, UserError):
            return False
        free = MUTABLE_KEYS if isinstance(wanted, RunConfig) else set()
        return not differences(earlier, wanted, mutable_keys("dataset") if isinstance(wanted, DatasetConfig) else free)

    def _resolved(self, path: str) -> BaseModel | None:
        """The configuration that belongs into a file of results."""
        folder, _, name = path.removeprefix(f"{self.results}/configs/").removesuffix(".json").rpartition("/")
        if not path.startswith(f"{self.results}/configs/") or "/" in folder:
            return None
        if folder == "datasets":
            return self.dataset_config(name)
        if name.startswith("seed"):
            return self.run(folder, int(name.removeprefix("seed")))
        return getattr(self.known[folder], name)

    def model_digests(self, _wildcards) -> list[str]:
        """Identities of what the experiments' networks are built from: a count of them changes with these."""
        runs = [self.run(name, experiment.seeds[0]) for name, experiment in self.experiments.items()]
        parts = [part for run in runs for part in (run.model, run.discriminator if run.adversarial else None)]
        return [_digest(part) for part in parts if part is not None]

    def preparation_workers(self, wildcards) -> int:
        """Cores that preparing a data set is given: as many as its configuration has workers, else one."""
        return self.dataset_config(wildcards.dataset).workers or 1

    def dataset(self, wildcards) -> str:
        """Folder of the prepared data set that a job reads."""
        return f"{self.results}/datasets/{self.experiment(wildcards).dataset}"

    def cache(self, wildcards) -> str:
        """Folder of the level cache that a job reads."""
        return f"{self.results}/caches/{self.experiment(wildcards).dataset}"

    def extractor(self, wildcards) -> str:
        """The TorchScript file of the feature extractor that a job's images are scored with."""
        return self.extractor_file(wildcards.experiment)

    def extractor_file(self, name: str) -> str:
        """The TorchScript file of the feature extractor that an experiment is scored with."""
        experiment = self.known[name]
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

    def inception_folders(self) -> dict[str, Arguments]:
        """Folders that hold the Inception weights, and how `udpm fetch` gets these, or only looks at them."""
        folders: dict[str, Arguments] = {}
        for name in self.known:
            scoring = self.known[name].scoring
            if self._scoring(name, "extractor") == "inception":
                offline = [] if scoring.download else ["--offline"]
                folders.setdefault(scoring.inception_folder, Arguments("--sha256", scoring.inception_sha256, *offline))
        return folders

    def yardstick_options(self, wildcards) -> Arguments:
        """Which yardstick `udpm score` measures."""
        if wildcards.yardstick == "heldout":
            return Arguments("--heldout")
        return Arguments("--noise", self.experiment(wildcards).sampling.count)

    def latent_options(self, wildcards) -> Arguments:
        """How the latents of a run are decoded, as `udpm latents` takes it: as its samples are."""
        sampling = self.experiment(wildcards).sampling
        keys = ("weights", "iteration", "posterior", "guidance", "batch", "device", "precision", "threads")
        given = {key: getattr(sampling, key) for key in keys if getattr(sampling, key) is not None}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        return Arguments(*words, *["--tf32"] * sampling.tf32)

    def scores(self) -> list[str]:
        """All score files: runs and yardsticks."""
        runs = [f"{name}/seed{seed}" for name, seed in self.runs() if self.is_scored(name)]
        best = [f"{name}/seed{seed}_best" for name, seed in self.runs() if self.experiments[name].candidates]
        yardsticks = [f"{name}/{kind}" for name in self.experiments for kind in self.yardsticks(name)]
        return [f"{self.results}/scores/{subject}.json" for subject in runs + best + yardsticks]

    def milestone_scores(self, wildcards) -> list[str]:
        """Scores of the milestones that a run's best is chosen from."""
        folder = f"{self.results}/selection/{wildcards.experiment}/seed{wildcards.seed}/scores"
        return [f"{folder}/{iteration}.json" for iteration in self.experiment(wildcards).candidates]

    @one_line
    def yardsticks(self, name: str) -> tuple[str, ...]:
        """Yardsticks that can be measured beside an experiment: held-out images need a test split."""
        if not self.is_scored(name):
            return ()
        return YARDSTICKS if self._known_of(self.experiments[name].dataset).has_test else YARDSTICKS[1:]

    @one_line
    def tell(self) -> None:
        """Say which data sets give no held-out floor, and why."""
        for dataset in sorted({self.experiments[name].dataset for name in self.experiments if self.is_scored(name)}):
            has_test = self._known_of(dataset).has_test
            if has_test is None:
                why = "its images were not found; they are looked up again when snakemake is next called"
            elif not has_test:
                why = "it has no test split; holdout: N keeps N images out of training"
            else:
                continue
            print(f"note: data set {dataset}: no held-out floor is scored: {why}", file=sys.stderr)

    def figures(self) -> list[str]:
        """All figures, as png."""
        schedules = [f"{name}/{kind}" for name in self.experiments for kind in ("schedule", "forward")]
        runs = [f"{name}/seed{seed}/{kind}" for name, seed in self.runs() for kind in self._figure_kinds(name)]
        return [f"{self.results}/figures/{figure}.png" for figure in schedules + runs]

    def _figure_kinds(self, name: str) -> list[str]:
        left = {"curves": self.is_imported(name), "neighbours": not self.is_scored(name)}
        figures = [figure for figure in RUN_FIGURES if not left.get(figure)]
        if self.experiments[name].candidates:
            figures.append("selection")
        return [*figures, *(f"latents_{kind}" for kind in LATENTS)]

    def exported(self) -> list[str]:
        """Folders of image files, where an experiment asks for them."""
        wanted = [(name, seed) for name, seed in self.runs() if self.experiments[name].sampling.images != "none"]
        return [f"{self.results}/images/{name}/seed{seed}" for name, seed in wanted]

    @one_line
    def sweep_targets(self, target: str, tells: bool) -> list[str]:
        """What `sweep` and `sweep_plan` ask for; if it tells, where the points stand is printed."""
        if self.sweep is None:
            there = ", ".join(names_in(f"{CONFIG}/sweeps"))
            raise UserError(f"sweep: is missing; snakemake {target} --config sweep=NAME, of: {there}")
        if tells:
            self.sweep.tell()
        return self.sweep.targets() if target == "sweep" else self.sweep.plan_targets()

    def targets(self) -> list[str]:
        """What `all` asks for."""
        table = [f"{self.results}/tables/scores.csv"] if self.scores() else []
        return [*table, *self.figures(), *self.exported()]


def _digest(model) -> str:
    return hashlib.sha256(to_json(model).encode()).hexdigest()[:16]


def _any_of(names, none: str = "(?!)") -> str:
    # Of no names at all: what no text matches.
    return "|".join(sorted({re.escape(name) for name in names})) or none
