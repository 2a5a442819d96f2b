"""Tables of benchmark records, and a figure of speedups over the plain way."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchmarks.gains import PLAIN
from udpm.bench.measure import read_benchmark
from udpm.core.errors import UserError
from udpm.report.figures.style import COLOURS, MARKERS, save
from udpm.report.table import MISSING, Table

NOTES = [
    "Medians, lower and upper quartile in brackets. Times faster: than plain, from pairs of one repetition.",
    "Of products, of copies: multiply-adds and bytes counted in a call, in the wall time it takes, against a large "
    "matrix product (of the same type) and a large copy on the same device.",
]
GAIN_NOTES = [
    "Times faster: with this gain than without it, all else as in the full way, from pairs of one repetition."
]
HATCHES = ("", "///", "...", "xxx")
KINDS = {"speedup": "by the clock", "cpu_speedup": "in CPU seconds"}
LEAST_HEIGHT, ROW_HEIGHT = 1.1, 0.26
"""Inches of a panel and of each of its bars."""


def render_speeds(paths: Iterable[Path]) -> str:
    """Return records as markdown, each under its title.

    Raises:
        UserError: no readable record.
    """
    return "\n".join(_rendered(read_benchmark(path)) for path in paths)


def plot_speeds(paths: Iterable[Path], stem: str | Path, kind: str = "speedup") -> None:
    """Plot speedups over the plain way, a row of panels per record: ways, and gains if measured.

    Args:
        paths: of records of comparisons.
        stem: path without suffix.
        kind: "speedup" or "cpu_speedup".

    Raises:
        UserError: no readable record, not one of a comparison, or without the CPU seconds that `kind` needs.
    """
    records = [_comparison(path, kind) for path in paths]
    heights = [max(_height(_bars(record)), _height(_gain_names(record))) for record in records]
    columns = 2 if any(record.get("gains") for record in records) else 1
    figure, grid = plt.subplots(
        len(records),
        columns,
        figsize=(4.5 * columns, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for line, record in zip(grid, records, strict=True):
        _plot_ways(line[0], record, kind)
        if columns == 1:
            continue
        if record.get("gains"):
            _plot_gains(line[1], record, kind)
        else:
            line[1].set_visible(False)
    figure.supxlabel(f"times faster {KINDS[kind]}: median and quartiles of pairs of one repetition", fontsize=9)
    save(figure, stem, speed_table(records))


def speed_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """Return one row per way and per gain, in full precision."""
    lines = []
    for record in records:
        known = {key: record.get(key) for key in ("of", "experiment", "batch", "device")}
        lines += [known | _flat(each) for each in record["rows"]]
        lines += [known | _flat(each) for each in record.get("gains", [])]
    return pd.DataFrame(lines)


def _comparison(path: Path, kind: str) -> dict[str, Any]:
    record = read_benchmark(path)
    rows = [*record["rows"], *record.get("gains", [])]
    if any(each["speedup"] is None for each in rows):
        raise UserError(f"{path}: not a comparison; `python -m benchmarks sample|train` makes one")
    if any(each[kind] is None for each in rows):
        raise UserError(f"{path}: contains no CPU seconds, which are not recorded on a GPU; omit --clock cpu")
    return record


def _plot_ways(axes: Axes, record: dict[str, Any], kind: str) -> None:
    """Plot bars grouped by part of the work, one per way; the plain way is the line at 1."""
    parts = list(dict.fromkeys(each["part"] for each in record["rows"]))
    ways = [way for way in dict.fromkeys(each["way"] for each in record["rows"]) if way != PLAIN]
    found = {(each["part"], each["way"]): each[kind] for each in record["rows"]}
    thick = 0.8 / len(ways)
    for number, way in enumerate(ways):
        places = np.arange(len(parts)) - 0.4 + (number + 0.5) * thick
        values = [found[part, way] for part in parts]
        axes.barh(
            places,
            [value["median"] for value in values],
            thick,
            xerr=_whiskers(values),
            error_kw={"linewidth": 1, "capsize": 2},
            color=COLOURS[number],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            label=way,
        )
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value['median']:.2f}", (value["high"], place), (4, 0), textcoords="offset points", va="center"
            )
    axes.set_yticks(range(len(parts)), [_part(part) for part in parts])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(value["high"] for value in found.values()))
    axes.axvline(1, color=COLOURS[-1], linewidth=1, linestyle="--", label=PLAIN)
    axes.grid(axis="y", visible=False)
    axes.set_title(_title(record), loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(ways) + 1)


def _plot_gains(axes: Axes, record: dict[str, Any], kind: str) -> None:
    """Plot one line per gain, hollow if the full way lacks it."""
    names, gains = _gain_names(record), record["gains"]
    parts = list(dict.fromkeys(each["part"] for each in gains))
    for number, part in enumerate(parts):
        for each in (one for one in gains if one["part"] == part):
            value, colour = each[kind], COLOURS[number]
            place = names.index(each["gain"]) + 0.6 * ((number + 0.5) / len(parts) - 0.5)
            axes.errorbar(
                value["median"],
                place,
                xerr=_whiskers([value]),
                fmt=MARKERS[number],
                color=colour,
                capsize=2,
                linewidth=1,
                markerfacecolor=colour if each["used"] else "white",
                markersize=5,
            )
        axes.plot([], [], MARKERS[number], color=COLOURS[number], label=_part(part))
    if not all(each["used"] for each in gains):
        axes.plot([], [], "o", color="grey", markerfacecolor="white", label="not in use")
    axes.axvline(1, color=COLOURS[-1], linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title("each gain: with it against without it", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(parts) + 1)


def _part(name: str) -> str:
    # A small L looks like the digit 1.
    return name.replace("l = ", "ℓ = ")


def _whiskers(values: list[dict[str, float]]) -> list[list[float]]:
    lower = [value["median"] - value["low"] for value in values]
    return [lower, [value["high"] - value["median"] for value in values]]


def _bars(record: dict[str, Any]) -> list[str]:
    return [each["way"] for each in record["rows"] if each["way"] != PLAIN]


def _gain_names(record: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(each["gain"] for each in record.get("gains", [])))


def _height(lines: list[str]) -> float:
    return LEAST_HEIGHT + ROW_HEIGHT * len(lines)


def _title(record: dict[str, Any]) -> str:
    subject = next((record[key] for key in ("experiment", "extractor", "path") if record.get(key)), "random images")
    return f"{record['of']}: {subject}, batch {record['batch']}, {record['device']}"


def _rendered(record: dict[str, Any]) -> str:
    best = record["ceilings"]
    text = (
        f"**{_title(record)}**: matrix product {best['float32_flops'] / 1e9:.4g} GFLOP/s in float32 and "
        f"{best['bfloat16_flops'] / 1e9:.4g} in bfloat16, copy {best['copy_bytes'] / 1e9:.4g} GB/s\n\n"
    )
    text += Table(_readable([_shown(each) for each in record["rows"]]), NOTES, "").markdown()
    if record.get("gains"):
        text += "\n" + Table(_readable([_shown_gain(each) for each in record["gains"]]), GAIN_NOTES, "").markdown()
    return text


def _readable(rows: list[dict[str, str | None]]) -> pd.DataFrame:
    """Return a table without the columns that no row has."""
    return pd.DataFrame(rows).dropna(axis=1, how="all").fillna(MISSING)


def _shown(each: dict[str, Any]) -> dict[str, str | None]:
    return {
        "part": each["part"],
        "way": each["way"] or None,
        "CPU seconds": _spread(each["cpu_seconds"]),
        "times faster (CPU)": _spread(each.get("cpu_speedup"), 3),
        "wall seconds": _spread(each["seconds"]),
        "times faster": _spread(each.get("speedup"), 3),
        "images/s": f"{each['images_per_second']['median']:.4g}",
        "multiply-adds (G)": _number(each["multiply_adds"], ".4g", 1e9),
        "of products": _number(each["of_matrix_product"], ".1%"),
        "bytes (MB)": _number(each["bytes"], ".4g", 1e6),
        "of copies": _number(each["of_copy"], ".1%"),
        "peak memory (MiB)": _number(each["peak_bytes"], ".0f", 2**20),
    }


def _shown_gain(each: dict[str, Any]) -> dict[str, str | None]:
    return {
        "part": each["part"],
        "gain": each["gain"],
        "in the full way": "yes" if each["used"] else "no",
        "wall seconds with": _spread(each["seconds_with"]),
        "without": _spread(each["seconds_without"]),
        "times faster": _spread(each["speedup"], 3),
        "times faster (CPU)": _spread(each["cpu_speedup"], 3),
    }


def _number(value: float | None, pattern: str, unit: float = 1) -> str | None:
    return None if value is None else f"{value / unit:{pattern}}"


def _spread(value: dict[str, float] | None, digits: int = 4) -> str | None:
    if value is None:
        return None
    median, low, high = (f"{value[key]:.{digits}g}" for key in ("median", "low", "high"))
    return f"{median} ({low}–{high})"


def _flat(each: dict[str, Any]) -> dict[str, Any]:
    """Return the known values, with quartiles in separate columns."""
    found = {}
    for key, value in ((key, value) for key, value in each.items() if value is not None):
        found |= {f"{key}_{kind}": part for kind, part in value.items()} if isinstance(value, dict) else {key: value}
    return found
