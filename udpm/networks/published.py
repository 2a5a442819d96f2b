"""Tensor names of the published code, from ours and back.

Ours follow the structure of `UNet` and `Discriminator`; the published ones name sides and block kinds.
"""

from __future__ import annotations

import torch

from udpm.networks.discriminator import DiscriminatorShape
from udpm.networks.unet import UNetShape

_BLOCK = {
    "norm_in": "norm0",
    "conv_in": "conv0",
    "condition": "affine",
    "norm_out": "norm1",
    "conv_out": "conv1",
    "skip": "skip",
    "attention.norm": "norm2",
    "attention.qkv": "qkv",
    "attention.proj": "proj",
}
FILTER = "resample_filter"
"""A constant of the architecture that the published code stores with the weights."""
FREQUENCIES = "freqs"


def generator_names(shape: UNetShape) -> dict[str, str]:
    """Module names of a generator: ours to published, without the final ".weight" or ".bias"."""
    depths = len(shape.multipliers)
    sides = [f"{shape.side >> depth}x{shape.side >> depth}" for depth in range(depths)]
    names = {
        "embedding.label": "map_label",
        "embedding.first": "map_layer0",
        "embedding.second": "map_layer1",
        "embedding.time": "map_noise",
        "stem": f"enc.{sides[0]}_conv",
        "norm": "out_norm" if shape.family == "adm" else f"dec.{sides[0]}_aux_norm",
        "head": "out_conv" if shape.family == "adm" else f"dec.{sides[0]}_aux_conv",
    }
    for depth, side in enumerate(sides):
        if depth:
            names |= _block_names(f"encoder.{depth}.down", f"enc.{side}_down")
            names[f"encoder.{depth}.pyramid.conv"] = f"enc.{side}_aux_residual"
        for index in range(shape.blocks):
            names |= _block_names(f"encoder.{depth}.blocks.{index}", f"enc.{side}_block{index}")
        place = depths - 1 - depth
        entries = ["in0", "in1"] if depth == depths - 1 else ["up"]
        for index, entry in enumerate(entries):
            names |= _block_names(f"decoder.{place}.entry.{index}", f"dec.{side}_{entry}")
        for index in range(shape.blocks + 1):
            names |= _block_names(f"decoder.{place}.blocks.{index}", f"dec.{side}_block{index}")
    return {ours: f"net.{published}" for ours, published in names.items()}


def discriminator_names(shape: DiscriminatorShape) -> dict[str, str]:
    """Module names of a discriminator: ours to published, without the final ".weight" or ".bias"."""
    names = {"stem": "conv0", "final": "final_conv", "label": "map_label", "head": "out_lin"}
    for index in range((shape.side >> (shape.levels - 1)).bit_length()):
        names |= _block_names(f"blocks.{index}", f"body.{index}")
    return names


def from_published(tensors: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """A published state dict under our names, in float32.

    Resampling filters, which the published code stores although they are constants, are left out.

    Args:
        tensors: published name to tensor.
        names: from `generator_names` or `discriminator_names`.

    Raises:
        KeyError: a tensor that this architecture does not have.
    """
    ours = {published: name for name, published in names.items()}
    state = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind != FILTER:
            state[f"{ours[module]}.{'frequencies' if kind == FREQUENCIES else kind}"] = tensor.float()
    return state


def _block_names(ours: str, published: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{published}.{b}" for a, b in _BLOCK.items()}
