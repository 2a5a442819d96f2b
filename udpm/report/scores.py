"""Scores in a folder of results: means over training seeds, and the score table with the whole protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from udpm.config.experiment import Experiment, RunConfig
from udpm.metrics.protocol import FEATURES, comparable, describe, drawing_words, facts, features_words, read_scores
from udpm.report.table import Table, cell
from udpm.runs.layout import Layout

LAST, BEST, MILESTONE, GIVEN = "last", "best", "milestone", "given"
"""Checkpoints: end of training, selected milestone, a milestone named in the configuration, imported weights."""


@dataclass(frozen=True)
class ScoreSummary:
    """An experiment's Fréchet distances of one protocol.

    Attributes:
        checkpoint: last, best, milestone or given.
        values: by training seed.
        score: of the first seed; all share its protocol.
    """

    experiment: str
    checkpoint: str
    values: dict[int, float]
    score: dict[str, Any]

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

    def __str__(self) -> str:
        """Mean, spread and number of seeds."""
        if self.spread is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.spread:.2f} ({len(self.values)} seeds)"

    def describe(self) -> str:
        """Describe the experiment, checkpoint, seeds and protocol in a sentence."""
        seeds = f"training seed{'s' if len(self.values) > 1 else ''} {', '.join(map(str, self.values))}"
        return f"{self.experiment}, {self.checkpoint} checkpoint, {seeds}: {describe(self.score)}."


def score_files(results: str | Path, experiments: Iterable[str]) -> list[Path]:
    """Return the existing score files of experiments: of runs, held-out images and noise."""
    layout = Layout(results)
    return [path for name in experiments for path in layout.found(layout.scores("*", name))]


def training_length(config: Experiment | RunConfig) -> int | None:
    """Return the iterations of an experiment's training, or None for imported weights."""
    return None if config.training == "imported" else config.training.iterations


def summarize_scores(
    scores: Sequence[dict[str, Any]], experiment: str, iterations: int | None = None
) -> list[ScoreSummary]:
    """Summarize the scores of an experiment's runs, one entry per checkpoint and protocol.

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
            experiment,
            which,
            {
                score["subject"].get("run_seed") or 0: score["metrics"]["frechet_distance"]["value"]
                for score in sorted(group, key=lambda score: score["subject"].get("run_seed") or 0)
            },
            group[0],
        )
        for (which, *_), group in sorted(groups.items(), key=lambda item: repr(item[0]))
    ]


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
    *("run_seed", "sampling_seed", "noise_sha256", "posterior", "guidance"),
    *("network_precision", "network_tf32", "network_compiled", "weights", "iteration"),
)
"""Columns of a score's protocol."""
PATTERNS = {
    **dict.fromkeys(("frechet_distance", "class_frechet_distance"), "{:.2f}"),
    "kernel_distance": "{:.3g}",
    **dict.fromkeys(("precision", "recall", "class_agreement"), "{:.3f}"),
}
"""Metrics and the format of their values."""
ORDER = {"samples": 0, "images": 1, "heldout": 2, "noise": 3}
SHOWN = {
    "precision": "precision",
    "recall": "recall",
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
    scores.sort(key=_place)
    return Table(_readable(scores), _notes(scores), "Scores", _full(scores), words=2)


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
    headings = _frechet_columns(scores)
    rows = []
    for score, heading in zip(scores, headings, strict=True):
        row = {
            "experiment": score["experiment"],
            "images": _subject(score),
            "NFE": cell(score["subject"]["nfe"]),
            "N": str(score["protocol"]["n"]),
        }
        for name in dict.fromkeys(headings):
            row[name] = cell(_value(score, "frechet_distance") if name == heading else None, "{:.2f}")
        if any("frechet_distance_best" in other["metrics"] for other in scores):
            row["best of its ranges"] = cell(_value(score, "frechet_distance_best"), "{:.2f}")
        row |= {title: cell(_value(score, name), PATTERNS.get(name, "{:.2f}")) for name, title in SHOWN.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _notes(scores: list[dict[str, Any]]) -> list[str]:
    """Describe every protocol in a line, then the reasons for missing values."""
    notes = [
        f"{heading}: Fréchet distance in {features_words(score['protocol'])}; precision and recall with "
        f"k = {score['protocol']['neighbours']}. N images each, as listed: distances at different N do not compare."
        for score, heading in zip(scores, _frechet_columns(scores), strict=True)
    ]
    notes += [
        f"{_subject(score)}: no {metric['label']}, because {metric['reason'] or 'unknown'}."
        for score in scores
        for metric in score["metrics"].values()
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


def _frechet_columns(scores: list[dict[str, Any]]) -> list[str]:
    """Return the column of each score's Fréchet distance; equal names of columns that do not compare get a number."""
    ways = [comparable(score, ("metric", *FEATURES)) for score in scores]
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
        further = ("std", "subsets", "subset_size", "splits")
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
    return f"UDPM, seed {'unknown' if subject['run_seed'] is None else subject['run_seed']}{which}"


def _place(score: dict[str, Any]) -> tuple:
    subject = score["subject"]
    return score["experiment"], ORDER[subject["kind"]], subject.get("run_seed") or 0, not score["with_best"]


def _run(score: dict[str, Any]) -> tuple:
    return score["experiment"], score["subject"].get("run_seed")


def _selection(subject: dict[str, Any]) -> dict[str, Any]:
    """Return columns on the selection of the milestone, if any."""
    selection = subject["selection"]
    if not selection:
        return {}
    shown = {f"selection_{key}": selection[key] for key in ("n", "seed", "frechet_distance")}
    return shown | {"selection_iterations": " ".join(map(str, selection["iterations"]))}
