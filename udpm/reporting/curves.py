"""Curves of training: losses over iterations."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from udpm.core.errors import UserError
from udpm.reporting.style import COLOURS, MARKERS, save
from udpm.training.records import read_metrics_lines

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
