"""Figures of the latent-space experiments: grids of images with labelled rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udpm.config.validation import NonNegativeInt, Record, validate
from udpm.core.arrays import check_array, check_arrays, image_grid
from udpm.core.errors import UserError
from udpm.data.npz import load_arrays
from udpm.metrics.protocol import class_words, run_words, weights_words
from udpm.report.figures.style import DPI, LARGEST, LEVEL, save, subscript

FORMAT = "udpm-latents/1"

LARGEST_TILE, LARGE_ENOUGH = 0.8, 0.42
"""Inches of a tile, one image with a gap; grids are placed side by side while tiles are large enough."""
LETTER, LINE, GAP, PAD = 0.078, 0.165, 0.2, 0.1
NARROWEST = 5.6

Arrays = dict[str, np.ndarray]

SYMBOLS = {"eps": "ε", "z": "z"}
"""Kinds of noise maps in an experiment's array `kinds`, for models whose calls take a latent."""
IMAGE = ("N", "N", 3)
EXPECTED: dict[str, dict[str, tuple[type, tuple[int | str, ...]]]] = {
    "perturb": {
        "images": (np.uint8, ("L", "R", "S", *IMAGE)),
        "levels": (np.integer, ("L",)),
        "strengths": (np.floating, ("L", "S")),
        "labels": (np.integer, ("R",)),
        "seeds": (np.integer, ("R",)),
    },
    "swap": {
        "images": (np.uint8, ("R", "C", *IMAGE)),
        "levels": (np.integer, ("L",)),
        "labels": (np.integer, ("R",)),
        "seeds": (np.integer, ("R", 2)),
    },
    "interpolate": {
        "images": (np.uint8, ("G", "G", *IMAGE)),
        "across": (np.floating, ("G",)),
        "down": (np.floating, ("G",)),
        "labels": (np.integer, ("K",)),
        "seeds": (np.integer, (4,)),
    },
    "pca": {
        "images": (np.uint8, ("L", "n", *IMAGE)),
        "mean": (np.floating, ("L", *IMAGE)),
        "components": (np.floating, ("L", "K", *IMAGE)),
        "explained": (np.floating, ("L", "K")),
        "levels": (np.integer, ("L",)),
        "labels": (np.integer, ("M",)),
        "seeds": (np.integer, (1,)),
    },
}
"""Arrays of each kind of experiment, with their types and shapes."""


class LatentsRecord(Record):
    """Required content of an experiment's record."""

    classes: NonNegativeInt
    class_names: list[str] = []
    experiment: str | None = None
    run_seed: NonNegativeInt | None = None
    iteration: NonNegativeInt | None = None
    weights: str | None = None
    origin: dict[str, Any] | None = None


class Grid(NamedTuple):
    """Images in rows and columns, and their names.

    Attributes:
        images: (R, C, N, N, 3) uint8.
        rows: R names, on the left.
        columns: C names, on top.
        below: C names under the last row, or none.
        title: above the columns' names, or empty.
    """

    images: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    below: Sequence[str] = ()
    title: str = ""


class Content(NamedTuple):
    """Content of a figure: its title, its grids (all of one shape), and a row of data per image."""

    title: str
    grids: list[Grid]
    data: pd.DataFrame


def plot_latents(path: str | Path, stem: str | Path) -> None:
    """Plot the images of one latent-space experiment.

    Raises:
        UserError: no readable file of `udpm latents`.
    """
    arrays, record = _load(path)
    content = CONTENTS[record["kind"]](arrays, record)
    title = f"{content.title}\n{run_words(record)}: {weights_words(record)}"
    save(_sheet(title, content.grids), stem, content.data)


