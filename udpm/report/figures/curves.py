"""Figures of curves: losses, and scores of milestones."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved
from udpm.core.errors import UserError
from udpm.metrics.protocol import features_words, mark_shared, run_words, shared_labels, shared_words
from udpm.metrics.selection import read_selection
from udpm.report.figures.style import COLOURS, LEVEL, MARKERS, save, set_logarithmic
from udpm.report.scores import PATTERNS
from udpm.report.table import Table, cell
from udpm.runs.records import read_metrics_lines

PANELS = {
    "generator/reconstruction": "generator: reconstruction",
    "generator/energy": "generator: energy score",
    "generator/spread": "generator: spread of draws",
    "generator/lpips": "generator: LPIPS",
    "generator/adversarial": "generator: adversarial",
    "discriminator/loss": "discriminator: loss",
    "generator/adversarial_share": "generator: adversarial gradient",
    "discriminator/auc": "discriminator: separation",
    "discriminator/r1": "discriminator: R1",
    "discriminator/r2": "discriminator: R2",
}
UNITS = {
    "generator/reconstruction": "distance to the target",
    "generator/energy": "energy score",
    "generator/spread": "spread / distance to target",
    "generator/adversarial": "softplus of ±D",
    "generator/adversarial_share": "share of all",
    "discriminator/loss": "softplus of ±D",
    "discriminator/auc": "AUC",
    "discriminator/r1": "‖∇D‖² at real images",
    "discriminator/r2": "‖∇D‖² at generated images",
}
LOGARITHMIC = {"generator/reconstruction", "discriminator/r1", "discriminator/r2"}
FLAT, WIDE = 3, 2
"""Largest value over the median, and over the least one, above which a linear axis flattens a curve."""


def read_metrics(path: str | Path) -> pd.DataFrame:
    """Read ``metrics.jsonl`` as a table, one row per logged iteration.

    A resumed run may have logged an iteration twice; the later line counts.

    Raises:
        UserError: missing, or a line that is not one of metrics.
    """
    rows: dict[int, dict] = {}
    for number, row in enumerate(read_metrics_lines(Path(path)), start=1):
        if row is None:
            raise UserError(f"{path}: line {number} contains no metrics; delete it")
        rows[row["iteration"]] = row
    if not rows:
        raise UserError(f"{path}: contains no metrics yet")
    return pd.DataFrame([rows[iteration] for iteration in sorted(rows)])


def plot_curves(path: str | Path, stem: str | Path) -> None:
    """Plot losses over iterations: one panel per loss, one line per level.

    A configuration in the same folder, as runs have it, names the run in the title.

    Raises:
        UserError: no readable metrics.
    """
    metrics, run = read_metrics(path), _run_of(Path(path))
    panels = {kind: levels_of(metrics, kind) for kind in PANELS}
    panels = {kind: levels for kind, levels in panels.items() if levels}
    columns = 3 if len(panels) > 4 else 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    size = (9.0 if columns == 3 else 7.6, 2.4 * rows + 0.5)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, (kind, levels) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, metrics, kind, levels)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    shown = sorted({_level(column) for levels in panels.values() for column in levels})
    lines = [Line2D([], [], label=f"{LEVEL} = {level}", **_look(level)) for level in shown]
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 8))
    named = "" if run is None else f"{run.experiment}, seed {run.seed}: "
    figure.suptitle(f"{named}training losses by level {LEVEL} (1 is the finest)")
    save(figure, stem, metrics)


def _run_of(path: Path) -> RunConfig | None:
    """Return the configuration of the run that metrics belong to, if there is one in their folder."""
    with suppress(UserError):
        return read_resolved(RunConfig, path.parent / "config.json")
    return None


def is_logarithmic(kind: str, values: Iterable[float]) -> bool:
    """Return whether values of a kind of metrics need a logarithmic axis: those that one spike would flatten do."""
    known = np.asarray(list(values), dtype=float)
    known = known[np.isfinite(known)]
    if not known.size or known.min() <= 0 or known.max() <= WIDE * known.min():
        return False
    return kind in LOGARITHMIC or bool(known.max() > FLAT * np.median(known))


def levels_of(metrics: pd.DataFrame, kind: str) -> list[str]:
    """Return the columns of a kind of metrics, one for each level."""
    return sorted((column for column in metrics if column.rpartition("/")[0] == kind), key=_level)


def _level(column: str) -> int:
    return int(column.rpartition("/l")[2])


def _look(level: int) -> dict[str, Any]:
    return {"color": COLOURS[(level - 1) % len(COLOURS)], "marker": MARKERS[(level - 1) % len(MARKERS)]}


def _panel(axes: Axes, metrics: pd.DataFrame, kind: str, levels: list[str]) -> None:
    for column in levels:
        known = metrics[["iteration", column]].dropna()
        axes.plot(known["iteration"], known[column], markevery=max(1, len(known) // 8), **_look(_level(column)))
    axes.set_title(PANELS[kind])
    axes.set_xlabel("iteration")
    axes.set_ylabel(UNITS.get(kind, "loss"))
    if is_logarithmic(kind, metrics[levels].to_numpy().ravel()):
        set_logarithmic(axes)


def milestone_table(selection: dict[str, Any]) -> Table:
    """Return the table of milestones with their metrics; the selected one is marked."""
    full = pd.DataFrame(selection["milestones"])
    full.insert(1, "selected", full["iteration"] == selection["iteration"])
    rows, protocol = [], selection["protocol"]
    shared = shared_labels(selection, protocol)
    for milestone in selection["milestones"]:
        chosen = " (selected)" if milestone["iteration"] == selection["iteration"] else ""
        row = {"iteration": f"{milestone['iteration']}{chosen}"}
        row[selection["label"]] = mark_shared(f"{milestone['frechet_distance']:.2f}", shared)
        for name in ("precision", "recall", "class_agreement"):
            row[name.replace("_", " ")] = cell(milestone.get(name), PATTERNS[name])
        rows.append(row)
    note = (
        f"{run_words(selection)}, {selection['weights']} weights: {protocol['n']} images of each milestone, sampling "
        f"seed {selection['seed']}, in {features_words(protocol)}. Drawn to choose by: the selected milestone's score "
        "is that of other images."
    )
    notes = [note] if shared is None else [note, f"{shared_words(shared)}."]
    return Table(pd.DataFrame(rows), notes, "Milestones", full)


def plot_selection(path: str | Path, stem: str | Path) -> None:
    """Plot the Fréchet distance over iterations, with the selected milestone marked.

    Raises:
        UserError: no readable selection.
    """
    selection = read_selection(path)
    table = milestone_table(selection).full
    assert table is not None
    figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    axes.plot(table["iteration"], table["frechet_distance"], marker="o", color=COLOURS[0])
    chosen = table[table["selected"]]
    axes.plot(chosen["iteration"], chosen["frechet_distance"], "*", markersize=13, color=COLOURS[1], label="selected")
    axes.set_xlabel("iteration")
    axes.set_ylabel(selection["label"])
    axes.set_title(f"{run_words(selection)}: milestones, {selection['protocol']['n']} images each")
    axes.legend()
    save(figure, stem, table)
