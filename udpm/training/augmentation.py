"""Random transforms of what the discriminator sees, of the same law for real and generated images.

As in DiffAugment (Zhao et al. 2020), gradients flow through them. As in ADA (Karras et al. 2020), each has a
probability, so that images as they are stay the most frequent ones.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from udpm.config.training import Augmentation
from udpm.core.errors import UserError
from udpm.data.levels import Levels

GEOMETRY = 7
"""Parameters of an image's geometry: mirrored (1 or 0), pixels down and to the right; the square that is cut out as its
first row and column and those after its last."""
COLOURS = 3
"""Parameters of its colours: what is added to it, to its saturation and to its contrast."""
DRAWS = 14
"""Uniform numbers that the parameters of an image are made from."""


def parameter_count(section: Augmentation) -> int:
    """Return the number of an image's parameters, 0 without transforms."""
    return (GEOMETRY + (COLOURS if section.colour else 0)) if section.transforms else 0


def probability_at(section: Augmentation, iteration: int) -> float:
    """Return the probability of each transform in an iteration, counted from 0."""
    risen = min(iteration / section.ramp, 1.0) if section.ramp else 1.0
    return section.probability * (1 - math.cos(math.pi * risen)) / 2


def draw_parameters(section: Augmentation, side: int, probability: float, uniform: torch.Tensor) -> torch.Tensor:
    """Make the parameters of random transforms of images of a side.

    Args:
        section: which transforms.
        side: of the images in pixels.
        probability: of each transform.
        uniform: (B, `DRAWS`) numbers in [0, 1).

    Returns:
        (B, `parameter_count`) float32.
    """
    happens, value = (uniform[:, :6] < probability).to(uniform.dtype), uniform[:, 6:]
    shift, cut = _pixels(section.translation, side), _pixels(section.cutout, side)
    mirrored = happens[:, :1] * (value[:, :1] < 0.5) * section.flip
    shifts = happens[:, 1:2] * (torch.floor(value[:, 1:3] * (2 * shift + 1)) - shift)
    # The centre is anywhere in the image, so that the square may be cut off by its edge.
    first = torch.floor(value[:, 3:5] * (side + 1 - cut % 2)) - cut // 2
    parts = [mirrored, shifts, first, first + cut * happens[:, 2:3]]
    if section.colour:
        ranges = section.colour * uniform.new_tensor([0.5, 1.0, 0.5])
        parts.append(happens[:, 3:] * ranges * (2 * value[:, 5:] - 1))
    return torch.cat(parts, dim=1).float()


def _pixels(fraction: float, side: int) -> int:
    return max(1, round(fraction * side)) if fraction else 0


def transform(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Transform images (B, 3, H, W) by their parameters; differentiable any number of times, of the same shapes."""
    if parameters.shape[1] > GEOMETRY:
        images = _recolour(images, parameters[:, GEOMETRY:])
    return move(images, parameters)


def move(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Mirror and shift images (B, C, H, W), and cut out squares; pixels that are shifted in or cut out are 0."""
    height, width = images.shape[-2:]
    mirrored, down, right, top, left, bottom, far = parameters[:, :GEOMETRY].long()[..., None].unbind(1)
    row, column = (torch.arange(count, device=images.device) for count in (height, width))
    from_row, from_column = row - down, column - right
    known_row, known_column = _within(from_row, 0, height), _within(from_column, 0, width)
    from_column = torch.where(mirrored > 0, width - 1 - from_column, from_column)
    source = from_row.clamp(0, height - 1)[:, :, None] * width + from_column.clamp(0, width - 1)[:, None]
    moved = images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    cut = _within(row, top, bottom)[:, :, None] & _within(column, left, far)[:, None]
    known = known_row[:, :, None] & known_column[:, None] & ~cut
    return moved.view(images.shape) * known[:, None]


def move_state(state: torch.Tensor, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Move states x_l (B, 3, h, w) as images of another side (B, 3, H, W) are, at that side."""
    return move(F.interpolate(state, size=images.shape[-2:], mode="nearest"), parameters)


def _within(value: torch.Tensor, first: int | torch.Tensor, end: int | torch.Tensor) -> torch.Tensor:
    return (value >= first) & (value < end)


def _recolour(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    brightness, saturation, contrast = parameters[..., None, None, None].unbind(1)
    images = images + brightness
    images = images + saturation * (images - images.mean(dim=1, keepdim=True))
    return images + contrast * (images - images.mean(dim=(1, 2, 3), keepdim=True))


def check_colours(section: Augmentation, levels: Levels) -> None:
    """Check that a data set whose colours are transformed has any.

    Raises:
        UserError: all its images were stored as grey ones.
    """
    modes = levels.store.record.get("preprocessing", {}).get("modes", {})
    if section.colour and modes and all(mode.startswith(("1", "L", "I")) for mode in modes):
        folder = levels.store.folder
        raise UserError(f"losses.augmentation.colour: {section.colour:g}, but all images in {folder} are grey; use 0")
