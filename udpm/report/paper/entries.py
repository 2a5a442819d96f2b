"""Pair published with measured scores: which compare, with which verdict, and how to obtain missing ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from udpm.config.evaluation import Selection
from udpm.config.experiment import Experiment
from udpm.config.points import split_name
from udpm.config.published_scores import Protocol, PublishedTable, Row
from udpm.config.training import Training
from udpm.metrics.protocol import comparable, facts
from udpm.report.scores import BEST, LAST, ScoreSummary, summarize_scores, training_length

NOT_RUN, NOT_SCORED, NOT_COMPARABLE = "not run", "not scored", "not comparable"
REPRODUCED, BETTER, NOT_REPRODUCED = "reproduced", "better", "not reproduced"
BASELINES = {"heldout": "held-out images (floor)", "noise": "noise (ceiling)"}
UNSTATED = {"preprocessing": "mode", "split": "reference split"}
"""Parts of a protocol that a source may not state, in words."""


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        row: the published score.
        experiment: the experiment that reproduces it; None for a method outside this project.
        last: scores at the end of training; None: not run.
        best: scores of the selected milestone; None: not run.
        title: replaces the method's name for a baseline.
    """

    row: Row
    experiment: str | None = None
    last: ScoreSummary | None = None
    best: ScoreSummary | None = None
    title: str = ""


def entries(
    table: PublishedTable, scores: Sequence[dict[str, Any]], experiments: dict[str, Experiment | None]
) -> list[Entry]:
    """Return the lines of a table: published rows, each repeated for every protocol of its scores, then baselines.

    Takes the first arguments of `comparison_table`.
    """
    found = []
    for row in _ordered(table):
        found += [entry for name in row.experiments for entry in _entries_of(row, name, scores, experiments.get(name))]
        found += [] if row.experiments else [Entry(row)]
    return found + _baseline_entries(table, scores)


def differences(protocol: Protocol, row: Row, found: ScoreSummary) -> list[str]:
    """List what differs between a measured and a published protocol, of what both state; empty if they compare."""
    known, reference = facts(found.score), found.score["protocol"]["reference"]
    stated = [
        ("metric", protocol.metric, known["metric"]),
        ("N", protocol.n, known["n"]),
        ("extractor", protocol.extractor, known["extractor"]),
        ("preprocessing", protocol.preprocessing, known["preprocessing"]),
        ("reference", row.dataset, reference["dataset"]),
        ("reference split", protocol.split, reference["split"]),
        ("checkpoint", row.checkpoint or protocol.checkpoint, found.checkpoint),
        ("weights", row.weights or protocol.weights, known["weights"]),
        ("class-conditional", row.conditional, (known["classes"] or 0) > 0),
        ("NFE", row.nfe, known["nfe"]),
    ]
    differ = [
        f"{what} {_as_word(ours)}, published {_as_word(theirs)}"
        for what, theirs, ours in stated
        if theirs is not None and theirs != ours
    ]
    differ += [] if known["labels"] is None else [f"{known['labels']} alone"]
    return differ + ([] if known["guidance"] in (None, 1) else [f"guidance {known['guidance']:g}"])


def verdict(table: PublishedTable, row: Row, found: ScoreSummary | None) -> tuple[str, str]:
    """Return the verdict on a published score and its reason; empty if no score is published.

    The mean over seeds is compared: reproduced within ± tolerance × the published score, better below, not reproduced
    above.
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


def _ordered(table: PublishedTable) -> list[Row]:
    """Return the rows of a table in printing order."""
    if table.order == "listed":
        return list(table.rows)
    names = list(dict.fromkeys(row.dataset for row in table.rows))
    return sorted(table.rows, key=lambda row: (names.index(row.dataset), row.nfe or 0, row.value or 0, row.method))


def _entries_of(row: Row, name: str, scores: Sequence[dict[str, Any]], config: Experiment | None) -> list[Entry]:
    """Return an experiment's lines: last and best side by side if they share a protocol."""
    iterations = None if config is None else training_length(config)
    ways: dict[tuple[Any, ...], dict[str, ScoreSummary]] = {}
    for found in summarize_scores(scores, name, iterations):
        place = BEST if found.checkpoint == BEST else LAST
        key: tuple[Any, ...] = comparable(found.score)
        # Milestones and given weights go into the column of the last checkpoint; a footnote identifies them.
        while place in ways.setdefault(key, {}):
            key = (*key, found.checkpoint)
        ways[key][place] = found
    return [Entry(row, name, pair.get(LAST), pair.get(BEST)) for pair in ways.values()] or [Entry(row, name)]


