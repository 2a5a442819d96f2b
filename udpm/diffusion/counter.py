"""Noise as a function of its place: Philox4x32-10, which has no state, and Box-Muller, on any device.

Ten rounds of multiplications turn a counter and a key into four words of 32 bits (Salmon, Moraes, Dror, Shaw: Parallel
random numbers: as easy as 1, 2, 3. SC 2011). The key is the seed. The counter names the numbers to draw:

    word 0    place in the map: block b, of the values 4b … 4b + 3 of one image, and 2^26 times the map's purpose
    word 1    image: its number in a sample set, or its position in the global batch of a training
    words 2, 3    step, low word first: the iteration of a training; a level l, plus 256 times the number of a
        perturbation, in sampling

So no two draws share a counter, and a part of a batch is drawn without the rest. Beyond these limits a draw is refused:
a seed below 2^64, 2^32 images, 2^28 values of a map per image, and a step below 2^64.

Words are equal on every device. Normal numbers are computed in float64 and rounded to float32, which hides the last
bits, in which devices and the ends of vectors differ, in all but about one of 10^8 numbers; and float64 keeps all 32
bits of a word, so that the smallest radius is 1.5e-5 instead of 3e-4. The largest is 6.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from udpm.core.errors import UserError
from udpm.diffusion.process import Latent, latent_of, latent_shapes
from udpm.diffusion.schedule import Schedule

NoiseKind = Literal["host", "counter"]
"""host: PyTorch's generator, on the CPU; counter: this module's, on the device."""

PURPOSES = (
    *("base", "eps", "z", "another eps", "another z"),
    *("discriminator: state", "discriminator: fake", "discriminator: real", "discriminator: latent"),
    *("discriminator: fake transform", "discriminator: real transform"),
    *("generator: state", "generator: fake", "generator: real", "generator: latent"),
    *("generator: state of further draws", "generator: fake transform", "generator: real transform"),
    "generator: hidden labels",
)
"""Purposes of numbers; the index is part of the counter. New ones go to the end, or all noise would change."""

BLOCK_BITS = 26
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF
AT_ONCE = 1 << 18
"""Blocks that one pass computes: 2 MiB for each of its int64 words."""


class Draw(NamedTuple):
    """Numbers of one purpose for each image: `shape` without the image's axis; `step` as in the counter."""

    purpose: str
    shape: tuple[int, ...]
    step: int = 0


