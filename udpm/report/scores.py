"""The score table: csv with the whole protocol; markdown, LaTeX and html to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from udpm.metrics.protocol import noise_words, preprocessing, read_scores, sampling_words, used_tf32, weights_words
from udpm.report import table as render
from udpm.report.table import MISSING

WORDS = 2
"""Leading columns of the table to read that hold words."""
WHOLE = ("nfe", "run_seed", "sampling_seed", "iteration", "selection_n", "selection_seed")
"""Columns of whole numbers, also where some are missing."""
ORDER = {"samples": 0, "images": 1, "heldout": 2, "noise": 3}
SHOWN = {
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "class_agreement": ("class agreement", "{:.3f}"),
    "nearest_distance_ratio": ("nearest-image distance / held-out's", "{:.2f}"),
}


def collect(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read score files; models first, then floor, then ceiling, experiment by experiment.

    Raises:
        UserError: missing, unreadable, or not a score.
    """
    scores = read_scores(paths)
    selected = {_run(score) for score in scores if score["subject"]["selection"]}
    for score in scores:
        score["beside_best"] = _run(score) in selected and not score["subject"]["selection"]
    return sorted(scores, key=_place)


def full_table(scores: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per score with every metric in full precision and the whole protocol; missing values stay empty."""
    rows = []
    for score in scores:
        subject, protocol, reference = score["subject"], score["protocol"], score["protocol"]["reference"]
        rows.append(
            {
                "experiment": score["experiment"],
                "subject": _subject(score),
                "nfe": subject.get("nfe"),
                "n": protocol["n"],
                **_values(score),
                "frechet_label": score["metrics"]["frechet_distance"]["label"],
                "neighbours": protocol["neighbours"],
                "extractor": protocol["extractor"]["name"],
                "extractor_sha256": protocol["extractor"]["sha256"],
                "preprocessing": preprocessing(score),
                "extractor_heldout_accuracy": protocol["extractor"].get("heldout_accuracy"),
                "reference": f"{reference['dataset']}/{reference['split']}",
                "reference_n": reference["n"],
                "reference_sha256": reference["sha256"],
                "run_seed": subject.get("run_seed"),
                "sampling_seed": subject.get("seed"),
                "noise_sha256": (subject.get("noise") or {}).get("sha256"),
                "posterior": subject.get("posterior"),
                "guidance": subject.get("guidance"),
                "network_precision": subject.get("precision"),
                "network_tf32": used_tf32(subject),
                "network_compiled": subject.get("compiled"),
                "weights": subject.get("weights"),
                "iteration": subject.get("iteration"),
                **_selection(subject),
                "weights_sha256": subject.get("weights_sha256"),
                "weights_origin": "; ".join(file.get("name", "unknown") for file in _origin(subject)),
                "device": protocol["device"],
                "scoring_tf32": used_tf32(protocol),
                **{f"version_{name}": value for name, value in score["provenance"]["versions"].items()},
                "commit": score["provenance"]["commit"],
            }
        )
    table = pd.DataFrame(rows)
    whole = [name for name in WHOLE if name in table]
    return table.astype(dict.fromkeys(whole, "Int64"))


def readable_table(scores: list[dict[str, Any]]) -> pd.DataFrame:
    """The rounded table for people; Fréchet distances that do not compare get columns of their own."""
    labels = _frechet_columns(scores)
    rows = []
    for score in scores:
        row = {
            "experiment": score["experiment"],
            "images": _subject(score),
            "NFE": MISSING if score["subject"]["nfe"] is None else str(score["subject"]["nfe"]),
            "N": str(score["protocol"]["n"]),
        }
        for label in dict.fromkeys(labels.values()):
            own = labels[_comparable(score)] == label
            row[label] = _rounded(score, "frechet_distance", "{:.2f}") if own else MISSING
        if any("frechet_distance_best" in other["metrics"] for other in scores):
            row["best of its ranges"] = _rounded(score, "frechet_distance_best", "{:.2f}")
        for name, (title, pattern) in SHOWN.items():
            row[title] = _rounded(score, name, pattern)
        rows.append(row)
    return pd.DataFrame(rows)


def footnotes(scores: list[dict[str, Any]]) -> list[str]:
    """The protocol in words, one line for each way that numbers were measured, then why a value is missing."""
    notes = []
    for score in scores:
        protocol, extractor = score["protocol"], score["protocol"]["extractor"]
        reference = protocol["reference"]
        accuracy = extractor.get("heldout_accuracy")
        known = f", held-out accuracy {accuracy:.1%}" if accuracy is not None else ""
        notes.append(
            f"{_frechet_columns(scores)[_comparable(score)]}: Fréchet distance in features of {extractor['name']} "
            f"(SHA-256 {extractor['sha256'][:12]}{known}) to {reference['dataset']}/{reference['split']}, "
            f"{_count(reference)} (SHA-256 {reference['sha256'][:12]}); precision and recall with "
            f"k = {protocol['neighbours']}. N images each, as listed: distances at different N do not compare."
        )
    for score in scores:
        for metric in score["metrics"].values():
            if metric["value"] is None:
                notes.append(f"{_subject(score)}: no {metric['label']}, because {metric['reason'] or 'unknown'}.")
    for score in scores:
        subject = score["subject"]
        if subject["kind"] == "samples":
            versions = score["provenance"]["versions"]
            notes.append(
                f"{score['experiment']}, {_subject(score)}: {weights_words(subject)} "
                f"(SHA-256 {(subject.get('weights_sha256') or 'unknown')[:12]}), {noise_words(subject)}, "
                f"{sampling_words(subject)}{_chosen(subject)}, udpm {versions.get('udpm', '?')}, "
                f"torch {versions.get('torch', '?')}."
            )
    return list(dict.fromkeys(notes))


def write_table(paths: Sequence[str | Path], stem: str | Path) -> str:
    """Write ``STEM.csv`` (everything), ``STEM.md``, ``STEM.tex`` and ``STEM.html`` (to read).

    Returns:
        The markdown.

    Raises:
        UserError: a score cannot be read.
    """
    scores = collect(paths)
    table, notes = readable_table(scores), footnotes(scores)
    return render.write_table(stem, full_table(scores), table, notes, WORDS, "Scores")


def _comparable(score: dict[str, Any]) -> tuple[str, ...]:
    """What two Fréchet distances must share to stand in one column."""
    protocol = score["protocol"]
    return (
        score["metrics"]["frechet_distance"]["label"],
        protocol["extractor"]["sha256"],
        preprocessing(score),
        protocol["reference"]["sha256"],
    )


def _frechet_columns(scores: list[dict[str, Any]]) -> dict[tuple[str, ...], str]:
    """Column heading for each way that a Fréchet distance was measured; equal names get a number."""
    ways = list(dict.fromkeys(_comparable(score) for score in scores))
    names = [way[0] for way in ways]
    return {
        way: way[0] if names.count(way[0]) == 1 else f"{way[0]} [{names[: index + 1].count(way[0])}]"
        for index, way in enumerate(ways)
    }


def _count(reference: dict[str, Any]) -> str:
    # Who publishes mu and sigma seldom says of how many images.
    return "published statistics" if reference["n"] is None else f"{reference['n']} images"


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


def _chosen(subject: dict[str, Any]) -> str:
    """In words, by what a milestone was chosen."""
    selection = subject["selection"]
    if not selection:
        return ""
    least = "" if selection["frechet_distance"] is None else f"; it was {selection['frechet_distance']:.4g}"
    seed = "unknown" if selection["seed"] is None else selection["seed"]
    return (
        f", chosen from iterations {', '.join(map(str, selection['iterations']))} by the least Fréchet distance of "
        f"{selection['n']} other images each (sampling seed {seed}{least})"
    )


def _origin(subject: dict[str, Any]) -> list[dict[str, str]]:
    """The files that imported weights were read from."""
    return subject["origin"]["files"] if subject["origin"] else []
