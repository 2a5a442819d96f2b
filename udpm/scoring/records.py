"""Score files, as those who only read them need them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from udpm.config.base import Classes, NonNegativeFloat, NonNegativeInt, PositiveInt, Record
from udpm.config.validation import completed
from udpm.core.arrays import check_seal
from udpm.core.errors import UserError
from udpm.core.reading import read_json
from udpm.training.records import Origin

FORMAT = "udpm-score/1"
SEALED = ("subject", "metrics", "protocol")
"""What a score's digest is of: all that reports show."""

LIMITS = {
    **dict.fromkeys(("precision", "recall", "class_agreement"), (0.0, 1.0)),
    **dict.fromkeys(("frechet_distance", "frechet_distance_best", "class_frechet_distance"), (0.0, float("inf"))),
    **dict.fromkeys(("nearest_distance", "nearest_distance_ratio"), (0.0, float("inf"))),
}
"""Smallest and largest possible value of a metric; others may be any finite number."""


class Metric(Record):
    """A metric: its value, or none and the reason."""

    value: float | None
    label: str
    reason: str = ""
    std: NonNegativeFloat | None = None
    values: list[float] = []
    by_class: dict[str, float] = {}
    subsets: PositiveInt | None = None
    subset_size: PositiveInt | None = None
    splits: PositiveInt | None = None


class Used(Record):
    """The extractor of a protocol."""

    name: str = "unknown"
    sha256: str
    preprocessing: str = ""
    heldout_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None


class Against(Record):
    """The reference of a protocol."""

    dataset: str = "unknown"
    split: str = "unknown"
    sha256: str
    n: PositiveInt | None = None


class Protocol(Record):
    """The protocol of a score."""

    n: PositiveInt
    extractor: Used
    reference: Against
    preprocessing: str | None = None
    neighbours: PositiveInt | None = None
    device: str = ""
    tf32: bool | None = None


class Chosen(Record):
    """The choice of a score's milestone."""

    iterations: list[NonNegativeInt]
    n: PositiveInt
    seed: NonNegativeInt | None
    frechet_distance: NonNegativeFloat | None = None


class NoiseFile(Record):
    """The file that a sample set's noise came from."""

    file: str
    sha256: str


class Scored(Record):
    """The subject of a score; None where a value is unknown."""

    kind: Literal["samples", "images", "heldout", "noise"]
    experiment: str | None = None
    run_seed: NonNegativeInt | None = None
    iteration: NonNegativeInt | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    seed: NonNegativeInt | None = None
    posterior: str | None = None
    guidance: float | None = None
    precision: str | None = None
    device: str | None = None
    tf32: bool | None = None
    nfe: PositiveInt | None = None
    classes: Classes = 0
    source: str = ""
    noise: NoiseFile | None = None
    origin: Origin | None = None
    selection: Chosen | None = None


class Made(Record):
    """The provenance of a score."""

    versions: dict[str, str] = {}
    commit: str | None = None


class Score(Record):
    """Required content of a score."""

    format: Literal[FORMAT]
    subject: Scored
    metrics: dict[str, Metric]
    protocol: Protocol
    provenance: Made = Made()

    @model_validator(mode="after")
    def _values_are_possible(self) -> Score:
        if "frechet_distance" not in self.metrics:
            raise ValueError("metrics.frechet_distance: is missing")
        for name, metric in self.metrics.items():
            low, high = LIMITS.get(name, (float("-inf"), float("inf")))
            for value in (metric.value, *metric.values, *metric.by_class.values()):
                if value is not None and not low <= value <= high:
                    raise ValueError(f"metrics.{name}: {value:g} does not lie in {low:g}..{high:g}")
        return self


class Request(Record):
    """What a score was asked for, so that it can be made again."""

    samples: str | None
    images: str | None
    selection: str | None
    reference: str
    extractor: str | None
    dataset: str | None
    heldout: bool
    noise: PositiveInt | None
    count: PositiveInt | None
    scoring: dict[str, Any]


def read_score(path: str | Path) -> dict[str, Any]:
    """Read a score; what it does not say is there, too: unknown, or as it always was before it was recorded.

    Raises:
        UserError: missing, unreadable, not a score, or changed since it was written.
    """
    score = read_json(path, "score")
    if score.get("format") != FORMAT:
        raise UserError(f"{path}: format is {score.get('format')!r}, expected {FORMAT!r}")
    known = completed(Score, score, str(path))
    check_seal(path, score, SEALED)
    return known


def read_scores(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read score files, each with the experiment that it belongs to, whose folder yardsticks lie in.

    Raises:
        UserError: missing, unreadable, or not a score.
    """
    scores = []
    for path in paths:
        score = read_score(path)
        score["experiment"] = score["subject"].get("experiment") or Path(path).parent.name
        scores.append(score)
    return scores


def used_tf32(record: dict[str, Any]) -> bool:
    """Whether a network may have run with TF32 inputs, by a score's subject or its protocol.

    Before this was recorded, every network on a GPU did; on a CPU none can.
    """
    known, device = record.get("tf32"), record.get("device")
    return bool(known) if known is not None else device is not None and not device.startswith("cpu")


def preprocessing(score: dict[str, Any]) -> str | None:
    """What was done to the images before the extractor."""
    return score["protocol"].get("preprocessing") or score["protocol"]["extractor"].get("preprocessing")
