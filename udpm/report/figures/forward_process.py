"""The forward process on training images: what each level keeps of them."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved
from udpm.core.errors import UserError
from udpm.data.levels import decode
from udpm.data.store import Store, open_store
from udpm.diffusion.forward import step
from udpm.diffusion.latent import seeded
from udpm.diffusion.schedule import Schedule
from udpm.report.figures.samples import bare, shown_state, subscript
from udpm.report.figures.schedule import CELL, MARGINS
from udpm.report.figures.style import save, tile

COLUMNS = 10
"""At most."""


SEED = 0
"""Of the noise, which is a function of it and of the image's number."""


def draw_forward_process(config: str | Path, dataset: str | Path, stem: str | Path) -> None:
    """A training image of each class, and its states x_1 … x_L of one draw of the noise.

    Args:
        config: a run's resolved configuration.
        dataset: the prepared data set.
        stem: of the figure.

    Raises:
        UserError: no readable configuration or data set, or images of another side.
    """
    run, store = read_resolved(RunConfig, config), open_store(dataset)
    if run.dataset.side != store.side:
        raise UserError(f"{config}: is for images of side {run.dataset.side}, but {dataset} has {store.side}")
    schedule = Schedule.from_config(run.process)
    numbers, names = _examples(store)
    images = np.array(store.images[numbers])
    states = _states(schedule, images, numbers)
    shape = len(states) + 1, len(numbers)
    cell = tile(shape[1], shape[0], CELL, MARGINS)
    size = [count * cell + margin for count, margin in zip(reversed(shape), MARGINS, strict=True)]
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    shown = [images / 255, *(shown_state(state).transpose(0, 2, 3, 1) for state in states)]
    for level, (row, pictures) in enumerate(zip(grid, shown, strict=True)):
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            bare(axes)
        side = pictures.shape[1]
        ratio = f"\nSNR {schedule.snr(level):.2g}" if level else ""
        row[0].set_ylabel(f"x{subscript(level)}\n{side}×{side}{ratio}", rotation=0, ha="right", va="center")
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name)
    some = f", {len(numbers)} of {store.classes} classes" if len(numbers) < store.classes else ""
    figure.suptitle(f"{run.experiment}: forward process{some}", fontsize=9)
    rows = [
        row
        for place, number in enumerate(numbers)
        for row in _data(schedule, number, int(store.labels[number]), [state[place] for state in states])
    ]
    save(figure, stem, pd.DataFrame(rows))


def _examples(store: Store) -> tuple[list[int], list[str]]:
    """The first training image of each class, or the first ones of a data set without; and the columns' names."""
    train = store.split("train")
    if not store.classes:
        numbers = list(range(train.start, train.stop))[:COLUMNS]
        return numbers, [f"image {number}" for number in numbers]
    labels, firsts = np.unique(store.labels[train], return_index=True)
    names = store.record.get("class_names") or []
    told = [names[label] if len(names) > label else f"class {label}" for label in labels[:COLUMNS].tolist()]
    return (firsts[:COLUMNS] + train.start).tolist(), told


def _states(schedule: Schedule, images: np.ndarray, numbers: list[int]) -> list[np.ndarray]:
    """x_1 … x_L, (n, 3, h, w) each, one step after another."""
    latent = seeded(schedule, images.shape[1], SEED, numbers)
    state = torch.from_numpy(decode(images, 0, schedule.scale)).movedim(-1, 1)
    states = []
    for level in range(1, schedule.levels + 1):
        state = step(schedule, state, level, latent.noise(level))
        states.append(state.numpy())
    return states


def _data(schedule: Schedule, number: int, label: int, states: list[np.ndarray]) -> list[dict[str, float]]:
    return [
        {
            "image": number,
            "label": label,
            "level": level,
            "side": state.shape[-1],
            "signal": schedule.signal(level),
            "sigma_tilde": schedule.sigma_tilde(level),
            "snr": schedule.snr(level),
            "mean": state.mean(),
            "std": state.std(),
        }
        for level, state in enumerate(states, start=1)
    ]
