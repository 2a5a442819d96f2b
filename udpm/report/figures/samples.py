"""Figures of images: sample grid, sampling chain, nearest training images, forward process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved
from udpm.config.validation import NonNegativeInt, Record, validate
from udpm.core.arrays import check_array, image_grid
from udpm.core.errors import UserError
from udpm.data.levels import decode
from udpm.data.npz import load_arrays
from udpm.data.store import Store, open_store
from udpm.diffusion.process import seeded, step
from udpm.diffusion.schedule import Schedule
from udpm.metrics.distances import nearest_images
from udpm.metrics.protocol import calls_words, class_words, run_words, weights_words
from udpm.report.figures.style import COLOURS, bare, plot_row, save, subscript, tile, tiles
from udpm.sampling.sample_set import SampleSet, load_samples

COLUMNS = 12
NOISE_RANGE = 3
"""Standard deviations from 0 that are shown as black and white."""

CELL, WIDTH, NARROWEST, LEFT, HEAD = 0.8, 6.0, 5.6, 0.6, 0.6
"""Inches: largest cell, width of a row of images, width of the narrowest figure, margins."""
CHAIN_CELL, CHAIN_MARGINS, ROOMY = 0.72, (1.3, 0.7), 0.65
"""Inches; class names fit above cells larger than the last."""


class ChainRecord(Record):
    """Required content of a chain's record."""

    classes: NonNegativeInt = 0
    class_names: list[str] = []
    scale: Literal[1, 2] = 2


