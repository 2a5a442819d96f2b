"""The architecture of a published checkpoint, read off its tensors' names and shapes."""

from __future__ import annotations

import re

import torch

from udpm.networks.discriminator import Discriminator, DiscriminatorShape
from udpm.networks.published import FILTER, FREQUENCIES, discriminator_names, from_published, generator_names
from udpm.networks.unet import IMAGE_CHANNELS, UNet, UNetShape
from udpm.networks.weights import FLOATS

Tensors = dict[str, torch.Tensor]
SHOWN = 5
"""Names that an error lists."""


class UnknownArchitecture(ValueError):
    """Tensors that are no network of this method; the message says what is wrong with them."""


def generator_shape(tensors: Tensors, classes: int | None = None) -> UNetShape:
    """The shape of a generator.

    Args:
        tensors: published name to tensor.
        classes: number of classes, where it is known. The label layer of a network trained with label dropout has
            one input more; tensors alone do not tell it from one more class.

    Raises:
        UnknownArchitecture: not a generator of the three families.
    """
    stem = _only(tensors, r"net\.enc\.(\d+)x\1_conv\.weight", "a first convolution net.enc.SxS_conv")
    side = int(stem[1])
    embedding = _tensor(tensors, "net.map_layer0.weight")
    channels = len(embedding) // 4
    sides = sorted({int(found[1]) for found in _matches(tensors, r"net\.enc\.(\d+)x\1_block0\.conv0\.weight")})[::-1]
    if sides != [side >> depth for depth in range(len(sides))] or not sides:
        raise UnknownArchitecture(f"its encoder has blocks at sides {sides}, not at {side} and halves of it")
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
    """The shape of a discriminator; its number of blocks tells the number of levels.

    Args:
        tensors: published name to tensor.
        side: N, the full image side.

    Raises:
        UnknownArchitecture: not a discriminator.
    """
    blocks = len(_matches(tensors, r"body\.\d+\.conv0\.weight"))
    # n = log2(N/2^{L-1}) + 1
    levels = side.bit_length() - blocks + 1
    if blocks == 0 or levels < 1:
        raise UnknownArchitecture(f"its discriminator has {blocks} blocks, which fit no image of side {side}")
    label = tensors.get("map_label.weight")
    return DiscriminatorShape(
        side, levels, len(_tensor(tensors, "conv0.weight")), 0 if label is None else label.shape[1]
    )


def load_generator(tensors: Tensors, shape: UNetShape) -> Tensors:
    """A published generator's tensors under our names, all there and of the right shapes.

    Raises:
        UnknownArchitecture: tensors are missing, unknown or of another shape; the first five are named.
    """
    with torch.device("meta"):
        expected = UNet(shape).state_dict()
    return _strict(tensors, generator_names(shape), expected)


def load_discriminator(tensors: Tensors, shape: DiscriminatorShape) -> Tensors:
    """A published discriminator's tensors under our names, all there and of the right shapes.

    Raises:
        UnknownArchitecture: tensors are missing, unknown or of another shape; the first five are named.
    """
    with torch.device("meta"):
        expected = Discriminator(shape).state_dict()
    return _strict(tensors, discriminator_names(shape), expected)


def _strict(tensors: Tensors, names: dict[str, str], expected: Tensors) -> Tensors:
    wanted = {_published(name, names): tensor.shape for name, tensor in expected.items()}
    given = {name: tensor.shape for name, tensor in tensors.items() if name.rpartition(".")[2] != FILTER}
    problems = [
        ("tensors are missing", [name for name in wanted if name not in given]),
        ("tensors are unknown", [name for name in given if name not in wanted]),
        (
            "tensors have another shape",
            [
                f"{name} {tuple(given[name])} for {tuple(wanted[name])}"
                for name in wanted
                if name in given and given[name] != wanted[name]
            ],
        ),
    ]
    told = [f"{len(found)} {what}: {_shown(found)}" for what, found in problems if found]
    if told:
        raise UnknownArchitecture("; ".join(told))
    cast = [name for name in given if tensors[name].dtype not in FLOATS]
    if cast:
        raise UnknownArchitecture(f"{len(cast)} tensors are not floating-point: {_shown(cast)}")
    broken = [name for name in given if not torch.isfinite(tensors[name]).all()]
    if broken:
        raise UnknownArchitecture(f"{len(broken)} tensors are not finite: {_shown(broken)}")
    return from_published(tensors, names)


def _published(name: str, names: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{names[module]}.{FREQUENCIES if kind == 'frequencies' else kind}"


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _family(tensors: Tensors) -> str:
    if "net.out_conv.weight" in tensors:
        return "adm"
    return "ncsnpp" if f"net.map_noise.{FREQUENCIES}" in tensors else "ddpmpp"


def _matches(tensors: Tensors, pattern: str) -> list[re.Match[str]]:
    return [found for found in (re.fullmatch(pattern, name) for name in tensors) if found]


def _only(tensors: Tensors, pattern: str, what: str) -> re.Match[str]:
    found = _matches(tensors, pattern)
    if len(found) != 1:
        raise UnknownArchitecture(
            f"no generator of NCSN++, DDPM++ or ADM: it has {len(found) or 'no'} {what.removeprefix('a ')}, among "
            f"{len(tensors)} tensors such as {_shown(list(tensors)[:2])}"
        )
    stem = tensors[found[0].string]
    if stem.ndim != 4 or stem.shape[1] != IMAGE_CHANNELS:
        raise UnknownArchitecture(
            f"{found[0].string} has shape {tuple(stem.shape)}; expected (C, {IMAGE_CHANNELS}, 3, 3)"
        )
    return found[0]


def _tensor(tensors: Tensors, name: str) -> torch.Tensor:
    if name not in tensors:
        raise UnknownArchitecture(f"1 tensors are missing: {name}")
    return tensors[name]
