"""The files that each target asks for, what pages and tables of a whole study or sweep are made from, and which files
make a figure or table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from experiments import CONFIG, Experiments, Sweep, one_line
from inputs import Arguments, digest

from udpm.config import names_in
from udpm.config.published_scores import RUNTIME, SETUPS, load_published, published_names, table_names
from udpm.core.errors import UserError
from udpm.runs.status import point_standings, summarize_points

LATENTS = ("perturb", "swap", "interpolate", "pca")


class StudyTargets:
    """The targets `all`, `figures` and `cost_tables`.

    Args:
        plan: the experiments.
    """

    def __init__(self, plan: Experiments) -> None:
        self._plan, self._layout = plan, plan.layout

    def all(self) -> list[str]:
        """Return what `all` asks for of the runs: their table of scores, figures and image files."""
        table = [f"{self._layout.table('scores')}.csv"] if self.scores() else []
        return [*table, *self.figures(), *self.exported()]

    def scores(self) -> list[str]:
        """Return all score files: of runs, of their best milestones, and of yardsticks."""
        plan, layout = self._plan, self._layout
        runs = [layout.scores(f"seed{seed}", name) for name, seed in plan.runs() if plan.is_scored(name)]
        best = [layout.scores(f"seed{seed}_best", name) for name, seed in plan.runs() if plan.known[name].candidates]
        yardsticks = [layout.scores(kind, name) for name in plan.experiments for kind in plan.yardsticks(name)]
        return runs + best + yardsticks

    def figures(self) -> list[str]:
        """Return all figures, as png."""
        schedules = [f"{name}/{kind}" for name in self._plan.experiments for kind in ("schedule", "forward")]
        runs = [f"{name}/seed{seed}/{kind}" for name, seed in self._plan.runs() for kind in self._figure_kinds(name)]
        return [f"{self._layout.figure(figure)}.png" for figure in schedules + runs]

    def _figure_kinds(self, name: str) -> list[str]:
        kinds = ["samples", "chain"]
        kinds += ["neighbours"] if self._plan.is_scored(name) else []
        kinds += [] if self._plan.is_imported(name) else ["curves"]
        kinds += ["selection"] if self._plan.known[name].candidates else []
        return [*kinds, *(f"latents_{kind}" for kind in LATENTS)]

    def exported(self) -> list[str]:
        """Return the folders of image files, for experiments that ask for them."""
        runs, known = self._plan.runs(), self._plan.known
        return [self._layout.images(name, seed) for name, seed in runs if known[name].sampling.images != "none"]


class PaperTargets:
    """The target `paper_tables`, and the pages on the whole study.

    Everything is made that they need of the study's experiments; of all others they take what exists.

    Args:
        plan: the experiments.
        study: the study's targets.
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
        return [f"{CONFIG}/published/{name}.yaml" for name in [*published_names(CONFIG), RUNTIME]]

    def published(self, wildcards) -> list[str]:
        """Return the file of published numbers behind a table."""
        return [] if wildcards.table in SETUPS else [f"{CONFIG}/published/{wildcards.table}.yaml"]

    def material(self, wildcards) -> list[str]:
        """Return what was measured, or will be, for a table."""
        others = self._others(self._named(published_names(CONFIG)))
        if wildcards.table in SETUPS:
            found = [path for name in others for path in self._found(self._layout.completion(name, "*"))]
            return sorted({*self.runs(), *found})
        if wildcards.table == RUNTIME:
            found = [path for name in others for path in self._found(self._layout.speed(name))]
            return sorted({*map(self._layout.speed, self._plan.experiments), *found})
        return self.scores(self._named([wildcards.table]))

    def tradeoff_scores(self, _wildcards=None) -> list[str]:
        """Return the scores of the experiments that the figure of cost shows."""
        return self.scores(self._named(published_names(CONFIG), figure=True))

    def all_scores(self, _wildcards=None) -> list[str]:
        """Return the scores of all tables, and of the study."""
        return sorted({*self._study.scores(), *self.scores(self._named(published_names(CONFIG)))})

    def scores(self, names: list[str]) -> list[str]:
        """Return scores of experiments: all of the study's, and those that exist of others."""
        study = [path for path in self._study.scores() if Path(path).parent.name in names]
        found = [path for name in self._others(names) for path in self._found(self._layout.scores("*", name))]
        return sorted({*study, *found})

    def run_scores(self, wildcards) -> list[str]:
        """Return the scores of one run: of its last checkpoint, and of its best if one is selected."""
        stem, known = f"seed{wildcards.seed}", set(self._study.scores())
        wanted = (self._layout.scores(subject, wildcards.experiment) for subject in (stem, f"{stem}_best"))
        return [path for path in wanted if path in known]

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

    @staticmethod
    def _named(tables: list[str], figure: bool = False) -> list[str]:
        """Return the experiments that tables of published scores name; a broken file's own job reports it."""
        named: list[str] = []
        for table in tables:
            try:
                found = load_published(table, CONFIG)
            except UserError:
                continue
            named += found.experiments if found.figure or not figure else []
        return list(dict.fromkeys(named))


