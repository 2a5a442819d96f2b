"""Selection of a run's best milestone by Fréchet distance, on images drawn for the selection alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from udpm.config.validation import Exactly, NonNegativeFloat, NonNegativeInt, Record, read_record
from udpm.core import provenance
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.metrics.protocol import Protocol, comparable, read_score

FORMAT = "udpm-selection/1"


class Milestone(Record):
    """A candidate milestone; all other entries are metrics, or None."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]

    iteration: NonNegativeInt
    weights_sha256: str | None = None
    frechet_distance: NonNegativeFloat


class Selection(Record):
    """Required content of a selection."""

    format: Annotated[str, Exactly(FORMAT)]
    experiment: str | None
    run_seed: NonNegativeInt | None
    iteration: NonNegativeInt
    weights: str | None
    weights_sha256: str
    loss_features: list[str] | None = None
    seed: NonNegativeInt | None
    protocol: Protocol
    frechet_distance: NonNegativeFloat
    label: str
    milestones: Annotated[list[Milestone], Field(min_length=1)]

    @model_validator(mode="after")
    def _the_least_was_chosen(self) -> Selection:
        best = min(self.milestones, key=lambda row: (row.frechet_distance, row.iteration))
        if (best.iteration, best.frechet_distance) != (self.iteration, self.frechet_distance):
            raise ValueError(
                f"iteration: {self.iteration} is selected, but milestone {best.iteration} has the least distance"
            )
        return self


SAME = ("experiment", "run_seed", "dataset_sha256", "seed", "noise_kind")
"""Keys of a subject that all milestones share, besides a comparable protocol."""


def select(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Select the milestone whose images have the least Fréchet distance; ties go to the earliest.

    `paths` are score files, one for each milestone of one run. Returns the content of a selection file.

    Raises:
        UserError: a file is not the score of a milestone, two are of one milestone, or they are not comparable.
    """
    scores = {Path(path): _of_a_milestone(path) for path in paths}
    first = next(iter(scores))
    for path, score in scores.items():
        differing = [key for key, value in _shared(scores[first]) if dict(_shared(score))[key] != value]
        if differing:
            key = differing[0].replace("_", " ")
            raise UserError(f"{path}: {key} differs from that of {first}; score all milestones alike")
    found = sorted(scores.values(), key=lambda score: score["subject"]["iteration"])
    iterations = [score["subject"]["iteration"] for score in found]
    twice = next((one for one, other in pairwise(iterations) if one == other), None)
    if twice is not None:
        raise UserError(f"{first}: two of these files score iteration {twice}; give each milestone once")
    best = min(found, key=lambda score: score["metrics"]["frechet_distance"]["value"])
    subject, protocol = best["subject"], best["protocol"]
    return {
        "format": FORMAT,
        **{key: subject.get(key) for key in ("experiment", "run_seed", "iteration", "weights", "weights_sha256")},
        "loss_features": subject.get("loss_features"),
        "seed": subject["seed"],
        "protocol": {key: protocol[key] for key in ("n", "extractor", "reference", "neighbours")},
        "frechet_distance": best["metrics"]["frechet_distance"]["value"],
        "label": best["metrics"]["frechet_distance"]["label"],
        "milestones": [_row(score) for score in found],
        "provenance": provenance.record(),
    }


def read_selection(path: str | Path) -> dict[str, Any]:
    """Read a selection.

    Raises:
        UserError: missing, unreadable, not a selection, or changed since it was written.
    """
    return read_record(Selection, path, "selection", remedy="`udpm select` makes it", fill=True)


def check_selected(path: str | Path, selection: dict[str, Any], weights: Path, kind: str) -> None:
    """Check that the weights in a milestone's file, and their kind ("ema", "raw" or another average), are the selected.

    Raises:
        UserError: they are of another run, milestone or average.
    """
    if sha256(weights) != selection["weights_sha256"]:
        run = "" if selection["run_seed"] is None else f", seed {selection['run_seed']}"
        raise UserError(
            f"{path}: selects iteration {selection['iteration']} of {selection['experiment']}{run}, but {weights} "
            "holds other weights; give that run's, or select among this run's milestones"
        )
    if selection["weights"] not in (None, kind):
        raise UserError(
            f"{path}: selected on images of {selection['weights']} weights, but sampling.weights is {kind}; set it to "
            f"{selection['weights']}"
        )


def chosen_as(path: str | Path, subject: dict[str, Any]) -> dict[str, Any]:
    """Return the selection of a sample set's milestone, for its score's protocol; `subject` is the set's identity.

    Raises:
        UserError: the images are not of the selected milestone, or are those that it was selected by.
    """
    selection = read_selection(path)
    if subject.get("weights_sha256") != selection["weights_sha256"]:
        raise UserError(
            f"{path}: selects iteration {selection['iteration']} of {selection['experiment']}, but these images are of "
            f"other weights (iteration {subject.get('iteration')}); draw them with udpm sample --selection"
        )
    if subject.get("seed") == selection["seed"]:
        raise UserError(
            f"{path}: selected on images of sampling seed {selection['seed']}, like these; score images of another seed"
        )
    return {
        "iteration": selection["iteration"],
        "iterations": [row["iteration"] for row in selection["milestones"]],
        "n": selection["protocol"]["n"],
        "seed": selection["seed"],
        "frechet_distance": selection["frechet_distance"],
    }


def _shared(score: dict[str, Any]) -> list[tuple[str, Any]]:
    return [*((key, score["subject"].get(key)) for key in SAME), *comparable(score)]


def _of_a_milestone(path: str | Path) -> dict[str, Any]:
    score = read_score(path)
    if score["subject"].get("iteration") is None:
        raise UserError(f"{path}: not the score of a milestone: the iteration of its images is unknown")
    if score["subject"]["weights_sha256"] is None:
        raise UserError(f"{path}: has no subject.weights_sha256, so its weights are unknown; score the images again")
    if score["metrics"]["frechet_distance"]["value"] is None:
        raise UserError(f"{path}: has no Fréchet distance")
    return score


def _row(score: dict[str, Any]) -> dict[str, Any]:
    """Return a milestone's metrics; None if not measured."""
    row = {"iteration": score["subject"]["iteration"], "weights_sha256": score["subject"]["weights_sha256"]}
    for name, metric in score["metrics"].items():
        row[name] = metric["value"]
        row |= {f"{name}_std": metric["std"]} if metric["std"] is not None else {}
    return row
