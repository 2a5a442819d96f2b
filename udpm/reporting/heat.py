"""A heat map: values over two named axes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from udpm.reporting.style import COLOURS, save

BEST = COLOURS[1]
COLOUR_MAP = "cividis"
"""Tells apart with every kind of colour vision, and in grey print."""
CELL, MARGINS, WIDEST = (0.8, 0.5), (2.6, 1.5), (8.8, 8.8)
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
        for count, cell, margin, limit in zip((columns, rows), CELL, MARGINS, WIDEST, strict=True)
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
