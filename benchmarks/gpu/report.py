"""Results of the checks: a line as each one ends, a table at the end, and a JSON file that is always complete."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from udpm.core import provenance
from udpm.core.files import write_json

FORMAT = "udpm-gpu/1"
MARKS = {"passed": "ok  ", "failed": "FAIL", "skipped": "--  "}
LONGEST, SHORT = 300, 90
"""Characters of a detail: as it is printed, and in the table."""


class Report:
    """The results of one run, written to a file after every check.

    Args:
        path: of the JSON file; None: write none.
        device: description of the machine.
    """

    def __init__(self, path: Path | None, device: dict[str, Any]) -> None:
        self._path = path
        self.device = device
        self.checks: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []
        self.profile: dict[str, Any] = {}
        self._provenance = provenance.record()
        self.write()

    def add(self, part: str, name: str, outcome: str, detail: str, seconds: float = 0.0, **more: Any) -> None:
        """Add a row, print it and write the file.

        Args:
            part: of the list.
            name: of the check.
            outcome: "passed", "failed" or "skipped".
            detail: the result, or the reason.
            seconds: time that it took.
            more: further entries, for the file.
        """
        row = {"part": part, "name": name, "outcome": outcome, "detail": detail, "seconds": round(seconds, 2)}
        self.checks.append(row | more)
        print(line(row), flush=True)
        self.write()

    def write(self) -> None:
        """Write the results so far."""
        if self._path is not None:
            write_json(self._path, _finite(self.record()))

    def record(self) -> dict[str, Any]:
        """All results as one record."""
        return {
            "format": FORMAT,
            "device": self.device,
            "versions": self._provenance["versions"],
            "commit": self._provenance["commit"],
            "machine": self._provenance["machine"],
            "checks": self.checks,
            "timings": self.timings,
            "profile": self.profile,
        }

    @property
    def failed(self) -> bool:
        """True if any check failed."""
        return any(row["outcome"] == "failed" for row in self.checks)

    def table(self) -> str:
        """All rows, then the number of checks that passed, failed and were skipped."""
        counts = Counter(row["outcome"] for row in self.checks)
        seconds = sum(row["seconds"] for row in self.checks)
        last = ", ".join(f"{counts[outcome]} {outcome}" for outcome in MARKS)
        return "\n".join([*(line(row, SHORT) for row in self.checks), f"{last}; {seconds:.0f} s"])


def line(row: dict[str, Any], longest: int = LONGEST) -> str:
    """One row as text."""
    detail = " ".join(row["detail"].split())
    shown = detail if len(detail) <= longest else f"{detail[:longest]} …"
    return f"{MARKS[row['outcome']]} {row['seconds']:6.1f} s  {row['part']:9}  {row['name']}: {shown}"


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by text."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
