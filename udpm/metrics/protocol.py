"""Score files as readers need them: the protocol of a score, in words, and means over training seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from udpm.config.validation import Classes, Exactly, NonNegativeFloat, NonNegativeInt, PositiveInt, Record, completed
from udpm.core.arrays import check_seal
from udpm.core.classes import class_title
from udpm.core.errors import UserError
from udpm.core.reading import read_json
from udpm.runs.layout import Layout
from udpm.runs.records import Origin

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

    format: Annotated[str, Exactly(FORMAT)]
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


LONGEST_CLASS = 14


def run_words(record: dict[str, Any]) -> str:
    """Which run, "digits, seed 0"; what a record does not say is left out."""
    seed = "" if record.get("run_seed") is None else f", seed {record['run_seed']}"
    return f"{record.get('experiment') or 'weights without a run'}{seed}"


def weights_words(record: dict[str, Any]) -> str:
    """Which weights, "ema weights of iteration 1200" or "imported ema weights"."""
    imported = "imported " if record.get("origin") else ""
    iteration = "" if record.get("iteration") is None else f" of iteration {record['iteration']}"
    return f"{imported}{record.get('weights') or 'unknown'} weights{iteration}"


def calls_words(record: dict[str, Any]) -> str:
    """How many network calls an image took."""
    known = record.get("nfe")
    return "an unknown number of network calls per image" if known is None else f"{known} network calls per image"


def class_words(record: dict[str, Any], label: int) -> str:
    """A class, "cat", or "class 3" where it has no name or a number for one; a long name is cut."""
    name = class_title(int(label), record.get("class_names") or [])
    return name if len(name) <= LONGEST_CLASS else f"{name[: LONGEST_CLASS - 1]}…"


def noise_words(record: dict[str, Any]) -> str:
    """Where a sample set's noise came from: "sampling seed 0" or "noise of FILE"."""
    file = record.get("noise")
    if file is None:
        return f"sampling seed {'unknown' if record.get('seed') is None else record['seed']}"
    return f"noise of {file['file']} (SHA-256 {file['sha256'][:12]})"


def sampling_words(record: dict[str, Any]) -> str:
    """How a sample set was drawn, "scalar posterior, guidance 2, bfloat16 network"; what is usual is left out."""
    told = [f"{record.get('posterior') or 'unknown'} posterior"]
    if record.get("guidance") not in (None, 1):
        told.append(f"guidance {record['guidance']:g}")
    if record.get("precision") not in (None, "float32"):
        told.append(f"{record['precision']} network")
    if used_tf32(record):
        told.append("TF32")
    if record.get("compiled"):
        told.append("compiled")
    return ", ".join(told)


LAST, BEST, MILESTONE, GIVEN = "last", "best", "milestone", "given"
"""Checkpoints: end of training, selected milestone, a milestone that the configuration names, imported weights."""


@dataclass(frozen=True)
class Measured:
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

    def show(self) -> str:
        """Mean, spread, and the number of seeds where there are several."""
        if self.spread is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.spread:.2f} ({len(self.values)} seeds)"


def score_files(results: str | Path, experiments: Iterable[str]) -> list[Path]:
    """The score files of experiments that are there: of runs and of yardsticks."""
    layout = Layout(results)
    return [path for name in experiments for path in layout.found(layout.scores("*", name))]


def measured(scores: Sequence[dict[str, Any]], experiment: str, iterations: int | None = None) -> list[Measured]:
    """What was measured of an experiment's runs, one entry for each checkpoint and way of measuring.

    Args:
        scores: as `records.read_scores` gives them.
        experiment: its name.
        iterations: at which its training ends, to tell a milestone from the end; None: not known.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for score in scores:
        subject, value = score["subject"], score["metrics"]["frechet_distance"]["value"]
        if score["experiment"] == experiment and subject["kind"] == "samples" and value is not None:
            groups.setdefault((checkpoint(subject, iterations), way(score)), []).append(score)
    return [
        Measured(
            experiment,
            which,
            {
                score["subject"].get("run_seed") or 0: score["metrics"]["frechet_distance"]["value"]
                for score in sorted(group, key=lambda score: score["subject"].get("run_seed") or 0)
            },
            group[0],
        )
        for (which, _), group in sorted(groups.items(), key=lambda item: repr(item[0]))
    ]


def checkpoint(subject: dict[str, Any], iterations: int | None = None) -> str:
    """Which checkpoint a sample set is of."""
    if subject.get("selection") is not None:
        return BEST
    if subject.get("origin") and subject.get("iteration") is None:
        return GIVEN
    return MILESTONE if iterations and (subject.get("iteration") or iterations) < iterations else LAST


def way(score: dict[str, Any]) -> tuple:
    """What two Fréchet distances must share to stand in one mean."""
    subject, protocol, reference = score["subject"], score["protocol"], score["protocol"]["reference"]
    own = tuple(
        subject.get(key) for key in ("weights", "posterior", "guidance", "precision", "compiled", "nfe", "classes")
    )
    measuring = (protocol["n"], protocol["extractor"]["sha256"], preprocessing(score), reference["sha256"])
    tf32 = (used_tf32(subject), used_tf32(protocol))
    return (score["metrics"]["frechet_distance"]["label"], *own, *measuring, *tf32)
