"""Curves: training losses, and the noise schedule."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved
from udpm.core.errors import UserError
from udpm.process.schedule import Schedule
from udpm.reporting.style import COLOURS, MARKERS, save

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
        UserError: missing, or a line that is not JSON.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: metrics cannot be read: {getattr(error, 'strerror', error)}") from None
    rows: dict[int, dict] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["iteration"]] = row
        except (json.JSONDecodeError, KeyError, TypeError):
            if number == len(lines):
                continue
            raise UserError(f"{path}: line {number} is not a line of metrics; delete it") from None
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


def draw_schedule(path: str | Path, stem: str | Path) -> None:
    """Signal, noise and their ratio at every level.

    Args:
        path: a run's resolved configuration.
        stem: of the figure.

    Raises:
        UserError: no readable configuration.
    """
    config = read_resolved(RunConfig, path)
    schedule = Schedule.from_config(config.process)
    levels = list(range(1, schedule.levels + 1))
    table = pd.DataFrame(
        {
            "level": levels,
            "side": [config.dataset.side >> level for level in levels],
            "alpha": schedule.alphas,
            "sigma": schedule.sigmas,
            "alpha_bar": [schedule.alpha_bar(level) for level in levels],
            "signal": [schedule.signal(level) for level in levels],
            "noise": [schedule.sigma_tilde(level) for level in levels],
            "snr": [schedule.snr(level) for level in levels],
        }
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained")
    _annotated(left, table, "signal", r"signal $\bar\alpha_l s^l$", 0, above=True)
    _annotated(left, table, "noise", r"noise $\tilde\sigma_l$", 1, above=False)
    left.set_ylabel("amplitude")
    left.legend(loc="lower left")
    _annotated(right, table, "snr", "signal / noise", 2, above=True)
    right.set_ylabel("signal / noise")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.margins(0.2, 0.2)
        axes.set_xticks(levels, [f"l = {row.level}\n{row.side}×{row.side}" for row in table.itertuples()])
    figure.suptitle(f"{config.experiment}: the state $x_l$ at each level")
    save(figure, stem, table)


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


def _annotated(axes: Axes, table: pd.DataFrame, column: str, label: str, style: int, *, above: bool) -> None:
    axes.plot(table["level"], table[column], color=COLOURS[style], marker=MARKERS[style], label=label)
    for level, value in zip(table["level"], table[column], strict=True):
        axes.annotate(
            f"{value:.3g}",
            (level, value),
            textcoords="offset points",
            xytext=(7, 4) if above else (0, -14),
            ha="left" if above else "center",
            color=COLOURS[style],
        )
