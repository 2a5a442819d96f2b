"""Previews: images of the same noise, drawn at intervals during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from udpm.config.model import ModelConfig
from udpm.core.arrays import image_grid
from udpm.core.devices import to_bytes
from udpm.core.files import atomic_path
from udpm.diffusion.sampler import sample, seeded
from udpm.diffusion.schedule import Schedule

COLUMNS, ROWS, GAP = 8, 8, 2
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
