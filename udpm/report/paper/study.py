"""Report on a study from its results: the paper's tables, and a page on runs, scores and what is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import quote

import pandas as pd

from udpm.config.experiment import Experiment, RunConfig
from udpm.config.load import load_dataset, load_experiment, own_file, read_resolved, resolve_run
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
from udpm.core.files import write_text
from udpm.core.kinds import PAGE_TITLE, mark, seal_text
from udpm.metrics.protocol import FEATURES, comparable, read_scores
from udpm.networks.inference import Cost, count_cost
from udpm.report.paper.comparison import comparison_table
from udpm.report.paper.entries import BASELINES, NOT_RUN, NOT_SCORED, advice, another_with_best, command, verdict
from udpm.report.paper.tables import Setup, read_speed, runtime_table, setup_table
from udpm.report.pictures import Strips, draw_strip
from udpm.report.scores import BEST, MATCHED, ScoreSummary, score_files, summarize_scores, training_length
from udpm.report.table import MISSING, Part, Table, cell, html_page
from udpm.runs.layout import Layout, suffix_of
from udpm.runs.records import COMPLETE, read_complete

Runs = dict[tuple[str, int], dict[str, Any] | None]

HOUR = 3600
WHERE = [
    "The paper's tables: tables/paper/ (`snakemake paper_tables`). Sweeps: sweeps/NAME/ranking.md.",
    "What made a file: `udpm info PATH`.",
]
"""Other files in the folder of results."""
HOW_TO_READ = (
    "± is the standard deviation over training seeds. Lower is better: the floor is the score of real images that "
    "were held out of training, the ceiling that of noise, measured in the same way. Distances fall as N grows: "
    "compare the floor with the distance at its N, in brackets."
)


class StudyReport:
    """The paper's tables and the summary of a study.

    Args:
        results: folder of results.
        config: folder of the configuration.
        experiments: for the set-up and run-time tables, in addition to those named in the paper's tables.
    """

    def __init__(self, results: str | Path, config: str | Path = "config", experiments: Sequence[str] = ()) -> None:
        self._results, self._config, self._experiments = Path(results), Path(config), list(experiments)
        self._layout = Layout(self._results)

    def write(self, name: str, stem: str | Path) -> str:
        """Write a table as ``STEM.csv``, ``.md``, ``.tex`` and ``.html``, and return the markdown.

        Raises:
            UserError: no such table, a published file or a score that cannot be read.
        """
        return self._table(name).write(stem)

    def plot_tradeoff(self, stem: str | Path) -> None:
        """Plot FID against multiply-adds as ``STEM.svg``, ``.pdf``, ``.png`` and ``.csv``.

        Raises:
            UserError: a published file or a score that cannot be read.
        """
        # Matplotlib takes a second to load; tables do not need it.
        from udpm.report.figures.tradeoff import plot_tradeoff, tradeoff_points

        tables = [load_published(name, self._config) for name in published_names(self._config)]
        points = tradeoff_points(tables, load_runtime(self._config), self.scores())
        titles = {}
        for name in points["dataset"].unique():
            # Without its file, its name is the title.
            with suppress(UserError):
                dataset = load_dataset(name, self._config)
                titles[name] = f"{dataset.description.partition(',')[0] or name}, {dataset.side}×{dataset.side}"
        plot_tradeoff(points, stem, titles)

    def write_summary(self, folder: Path) -> str:
        """Write ``summary.md`` and ``overview.html`` on the study's experiments, and on what else is scored.

        Scores and records that cannot be read are listed on the page. Returns the markdown.

        Raises:
            UserError: a configuration that cannot be read.
        """
        experiments = {name: load_experiment(name, self._config) for name in self._experiments}
        runs, problems = self._completed_runs(experiments)
        scores = []
        others = [name for name in self._scored() if name not in experiments]
        for path in score_files(self._results, dict.fromkeys([*self._named(), *others])):
            try:
                scores += read_scores([path])
            except UserError as error:
                problems.append(str(error))
        configs = {**experiments, **{name: self._experiment(name) for name in others}}
        found = {
            name: summarize_scores(scores, name, None if config is None else training_length(config))
            for name, config in configs.items()
        }
        missing = _missing(runs, experiments, found, self._layout)
        missing += _elsewhere(
            {name: self._experiment(name) for name in self._named() if name not in experiments and self._is_own(name)},
            scores,
        )
        table, notes = _headlines(experiments, found, scores, self._readable_tables)
        sections = [
            Table(table, [*notes, HOW_TO_READ], "Headline numbers"),
            *self._scored_before({name: found[name] for name in others if found[name]}, configs, scores),
            Table(*_what_ran(runs, experiments), "What ran"),
            *([Table(pd.DataFrame(), problems, "What cannot be read")] if problems else []),
            Table(pd.DataFrame(), missing, "What is missing"),
            Table(pd.DataFrame(), [*self._links(runs, folder), *WHERE], "Where to look"),
        ]
        text = f"# {PAGE_TITLE}\n\n" + "\n".join(f"## {part.title}\n\n{part.markdown()}" for part in sections)
        write_text(folder / "summary.md", seal_text(f"{text}\n<!-- {mark()} -->\n"))
        strips = self._strips(runs)
        parts: list[Part] = [sections[0], *([Strips("First samples", strips)] if strips else []), *sections[1:]]
        write_text(folder / "overview.html", html_page(PAGE_TITLE, parts))
        return text

    def _strips(self, runs: Runs) -> dict[str, bytes]:
        """Return the first samples of every experiment's first sampled run, as .png by caption."""
        strips: dict[str, bytes] = {}
        shown = set()
        for name, seed in runs:
            # What cannot be read is reported by the commands that need it.
            with suppress(UserError):
                if name not in shown:
                    strips[f"{name}, seed {seed}: nothing was selected"] = draw_strip(
                        self._layout.sample_record(name, seed)
                    )
                    shown.add(name)
        return strips

    def _links(self, runs: Runs, folder: Path) -> list[str]:
        """Return notes with links, relative to a folder, to the files of the study."""

        def link(words: str, path: str) -> str:
            return f"[{words}]({quote(os.path.relpath(path, folder).replace(os.sep, '/'))})"

        notes = []
        for name in dict.fromkeys(name for name, _ in runs):
            cards = [seed for (other, seed), record in runs.items() if other == name and record is not None]
            found = [link(f"seed {seed}", self._layout.card(name, seed)) for seed in cards]
            figures = link("figures", self._layout.figure(name))
            notes.append(
                f"{name}: {figures}" + (f"; cards with the data's terms and limits: {', '.join(found)}" * bool(found))
            )
        scores = link("every score with its whole protocol", f"{self._layout.table('scores')}.html")
        return [f"Tables: {scores}.", *(f"{note}." for note in notes)]

    def _scored(self) -> list[str]:
        """Return all experiments with a score. Points of sweeps, whose names have a dot, are in their rankings."""
        files = self._layout.found(self._layout.scores("*", "*"))
        return [name for name in dict.fromkeys(path.parent.name for path in files) if "." not in name]

    def _scored_before(
        self,
        found: dict[str, list[ScoreSummary]],
        configs: Mapping[str, Experiment | None],
        scores: list[dict[str, Any]],
    ) -> list[Table]:
        """Return the table of experiments outside the study, none without any."""
        if not found:
            return []
        table, notes = _headlines({name: configs[name] for name in found}, found, scores, self._readable_tables)
        notes.insert(0, "Other experiments in this folder of results. This call neither made nor checked their scores.")
        return [Table(table, notes, "Scored by other calls")]

    def _completed_runs(self, experiments: dict[str, Experiment]) -> tuple[Runs, list[str]]:
        """Return the completion record of every run of the study, None if it is not complete, and reading errors."""
        runs: Runs = {}
        broken = []
        for name, seed in ((name, seed) for name, config in experiments.items() for seed in config.seeds):
            folder = Path(self._layout.run(name, seed))
            try:
                runs[name, seed] = read_complete(folder) if (folder / COMPLETE).exists() else None
            except UserError as error:
                broken.append(str(error))
        return runs, broken

    def _table(self, name: str) -> Table:
        if name in SETUPS:
            return setup_table(name, self._setups())
        if name == RUNTIME:
            return self._runtime()
        if name not in published_names(self._config):
            raise UserError(f"{name}: no such table; there are: {', '.join(table_names(self._config))}")
        table = load_published(name, self._config)
        experiments = {name: self._experiment(name) for name in table.experiments}
        scores = read_scores(score_files(self._results, table.experiments))
        runtime = None
        # A broken one is reported when its own table is rendered.
        with suppress(UserError):
            runtime = load_runtime(self._config)
        return comparison_table(table, scores, experiments, runtime)

    def scores(self) -> list[dict[str, Any]]:
        """Return all scores of the study's experiments and of those named in the paper's tables."""
        return read_scores(score_files(self._results, self._named()))

    def _named(self) -> list[str]:
        """Return the study's experiments, then those of all readable tables, each once."""
        named = [name for table in self._readable_tables for name in table.experiments]
        return list(dict.fromkeys([*self._experiments, *named]))

    @cached_property
    def _readable_tables(self) -> list[PublishedTable]:
        found = []
        for name in published_names(self._config):
            # A broken one is reported when its own table is rendered.
            with suppress(UserError):
                found.append(load_published(name, self._config))
        return found

    def _is_own(self, name: str) -> bool:
        """Return whether the study's own configuration has an experiment, so that it does not only ship with udpm."""
        return own_file(Path(self._config) / "experiments", name).exists()

    def _experiment(self, name: str) -> Experiment | None:
        """Return the configuration, or None if its file cannot be read; its scores can still be shown."""
        try:
            return load_experiment(name, self._config)
        except UserError:
            return None

    @cached_property
    def _runs(self) -> dict[str, tuple[RunConfig, bool]]:
        """By experiment, the configuration that ran (of its first seed) or would run, and whether it ran."""
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
        """By experiment; counting takes seconds, and several tables need it."""
        return {name: count_cost(run) for name, (run, _) in self._runs.items()}

    def _setups(self) -> dict[str, Setup]:
        return {name: Setup(config, ran, self._costs[name]) for name, (config, ran) in self._runs.items()}

    def _runtime(self) -> Table:
        files = {name: Path(self._layout.speed(name)) for name in self._runs}
        speeds = {name: read_speed(path) for name, path in files.items() if path.exists()}
        datasets = {name: run.dataset_name for name, (run, _) in self._runs.items()}
        return runtime_table(load_runtime(self._config), self._costs, datasets, speeds)


