"""The files that targets ask for, the files that rules read, and the files that make up a figure or table."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments import CONFIG, Experiments, Sweep, one_line

from udpm.config import list_configs, to_json
from udpm.config.evaluation import NAMED_EXTRACTORS, Diagnosis
from udpm.config.published_scores import (
    RUNTIME,
    SETUPS,
    load_published,
    published_file,
    published_names,
    table_names,
)
from udpm.core.errors import UserError
from udpm.runs.status import point_statuses, summarize_points

LATENTS = ("perturb", "swap", "interpolate", "pca")


class Arguments(list):
    """Arguments of a command, as text; `{params.NAME:q}` in a shell line quotes each of them."""

    def __init__(self, *words: object) -> None:
        super().__init__(str(word) for word in words)

    def __repr__(self) -> str:
        # Snakemake records it. Earlier versions recorded one text, and their results stay valid.
        return repr(" ".join(self))


class StudyTargets:
    """The files of the targets `all` and `figures`."""

    def __init__(self, plan: Experiments) -> None:
        self._plan, self._layout = plan, plan.layout

    def all(self) -> list[str]:
        """Return what `all` makes of the runs: their table of scores, figures and image files."""
        table = [f"{self._layout.table('scores')}.csv"] if self.scores() else []
        return [*table, *self.figures(), *self.exported()]

    def scores(self) -> list[str]:
        """Return all score files, by every extractor: of runs, of their best milestones, of floor and ceiling."""
        plan, layout = self._plan, self._layout
        subjects = [(name, f"seed{seed}") for name, seed in plan.runs()]
        subjects += [(name, f"seed{seed}_best") for name, seed in plan.runs() if plan.known[name].candidates]
        subjects += [(name, kind) for name in plan.experiments for kind in plan.baselines(name)]
        return [layout.scores(subject, name, suffix) for name, subject in subjects for suffix in plan.scorings(name)]

    def figures(self) -> list[str]:
        """Return all figures, as png."""
        schedules = [f"{name}/{kind}" for name in self._plan.experiments for kind in ("schedule", "forward")]
        runs = [f"{name}/seed{seed}/{kind}" for name, seed in self._plan.runs() for kind in self._figure_kinds(name)]
        return [f"{self._layout.figure(figure)}.png" for figure in schedules + runs]

    def diagnoses(self) -> list[str]:
        """Return the figures of where runs lose quality and variety, of all experiments with held-out images."""
        runs = [run for run in self._plan.runs() if "heldout" in self._plan.baselines(run[0])]
        return [f"{self._layout.figure(f'{name}/seed{seed}/diagnosis')}.png" for name, seed in runs]

    def _figure_kinds(self, name: str) -> list[str]:
        kinds = ["samples", "chain"]
        kinds += ["neighbours"] if self._plan.is_scored(name) else []
        kinds += [] if self._plan.is_imported(name) else ["curves"]
        kinds += ["selection"] if self._plan.known[name].candidates else []
        kinds += ["diagnosis"] if "heldout" in self._plan.baselines(name) and self._plan.known[name].diagnosis else []
        return [*kinds, *(f"latents_{kind}" for kind in LATENTS)]

    def exported(self) -> list[str]:
        """Return the folders of image files, for experiments that ask for them."""
        runs, known = self._plan.runs(), self._plan.known
        return [self._layout.images(name, seed) for name, seed in runs if known[name].sampling.images != "none"]


class PaperTargets:
    """The target `paper_tables`, and the pages on the whole study.

    They need all results of the study's experiments; of other experiments they take those that exist.
    """

    def __init__(self, plan: Experiments, study: StudyTargets) -> None:
        self._plan, self._layout, self._study = plan, plan.layout, study
        self.names = table_names(CONFIG)

    def tables(self) -> list[str]:
        """Return all tables, and the figure of the same numbers."""
        return [f"{self._layout.table(f'paper/{name}')}.html" for name in self.names] + self.figures()

    def figures(self) -> list[str]:
        """Return the figure of the tables' numbers."""
        return [f"{self._layout.figure('paper/tradeoff')}.png"]

    def overview(self) -> list[str]:
        """Return the page on the whole study, and a card next to the weights of every run."""
        return [self._layout.overview, *(self._layout.card(name, seed) for name, seed in self._plan.runs())]

    def published_files(self, _wildcards=None) -> list[str]:
        """Return all files of published numbers."""
        return [str(published_file(name, CONFIG)) for name in [*published_names(CONFIG), RUNTIME]]

    def published(self, wildcards) -> list[str]:
        """Return the file of published numbers behind a table."""
        return [] if wildcards.table in SETUPS else [str(published_file(wildcards.table, CONFIG))]

    def material(self, wildcards) -> list[str]:
        """Return the measurements that a table shows."""
        others = self._others(self._named(self._readable))
        if wildcards.table in SETUPS:
            found = [path for name in others for path in self._found(self._layout.completion(name, "*"))]
            return sorted({*self.runs(), *found})
        if wildcards.table == RUNTIME:
            found = [path for name in others for path in self._found(self._layout.speed(name))]
            return sorted({*map(self._layout.speed, self._plan.experiments), *found})
        return self.scores(self._named([wildcards.table]))

    def tradeoff_scores(self, _wildcards=None) -> list[str]:
        """Return the scores that the figure of FID against multiply-adds shows."""
        return self.scores(self._named(self._readable, figure=True))

    def all_scores(self, _wildcards=None) -> list[str]:
        """Return the scores of all tables, and of the study."""
        return sorted({*self._study.scores(), *self.scores(self._named(self._readable))})

    def scores(self, names: list[str]) -> list[str]:
        """Return the scores of experiments: all in the study, and existing ones of others."""
        study = [path for path in self._study.scores() if Path(path).parent.name in names]
        found = [path for name in self._others(names) for path in self._found(self._layout.scores("*", name))]
        return sorted({*study, *found})

    def run_scores(self, wildcards) -> list[str]:
        """Return the scores of one run: of its end, and of its best milestone if one is selected."""
        name, stem, known = wildcards.experiment, f"seed{wildcards.seed}", set(self._study.scores())
        pairs = [(subject, suffix) for subject in (stem, f"{stem}_best") for suffix in self._plan.scorings(name)]
        return [
            path for path in (self._layout.scores(subject, name, suffix) for subject, suffix in pairs) if path in known
        ]

    def runs(self, _wildcards=None) -> list[str]:
        """Return the completion records of the study's runs."""
        return [self._layout.completion(name, seed) for name, seed in self._plan.runs()]

    def experiments(self, _wildcards=None) -> Arguments:
        """Return the study's experiments, as `udpm summary` takes them."""
        return Arguments(*self._plan.experiments)

    def options(self, _wildcards=None) -> Arguments:
        """Return the study's experiments, as `udpm paper` takes them."""
        return Arguments(*(word for name in self._plan.experiments for word in ("--experiment", name)))

    def _others(self, names: list[str]) -> list[str]:
        return [name for name in names if name not in self._plan.experiments]

    def _found(self, pattern: str) -> list[str]:
        return list(map(str, self._layout.found(pattern)))

    def _named(self, tables: Iterable[str], figure: bool = False) -> list[str]:
        """Return the experiments that tables of published scores name."""
        found = [self._readable[name] for name in tables if name in self._readable]
        named = [name for table in found if table.figure or not figure for name in table.experiments]
        return list(dict.fromkeys(named))

    @cached_property
    def _readable(self) -> dict[str, Any]:
        """Tables of published scores; a broken file's own job reports it."""
        found = {}
        for name in published_names(CONFIG):
            with suppress(UserError):
                found[name] = load_published(name, CONFIG)
        return found


