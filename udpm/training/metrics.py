"""``metrics.jsonl``: one line of means per interval."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from udpm.core.errors import UserError
from udpm.core.files import write_text


class Metrics:
    """Collects losses on the device and writes their means; only writing waits for the device.

    Args:
        path: of ``metrics.jsonl``.
        start: iteration that training starts from; later lines, of work that is about to be repeated, are removed.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._sums: dict[str, list[torch.Tensor]] = {}
        lines = _lines_up_to(path, start)
        self._seconds = lines[-1]["seconds"] if lines else 0.0
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._since = time.monotonic()
        self._count = 0

    def add(self, player: str, level: int, losses: dict[str, torch.Tensor]) -> None:
        """Remember one step's losses."""
        for name, value in losses.items():
            if name != "total":
                self._sums.setdefault(f"{player}/{name}/l{level}", []).append(value)

    def tick(self) -> None:
        """Count one iteration."""
        self._count += 1

    @property
    def seconds(self) -> float:
        """Training time in seconds up to the last line, over all attempts."""
        return self._seconds

    def write(self, iteration: int, learning_rate: float, batch: int) -> float:
        """Append a line with the means since the last one.

        Returns:
            Images per second since the last line.

        Raises:
            UserError: a loss is not finite.
        """
        means = {key: torch.stack(values).mean().item() for key, values in sorted(self._sums.items())}
        broken = [key for key, value in means.items() if value != value or abs(value) == float("inf")]
        if broken:
            raise UserError(
                f"{self._path.parent}: {broken[0]} is not finite before iteration {iteration}; the last checkpoint is "
                "from before that; a lower training.learning_rate may help"
            )
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        self._seconds += elapsed
        rate = self._count * batch / elapsed
        line = {
            "iteration": iteration,
            "seconds": round(self._seconds, 3),
            "images_per_second": round(rate, 2),
            "learning_rate": learning_rate,
            **means,
        }
        with open(self._path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        self._sums, self._count = {}, 0
        return rate


def _lines_up_to(path: Path, iteration: int) -> list[dict]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            # A killed process can leave its last line torn; the work it describes is repeated.
            continue
        if line["iteration"] <= iteration:
            lines.append(line)
    return lines