def _load(path: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """Read arrays and record of a latent-space experiment."""
    arrays, record = load_arrays(path, "latent-space experiment", "udpm latents")
    if record.get("format") != FORMAT or record.get("kind") not in list(EXPECTED):
        raise UserError(f"{path}: format is {record.get('format')!r}, expected {FORMAT!r}; `udpm latents` makes it")
    validate(LatentsRecord, record, f"{path}: record")
    check_arrays(path, arrays, EXPECTED[record["kind"]])
    if "kinds" in arrays:
        check_array(f"{path}: kinds", arrays["kinds"], np.str_, (len(arrays["levels"]),))
        if unknown := set(arrays["kinds"].tolist()) - SYMBOLS.keys():
            raise UserError(f"{path}: kinds holds {', '.join(sorted(unknown))}; expected {' and '.join(SYMBOLS)}")
    if record["kind"] == "swap" and arrays["images"].shape[1] != len(arrays["levels"]) + 2:
        columns, levels = arrays["images"].shape[1], len(arrays["levels"])
        raise UserError(f"{path}: images has {columns} columns for {levels} levels; expected {levels + 2}")
    return arrays, record


def _perturb(arrays: Arrays, record: dict[str, Any]) -> Content:
    images, levels, strengths, maps = arrays["images"], arrays["levels"], arrays["strengths"], _symbols(arrays)
    labels, seeds = arrays["labels"], arrays["seeds"]
    rows = [
        class_words(record, label) if record["classes"] else f"seed {seed}"
        for label, seed in zip(labels, seeds, strict=True)
    ]
    grids = [
        Grid(
            pictures, rows, [f"{share:.3g}" for share in shares], title=f"{symbol}{_map(level, images)}, share g kept:"
        )
        for pictures, symbol, level, shares in zip(images, maps, levels, strengths, strict=True)
    ]
    lines = [
        {"level": f"{maps[panel]}{levels[panel]}", "row": row, "column": column, "label": labels[row]}
        | {"seed": seeds[row], "strength": strengths[panel, column]}
        for panel, row, column in np.ndindex(images.shape[:3])
    ]
    return Content("One noise map mixed with another draw, the others fixed", grids, pd.DataFrame(lines))


def _swap(arrays: Arrays, record: dict[str, Any]) -> Content:
    images, levels, labels, seeds = (arrays[name] for name in ("images", "levels", "labels", "seeds"))
    first, second = ("A", "B") if not record["classes"] else (f"A\nseed {seeds[0, 0]}", f"B\nseed {seeds[0, 1]}")
    named = [class_words(record, label) for label in labels]
    rows = named if record["classes"] else [f"seeds {a}, {b}" for a, b in seeds]
    maps = list(zip(_symbols(arrays), levels, strict=True))
    kinds = arrays["kinds"].tolist() if "kinds" in arrays else ["eps"] * len(levels)
    # Short names, since columns are narrow and one that does not fit would be left out.
    short = [f"{SYMBOLS[kind]}{subscript(level)}" for kind, level in zip(kinds, levels, strict=True)]
    columns = [first, *(f"B, but\n{name} of A" for name in short), second]
    names = ["A", *(f"B with {symbol}level {level} of A" for symbol, level in maps), "B"]
    lines = [
        {"row": row, "column": column, "label": labels[row], "image": names[column]}
        | {"seed_a": seeds[row, 0], "seed_b": seeds[row, 1]}
        for row, column in np.ndindex(images.shape[:2])
    ]
    title = "Two latents A and B, and B with one noise map taken from A"
    return Content(title, [Grid(images, rows, columns)], pd.DataFrame(lines))


def _interpolate(arrays: Arrays, record: dict[str, Any]) -> Content:
    images, across, down, seeds = (arrays[name] for name in ("images", "across", "down", "seeds"))
    # (δ, η) = (1, 1), (0, 1), (1, 0), (0, 0) are the first to the fourth latent: turned, so that reading begins there.
    columns, below = [f"δ = {share:.3g}" for share in across[::-1]], [""] * len(across)
    columns[0], columns[-1] = f"seed {seeds[0]}\n{columns[0]}", f"seed {seeds[1]}\n{columns[-1]}"
    below[0], below[-1] = f"seed {seeds[2]}", f"seed {seeds[3]}"
    lines = [
        {"row": row, "column": column, "label": arrays["labels"][0], "across": across[column], "down": down[row]}
        for row, column in np.ndindex(images.shape[:2])
    ]
    grid = Grid(images[::-1, ::-1], [f"η = {share:.3g}" for share in down[::-1]], columns, below)
    title = f"Four latents mixed at all levels{_of_class(arrays, record)}"
    return Content(f"{title}\nδ: share of the left corners, η: of the upper ones", [grid], pd.DataFrame(lines))


def _pca(arrays: Arrays, record: dict[str, Any]) -> Content:
    mean, components, explained = arrays["mean"], arrays["components"], arrays["explained"]
    # Grey is no change; every component is scaled to its own largest entry.
    largest = np.abs(components).max(axis=(2, 3, 4), keepdims=True)
    values = np.concatenate([mean[:, None], components / np.where(largest > 0, largest, 1)], axis=1)
    pictures = ((values + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    grids: list[Grid] = []
    maps = _symbols(arrays)
    for row, symbol, level, shares in zip(pictures, maps, arrays["levels"], explained, strict=True):
        # Only the shares differ between rows, so the first row alone names the columns.
        columns = ["", *(f"{100 * share:.1f} %" for share in shares)]
        if not grids:
            columns = ["mean", *(f"{number}\n{share}" for number, share in enumerate(columns[1:], start=1))]
        grids.append(Grid(row[None], [f"{symbol}{_map(level, pictures)}"], columns))
    lines = [
        {"level": f"{maps[panel]}{arrays['levels'][panel]}", "component": number, "label": arrays["labels"][0]}
        | {"seed": arrays["seeds"][0], "explained": explained[panel, number - 1] if number else None}
        for panel, number in np.ndindex(pictures.shape[:2])
    ]
    images = f"{arrays['images'].shape[1]} images that differ in one noise map"
    title = f"Principal components, with their share of variance, of {images}{_of_class(arrays, record)}"
    return Content(title, grids, pd.DataFrame(lines))


CONTENTS: dict[str, Callable[[Arrays, dict[str, Any]], Content]] = {
    "perturb": _perturb,
    "swap": _swap,
    "interpolate": _interpolate,
    "pca": _pca,
}


def _of_class(arrays: Arrays, record: dict[str, Any]) -> str:
    return f", {class_words(record, arrays['labels'][0])}" if record["classes"] else ""


def _symbols(arrays: Arrays) -> list[str]:
    """Return the prefix of each map's level; empty if all maps are ε."""
    kinds = arrays["kinds"].tolist() if "kinds" in arrays else [None] * len(arrays["levels"])
    return ["" if kind is None else f"{SYMBOLS[kind]}, " for kind in kinds]


def _map(level: int, images: np.ndarray) -> str:
    side = images.shape[-2] >> int(level)
    return f"{LEVEL} = {level}, {side}×{side}"


def _sheet(title: str, grids: list[Grid]) -> Figure:
    """Return a figure with grids of one shape, as large as its limit allows."""
    limit, (rows, columns) = LARGEST / DPI, grids[0].images.shape[:2]
    left = LETTER * max(len(name) for grid in grids for name in grid.rows) + GAP
    bottom = LINE * bool(grids[0].below) + (GAP if rows > 1 else PAD)
    head = LINE * (title.count("\n") + 1) + 2 * PAD

    def tops(across: int) -> list[float]:
        """Return the height above each row of grids."""
        return [max(map(_height_above, grids[start : start + across])) for start in range(0, len(grids), across)]

    def tile(across: int) -> float:
        width = (limit - left - GAP * across) / (across * columns)
        height = ((limit - head - sum(tops(across))) * across / len(grids) - bottom) / rows
        return min(LARGEST_TILE, width, height)

    divisors = [across for across in range(1, len(grids) + 1) if len(grids) % across == 0]
    across = max(divisors, key=lambda number: (min(tile(number), LARGE_ENOUGH), number))
    side = tile(across)
    width = max(min(NARROWEST, limit), left + across * (columns * side + GAP))
    above = tops(across)
    height = head + sum(above) + len(above) * (rows * side + bottom)
    figure = plt.figure(figsize=(width, height))
    figure.text(0.5, 1 - PAD / height, title, ha="center", va="top")
    indent = left + (width - left - across * (columns * side + GAP)) / 2
    for number, grid in enumerate(grids):
        down, right = divmod(number, across)
        x = indent + right * (columns * side + GAP)
        y = height - head - sum(above[: down + 1]) - (down + 1) * rows * side - down * bottom
        axes = figure.add_axes((x / width, y / height, columns * side / width, rows * side / height))
        _show(axes, grid, side, named=right == 0)
    return figure


def _height_above(grid: Grid) -> float:
    """Return the height of a grid's column names and title, in inches."""
    return LINE * (max(name.count("\n") + 1 for name in grid.columns) + bool(grid.title)) + PAD


def _show(axes: Axes, grid: Grid, side: float, *, named: bool) -> None:
    """Show a grid of tiles of a side in inches, with row names if `named`."""
    rows, columns, pixels = grid.images.shape[:3]
    gap = max(1, pixels // 16)
    step = pixels + gap
    # Every tile has its gap, so that names are centred over tiles of equal width.
    canvas = np.pad(image_grid(list(grid.images), columns, gap), ((0, gap), (0, gap), (0, 0)), constant_values=255)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    widest = LETTER * max(len(line) for name in grid.columns for line in name.split("\n"))
    shown = _thinned(columns, widest / side)
    axes.set_xticks([column * step + pixels / 2 for column in shown], [grid.columns[column] for column in shown])
    if widest > side:
        # A name wider than its tile must not extend into the next grid or off the sheet.
        axes.get_xticklabels()[-1].set_horizontalalignment("right")
    shown = _thinned(rows, LINE / side) if named else []
    axes.set_yticks([row * step + pixels / 2 for row in shown], [grid.rows[row] for row in shown])
    for column, name in enumerate(grid.below):
        axes.text(column * step + pixels / 2, rows * step, name, ha="center", va="top")
    axes.set_title(grid.title)


def _thinned(count: int, need: float) -> list[int]:
    """Return which of `count` tiles get a name that is `need` tiles wide: all, or every n-th and the last."""
    every = max(1, int(np.ceil(need)))
    return [*range(0, count - every, every), count - 1]
