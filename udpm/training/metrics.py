"""Signs of a training's progress: ``metrics.jsonl``, log lines, warnings and previews."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from udpm.config.model import ModelConfig
from udpm.core import devices
from udpm.core.arrays import image_grid
from udpm.core.devices import to_bytes
from udpm.core.distributed import RankInfo, all_reduce_mean, all_reduce_min
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, write_text
from udpm.core.work import duration
from udpm.diffusion.process import sample, seeded
from udpm.diffusion.schedule import Schedule
from udpm.runs.records import read_metrics_lines

SHOWN = {
    "generator/reconstruction": "rec",
    "generator/energy": "energy",
    "generator/spread": "spread",
    "generator/lpips": "lpips",
    "generator/adversarial": "adv",
    "discriminator/real": "D real",
    "discriminator/fake": "fake",
    "discriminator/auc": "AUC",
    "discriminator/r1": "R1",
    "discriminator/r2": "R2",
}
"""Metrics in log lines, in this order, and their short names."""


class NotFinite(Exception):
    """A loss's term, such as "adversarial", or a gradient is NaN or infinite; iterations count from 0."""

    def __init__(self, player: str, term: str, level: int, iteration: int) -> None:
        self.player, self.term, self.level, self.iteration = player, term, level, iteration
        super().__init__(
            f"{player}/{term} of level {level} is not finite in iteration {iteration + 1}; a lower "
            "training.learning_rate may help"
        )


