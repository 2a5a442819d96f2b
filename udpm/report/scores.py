"""Scores in a folder of results: means over training seeds, and the score table with the whole protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from udpm.config.experiment import Experiment, RunConfig
from udpm.metrics.protocol import (
    FEATURES,
    chosen_words,
    comparable,
    describe,
    drawing_words,
    facts,
    features_words,
    mark_shared,
    read_scores,
    shared_labels,
    shared_words,
)
from udpm.report.table import MISSING, Table, cell
from udpm.runs.layout import Layout

MATCHED = "frechet_distance_matched"
"""Distance of as many images as samples and held-out images both have."""
LAST, BEST, MILESTONE, GIVEN = "last", "best", "milestone", "given"
"""Checkpoints: end of training, selected milestone, a milestone named in the configuration, imported weights."""


@dataclass(frozen=True)
class ScoreSummary:
    """An experiment's Fréchet distances of one protocol.

    Attributes:
        checkpoint: last, best, milestone or given.
        values: by training seed.
        score: of the first seed, or of the first that is marked (`shared_labels`); all share its protocol.
        matched: by training seed, distances of as many images as the floor has too; empty if unknown.
    """

    experiment: str
    checkpoint: str
    values: dict[int, float]
    score: dict[str, Any]
    matched: dict[int, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the distance: FID, or another if it is not one."""
        return self.score["metrics"]["frechet_distance"]["label"]

    @property
    def mean(self) -> float:
        """Mean over training seeds."""
        return mean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over training seeds; None for one seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def matched_count(self) -> int | None:
        """Number of images of the `matched` distances."""
        return self.score["metrics"][MATCHED]["n"] if self.matched else None

    def __str__(self) -> str:
        """Mean, spread and number of seeds, marked if a loss shares labels with the extractor."""
        spread = "" if self.spread is None else f" ± {self.spread:.2f} ({len(self.values)} seeds)"
        return mark_shared(f"{self.mean:.2f}{spread}", shared_of(self.score))

    def describe(self) -> str:
        """Describe the experiment, checkpoint, seeds and protocol in a sentence."""
        seeds = f"training seed{'s' if len(self.values) > 1 else ''} {', '.join(map(str, self.values))}"
        return f"{self.experiment}, {self.checkpoint} checkpoint, {seeds}: {describe(self.score)}."


def shared_of(score: dict[str, Any]) -> str | None:
    """Name the labels that a score's extractor and a loss of its images' training share."""
    return shared_labels(score["subject"], score["protocol"])


def score_files(results: str | Path, experiments: Iterable[str]) -> list[Path]:
    """Return the existing score files of experiments: of runs, held-out images and noise."""
    layout = Layout(results)
    return [path for name in experiments for path in layout.found(layout.scores("*", name))]


def training_length(config: Experiment | RunConfig, done: int | None = None) -> int | None:
    """Return the iterations of an experiment's training; None if they are unknown, as of imported weights.

    ``epochs`` may end it sooner: after `done` iterations of a finished run. Without these, it is unknown, unless the
    experiment samples a milestone.
    """
    if config.training == "imported":
        return None
    samples_a_milestone = isinstance(config, Experiment) and config.sampling.iteration is not None
    return done if config.training.epochs and not samples_a_milestone else config.training.iterations


def summarize_scores(
    scores: Sequence[dict[str, Any]], experiment: str, iterations: int | None = None
) -> list[ScoreSummary]:
    """Summarize the scores of an experiment's runs, one entry per checkpoint and protocol.

    Protocols of one checkpoint keep their order, so that the experiment's first extractor comes first.
    The length of its training in iterations distinguishes a milestone from the end; None: unknown.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for score in scores:
        subject, value = score["subject"], score["metrics"]["frechet_distance"]["value"]
        if score["experiment"] == experiment and subject["kind"] == "samples" and value is not None:
            which = checkpoint(subject, iterations)
            # The best milestone differs between seeds; otherwise, runs must have trained equally long.
            length = None if which == BEST else subject.get("iteration")
            groups.setdefault((which, length, comparable(score)), []).append(score)
    return [
        ScoreSummary(
            experiment, which, _by_seed(group, "frechet_distance"), _marked_or_first(group), _by_seed(group, MATCHED)
        )
        for (which, *_), group in sorted(groups.items(), key=lambda item: repr(item[0][:2]))
    ]


def _marked_or_first(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first marked score, since scores of earlier versions do not know their losses; else the first."""
    return next((score for score in scores if shared_of(score)), scores[0])


