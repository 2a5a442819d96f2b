"""Score files, as those who only read them need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.files import read_json

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