def _headlines(
    experiments: Mapping[str, Experiment | None],
    found: dict[str, list[ScoreSummary]],
    scores: list[dict[str, Any]],
    tables: list[PublishedTable],
) -> tuple[pd.DataFrame, list[str]]:
    rows, notes = [], []
    for name, experiment in experiments.items():
        state = NOT_SCORED if experiment is not None and experiment.scoring is None else NOT_RUN
        entries: list[ScoreSummary | None] = [*found[name]] or [None]
        for entry in entries:
            floors = {kind: _baseline(scores, name, kind, entry) for kind in BASELINES}
            rows.append(
                {
                    "experiment": name,
                    "checkpoint": MISSING if entry is None else entry.checkpoint,
                    "score": MISSING if entry is None else entry.label,
                    "measured": state if entry is None else str(entry),
                    "N": MISSING if entry is None else str(entry.score["protocol"]["n"]),
                    "at the floor's N": MISSING if entry is None else _matched(entry),
                    "held-out (floor)": floors["heldout"],
                    "noise (ceiling)": floors["noise"],
                    **_against_the_paper(name, entry, tables, state),
                }
            )
            if entry is not None:
                notes.append(entry.describe())
    table = pd.DataFrame(rows)
    if rows and (table["published"] == "none").all():
        table = table.drop(columns=["published", "verdict"])
    return table, list(dict.fromkeys(notes))


