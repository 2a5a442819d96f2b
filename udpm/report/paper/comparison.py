"""Tables of published next to measured scores: Tables 1 and 2 of the paper, peers, and others of this form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from udpm.config.experiment import Experiment
from udpm.config.published_scores import GRADES, PublishedRuntime, PublishedTable, Row
from udpm.metrics.protocol import facts
from udpm.report.paper.entries import (
    BETTER,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_SCORED,
    REPRODUCED,
    UNSTATED,
    Advice,
    Entry,
    advice,
    entries,
    verdict,
)
from udpm.report.scores import BEST, LAST, ScoreSummary
from udpm.report.table import MISSING, Table, cell

TARGET = "paper_tables"
COST = "multiply-adds (G)"
PROTOCOL = (
    *("n", "extractor", "extractor_sha256", "preprocessing", "reference", "reference_n", "reference_sha256"),
    *("iteration", "weights", "sampling_seed", "noise_kind", "posterior", "guidance", "labels"),
    *("network_precision", "network_tf32", "network_compiled"),
    *("loss_features", "shared_labels"),
)
"""Columns of a measured score's protocol."""
WHOLE = ["nfe", "n", "seeds", "reference_n"]
"""Columns of whole numbers, some of them missing."""


def comparison_table(
    table: PublishedTable,
    scores: Sequence[dict[str, Any]],
    experiments: dict[str, Experiment | None],
    runtime: PublishedRuntime | None,
) -> Table:
    """Return a table of published scores with measured ones, and multiply-adds where they are known.

    An experiment whose configuration is not readable has None, and so do published costs.
    """
    lines = entries(table, scores, experiments)
    several = len({row.dataset for row in table.rows}) > 1
    rows = _Rows(table, experiments, runtime)
    shown = pd.DataFrame([rows.readable(entry) for entry in lines])
    shown = shown.rename(columns={"published": f"published {table.protocol.metric}"})
    if not several:
        shown = shown.drop(columns="data set")
    if all(row.value is None for row in table.rows):
        shown = shown.drop(columns=[f"published {table.protocol.metric}", "standing", "source", "verdict"])
    if (shown[COST] == MISSING).all():
        shown = shown.drop(columns=COST)
    if not any(entry.experiment or entry.title for entry in lines):
        shown = shown.drop(columns=[name for name in shown if name == "verdict" or name.startswith("measured")])
    numbered = [f"[{number}] {text}" for number, text in enumerate(rows.footnotes, start=1)]
    pairs = [pair for entry in lines for pair in (entry.last, entry.best) if pair is not None and not entry.title]
    notes = [*_general_notes(table, lines), *numbered, *dict.fromkeys(pair.describe() for pair in pairs)]
    full = pd.DataFrame([row for entry in lines for row in rows.full(entry)]).astype(dict.fromkeys(WHOLE, "Int64"))
    return Table(shown, notes, table.title, full, titled=True)


