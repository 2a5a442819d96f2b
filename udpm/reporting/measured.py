"""Measured scores as published ones are told: a mean over training seeds, for the last and the best checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from udpm.scoring.records import preprocessing, used_tf32

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
    found = (sorted((Path(results) / "scores" / name).glob("*.json")) for name in experiments)
    return [path for paths in found for path in paths]


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
