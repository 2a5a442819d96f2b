"""How every figure looks, and how it is saved: svg, png, and the csv of the data behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udpm.core.files import atomic_path, write_text
from udpm.core.kinds import mark, seal_file

# Okabe and Ito's colours tell apart with every kind of colour vision; markers and dashes tell apart in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 130
LARGEST = 1180
"""Pixels; Snakemake's report crops figures above about 1 200."""

plt.rcParams.update(
    {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "axes.prop_cycle": cycler(color=COLOURS),
        # Identifiers in svg files are random otherwise: same data, same bytes.
        "svg.hashsalt": "udpm",
    }
)


def tile(columns: int, rows: int, largest: float, margins: tuple[float, float]) -> float:
    """Side in inches of the square cells of a grid that fits a figure, at most `largest`.

    Args:
        columns: of the grid.
        rows: of the grid.
        largest: in inches.
        margins: what the figure needs beside and above the grid, in inches.
    """
    beside, above = margins
    return min(largest, (LARGEST / DPI - beside) / columns, (LARGEST / DPI - above) / rows)


def bare(axes: Axes) -> None:
    """Leave nothing of the axes but the image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def plot_row(cells: Sequence[Axes], images: Iterable[np.ndarray], caption: str) -> None:
    """Draw images, (h, w, 3) each, into a row of axes, with a caption on the left."""
    for axes, image in zip(cells, images, strict=True):
        axes.imshow(image, interpolation="nearest")
        bare(axes)
    cells[0].set_ylabel(caption, rotation=0, ha="right", va="center")


def save(figure: Figure, stem: str | Path, data: pd.DataFrame) -> None:
    """Write ``STEM.svg``, ``STEM.png`` and ``STEM.csv``, each atomically, and close the figure.

    Args:
        figure: one with a side above 1180 pixels is made smaller as a whole; its text keeps its size.
        stem: path without suffix.
        data: what the figure shows.
    """
    size = figure.get_size_inches()
    if max(size) * DPI > LARGEST:
        figure.set_size_inches(size * (LARGEST / DPI / max(size)))
    csv = data.to_csv(index=False)
    described = {"Description": mark(csv)}
    _save(figure, stem, ".svg", {"Date": None, "Creator": "udpm", **described})
    # Between the two that know it: whenever this is killed, one of them knows the .csv that is there.
    write_text(f"{stem}.csv", csv)
    _save(figure, stem, ".png", {"Software": "udpm", **described})
    plt.close(figure)


def _save(figure: Figure, stem: str | Path, suffix: str, metadata: dict[str, str | None]) -> None:
    with atomic_path(f"{stem}{suffix}") as temporary:
        figure.savefig(temporary, format=suffix[1:], metadata=metadata)
        seal_file(temporary)
