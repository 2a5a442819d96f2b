"""The experiments of one call of the workflow, resolved and checked before any job starts."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache, wraps
from pathlib import Path
from typing import Any

from dataset_facts import DatasetFacts, look_up

from udpm.config import (
    DatasetConfig,
    Experiment,
    RunConfig,
    load_cluster,
    load_dataset,
    load_experiment,
    load_study,
    load_sweep,
    read_resolved,
    run_config,
    source_file,
    to_json,
)
from udpm.config.dataset import class_number
from udpm.config.evaluation import NAMED_EXTRACTORS, Scoring
from udpm.config.validation import SHORT, Section
from udpm.core.errors import EXIT_USER_ERROR, UserError
from udpm.core.files import lite0_path
from udpm.runs.config_guard import MUTABLE_KEYS, differences, mutable_keys
from udpm.runs.layout import Layout, milestone, suffix_of
from udpm.runs.records import COMPLETE, read_complete
from udpm.runs.status import trained_points

CONFIG = "config"
BASELINES = ("heldout", "noise")


def one_line(function):
    """Make a function report a UserError in one line and end the process with code 2."""

    @wraps(function)
    def wrapped(*arguments, **options):
        try:
            return function(*arguments, **options)
        except UserError as error:
            # Snakemake's WorkflowError would add lines of code.
            print("\n".join(f"error: {mistake}" for mistake in error.mistakes), file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)

    return wrapped


class Experiments:
    """The experiments to run, their seeds and data sets.

    Args:
        config: Snakemake's merged configuration.
        has_scheduler: whether jobs go to a scheduler.
        contained: whether jobs run in a container.

    Attributes:
        layout: paths below the folder of results.
        experiments: by name.
        known: these, and the points of the sweep.
        finished: (experiment, seed) of runs that need no more training; filled by `Existing`.

    Raises:
        SystemExit: the configuration is invalid; code 2.
    """

    @one_line
    def __init__(self, config: dict[str, Any], has_scheduler: bool, contained: bool = False) -> None:
        where = f"{CONFIG}/config.yaml (or --config)"
        study = load_study(config, where)
        _check_folder(study.results, where)
        self.cluster, self._has_scheduler, self._contained = load_cluster(CONFIG), has_scheduler, contained
        self.results, self.layout = study.results, Layout(study.results)
        self.experiments = {name: load_experiment(name, CONFIG) for name in study.experiments}
        self.sweep = Sweep(study.sweep, study.results) if study.sweep else None
        self.finished: set[tuple[str, int]] = set()
        # Rules treat points as experiments; the targets `all` and `figures` leave them out.
        self.known = self.experiments | (self.sweep.experiments if self.sweep else {})
        self.each_run(self._check)
        image = Path(self.cluster.container)
        if contained and "://" not in self.cluster.container and not image.is_file():
            raise UserError(f"{CONFIG}/cluster.yaml: container: {image} not found; build it from envs/apptainer.def")

    def each_run(self, check: Callable[[str, int], None]) -> None:
        """Call a check, which raises UserError, with experiment and seed of all runs, the sweep's included."""
        for name, seed in self.runs():
            check(name, seed)
        if self.sweep:
            self.sweep.check(check)

    def runs(self) -> list[tuple[str, int]]:
        """Return (experiment, seed) of every run of the study."""
        return [(name, seed) for name, experiment in self.experiments.items() for seed in experiment.seeds]

    # By name.

    def pattern(self, condition: Callable[[str], bool] = lambda name: True) -> str:
        """Return a regular expression that matches the names of all experiments that meet a condition."""
        names = [name for name in self.known if condition(name)]
        points = set(self.sweep.loaded.points) if self.sweep else set()
        if self.sweep is None or not points or not points.issubset(names):
            return any_of(names)
        # Matching against a list of a thousand names would take half of Snakemake's time.
        return "|".join(filter(None, (any_of(set(names) - points, none=""), rf"{re.escape(self.sweep.name)}\.[^/]+")))

    def is_imported(self, name: str) -> bool:
        """Return whether an experiment uses given weights instead of training."""
        return self.known[name].training == "imported"

    def is_scored(self, name: str) -> bool:
        """Return whether an experiment's images are scored."""
        return self.known[name].scoring is not None

    def is_sharded(self, name: str) -> bool:
        """Return whether an experiment's samples are drawn by several jobs."""
        return self.known[name].sampling.shards > 1

    def has_published_reference(self, name: str) -> bool:
        """Return whether an experiment uses a published file of reference statistics, and no other experiment's."""
        return self.scoring(name, "reference") is not None and self.scored_as(name) == name

    def scoring(self, name: str, key: str, suffix: str = "") -> Any:
        """Return a value of an experiment's scoring section, of an extractor by its suffix; None without scoring."""
        return getattr(self.scorings(name).get(suffix), key, None)

    @cache  # noqa: B019 - the object lives as long as the process
    def scorings(self, name: str) -> dict[str, Scoring]:
        """Return an experiment's scoring sections, one for each extractor, by the suffix of its files; the first's is
        empty."""
        scoring = self.known[name].scoring
        sections = [] if scoring is None else scoring.each
        return {suffix_of(section.extractor) if number else "": section for number, section in enumerate(sections)}

    def suffixes(self) -> str:
        """Return a regular expression that matches the suffixes of all extractors, the empty one among them."""
        found = {suffix for name in self.known for suffix in self.scorings(name)}
        return f"(?:{any_of(found | {''}, none='')})"

    def trained_as(self, name: str, seed: int) -> str:
        """Return the experiment whose run is used: points that differ only after training share one."""
        return self.sweep.trained.get((name, seed), name) if self.sweep else name

    def scored_as(self, name: str) -> str:
        """Return the experiment whose scoring section and reference are used: mostly the base of a point."""
        return self.sweep.scored.get(name, name) if self.sweep else name

    @cache  # noqa: B019 - the object lives as long as the process
    def run(self, name: str, seed: int) -> RunConfig:
        """Return a run's resolved configuration."""
        if self.sweep and (name, seed) in self.sweep.runs:
            return self.sweep.runs[name, seed]
        experiment = self.known[name]
        return run_config(experiment, name, seed, self.dataset_config(experiment.dataset), source_file(name, CONFIG))

    @cache  # noqa: B019
    def dataset_config(self, name: str) -> DatasetConfig:
        """Return a data set's configuration."""
        return load_dataset(name, CONFIG)

    @cache  # noqa: B019
    def facts(self, dataset: str) -> DatasetFacts:
        """Return the facts about a data set."""
        return look_up(self.dataset_config(dataset), Path(self.layout.dataset_record(dataset)))

    @one_line
    def baselines(self, name: str) -> tuple[str, ...]:
        """Return an experiment's baselines: held-out images (the floor, if there is a test split) and noise."""
        if not self.is_scored(name):
            return ()
        return BASELINES if self.facts(self.experiments[name].dataset).has_test else BASELINES[1:]

    # By the wildcards of a job.

    def experiment(self, wildcards) -> Experiment:
        """Return the experiment that a job belongs to."""
        return self.known[wildcards.experiment]

    def training(self, wildcards):
        """Return the training section of a job's run."""
        return self.run(wildcards.experiment, int(wildcards.seed)).training

    # Checks.

    def _check(self, name: str, seed: int) -> None:
        """Check a run for everything that would stop one of its jobs."""
        self.run(name, seed)
        experiment = self.known[name]
        self._check_files(name)
        self._check_labels(name)
        self._check_milestones(name, seed)
        if not self.is_imported(name) and experiment.training.nodes > 1:
            where = f"{source_file(name, CONFIG)}: training.nodes"
            if not self._has_scheduler:
                raise UserError(f"{where}: several nodes need a scheduler: snakemake --profile slurm")
            if self._contained:
                raise UserError(f"{where}: a container has no srun to reach several nodes; leave out --sdm apptainer")

    def _check_files(self, name: str) -> None:
        """Check that the files that an experiment names exist, unless the workflow makes them."""
        experiment = self.known[name]
        given = [
            ("weights", experiment.weights),
            ("sampling.noise", experiment.sampling.noise),
            ("scoring.reference", self.scoring(name, "reference")),
        ]
        for suffix, scoring in self.scorings(name).items():
            if scoring.weights and not scoring.download:
                given.append(("scoring.download: false, but scoring.weights_folder", self.extractor(name, suffix)))
            elif scoring.extractor == "lite0":
                lite0_path()
            elif scoring.extractor not in NAMED_EXTRACTORS:
                given.append(("scoring.extractors" if suffix else "scoring.extractor", scoring.extractor))
        for key, file in given:
            if file is not None and not Path(file).exists():
                near = difflib.get_close_matches(file, NAMED_EXTRACTORS, n=1) if "extractor" in key else []
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{source_file(name, CONFIG)}: {key}: {file} not found{hint}")

    def extractor(self, name: str, suffix: str = "") -> str:
        """Return the file of a scored experiment's feature extractor, by its suffix.

        Raises:
            UserError: its package is not installed.
        """
        scoring = self.scorings(name)[suffix]
        if scoring.extractor == "lite0":
            return str(lite0_path())
        if scoring.extractor == "digits":
            return self.layout.extractor(self.known[name].dataset)
        return f"{scoring.weights_folder}/{scoring.weights.name}" if scoring.weights else scoring.extractor

    def _check_milestones(self, name: str, seed: int) -> None:
        """Check that a finished run has the milestones that selection chooses from, or their samples or scores."""
        run, candidates = Path(self.layout.run(name, seed)), self.known[name].candidates
        if not candidates or not (run / COMPLETE).exists():
            return
        done = read_complete(run).get("iterations") or 0
        for iteration in (iteration for iteration in candidates if iteration <= done):
            kept = milestone(run, iteration)
            samples = self.layout.milestone_samples(".npz", name, seed, iteration)
            found = (kept, Path(samples), Path(self.layout.milestone_scores(name, seed, iteration)))
            if not any(path.exists() for path in found):
                raise UserError(
                    f"{source_file(name, CONFIG)}: selection: {run} is finished, but {kept} was not found; leave "
                    "selection out, or give the experiment a new name, so that it is trained again and keeps milestones"
                )

    def _check_labels(self, name: str) -> None:
        """Check class names in `labels` against the data set's, if these are known."""
        experiment = self.known[name]
        for key, labels in (("sampling", experiment.sampling.labels), ("latents", experiment.latents.labels)):
            if isinstance(labels, list) and any(isinstance(label, str) for label in labels):
                names = self.facts(experiment.dataset).class_names
                for label in labels if names else []:
                    class_number(label, names, len(names), f"{source_file(name, CONFIG)}: {key}.labels")

    @one_line
    def report_missing_floors(self) -> None:
        """Print the data sets without a held-out floor, and why."""
        for dataset in sorted({self.experiments[name].dataset for name in self.experiments if self.is_scored(name)}):
            has_test = self.facts(dataset).has_test
            if has_test is None:
                why = "its images were not found; they are looked up again when snakemake is next called"
            elif not has_test:
                why = "it has no test split; holdout: N keeps N images out of training"
            else:
                continue
            print(f"note: data set {dataset}: no held-out floor is scored: {why}", file=sys.stderr)

    # Resolved configurations.

    def is_resolved(self, path: str) -> bool | None:
        """Return whether a file holds the current resolved configuration, except for keys that no result depends on.

        Returns:
            None if the file is no resolved configuration, or does not exist.
        """
        current = self._resolved(path)
        if current is None or not Path(path).is_file():
            return None
        try:
            if Path(path).read_bytes() == to_json(current).encode():
                return True
            earlier = read_resolved(type(current), path)
        except (OSError, UserError):
            return False
        mutable = {RunConfig: MUTABLE_KEYS, DatasetConfig: mutable_keys("dataset")}.get(type(current), set())
        return not differences(earlier, current, mutable)

    def _resolved(self, path: str) -> Section | None:
        """Return the configuration that belongs in a file of results; None for other files."""
        start = f"{self.layout.configs}/"
        folder, _, name = path.removeprefix(start).removesuffix(".json").rpartition("/")
        if not path.startswith(start) or "/" in folder:
            return None
        if folder == "datasets":
            return self.dataset_config(name)
        if name.startswith("seed"):
            return self.run(folder, int(name.removeprefix("seed")))
        if name.startswith("scoring"):
            return self.scorings(folder).get(name.removeprefix("scoring"))
        return getattr(self.known[folder], name, None)


