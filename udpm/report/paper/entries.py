"""Published scores next to measured ones: which compare, and what the comparison says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from udpm.config.experiment import Experiment
from udpm.config.published_scores import Protocol, PublishedTable, Row
from udpm.metrics.protocol import BEST, LAST, Measured, measured, preprocessing

NOT_RUN, NOT_COMPARABLE = "not run", "not comparable"


NOT_SCORED = "not scored"


REPRODUCED, BETTER, NOT_REPRODUCED = "reproduced", "better", "not reproduced"


UNSTATED = {"preprocessing": "mode", "split": "reference split"}
"""Parts of a protocol that a source may leave open, in words."""


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        row: the published one.
        experiment: whose scores stand beside it; None: the method is not one of this project.
        last: measured of the end of training; None: not run.
        best: measured of the selected milestone; None: not run.
        title: in the method's place, for what is no method.
    """

    row: Row
    experiment: str | None = None
    last: Measured | None = None
    best: Measured | None = None
    title: str = ""


def entries(
    table: PublishedTable, scores: Sequence[dict[str, Any]], experiments: dict[str, Experiment | None]
) -> list[Entry]:
    """The lines of a table: the published rows, one for each way that their experiments were measured in; yardsticks.

    Args:
        table: the published scores.
        scores: measured ones, as `records.read_scores` gives them.
        experiments: the configuration of those the table names; None where it cannot be read.
    """
    found = []
    for row in ordered(table):
        found += [entry for name in row.experiments for entry in entries_of(row, name, scores, experiments.get(name))]
        found += [] if row.experiments else [Entry(row)]
    return found + yardstick_entries(table, scores)


def differences(protocol: Protocol, row: Row, found: Measured) -> list[str]:
    """Why a measured score does not compare with a published one: all that both state and that differs."""
    subject, measuring = found.score["subject"], found.score["protocol"]
    reference = measuring["reference"]
    stated = [
        ("metric", protocol.metric, found.label),
        ("N", protocol.n, measuring["n"]),
        ("extractor", protocol.extractor, measuring["extractor"]["name"]),
        ("preprocessing", protocol.preprocessing, preprocessing(found.score)),
        ("reference", row.dataset, reference["dataset"]),
        ("reference split", protocol.split, reference["split"]),
        ("checkpoint", row.checkpoint or protocol.checkpoint, found.checkpoint),
        ("weights", row.weights or protocol.weights, subject.get("weights")),
        ("class-conditional", row.conditional, subject.get("classes", 0) > 0),
        ("NFE", row.nfe, subject.get("nfe")),
    ]
    differ = [
        f"{what} {as_word(ours)}, published {as_word(theirs)}"
        for what, theirs, ours in stated
        if theirs is not None and theirs != ours
    ]
    return differ + ([f"guidance {subject['guidance']:g}"] if subject.get("guidance") not in (None, 1) else [])


def verdict(table: PublishedTable, row: Row, found: Measured | None) -> tuple[str, str]:
    """What a measured score says of the published one, and why; empty where nothing has been published.

    The mean over seeds is compared: within tolerance × published score of the published score it is reproduced, below
    that better, above not reproduced.
    """
    if row.value is None:
        return "", ""
    if found is None:
        return NOT_RUN, ""
    why = differences(table.protocol, row, found)
    if why:
        return NOT_COMPARABLE, "; ".join(why)
    band = table.tolerance * row.value
    if found.mean < row.value - band:
        return BETTER, ""
    return (REPRODUCED if found.mean <= row.value + band else NOT_REPRODUCED), ""


YARDSTICKS = {"heldout": "held-out images (floor)", "noise": "noise (ceiling)"}


def ordered(table: PublishedTable) -> list[Row]:
    """The rows of a table in the order in which they are printed."""
    if table.order == "listed":
        return list(table.rows)
    names = list(dict.fromkeys(row.dataset for row in table.rows))
    return sorted(table.rows, key=lambda row: (names.index(row.dataset), row.nfe or 0, row.value or 0, row.method))


def entries_of(row: Row, name: str, scores: Sequence[dict[str, Any]], config: Experiment | None) -> list[Entry]:
    """An experiment's lines: last and best side by side where they were measured in one way."""
    iterations = config.training.iterations if config is not None and config.training != "imported" else None
    ways: dict[tuple, dict[str, Measured]] = {}
    for found in measured(scores, name, iterations):
        place = BEST if found.checkpoint == BEST else LAST
        key = (found.label, found.score["protocol"]["n"], found.score["protocol"]["reference"]["sha256"])
        # Milestones and given weights stand in the column of the last checkpoint; their footnote says what they are.
        while place in ways.setdefault(key, {}):
            key = (*key, found.checkpoint)
        ways[key][place] = found
    return [Entry(row, name, pair.get(LAST), pair.get(BEST)) for pair in ways.values()] or [Entry(row, name)]


def yardstick_entries(table: PublishedTable, scores: Sequence[dict[str, Any]]) -> list[Entry]:
    """Lines of what scores are read against, where it was measured for an experiment of the table."""
    lines: dict[tuple, Entry] = {}
    for score in scores:
        kind, name = score["subject"]["kind"], score["experiment"]
        value = score["metrics"]["frechet_distance"]["value"]
        if kind not in YARDSTICKS or name not in table.experiments or value is None:
            continue
        dataset = next(row.dataset for row in table.rows if name in row.experiments)
        row = Row(method=YARDSTICKS[kind], dataset=dataset)
        lines.setdefault(
            (kind, value), Entry(row, None, Measured(name, LAST, {0: value}, score), title=YARDSTICKS[kind])
        )
    return list(lines.values())


def as_word(value: Any) -> str:
    """A value as a cell shows it: yes or no for a bool."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