class SweepTargets:
    """The targets `sweep` and `sweep_plan`, and what their rules read."""

    def __init__(self, plan: Experiments) -> None:
        self._sweep, self._layout, self._reported = plan.sweep, plan.layout, False

    @property
    def _given(self) -> Sweep:
        """The sweep, for rules that run for sweeps only."""
        assert self._sweep is not None
        return self._sweep

    @one_line
    def targets(self, target: str, report: bool) -> list[str]:
        """Return the files of `sweep` or `sweep_plan`; to report, print how many points are in which state."""
        if self._sweep is None:
            names = ", ".join(list_configs(f"{CONFIG}/sweeps"))
            raise UserError(f"sweep: is missing; snakemake {target} --config sweep=NAME, of: {names}")
        if report and not self._reported:
            self._reported = True
            statuses = point_statuses(self._sweep.loaded, Path(self._layout.results))
            print(summarize_points(self._sweep.name, statuses), file=sys.stderr)
        files = ["plan.html"]
        if target == "sweep":
            files += ["ranking.html", "strip.png"]
            files += [f"heat_{grid}.png" for grid in self._sweep.loaded.sweep.heat_maps]
        return [self._layout.sweep(file, self._sweep.name) for file in files]

    def scores(self, grid: str | None = None) -> list[str]:
        """Return the score files of all points and seeds, or of one grid; empty without a sweep."""
        if self._sweep is None:
            return []
        inside = {name for name, point in self._sweep.loaded.points.items() if grid in (None, point.point.grid)}
        runs = [(name, seed) for name, seed in self._sweep.runs if grid is None or name in inside]
        return [self._layout.scores(f"seed{seed}", name) for name, seed in runs]

    def shown_samples(self) -> list[str]:
        """Return the records of the sample sets shown side by side: of each point's first seed."""
        points = self._sweep.loaded.points if self._sweep else {}
        return [self._layout.sample_record(name, point.experiment.seeds[0]) for name, point in points.items()]

    def plan_digest(self, _wildcards) -> str:
        """Return a digest of all that the plan shows."""
        # It shows nothing of a data set but its side.
        runs = [run.model_dump_json(exclude={"dataset"}) + str(run.dataset.side) for run in self._given.runs.values()]
        counts = [str(experiment.sampling.count) for experiment in self._given.experiments.values()]
        return digest([*runs, *counts, str(self._given.loaded.sweep.multiply_adds_per_second)])

    def ranking_digest(self, _wildcards) -> str:
        """Return a digest of all that the ranking and the best point's file show, except scores."""
        points = self._given.loaded.points.values()
        return digest([self._given.loaded.sweep.model_dump_json(), *(str(point.overrides) for point in points)])

    def grid_digest(self, wildcards) -> str:
        """Return a digest of all that a heat map shows, except scores."""
        sweep = self._given.loaded.sweep
        axes = [f"{name} {axis.model_dump_json()}" for name, axis in sweep.grids[wildcards.grid].items()]
        return digest([sweep.rank_by, *axes])