def philox(
    counter: Sequence[torch.Tensor], key: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute Philox4x32-10.

    Args:
        counter: words 0 to 3, int64 tensors of one shape with values below 2^32.
        key: words 0 and 1.

    Returns:
        Four random words for each counter, like the counter's.
    """
    zero, one, two, three = counter
    for turn in range(ROUNDS):
        first, second = (word + turn * step & WORD for word, step in zip(key, WEYL, strict=True))
        high_zero, low_zero = _product(zero, MULTIPLIERS[0])
        high_two, low_two = _product(two, MULTIPLIERS[1])
        zero, one = high_two.bitwise_xor_(one).bitwise_xor_(first), low_two
        two, three = high_zero.bitwise_xor_(three).bitwise_xor_(second), low_zero
    return zero, one, two, three


def _product(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and the low word of a product of two words of 32 bits, the second at least 2^31."""
    # The whole product may not fit into int64. That with multiplier - 2^32 does; it has the same low word, and a high
    # word that is smaller by `word`, since shifts round down.
    product = word * (multiplier - (1 << 32))
    return (product >> 32).add_(word), product.bitwise_and_(WORD)


def normal(seed: int, images: range, draws: Sequence[Draw], device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """Draw standard normal numbers.

    Words 0 and 1 give a radius √(-2 ln u) and an angle 2πv, u = (word 0 + ½)/2^32 and v = word 1/2^32, and with cosine
    and sine two values of a block; words 2 and 3 give the other two.

    Args:
        seed: the key.
        images: their numbers or positions.
        draws: of different purpose or step.
        device: of the result.

    Returns:
        For each draw, (n, *shape) float32, n the number of images.

    Raises:
        UserError: the counter has no room for a number.
    """
    counter, sizes = _counter(seed, images, draws, device)
    values = torch.empty(counter.shape[1], 2, 2, device=device)
    for part, out in zip(counter.split(AT_ONCE, dim=1), values.split(AT_ONCE), strict=True):
        words = philox(part.unbind(), _key(seed))
        for pair in range(2):
            # In double precision, u is exact and never 0.
            radius = words[2 * pair].double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
            angle = words[2 * pair + 1].double().mul_(math.tau * 2.0**-32)
            out[:, pair, 0] = angle.cos().mul_(radius)
            out[:, pair, 1] = angle.sin_().mul_(radius)
    return _shaped(values.flatten(), images, draws, sizes)


def uniform(seed: int, images: range, draw: Draw) -> torch.Tensor:
    """Draw uniform numbers, one of each word, word/2^32, (n, *shape) float64 in [0, 1), on the CPU.

    Raises:
        UserError: the counter has no room for a number.
    """
    counter, sizes = _counter(seed, images, [draw], "cpu")
    words = torch.stack(philox(counter.unbind(), _key(seed)), dim=1)
    return _shaped(words.flatten().double().mul_(2.0**-32), images, [draw], sizes)[0]


def counted(
    schedule: Schedule,
    side: int,
    seed: int,
    numbers: range,
    channels: int = 0,
    device: torch.device | str = "cpu",
) -> Latent:
    """Draw the latents of numbered images on a device, as `udpm.diffusion.process.seeded` does on the CPU.

    Raises:
        UserError: the counter has no room for a number.
    """
    levels = range(schedule.levels, 0, -1)
    purposes = [("base", 0), *(("eps", level) for level in levels)]
    purposes += [("z", level) for level in levels] if channels else []
    shapes = latent_shapes(schedule, side, channels)
    draws = [Draw(purpose, shape, level) for (purpose, level), shape in zip(purposes, shapes, strict=True)]
    return latent_of(normal(seed, numbers, draws, device), schedule.levels)


def another(
    seed: int, kind: str, level: int, shape: tuple[int, ...], number: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw another map ε_l (kind "eps") or z_l ("z") of an image's shape, (1, *shape); its own is not among them.

    Raises:
        UserError: the counter has no room for a number.
    """
    return normal(seed, range(1), [Draw(f"another {kind}", shape, level + 256 * number)], device)[0]


def _key(seed: int) -> tuple[int, int]:
    return seed & WORD, seed >> 32


def _counter(
    seed: int, images: range, draws: Sequence[Draw], device: torch.device | str
) -> tuple[torch.Tensor, list[int]]:
    """Return all counters, (4, blocks) int64, of one draw after the other, and the blocks per image of each draw."""
    _check("seed", seed, 1 << 64)
    _check("number or position of an image", max(images, default=0), 1 << 32)
    for draw in draws:
        _check(f"number of values of {draw.purpose} per image", math.prod(draw.shape), (4 << BLOCK_BITS) + 1)
        _check(f"step of {draw.purpose}", draw.step, 1 << 64)
    sizes = [-(-math.prod(draw.shape) // 4) for draw in draws]
    counter = torch.empty(4, len(images) * sum(sizes), dtype=torch.int64, device=device)
    numbers = torch.arange(images.start, images.stop, device=device)
    parts = counter.split([len(images) * size for size in sizes], dim=1)
    for draw, size, part in zip(draws, sizes, parts, strict=True):
        first = PURPOSES.index(draw.purpose) << BLOCK_BITS
        part[0].view(len(images), size).copy_(torch.arange(first, first + size, device=device))
        part[1].view(len(images), size).copy_(numbers[:, None])
        part[2].fill_(draw.step & WORD)
        part[3].fill_(draw.step >> 32)
    return counter, sizes


def _check(what: str, value: int, end: int) -> None:
    if not 0 <= value < end:
        raise UserError(f"noise of kind counter: {what} must be below {end}, got {value}; use the kind host")


def _shaped(values: torch.Tensor, images: range, draws: Sequence[Draw], sizes: list[int]) -> list[torch.Tensor]:
    """Cut values of whole blocks into the draws, and drop those that a map does not need."""
    count = len(images)
    return [
        part.view(count, 4 * size)[:, : math.prod(draw.shape)].reshape(count, *draw.shape).contiguous()
        for draw, size, part in zip(draws, sizes, values.split([4 * count * size for size in sizes]), strict=True)
    ]