def _baseline_entries(table: PublishedTable, scores: Sequence[dict[str, Any]]) -> list[Entry]:
    """Return lines for the measured floors and ceilings of the table's experiments."""
    lines: dict[tuple, Entry] = {}
    for score in scores:
        kind, name = score["subject"]["kind"], score["experiment"]
        value = score["metrics"]["frechet_distance"]["value"]
        if kind not in BASELINES or name not in table.experiments or value is None:
            continue
        dataset = next(row.dataset for row in table.rows if name in row.experiments)
        row = Row(method=BASELINES[kind], dataset=dataset)
        lines.setdefault(
            (kind, value), Entry(row, None, ScoreSummary(name, LAST, {0: value}, score), title=BASELINES[kind])
        )
    return list(lines.values())


def _as_word(value: Any) -> str:
    """Format a value; yes or no for a bool."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


FEW = 8
"""Number of milestones advised to an experiment that keeps none."""


@dataclass(frozen=True)
class Advice:
    """Advice on obtaining a score; one of the two is empty.

    Attributes:
        how: what to write and run.
        why: reason why it cannot be obtained.
    """

    how: str = ""
    why: str = ""


def command(experiment: str, config: Experiment | None, target: str = "all") -> str:
    """Return the command that makes a target of the workflow for one experiment."""
    several_nodes = config is not None and isinstance(config.training, Training) and config.training.nodes > 1
    profile = "--profile slurm " if several_nodes else ""
    return f"`snakemake {profile}{target} --config experiments={experiment}`"


def advice(experiment: str, checkpoint: str, config: Experiment | None, target: str = "all") -> Advice:
    """Return how to obtain the score of a checkpoint and a target of the workflow that uses it.

    The checkpoint is last or best; the configuration is None if the experiment's file cannot be read.
    """
    if config is None:
        return Advice(why=f"config/experiments/{experiment}.yaml cannot be read")
    if config.scoring is None:
        return Advice(why=f"{experiment} is not scored (scoring: null)")
    if checkpoint != BEST or config.selection is not None:
        return Advice(how=command(experiment, config, target))
    if not isinstance(config.training, Training):
        return Advice(why=f"{experiment}: imported weights have no milestones, of which one could be the best")
    keys = _keys_for_best(config)
    if keys is None or split_name(experiment) is not None:
        return Advice(why=f"{experiment}: no milestones that one could be chosen from")
    if "training" in keys:
        kept = f"training.keep_every is {config.training.keep_every}, iterations are {config.training.iterations}"
        return Advice(why=f"{experiment}: its training keeps no milestones ({kept})")
    return Advice(
        how=f"`{_line(keys)}` in config/experiments/{experiment}.yaml, then {command(experiment, config, target)}"
    )


def another_with_best(experiment: str, config: Experiment) -> Advice:
    """Return how to run an experiment again, under another name, with milestones."""
    keys = _keys_for_best(config)
    if keys is None or split_name(experiment) is not None:
        return advice(experiment, BEST, config)
    name = f"{experiment}-best"
    values = _line({"extends": experiment, **keys})
    return Advice(how=f"`{{{values}}}` as config/experiments/{name}.yaml, then {command(name, config)}")


def _keys_for_best(config: Experiment) -> dict[str, Any] | None:
    """Return the keys to add for selecting the best milestone; None if no keys suffice."""
    training, sampling = config.training, config.sampling
    if not isinstance(training, Training):
        return None
    default, selection = Selection(), {}
    if sampling.seed == default.seed:
        selection["seed"] = default.seed + 1
    if 2 <= sampling.count < default.count:
        selection["count"] = sampling.count
    keys: dict[str, Any] = {"selection": selection}
    if not 1 <= training.keep_every <= training.iterations:
        keys = {"training": {"keep_every": max(1, training.iterations // FEW)}} | keys
    values = config.model_dump()
    values["training"] |= keys.get("training", {})
    try:
        Experiment.model_validate(values | {"selection": selection})
    except ValidationError:
        return None
    return keys


def _line(keys: dict[str, Any]) -> str:
    text = yaml.safe_dump(keys, default_flow_style=True, sort_keys=False, width=10_000)
    return text.strip().removeprefix("{").removesuffix("}")