class Inputs:
    """Input files and options that depend on a job's experiment, as Snakemake's functions of wildcards."""

    def __init__(self, plan: Experiments) -> None:
        self._plan, self._layout = plan, plan.layout

    # Data.

    def dataset(self, wildcards) -> str:
        """Return the folder of the prepared data set that a job reads."""
        return self._layout.dataset(self._plan.experiment(wildcards).dataset)

    def dataset_record(self, wildcards) -> str:
        """Return the record of the prepared data set that a job reads."""
        return self._layout.dataset_record(self._plan.experiment(wildcards).dataset)

    def cache(self, wildcards) -> str:
        """Return the folder of the level cache that a job reads."""
        return self._layout.cache(self._plan.experiment(wildcards).dataset)

    # Weights.

    def training_inputs(self, wildcards, forced: bool) -> dict[str, str | list[str]]:
        """Return what a training reads. A finished one has no inputs, so that only force starts it again."""
        if not forced and (wildcards.experiment, int(wildcards.seed)) in self._plan.finished:
            return {}
        return {
            "config": self._layout.run_config(wildcards.experiment, wildcards.seed),
            "dataset": self.dataset_record(wildcards),
            "cache": self._layout.cache_record(self._plan.experiment(wildcards).dataset),
            "start": self.given_weights(wildcards),
        }

    def given_weights(self, wildcards) -> list[str]:
        """Return the weights that a run starts from or consists of."""
        weights = self._plan.experiment(wildcards).weights
        return [] if weights is None else [weights]

    def weights(self, wildcards) -> str:
        """Return the weights that a job samples."""
        name = self._plan.trained_as(wildcards.experiment, int(wildcards.seed))
        return self._layout.weights(name, wildcards.seed)

    def first_run_config(self, wildcards) -> str:
        """Return the configuration of an experiment's first run, for rules that do not depend on the seed."""
        return self._layout.run_config(wildcards.experiment, self._plan.experiment(wildcards).seeds[0])

    # Samples.

    def noise(self, wildcards) -> list[str]:
        """Return the file of noise that a run's samples start from; empty without one."""
        noise = self._plan.experiment(wildcards).sampling.noise
        return [] if noise is None else [noise]

    def samples(self, wildcards) -> list[str]:
        """Return the files of a run's sample set. Commands take the first: the images, or the record of shards."""
        images, record = (self._layout.samples(end, wildcards.experiment, wildcards.seed) for end in (".npz", ".json"))
        shards = self.shards(wildcards)
        return [record, *shards] if shards else [images, record]

    def sample_set(self, wildcards) -> str:
        """Return the file of a run's sample set that commands take."""
        return self.samples(wildcards)[0]

    def shards(self, wildcards) -> list[str]:
        """Return the shards of a run's sample set; empty if one job draws all of it."""
        count = self._plan.experiment(wildcards).sampling.shards
        ends = [f"_{index}of{count}.npz" for index in range(1, count + 1)] if count > 1 else []
        return [self._layout.samples(end, wildcards.experiment, wildcards.seed) for end in ends]

    def latent_options(self, wildcards) -> Arguments:
        """Return options that make `udpm latents` decode as the run's samples are drawn."""
        sampling = self._plan.experiment(wildcards).sampling
        keys = ("weights", "iteration", "posterior", "guidance", "batch", "device", "precision", "threads")
        given = {key: getattr(sampling, key) for key in keys if getattr(sampling, key) is not None}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        kind = [] if sampling.noise_kind == "host" else ["--noise-kind", sampling.noise_kind]
        return Arguments(*words, *["--tf32"] * sampling.tf32, *kind)

    def diagnosis_options(self, wildcards) -> Arguments:
        """Return options that make `udpm diagnose` draw as the run's samples are drawn, from the configured images."""
        experiment = self._plan.experiment(wildcards)
        section = experiment.diagnosis or Diagnosis()
        own = ("--count", section.count, "--draws", section.draws, "--seed", experiment.sampling.seed)
        return Arguments(*own, *self.latent_options(wildcards))

    # Scores.

    def reference(self, wildcards) -> str:
        """Return the reference that a job's images are scored against."""
        return self._layout.reference(self._plan.scored_as(wildcards.experiment), self._suffix(wildcards))

    def scoring(self, wildcards) -> str:
        """Return the resolved scoring section of a job."""
        return self._layout.section("scoring", self._plan.scored_as(wildcards.experiment), self._suffix(wildcards))

    def extractor(self, wildcards) -> str:
        """Return the file of a job's feature extractor."""
        return self._plan.extractor(wildcards.experiment, self._suffix(wildcards))

    def extractor_option(self, wildcards) -> Arguments:
        """Return the option of `udpm resolve` for the scoring section of a further extractor."""
        if not (suffix := self._suffix(wildcards)):
            return Arguments()
        return Arguments("--extractor", self._plan.scoring(wildcards.experiment, "extractor", suffix))

    @staticmethod
    def _suffix(wildcards) -> str:
        """Return the suffix of a job's extractor; rules without the wildcard use the first one."""
        return getattr(wildcards, "extractor", "")

    def made_extractor(self, wildcards) -> list[str]:
        """Return the extractor as an input if the workflow makes or downloads it, or if it is a file that exists."""
        name = self._plan.scoring(wildcards.experiment, "extractor", self._suffix(wildcards))
        path = self.extractor(wildcards)
        # The contents of lite0 are fixed, and its path differs between environments.
        return [path] if name != "lite0" and (name in NAMED_EXTRACTORS or Path(path).exists()) else []

    def extractor_weights(self) -> dict[str, Arguments]:
        """Return arguments of `udpm fetch` by the file of an extractor's weights."""
        files: dict[str, Arguments] = {}
        scorings = [section for name in self._plan.known for section in self._plan.scorings(name).values()]
        for scoring in sorted(scorings, key=lambda section: not section.download):
            if file := scoring.weights:
                options = ["--sha256", file.sha256] * bool(file.sha256) + ["--offline"] * (not scoring.download)
                files.setdefault(f"{scoring.weights_folder}/{file.name}", Arguments(scoring.extractor, *options))
        return files

    def baseline(self, wildcards) -> Arguments:
        """Return the option of `udpm score` for the floor or the ceiling."""
        count = self._plan.experiment(wildcards).sampling.count
        return (
            Arguments("--heldout", "--match", count) if wildcards.baseline == "heldout" else Arguments("--noise", count)
        )

    def milestone_scores(self, wildcards) -> list[str]:
        """Return the scores of the milestones that a run's best is chosen from."""
        candidates = self._plan.experiment(wildcards).candidates
        return [self._layout.milestone_scores(wildcards.experiment, wildcards.seed, number) for number in candidates]

    # Costs.

    def model_digests(self, _wildcards) -> list[str]:
        """Return digests of the experiments' network configurations, which determine their cost."""
        runs = [self._plan.run(name, experiment.seeds[0]) for name, experiment in self._plan.experiments.items()]
        parts = [part for run in runs for part in (run.model, run.discriminator if run.adversarial else None)]
        return [digest([to_json(part)]) for part in parts if part is not None]


def digest(texts: Iterable[str]) -> str:
    """Return a short digest of texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
