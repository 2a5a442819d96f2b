"""Figures of a sweep: heat maps of its grids, and the same images of every point as a strip."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from udpm.config.points import LoadedSweep
from udpm.core.errors import UserError
from udpm.metrics.protocol import class_words, noise_words
from udpm.report.figures.style import COLOURS, bare, save
from udpm.report.scores import PATTERNS
from udpm.report.sweep import Result, label_of
from udpm.report.table import MISSING
from udpm.runs.layout import Layout
from udpm.sampling.sample_set import SampleSet, load_samples

BEST = COLOURS[1]
COLOUR_MAP = "cividis"
"""Safe for colour blindness and grey print."""
HEAT_CELL, HEAT_MARGINS, WIDEST = (0.8, 0.5), (2.6, 1.5), (8.8, 8.8)
"""Inches."""
MANY = 11
"""Number of columns from which on values are not written into the cells."""


def plot_heat_map(loaded: LoadedSweep, found: list[Result], grid: str, stem: str | Path) -> None:
    """Plot the means over seeds of a grid of two axes, with the best outlined; points without a score stay empty.

    Raises:
        UserError: no such grid, or one of another number of axes.
    """
    axes = loaded.sweep.grids.get(grid)
    if axes is None or len(axes) != 2:
        drawn = ", ".join(loaded.sweep.heat_maps) or "none"
        raise UserError(f"{grid}: not a grid of two axes of sweep {loaded.name}, which has: {drawn}")
    rows, columns = axes
    metric = loaded.sweep.rank_by
    inside = [result for result in found if result.resolved.point.grid == grid]
    places = {result.resolved.point.labels: result for result in inside}
    labels = axes[rows].labels, axes[columns].labels
    values = np.array([[_value(places[row, column], metric) for column in labels[1]] for row in labels[0]])
    data = [
        {rows: row, columns: column, "point": result.name, "seeds": len(result.values(metric))}
        | {metric: result.mean(metric), f"{metric}_std": result.spread(metric)}
        for (row, column), result in ((cell, places[cell]) for cell in itertools.product(*labels))
    ]
    label = label_of(found, metric)
    size = [
        min(limit, count * cell + margin)
        for count, cell, margin, limit in zip(values.shape[::-1], HEAT_CELL, HEAT_MARGINS, WIDEST, strict=True)
    ]
    figure, drawing = plt.subplots(figsize=size, layout="constrained")
    seeds = max(len(result.values(metric)) for result in inside)
    scale = f"{label}, {f'mean over {seeds} seeds' if seeds > 1 else 'one seed'}"
    _plot_values(drawing, values, scale, PATTERNS[metric], falls=loaded.sweep.falls)
    names = [axis if axes[axis].key in (None, axis) else f"{axis}: {axes[axis].key}" for axis in axes]
    drawing.set_xticks(range(len(labels[1])), labels[1], rotation=45 if len(labels[1]) > MANY else 0)
    drawing.set_yticks(range(len(labels[0])), labels[0])
    drawing.set(ylabel=names[0], xlabel=names[1])
    figure.suptitle(f"{loaded.name}, grid {grid}: {label}")
    save(figure, stem, pd.DataFrame(data))


def _plot_values(axes: Axes, values: np.ndarray, scale: str, pattern: str, *, falls: bool) -> None:
    """Show values (rows × columns, NaN where unknown) as colours, bright is good, with the best outlined.

    The best is the greatest if `falls`. `scale` is the label of the colours.
    """
    axes.grid(False)
    # The background of cells without a value.
    axes.set_facecolor("0.85")
    shown = axes.imshow(values, cmap=COLOUR_MAP if falls else f"{COLOUR_MAP}_r", aspect="auto")
    # Full numbers on the scale, without an offset.
    axes.figure.colorbar(shown, ax=axes, label=scale).ax.ticklabel_format(useOffset=False)
    if values.shape[1] < MANY:
        _write_values(axes, shown, values, pattern)
    if np.isfinite(values).any():
        best = np.nanargmax(values) if falls else np.nanargmin(values)
        row, column = np.unravel_index(best, values.shape)
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=BEST, linewidth=2.5, clip_on=False)
        )


def _write_values(axes: Axes, shown, values: np.ndarray, pattern: str) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", color="black")
            continue
        red, green, blue, _ = shown.cmap(shown.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(column, row, pattern.format(value), ha="center", va="center", color="white" if dark else "black")


def _value(result: Result, metric: str) -> float:
    mean = result.mean(metric) if result.rank is not None else None
    return np.nan if mean is None else mean


COLUMNS, ROWS = 10, 14
"""Maximum numbers of images per point and of points."""
STRIP_CELL, STRIP_MARGINS = 0.56, (3.3, 0.7)
"""Inches."""
SHARE = 0.94
"""Fraction of a cell that its image fills."""
SMALL, LINE = 6.5, 38
"""Font size of the text on a point's changes, and its characters per line."""


@dataclass(frozen=True)
class StripRow:
    """A point of the strip.

    Attributes:
        seed: the point's first training seed, whose images are shown.
        samples: its images, or None.
        why: reason for having no images.
        levels: of its schedule; noise depends on them.
    """

    result: Result
    seed: int
    samples: SampleSet | None
    why: str
    levels: int

    @property
    def has_classes(self) -> bool:
        """True if its images were sampled by class."""
        return self.samples is not None and self.samples.record.get("classes", 0) > 0


