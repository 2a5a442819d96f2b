"""Scores of a folder of results: means over training seeds, and the score table with the whole protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from udpm.metrics.protocol import FEATURES, comparable, describe, drawing_words, facts, features_words, read_scores
from udpm.report.table import MISSING, Table
from udpm.runs.layout import Layout

LAST, BEST, MILESTONE, GIVEN = "last", "best", "milestone", "given"
"""Checkpoints: end of training, selected milestone, a milestone that the configuration names, imported weights."""


@dataclass(frozen=True)
class ScoreSummary:
    """One experiment's Fréchet distance, measured in one way.

    Attributes:
        experiment: its name.
        checkpoint: which one was scored: last, best, milestone or given.
        values: by training seed.
        score: of the first seed; its protocol is that of all.
    """

    experiment: str
    checkpoint: str
    values: dict[int, float]
    score: dict[str, Any]

    @property
    def label(self) -> str:
        """What the distance is called: FID, or something that says what else it is."""
        return self.score["metrics"]["frechet_distance"]["label"]

    @property
    def mean(self) -> float:
        """Over training seeds."""
        return mean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over training seeds; of one seed there is none."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """Mean, spread, and the number of seeds where there are several."""
        if self.spread is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.spread:.2f} ({len(self.values)} seeds)"

    def describe(self) -> str:
        """Of what, and how it was measured, in a sentence."""
        seeds = f"training seed{'s' if len(self.values) > 1 else ''} {', '.join(map(str, self.values))}"
        return f"{self.experiment}, {self.checkpoint} checkpoint, {seeds}: {describe(self.score)}."


def score_files(results: str | Path, experiments: Iterable[str]) -> list[Path]:
    """The score files of experiments that are there: of runs and of yardsticks."""
    layout = Layout(results)
    return [path for name in experiments for path in layout.found(layout.scores("*", name))]


def summarize_scores(
    scores: Sequence[dict[str, Any]], experiment: str, iterations: int | None = None
) -> list[ScoreSummary]:
    """What was measured of an experiment's runs, one entry for each checkpoint and way of measuring.

    Args:
        scores: as `read_scores` gives them.
        experiment: its name.
        iterations: at which its training ends, to tell a milestone from the end; None: not known.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for score in scores:
        subject, value = score["subject"], score["metrics"]["frechet_distance"]["value"]
        if score["experiment"] == experiment and subject["kind"] == "samples" and value is not None:
            which = checkpoint(subject, iterations)
            # Each seed has a best milestone of its own; any other two must have trained as long.
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
    """Which checkpoint a sample set is of."""
    if subject.get("selection") is not None:
        return BEST
    if subject.get("origin") and subject.get("iteration") is None:
        return GIVEN
    return MILESTONE if iterations and (subject.get("iteration") or iterations) < iterations else LAST


WHOLE = ("nfe", "run_seed", "sampling_seed", "iteration", "selection_n", "selection_seed")
"""Columns of whole numbers, also where some are missing."""
MEASURING = (
    *("neighbours", "extractor", "extractor_sha256", "preprocessing", "extractor_heldout_accuracy"),
    *("reference", "reference_n", "reference_sha256"),
)
DRAWING = (
    *("run_seed", "sampling_seed", "noise_sha256", "posterior", "guidance"),
    *("network_precision", "network_tf32", "network_compiled", "weights", "iteration"),
)
"""Columns of a score's protocol."""
ORDER = {"samples": 0, "images": 1, "heldout": 2, "noise": 3}
SHOWN = {
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "class_agreement": ("class agreement", "{:.3f}"),
    "nearest_distance_ratio": ("nearest-image distance / held-out's", "{:.2f}"),
}


def score_table(paths: Sequence[str | Path]) -> Table:
    """The table of score files; models first, then floor, then ceiling, experiment by experiment.

    Raises:
        UserError: missing, unreadable, or not a score.
    """
    scores = read_scores(paths)
    selected = {_run(score) for score in scores if score["subject"]["selection"]}
    for score in scores:
        score["beside_best"] = _run(score) in selected and not score["subject"]["selection"]
    scores.sort(key=_place)
    return Table(_readable(scores), _notes(scores), "Scores", _full(scores), words=2)


