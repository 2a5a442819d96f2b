"""Inception as clean-fid and StyleGAN load it, and how images are resized before an extractor sees them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from udpm.core.devices import is_device_failure, patch_torchvision
from udpm.core.download import INCEPTION
from udpm.core.errors import UserError, first_line

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
    patch_torchvision()
    try:
        from cleanfid.resize import make_resizer
    except ImportError:
        raise UserError("scoring.extractor: resizing needs the scoring extra: pip install 'udpm[scoring]'") from None
    library, how = name.split("_")
    # It silences all warnings of the process, for good.
    with warnings.catch_warnings():
        return make_resizer(LIBRARIES[library], False, how, (side, side))


SIDE = 299
WIDTH = 2048

MODES = {
    "clean": Inputs(SIDE, "pil_bicubic", note="clean-fid's mode clean"),
    "legacy_tensorflow": Inputs(note="resized inside the network; clean-fid's mode legacy_tensorflow"),
    # clean-fid pairs this resizing with another file of the same weights; this one keeps to a single network.
    "legacy_pytorch": Inputs(SIDE, "pytorch_bilinear", note="clean-fid's mode legacy_pytorch, TorchScript network"),
}


class Inception(nn.Module):
    """(N, 3, h, w) in [0, 255] to (N, 2048) features, by clean-fid's wrapper of the TorchScript file.

    Args:
        folder: that holds ``inception-2015-12-05.pt``.
        mode: one of `MODES`.
        device: where it runs.

    Raises:
        UserError: clean-fid is not installed, or the file is no TorchScript Inception.
    """

    def __init__(self, folder: Path, mode: str, device: torch.device) -> None:
        super().__init__()
        patch_torchvision()
        try:
            from cleanfid.inception_torchscript import InceptionV3W
        except ImportError:
            raise UserError(
                "scoring.extractor: inception needs the scoring extra: pip install 'udpm[scoring]'"
            ) from None
        try:
            network = InceptionV3W(str(folder), download=False, resize_inside=mode == "legacy_tensorflow")
        except (RuntimeError, ValueError, AttributeError) as error:
            if is_device_failure(error):
                raise
            reason = first_line(error)
            raise UserError(f"{folder / INCEPTION.name}: not a TorchScript file of Inception: {reason}") from None
        self.network = network.eval().to(device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features before the last layer."""
        return self.network(images)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(N, 2048) to (N, classes), without the last layer's bias, as the first Inception scores were computed."""
        return features @ self.network.base.state_dict()["output.weight"].T

    @property
    def classifies(self) -> bool:
        """Whether the file holds the last layer."""
        return "output.weight" in self.network.base.state_dict()
