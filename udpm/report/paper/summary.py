"""One page on a study: what ran, on what, the headline numbers with their protocol, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from udpm.config.experiment import Experiment
from udpm.config.published_scores import PublishedTable
from udpm.core.errors import UserError
from udpm.core.files import write_text
from udpm.core.kinds import PAGE_TITLE, mark, seal_text
from udpm.metrics.protocol import BEST, Measured, measured, preprocessing
from udpm.report.paper.advice import advice, another_with_best, command
from udpm.report.paper.entries import NOT_RUN, NOT_SCORED, YARDSTICKS, verdict
from udpm.report.table import MISSING, html_page, html_section, markdown, marked_page
from udpm.runs.layout import Layout
from udpm.runs.records import COMPLETE, read_complete

TITLE = PAGE_TITLE
HOUR = 3600
WHERE = [
    "Every score with its whole protocol: tables/scores.md and .csv. The paper's tables: tables/paper/ (`snakemake "
    "paper_tables`).",
    "Pictures: figures/EXPERIMENT/. A run's card, with its data's terms and its limits: "
    "runs/EXPERIMENT/seedN/README.md. Sweeps: sweeps/NAME/ranking.md.",
    "What made a file: `udpm info PATH`.",
]
"""Beside the page, in the folder of results."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: above it.
        table: of text; may be empty.
        notes: under it.
    """

    title: str
    table: pd.DataFrame
    notes: list[str]


def summarize(
    results: Path,
    experiments: dict[str, Experiment],
    scores: list[dict[str, Any]],
    tables: list[PublishedTable],
    unreadable: Sequence[str] = (),
    others: Mapping[str, Experiment | None] = MappingProxyType({}),
) -> list[Section]:
    """The page's parts.

    Args:
        results: folder of results.
        experiments: the study's.
        scores: as `records.read_scores` gives them.
        tables: published scores, to compare with.
        unreadable: what is wrong with files that were to be read.
        others: experiments that the tables name and the study does not; None where the configuration cannot be read.
    """
    runs, broken = _runs(results, experiments)
    found = {name: measured(scores, name, _iterations(config)) for name, config in experiments.items()}
    return [
        Section("Headline numbers", *_headlines(experiments, found, scores, tables)),
        Section("What ran", *_what_ran(runs, experiments)),
        *([Section("What cannot be read", pd.DataFrame(), problems)] if (problems := [*broken, *unreadable]) else []),
        Section("What is missing", pd.DataFrame(), _missing(runs, experiments, found) + _elsewhere(others, scores)),
        Section("Where to look", pd.DataFrame(), WHERE),
    ]


def write_summary(sections: list[Section], folder: Path) -> str:
    """Write ``summary.md`` and ``overview.html``, the same page.

    Returns:
        The markdown.
    """
    parts = []
    for section in sections:
        body = "".join(f"- {note}\n" for note in section.notes)
        shown = body if section.table.empty else markdown(section.table, section.notes)
        parts.append(f"## {section.title}\n\n{shown}")
    text = f"# {TITLE}\n\n" + "\n".join(parts)
    pages = [html_section(section.table, section.notes, 1, section.title) for section in sections]
    write_text(folder / "summary.md", seal_text(f"{text}\n<!-- {mark()} -->\n"))
    write_text(folder / "overview.html", marked_page(html_page(TITLE, pages)))
    return text


def _runs(
    results: Path, experiments: dict[str, Experiment]
) -> tuple[dict[tuple[str, int], dict[str, Any] | None], list[str]]:
    """The completion record of every run of the study, None where it is not complete; and what cannot be read."""
    found, broken = {}, []
    for name, seed in ((name, seed) for name, config in experiments.items() for seed in config.seeds):
        folder = Path(Layout(results).run(name, seed))
        try:
            found[name, seed] = read_complete(folder) if (folder / COMPLETE).exists() else None
        except UserError as error:
            broken.append(str(error))
    return found, broken


def _headlines(
    experiments: dict[str, Experiment],
    found: dict[str, list[Measured]],
    scores: list[dict[str, Any]],
    tables: list[PublishedTable],
) -> tuple[pd.DataFrame, list[str]]:
    rows, notes = [], []
    for name in experiments:
        state = NOT_SCORED if experiments[name].scoring is None else NOT_RUN
        floors = {kind: _yardstick(scores, name, kind) for kind in YARDSTICKS}
        for entry in found[name] or [None]:
            rows.append(
                {
                    "experiment": name,
                    "checkpoint": MISSING if entry is None else entry.checkpoint,
                    "score": MISSING if entry is None else entry.label,
                    "measured": state if entry is None else entry.show(),
                    "N": MISSING if entry is None else str(entry.score["protocol"]["n"]),
                    "held-out (floor)": floors["heldout"],
                    "noise (ceiling)": floors["noise"],
                    **_against_the_paper(name, entry, tables, state),
                }
            )
            if entry is not None:
                notes.append(_protocol(entry))
    notes.append(
        "± is the standard deviation over training seeds. Lower is better: the floor is the score of real images that "
        "were held out of training, the ceiling that of noise, measured in the same way."
    )
    return pd.DataFrame(rows), list(dict.fromkeys(notes))


def _against_the_paper(name: str, entry: Measured | None, tables: list[PublishedTable], state: str) -> dict[str, str]:
    for table in tables:
        for row in table.rows:
            if name in row.experiments and row.value is not None:
                word, why = (state, "") if entry is None else verdict(table, row, entry)
                return {"published": f"{row.value:.2f}", "verdict": f"{word}: {why}" if why else word}
    return {"published": "none", "verdict": MISSING}


def _yardstick(scores: list[dict[str, Any]], name: str, kind: str) -> str:
    values = [
        score["metrics"]["frechet_distance"]["value"]
        for score in scores
        if score["experiment"] == name and score["subject"]["kind"] == kind
    ]
    return f"{values[0]:.2f}" if values and values[0] is not None else MISSING


def _protocol(entry: Measured) -> str:
    protocol, subject = entry.score["protocol"], entry.score["subject"]
    reference = protocol["reference"]
    return (
        f"{entry.experiment}, {entry.checkpoint}: {entry.label} of {protocol['n']} images, seeds "
        f"{', '.join(map(str, entry.values))}, in features of {protocol['extractor']['name']} "
        f"({preprocessing(entry.score)}) to {reference['dataset']}/{reference['split']} ({reference['n']} images); "
        f"{subject.get('weights')} weights, {subject.get('nfe')} network calls per image."
    )


def _what_ran(
    runs: dict[tuple[str, int], dict[str, Any] | None], experiments: dict[str, Experiment]
) -> tuple[pd.DataFrame, list[str]]:
    rows = [
        {
            "run": f"{name}, seed {seed}",
            "data set": experiments[name].dataset,
            "iterations": MISSING if record.get("iterations") is None else str(record["iterations"]),
            "hours": MISSING if record.get("seconds") is None else f"{record['seconds'] / HOUR:.2g}",
            "device": record.get("device") or MISSING,
            "weights (SHA-256)": record["weights_sha256"][:12],
            "commit": (record["provenance"]["commit"] or "unknown")[:12],
            "torch": record["provenance"]["versions"].get("torch", MISSING),
        }
        for (name, seed), record in runs.items()
        if record is not None
    ]
    return pd.DataFrame(rows), [] if rows else ["Nothing has run to its end."]


def _missing(
    runs: dict[tuple[str, int], dict[str, Any] | None],
    experiments: dict[str, Experiment],
    found: dict[str, list[Measured]],
) -> list[str]:
    """What the study lists and is not there, each with what makes it."""
    notes = [
        f"{name}, seed {seed}: not trained to its end; {command(name, experiments[name])}."
        for (name, seed), record in runs.items()
        if record is None
    ]
    for name, config in experiments.items():
        if config.scoring is None:
            notes.append(f"{name}: nothing is scored (scoring: null).")
            continue
        measured_seeds = {seed for entry in found[name] for seed in entry.values}
        left = [str(seed) for seed in config.seeds if seed not in measured_seeds]
        if left:
            notes.append(f"{name}: no score of seed {', '.join(left)}; {command(name, config)}.")
        best = advice(name, BEST, config)
        if not best.how and config.training != "imported":
            best = another_with_best(name, config)
        if best.how and not any(entry.checkpoint == BEST for entry in found[name]):
            notes.append(f"{name}: the best checkpoint is not scored; {best.how}.")
    return notes or ["Nothing that this study lists."]


def _elsewhere(others: Mapping[str, Experiment | None], scores: list[dict[str, Any]]) -> list[str]:
    """Experiments of the paper's tables that nobody has scored yet."""
    scored = {score["experiment"] for score in scores if score["subject"]["kind"] == "samples"}
    return [
        f"{name}: is not in this study; {command(name, config)}."
        for name, config in others.items()
        if name not in scored and config is not None and config.scoring is not None
    ]


def _iterations(config: Experiment) -> int | None:
    return None if config.training == "imported" else config.training.iterations
