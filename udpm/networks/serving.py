"""A generator as sampling calls it: laid out for convolutions; in bfloat16, compiled or recorded if asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from udpm.networks.compiling import compiled
from udpm.networks.graphs import Graphs
from udpm.networks.layers import times_like
from udpm.networks.unet import UNet

Precision = Literal["float32", "bfloat16"]


def serve(
    generator: UNet, precision: Precision = "float32", *, compiles: bool = False, graphs: bool = False
) -> Callable[..., torch.Tensor]:
    """Prepare a generator for inference, in place.

    Weights have their channels last, so that feature maps do too and convolutions need not reorder either. With
    bfloat16 the weights of convolutions and linear layers are rounded once, here, instead of by autocast in every call;
    normalisations, time, softmax and what comes out stay float32.

    Args:
        generator: in eval mode.
        precision: of convolutions and linear layers.
        compiles: by torch.compile, at the first call of each shape; GPUs then replay CUDA graphs of it.
        graphs: on a GPU, replay CUDA graphs of the uncompiled network; of no effect on a CPU.

    Returns:
        f, float32 in and out.
    """
    generator.to(memory_format=torch.channels_last)
    network = generator if precision == "float32" else _in_bfloat16(generator)
    if compiles:
        return _compiled(network)
    if graphs and next(generator.parameters()).is_cuda:
        return Graphs(network)
    return network


def _in_bfloat16(generator: UNet) -> Callable[..., torch.Tensor]:
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)

    def call(x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return generator(x, time, labels).float()

    return call


def _compiled(network: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    # This mode records CUDA graphs on a GPU. One that tries algorithms out would draw other images in another process.
    fast = compiled(network, "sampling.compile", mode="reduce-overhead", fullgraph=True)

    def call(x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        # Outputs lie in memory that later calls write to: none is kept beyond this call, so each begins anew.
        torch.compiler.cudagraph_mark_step_begin()
        # As a tensor: a number would be compiled in.
        return fast(x, times_like(time, x), labels).clone()

    return call
