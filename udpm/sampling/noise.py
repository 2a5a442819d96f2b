"""Noise of a sample set that comes from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udpm.core.arrays import check_array
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.data.arrays import read_npz
from udpm.process.latent import Latent
from udpm.process.schedule import Schedule

LARGEST = 1e4
"""No noise is larger: it still has a place in float16."""

NoiseSource = Callable[[range], Latent]
"""The noise of images of given numbers, on the CPU."""


def stored(path: str | Path, schedule: Schedule, side: int, count: int) -> tuple[NoiseSource, dict[str, Any]]:
    """Noise from a file: .npz with `base` (n, 3, N, N) and `eps_L` … `eps_1`, eps_l of (n, 3, N/2^l, N/2^l).

    Args:
        path: the file.
        schedule: for the number of levels.
        side: N.
        count: images that are wanted.

    Returns:
        The source, and the file's identity for the record.

    Raises:
        UserError: missing, unreadable, arrays missing, of other shapes or not finite, or too few images.
    """
    sides = {"base": side} | {f"eps_{level}": side >> level for level in range(schedule.levels, 0, -1)}
    arrays = read_npz(path, "noise file", names=sides)
    for name in sides:
        if name not in arrays:
            raise UserError(f"{path}: has no array {name}; this model needs {', '.join(sides)}")
    check_array(f"{path}: base", arrays["base"], np.floating, ("n", 3, side, side))
    count_held = len(arrays["base"])
    for name, size in sides.items():
        check_array(f"{path}: {name}", arrays[name], np.floating, (count_held, 3, size, size))
        if np.abs(arrays[name]).max() > LARGEST:
            raise UserError(f"{path}: {name} holds values beyond ±{LARGEST:g}; expected standard normal noise")
    if count_held < count:
        raise UserError(f"{path}: holds the noise of {count_held} images, but {count} are wanted")
    maps = [torch.from_numpy(arrays[name].astype(np.float32)) for name in sides]

    def look_up(numbers: range) -> Latent:
        base, *noises = [values[numbers.start : numbers.stop] for values in maps]
        return Latent(base, tuple(noises))

    return look_up, {"file": Path(path).name, "sha256": sha256(path)}