class Sweep:
    """The points of one sweep as experiments.

    Attributes:
        experiments: the points and the base, by name as experiments.
        runs: configurations by (experiment, seed).
        trained: by (experiment, seed), the point whose run is used.
        scored: by point, the experiment whose scoring section and reference are used.

    Raises:
        UserError: the sweep or a point is invalid.
    """

    def __init__(self, name: str, results: str) -> None:
        self.name, self.loaded = name, load_sweep(name, CONFIG)
        self.runs, self.scored = self.loaded.runs, self.loaded.scored
        self.trained = trained_points(self.loaded, Path(results))
        self.experiments: dict[str, Experiment] = {self.loaded.sweep.base: self.loaded.base}
        self.experiments |= {point: resolved.experiment for point, resolved in self.loaded.points.items()}

    def check(self, check_run: Callable[[str, int], None]) -> None:
        """Call a check with experiment and seed of every run.

        Raises:
            UserError: the first mistake, and the number of all others.
        """
        mistakes = []
        for name, seed in self.runs:
            try:
                check_run(name, seed)
            except UserError as error:
                mistakes.append(str(error))
        if mistakes:
            more = f" (and {len(mistakes) - 1} more: udpm sweep status {self.name})" if len(mistakes) > 1 else ""
            raise UserError(f"{mistakes[0]}{more}")


def _check_folder(results: str, where: str) -> None:
    """Check that a folder of results can be looked into, or does not exist yet."""
    try:
        os.scandir(results).close()
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UserError(f"{where}: results: {results} is not a folder") from None
    except OSError as error:
        raise UserError(f"{where}: results: {SHORT.repr(results)}: {error.strerror}; choose another folder") from None


def any_of(names: Iterable[str], none: str = "(?!)") -> str:
    """Return a regular expression that matches any of the names; without names, `none`, which matches nothing."""
    return "|".join(sorted({re.escape(name) for name in names})) or none