def _against_the_paper(
    name: str, entry: ScoreSummary | None, tables: list[PublishedTable], state: str
) -> dict[str, str]:
    for table in tables:
        for row in table.rows:
            if name in row.experiments and row.value is not None:
                word, why = (state, "") if entry is None else verdict(table, row, entry)
                return {"published": f"{row.value:.2f}", "verdict": f"{word}: {why}" if why else word}
    return {"published": "none", "verdict": MISSING}


def _matched(entry: ScoreSummary) -> str:
    """Format the distance of as many images as the floor has, with their number."""
    return f"{mean(entry.matched.values()):.2f} ({entry.matched_count})" if entry.matched else MISSING


def _baseline(scores: list[dict[str, Any]], name: str, kind: str, entry: ScoreSummary | None) -> str:
    """Format the score of held-out images or noise, in the same features as a measured one, and its N.

    If there are more held-out images than samples, it is that of as many.
    """
    for score in scores:
        if score["experiment"] != name or score["subject"]["kind"] != kind:
            continue
        if entry is not None and comparable(score, FEATURES) != comparable(entry.score, FEATURES):
            continue
        metric, count = score["metrics"]["frechet_distance"], score["protocol"]["n"]
        matched = score["metrics"].get(MATCHED)
        if kind == "heldout" and matched and entry is not None and matched["n"] == entry.matched_count:
            metric, count = matched, matched["n"]
        return MISSING if metric["value"] is None else f"{metric['value']:.2f} ({count})"
    return MISSING


