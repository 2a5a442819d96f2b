"""EfficientNet-Lite0, trained on ImageNet: features of photographs. A package contains the weights."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from udpm.core.containers import check_archive
from udpm.core.errors import UserError, first_line
from udpm.core.files import LITE0, sha256
from udpm.metrics.extractor_networks import Inputs

INPUTS = Inputs(128, "pil_bicubic", note="then (x - 127) / 128; TensorFlow's padding")
FEATURES, CLASSES = 1280, 1000
AT_ONCE = 8
"""Images of one pass on a CPU. With more, the system spends longer on memory for the maps than the pass takes."""

STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, stride of the first block, expansion, channels and number of blocks of each stage (Tan & Le 2019; the Lite
variant has ReLU6 for swish, no squeeze-and-excitation, and the widths of stem and head of the unscaled network)."""


class Convolution(nn.Sequential):
    """Convolution with TensorFlow's "same" padding and batch normalization: (N, c, h, w) to (N, c', ⌈h/s⌉, ⌈w/s⌉)."""

    def __init__(self, inner: int, outer: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            # With stride 1, "same" padding is symmetric, so that the convolution can do it.
            nn.Conv2d(inner, outer, kernel, stride, (kernel // 2) * (stride == 1), groups=groups, bias=False),
            nn.BatchNorm2d(outer, eps=1e-3),
        )
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad what is missing, the odd pixel at the end."""
        if self.stride == 1:
            return super().forward(x)
        missing = [max((math.ceil(n / self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[2:]]
        (top, left), (bottom, right) = zip(*((n // 2, n - n // 2) for n in missing), strict=True)
        return super().forward(F.pad(x, (left, right, top, bottom)))


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; the input is added where shapes allow it."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand = Convolution(inner, wide) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = Convolution(wide, outer)
        self.is_residual = stride == 1 and inner == outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inner, h, w) to (N, outer, ⌈h/stride⌉, ⌈w/stride⌉)."""
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.is_residual else h


class EfficientNetLite0(nn.Module):
    """(N, 3, h, w) in [0, 255] to (N, 1280) features; ImageNet's classes from these."""

    classifies = True

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, 2)
        widths = [32, *(channels for _, _, _, channels, _ in STAGES)]
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(outer if number else inner, outer, kernel, 1 if number else stride, expansion)
                for (inner, outer), (kernel, stride, expansion, _, count) in zip(pairwise(widths), STAGES, strict=True)
                for number in range(count)
            )
        )
        self.head = Convolution(widths[-1], FEATURES)
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean over positions of the head's output."""
        if images.device.type == "cpu" and len(images) > AT_ONCE:
            return torch.cat([self(part) for part in images.split(AT_ONCE)])
        h = self.blocks(F.relu6(self.stem(((images - 127) / 128).contiguous(memory_format=torch.channels_last))))
        return F.relu6(self.head(h)).mean((2, 3))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Map (N, 1280) features to (N, 1000) logits."""
        return self.last(features)


def load_lite0(path: Path) -> EfficientNetLite0:
    """Load the published weights.

    Raises:
        UserError: missing, or another file.
    """
    check_archive(path, "file of weights")
    if (found := sha256(path)) != LITE0.sha256:
        raise UserError(f"{path}: has SHA-256 {found}, expected {LITE0.sha256}; install the package again")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not readable: {first_line(error)}") from None
    network = EfficientNetLite0()
    # The file's names differ, but its order is that of the network.
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    # On a CPU, depthwise convolutions take half the time in this layout. torch's stubs leave memory_format out.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()
