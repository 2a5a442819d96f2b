"""Milestones and their scores: the table, and the curve that the best was chosen from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from udpm.reporting import render, words
from udpm.reporting.render import MISSING
from udpm.reporting.style import COLOURS, save
from udpm.scoring.selection import read_selection

SHOWN = {"precision": "{:.3f}", "recall": "{:.3f}", "class_agreement": "{:.3f}"}
WORDS = 1


def milestone_table(selection: dict[str, Any]) -> pd.DataFrame:
    """One row for each milestone with every metric in full precision, and whether it was chosen."""
    table = pd.DataFrame(selection["milestones"])
    table.insert(1, "selected", table["iteration"] == selection["iteration"])
    return table


def write_table(selection: dict[str, Any], stem: str | Path) -> None:
    """Write ``STEM.csv`` (everything), ``STEM.md``, ``STEM.tex`` and ``STEM.html`` (to read)."""
    rows = []
    for milestone in selection["milestones"]:
        chosen = " (selected)" if milestone["iteration"] == selection["iteration"] else ""
        row = {"iteration": f"{milestone['iteration']}{chosen}"}
        row[selection["label"]] = f"{milestone['frechet_distance']:.2f}"
        for name, pattern in SHOWN.items():
            value = milestone.get(name)
            row[name.replace("_", " ")] = MISSING if value is None else pattern.format(value)
        rows.append(row)
    table, notes = pd.DataFrame(rows), [_note(selection)]
    render.write_table(stem, milestone_table(selection), table, notes, WORDS, "Milestones")


def draw_selection(path: str | Path, stem: str | Path) -> None:
    """Fréchet distance over iterations, with the selected milestone marked.

    Raises:
        UserError: no readable selection.
    """
    selection = read_selection(path)
    table = milestone_table(selection)
    figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    axes.plot(table["iteration"], table["frechet_distance"], marker="o", color=COLOURS[0])
    chosen = table[table["selected"]]
    axes.plot(chosen["iteration"], chosen["frechet_distance"], "*", markersize=13, color=COLOURS[1], label="selected")
    axes.set_xlabel("iteration")
    axes.set_ylabel(selection["label"])
    axes.set_title(f"{words.run(selection)}: milestones, {selection['protocol']['n']} images each")
    axes.legend()
    save(figure, stem, table)


def _note(selection: dict[str, Any]) -> str:
    protocol, reference = selection["protocol"], selection["protocol"]["reference"]
    return (
        f"{words.run(selection)}, {selection['weights']} weights: {protocol['n']} images of each milestone, sampling "
        f"seed {selection['seed']}, to {reference['dataset']}/{reference['split']} in features of "
        f"{protocol['extractor']['name']} (SHA-256 {protocol['extractor']['sha256'][:12]}). Drawn to choose by: the "
        "selected milestone's score is that of other images."
    )
