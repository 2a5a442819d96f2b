"""Published scores beside measured ones: Tables 1 and 2 of the paper, peers, and tables of the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from udpm.config.experiment import Experiment
from udpm.config.published_scores import STANDINGS, PublishedTable
from udpm.metrics.protocol import (
    BEST,
    LAST,
    Measured,
    noise_words,
    preprocessing,
    sampling_words,
    used_tf32,
    weights_words,
)
from udpm.report.paper.advice import Advice, advice
from udpm.report.paper.entries import (
    BETTER,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_SCORED,
    REPRODUCED,
    UNSTATED,
    Entry,
    entries,
    verdict,
)
from udpm.report.table import MISSING, html, latex, markdown, write_set

TARGET = "paper_tables"
WORDS = 2
"""Leading columns of the table to read that hold words."""


@dataclass
class Notes:
    """Footnotes in the order in which they are first asked for; a cell carries the number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The mark of a footnote, [1]."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def readable(
    table: PublishedTable, lines: Sequence[Entry], experiments: dict[str, Experiment | None]
) -> tuple[pd.DataFrame, list[str]]:
    """The rounded table for people, and its footnotes."""
    notes, metric = Notes(), table.protocol.metric
    rows = [_readable_row(table, entry, notes, experiments) for entry in lines]
    several = len({row.dataset for row in table.rows}) > 1
    frame = pd.DataFrame(rows).rename(columns={"published": f"published {metric}"})
    if not several:
        frame = frame.drop(columns="data set")
    if not any(entry.experiment or entry.title for entry in lines):
        frame = frame.drop(columns=[name for name in frame if name == "verdict" or name.startswith("measured")])
    numbered = [f"[{number}] {text}" for number, text in enumerate(notes.texts, start=1)]
    return frame, _general_notes(table, lines) + numbered + _protocols(lines)


def full_table(
    table: PublishedTable, lines: Sequence[Entry], experiments: dict[str, Experiment | None]
) -> pd.DataFrame:
    """One row for each published score and measured checkpoint, in full precision with the whole protocol."""
    rows = []
    for entry in lines:
        wanted = ((LAST, entry.last), (BEST, entry.best)) if entry.experiment else ((None, entry.last),)
        rows += [_full_row(table, entry, which, found, experiments) for which, found in wanted]
    whole = ["nfe", "n", "seeds", "reference_n"]
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def write_paper_table(
    table: PublishedTable,
    scores: Sequence[dict[str, Any]],
    experiments: dict[str, Experiment | None],
    stem: str | Path,
) -> str:
    """Write ``STEM.csv`` (everything), ``STEM.md``, ``STEM.tex`` and ``STEM.html`` (to read).

    Returns:
        The markdown.
    """
    lines = entries(table, scores, experiments)
    frame, notes = readable(table, lines, experiments)
    everything = full_table(table, lines, experiments)
    return write_readable(everything, frame, notes, table.title, stem, WORDS if "data set" in frame else WORDS - 1)


def write_readable(
    everything: pd.DataFrame, frame: pd.DataFrame, notes: list[str], title: str, stem: str | Path, columns: int = WORDS
) -> str:
    """Write ``STEM.csv`` (everything), and to read ``STEM.md``, ``STEM.tex`` and ``STEM.html``.

    Args:
        everything: in full precision.
        frame: of text.
        notes: under it.
        title: above it.
        stem: path without suffix.
        columns: number of leading columns that hold words.

    Returns:
        The markdown.
    """
    text = f"**{title}**\n\n{markdown(frame, notes)}"
    tex = f"% {title}\n" + latex(frame, notes, columns)
    write_set(stem, everything, text, tex, html(frame, notes, columns, title))
    return text


def _readable_row(
    table: PublishedTable, entry: Entry, notes: Notes, experiments: dict[str, Experiment | None]
) -> dict[str, str]:
    row = entry.row
    conditional = {None: MISSING, True: "yes", False: "no"}[row.conditional]
    mark = f" {notes.mark(row.note + '.')}" if row.note else ""
    return {
        "method": (entry.title or row.method) + mark,
        "data set": row.dataset,
        "NFE": MISSING if row.nfe is None else str(row.nfe),
        "conditional": conditional,
        "published": _published(entry),
        "standing": row.standing or MISSING,
        "source": row.source or MISSING,
        "measured, last checkpoint": _cell(table, entry, LAST, notes, experiments),
        "measured, best checkpoint": _cell(table, entry, BEST, notes, experiments),
        "verdict": _verdicts(table, entry, notes, experiments),
    }


