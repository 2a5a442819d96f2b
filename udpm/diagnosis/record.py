"""The record of a diagnosis: how it was measured, its numbers, and its findings in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any, Literal

from pydantic import Field

from udpm.config.validation import Exactly, NonNegativeInt, PositiveInt, Record, read_record
from udpm.metrics.protocol import UsedExtractor, UsedReference
from udpm.training.metrics import verdict

NOISE = "noise"
"""Start of the full chain, where others are the number of a level."""
FORMAT = "udpm-diagnosis/1"
SEALED = ("subject", "protocol", "chain", "discriminator")
"""Keys that the digest of a diagnosis covers."""
NARROW, WIDE = 0.8, 1.25
"""Variance ratios below and above which outputs vary too little or too much."""
UNUSED = 0.01
"""Share of the images' variance below which a latent has no effect."""
SPREADS = 2
"""Standard deviations over draws that a loss must exceed to be found."""

Share = Annotated[float, Field(ge=0, le=1)]
MOST_ROWS = 64
MOST = 1e12
"""Largest number in a diagnosis; figures of larger ones cannot be drawn."""
Number = Annotated[float, Field(ge=-MOST, le=MOST)]
Size = Annotated[float, Field(ge=0, le=MOST)]
Numbers = Annotated[list[Number | None], Field(min_length=1, max_length=1000)]


class StartRecord(Record):
    """Scores of the chain from one start, a value for each draw; None is unknown."""

    start: NonNegativeInt | Literal["noise"]
    frechet_distance: Annotated[list[Size], Field(min_length=1, max_length=1000)]
    precision: Annotated[list[Share | None], Field(min_length=1, max_length=1000)]
    recall: Annotated[list[Share | None], Field(min_length=1, max_length=1000)]
    variance: Numbers


class LevelRecord(Record):
    """Variance of f_l in the full chain over that of real images."""

    level: PositiveInt
    variance: Numbers


class BandRecord(Record):
    """Variance of the full chain's images over that of real ones in a band of frequencies, in cycles per pixel."""

    below: Size
    variance: Numbers


class MapRecord(Record):
    """Share of the images' variance that one noise map determines."""

    map: Annotated[str, Field(pattern=r"^(eps|z)_[0-9]+$")]
    share: Numbers


class ChainRecord(Record):
    """Measurements of the chain."""

    starts: Annotated[list[StartRecord], Field(min_length=3, max_length=MOST_ROWS)]
    levels: Annotated[list[LevelRecord], Field(min_length=1, max_length=MOST_ROWS)]
    bands: Annotated[list[BandRecord], Field(max_length=MOST_ROWS)]
    maps: Annotated[list[MapRecord], Field(max_length=MOST_ROWS)]


class PlayerRecord(Record):
    """The discriminator at one level."""

    level: PositiveInt
    real: Number
    fake: Number
    auc: Share
    loss: Size
    r1: Size
    gradients: dict[str, Size]
    share: Share
    cosine: Number | None = None


class DiscriminatorRecord(Record):
    """The discriminator at every level, or the reason for having none."""

    iteration: NonNegativeInt | None = None
    levels: Annotated[list[PlayerRecord], Field(max_length=MOST_ROWS)] = []
    reason: str = ""


class DiagnosisProtocol(Record):
    """The protocol of a diagnosis."""

    n: PositiveInt
    draws: PositiveInt
    seed: NonNegativeInt
    extractor: UsedExtractor
    reference: UsedReference
    preprocessing: str | None = None
    neighbours: PositiveInt
    label: str
    device: str = ""
    tf32: bool | None = None


class DiagnosisSubject(Record):
    """The weights of a diagnosis, and how images were drawn from them."""

    experiment: str | None = None
    run_seed: NonNegativeInt | None = None
    iteration: NonNegativeInt | None = None
    loss_features: list[str] | None = None
    weights: str
    weights_sha256: str
    posterior: str
    guidance: float
    precision: str
    nfe: PositiveInt
    noise_kind: Literal["counter"] | None = None