def plot_sample_strip(loaded: LoadedSweep, found: list[Result], results: Path, stem: str | Path) -> None:
    """Plot the same images of every point, in the sweep's order; of many points, the best, which `found` has first."""
    kept = {result.name for result in found[:ROWS]}
    by_name = {result.name: result for result in found}
    points = {name: point for name, point in loaded.points.items() if point.point.name in kept}
    rows = [_row(by_name[point.point.name], name, results) for name, point in points.items()]
    numbers, labels = _columns(rows)
    metric = loaded.sweep.rank_by
    named = label_of(found, metric)
    size = [count * STRIP_CELL + margin for count, margin in zip((len(numbers), len(rows)), STRIP_MARGINS, strict=True)]
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    bare(axes)
    remarks = [_remark(row, rows, numbers, labels) for row in rows]
    for place, (row, remark) in enumerate(zip(rows, remarks, strict=True)):
        _plot_images(axes, row, place, numbers)
        _plot_words(axes, row, place, remark)
        axes.text(len(numbers) + 0.1, place + 0.5, _score(row.result, metric), va="center")
    axes.text(len(numbers) + 0.1, -0.15, named.replace(" (", "\n("), va="bottom")
    record = next((row.samples.record for row in rows if row.samples is not None and row.has_classes), {})
    for column, label in enumerate(labels):
        name = class_words(record, label).replace("class ", "class\n")
        axes.text(column + 0.5, -0.15, name, ha="center", va="bottom", fontsize=None if "\n" in name else SMALL)
    axes.set(xlim=(0, len(numbers)), ylim=(len(rows), 0), aspect="equal")
    some = f", the {len(rows)} best of {len(found)} points" if len(found) > len(rows) else ""
    figure.suptitle(f"{loaded.name}{some}: one noise and one class to a column")
    data = [_data(row, metric, remark, numbers, labels) for row, remark in zip(rows, remarks, strict=True)]
    save(figure, stem, pd.DataFrame(data))


def _row(result: Result, name: str, results: Path) -> StripRow:
    experiment = result.resolved.experiment
    seed = experiment.seeds[0]
    samples, why = None, ""
    try:
        # The record leads to the images, in one file or in shards.
        samples = load_samples(Layout(results).sample_record(name, seed))
    except UserError as error:
        why = str(error)
    return StripRow(result, seed, samples, why, experiment.process.levels)


def _columns(rows: list[StripRow]) -> tuple[list[int], list[int]]:
    """Return the numbers of the images shown, the first of each class, and their classes; none without classes."""
    asked = next((row.samples.labels for row in rows if row.samples is not None and row.has_classes), None)
    if asked is None:
        fewest = min((len(row.samples.images) for row in rows if row.samples is not None), default=COLUMNS)
        return list(range(min(COLUMNS, fewest))), []
    labels, firsts = np.unique(asked, return_index=True)
    return firsts[:COLUMNS].tolist(), labels[:COLUMNS].tolist()


def _remark(row: StripRow, rows: list[StripRow], numbers: list[int], labels: list[int]) -> str:
    """Describe how a row's images differ from the first row that has images."""
    if row.samples is None:
        return ""
    first, images = next((one, one.samples) for one in rows if one.samples is not None)
    remarks = []
    if labels and not row.has_classes:
        remarks.append("no class")
    elif labels and [int(row.samples.labels[number]) for number in _there(row, numbers)] != labels:
        remarks.append("other classes")
    if row.levels != first.levels or noise_words(row.samples.record) != noise_words(images.record):
        remarks.append("other noise")
    return ", ".join(remarks)


def _there(row: StripRow, numbers: Iterable[int]) -> list[int]:
    count = 0 if row.samples is None else len(row.samples.images)
    return [number for number in numbers if number < count]


def _plot_images(axes: Axes, row: StripRow, place: int, numbers: list[int]) -> None:
    there = _there(row, numbers)
    for column, number in enumerate(numbers):
        extent = (column, column + SHARE, place + SHARE, place)
        if row.samples is not None and number in there:
            axes.imshow(row.samples.images[number], extent=extent, interpolation="nearest")
        else:
            axes.imshow(np.full((1, 1, 3), 0.92), extent=extent)
            axes.text(column + SHARE / 2, place + SHARE / 2, "missing", ha="center", va="center", fontsize=SMALL)


def _plot_words(axes: Axes, row: StripRow, place: int, remark: str) -> None:
    point = row.result.resolved.point
    # The name of a grid's point already contains its changes.
    changes = "" if point.grid else point.changes_text.replace('"', "")
    lines = textwrap.wrap(changes, LINE, max_lines=2, placeholder=" …")
    name = f"{point.name} ({remark})" if remark else point.name
    axes.text(-0.12, place + (0.27 if lines else 0.47), name, ha="right", va="center")
    axes.text(-0.12, place + 0.44, "\n".join(lines), ha="right", va="top", fontsize=SMALL, color="0.35")


def _score(result: Result, metric: str) -> str:
    """Format mean and spread over seeds; a point without a rank has none."""
    if result.rank is None:
        return MISSING
    count = len(result.values(metric))
    return f"{result.format(metric)}\n{count} of {len(result.resolved.experiment.seeds)} seeds"


def _data(row: StripRow, metric: str, remark: str, numbers: list[int], labels: list[int]) -> dict[str, Any]:
    result = row.result
    return {
        "point": result.name,
        "changes": result.resolved.point.changes_text,
        "training_seed": row.seed,
        "images": "missing" if row.samples is None else "shown",
        "why_missing": row.why,
        "differs_in": remark,
        "samples_sha256": None if row.samples is None else row.samples.record["sha256"],
        "image_numbers": " ".join(map(str, numbers)),
        "classes": " ".join(map(str, labels)),
        "rank": result.rank,
        metric: result.mean(metric),
        f"{metric}_std": result.spread(metric),
        "seeds": " ".join(map(str, result.values(metric))),
        f"{metric}_values": " ".join(map(str, result.values(metric).values())),
        "missing_seeds": " ".join(map(str, result.missing)),
    }