class SweepTargets:
    """The targets `sweep` and `sweep_plan`.

    Args:
        plan: the experiments; its sweep is None if none is asked for.
    """

    def __init__(self, plan: Experiments) -> None:
        self._sweep, self._layout, self._told = plan.sweep, plan.layout, False

    @property
    def _asked(self) -> Sweep:
        """The sweep, for rules that only a sweep's targets ask for."""
        assert self._sweep is not None
        return self._sweep

    @one_line
    def targets(self, target: str, tells: bool) -> list[str]:
        """Return what `sweep` or `sweep_plan` asks for; if it tells, print how many points are in which state."""
        if self._sweep is None:
            there = ", ".join(names_in(f"{CONFIG}/sweeps"))
            raise UserError(f"sweep: is missing; snakemake {target} --config sweep=NAME, of: {there}")
        if tells and not self._told:
            self._told = True
            standings = point_standings(self._sweep.loaded, Path(self._layout.results))
            print(summarize_points(self._sweep.name, standings), file=sys.stderr)
        files = ["plan.html"]
        if target == "sweep":
            files += ["ranking.html", "strip.png"]
            files += [f"heat_{grid}.png" for grid in self._sweep.loaded.sweep.heat_maps]
        return [self._layout.sweep(file, self._sweep.name) for file in files]

    def scores(self, grid: str | None = None) -> list[str]:
        """Return the score files of all points and seeds, or of one grid's; empty without a sweep."""
        if self._sweep is None:
            return []
        inside = {name for name, point in self._sweep.loaded.points.items() if grid in (None, point.point.grid)}
        runs = [(name, seed) for name, seed in self._sweep.runs if grid is None or name in inside]
        return [self._layout.scores(f"seed{seed}", name) for name, seed in runs]

    def shown_samples(self) -> list[str]:
        """Return the records of the sample sets shown side by side, of each point's first seed; empty without a
        sweep."""
        points = self._sweep.loaded.points if self._sweep else {}
        return [self._layout.sample_record(name, point.experiment.seeds[0]) for name, point in points.items()]

    def plan_digest(self, _wildcards) -> str:
        """Return the identity of all that the plan shows."""
        # Of a data set only the side counts, not its words.
        runs = [run.model_dump_json(exclude={"dataset"}) + str(run.dataset.side) for run in self._asked.runs.values()]
        counts = [str(experiment.sampling.count) for experiment in self._asked.experiments.values()]
        return digest([*runs, *counts, str(self._asked.loaded.sweep.multiply_adds_per_second)])

    def ranking_digest(self, _wildcards) -> str:
        """Return the identity of all that the ranking and the best point's file show in addition to scores."""
        points = self._asked.loaded.points.values()
        return digest([self._asked.loaded.sweep.model_dump_json(), *(str(point.overrides) for point in points)])

    def grid_digest(self, wildcards) -> str:
        """Return the identity of what a heat map shows in addition to scores."""
        sweep = self._asked.loaded.sweep
        axes = [f"{name} {axis.model_dump_json()}" for name, axis in sweep.grids[wildcards.grid].items()]
        return digest([sweep.rank_by, *axes])


def drawn(stem: str, caption: str, category: str = "Figures", **labels: str) -> list[Any]:
    """Return the files of a figure as outputs of a rule; the report shows the first.

    Args:
        stem: their path without suffix.
        caption: path of the text that explains it, from the file of the rule.
        category: in the report.
        labels: in the report, by column.
    """
    from snakemake.io import multiext, report

    png = report(f"{stem}.png", caption, category=category, labels=labels)
    return [png, *multiext(stem, ".svg", ".csv")]


def tabled(stem: str, caption: str, category: str, readable: dict[str, str], full: dict[str, str]) -> list[Any]:
    """Return the files of a table as outputs of a rule; the report shows the first two.

    Args:
        stem: their path without suffix.
        caption: path of the text that explains it, from the file of the rule.
        category: in the report.
        readable: labels of the table to read.
        full: labels of the table in full precision.
    """
    from snakemake.io import multiext, report

    html = report(f"{stem}.html", caption, category=category, labels=readable)
    csv = report(f"{stem}.csv", caption, category=category, labels=full)
    return [html, csv, *multiext(stem, ".md", ".tex")]