def _published(entry: Entry) -> str:
    if entry.row.value is None:
        return MISSING if entry.title else "none"
    return f"{entry.row.value:.{1 if entry.row.value >= 100 else 2}f}"


def _filled_by(entry: Entry, which: str, experiments: dict[str, Experiment | None]) -> Advice:
    return advice(entry.experiment, which, experiments.get(entry.experiment), TARGET)


def _state(entry: Entry, which: str, experiments: dict[str, Experiment | None]) -> str:
    """What is said of a score that is not there."""
    config = experiments.get(entry.experiment)
    if config is not None and config.scoring is None:
        return NOT_SCORED
    return NOT_RUN if which == LAST or _filled_by(entry, which, experiments).how else "none"


def _cell(
    table: PublishedTable, entry: Entry, which: str, notes: Notes, experiments: dict[str, Experiment | None]
) -> str:
    found = entry.last if which == LAST else entry.best
    if entry.experiment is None:
        return MISSING if found is None else _value(found, table)
    config = experiments.get(entry.experiment)
    if found is None:
        filled = _filled_by(entry, which, experiments)
        said = f"To fill: {filled.how}" if filled.how else filled.why
        return f"{_state(entry, which, experiments)} {notes.mark(said + '.')}"
    text = _value(found, table)
    missing = [seed for seed in (config.seeds if config else []) if seed not in found.values]
    if missing:
        seeds, filled = ", ".join(map(str, missing)), _filled_by(entry, which, experiments)
        rest = f"to fill: {filled.how}" if filled.how else filled.why
        text += " " + notes.mark(f"{entry.experiment}: no score of seed {seeds}; {rest}.")
    if found.checkpoint not in (LAST, BEST):
        said = {"milestone": "a milestone that the configuration names", "given": "imported weights"}[found.checkpoint]
        text += " " + notes.mark(f"{entry.experiment}: of {said}, neither known to be the last nor the best.")
    return text


def _value(found: Measured, table: PublishedTable) -> str:
    """The number; with its name where it is not what the column says."""
    return found.show() if found.label == table.protocol.metric else f"{found.show()} {found.label}"


def _verdicts(table: PublishedTable, entry: Entry, notes: Notes, experiments: dict[str, Experiment | None]) -> str:
    if entry.experiment is None or entry.row.value is None:
        return MISSING
    found = {which: pair for which, pair in ((LAST, entry.last), (BEST, entry.best)) if pair is not None}
    if not found:
        return _state(entry, LAST, experiments)
    said = []
    for which, pair in found.items():
        word, why = verdict(table, entry.row, pair)
        said.append(f"{which}: {word}" + (f" {notes.mark(why + '.')}" if why else ""))
    return "; ".join(said)


def _full_row(
    table: PublishedTable,
    entry: Entry,
    which: str | None,
    found: Measured | None,
    experiments: dict[str, Experiment | None],
) -> dict[str, Any]:
    row, protocol = entry.row, found.score["protocol"] if found else {}
    reference, subject = protocol.get("reference", {}), found.score["subject"] if found else {}
    word, why = verdict(table, row, found) if entry.experiment else ("", "")
    missing = entry.experiment is not None and found is None
    filled = _filled_by(entry, which or LAST, experiments) if missing else Advice()
    state = "measured" if found else "not of this project"
    return {
        "method": entry.title or row.method,
        "dataset": row.dataset,
        "nfe": row.nfe,
        "conditional": row.conditional,
        "metric": table.protocol.metric,
        "published": row.value,
        "standing": row.standing,
        "source": table.sources.get(row.source or ""),
        "experiment": entry.experiment,
        "checkpoint": found.checkpoint if found and entry.experiment else which,
        "state": _state(entry, which or LAST, experiments) if missing else state,
        "measured": found.mean if found else None,
        "measured_metric": found.label if found else None,
        "spread": found.spread if found else None,
        "seeds": len(found.values) if found and entry.experiment else None,
        "values": " ".join(map(repr, found.values.values())) if found else None,
        "verdict": word,
        "reason": why,
        "to_fill": filled.how or None,
        "n": protocol.get("n"),
        "extractor": protocol.get("extractor", {}).get("name"),
        "extractor_sha256": protocol.get("extractor", {}).get("sha256"),
        "preprocessing": preprocessing(found.score) if found else None,
        "reference": f"{reference['dataset']}/{reference['split']}" if reference else None,
        "reference_n": reference.get("n"),
        "reference_sha256": reference.get("sha256"),
        "iteration": subject.get("iteration"),
        "weights": subject.get("weights"),
        "sampling_seed": subject.get("seed"),
        "posterior": subject.get("posterior"),
        "guidance": subject.get("guidance"),
        "network_precision": subject.get("precision"),
        "network_tf32": used_tf32(subject) if found else None,
        "network_compiled": subject.get("compiled"),
    }