def _full(scores: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per score with every metric in full precision and the whole protocol; missing values stay empty."""
    rows = []
    for score in scores:
        subject, known = score["subject"], facts(score)
        rows.append(
            {
                "experiment": score["experiment"],
                "subject": _subject(score),
                "nfe": known["nfe"],
                "n": known["n"],
                **_values(score),
                "frechet_label": known["metric"],
                **{key: known[key] for key in (*MEASURING, *DRAWING)},
                **_selection(subject),
                "weights_sha256": known["weights_sha256"],
                "weights_origin": "; ".join(file.get("name", "unknown") for file in _origin(subject)),
                "device": known["device"],
                "scoring_tf32": known["scoring_tf32"],
                **{f"version_{name}": value for name, value in score["provenance"]["versions"].items()},
                "commit": score["provenance"]["commit"],
            }
        )
    table = pd.DataFrame(rows)
    return table.astype({name: "Int64" for name in WHOLE if name in table})


def _readable(scores: list[dict[str, Any]]) -> pd.DataFrame:
    """The rounded table for people; Fréchet distances that do not compare get columns of their own."""
    headings = _frechet_columns(scores)
    rows = []
    for score, heading in zip(scores, headings, strict=True):
        row = {
            "experiment": score["experiment"],
            "images": _subject(score),
            "NFE": MISSING if score["subject"]["nfe"] is None else str(score["subject"]["nfe"]),
            "N": str(score["protocol"]["n"]),
        }
        for name in dict.fromkeys(headings):
            row[name] = _rounded(score, "frechet_distance", "{:.2f}") if name == heading else MISSING
        if any("frechet_distance_best" in other["metrics"] for other in scores):
            row["best of its ranges"] = _rounded(score, "frechet_distance_best", "{:.2f}")
        for name, (title, pattern) in SHOWN.items():
            row[title] = _rounded(score, name, pattern)
        rows.append(row)
    return pd.DataFrame(rows)


def _notes(scores: list[dict[str, Any]]) -> list[str]:
    """The protocol in words, one line for each way that numbers were measured, then why a value is missing."""
    notes = []
    for score, heading in zip(scores, _frechet_columns(scores), strict=True):
        notes.append(
            f"{heading}: Fréchet distance in {features_words(score['protocol'])}; precision and recall with "
            f"k = {score['protocol']['neighbours']}. N images each, as listed: distances at different N do not compare."
        )
    for score in scores:
        for metric in score["metrics"].values():
            if metric["value"] is None:
                notes.append(f"{_subject(score)}: no {metric['label']}, because {metric['reason'] or 'unknown'}.")
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
    """The column of each score's Fréchet distance; columns that do not compare, of equal names, get a number."""
    ways = [comparable(score, ("metric", *FEATURES)) for score in scores]
    different = list(dict.fromkeys(ways))
    names = [dict(way)["metric"] for way in different]
    headings = {
        way: name if names.count(name) == 1 else f"{name} [{names[: index + 1].count(name)}]"
        for index, (way, name) in enumerate(zip(different, names, strict=True))
    }
    return [headings[way] for way in ways]


def _values(score: dict[str, Any]) -> dict[str, Any]:
    """Every metric's value, and beside it the standard deviation, subsets, and each range's value where it has them."""
    found = {}
    for name, metric in score["metrics"].items():
        found[name] = metric["value"]
        further = ("std", "subsets", "subset_size", "splits")
        found |= {f"{name}_{key}": metric[key] for key in further if metric[key] is not None}
        if metric["values"]:
            found[f"{name}_values"] = " ".join(map(str, metric["values"]))
    return found


def _rounded(score: dict[str, Any], name: str, pattern: str) -> str:
    value = score["metrics"].get(name, {}).get("value")
    return MISSING if value is None else pattern.format(value)


def _subject(score: dict[str, Any]) -> str:
    subject = score["subject"]
    if subject["kind"] == "heldout":
        return "held-out images (floor)"
    if subject["kind"] == "images":
        return subject.get("source") or "images of unknown source"
    if subject["kind"] == "noise":
        return "noise (ceiling)"
    which = ", last" if score.get("beside_best") else ""
    if subject["selection"]:
        which = f", best of {len(subject['selection']['iterations'])} milestones"
    return f"UDPM, seed {'unknown' if subject['run_seed'] is None else subject['run_seed']}{which}"


def _place(score: dict[str, Any]) -> tuple:
    subject = score["subject"]
    return score["experiment"], ORDER[subject["kind"]], subject.get("run_seed") or 0, not score["beside_best"]


def _run(score: dict[str, Any]) -> tuple:
    return score["experiment"], score["subject"].get("run_seed")


def _selection(subject: dict[str, Any]) -> dict[str, Any]:
    """Columns on how a milestone was chosen; none where none was."""
    selection = subject["selection"]
    if not selection:
        return {}
    shown = {f"selection_{key}": selection[key] for key in ("n", "seed", "frechet_distance")}
    return shown | {"selection_iterations": " ".join(map(str, selection["iterations"]))}


def _origin(subject: dict[str, Any]) -> list[dict[str, str]]:
    """The files that imported weights were read from."""
    return subject["origin"]["files"] if subject["origin"] else []