class _Rows:
    """The rows of a table, and its footnotes.

    Attributes:
        footnotes: in order of first use; cells contain their numbers.
    """

    def __init__(
        self, table: PublishedTable, experiments: dict[str, Experiment | None], runtime: PublishedRuntime | None
    ) -> None:
        self._table, self._experiments, self._runtime = table, experiments, runtime
        self.footnotes: list[str] = []

    def readable(self, entry: Entry) -> dict[str, str]:
        """Return a row of the readable table, with every column that a table may have."""
        row = entry.row
        published = MISSING if entry.title else "none"
        if row.value is not None:
            published = f"{row.value:.{1 if row.value >= 100 else 2}f}"
        return {
            "method": self._name(entry) + self._mark(row.note),
            "data set": row.dataset,
            "NFE": cell(row.nfe),
            COST: cell(self._cost(row), "{:.0f}" if (self._cost(row) or 0) >= 100 else "{:.3g}"),
            "conditional": {None: MISSING, True: "yes", False: "no"}[row.conditional],
            "published": published,
            "standing": row.standing or MISSING,
            "source": row.source or MISSING,
            "measured, last checkpoint": self._cell(entry, LAST),
            "measured, best checkpoint": self._cell(entry, BEST),
            "verdict": self._verdicts(entry),
        }

    @staticmethod
    def _name(entry: Entry) -> str:
        """Name a method; a baseline also with its number of images, which differs from that of the samples."""
        if entry.title and entry.last is not None:
            return f"{entry.title}, N = {entry.last.score['protocol']['n']}"
        return entry.title or entry.row.method

    def full(self, entry: Entry) -> list[dict[str, Any]]:
        """Return a row per measured checkpoint, in full precision with the whole protocol."""
        if entry.experiment is None:
            return [self._full(entry, None, entry.last)]
        return [self._full(entry, LAST, entry.last), self._full(entry, BEST, entry.best)]

    def _full(self, entry: Entry, which: str | None, found: ScoreSummary | None) -> dict[str, Any]:
        row, known = entry.row, facts(found.score) if found else {}
        word, why = verdict(self._table, row, found) if entry.experiment else ("", "")
        missing = entry.experiment is not None and found is None
        filled = self._filled_by(entry, which or LAST) if missing else Advice()
        state = "measured" if found else "not of this project"
        return {
            "method": entry.title or row.method,
            "dataset": row.dataset,
            "nfe": row.nfe,
            "giga_multiply_adds": self._cost(row),
            "conditional": row.conditional,
            "metric": self._table.protocol.metric,
            "published": row.value,
            "standing": row.standing,
            "source": self._table.sources.get(row.source or ""),
            "experiment": entry.experiment,
            "checkpoint": found.checkpoint if found and entry.experiment else which,
            "state": self._state(entry, which or LAST) if missing else state,
            "measured": found.mean if found else None,
            "measured_metric": found.label if found else None,
            "spread": found.spread if found else None,
            "seeds": len(found.values) if found and entry.experiment else None,
            "values": " ".join(map(repr, found.values.values())) if found else None,
            "verdict": word,
            "reason": why,
            "to_fill": filled.how or None,
            **{key: known.get(key) for key in PROTOCOL},
        }

    def _cost(self, row: Row) -> float | None:
        return None if self._runtime is None else self._runtime.image_cost(row)

    def _mark(self, text: str) -> str:
        """Return the mark of a footnote, such as " [1]", or an empty text for an empty footnote."""
        if not text:
            return ""
        if f"{text}." not in self.footnotes:
            self.footnotes.append(f"{text}.")
        return f" [{self.footnotes.index(f'{text}.') + 1}]"

    def _filled_by(self, entry: Entry, which: str) -> Advice:
        name = entry.experiment or ""
        return advice(name, which, self._experiments.get(name), TARGET)

    def _state(self, entry: Entry, which: str) -> str:
        """Return the word for a missing score."""
        config = self._experiments.get(entry.experiment or "")
        if config is not None and config.scoring is None:
            return NOT_SCORED
        return NOT_RUN if which == LAST or self._filled_by(entry, which).how else "none"

    def _cell(self, entry: Entry, which: str) -> str:
        found = entry.last if which == LAST else entry.best
        if entry.experiment is None:
            return MISSING if found is None else self._value(found)
        config, filled = self._experiments.get(entry.experiment), self._filled_by(entry, which)
        if found is None:
            return self._state(entry, which) + self._mark(f"To fill: {filled.how}" if filled.how else filled.why)
        text = self._value(found)
        missing = [str(seed) for seed in (config.seeds if config else []) if seed not in found.values]
        if missing:
            rest = f"to fill: {filled.how}" if filled.how else filled.why
            text += self._mark(f"{entry.experiment}: no score of seed {', '.join(missing)}; {rest}")
        if found.checkpoint not in (LAST, BEST):
            of = {"milestone": "a milestone that the configuration names", "given": "imported weights"}
            said = f"of {of[found.checkpoint]}, neither known to be the last nor the best"
            text += self._mark(f"{entry.experiment}: {said}")
        return text

    def _value(self, found: ScoreSummary) -> str:
        """Format the number, with its name if that differs from the column's."""
        return str(found) if found.label == self._table.protocol.metric else f"{found} {found.label}"

    def _verdicts(self, entry: Entry) -> str:
        if entry.experiment is None or entry.row.value is None:
            return MISSING
        found = {which: pair for which, pair in ((LAST, entry.last), (BEST, entry.best)) if pair is not None}
        if not found:
            return self._state(entry, LAST)
        verdicts = {which: verdict(self._table, entry.row, pair) for which, pair in found.items()}
        return "; ".join(f"{which}: {word}{self._mark(why)}" for which, (word, why) in verdicts.items())


def _general_notes(table: PublishedTable, lines: Sequence[Entry]) -> list[str]:
    grades = [name for name in GRADES if any(row.standing == name for row in table.rows)]
    used = [key for key in table.sources if any(row.source == key for row in table.rows)]
    notes = [table.description] if table.description else []
    if grades:
        notes.append("Standing: " + "; ".join(f"{name} {GRADES[name]}" for name in grades) + ".")
        notes.append("Sources: " + "; ".join(f"{key}: {table.sources[key]}" for key in used) + ".")
    if any(row.value is not None and row.conditional is None for row in table.rows):
        notes.append(f"{MISSING} under conditional: what was read does not say.")
    if any(entry.experiment and entry.row.value is not None for entry in lines):
        notes.append(
            f"Verdict: {REPRODUCED} where the mean over seeds is within {table.tolerance:.0%} of the published score, "
            f"{BETTER} below that, {NOT_REPRODUCED} above; {NOT_COMPARABLE} where anything that both protocols state "
            "differs. The band is a choice of this project. ± is the standard deviation over training seeds."
        )
        notes.append(_stated(table))
    if table.experiments and any(entry.experiment is None and not entry.title for entry in lines):
        notes.append(f"{MISSING} under measured: no experiment of this project stands for the row.")
    return notes


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
    return f"Stated of the published protocol: {said}{left}."
