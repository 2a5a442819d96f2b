"""Judge whether the discriminator at each level still teaches the generator anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

CHANCE = 0.65
"""AUC below which a discriminator separates nothing that a generator could learn from; ½ is chance."""
FAINT = 0.02
"""Share of the generator's gradient below which a discriminator has no influence on it."""
WON = 0.05
"""The discriminator's loss below which its gradient vanishes; log 2 = 0.69 is chance."""
SETTLES = 1000
"""Iterations of adversarial training before a verdict."""
WINDOW = 500
"""Iterations that a verdict is about."""


def verdict(level: int, auc: float, share: float | None, loss: float) -> str | None:
    """Return what is wrong with the discriminator at a level, as a sentence without a full stop; None if nothing is.

    Args:
        level: l.
        auc: area under the ROC curve of its outputs on real and generated images.
        share: of the generator's gradient that comes through it; None if unknown.
        loss: mean of ½ softplus(D(fake)) + ½ softplus(-D(real)).
    """
    known = "" if share is None else f", and {share:.1%} of the generator's gradient is its own"
    if auc < CHANCE:
        return f"the discriminator at l = {level} separates nothing: AUC {auc:.2f} (0.5 is chance){known}"
    if loss < WON:
        return f"the discriminator at l = {level} has won: AUC {auc:.2f}, loss {loss:.2g} (0.69 is chance){known}"
    if share is not None and share < FAINT:
        return f"the discriminator at l = {level} hardly moves the generator: AUC {auc:.2f}{known}"
    return None


class Watch:
    """Judge the discriminator during training, from the lines of metrics; each verdict is returned once.

    Args:
        start: first iteration with an adversarial loss.
    """

    def __init__(self, start: int) -> None:
        self._from = start + SETTLES
        self._lines: deque[Mapping[str, Any]] = deque()
        self._known: set[tuple[int, str]] = set()

    def verdicts(self, line: Mapping[str, Any], levels: int) -> list[str]:
        """Add a line of metrics, and return new verdicts on the last 500 iterations."""
        self._lines.append(line)
        while line["iteration"] - self._lines[0]["iteration"] >= WINDOW:
            self._lines.popleft()
        if line["iteration"] < self._from:
            return []
        return [text for level in range(1, levels + 1) if (text := self._new_verdict(level)) is not None]

    def _new_verdict(self, level: int) -> str | None:
        auc, loss = (self._mean(f"discriminator/{name}/l{level}") for name in ("auc", "loss"))
        if auc is None or loss is None:
            return None
        text = verdict(level, auc, self._mean(f"generator/adversarial_share/l{level}"), loss)
        if text is None or (level, text.partition(":")[0]) in self._known:
            return None
        self._known.add((level, text.partition(":")[0]))
        return text

    def _mean(self, key: str) -> float | None:
        values = [line[key] for line in self._lines if key in line]
        return sum(values) / len(values) if values else None