def plot_samples(path: str | Path, stem: str | Path) -> None:
    """Plot the first images of a sample set, one row per class; an unlabelled set fills rows in order.

    Raises:
        UserError: no readable sample set.
    """
    samples = load_samples(path)
    record = samples.record
    names, shown = _rows(samples.labels, record)
    columns = max(map(len, shown))
    # Few images of many classes would make one narrow column; it is cut into parts, placed side by side.
    parts = max(1, round(math.sqrt(len(shown) / columns))) if names else 1
    rows = -(-len(shown) // parts)
    left = LEFT * parts if names else 0.0
    cell = min(WIDTH / (parts * columns), tile(parts * columns, rows, CELL, (left, HEAD)))
    size = (max(NARROWEST, parts * columns * cell + left), rows * cell + HEAD)
    figure, grid = plt.subplots(1, parts, figsize=size, squeeze=False, layout="constrained")
    for part, axes in enumerate(grid[0]):
        some = slice(part * rows, (part + 1) * rows)
        _plot_part(axes, [samples.images[numbers] for numbers in shown[some]], names[some], rows, columns)
    if names:
        grid[0, 0].set_ylabel("requested class")
    flat = [number for numbers in shown for number in numbers]
    lines = [f"{run_words(record)}: {calls_words(record)}, {weights_words(record)}", *_left_out(samples, flat)]
    figure.suptitle("\n".join(lines))
    save(figure, stem, pd.DataFrame({"number": flat, "label": samples.labels[flat]}))


def _plot_part(axes: Axes, images: list[np.ndarray], names: list[str], rows: int, columns: int) -> None:
    """Show rows of images, (n, h, w, 3) each, as a grid of `rows` by `columns`."""
    height, width = images[0].shape[1:3]
    gap = max(1, width // 16)
    axes.imshow(image_grid([*images, *[()] * (rows - len(images))], columns, gap), interpolation="nearest")
    bare(axes)
    axes.set_yticks([row * (height + gap) + height / 2 for row in range(len(names))], names)


def _left_out(samples: SampleSet, shown: list[int]) -> list[str]:
    """Return a line on how many images and classes are shown, unless all are."""
    held, classes = len(samples.labels), samples.record.get("classes", 0)
    if len(shown) == held:
        return []
    there = len(np.unique(samples.labels)) if classes else 0
    seen = len(np.unique(samples.labels[shown]))
    some = f" and {seen} of {there} classes" if seen < there else ""
    return [f"{len(shown)} of {held} images{some} are shown"]


def plot_chain(path: str | Path, stem: str | Path) -> None:
    """Plot the chain from noise to image: the input state and the network's output at every level.

    Raises:
        UserError: no readable chain.
    """
    arrays, levels, record = _load_chain(path)
    labels, scale, classes = arrays["labels"], record.get("scale", 2), record.get("classes", 0)
    names = [(kind, level) for level in levels for kind in ("x", "f")]
    count = min(len(labels), COLUMNS)
    figure, grid, cell = tiles(count, len(names), CHAIN_CELL, CHAIN_MARGINS)
    lines = [f"{run_words(record)}: the chain from noise to image, {weights_words(record)}"]
    if count < len(labels):
        lines.append(f"{count} of {len(labels)} {'classes' if classes else 'images'} are shown")
    figure.suptitle("\n".join(lines))
    rows = []
    for cells, (kind, level) in zip(grid, names, strict=True):
        values = arrays[f"{kind}_{level}"]
        picture, caption = _shown(values, kind, level, scale)
        plot_row(cells, picture[:count].transpose(0, 2, 3, 1), caption)
        rows.append({"row": f"{kind}_{level}", "side": values.shape[-1], "mean": values.mean(), "std": values.std()})
    for axes, label in zip(grid[0], labels[:count] if classes else (), strict=False):
        axes.set_title(class_words(record, label), fontsize=9 if cell > ROOMY else 7)
    save(figure, stem, pd.DataFrame(rows))


def _load_chain(path: str | Path) -> tuple[dict[str, np.ndarray], list[int], dict[str, Any]]:
    """Return a chain's arrays, its levels (coarsest first) and its record.

    Raises:
        UserError: no readable chain.
    """
    arrays, record = load_arrays(path, "chain", "udpm sample --chain")
    validate(ChainRecord, record, f"{path}: record")
    levels = [level for level in range(1, len(arrays) + 1) if f"x_{level}" in arrays]
    if levels != list(range(1, len(levels) + 1)) or not levels or "labels" not in arrays:
        raise UserError(f"{path}: not a chain; expected arrays labels, x_1, f_1, … as `udpm sample --chain` makes them")
    check_array(f"{path}: labels", arrays["labels"], np.integer, ("n",))
    count = len(arrays["labels"])
    side = arrays["x_1"].shape[-1] if arrays["x_1"].ndim else 0
    for level in levels:
        if f"f_{level}" not in arrays:
            raise UserError(f"{path}: array f_{level} not found; `udpm sample --chain` makes it")
        small, large = side >> (level - 1), 2 * side >> (level - 1)
        check_array(f"{path}: x_{level}", arrays[f"x_{level}"], np.floating, (count, 3, small, small))
        check_array(f"{path}: f_{level}", arrays[f"f_{level}"], np.floating, (count, 3, large, large))
    return arrays, levels[::-1], record


def _shown(values: np.ndarray, kind: str, level: int, scale: int) -> tuple[np.ndarray, str]:
    """Return values as colours in [0, 1], (n, 3, h, w), and the row's caption."""
    side = values.shape[-1]
    if kind == "f":
        name = "x₀ = f(x₁)" if level == 1 else f"f(x{subscript(level)})"
        return ((values / scale ** (level - 1) + 1) / 2).clip(0, 1), f"{name}\n{side}×{side}"
    return _shown_state(values), f"x{subscript(level)}\n{side}×{side}, ±{NOISE_RANGE} std"


def _shown_state(values: np.ndarray) -> np.ndarray:
    """Return noisy states as colours in [0, 1]."""
    return ((values / (NOISE_RANGE * (values.std() or 1)) + 1) / 2).clip(0, 1)


def _rows(labels: np.ndarray, record: dict[str, Any]) -> tuple[list[str], list[list[int]]]:
    """Return row names, and the image numbers of each row."""
    if not record.get("classes"):
        numbers = list(range(min(len(labels), COLUMNS * 8)))
        return [], [numbers[start : start + COLUMNS] for start in range(0, len(numbers), COLUMNS)]
    present = np.unique(labels)[:COLUMNS].tolist()
    names = [class_words(record, label).removeprefix("class ") for label in present]
    return names, [list(np.flatnonzero(labels == label)[:COLUMNS]) for label in present]


LIMIT = 1000
"""Number of samples, and of held-out images, whose distances are computed: the first ones."""
BINS = 30
NEAREST_CELL, NEAREST_MARGINS, SMALL = 0.66, (1.0, 0.0), 0.5
"""Inches; above cells smaller than the last, distances have two decimals."""
WORD = 9
"""Letters of the longest class name that fits above a cell."""


def plot_neighbours(samples: str | Path, dataset: str | Path, stem: str | Path, columns: int = 12) -> None:
    """Plot samples near training images above these, and the distances of samples and of held-out images.

    Shown is the nearest sample of each class, in the order of the classes; without classes, the nearest ones. Samples
    of a model that copies are nearer to training images than held-out images are. The ratio of the mean distances is
    the score's nearest-image distance ratio, here of the first `LIMIT` images.

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
    labels = found.labels[:LIMIT] if found.record.get("classes") else None
    order = _nearest(distances, labels, columns)
    width = tile(columns, 1, NEAREST_CELL, NEAREST_MARGINS) * columns + NEAREST_MARGINS[0]
    figure = plt.figure(figsize=(width, 4.6), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(1.0, 1.35)))
    names = [""] * len(order) if labels is None else [class_words(found.record, label) for label in labels[order]]
    _pictures(upper, [images[order], training[numbers[order]]], names, distances[order])
    ratio = distances.mean() / unseen.mean() if len(unseen) else None
    first = f"the first {len(images)} of {len(found.images)}" if len(images) < len(found.images) else str(len(images))
    which = f"the {len(order)}"
    if labels is not None:
        all_shown = len(order) == len(np.unique(labels))
        which = f"the one of each {'class' if all_shown else f'of {len(order)} classes'}"
    upper.suptitle(f"{run_words(found.record)}: of {first} samples, {which} nearest to a training image")
    _distances(lower, distances, unseen, ratio)
    table = pd.DataFrame({"kind": "sample", "number": range(len(images)), "nearest": numbers, "distance": distances})
    held = pd.DataFrame({"kind": "held-out", "number": range(len(unseen)), "distance": unseen})
    save(figure, stem, pd.concat([table, held]).astype({"nearest": "Int64"}))


def _nearest(distances: np.ndarray, labels: np.ndarray | None, count: int) -> np.ndarray:
    """Return the numbers of the nearest images: one of each class, or with more than `count` classes the nearest."""
    order = np.argsort(distances, kind="stable")
    if labels is None:
        return order[:count]
    firsts = order[np.sort(np.unique(labels[order], return_index=True)[1])][:count]
    return firsts[np.argsort(labels[firsts], kind="stable")]


def _unseen(store: Store, training: np.ndarray) -> np.ndarray:
    """Return distances of held-out images to the nearest training image; none without a test split."""
    try:
        images = np.array(store.images[store.split("test")])[:LIMIT]
    except UserError:
        return np.empty(0)
    return nearest_images(images, training)[1]


def _pictures(figure: SubFigure, rows: list[np.ndarray], names: list[str], distances: np.ndarray) -> None:
    grid = figure.subplots(len(rows), len(distances), squeeze=False)
    for cells, images, caption in zip(grid, rows, ("sample", "nearest\ntraining\nimage"), strict=True):
        plot_row(cells, images, caption)
    small = tile(len(distances), 1, NEAREST_CELL, NEAREST_MARGINS) < SMALL
    roomy = not small and max(map(len, names)) <= WORD
    for axes, name, distance in zip(grid[0], names, distances, strict=True):
        shown = f"{distance:.{2 if small else 3}f}"
        axes.set_title(f"{name}\n{shown}" if name and roomy else shown, fontsize=6 if small else 8)


def _distances(figure: SubFigure, samples: np.ndarray, unseen: np.ndarray, ratio: float | None) -> None:
    axes = figure.subplots()
    edges = np.linspace(0, max(samples.max(), unseen.max(initial=0)), BINS + 1).tolist()
    sets = [("samples", samples, COLOURS[1], "-"), ("held-out images", unseen, COLOURS[0], "--")]
    for name, values, colour, dashes in (part for part in sets if len(part[1])):
        label = f"{name} ({len(values)}), mean {values.mean():.3f}"
        shares = np.full(len(values), 1 / len(values))
        look: dict[str, Any] = {"histtype": "step", "color": colour, "linestyle": dashes, "linewidth": 1.6}
        axes.hist(values, edges, weights=shares, label=label, **look)
    known = f"ratio of the means {ratio:.2f} (below 1: nearer)" if ratio is not None else ""
    axes.set_title(known or "no held-out images to compare with")
    axes.set_xlabel("distance to the nearest training image (root mean square over pixels in [0, 1])")
    axes.set_ylabel("share of images")
    axes.legend(loc="upper left")


FORWARD_COLUMNS = 10
FORWARD_CELL, FORWARD_MARGINS = 0.74, (1.4, 0.6)
"""Inches."""
SEED = 0
"""Seed of the noise, which also depends on the image's number."""


def plot_forward_process(config: str | Path, dataset: str | Path, stem: str | Path) -> None:
    """Plot a training image of each class above its states x_1 … x_L for one draw of the noise.

    Args:
        config: a run's resolved configuration.
        dataset: the prepared data set.
        stem: of the figure.

    Raises:
        UserError: no readable configuration or data set, or images of another side.
    """
    run, store = read_resolved(RunConfig, config), open_store(dataset)
    if run.dataset.side != store.side:
        raise UserError(f"{config}: images of side {run.dataset.side}, but {dataset} has {store.side}")
    schedule = Schedule.from_config(run.process)
    numbers, names = _examples(store)
    images = np.array(store.images[numbers])
    states = _states(schedule, images, numbers)
    figure, grid, _ = tiles(len(numbers), len(states) + 1, FORWARD_CELL, FORWARD_MARGINS)
    shown = [images / 255, *(_shown_state(state).transpose(0, 2, 3, 1) for state in states)]
    for level, (row, pictures) in enumerate(zip(grid, shown, strict=True)):
        side = pictures.shape[1]
        ratio = f"\nSNR {schedule.snr(level):.2g}" if level else ""
        plot_row(row, pictures, f"x{subscript(level)}\n{side}×{side}{ratio}")
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name)
    some = f", {len(numbers)} of {store.classes} classes" if len(numbers) < store.classes else ""
    figure.suptitle(f"{run.experiment}: forward process{some}")
    rows = [
        {"image": number, "label": int(store.labels[number]), "level": level, "side": state.shape[-1]}
        | {"signal": schedule.signal(level), "sigma_tilde": schedule.sigma_tilde(level), "snr": schedule.snr(level)}
        | {"mean": state[place].mean(), "std": state[place].std()}
        for place, number in enumerate(numbers)
        for level, state in enumerate(states, start=1)
    ]
    save(figure, stem, pd.DataFrame(rows))


def _examples(store: Store) -> tuple[list[int], list[str]]:
    """Return the first training image of each class, or the first ones without classes; and the columns' names."""
    train = store.split("train")
    if not store.classes:
        numbers = list(range(train.start, train.stop))[:FORWARD_COLUMNS]
        return numbers, [f"image {number}" for number in numbers]
    labels, firsts = np.unique(store.labels[train], return_index=True)
    names = store.record.get("class_names") or []
    shown = [names[label] if len(names) > label else f"class {label}" for label in labels[:FORWARD_COLUMNS].tolist()]
    return (firsts[:FORWARD_COLUMNS] + train.start).tolist(), shown


def _states(schedule: Schedule, images: np.ndarray, numbers: list[int]) -> list[np.ndarray]:
    """Return x_1 … x_L, (n, 3, h, w) each."""
    latent = seeded(schedule, images.shape[1], SEED, numbers)
    state = torch.from_numpy(decode(images, 0, schedule.scale)).movedim(-1, 1)
    states = []
    for level in range(1, schedule.levels + 1):
        state = step(schedule, state, level, latent.noise(level))
        states.append(state.numpy())
    return states
