"""FID against the multiply-adds of an image: published points of peers and of the paper, and measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from udpm.config.published_scores import PublishedRuntime, PublishedTable, Row
from udpm.metrics.protocol import measured
from udpm.report.figures.style import COLOURS, MARKERS, save

OURS = "UDPM"
OUR_COLOUR, OUR_MARKER = COLOURS[1], "*"
PEER_COLOURS = (COLOURS[0], *COLOURS[2:])
DASHES = ("-", "--")
COLUMNS = ("dataset", "method", "nfe", "giga_multiply_adds", "fid", "kind", "checkpoint", "standing", "source")


def tradeoff_points(
    tables: Sequence[PublishedTable], runtime: PublishedRuntime, scores: Sequence[dict[str, Any]]
) -> pd.DataFrame:
    """One row for each point: those published whose cost is known, and what was measured under the same name of score.

    The cost of a method that calls a network of full size at every evaluation is their number × one such call.

    Args:
        tables: those with a place in this figure are taken.
        runtime: the published and counted costs.
        scores: measured ones, as `records.read_scores` gives them.
    """
    points: dict[tuple, dict[str, Any]] = {}
    for table in (table for table in tables if table.figure):
        for row in table.rows:
            cost = _cost(row, runtime)
            if cost is None:
                continue
            base = {"dataset": row.dataset, "method": row.method, "nfe": row.nfe, "giga_multiply_adds": cost}
            if row.value is not None:
                said = {"standing": row.standing, "source": table.sources.get(row.source or "")}
                points.setdefault(
                    (row.dataset, row.method, row.nfe, row.value), base | {"fid": row.value, "kind": "published"} | said
                )
            for found in (found for name in row.experiments for found in measured(scores, name)):
                if found.label == table.protocol.metric:
                    own = {"fid": found.mean, "kind": "measured", "checkpoint": found.checkpoint}
                    points.setdefault((found.experiment, found.checkpoint, found.mean), base | own)
    return pd.DataFrame(list(points.values()), columns=COLUMNS).astype({"nfe": "Int64"})


def draw_tradeoff(points: pd.DataFrame, stem: str | Path) -> None:
    """A panel for each data set; hollow marks are published, filled ones measured here.

    Args:
        points: as `tradeoff_points` gives them.
        stem: path without suffix.
    """
    datasets = list(dict.fromkeys(points["dataset"]))
    figure, grid = plt.subplots(1, len(datasets), figsize=(9.0, 4.4), squeeze=False, sharey=True, layout="constrained")
    looks = _looks(points)
    for axes, dataset in zip(grid.flat, datasets, strict=True):
        _panel(axes, points[points["dataset"] == dataset], looks)
        axes.set_title(dataset)
        axes.set_xlabel("multiply-adds for one image (G)")
    grid[0, 0].set_ylabel("FID")
    figure.legend(handles=_legend(looks), loc="outside lower center", ncols=4)
    save(figure, stem, points)


def _cost(row: Row, runtime: PublishedRuntime) -> float | None:
    """Multiply-adds (1e9) of an image, counted rather than quoted where there are both."""
    if row.method == OURS:
        known = sorted((cost.standing != "C", cost.image) for cost in runtime.costs if cost.dataset == row.dataset)
        return known[0][1] if known else None
    step = runtime.step_cost(row.dataset)
    return row.nfe * step if row.step_network and row.nfe is not None and step is not None else None


def _looks(points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour, mark and dashes of every method: no two share all."""
    peers = [name for name in dict.fromkeys(points["method"]) if name != OURS]
    looks = {
        name: {
            "color": PEER_COLOURS[index % len(PEER_COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 5,
            "linestyle": DASHES[index // len(PEER_COLOURS) % len(DASHES)],
        }
        for index, name in enumerate(peers)
    }
    own = {"color": OUR_COLOUR, "marker": OUR_MARKER, "linestyle": "none", "markersize": 12, "zorder": 4}
    return ({OURS: own} if OURS in set(points["method"]) else {}) | looks


def _panel(axes: Axes, points: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    for method, look in looks.items():
        chosen = points[points["method"] == method].sort_values(["giga_multiply_adds", "fid"])
        for kind, face in (("published", "white"), ("measured", look["color"])):
            part = chosen[chosen["kind"] == kind]
            axes.plot(part["giga_multiply_adds"], part["fid"], **look, markerfacecolor=face, markeredgewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True, which="minor", alpha=0.1)


def _legend(looks: dict[str, dict[str, Any]]) -> list[Line2D]:
    methods = [
        Line2D(
            [],
            [],
            **{key: value for key, value in look.items() if key != "zorder"},
            markerfacecolor="white",
            label=name,
        )
        for name, look in looks.items()
    ]
    kinds = [("hollow: published", "white"), ("filled: measured here", "black")]
    marks = [
        Line2D([], [], color="black", marker="o", linestyle="none", markerfacecolor=face, label=name)
        for name, face in kinds
    ]
    return methods + marks
