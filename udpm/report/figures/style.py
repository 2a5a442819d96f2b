"""The style of all figures, their sizes, and how they are saved: svg, pdf, png, and csv of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
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

# Okabe and Ito's palette is safe for colour blindness; markers and dashes distinguish lines in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 200
LARGEST = 1815
"""Pixels of a .png's longer side: 9.1 inches, 870 pixels of the .svg in Snakemake's report, which crops large ones."""

plt.rcParams.update(
    {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "font.size": 9,
        "axes.titlesize": 9,
        "figure.titlesize": 9,
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
        # Text stays text, to search and to edit; journals refuse matplotlib's default fonts in .pdf.
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
    }
)


LEVEL = "ℓ"
"""The level's symbol in figures, since an l without serifs looks like an I."""


def subscript(number: int) -> str:
    """Return a number in subscript digits."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def tile(columns: int, rows: int, largest: float, margins: tuple[float, float]) -> float:
    """Return the side of the square cells of a grid that fits on a figure, in inches.

    The figure needs the width and height `margins` outside the grid, in inches.
    """
    width, height = margins
    return min(largest, (LARGEST / DPI - width) / columns, (LARGEST / DPI - height) / rows)


def tiles(columns: int, rows: int, largest: float, margins: tuple[float, float]) -> tuple[Figure, np.ndarray, float]:
    """Return a figure with a grid of axes for images, the axes as an array of `rows` × `columns`, and `tile`."""
    side = tile(columns, rows, largest, margins)
    size = (columns * side + margins[0], rows * side + margins[1])
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, grid, side


def bare(axes: Axes) -> None:
    """Remove ticks, grid and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def plot_row(cells: Sequence[Axes], images: Iterable[np.ndarray], caption: str) -> None:
    """Show images, (h, w, 3) each, in a row of axes with a caption on the left."""
    for axes, image in zip(cells, images, strict=True):
        axes.imshow(image, interpolation="nearest")
        bare(axes)
    cells[0].set_ylabel(caption, rotation=0, ha="right", va="center")


LABELLED = ((0.5, "2345678"), (1.2, "2346"), (2.5, "25"))
"""Decades of a logarithmic axis, and the digits that are labelled below that many; powers of ten always are."""


def set_logarithmic(axes: Axes, most: str = "2345678") -> None:
    """Make the vertical axis logarithmic, with as many labels as its range needs, for the digits `most` at most."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:g}")
    digits = next((digits for decades, digits in LABELLED if np.log10(high / low) < decades), "")
    axes.yaxis.set_minor_formatter(partial(minor_label, digits="".join(digit for digit in digits if digit in most)))


def minor_label(value: float, _position: int | None = None, *, digits: str) -> str:
    """Format a value between powers of ten if it begins with one of some digits."""
    return f"{value:g}" if f"{value:.0e}"[0] in digits else ""


def save(figure: Figure, stem: str | Path, data: pd.DataFrame) -> None:
    """Write ``STEM.svg``, ``.pdf``, ``.png`` and ``.csv`` (the data), each atomically, and close the figure.

    The figure is scaled down if a side of the .png would exceed 1815 pixels; its text keeps its size.
    """
    size = figure.get_size_inches()
    if max(size) * DPI > LARGEST:
        figure.set_size_inches(size * (LARGEST / DPI / max(size)))
    # Laid out once: it takes as long as drawing, and all formats are the same.
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    csv = data.to_csv(index=False)
    described = {"Description": mark(csv)}
    _save(figure, stem, ".svg", {"Date": None, "Creator": "udpm", **described})
    _save(figure, stem, ".pdf", {"CreationDate": None, "Creator": "udpm", "Subject": described["Description"]})
    # Written between the two files that contain its digest: after a kill at any time, one of them matches the .csv.
    write_text(f"{stem}.csv", csv)
    _save(figure, stem, ".png", {"Software": "udpm", **described})
    plt.close(figure)


def _save(figure: Figure, stem: str | Path, suffix: str, metadata: dict[str, str | None]) -> None:
    with atomic_path(f"{stem}{suffix}") as temporary:
        figure.savefig(temporary, format=suffix[1:], metadata=metadata)
        seal_file(temporary)