def _what_ran(runs: Runs, experiments: dict[str, Experiment]) -> tuple[pd.DataFrame, list[str]]:
    rows = [
        {
            "run": f"{name}, seed {seed}",
            "data set": experiments[name].dataset,
            "iterations": cell(record.get("iterations")),
            "hours": cell(record.get("seconds") and record["seconds"] / HOUR, "{:.2g}"),
            "device": record.get("device") or MISSING,
            "weights (SHA-256)": record["weights_sha256"][:12],
            "commit": (record["provenance"]["commit"] or "unknown")[:12],
            "torch": record["provenance"]["versions"].get("torch", MISSING),
        }
        for (name, seed), record in runs.items()
        if record is not None
    ]
    return pd.DataFrame(rows), [] if rows else ["Nothing has run to its end."]


def _missing(
    runs: Runs, experiments: dict[str, Experiment], found: dict[str, list[ScoreSummary]], layout: Layout
) -> list[str]:
    """Return notes on missing parts of the study, each with the command that makes it."""
    notes = [
        f"{name}, seed {seed}: not trained to its end; {command(name, experiments[name])}."
        for (name, seed), record in runs.items()
        if record is None
    ]
    for name, config in experiments.items():
        if config.scoring is None:
            notes.append(f"{name}: nothing is scored (scoring: null).")
            continue
        measured_seeds = {seed for entry in found[name] for seed in entry.values}
        left = [str(seed) for seed in config.seeds if seed not in measured_seeds]
        if left:
            notes.append(f"{name}: no score of seed {', '.join(left)}; {command(name, config)}.")
        for further in config.scoring.each[1:]:
            files = {seed: layout.scores(f"seed{seed}", name, suffix_of(further.extractor)) for seed in measured_seeds}
            if left := [str(seed) for seed, file in sorted(files.items()) if not Path(file).exists()]:
                by = f"{name}: no score of seed {', '.join(left)} by {further.extractor}"
                notes.append(f"{by}; {command(name, config)}.")
        best = advice(name, BEST, config)
        if not best.how and config.training != "imported":
            best = another_with_best(name, config)
        if best.how and not any(entry.checkpoint == BEST for entry in found[name]):
            notes.append(f"{name}: the best checkpoint is not scored; {best.how}.")
    return notes or ["Nothing that this study lists."]


def _elsewhere(others: Mapping[str, Experiment | None], scores: list[dict[str, Any]]) -> list[str]:
    """Return notes on unscored experiments of the paper's tables outside the study."""
    scored = {score["experiment"] for score in scores if score["subject"]["kind"] == "samples"}
    return [
        f"{name}: is not in this study; {command(name, config)}."
        for name, config in others.items()
        if name not in scored and config is not None and config.scoring is not None
    ]