class Metrics:
    """Collect losses on the device; only taking their means synchronizes it.

    Args:
        path: of ``metrics.jsonl``.
        start: first iteration of the training; later lines, whose work will be repeated, are removed.
        ranks: this process's rank and the number of processes; rank 0 writes.

    Attributes:
        seconds: training time up to the last line, over all attempts.
        cpu_seconds: processor time of all processes and their threads over the same iterations; None if an earlier
            version, which did not record it, trained a part of them.
    """

    def __init__(self, path: Path, start: int, ranks: RankInfo | None = None) -> None:
        self._path, self._ranks = path, ranks or RankInfo()
        self._iteration = start
        self._kept: dict[str, list[tuple[int, torch.Tensor]]] = {}
        earlier = read_metrics_lines(path) if path.exists() else iter(())
        # A killed process can leave a torn last line; the work that it describes is repeated.
        lines = [line for line in earlier if line is not None and line["iteration"] <= start]
        self.seconds = lines[-1].get("seconds", 0.0) if lines else 0.0
        self.cpu_seconds: float | None = lines[-1].get("cpu_seconds") if lines else 0.0
        if self._ranks.rank == 0:
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._since, self._cpu_since = time.monotonic(), time.process_time()
        self._count = 0

    def add(self, player: str, level: int, losses: dict[str, torch.Tensor]) -> None:
        """Add one step's losses."""
        for name, value in losses.items():
            if name != "total":
                self._kept.setdefault(f"{player}/{name}/l{level}", []).append((self._iteration, value))

    def tick(self) -> None:
        """Count one iteration."""
        self._count += 1
        self._iteration += 1

    def take(self, iteration: int, learning_rate: float, batch: int) -> dict[str, Any]:
        """Return the line of the interval since the last one: means over iterations and processes. A collective call.

        Raises:
            NotFinite: a loss or a gradient is not finite.
        """
        keys = sorted(self._kept)
        means = [torch.stack([value for _, value in self._kept[key]]).mean() for key in keys]
        cpu = time.process_time()
        elapsed_cpu = torch.tensor(cpu - self._cpu_since, device=means[0].device if means else None)
        self._cpu_since = cpu
        all_reduce_mean([*means, elapsed_cpu], self._ranks)
        values = torch.stack(means).tolist() if means else []
        broken = [key for key, value in zip(keys, values, strict=True) if not math.isfinite(value)]
        if broken:
            raise self._first_of(broken)
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        self.seconds += elapsed
        if self.cpu_seconds is not None:
            self.cpu_seconds = round(self.cpu_seconds + elapsed_cpu.item() * self._ranks.world, 3)
        line = {
            "iteration": iteration,
            "seconds": round(self.seconds, 3),
            **({} if self.cpu_seconds is None else {"cpu_seconds": self.cpu_seconds}),
            "images_per_second": round(self._count * batch / elapsed, 2),
            "learning_rate": learning_rate,
            **_memory(),
            **dict(zip(keys, values, strict=True)),
        }
        self._kept, self._count = {}, 0
        return line

    def write(self, line: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        try:
            with open(self._path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror or error}") from None

    def _first_of(self, keys: list[str]) -> NotFinite:
        """Return the first non-finite value among these, over all processes.

        An iteration starts with the discriminator's step, and a step ends with its gradient.
        """
        order = sorted(keys, key=lambda key: (key.startswith("generator/"), "/gradient/" in key, key))
        steps = [(index, iteration, value) for index, key in enumerate(order) for iteration, value in self._kept[key]]
        places = [iteration * len(order) + index for index, iteration, value in steps if not torch.isfinite(value)]
        # There is none here if only the mean overflows, or if the value is another process's.
        first = min(places, default=self._iteration * len(order) - 1)
        iteration, index = divmod(
            all_reduce_min(torch.tensor(first, device=steps[0][2].device), self._ranks), len(order)
        )
        player, term, level = order[index].split("/")
        return NotFinite(player, term, int(level.removeprefix("l")), iteration)


def _memory() -> dict[str, float]:
    """Return memory in GiB: this process's in RAM now, and the peak of its tensors on the GPU."""
    found = {"memory_gib": round(devices.resident_bytes() / 2**30, 3)}
    if torch.cuda.is_initialized():
        found["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return found


def progress_line(line: dict[str, Any], total: int, batch: int) -> str:
    """Return a log line: "iteration 40 of 3200, 812 img/s, 2.1 min left, rate 0.0008 | l=1 rec 0.2 … | 0.60 GiB".

    `line` is one of ``metrics.jsonl``; the time left is at its speed.
    """
    left = duration((total - line["iteration"]) * batch / max(line["images_per_second"], 1e-9))
    head = f"iteration {line['iteration']} of {total}, {line['images_per_second']:.4g} img/s, {left} left"
    memory = f"{line['memory_gib']:.2f} GiB"
    if "gpu_memory_gib" in line:
        memory += f", GPU {line['gpu_memory_gib']:.2f} GiB"
    levels = [f"l={level} {_losses(line, level)}" for level in levels_in(line)]
    return " | ".join([f"{head}, rate {line['learning_rate']:.3g}", *levels, memory])


def progress_text(line: dict[str, Any]) -> str:
    """Return the text after a progress bar: images/s, and the reconstruction loss of each level."""
    losses = [(level, line.get(f"generator/reconstruction/l{level}")) for level in levels_in(line)]
    losses_text = ", ".join(f"l={level} {value:.3g}" for level, value in losses if value is not None)
    return f"{line['images_per_second']:.4g} img/s; rec {losses_text}"


def levels_in(line: dict[str, Any]) -> list[int]:
    """Return the levels in a line, l = 1 first."""
    return sorted({int(key.rpartition("/l")[2]) for key in line if "/l" in key and key.rpartition("/l")[2].isdigit()})


def _losses(line: dict[str, Any], level: int) -> str:
    found = {name: line.get(f"{key}/l{level}") for key, name in SHOWN.items()}
    return " ".join(f"{name} {value:.3g}" for name, value in found.items() if value is not None)


CHANCE = 0.65
"""AUC below which a discriminator separates almost nothing; ½ is chance."""
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
        return f"the discriminator at l = {level} separates almost nothing: AUC {auc:.2f} (0.5 is chance){known}"
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


COLUMNS, ROWS, GAP = 8, 8, 2
"""Measures of a preview: images in a row, rows, and pixels between images."""
SEED = 0
SHOWN_SIDE = 64
"""Smaller images are enlarged by a whole factor up to about this side."""


def preview_path(run: Path, iteration: int) -> Path:
    """Return the path of an iteration's preview in a run's folder."""
    return run / "previews" / f"{iteration:09d}.png"


def preview_labels(classes: int) -> list[int]:
    """Return the class of each preview, row by row: the first eight in equal numbers of rows; 0 without classes."""
    shown = min(max(classes, 1), ROWS)
    rows = [row // (ROWS // shown) for row in range(shown * (ROWS // shown))]
    return [label for label in rows for _ in range(COLUMNS)]


def draw_preview(network: nn.Module, config: ModelConfig) -> np.ndarray:
    """Draw a grid of images 0, 1, … of seed 0, scalar posterior, without changing random state or network.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    schedule, labels = Schedule.from_config(config.process), preview_labels(config.classes)
    device, training = next(network.parameters()).device, network.training
    images = []
    network.eval()
    # Not inference_mode: training could not use tensors that a network caches in it.
    with torch.no_grad():
        for start in range(0, len(labels), COLUMNS):
            numbers = range(start, start + COLUMNS)
            latent = seeded(schedule, config.side, SEED, numbers, config.generator.latent_channels)
            base, noises, inputs = latent.map(lambda values: values.to(device))
            chosen = torch.tensor(labels[start : start + COLUMNS], device=device) if config.classes else None
            images.append(to_bytes(sample(schedule, network, base, noises, chosen, inputs=inputs)[-1].output))
    network.train(training)
    return image_grid(images, COLUMNS, GAP, max(1, SHOWN_SIDE // config.side))


def write_preview(path: Path, grid: np.ndarray) -> None:
    """Write a grid as PNG, atomically.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(grid).save(temporary, format="PNG")
