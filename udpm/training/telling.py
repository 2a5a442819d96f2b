"""A line of metrics in a few words, for logs and terminals."""

from __future__ import annotations

from typing import Any

from udpm.core.progress import duration

SHOWN = {
    "generator/reconstruction": "rec",
    "generator/lpips": "lpips",
    "generator/adversarial": "adv",
    "discriminator/real": "D real",
    "discriminator/fake": "fake",
    "discriminator/r1": "R1",
}
"""What is told of each level, in this order."""


def progress_line(line: dict[str, Any], total: int, batch: int) -> str:
    """Everything of note: "iteration 40 of 3200, 812 img/s, 2.1 min left, rate 0.0008 | l=1 rec 0.2 … | 0.60 GiB".

    Args:
        line: of ``metrics.jsonl``.
        total: number of iterations.
        batch: images per iteration.
    """
    left = duration(seconds_left(line, total, batch))
    head = f"iteration {line['iteration']} of {total}, {line['images_per_second']:.4g} img/s, {left} left"
    memory = f"{line['memory_gib']:.2f} GiB"
    if "gpu_memory_gib" in line:
        memory += f", GPU {line['gpu_memory_gib']:.2f} GiB"
    levels = [f"l={level} {_losses(line, level)}" for level in levels_in(line)]
    return " | ".join([f"{head}, rate {line['learning_rate']:.3g}", *levels, memory])


def postfix(line: dict[str, Any]) -> str:
    """What stands behind a progress bar: images/s, and the reconstruction loss of each level."""
    losses = [(level, line.get(f"generator/reconstruction/l{level}")) for level in levels_in(line)]
    told = ", ".join(f"l={level} {value:.3g}" for level, value in losses if value is not None)
    return f"{line['images_per_second']:.4g} img/s; rec {told}"


def seconds_left(line: dict[str, Any], total: int, batch: int) -> float:
    """Seconds to the end at the speed of a line of ``metrics.jsonl``."""
    return (total - line["iteration"]) * batch / max(line["images_per_second"], 1e-9)


def levels_in(line: dict[str, Any]) -> list[int]:
    """The levels that a line says something about, l = 1 first."""
    return sorted({int(key.rpartition("/l")[2]) for key in line if "/l" in key and key.rpartition("/l")[2].isdigit()})


def _losses(line: dict[str, Any], level: int) -> str:
    found = {name: line.get(f"{key}/l{level}") for key, name in SHOWN.items()}
    return " ".join(f"{name} {value:.3g}" for name, value in found.items() if value is not None)
