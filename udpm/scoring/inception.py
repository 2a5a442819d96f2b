"""Inception as clean-fid and StyleGAN load it, in clean-fid's three modes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from udpm.core import vision
from udpm.core.device_errors import is_device_failure
from udpm.core.errors import UserError, first_line
from udpm.core.published import INCEPTION
from udpm.scoring.inputs import Inputs

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
        vision.enable()
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
