"""All tables of the paper from a folder of results: what was measured where it was, "not run" where it was not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from udpm.config.experiment import Experiment, RunConfig
from udpm.config.load import load_experiment, read_resolved, resolve_run
from udpm.config.published_scores import (
    RUNTIME,
    SETUPS,
    PublishedTable,
    load_published,
    load_runtime,
    published_names,
    table_names,
)
from udpm.core.errors import UserError
from udpm.metrics.protocol import read_scores, score_files
from udpm.networks.flops import Cost, count_cost
from udpm.report.paper.comparison import write_paper_table
from udpm.report.paper.summary import summarize, write_summary
from udpm.report.paper.tables import Shown, read_speed, write_runtime, write_setup
from udpm.runs.layout import Layout


class Paper:
    """The tables, and what they are made from.

    Args:
        results: folder of results.
        config: folder of the configuration.
        experiments: that stand in the set-up and run-time tables besides those that the paper's tables name.
    """

    def __init__(self, results: str | Path, config: str | Path = "config", experiments: Sequence[str] = ()) -> None:
        self._results, self._config, self._experiments = Path(results), Path(config), list(experiments)
        self._layout = Layout(self._results)

    def write(self, name: str, stem: str | Path) -> str:
        """Write a table as ``STEM.csv``, ``.md``, ``.tex`` and ``.html``.

        Returns:
            The markdown.

        Raises:
            UserError: no such table, a published file or a score that cannot be read.
        """
        if name in SETUPS:
            return write_setup(name, self._setups(), stem)
        if name == RUNTIME:
            return self._write_runtime(stem)
        if name not in published_names(self._config):
            raise UserError(f"{name}: no such table; there are: {', '.join(table_names(self._config))}")
        table = load_published(name, self._config)
        experiments = {name: self._experiment(name) for name in table.experiments}
        scores = read_scores(score_files(self._results, table.experiments))
        return write_paper_table(table, scores, experiments, stem)

    def draw_tradeoff(self, stem: str | Path) -> None:
        """Draw FID against multiply-adds as ``STEM.svg``, ``.png`` and ``.csv``.

        Raises:
            UserError: a published file or a score that cannot be read.
        """
        # Matplotlib takes a second to load, and tables do without.
        from udpm.report.figures.tradeoff import draw_tradeoff, tradeoff_points

        tables = [load_published(name, self._config) for name in published_names(self._config)]
        draw_tradeoff(tradeoff_points(tables, load_runtime(self._config), self.scores()), stem)

    def write_summary(self, folder: Path) -> str:
        """Write ``summary.md`` and ``overview.html`` on the experiments that were asked for.

        Returns:
            The markdown.

        A score or record that cannot be read is named on the page.

        Raises:
            UserError: a configuration that cannot be read.
        """
        experiments = {name: load_experiment(name, self._config) for name in self._experiments}
        scores, unreadable = [], []
        for path in score_files(self._results, self._named()):
            try:
                scores += read_scores([path])
            except UserError as error:
                unreadable.append(str(error))
        others = {name: self._experiment(name) for name in self._named() if name not in experiments}
        sections = summarize(self._results, experiments, scores, self._readable_tables(), unreadable, others)
        return write_summary(sections, folder)

    def scores(self) -> list[dict[str, Any]]:
        """All scores of the experiments that the tables name, and of those that were asked for."""
        return read_scores(score_files(self._results, self._named()))

    def _named(self) -> list[str]:
        """Experiments of all tables that can be read, then those asked for, each once."""
        named = [name for table in self._readable_tables() for name in table.experiments]
        return list(dict.fromkeys([*self._experiments, *named]))

    def _readable_tables(self) -> list[PublishedTable]:
        found = []
        for name in published_names(self._config):
            # What is wrong with a broken one, its own table says.
            with suppress(UserError):
                found.append(load_published(name, self._config))
        return found

    def _experiment(self, name: str) -> Experiment | None:
        """The configuration; None where its file is gone, and its scores alone can be shown."""
        try:
            return load_experiment(name, self._config)
        except UserError:
            return None

    @cached_property
    def _runs(self) -> dict[str, tuple[RunConfig, bool]]:
        """By experiment, the configuration that ran (of its first seed), else the one that would run."""
        found = {}
        for name in self._named():
            ran = self._layout.found(self._layout.completion(name, "*"))
            if ran and (ran[0].parent / "config.json").exists():
                found[name] = (read_resolved(RunConfig, ran[0].parent / "config.json"), True)
            elif (experiment := self._experiment(name)) is not None:
                found[name] = (resolve_run(name, experiment.seeds[0], self._config), bool(ran))
        return found

    @cached_property
    def _costs(self) -> dict[str, Cost]:
        """By experiment: counting takes seconds, and several tables need it."""
        return {name: count_cost(run) for name, (run, _) in self._runs.items()}

    def _setups(self) -> dict[str, Shown]:
        return {
            name: Shown(
                run, ran, {"generator": cost.generator_parameters, "discriminator": cost.discriminator_parameters}
            )
            for name, (run, ran) in self._runs.items()
            for cost in [self._costs[name]]
        }

    def _write_runtime(self, stem: str | Path) -> str:
        files = {name: Path(self._layout.speed(name)) for name in self._runs}
        speeds = {name: read_speed(path) for name, path in files.items() if path.exists()}
        datasets = {name: run.dataset_name for name, (run, _) in self._runs.items()}
        return write_runtime(load_runtime(self._config), self._costs, datasets, speeds, stem)
