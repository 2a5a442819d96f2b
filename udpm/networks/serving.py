"""A generator as sampling calls it: weights laid out for convolutions, and in bfloat16 where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from udpm.networks.unet import UNet

Precision = Literal["float32", "bfloat16"]


def serve(generator: UNet, precision: Precision = "float32") -> Callable[..., torch.Tensor]:
    """Prepare a generator for inference, in place.

    Weights have their channels last, so that feature maps do too and convolutions need not reorder either. With
    bfloat16 the weights of convolutions and linear layers are rounded once, here, instead of by autocast in every call;
    normalisations, time, softmax and what comes out stay float32.

    Args:
        generator: in eval mode.
        precision: of convolutions and linear layers.

    Returns:
        f, float32 in and out.
    """
    generator.to(memory_format=torch.channels_last)
    if precision == "float32":
        return generator
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)

    def call(x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return generator(x, time, labels).float()

    return call