def _by_seed(scores: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Return a metric of scores by training seed; empty if one has none."""
    ordered = sorted(scores, key=lambda score: score["subject"].get("run_seed") or 0)
    values = {score["subject"].get("run_seed") or 0: _value(score, name) for score in ordered}
    known = {seed: value for seed, value in values.items() if value is not None}
    return known if len(known) == len(values) else {}


def checkpoint(subject: dict[str, Any], iterations: int | None = None) -> str:
    """Return which checkpoint a sample set was drawn from."""
    if subject.get("selection") is not None:
        return BEST
    if subject.get("origin") and subject.get("iteration") is None:
        return GIVEN
    return MILESTONE if iterations and (subject.get("iteration") or iterations) < iterations else LAST


WHOLE = ("nfe", "run_seed", "sampling_seed", "iteration", "selection_n", "selection_seed")
"""Columns of whole numbers, some of them missing."""
SCORING_COLUMNS = (
    *("neighbours", "extractor", "extractor_sha256", "preprocessing", "extractor_heldout_accuracy"),
    *("reference", "reference_n", "reference_sha256"),
)
SAMPLING_COLUMNS = (
    *("loss_features", "shared_labels"),
    *("run_seed", "sampling_seed", "noise_kind", "noise_sha256", "posterior", "guidance", "classes", "labels"),
    *("network_precision", "network_tf32", "network_compiled", "weights", "iteration"),
)
"""Columns of a score's protocol."""
PATTERNS = {
    **dict.fromkeys(("frechet_distance", "class_frechet_distance"), "{:.2f}"),
    "kernel_distance": "{:.3g}",
    **dict.fromkeys(("precision", "recall", "density", "coverage", "authenticity", "class_agreement"), "{:.3f}"),
}
"""Metrics and the format of their values."""
ORDER = {"samples": 0, "images": 1, "heldout": 2, "noise": 3}
SHOWN = {
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class_agreement": "class agreement",
    "nearest_distance_ratio": "nearest-image distance / held-out's",
}
"""Further metrics of the readable table and their columns."""


def score_table(paths: Sequence[str | Path]) -> Table:
    """Return the table of score files: by experiment, models first, then floor, then ceiling.

    Raises:
        UserError: missing, unreadable, or not a score.
    """
    scores = read_scores(paths)
    selected = {_run(score) for score in scores if score["subject"]["selection"]}
    for score in scores:
        score["with_best"] = _run(score) in selected and not score["subject"]["selection"]
    extractors = list(dict.fromkeys(_extractor_of(score) for score in scores))
    scores.sort(key=lambda score: _place(score, extractors))
    return Table(_readable(scores), _notes(scores), "Scores", _full(scores))


def _full(scores: list[dict[str, Any]]) -> pd.DataFrame:
    """Return one row per score with all metrics in full precision and the whole protocol; missing values are empty."""
    rows = []
    for score in scores:
        subject, known = score["subject"], facts(score)
        origin = subject["origin"]["files"] if subject["origin"] else []
        rows.append(
            {
                "experiment": score["experiment"],
                "subject": _subject(score),
                "nfe": known["nfe"],
                "n": known["n"],
                **_values(score),
                "frechet_label": known["metric"],
                **{key: known[key] for key in (*SCORING_COLUMNS, *SAMPLING_COLUMNS)},
                **_selection(subject),
                "weights_sha256": known["weights_sha256"],
                "weights_origin": "; ".join(file.get("name", "unknown") for file in origin),
                "device": known["device"],
                "scoring_tf32": known["scoring_tf32"],
                **{f"version_{name}": value for name, value in score["provenance"]["versions"].items()},
                "commit": score["provenance"]["commit"],
            }
        )
    table = pd.DataFrame(rows)
    return table.astype({name: "Int64" for name in WHOLE if name in table})


def _readable(scores: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the rounded table; Fréchet distances that do not compare get separate columns."""
    headings, names = _frechet_columns(scores), _extractor_names(scores)
    rows = []
    for score, heading in zip(scores, headings, strict=True):
        row = {
            "experiment": score["experiment"],
            "images": _subject(score),
            **({"features": names[_extractor_of(score)]} if len(names) > 1 else {}),
            "NFE": cell(score["subject"]["nfe"]),
            "N": str(score["protocol"]["n"]),
        }
        for name in dict.fromkeys(headings):
            row[name] = _distance(score, "frechet_distance" if name == heading else "")
        if any(MATCHED in other["metrics"] for other in scores):
            row["at equal N"] = _distance(score, MATCHED)
        if any("frechet_distance_best" in other["metrics"] for other in scores):
            row["best of its ranges"] = _distance(score, "frechet_distance_best")
        for name, title in SHOWN.items():
            # Scores of earlier versions have fewer.
            if any(name in other["metrics"] for other in scores):
                row[title] = cell(_value(score, name), PATTERNS.get(name, "{:.2f}"))
        rows.append(row)
    return pd.DataFrame(rows)


def _distance(score: dict[str, Any], name: str) -> str:
    """Format a distance, its number of images if that is not the score's, and the mark of shared labels."""
    value = _value(score, name)
    if value is None:
        return MISSING
    count = score["metrics"][name]["n"]
    return mark_shared(f"{value:.2f}" + ("" if count is None else f" ({count})"), shared_of(score))


def _notes(scores: list[dict[str, Any]]) -> list[str]:
    """Describe every protocol in a line, then warnings and the reasons for missing values."""
    notes = [
        f"{heading}: Fréchet distance {of and f'of {of} '}in {features_words(score['protocol'])}; precision, recall, "
        f"density and coverage with k = {score['protocol']['neighbours']}. Distances at different N do not compare."
        for score, heading in zip(scores, _frechet_columns(scores), strict=True)
        for of in (chosen_words(score["subject"]),)
    ]
    if any(MATCHED in score["metrics"] for score in scores):
        notes.append("At equal N: the distance of the number of images in brackets, which samples and floor both have.")
    notes += [f"{shared_words(shared)}." for score in scores if (shared := shared_of(score))]
    names = _extractor_names(scores)
    of = {key: f", features of {name}" if len(names) > 1 else "" for key, name in names.items()}
    notes += [
        f"{_subject(score)}{of[_extractor_of(score)]}: {metric['warning']}."
        for score in scores
        for metric in _metrics(score)
        if metric["warning"]
    ]
    notes += [
        f"{_subject(score)}{of[_extractor_of(score)]}: no {metric['label']}, because {metric['reason'] or 'unknown'}."
        for score in scores
        for metric in _metrics(score)
        if metric["value"] is None
    ]
    for score in scores:
        subject, versions = score["subject"], score["provenance"]["versions"]
        if subject["kind"] == "samples":
            notes.append(
                f"{score['experiment']}, {_subject(score)}: {drawing_words(subject)}; weights (SHA-256 "
                f"{(subject.get('weights_sha256') or 'unknown')[:12]}), udpm {versions.get('udpm', '?')}, "
                f"torch {versions.get('torch', '?')}."
            )
    return list(dict.fromkeys(notes))


def _metrics(score: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return score["metrics"].values()


def _frechet_columns(scores: list[dict[str, Any]]) -> list[str]:
    """Return the column of each score's Fréchet distance; equal names of columns that do not compare get a number."""
    ways = [comparable(score, ("metric", "labels", *FEATURES)) for score in scores]
    different = list(dict.fromkeys(ways))
    names = [dict(way)["metric"] for way in different]
    headings = {
        way: name if names.count(name) == 1 else f"{name} [{names[: index + 1].count(name)}]"
        for index, (way, name) in enumerate(zip(different, names, strict=True))
    }
    return [headings[way] for way in ways]


def _values(score: dict[str, Any]) -> dict[str, Any]:
    """Return every metric's value, standard deviation, subsets, and values of single ranges."""
    found = {}
    for name, metric in score["metrics"].items():
        found[name] = metric["value"]
        further = ("n", "std", "subsets", "subset_size", "splits")
        found |= {f"{name}_{key}": metric[key] for key in further if metric[key] is not None}
        if metric["values"]:
            found[f"{name}_values"] = " ".join(map(str, metric["values"]))
    return found


def _value(score: dict[str, Any], name: str) -> float | None:
    return score["metrics"].get(name, {}).get("value")


def _subject(score: dict[str, Any]) -> str:
    subject = score["subject"]
    if subject["kind"] == "heldout":
        return "held-out images (floor)"
    if subject["kind"] == "images":
        return subject.get("source") or "images of unknown source"
    if subject["kind"] == "noise":
        return "noise (ceiling)"
    which = ", last" if score.get("with_best") else ""
    if subject["selection"]:
        which = f", best of {len(subject['selection']['iterations'])} milestones"
    which += f", {classes} alone" if (classes := chosen_words(subject)) else ""
    return f"UDPM, seed {'unknown' if subject['run_seed'] is None else subject['run_seed']}{which}"


def _place(score: dict[str, Any], extractors: list[str]) -> tuple:
    """Return the order of a score: models of an experiment next to their floor and ceiling in the same features."""
    subject, number = score["subject"], extractors.index(_extractor_of(score))
    return score["experiment"], number, ORDER[subject["kind"]], subject.get("run_seed") or 0, not score["with_best"]


def _extractor_of(score: dict[str, Any]) -> str:
    """Return the SHA-256 of a score's extractor."""
    return score["protocol"]["extractor"]["sha256"]


def _extractor_names(scores: list[dict[str, Any]]) -> dict[str, str]:
    """Return the name of each extractor by its SHA-256; extractors of one name get the first digits, too."""
    names = {_extractor_of(score): score["protocol"]["extractor"]["name"] for score in scores}
    every = list(names.values())
    return {key: name if every.count(name) == 1 else f"{name} ({key[:12]})" for key, name in names.items()}


def _run(score: dict[str, Any]) -> tuple:
    return score["experiment"], score["subject"].get("run_seed")


def _selection(subject: dict[str, Any]) -> dict[str, Any]:
    """Return columns on the selection of the milestone, if any."""
    selection = subject["selection"]
    if not selection:
        return {}
    shown = {f"selection_{key}": selection[key] for key in ("n", "seed", "frechet_distance")}
    return shown | {"selection_iterations": " ".join(map(str, selection["iterations"]))}
