"""How the points of a sweep did: a ranking over seeds, heat maps of grids, and the best point as an experiment."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from udpm.config.experiment import Experiment
from udpm.config.points import LoadedSweep, Resolved
from udpm.core.errors import UserError
from udpm.core.kinds import mark, seal_text
from udpm.metrics.protocol import read_score
from udpm.report.figures.style import COLOURS, save
from udpm.report.table import MISSING, markdown, write_table
from udpm.runs.layout import Layout

BEST = COLOURS[1]
COLOUR_MAP = "cividis"
"""Tells apart with every kind of colour vision, and in grey print."""
HEAT_CELL, HEAT_MARGINS, WIDEST = (0.8, 0.5), (2.6, 1.5), (8.8, 8.8)
"""Inches."""
MANY = 11
"""Cells of a row from which on their numbers would not fit."""


@dataclass(frozen=True)
class HeatMap:
    """What is shown.

    Attributes:
        values: rows × columns; NaN where there is none.
        labels: of the rows and of the columns.
        axes: names of the rows' and of the columns' axis.
        title: of the figure.
        scale: what the colours are.
    """

    values: np.ndarray
    labels: tuple[list[str], list[str]]
    axes: tuple[str, str]
    title: str
    scale: str


def draw(heat: HeatMap, pattern: str, stem: str | Path, data: pd.DataFrame, *, falls: bool) -> None:
    """Draw a heat map; the best value is outlined, bright is good.

    Args:
        heat: what is shown.
        pattern: how a value is written.
        stem: of the figure.
        data: behind it.
        falls: whether the greatest value is the best.
    """
    rows, columns = heat.values.shape
    size = [
        min(limit, count * cell + margin)
        for count, cell, margin, limit in zip((columns, rows), HEAT_CELL, HEAT_MARGINS, WIDEST, strict=True)
    ]
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.grid(False)
    # Cells without a value show the ground.
    axes.set_facecolor("0.85")
    shown = axes.imshow(heat.values, cmap=COLOUR_MAP if falls else f"{COLOUR_MAP}_r", aspect="auto")
    # Whole numbers on the scale, not what they exceed another one by.
    figure.colorbar(shown, ax=axes, label=heat.scale).ax.ticklabel_format(useOffset=False)
    axes.set_xticks(range(columns), heat.labels[1], rotation=45 if columns > MANY else 0)
    axes.set_yticks(range(rows), heat.labels[0])
    axes.set(ylabel=heat.axes[0], xlabel=heat.axes[1])
    figure.suptitle(heat.title, fontsize=plt.rcParams["axes.titlesize"])
    if columns < MANY:
        _write_values(axes, shown, heat.values, pattern)
    if np.isfinite(heat.values).any():
        best = np.nanargmax(heat.values) if falls else np.nanargmin(heat.values)
        row, column = np.unravel_index(best, heat.values.shape)
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=BEST, linewidth=2.5, clip_on=False)
        )
    save(figure, stem, data)


def _write_values(axes: Axes, shown, values: np.ndarray, pattern: str) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", color="black")
            continue
        red, green, blue, _ = shown.cmap(shown.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(column, row, pattern.format(value), ha="center", va="center", color="white" if dark else "black")


LOSSES = ("reconstruction", "lpips", "adversarial")
WORDS = 3
"""Leading columns of the table to read that hold words."""
PATTERNS = {
    "frechet_distance": "{:.2f}",
    "class_frechet_distance": "{:.2f}",
    "kernel_distance": "{:.3g}",
    "precision": "{:.3f}",
    "recall": "{:.3f}",
    "class_agreement": "{:.3f}",
}
"""Metrics, and how they are shown."""
ALWAYS = ("frechet_distance", "precision", "recall", "class_agreement")
"""Metrics of the table to read, beside the one that is ranked by."""


@dataclass
class Result:
    """What is known of a point's scores.

    Attributes:
        resolved: the point.
        values: by metric, of every seed that has one, by seed.
        missing: why a seed has no score.
        measured: how: what scores must share to be compared.
        labels: what metrics are called, by name.
        rank: place in the ranking, from 1; None for a point that has none.
    """

    resolved: Resolved
    values: dict[str, dict[int, float]] = field(default_factory=lambda: {metric: {} for metric in PATTERNS})
    missing: dict[int, str] = field(default_factory=dict)
    measured: set[tuple] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)
    rank: int | None = None

    @property
    def name(self) -> str:
        """Of the point."""
        return self.resolved.point.name

    def mean(self, metric: str) -> float | None:
        """Over the seeds that have a value."""
        values = self.values[metric].values()
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; one value has none."""
        values = self.values[metric].values()
        return statistics.stdev(values) if len(values) > 1 else None

    def show(self, metric: str) -> str:
        """Mean ± spread, as far as there are."""
        mean, spread, pattern = self.mean(metric), self.spread(metric), PATTERNS[metric]
        if mean is None:
            return MISSING
        return pattern.format(mean) + (f" ± {pattern.format(spread)}" if spread is not None else "")


