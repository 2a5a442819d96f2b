"""Score files, as those who only read them need them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.reading import read_json

FORMAT = "udpm-score/1"


def read_score(path: str | Path) -> dict[str, Any]:
    """Read a score.

    Raises:
        UserError: missing, unreadable, or not a score.
    """
    score = read_json(path, "score")
    if score.get("format") != FORMAT:
        raise UserError(f"{path}: format is {score.get('format')!r}, expected {FORMAT!r}")
    return score


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
    return bool(record.get("tf32", not str(record.get("device", "cpu")).startswith("cpu")))


def preprocessing(score: dict[str, Any]) -> str | None:
    """What was done to the images before the extractor."""
    return score["protocol"].get("preprocessing") or score["protocol"]["extractor"].get("preprocessing")