def _general_notes(table: PublishedTable, lines: Sequence[Entry]) -> list[str]:
    standings = [name for name in STANDINGS if any(row.standing == name for row in table.rows)]
    used = [key for key in table.sources if any(row.source == key for row in table.rows)]
    notes = [table.description] if table.description else []
    if standings:
        notes.append("Standing: " + "; ".join(f"{name} {STANDINGS[name]}" for name in standings) + ".")
        notes.append("Sources: " + "; ".join(f"{key}: {table.sources[key]}" for key in used) + ".")
    if any(row.value is not None and row.conditional is None for row in table.rows):
        notes.append(f"{MISSING} under conditional: what was read does not say.")
    if any(entry.experiment and entry.row.value is not None for entry in lines):
        notes += [_rule(table), _stated(table)]
    if table.experiments and any(entry.experiment is None and not entry.title for entry in lines):
        notes.append(f"{MISSING} under measured: no experiment of this project stands for the row.")
    return notes


def _rule(table: PublishedTable) -> str:
    return (
        f"Verdict: {REPRODUCED} where the mean over seeds is within {table.tolerance:.0%} of the published score, "
        f"{BETTER} below that, {NOT_REPRODUCED} above; {NOT_COMPARABLE} where anything that both protocols state "
        "differs. The band is a choice of this project. ± is the standard deviation over training seeds."
    )


def _stated(table: PublishedTable) -> str:
    protocol = table.protocol
    parts = {
        "metric": protocol.metric,
        "N": protocol.n,
        "extractor": protocol.extractor,
        "preprocessing": protocol.preprocessing,
        "reference split": protocol.split,
        "checkpoint": protocol.checkpoint,
        "weights": protocol.weights,
    }
    said = ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)
    for method, checkpoint, weights in dict.fromkeys((row.method, row.checkpoint, row.weights) for row in table.rows):
        own = {"checkpoint": checkpoint, "weights": weights}
        known = ", ".join(f"{name} {value}" for name, value in own.items() if value is not None)
        said += f"; of {method} alone {known}" if known else ""
    silent = [word for key, word in UNSTATED.items() if getattr(protocol, key) is None]
    left = f"; not stated, and so not compared: {', '.join(silent)}" if silent else ""
    return f"Published protocol, as far as it is stated: {said}{left}."


def _protocols(lines: Sequence[Entry]) -> list[str]:
    """How the measured scores were measured, one line for each experiment's way and checkpoint."""
    notes = []
    for entry in lines:
        for found in (entry.last, entry.best):
            if found is None or entry.title:
                continue
            subject, protocol = found.score["subject"], found.score["protocol"]
            reference = protocol["reference"]
            size = "published statistics" if reference["n"] is None else f"{reference['n']} images"
            chosen = subject.get("selection")
            how = (
                f", chosen from {len(chosen['iterations'])} milestones by {chosen['n']} other images each"
                if chosen
                else ""
            )
            notes.append(
                f"{found.experiment}, {found.checkpoint} checkpoint, training seeds "
                f"{', '.join(map(str, found.values))}: {found.label} of N = {protocol['n']} images, extractor "
                f"{protocol['extractor']['name']} (SHA-256 {protocol['extractor']['sha256'][:12]}; "
                f"{preprocessing(found.score)}), to {reference['dataset']}/{reference['split']}, {size}; "
                f"{weights_words(subject)}{how}, {noise_words(subject)}, {sampling_words(subject)}."
            )
    return list(dict.fromkeys(notes))