def read_results(loaded: LoadedSweep, results: Path) -> list[Result]:
    """Scores of all points, best first; points without a value, or measured in another way than most, come last."""
    found = [_read(resolved, name, results) for name, resolved in loaded.points.items()]
    ways = Counter(way for result in found for way in result.measured)
    usual = {max(ways, key=ways.__getitem__)} if ways else set()
    metric, sign = loaded.sweep.rank_by, -1 if loaded.sweep.falls else 1
    ranked = [result for result in found if result.measured == usual and result.mean(metric) is not None]
    ranked.sort(key=lambda result: sign * result.mean(metric))
    for rank, result in enumerate(ranked, start=1):
        result.rank = rank
    return [*ranked, *(result for result in found if result.rank is None)]


def render_ranking(loaded: LoadedSweep, found: list[Result]) -> str:
    """The table to read, as markdown."""
    return markdown(_readable(loaded, found), _notes(loaded, found))


def write_ranking(loaded: LoadedSweep, found: list[Result], stem: str | Path) -> str:
    """Write ``STEM.csv`` (everything), ``STEM.md``, ``STEM.tex`` and ``STEM.html`` (to read).

    Returns:
        The markdown.
    """
    shown, notes = _readable(loaded, found), _notes(loaded, found)
    return write_table(stem, ranking_table(found), shown, notes, WORDS, "Ranking")


def ranking_table(found: list[Result]) -> pd.DataFrame:
    """One row for each point in full precision: mean, standard deviation and every seed's value of each metric."""
    rows = []
    for result in found:
        row: dict[str, Any] = {"rank": result.rank, "point": result.name, "changes": result.resolved.point.changes_text}
        row |= {"grid": result.resolved.point.grid, "axis_values": " ".join(result.resolved.point.labels)}
        seeds = result.resolved.experiment.seeds
        row |= {"seeds": " ".join(map(str, seeds)), "missing_seeds": " ".join(map(str, result.missing))}
        for metric in PATTERNS:
            row |= {metric: result.mean(metric), f"{metric}_std": result.spread(metric)}
            row[f"{metric}_values"] = " ".join(str(result.values[metric].get(seed, MISSING)) for seed in seeds)
        rows.append(row)
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def best_experiment(loaded: LoadedSweep, found: list[Result]) -> str:
    """The best point as the text of an experiment's file, at the base's length.

    Raises:
        UserError: no point has a rank.
    """
    best = found[0]
    if best.rank is None:
        raise UserError(f"sweep {loaded.name}: no point has a {loaded.sweep.rank_by} yet, so none is the best")
    metric = loaded.sweep.rank_by
    said = f"point {best.name} of sweep {loaded.name}, best of {len(found)} by {metric} at the sweep's budget"
    values = {"extends": loaded.sweep.base, "description": said, **best.resolved.overrides}
    return seal_text(
        f"# yaml-language-server: $schema=../schema/experiment.schema.json\n# {mark()}\n"
        f"# {best.labels.get(metric, metric)} {best.show(metric)}. Copy this file to config/experiments/NAME.yaml to "
        f"run it at the length of {loaded.sweep.base}:\n"
        "# snakemake --config experiments=NAME\n"
        + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)
    )


