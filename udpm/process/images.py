"""From the values of the process to images."""

from __future__ import annotations

import numpy as np
import torch


def quantized(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1], (B, 3, h, w), to (B, h, w, 3) uint8 on their device, rounded; what lies outside is clipped."""
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """The same as an array of the host's."""
    return quantized(images).cpu().numpy()
