"""Tensor names of the published code, and the architecture of its checkpoints from tensor names and shapes.

Our names follow the structure of `UNet` and `Discriminator`; the published ones contain sides and block kinds.
"""

from __future__ import annotations

import re

import torch

from udpm.config.model import Family
from udpm.networks.discriminator import Discriminator, DiscriminatorShape
from udpm.networks.unet import IMAGE_CHANNELS, UNet, UNetShape
from udpm.networks.weights import FLOATS, first_names, tensor_problems

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
"""Architecture constant that the published code stores with the weights."""
FREQUENCIES = "freqs"


def generator_names(shape: UNetShape) -> dict[str, str]:
    """Map a generator's module names, ours to published, without the final ".weight" or ".bias"."""
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
        reverse = depths - 1 - depth
        entries = ["in0", "in1"] if depth == depths - 1 else ["up"]
        for index, entry in enumerate(entries):
            names |= _block_names(f"decoder.{reverse}.entry.{index}", f"dec.{side}_{entry}")
        for index in range(shape.blocks + 1):
            names |= _block_names(f"decoder.{reverse}.blocks.{index}", f"dec.{side}_block{index}")
    return {ours: f"net.{published}" for ours, published in names.items()}


def discriminator_names(shape: DiscriminatorShape) -> dict[str, str]:
    """Map a discriminator's module names, ours to published, without the final ".weight" or ".bias"."""
    names = {"stem": "conv0", "final": "final_conv", "label": "map_label", "head": "out_lin"}
    for index in range((shape.side >> (shape.levels - 1)).bit_length()):
        names |= _block_names(f"blocks.{index}", f"body.{index}")
    return names


def from_published(tensors: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Convert a published state dict to our names (from `generator_names` or `discriminator_names`), in float32.

    Leaves out resampling filters, which the published code stores although they are constants.

    Raises:
        KeyError: a tensor that does not exist in this architecture.
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


Tensors = dict[str, torch.Tensor]


class UnknownArchitecture(ValueError):
    """Tensors that are not a network of this method; the message gives the reason."""


def generator_shape(tensors: Tensors, classes: int | None = None) -> UNetShape:
    """Infer the shape of a generator; `classes` is their number, if known.

    Label dropout adds one input to the label layer, which the tensors alone cannot distinguish from another class.

    Raises:
        UnknownArchitecture: not a generator of the three families.
    """
    side = _stem_side(tensors)
    embedding = _tensor(tensors, "net.map_layer0.weight")
    channels = len(embedding) // 4
    sides = sorted({int(found[1]) for found in _matches(tensors, r"net\.enc\.(\d+)x\1_block0\.conv0\.weight")})[::-1]
    if sides != [side >> depth for depth in range(len(sides))] or not sides:
        raise UnknownArchitecture(f"expected encoder blocks at side {side} and its halves, found sides {sides}")
    widths = [len(_tensor(tensors, f"net.enc.{size}x{size}_block0.conv0.weight")) for size in sides]
    label = tensors.get("net.map_label.weight")
    inputs = 0 if label is None else label.shape[1]
    dropped = classes is not None and inputs == classes + 1
    return UNetShape(
        family=_family(tensors),
        side=side,
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=len(_matches(tensors, rf"net\.enc\.{side}x{side}_block\d+\.conv0\.weight")),
        attention=tuple(size for size in sides if f"net.enc.{size}x{size}_block0.qkv.weight" in tensors),
        classes=inputs - dropped,
        label_dropout=dropped,
    )


def discriminator_shape(tensors: Tensors, side: int) -> DiscriminatorShape:
    """Infer the shape of a discriminator for images of side N; its number of blocks determines the number of levels.

    Raises:
        UnknownArchitecture: not a discriminator.
    """
    blocks = len(_matches(tensors, r"body\.\d+\.conv0\.weight"))
    # n = log2(N/2^{L-1}) + 1
    levels = side.bit_length() - blocks + 1
    if blocks == 0 or levels < 1:
        raise UnknownArchitecture(f"its discriminator has {blocks} blocks, impossible for images of side {side}")
    label = tensors.get("map_label.weight")
    return DiscriminatorShape(
        side, levels, len(_tensor(tensors, "conv0.weight")), 0 if label is None else label.shape[1]
    )


def load_tensors(tensors: Tensors, shape: UNetShape | DiscriminatorShape) -> Tensors:
    """Convert a published network's tensors to our names and check that all exist with the right shapes.

    Raises:
        UnknownArchitecture: tensors are missing, unknown or of another shape; the message lists the first five.
    """
    with torch.device("meta"):
        expected = (UNet(shape) if isinstance(shape, UNetShape) else Discriminator(shape)).state_dict()
    names = generator_names(shape) if isinstance(shape, UNetShape) else discriminator_names(shape)
    wanted = {_published(name, names): tensor.shape for name, tensor in expected.items()}
    given = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] != FILTER}
    if problems := tensor_problems(given, wanted):
        raise UnknownArchitecture(problems)
    if cast := [name for name in given if given[name].dtype not in FLOATS]:
        raise UnknownArchitecture(f"{len(cast)} tensors are not floating-point: {first_names(cast)}")
    if broken := [name for name in given if not torch.isfinite(given[name]).all()]:
        raise UnknownArchitecture(f"{len(broken)} tensors are not finite: {first_names(broken)}")
    return from_published(tensors, names)


def _published(name: str, names: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{names[module]}.{FREQUENCIES if kind == 'frequencies' else kind}"


def _family(tensors: Tensors) -> Family:
    if "net.out_conv.weight" in tensors:
        return "adm"
    return "ncsnpp" if f"net.map_noise.{FREQUENCIES}" in tensors else "ddpmpp"


def _matches(tensors: Tensors, pattern: str) -> list[re.Match[str]]:
    return [found for found in (re.fullmatch(pattern, name) for name in tensors) if found]


def _stem_side(tensors: Tensors) -> int:
    found = _matches(tensors, r"net\.enc\.(\d+)x\1_conv\.weight")
    if len(found) != 1:
        raise UnknownArchitecture(
            f"not a generator of NCSN++, DDPM++ or ADM: found {len(found) or 'no'} first convolution net.enc.SxS_conv "
            f"among {len(tensors)} tensors such as {first_names(list(tensors)[:2])}"
        )
    name, shape = found[0].string, tuple(tensors[found[0].string].shape)
    if len(shape) != 4 or shape[1] != IMAGE_CHANNELS:
        raise UnknownArchitecture(f"{name}: expected shape (C, {IMAGE_CHANNELS}, 3, 3), got {shape}")
    return int(found[0][1])


def _tensor(tensors: Tensors, name: str) -> torch.Tensor:
    if name not in tensors:
        raise UnknownArchitecture(f"1 tensors are missing: {name}")
    return tensors[name]
