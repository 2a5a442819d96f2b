"""Score files: reading and checking, which scores are comparable, and protocols in words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from udpm.config.dataset import class_title
from udpm.config.validation import Classes, Exactly, NonNegativeFloat, NonNegativeInt, PositiveInt, Record, read_record
from udpm.core.files import INCEPTION, LITE0
from udpm.runs.records import Origin

FORMAT = "udpm-score/1"
SEALED = ("subject", "metrics", "protocol")
"""Keys that a score's digest covers: all that reports show."""

LIMITS = {
    **dict.fromkeys(("precision", "recall", "coverage", "authenticity", "class_agreement"), (0.0, 1.0)),
    **dict.fromkeys(
        (
            *("frechet_distance", "frechet_distance_best", "frechet_distance_matched", "class_frechet_distance"),
            "density",
        ),
        (0.0, float("inf")),
    ),
    **dict.fromkeys(("nearest_distance", "nearest_distance_ratio"), (0.0, float("inf"))),
}
"""Smallest and largest possible value of a metric; others may be any finite number."""


class Metric(Record):
    """A metric: its value, or None and the reason. `n` is its number of images if that is not the score's."""

    value: float | None
    label: str
    reason: str = ""
    n: PositiveInt | None = None
    warning: str = ""
    std: NonNegativeFloat | None = None
    values: list[float] = []
    by_class: dict[str, float] = {}
    subsets: PositiveInt | None = None
    subset_size: PositiveInt | None = None
    splits: PositiveInt | None = None


class UsedExtractor(Record):
    """The extractor of a protocol."""

    name: str = "unknown"
    sha256: str
    preprocessing: str = ""
    heldout_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None


class UsedReference(Record):
    """The reference of a protocol."""

    dataset: str = "unknown"
    split: str = "unknown"
    sha256: str
    n: PositiveInt | None = None


class Protocol(Record):
    """The protocol of a score."""

    n: PositiveInt
    extractor: UsedExtractor
    reference: UsedReference
    preprocessing: str | None = None
    neighbours: PositiveInt | None = None
    device: str = ""
    tf32: bool | None = None


class UsedSelection(Record):
    """The selection of a score's milestone."""

    iterations: list[NonNegativeInt]
    n: PositiveInt
    seed: NonNegativeInt | None
    frechet_distance: NonNegativeFloat | None = None


class NoiseFile(Record):
    """The noise file of a sample set."""

    file: str
    sha256: str


class ScoreSubject(Record):
    """The subject of a score; None is unknown."""

    kind: Literal["samples", "images", "heldout", "noise"]
    experiment: str | None = None
    run_seed: NonNegativeInt | None = None
    iteration: NonNegativeInt | None = None
    loss_features: list[str] | None = None
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
    labels: list[NonNegativeInt] | None = None
    source: str = ""
    noise: NoiseFile | None = None
    noise_kind: Literal["counter"] | None = None
    origin: Origin | None = None
    selection: UsedSelection | None = None


class ScoreProvenance(Record):
    """The provenance of a score."""

    versions: dict[str, str] = {}
    commit: str | None = None


class Score(Record):
    """Required content of a score."""

    format: Annotated[str, Exactly(FORMAT)]
    subject: ScoreSubject
    metrics: dict[str, Metric]
    protocol: Protocol
    provenance: ScoreProvenance = ScoreProvenance()

    @model_validator(mode="after")
    def _values_are_possible(self) -> Score:
        if "frechet_distance" not in self.metrics:
            raise ValueError("metrics.frechet_distance: is missing")
        for name, metric in self.metrics.items():
            low, high = LIMITS.get(name, (float("-inf"), float("inf")))
            for value in (metric.value, *metric.values, *metric.by_class.values()):
                if value is not None and not low <= value <= high:
                    raise ValueError(f"metrics.{name}: must be in {low:g}..{high:g}, got {value:g}")
        return self


class Request(Record):
    """The options of `udpm score`, to make a score again. Relative paths start at `base`, which starts at the score."""

    samples: str | None
    images: str | None
    selection: str | None
    reference: str
    extractor: str | None
    dataset: str | None
    heldout: bool
    match: PositiveInt | None = None
    noise: PositiveInt | None
    count: PositiveInt | None
    scoring: dict[str, Any]
    base: str | None = None


def read_score(path: str | Path) -> dict[str, Any]:
    """Read a score, with defaults for missing keys: unknown, or the only value before the key existed.

    Raises:
        UserError: missing, unreadable, not a score, or changed since it was written.
    """
    return read_record(Score, path, "score", SEALED, fill=True)


