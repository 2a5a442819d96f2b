"""Figure of FID against multiply-adds per image: the paper, its peers, and what was measured here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from udpm.config.published_scores import FAMILIES, OURS, PublishedRuntime, PublishedTable
from udpm.metrics.protocol import calls_per_level, chosen_words
from udpm.report.figures.style import COLOURS, DPI, minor_label, save
from udpm.report.scores import shared_of, summarize_scores

COLUMNS = (
    *("dataset", "method", "family", "conditional", "nfe", "giga_multiply_adds"),
    *("fid", "kind", "checkpoint", "standing", "source", "shared_labels"),
)
LOOKS: dict[str, dict[str, Any]] = {
    family: {"color": colour, "marker": marker, "markersize": 5}
    for family, colour, marker in zip(FAMILIES, (COLOURS[0], COLOURS[2], COLOURS[3], "#777777"), "osD^", strict=True)
}
OUR_LOOK: dict[str, Any] = {"color": COLOURS[1], "marker": "*", "markersize": 13, "zorder": 4}
LARGEST_FID = 35.0
"""Published distances above it are in the .csv alone: they would squeeze all others into a corner."""
LABEL_SIZE = 6.5
NO_TITLES: Mapping[str, str] = {}


def tradeoff_points(
    tables: Sequence[PublishedTable], runtime: PublishedRuntime, scores: Sequence[dict[str, Any]]
) -> pd.DataFrame:
    """Return one row per point: published scores of known cost, and measured ones of the same metric.

    A method that calls a full-side network at every evaluation costs NFE × one such call. Tables without `figure` and
    measured scores of chosen classes are ignored.
    """
    points: dict[tuple, dict[str, Any]] = {}
    for table in (table for table in tables if table.figure):
        for row in table.rows:
            cost = runtime.image_cost(row)
            if cost is None:
                continue
            base: dict[str, Any] = {"dataset": row.dataset, "method": row.method, "family": row.family}
            base |= {"conditional": row.conditional, "nfe": row.nfe, "giga_multiply_adds": cost}
            if row.value is not None:
                said = {"standing": row.standing, "source": table.sources.get(row.source or "")}
                points.setdefault(
                    (row.dataset, row.method, row.nfe, row.value), base | {"fid": row.value, "kind": "published"} | said
                )
            for found in (found for name in row.experiments for found in summarize_scores(scores, name)):
                if found.label == table.protocol.metric and not chosen_words(found.score["subject"]):
                    own: dict[str, Any] = {"fid": found.mean, "kind": "measured", "checkpoint": found.checkpoint}
                    own["shared_labels"] = shared_of(found.score)
                    calls = calls_per_level(found.score["subject"])
                    own |= {"nfe": row.nfe and calls * row.nfe, "giga_multiply_adds": calls * cost}
                    points.setdefault((found.experiment, found.checkpoint, found.mean), base | own)
    return pd.DataFrame(list(points.values()), columns=COLUMNS).astype({"nfe": "Int64"})


def plot_tradeoff(points: pd.DataFrame, stem: str | Path, titles: Mapping[str, str] = NO_TITLES) -> None:
    """Plot FID against multiply-adds, one panel per data set: hollow marks are published, filled ones measured here.

    Args:
        points: of `tradeoff_points`.
        stem: path without suffix.
        titles: of panels, by data set; default: its name.
    """
    datasets = list(dict.fromkeys(points["dataset"]))
    figure = plt.figure(figsize=(9.0, 9.0), layout="constrained")
    first, *others = datasets or [""]
    grid = figure.subplot_mosaic([[first] * max(len(others), 1), others or [first]], height_ratios=[1.5, 1])
    near = points[(points["fid"] <= LARGEST_FID) | (points["kind"] == "measured")]
    for name, axes in grid.items():
        _plot_panel(axes, near[near["dataset"] == name])
        axes.set_title(titles.get(name, name))
        axes.set_xlabel("multiply-adds for one image (G)")
        axes.set_ylabel("FID")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3)
    # Labels are placed in pixels, so the layout must not move any more.
    figure.canvas.draw()
    figure.set_layout_engine("none")
    for name, axes in grid.items():
        _label(axes, near[near["dataset"] == name])
    save(figure, stem, points)


def _plot_panel(axes: Axes, points: pd.DataFrame) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(partial(minor_label, digits="25"))
    axes.yaxis.set_minor_formatter(partial(minor_label, digits="235"))
    axes.grid(True, which="minor", alpha=0.1)
    for (method, _), group in points.groupby(["method", "conditional"], dropna=False, sort=False):
        look = OUR_LOOK if method == OURS else LOOKS[group["family"].iloc[0]]
        line = group[group["kind"] == "published"].sort_values(["giga_multiply_adds", "fid"])
        axes.plot(
            line["giga_multiply_adds"], line["fid"], **look, linewidth=0.7, markerfacecolor="white", markeredgewidth=1.2
        )
        own = group[group["kind"] == "measured"]
        axes.plot(own["giga_multiply_adds"], own["fid"], **look, linestyle="none")
    ours = points[points["method"] == OURS]["giga_multiply_adds"]
    if len(ours):
        axes.axvline(ours.iloc[0], color=OUR_LOOK["color"], linewidth=0.7, linestyle=":", zorder=1)


def _legend() -> list[Line2D]:
    marks = [Line2D([], [], **OUR_LOOK, linestyle="none", markerfacecolor="white", label="UDPM; dotted: its cost")]
    marks += [
        Line2D([], [], **LOOKS[family], linestyle="none", markerfacecolor="white", label=words)
        for family, words in FAMILIES.items()
    ]
    return [
        *marks,
        Line2D([], [], color="black", marker="o", linestyle="none", markersize=5, label="filled: measured here"),
    ]


def _label(axes: Axes, points: pd.DataFrame) -> None:
    """Name every method once, at its least FID, where the text hides nothing."""
    to_pixels = axes.transData.transform
    marks = to_pixels(points[["giga_multiply_adds", "fid"]].to_numpy(float)) if len(points) else np.zeros((0, 2))
    size = 4.0 * DPI / 72
    taken = [Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size) for x, y in marks]
    frame = axes.get_window_extent()
    groups = points.groupby(["method", "conditional"], dropna=False, sort=False)
    best = sorted((group.loc[group["fid"].idxmin()] for _, group in groups), key=lambda row: row["fid"])
    for row in best:
        at = to_pixels((row["giga_multiply_adds"], row["fid"]))
        text = axes.text(0, 0, _name(row, points), fontsize=LABEL_SIZE, va="center", ha="center", zorder=5)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        extent = text.get_window_extent()
        gap = size * (OUR_LOOK["markersize"] / 6 if row["method"] == OURS else 1.2)
        box, distance = _free_box(at, extent.width, extent.height, gap, taken, frame)
        centre = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
        end = np.clip(at, box.min, box.max)
        # In coordinates of the data, since a figure may be saved at another resolution.
        (x, y), *ends = axes.transData.inverted().transform([centre, at, end])
        text.set_position((x, y))
        # A label that is not level with its point may be nearer to another.
        if distance > 1 or abs(centre[1] - at[1]) > size:
            axes.plot(*zip(*ends, strict=True), color="#999999", linewidth=0.5, zorder=1, scalex=False, scaley=False)
        taken.append(box)


def _name(row: pd.Series, points: pd.DataFrame) -> str:
    """Return a method's name, with "conditional" where it is listed in both ways."""
    ways = points[points["method"] == row["method"]]["conditional"].nunique(dropna=False)
    return row["method"] + (", conditional" if ways > 1 and row["conditional"] is True else "")


def _free_box(
    at: np.ndarray, width: float, height: float, gap: float, taken: list[Bbox], frame: Bbox
) -> tuple[Bbox, int]:
    """Return the nearest place for a label around a point, all in pixels, and how many steps away it is.

    It is at least `gap` away. Where nothing is free, it is the place that overlaps least.
    """
    best: tuple[float, Bbox, int] | None = None
    for step, (across, up) in itertools.product(range(12), itertools.product((1, -1, 0), (0, 1, -1))):
        if across == up == 0:
            continue
        away = gap * (1 + 1.25 * step)
        x = at[0] + across * (away + width / 2)
        y = at[1] + up * (away + height / 2)
        box = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
        outside = width * height - _overlap(box, frame)
        hidden = sum(_overlap(box, other) for other in taken) + 2 * outside
        # Differences of areas are not exact.
        if hidden < 1e-6:
            return box, step
        if best is None or hidden < best[0]:
            best = hidden, box, step
    assert best is not None
    return best[1], best[2]


def _overlap(one: Bbox, other: Bbox) -> float:
    """Return the area that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)