class Diagnosis(Record):
    """Required content of a diagnosis."""

    format: Annotated[str, Exactly(FORMAT)]
    subject: DiagnosisSubject
    protocol: DiagnosisProtocol
    chain: ChainRecord
    discriminator: DiscriminatorRecord


def read_diagnosis(path: str | Path) -> dict[str, Any]:
    """Read a diagnosis.

    Raises:
        UserError: missing, unreadable, not a diagnosis, or changed since it was written.
    """
    return read_record(Diagnosis, path, "diagnosis", SEALED, fill=True)


def mean_std(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Return mean and population standard deviation over draws; None if a value is unknown."""
    known = [value for value in values if value is not None]
    return (fmean(known), pstdev(known)) if len(known) == len(values) and known else None


def losses_by_level(starts: Sequence[dict[str, Any]], metric: str) -> dict[int | str, tuple[float, float]]:
    """Return by how much a metric grows from each start of the chain to the next, with the spread over draws.

    Keys are the levels, 1 first, then "noise": what the full chain loses since x_L is drawn from noise alone.
    """
    found: dict[int | str, tuple[float, float]] = {}
    for before, after in pairwise(starts):
        one, other = mean_std(before[metric]), mean_std(after[metric])
        if one is not None and other is not None:
            found[after["start"]] = (other[0] - one[0], (one[1] ** 2 + other[1] ** 2) ** 0.5)
    return found


def findings(diagnosis: dict[str, Any]) -> list[str]:
    """Return what a diagnosis shows, a sentence for each finding."""
    chain = diagnosis["chain"]
    label = diagnosis["protocol"]["label"]
    found = [*_worst(chain["starts"], "frechet_distance", 1, label, "quality")]
    found += _worst(chain["starts"], "recall", -1, "recall", "variety")
    ratios = [(row["level"], known[0]) for row in chain["levels"] if (known := mean_std(row["variance"]))]
    for much, chosen in (
        ("little", [(level, ratio) for level, ratio in ratios if ratio < NARROW]),
        ("much", [(level, ratio) for level, ratio in ratios if ratio > WIDE]),
    ):
        if chosen:
            where = ", ".join(f"{ratio:.2f} at l = {level}" for level, ratio in chosen)
            found.append(f"Outputs vary too {much} within a class: of the real variance, {where}.")
    for row in chain["maps"]:
        share = mean_std(row["share"])
        if row["map"].startswith("z_") and share is not None and share[0] < UNUSED:
            found.append(
                f"The latent {row['map']} has no effect: it determines {share[0]:.1%} of the images' variance."
            )
    for row in diagnosis["discriminator"]["levels"]:
        text = verdict(row["level"], row["auc"], row["share"] if len(row["gradients"]) > 1 else None, row["loss"])
        if text is not None:
            found.append(f"{text[0].upper()}{text[1:]}.")
    return found


def _worst(starts: Sequence[dict[str, Any]], metric: str, sign: int, label: str, what: str) -> list[str]:
    """Name the level that loses most of a metric; `sign` is 1 if a loss raises it, -1 if it lowers it."""
    steps = {start: (sign * step, spread) for start, (step, spread) in losses_by_level(starts, metric).items()}
    first, last = mean_std(starts[0][metric]), mean_std(starts[-1][metric])
    if not steps or first is None or last is None:
        return []
    total = sign * (last[0] - first[0])
    start, (step, spread) = max(steps.items(), key=lambda item: item[1][0])
    ends = f"{label} goes from {first[0]:.3g} (held-out images) to {last[0]:.3g} (full chain)"
    if total <= 0 or step <= SPREADS * spread:
        return [f"No level loses more {what} than draws differ: {ends}."]
    where = "Starting from noise instead of x_L" if start == "noise" else f"l = {start}"
    return [f"{where} loses most of the {what}: {ends}, {min(step / total, 1):.0%} of it there."]
