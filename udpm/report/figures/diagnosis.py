"""Figure and table of a diagnosis: what each level of the chain loses, and what the discriminator contributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from udpm.diagnosis.record import NOISE, findings, mean_std, read_diagnosis
from udpm.metrics.protocol import (
    features_words,
    mark_shared,
    run_words,
    sampling_words,
    shared_labels,
    shared_words,
    weights_words,
)
from udpm.report.figures.style import COLOURS, LEVEL, save, subscript
from udpm.report.table import MISSING, Table

SHOWN = {"frechet_distance": "{:.1f}", "precision": "{:.3f}", "recall": "{:.3f}", "variance": "{:.2f}"}
SYMBOLS = {"eps": "ε", "z": "z"}


def plot_diagnosis(path: str | Path, stem: str | Path) -> None:
    """Plot a diagnosis.

    Raises:
        UserError: no readable diagnosis.
    """
    diagnosis = read_diagnosis(path)
    chain, label = diagnosis["chain"], diagnosis["protocol"]["label"]
    figure, grid = plt.subplots(2, 3, figsize=(9.0, 5.4), layout="constrained")
    starts = [_start_words(row["start"]) for row in chain["starts"]]
    _lines(grid[0, 0], starts, chain["starts"], {"frechet_distance": label})
    _lines(grid[0, 1], starts, chain["starts"], {"precision": "precision", "recall": "recall"})
    for axes in grid[0, :2]:
        axes.set_xlabel("chain started from")
    grid[0, 1].set_ylim(0, 1.02)
    names = [f"f{subscript(row['level'])}" for row in chain["levels"]]
    _bars(grid[0, 2], names, chain["levels"], "variance", "variance of outputs / real ones'")
    bands = [f"< {row['below']:.3g}" for row in chain["bands"]]
    _bars(grid[1, 0], bands, chain["bands"], "variance", "variance of images / real ones'")
    grid[1, 0].set_xlabel("frequency, cycles per pixel")
    for axes in (grid[0, 2], grid[1, 0]):
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    maps = [_map_words(row["map"]) for row in chain["maps"]]
    _bars(grid[1, 1], maps, chain["maps"], "share", "share of the images' variance")
    grid[1, 1].set_xlabel("noise map")
    _players(grid[1, 2], diagnosis["discriminator"])
    figure.suptitle(f"{run_words(diagnosis['subject'])}: where quality and variety are lost")
    save(figure, stem, _long(diagnosis))


def _lines(axes: Axes, names: Sequence[str], rows: Sequence[dict[str, Any]], metrics: dict[str, str]) -> None:
    for metric, label in metrics.items():
        known = [(name, *found) for name, row in zip(names, rows, strict=True) if (found := mean_std(row[metric]))]
        if known:
            where, means, spreads = zip(*known, strict=True)
            axes.errorbar(where, means, yerr=spreads, marker="o", capsize=3, label=label)
    if len(metrics) > 1:
        axes.legend()
    else:
        axes.set_ylabel(next(iter(metrics.values())))
        axes.set_ylim(bottom=0)


def _bars(axes: Axes, names: Sequence[str], rows: Sequence[dict[str, Any]], key: str, label: str) -> None:
    found = [mean_std(row[key]) or (float("nan"), 0.0) for row in rows]
    means, spreads = zip(*found, strict=True) if found else ((), ())
    axes.bar(names, means, yerr=spreads, capsize=3, color=COLOURS[0], width=0.6)
    axes.set_ylabel(label)


def _players(axes: Axes, discriminator: dict[str, Any]) -> None:
    levels = discriminator["levels"]
    if not levels:
        axes.text(0.5, 0.5, f"no discriminator:\n{discriminator['reason']}", ha="center", va="center", wrap=True)
        axes.set_axis_off()
        return
    where = range(len(levels))
    for offset, key, label in ((-0.2, "auc", "AUC"), (0.2, "share", "share of gradient")):
        values = [row[key] for row in levels]
        axes.bar([x + offset for x in where], values, 0.38, label=label, color=COLOURS[int(offset > 0)])
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(list(where), [f"{LEVEL} = {row['level']}" for row in levels])
    axes.set_ylim(0, 1.25)
    axes.set_ylabel("discriminator")
    axes.legend(loc="upper left")


def diagnosis_table(diagnosis: dict[str, Any]) -> Table:
    """Return the table of a diagnosis: one row per start of the chain, with what belongs to that level next to it."""
    chain, protocol = diagnosis["chain"], diagnosis["protocol"]
    shares = {row["map"]: mean_std(row["share"]) for row in chain["maps"]}
    players = {row["level"]: row for row in diagnosis["discriminator"]["levels"]}
    shared = shared_labels(diagnosis["subject"], protocol)
    rows = []
    for row in chain["starts"]:
        shown = {"chain started from": _start_words(row["start"], spelled=True)}
        for metric, pattern in SHOWN.items():
            text = _cell(mean_std(row[metric]), pattern)
            if metric == "frechet_distance":
                shown[protocol["label"]] = mark_shared(text, shared)
            else:
                shown[metric] = text
        level, player = row["start"], players.get(row["start"])
        shown["share of ε_l"] = _cell(shares.get(f"eps_{level}"), "{:.0%}")
        if any(name.startswith("z_") for name in shares):
            shown["share of z_l"] = _cell(shares.get(f"z_{level}"), "{:.0%}")
        shown["AUC of D"] = MISSING if player is None else f"{player['auc']:.2f}"
        shown["D's share of the gradient"] = MISSING if player is None else f"{player['share']:.1%}"
        rows.append(shown)
    notes = [*findings(diagnosis), _protocol_words(diagnosis)]
    notes += [] if shared is None else [f"{shared_words(shared)}."]
    if diagnosis["discriminator"]["reason"]:
        notes.append(f"No discriminator: {diagnosis['discriminator']['reason']}.")
    return Table(pd.DataFrame(rows), notes, f"Diagnosis of {run_words(diagnosis['subject'])}", _long(diagnosis))


def _cell(found: tuple[float, float] | None, pattern: str) -> str:
    if found is None:
        return MISSING
    mean, spread = (pattern.format(value) for value in found)
    return f"{mean} ± {spread}" if found[1] else mean


def _protocol_words(diagnosis: dict[str, Any]) -> str:
    subject, protocol = diagnosis["subject"], diagnosis["protocol"]
    return (
        f"{protocol['n']} held-out images; chains started from x_l of each, mean ± standard deviation of "
        f"{protocol['draws']} draws (first sampling seed {protocol['seed']}); {protocol['label']} in "
        f"{features_words(protocol)}; precision and recall with k = {protocol['neighbours']}. "
        f"{weights_words(subject)}, {sampling_words(subject)}. Distances of {protocol['n']} images do not compare with "
        "those of another number. Variance is within classes, over that of the held-out images; the share of a noise "
        "map is the variance that it determines alone."
    )


def _start_words(start: int | str, spelled: bool = False) -> str:
    if start == NOISE:
        return "noise (full chain)" if spelled else "noise"
    if start == 0:
        return "none: the held-out images" if spelled else "held-out"
    return f"x_{start}" if spelled else f"x{subscript(int(start))}"


def _map_words(name: str) -> str:
    kind, _, level = name.partition("_")
    return f"{SYMBOLS[kind]}{subscript(int(level))}"


def _long(diagnosis: dict[str, Any]) -> pd.DataFrame:
    """Return all numbers, one row each."""
    rows: list[dict[str, Any]] = []
    chain = diagnosis["chain"]
    for part, at, keys in (
        ("starts", "start", ("frechet_distance", "precision", "recall", "variance")),
        ("levels", "level", ("variance",)),
        ("bands", "below", ("variance",)),
        ("maps", "map", ("share",)),
    ):
        for row in chain[part]:
            for key in keys:
                mean, spread = mean_std(row[key]) or (None, None)
                rows.append({"part": part, "at": row[at], "quantity": key, "mean": mean, "std": spread})
    for row in diagnosis["discriminator"]["levels"]:
        found = {key: row[key] for key in ("real", "fake", "auc", "loss", "r1", "share", "cosine")}
        found |= {f"gradient of {term}": norm for term, norm in row["gradients"].items()}
        rows += [
            {"part": "discriminator", "at": row["level"], "quantity": key, "mean": value, "std": None}
            for key, value in found.items()
        ]
    return pd.DataFrame(rows)[["part", "at", "quantity", "mean", "std"]]
