"""What is done to images before an extractor's network sees them: clean-fid's own resizing, and the range of values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from udpm.core import vision
from udpm.core.errors import UserError

RANGES = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
LIBRARIES = {"pil": "PIL", "pytorch": "PyTorch"}


@dataclass(frozen=True)
class Inputs:
    """Images as bytes to a network's input.

    Attributes:
        side: that images are resized to; None: they keep their own.
        resize: library and filter, such as pil_bicubic; unused where they keep their side.
        range: what 0..255 becomes.
        note: on what the network does to them itself, for the record.
    """

    side: int | None = None
    resize: str = "pil_bicubic"
    range: str = "0..255"
    note: str = ""

    def describe(self) -> str:
        """In words, for protocols: two extractors of one file are the same where these are."""
        low, high = RANGES[self.range]
        if self.side is None:
            text = f"none: images enter the extractor at their own side, in [{low:g}, {high:g}]"
        else:
            library, how = self.resize.split("_")
            text = f"to {self.side}×{self.side} by clean-fid's {LIBRARIES[library]} {how}, in [{low:g}, {high:g}]"
        return f"{text}; {self.note}" if self.note else text

    def prepare(self, images: np.ndarray, threads: int) -> torch.Tensor:
        """What the network is fed.

        Args:
            images: (n, h, w, 3) uint8.
            threads: that resize at a time.

        Returns:
            (n, 3, side, side) float32.
        """
        if self.side is None:
            values = np.asarray(images, dtype=np.float32)
        else:
            resize = resizer(self.resize, self.side)
            with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = np.stack(list(pool.map(resize, images)))
        low, high = RANGES[self.range]
        batch = torch.from_numpy(values).permute(0, 3, 1, 2)
        return batch if self.range == "0..255" else batch * ((high - low) / 255) + low


def resizer(name: str, side: int) -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's function from (h, w, 3) uint8 to (side, side, 3) float32 in [0, 255].

    Args:
        name: library and filter, such as pil_bicubic.
        side: in pixels.

    Raises:
        UserError: clean-fid is not installed.
    """
    vision.enable()
    try:
        from cleanfid.resize import make_resizer
    except ImportError:
        raise UserError("scoring.extractor: resizing needs the scoring extra: pip install 'udpm[scoring]'") from None
    library, how = name.split("_")
    # It silences all warnings of the process, for good.
    with warnings.catch_warnings():
        return make_resizer(LIBRARIES[library], False, how, (side, side))