def draw_heat_map(loaded: LoadedSweep, found: list[Result], grid: str, stem: str | Path) -> None:
    """A grid of two axes: mean over seeds at every point, the best outlined; points without a score stay empty.

    Raises:
        UserError: no such grid, or one of another number of axes.
    """
    axes = loaded.sweep.grids.get(grid)
    if axes is None or len(axes) != 2:
        drawn = ", ".join(loaded.sweep.heat_maps) or "none of this sweep"
        raise UserError(f"{grid}: no grid of two axes of sweep {loaded.name}; these are: {drawn}")
    # Here, because pyplot takes a second to import.

    rows, columns = axes
    metric = loaded.sweep.rank_by
    inside = [result for result in found if result.resolved.point.grid == grid]
    places = {result.resolved.point.labels: result for result in inside}
    labels = axes[rows].labels, axes[columns].labels
    ranked = np.array([[_value(places[row, column], metric) for column in labels[1]] for row in labels[0]])
    data = [
        {rows: row, columns: column, "point": result.name, "seeds": len(result.values[metric])}
        | {metric: result.mean(metric), f"{metric}_std": result.spread(metric)}
        for (row, column), result in ((cell, places[cell]) for cell in itertools.product(*labels))
    ]
    named = next((result.labels[metric] for result in found if metric in result.labels), metric)
    titles = tuple(axis if axes[axis].key in (None, axis) else f"{axis}: {axes[axis].key}" for axis in axes)
    seeds = max(len(result.values[metric]) for result in inside)
    told = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    draw(
        HeatMap(ranked, labels, titles, f"{loaded.name}, grid {grid}: {named}", f"{named}, {told}"),
        PATTERNS[metric],
        stem,
        pd.DataFrame(data),
        falls=loaded.sweep.falls,
    )


def _value(result: Result, metric: str) -> float:
    return result.mean(metric) if result.rank is not None else np.nan


def _read(resolved: Resolved, name: str, results: Path) -> Result:
    result = Result(resolved)
    for seed in resolved.experiment.seeds:
        path = Path(Layout(results).scores(f"seed{seed}", name))
        try:
            score = read_score(path)
            protocol, metrics = score["protocol"], score["metrics"]
            way = (protocol["n"], protocol["extractor"]["sha256"], protocol["reference"]["sha256"])
        except UserError as error:
            result.missing[seed] = str(error)
            continue
        except KeyError as error:
            result.missing[seed] = f"{path}: lacks {error}"
            continue
        result.measured.add(way)
        for metric in PATTERNS:
            value = metrics.get(metric, {}).get("value")
            if value is not None:
                result.values[metric][seed] = value
                result.labels[metric] = metrics[metric]["label"]
    return result


def _readable(loaded: LoadedSweep, found: list[Result]) -> pd.DataFrame:
    metrics = dict.fromkeys((loaded.sweep.rank_by, *ALWAYS))
    labels = {metric: label for result in found for metric, label in result.labels.items()}
    return pd.DataFrame(
        {
            "rank": MISSING if result.rank is None else str(result.rank),
            "point": result.name,
            "changes of the base": result.resolved.point.changes_text or MISSING,
            "seeds": f"{len(result.resolved.experiment.seeds) - len(result.missing)} of "
            f"{len(result.resolved.experiment.seeds)}",
            **{labels.get(metric, metric): result.show(metric) for metric in metrics},
        }
        for result in found
    )


def _notes(loaded: LoadedSweep, found: list[Result]) -> list[str]:
    way = "greatest" if loaded.sweep.falls else "least"
    notes = [
        f"Ranked by {loaded.sweep.rank_by}, the {way} first: mean over seeds ± their sample standard deviation. All at "
        f"the sweep's budget, which is not the length of {loaded.sweep.base}.",
    ]
    usual = found[0].measured if found and found[0].rank is not None else set()
    for count, extractor, reference in usual:
        notes.append(
            f"{count} images each, features of the extractor with SHA-256 {extractor[:12]}, reference {reference[:12]}."
        )
    notes += _other_losses(loaded)
    for result in found:
        notes += [f"{result.name}, seed {seed}: no score ({why})." for seed, why in result.missing.items()]
        if result.measured and result.measured != usual:
            notes.append(f"{result.name}: not ranked, since it was not measured as most points were.")
        elif result.measured and result.mean(loaded.sweep.rank_by) is None:
            notes.append(f"{result.name}: its scores have no {loaded.sweep.rank_by}.")
    return notes


def _other_losses(loaded: LoadedSweep) -> list[str]:
    """Points that are trained by other kinds of losses than the base, which no score says."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for resolved in loaded.points.values():
        groups.setdefault(_kinds(resolved.experiment), []).append(resolved.point.name)
    groups.pop(_kinds(loaded.base), None)
    return [
        f"Trained by {' and '.join(kinds) or 'no'} losses alone, at all levels: {', '.join(names)}. The base's: "
        f"{', '.join(_kinds(loaded.base))}."
        for kinds, names in groups.items()
    ]


def _kinds(experiment: Experiment) -> tuple[str, ...]:
    weights = {kind: getattr(experiment.losses, f"{kind}_weight") for kind in LOSSES}
    return tuple(kind for kind, weight in weights.items() if any(weight if isinstance(weight, list) else [weight]))
