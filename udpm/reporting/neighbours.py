"""Samples over their nearest training images: has the model learned, or learned by heart?"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure

from udpm.core.errors import UserError
from udpm.data.samples import load_samples
from udpm.data.store import Store, open_store
from udpm.reporting import words
from udpm.reporting.pictures import bare
from udpm.reporting.style import COLOURS, save, tile
from udpm.scoring.neighbours import nearest_images

LIMIT = 1000
"""Samples and held-out images whose distances make the curves, at most; the first ones."""
BINS = 30
CELL, MARGINS, SMALL = 0.66, (1.0, 0.0), 0.5
"""Inches; the last is the side of a cell from which on the number above it has room."""


def draw_neighbours(samples: str | Path, dataset: str | Path, stem: str | Path, columns: int = 12) -> None:
    """The samples nearest to training images, those images, and the distances of samples and of held-out images.

    A model that copies has samples nearer to training images than new images of the same kind are: the ratio of the
    means, 1 where they are as far, is the score's nearest-image distance ratio (of the first images, as many as shown).

    Args:
        samples: .npz of a sample set.
        dataset: the prepared data set that the model was trained on.
        stem: path without suffix.
        columns: samples shown.

    Raises:
        UserError: no readable sample set or data set, or images of another side.
    """
    found, store = load_samples(samples), open_store(dataset)
    images = found.images[:LIMIT]
    if images.shape[1:3] != (store.side, store.side):
        raise UserError(f"{samples}: images of side {images.shape[1]}, but {dataset} has {store.side}")
    training = np.array(store.images[store.split("train")])
    numbers, distances = nearest_images(images, training)
    unseen = _unseen(store, training)
    order = np.argsort(distances, kind="stable")[:columns]
    figure = plt.figure(figsize=(tile(columns, 1, CELL, MARGINS) * columns + MARGINS[0], 4.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.0, 1.35))
    _pictures(upper, [images[order], training[numbers[order]]], distances[order])
    ratio = distances.mean() / unseen.mean() if len(unseen) else None
    upper.suptitle(
        f"{words.run(found.record)}: the {len(order)} of {len(images)} samples that are nearest to a training image",
        fontsize=9,
    )
    _distances(lower, distances, unseen, ratio)
    table = pd.DataFrame({"kind": "sample", "number": range(len(images)), "nearest": numbers, "distance": distances})
    held = pd.DataFrame({"kind": "held-out", "number": range(len(unseen)), "distance": unseen})
    save(figure, stem, pd.concat([table, held]).astype({"nearest": "Int64"}))


def _unseen(store: Store, training: np.ndarray) -> np.ndarray:
    """Distances of held-out images to the nearest training image; none where the data set has no test split."""
    try:
        images = np.array(store.images[store.split("test")])[:LIMIT]
    except UserError:
        return np.empty(0)
    return nearest_images(images, training)[1]


def _pictures(figure: SubFigure, rows: list[np.ndarray], distances: np.ndarray) -> None:
    grid = figure.subplots(len(rows), len(distances), squeeze=False)
    for line, (axes, images) in enumerate(zip(grid, rows, strict=True)):
        for place, (cell, image) in enumerate(zip(axes, images, strict=True)):
            cell.imshow(image, interpolation="nearest")
            bare(cell)
            if line == 0:
                small = tile(len(distances), 1, CELL, MARGINS) < SMALL
                cell.set_title(f"{distances[place]:.{2 if small else 3}f}", fontsize=6 if small else 8)
        axes[0].set_ylabel("sample" if line == 0 else "nearest\ntraining\nimage", rotation=0, ha="right", va="center")


def _distances(figure: SubFigure, samples: np.ndarray, unseen: np.ndarray, ratio: float | None) -> None:
    axes = figure.subplots()
    edges = np.linspace(0, max(samples.max(), unseen.max(initial=0)), BINS + 1)
    sets = [("samples", samples, COLOURS[1], "-"), ("held-out images", unseen, COLOURS[0], "--")]
    for name, values, colour, dashes in (part for part in sets if len(part[1])):
        label = f"{name} ({len(values)}), mean {values.mean():.3f}"
        weights = np.full(len(values), 1 / len(values))
        axes.hist(
            values, edges, weights=weights, histtype="step", color=colour, linestyle=dashes, linewidth=1.6, label=label
        )
    said = (
        "no held-out images to compare with" if ratio is None else f"ratio of the means {ratio:.2f} (below 1: nearer)"
    )
    axes.set_title(said)
    axes.set_xlabel("distance to the nearest training image (root mean square over pixels in [0, 1])")
    axes.set_ylabel("share of images")
    axes.legend(loc="upper left")
