"""Figures made of images: the sample grid and the sampling chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from udpm.data.arrays import load_arrays
from udpm.data.samples import load_samples
from udpm.reporting import words
from udpm.reporting.style import save

COLUMNS = 12
NOISE_RANGE = 3


def draw_samples(path: str | Path, stem: str | Path) -> None:
    """The first images of a sample set, one row for each class; an unlabelled set fills rows in order.

    Raises:
        UserError: no readable sample set.
    """
    samples = load_samples(path)
    rows, shown = _rows(samples.labels, samples.record)
    side = samples.images.shape[1]
    gap = max(1, side // 16)
    columns = max(map(len, shown))
    canvas = np.full((len(shown) * (side + gap) - gap, columns * (side + gap) - gap, 3), 255, dtype=np.uint8)
    for row, numbers in enumerate(shown):
        for column, number in enumerate(numbers):
            top, left = row * (side + gap), column * (side + gap)
            canvas[top : top + side, left : left + side] = samples.images[number]
    height, width = canvas.shape[:2]
    figure, axes = plt.subplots(figsize=(6.4, 6.0 * height / width + 0.3), layout="constrained")
    axes.imshow(canvas, interpolation="nearest")
    bare(axes)
    if rows:
        axes.set_yticks([row * (side + gap) + side / 2 for row in range(len(shown))], rows)
        axes.set_ylabel("class asked for")
    record = samples.record
    axes.set_title(f"{words.run(record)}: {record['nfe']} network calls per image, {words.weights(record)}")
    flat = [number for numbers in shown for number in numbers]
    save(figure, stem, pd.DataFrame({"number": flat, "label": samples.labels[flat]}))


def draw_chain(path: str | Path, stem: str | Path) -> None:
    """From noise to image: for every level the state that went in and the output that came out.

    Raises:
        UserError: no readable chain.
    """
    arrays, record = load_arrays(path, "chain", "udpm sample --chain")
    levels = sorted((int(name[2:]) for name in arrays if name.startswith("x_")), reverse=True)
    labels, scale = arrays["labels"], record.get("scale", 2)
    names = [(kind, level) for level in levels for kind in ("x", "f")]
    count = len(labels)
    figure, grid = plt.subplots(
        len(names), count, figsize=(0.72 * count + 1.3, 0.72 * len(names) + 0.5), squeeze=False, layout="constrained"
    )
    rows = []
    for row, (kind, level) in enumerate(names):
        values = arrays[f"{kind}_{level}"]
        picture, caption = _shown(values, kind, level, scale)
        for column in range(count):
            grid[row, column].imshow(picture[column].transpose(1, 2, 0), interpolation="nearest")
            bare(grid[row, column])
            if row == 0 and record.get("classes"):
                grid[row, column].set_title(words.of_class(record, labels[column]))
        grid[row, 0].set_ylabel(caption, rotation=0, ha="right", va="center")
        rows.append({"row": f"{kind}_{level}", "side": values.shape[-1], "mean": values.mean(), "std": values.std()})
    save(figure, stem, pd.DataFrame(rows))


def _shown(values: np.ndarray, kind: str, level: int, scale: int) -> tuple[np.ndarray, str]:
    """Values as colours in [0, 1], (n, 3, h, w), and the row's caption."""
    side = values.shape[-1]
    if kind == "f":
        name = "x₀ = f(x₁)" if level == 1 else f"f(x{subscript(level)})"
        return ((values / scale ** (level - 1) + 1) / 2).clip(0, 1), f"{name}\n{side}×{side}"
    return shown_state(values), f"x{subscript(level)}\n{side}×{side}, ±{NOISE_RANGE} std"


def shown_state(values: np.ndarray) -> np.ndarray:
    """Noisy states as colours in [0, 1]: black and white are three standard deviations from 0."""
    return ((values / (NOISE_RANGE * values.std()) + 1) / 2).clip(0, 1)


def subscript(number: int) -> str:
    """A number as an index."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _rows(labels: np.ndarray, record: dict[str, Any]) -> tuple[list[str], list[list[int]]]:
    """Row names and, for each row, the numbers of the images in it."""
    classes = record.get("classes", 0)
    if not classes:
        numbers = list(range(min(len(labels), COLUMNS * 8)))
        return [], [numbers[start : start + COLUMNS] for start in range(0, len(numbers), COLUMNS)]
    present = [label for label in range(classes) if (labels == label).any()][:12]
    names = [words.of_class(record, label).removeprefix("class ") for label in present]
    return names, [list(np.flatnonzero(labels == label)[:COLUMNS]) for label in present]


def bare(axes: Axes) -> None:
    """Nothing but the image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
