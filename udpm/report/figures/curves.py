"""Curves: losses over iterations, and milestones with their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from udpm.core.errors import UserError
from udpm.metrics.protocol import run_words
from udpm.metrics.selection import read_selection
from udpm.report import table as render
from udpm.report.figures.style import COLOURS, MARKERS, save
from udpm.report.table import MISSING
from udpm.runs.records import read_metrics_lines

PANELS = {
    "generator/reconstruction": "generator: reconstruction",
    "generator/lpips": "generator: LPIPS",
    "generator/adversarial": "generator: adversarial",
    "discriminator/loss": "discriminator: loss",
    "discriminator/r1": "discriminator: squared gradient (R1)",
}
LOGARITHMIC = {"generator/reconstruction", "discriminator/r1"}


def read_metrics(path: str | Path) -> pd.DataFrame:
    """``metrics.jsonl`` as a table, one row for each iteration that was logged.

    A run that was resumed may have logged an iteration twice (the later one holds), and a killed one may end in half
    a line.

    Raises:
        UserError: missing, or a line that is not one of metrics.
    """
    rows: dict[int, dict] = {}
    for number, row in enumerate(read_metrics_lines(path), start=1):
        if row is None:
            raise UserError(f"{path}: line {number} is not a line of metrics; delete it")
        rows[row["iteration"]] = row
    if not rows:
        raise UserError(f"{path}: holds no metrics yet")
    return pd.DataFrame([rows[iteration] for iteration in sorted(rows)])


def draw_curves(path: str | Path, stem: str | Path) -> None:
    """Losses over iterations, a panel for each kind, a line for each level.

    Raises:
        UserError: no readable metrics.
    """
    metrics = read_metrics(path)
    panels = {kind: _levels(metrics, kind) for kind in PANELS}
    panels = {kind: levels for kind, levels in panels.items() if levels}
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(7.6, 2.5 * rows), squeeze=False, layout="constrained")
    for axes, (kind, levels) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, metrics, kind, levels)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    save(figure, stem, metrics)


def _levels(metrics: pd.DataFrame, kind: str) -> list[str]:
    return sorted(column for column in metrics if column.rpartition("/")[0] == kind)


def _panel(axes: Axes, metrics: pd.DataFrame, kind: str, levels: list[str]) -> None:
    for column in levels:
        level = int(column.rpartition("/l")[2])
        known = metrics[["iteration", column]].dropna()
        axes.plot(
            known["iteration"],
            known[column],
            color=COLOURS[(level - 1) % len(COLOURS)],
            marker=MARKERS[(level - 1) % len(MARKERS)],
            markevery=max(1, len(known) // 8),
            label=f"l = {level}",
        )
    axes.set_title(PANELS[kind])
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss" if kind != "discriminator/r1" else "‖∇D‖²")
    if kind in LOGARITHMIC and (metrics[levels].min() > 0).all():
        axes.set_yscale("log")
    axes.legend()


SHOWN = {"precision": "{:.3f}", "recall": "{:.3f}", "class_agreement": "{:.3f}"}
WORDS = 1


def milestone_table(selection: dict[str, Any]) -> pd.DataFrame:
    """One row for each milestone with every metric in full precision, and whether it was chosen."""
    table = pd.DataFrame(selection["milestones"])
    table.insert(1, "selected", table["iteration"] == selection["iteration"])
    return table


def write_table(selection: dict[str, Any], stem: str | Path) -> None:
    """Write ``STEM.csv`` (everything), ``STEM.md``, ``STEM.tex`` and ``STEM.html`` (to read)."""
    rows = []
    for milestone in selection["milestones"]:
        chosen = " (selected)" if milestone["iteration"] == selection["iteration"] else ""
        row = {"iteration": f"{milestone['iteration']}{chosen}"}
        row[selection["label"]] = f"{milestone['frechet_distance']:.2f}"
        for name, pattern in SHOWN.items():
            value = milestone.get(name)
            row[name.replace("_", " ")] = MISSING if value is None else pattern.format(value)
        rows.append(row)
    table, notes = pd.DataFrame(rows), [_note(selection)]
    render.write_table(stem, milestone_table(selection), table, notes, WORDS, "Milestones")


def draw_selection(path: str | Path, stem: str | Path) -> None:
    """Fréchet distance over iterations, with the selected milestone marked.

    Raises:
        UserError: no readable selection.
    """
    selection = read_selection(path)
    table = milestone_table(selection)
    figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    axes.plot(table["iteration"], table["frechet_distance"], marker="o", color=COLOURS[0])
    chosen = table[table["selected"]]
    axes.plot(chosen["iteration"], chosen["frechet_distance"], "*", markersize=13, color=COLOURS[1], label="selected")
    axes.set_xlabel("iteration")
    axes.set_ylabel(selection["label"])
    axes.set_title(f"{run_words(selection)}: milestones, {selection['protocol']['n']} images each")
    axes.legend()
    save(figure, stem, table)


def _note(selection: dict[str, Any]) -> str:
    protocol, reference = selection["protocol"], selection["protocol"]["reference"]
    return (
        f"{run_words(selection)}, {selection['weights']} weights: {protocol['n']} images of each milestone, sampling "
        f"seed {selection['seed']}, to {reference['dataset']}/{reference['split']} in features of "
        f"{protocol['extractor']['name']} (SHA-256 {protocol['extractor']['sha256'][:12]}). Drawn to choose by: the "
        "selected milestone's score is that of other images."
    )
