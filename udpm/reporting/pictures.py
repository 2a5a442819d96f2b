"""Figures made of images: the sample grid and the sampling chain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from udpm.config.base import NonNegativeInt, PositiveFloat, Record
from udpm.config.validation import validate
from udpm.core.arrays import check_array
from udpm.core.errors import UserError
from udpm.data.arrays import load_arrays
from udpm.data.samples import SampleSet, load_samples
from udpm.reporting import words
from udpm.reporting.style import save, tile

COLUMNS = 12
NOISE_RANGE = 3

CELL, WIDTH, NARROWEST, BESIDE, HEAD = 0.8, 6.0, 5.6, 0.6, 0.6
CHAIN_CELL, CHAIN_MARGINS, ROOMY = 0.72, (1.3, 0.5), 0.65
"""Inches: side of a cell, width of all images of a row, width of the narrowest figure, margins next to and above the
images; names of classes fit above cells larger than the last."""


class ChainRecord(Record):
    """Required content of a chain's record."""

    classes: NonNegativeInt = 0
    class_names: list[str] = []
    scale: PositiveFloat = 2


def draw_samples(path: str | Path, stem: str | Path) -> None:
    """The first images of a sample set, one row for each class; an unlabelled set fills rows in order.

    Raises:
        UserError: no readable sample set.
    """
    samples = load_samples(path)
    record = samples.record
    names, shown = _rows(samples.labels, record)
    columns = max(map(len, shown))
    # Few images of many classes make one narrow column, which is cut into parts, drawn side by side.
    parts = max(1, round(math.sqrt(len(shown) / columns))) if names else 1
    rows = -(-len(shown) // parts)
    beside = BESIDE * parts if names else 0.0
    cell = min(WIDTH / (parts * columns), tile(parts * columns, rows, CELL, (beside, HEAD)))
    size = (max(NARROWEST, parts * columns * cell + beside), rows * cell + HEAD)
    figure, grid = plt.subplots(1, parts, figsize=size, squeeze=False, layout="constrained")
    for part, axes in enumerate(grid[0]):
        some = slice(part * rows, (part + 1) * rows)
        _draw_part(axes, [samples.images[numbers] for numbers in shown[some]], names[some], rows, columns)
    if names:
        grid[0, 0].set_ylabel("class asked for")
    flat = [number for numbers in shown for number in numbers]
    lines = [f"{words.run(record)}: {words.calls(record)}, {words.weights(record)}", *_left_out(samples, flat)]
    figure.suptitle("\n".join(lines), fontsize=9)
    save(figure, stem, pd.DataFrame({"number": flat, "label": samples.labels[flat]}))


def _draw_part(axes: Axes, images: list[np.ndarray], names: list[str], rows: int, columns: int) -> None:
    """Draw rows of images, (n, h, w, 3) each, into a grid of `rows` by `columns`."""
    height, width = images[0].shape[1:3]
    gap = max(1, width // 16)
    down, across = height + gap, width + gap
    canvas = np.full((rows * down - gap, columns * across - gap, 3), 255, dtype=np.uint8)
    for row, several in enumerate(images):
        for column, image in enumerate(several):
            top, left = row * down, column * across
            canvas[top : top + height, left : left + width] = image
    axes.imshow(canvas, interpolation="nearest")
    bare(axes)
    axes.set_yticks([row * down + height / 2 for row in range(len(names))], names)


def _left_out(samples: SampleSet, shown: list[int]) -> list[str]:
    """A line on how many images and classes a figure shows, where it does not show all."""
    held, classes = len(samples.labels), samples.record.get("classes", 0)
    if len(shown) == held:
        return []
    there = len(np.unique(samples.labels)) if classes else 0
    seen = len(np.unique(samples.labels[shown]))
    some = f" and {seen} of {there} classes" if seen < there else ""
    return [f"{len(shown)} of {held} images{some} are shown"]


def draw_chain(path: str | Path, stem: str | Path) -> None:
    """From noise to image: for every level the state that went in and the output that came out.

    Raises:
        UserError: no readable chain.
    """
    arrays, levels, record = _load_chain(path)
    labels, scale, classes = arrays["labels"], record.get("scale", 2), record.get("classes", 0)
    names = [(kind, level) for level in levels for kind in ("x", "f")]
    count = min(len(labels), COLUMNS)
    cell = tile(count, len(names), CHAIN_CELL, CHAIN_MARGINS)
    size = [number * cell + margin for number, margin in zip((count, len(names)), CHAIN_MARGINS, strict=True)]
    figure, grid = plt.subplots(len(names), count, figsize=size, squeeze=False, layout="constrained")
    if count < len(labels):
        what = "classes" if classes else "images"
        figure.suptitle(f"{count} of {len(labels)} {what} are shown", fontsize=9)
    rows = []
    for row, (kind, level) in enumerate(names):
        values = arrays[f"{kind}_{level}"]
        picture, caption = _shown(values, kind, level, scale)
        for column in range(count):
            grid[row, column].imshow(picture[column].transpose(1, 2, 0), interpolation="nearest")
            bare(grid[row, column])
            if row == 0 and classes:
                name = words.of_class(record, labels[column])
                grid[row, column].set_title(name, fontsize=9 if cell > ROOMY else 7)
        grid[row, 0].set_ylabel(caption, rotation=0, ha="right", va="center")
        rows.append({"row": f"{kind}_{level}", "side": values.shape[-1], "mean": values.mean(), "std": values.std()})
    save(figure, stem, pd.DataFrame(rows))


def _load_chain(path: str | Path) -> tuple[dict[str, np.ndarray], list[int], dict[str, Any]]:
    """A chain's arrays, its levels, coarsest first, and its record.

    Raises:
        UserError: no readable chain.
    """
    arrays, record = load_arrays(path, "chain", "udpm sample --chain")
    validate(ChainRecord, record, f"{path}: record")
    levels = [level for level in range(1, len(arrays) + 1) if f"x_{level}" in arrays]
    if levels != list(range(1, len(levels) + 1)) or not levels or "labels" not in arrays:
        raise UserError(f"{path}: not a chain: its arrays are not labels, x_1, f_1, …; `udpm sample --chain` makes it")
    check_array(f"{path}: labels", arrays["labels"], np.integer, ("n",))
    count = len(arrays["labels"])
    side = arrays["x_1"].shape[-1] if arrays["x_1"].ndim else 0
    for level in levels:
        if f"f_{level}" not in arrays:
            raise UserError(f"{path}: has no array f_{level}; `udpm sample --chain` makes it")
        small, large = side >> (level - 1), 2 * side >> (level - 1)
        check_array(f"{path}: x_{level}", arrays[f"x_{level}"], np.floating, (count, 3, small, small))
        check_array(f"{path}: f_{level}", arrays[f"f_{level}"], np.floating, (count, 3, large, large))
    return arrays, levels[::-1], record


def _shown(values: np.ndarray, kind: str, level: int, scale: int) -> tuple[np.ndarray, str]:
    """Values as colours in [0, 1], (n, 3, h, w), and the row's caption."""
    side = values.shape[-1]
    if kind == "f":
        name = "x₀ = f(x₁)" if level == 1 else f"f(x{subscript(level)})"
        return ((values / scale ** (level - 1) + 1) / 2).clip(0, 1), f"{name}\n{side}×{side}"
    return shown_state(values), f"x{subscript(level)}\n{side}×{side}, ±{NOISE_RANGE} std"


def shown_state(values: np.ndarray) -> np.ndarray:
    """Noisy states as colours in [0, 1]: black and white are three standard deviations from 0."""
    return ((values / (NOISE_RANGE * (values.std() or 1)) + 1) / 2).clip(0, 1)


def subscript(number: int) -> str:
    """A number as an index."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _rows(labels: np.ndarray, record: dict[str, Any]) -> tuple[list[str], list[list[int]]]:
    """Row names and, for each row, the numbers of the images in it."""
    if not record.get("classes"):
        numbers = list(range(min(len(labels), COLUMNS * 8)))
        return [], [numbers[start : start + COLUMNS] for start in range(0, len(numbers), COLUMNS)]
    present = np.unique(labels)[:COLUMNS].tolist()
    names = [words.of_class(record, label).removeprefix("class ") for label in present]
    return names, [list(np.flatnonzero(labels == label)[:COLUMNS]) for label in present]


def bare(axes: Axes) -> None:
    """Nothing but the image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
