"""What is kept of a training that went wrong, for whoever wants to know why."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from udpm.networks.weights import write_tensors
from udpm.training.metrics import NotFinite
from udpm.training.trainer import Trainer

FORMAT = "udpm-failure/1"


def save_failure(run: Path, trainer: Trainer, problem: NotFinite, description: dict[str, Any]) -> None:
    """Write ``failures/<iteration>.safetensors``: the state, and the first batch whose loss was not finite.

    Losses are looked at once per interval (training.log_every), so the state is that at the interval's end: metadata
    holds its `iteration`, and the batch's as `first`, counted from 0. The batch is that of all processes.

    Args:
        run: the run's folder.
        trainer: whose state it is.
        problem: which loss of which iteration.
        description: of the run.
    """
    draw = trainer.whole_draw(problem.player, problem.iteration)
    parts = {field.name: getattr(draw, field.name) for field in fields(draw)}
    batch = {f"batch/{name}": value for name, value in parts.items() if isinstance(value, torch.Tensor)}
    told = {"format": FORMAT, "term": problem.term, "player": problem.player, "level": draw.level}
    path = run / "failures" / f"{problem.iteration:09d}.safetensors"
    write_tensors(path, {**trainer.state.tensors(), **batch}, {**description, **told, "first": problem.iteration})