def read_scores(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read score files and add the key `experiment`: a baseline's is the name of its folder.

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
    """Return True if a network may have used TF32, by a score's subject or protocol.

    Before this was recorded, every network on a GPU did; none on a CPU can.
    """
    known, device = record.get("tf32"), record.get("device")
    return bool(known) if known is not None else device is not None and not device.startswith("cpu")


IMAGENET = "ImageNet"
LEARNED_FROM = {INCEPTION.sha256: IMAGENET, LITE0.sha256: IMAGENET}
"""Labels that an extractor learned from, by the SHA-256 of its file. DINOv2 learned without, CLIP from captions."""
LOSSES_LEARNED_FROM = {"vgg": IMAGENET}
"""Labels that the network of a loss learned from, by its name in `loss_features`."""
MARK = "†"
"""Marks Fréchet distances of images whose score has `shared_labels`."""


def shared_labels(record: dict[str, Any], protocol: dict[str, Any]) -> str | None:
    """Name the labels that both the extractor and a network of the training's losses learned from.

    Args:
        record: of the images: a score's subject, or a selection.

    Returns:
        None if there are none, or if either is unknown.
    """
    labels = LEARNED_FROM.get(protocol["extractor"]["sha256"])
    of_losses = {LOSSES_LEARNED_FROM.get(name) for name in record.get("loss_features") or []}
    return labels if labels in of_losses else None


def mark_shared(text: str, shared: str | None) -> str:
    """Mark a number, or return it unchanged if no labels are shared."""
    return text if shared is None else f"{text} {MARK}"


def shared_words(shared: str) -> str:
    """Explain the mark, without a full stop."""
    return (
        f"{MARK}: LPIPS, a loss of the training, compares features that were learned from {shared}'s labels, as the "
        "extractor's were; metrics in these features may favour such a run"
    )


def preprocessing(protocol: dict[str, Any]) -> str | None:
    """Return the preprocessing of a protocol, in words."""
    return protocol.get("preprocessing") or protocol["extractor"].get("preprocessing")


def facts(score: dict[str, Any]) -> dict[str, Any]:
    """Return a score's protocol as flat values, named like the columns of tables; None is unknown."""
    subject, protocol, metric = score["subject"], score["protocol"], score["metrics"]["frechet_distance"]
    extractor, reference = protocol["extractor"], protocol["reference"]
    kernel = score["metrics"].get("kernel_distance", {})
    return {
        "metric": metric["label"],
        "n": protocol["n"],
        "neighbours": protocol.get("neighbours"),
        "kernel_subsets": (kernel.get("subsets"), kernel.get("subset_size")),
        "extractor": extractor.get("name"),
        "extractor_sha256": extractor["sha256"],
        "preprocessing": preprocessing(protocol),
        "extractor_heldout_accuracy": extractor.get("heldout_accuracy"),
        "reference": f"{reference.get('dataset')}/{reference.get('split')}",
        "reference_n": reference.get("n"),
        "reference_sha256": reference["sha256"],
        "device": protocol.get("device"),
        "scoring_tf32": used_tf32(protocol),
        "noise_sha256": (subject.get("noise") or {}).get("sha256"),
        "noise_kind": subject.get("noise_kind"),
        "sampling_seed": subject.get("seed"),
        "network_precision": subject.get("precision"),
        "network_tf32": used_tf32(subject),
        "network_compiled": subject.get("compiled"),
        "loss_features": None if (used := subject.get("loss_features")) is None else " ".join(used) or "none",
        "shared_labels": shared_labels(subject, protocol),
        **{key: subject.get(key) for key in ("nfe", "classes", "posterior", "guidance", "weights", "weights_sha256")},
        "labels": chosen_words(subject) or None,
        **{key: subject.get(key) for key in ("run_seed", "iteration")},
    }


def chosen_words(record: dict[str, Any]) -> str:
    """Name the classes that were chosen, as in "classes 3, 5"; empty if images of all were drawn alike."""
    labels = sorted(record.get("labels") or [])
    return "" if labels in ([], list(range(record.get("classes") or 0))) else f"classes {', '.join(map(str, labels))}"


FEATURES = ("extractor_sha256", "preprocessing", "reference_sha256", "scoring_tf32")
"""Facts that two distances on one scale share."""
MEASURING = ("metric", "n", "neighbours", "labels", *FEATURES)
DRAWING = (
    *("weights", "posterior", "guidance", "nfe", "classes"),
    *("network_precision", "network_tf32", "network_compiled"),
)


def comparable(score: dict[str, Any], keys: Iterable[str] = (*MEASURING, *DRAWING)) -> tuple[tuple[str, Any], ...]:
    """Return the facts that must be equal for two scores to be averaged or compared.

    Args:
        score: from `read_score`.
        keys: of `facts`. Fewer for comparisons that show the difference: `MEASURING` allows other ways of drawing,
            `FEATURES` also other numbers of images.
    """
    known = facts(score)
    return tuple((key, known[key]) for key in keys)


LONGEST_CLASS = 14


def run_words(record: dict[str, Any]) -> str:
    """Name a run, as in "digits, seed 0"; unknown parts are left out."""
    seed = "" if record.get("run_seed") is None else f", seed {record['run_seed']}"
    return f"{record.get('experiment') or 'weights without a run'}{seed}"


def weights_words(record: dict[str, Any]) -> str:
    """Name weights, as in "ema weights of iteration 1200" or "imported ema weights"."""
    imported = "imported " if record.get("origin") else ""
    iteration = "" if record.get("iteration") is None else f" of iteration {record['iteration']}"
    return f"{imported}{record.get('weights') or 'unknown'} weights{iteration}"


def calls_per_level(record: dict[str, Any]) -> int:
    """Return the network calls for an image at each level: 1, or 2 with classifier-free guidance."""
    return 1 if record.get("guidance") in (None, 1) else 2


def calls_words(record: dict[str, Any]) -> str:
    """Name the number of network calls per image."""
    known = record.get("nfe")
    return "an unknown number of network calls per image" if known is None else f"{known} network calls per image"


def class_words(record: dict[str, Any], label: int) -> str:
    """Name a class, "cat", or "class 3" if it has no name or a number for a name; shorten a long name."""
    name = class_title(int(label), record.get("class_names") or [])
    return name if len(name) <= LONGEST_CLASS else f"{name[: LONGEST_CLASS - 1]}…"


def noise_words(record: dict[str, Any]) -> str:
    """Name the source of a sample set's noise: "sampling seed 0", "sampling seed 0 (counter)" or "noise of FILE"."""
    file = record.get("noise")
    if file is None:
        kind = f" ({record['noise_kind']})" if record.get("noise_kind") else ""
        return f"sampling seed {'unknown' if record.get('seed') is None else record['seed']}{kind}"
    return f"noise of {file['file']} (SHA-256 {file['sha256'][:12]})"


def sampling_words(record: dict[str, Any]) -> str:
    """Describe the sampler, as in "scalar posterior, classes 3, 5 alone, guidance 2"; defaults are left out."""
    words = [f"{record.get('posterior') or 'unknown'} posterior"]
    if record.get("classes") == 0:
        words.append("no labels")
    words += [f"{classes} alone"] if (classes := chosen_words(record)) else []
    if record.get("guidance") not in (None, 1):
        words.append(f"guidance {record['guidance']:g}")
    if record.get("precision") not in (None, "float32"):
        words.append(f"{record['precision']} network")
    if used_tf32(record):
        words.append("TF32")
    if record.get("compiled"):
        words.append("compiled")
    return ", ".join(words)


def selection_words(record: dict[str, Any]) -> str:
    """Describe the selection of a sample set's milestone, after a comma; empty if there was none."""
    chosen = record.get("selection")
    if not chosen:
        return ""
    return (
        f", chosen from iterations {', '.join(map(str, chosen['iterations']))} by the least Fréchet distance of "
        f"{chosen['n']} other images each (sampling seed {'unknown' if chosen['seed'] is None else chosen['seed']})"
    )


def features_words(protocol: dict[str, Any]) -> str:
    """Describe the features and the reference of a score's or a selection's protocol."""
    extractor, reference = protocol["extractor"], protocol["reference"]
    accuracy = extractor.get("heldout_accuracy")
    known = "" if accuracy is None else f", held-out accuracy {accuracy:.1%}"
    how = (preprocessing(protocol) or "").removeprefix("none: ")
    # Published statistics rarely state their number of images.
    size = "published statistics" if reference.get("n") is None else f"{reference['n']} images"
    return (
        f"features of {extractor['name']} (SHA-256 {extractor['sha256'][:12]}{known}; {how}"
        f"{'; TF32' if used_tf32(protocol) else ''}) to {reference['dataset']}/{reference['split']}, {size} "
        f"(SHA-256 {reference['sha256'][:12]})"
    )


def drawing_words(record: dict[str, Any]) -> str:
    """Describe how a sample set was drawn: weights, noise, sampler, network calls."""
    return (
        f"{weights_words(record)}{selection_words(record)}, {noise_words(record)}, {sampling_words(record)}, "
        f"{calls_words(record)}"
    )


def describe(score: dict[str, Any]) -> str:
    """Describe a score's protocol in a sentence, without a full stop."""
    label, protocol = score["metrics"]["frechet_distance"]["label"], score["protocol"]
    words = f"{label} of N = {protocol['n']} images in {features_words(protocol)}"
    if score["subject"]["kind"] != "samples":
        return words
    shared = shared_labels(score["subject"], protocol)
    return f"{words}; {drawing_words(score['subject'])}" + ("" if shared is None else f"; {shared_words(shared)}")
