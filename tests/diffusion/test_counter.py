"""Noise from a counter: Philox's published vectors, the counter's layout and limits, Box-Muller, statistics."""

import math
import random

import pytest
import torch

from udpm.core.errors import UserError
from udpm.diffusion import counter
from udpm.diffusion.counter import PURPOSES, Draw, another, counted, normal, philox, uniform
from udpm.diffusion.schedule import Schedule

PAPER = Schedule((0.5, 0.2, 1e-3), (0.1, 0.2, 0.3))
WORD = 2**32 - 1
KNOWN = [
    # Of Random123's kat_vectors, for philox4x32 with 10 rounds: counter, key, result.
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def by_hand(block, key):
    """Philox4x32-10 in Python's integers."""
    zero, one, two, three = block
    first, second = key
    for _ in range(10):
        high, low = divmod(0xD2511F53 * zero, 2**32)
        upper, lower = divmod(0xCD9E8D57 * two, 2**32)
        zero, one, two, three = upper ^ one ^ first, lower, high ^ three ^ second, low
        first, second = (first + 0x9E3779B9) & WORD, (second + 0xBB67AE85) & WORD
    return zero, one, two, three


@pytest.mark.parametrize(("block", "key", "expected"), KNOWN)
def test_published_vectors(block, key, expected):
    found = philox([torch.tensor([word]) for word in words(block)], tuple(words(key)))
    assert [word.item() for word in found] == words(expected)
    assert list(by_hand(words(block), words(key))) == words(expected)


def test_many_counters_at_once():
    """Among them words at both ends of their range, where products are largest."""
    draw = random.Random(0)
    blocks = [[draw.choice([0, 1, 2**31 - 1, 2**31, WORD, draw.getrandbits(32)]) for _ in range(4)] for _ in range(500)]
    key = draw.getrandbits(32), draw.getrandbits(32)
    kept = torch.tensor(blocks)
    found = torch.stack(philox(kept.T, key), dim=1)
    assert found.tolist() == [list(by_hand(block, key)) for block in blocks]
    # The counter is only read.
    assert kept.tolist() == blocks


def value(seed, image, purpose, step, place):
    """A normal number by the documented layout, in Python's numbers."""
    block = [PURPOSES.index(purpose) * 2**26 + place // 4, image, step & WORD, step >> 32]
    found = by_hand(block, (seed & WORD, seed >> 32))
    first, second = found[place % 4 // 2 * 2 :][:2]
    radius, angle = math.sqrt(-2 * math.log((first + 0.5) / 2**32)), math.tau * second / 2**32
    return radius * (math.sin if place % 2 else math.cos)(angle)


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
def test_the_layout_is_the_documented_one(seed):
    draws = [Draw("generator: state", (3, 3, 3), 7), Draw("eps", (2, 2), 2**62 + 3), Draw("base", ())]
    found = normal(seed, range(2**32 - 3, 2**32), draws)
    assert [tuple(values.shape) for values in found] == [(3, 3, 3, 3), (3, 2, 2), (3,)]
    assert all(values.dtype == torch.float32 and values.is_contiguous() for values in found)
    for draw, values in zip(draws, found, strict=True):
        expected = [
            [value(seed, image, draw.purpose, draw.step, place) for place in range(math.prod(draw.shape))]
            for image in range(2**32 - 3, 2**32)
        ]
        torch.testing.assert_close(values.flatten(1) if draw.shape else values[:, None], torch.tensor(expected))
    drawn = uniform(seed, range(9, 11), Draw("generator: fake transform", (14,), 8))
    for image, numbers in zip((9, 10), drawn.tolist(), strict=True):
        block = [PURPOSES.index("generator: fake transform") * 2**26 + 3, image, 8, 0]
        assert numbers[12:] == [word / 2**32 for word in by_hand(block, (seed & WORD, seed >> 32))[:2]]


@pytest.mark.parametrize(
    ("seed", "images", "draw", "expected"),
    [
        (2**64, range(1), Draw("base", (1,)), r"seed must be below 18446744073709551616, got 18446744073709551616"),
        (-1, range(1), Draw("base", (1,)), "seed must be below 18446744073709551616, got -1"),
        (
            0,
            range(2**32, 2**32 + 1),
            Draw("base", (1,)),
            "position of an image must be below 4294967296, got 429496729",
        ),
        (0, range(0), Draw("eps", (2**28 + 1,)), "number of values of eps per image must be below 268435457, got"),
        (0, range(1), Draw("eps", (1,), 2**64), "step of eps must be below 18446744073709551616"),
        (0, range(1), Draw("eps", (1,), -1), "step of eps must be below 18446744073709551616, got -1"),
    ],
)
def test_a_counter_without_room_is_refused(seed, images, draw, expected):
    for call in (lambda: normal(seed, images, [draw]), lambda: uniform(seed, images, draw)):
        with pytest.raises(UserError, match=expected) as raised:
            call()
        assert str(raised.value).startswith("noise of kind counter: ")
        assert str(raised.value).endswith("; use the kind host")


def test_purposes_fit_beside_the_largest_block():
    assert len(set(PURPOSES)) == len(PURPOSES) <= 2 ** (32 - counter.BLOCK_BITS)


def test_numbers_of_purposes_stay():
    """Another order would change the noise of every run."""
    assert {
        name: PURPOSES.index(name) for name in ("base", "another z", "discriminator: state", "generator: state")
    } == {
        "base": 0,
        "another z": 4,
        "discriminator: state": 5,
        "generator: state": 11,
    }


def test_neither_batch_nor_pass_changes_a_bit(monkeypatch):
    draws = [Draw("base", (3, 32, 32)), Draw("eps", (3, 5, 7), 2)]
    whole = normal(3, range(60), draws)
    for start, stop, at_once in ((0, 1, 1 << 18), (1, 2, 16), (17, 60, 1000), (59, 60, 7)):
        monkeypatch.setattr(counter, "AT_ONCE", at_once)
        for draw, values in zip(draws, whole, strict=True):
            assert torch.equal(normal(3, range(start, stop), [draw])[0], values[start:stop])


def test_a_latent_has_the_maps_of_the_chain():
    latent = counted(PAPER, 16, 5, range(2, 5), 2)
    assert latent.base.shape == (3, 3, 16, 16)
    assert [tuple(values.shape) for values in latent.noises] == [(3, 3, 2, 2), (3, 3, 4, 4), (3, 3, 8, 8)]
    assert [tuple(values.shape) for values in latent.inputs] == [(3, 2, 2, 2), (3, 2, 4, 4), (3, 2, 8, 8)]
    without = counted(PAPER, 16, 5, range(4, 5))
    assert torch.equal(without.base, latent.base[2:])
    assert torch.equal(without.noise(2), latent.noise(2)[2:])
    assert without.inputs == ()


def correlation(first, second):
    return (first.flatten() * second.flatten()).mean().item()


def test_statistics():
    """With fixed seeds; bounds are four standard errors."""
    values = normal(0, range(200), [Draw("eps", (3, 64, 64), 1)])[0].double()
    near = 4 / math.sqrt(values.numel())
    assert abs(values.mean()) < near
    assert abs(values.var() - 1) < near * math.sqrt(2)
    assert abs((values**3).mean()) < near * math.sqrt(15)
    assert abs((values**4).mean() - 3) < near * math.sqrt(96)
    ordered = values.flatten().sort().values
    steps = torch.arange(len(ordered), dtype=torch.float64) / len(ordered)
    # The Kolmogorov-Smirnov statistic.
    assert (0.5 * (1 + torch.erf(ordered / math.sqrt(2))) - steps).abs().max() < near / 2
    others = {
        "right": (values[..., 1:], values[..., :-1]),
        "pair of a block": (values[..., 1::2], values[..., ::2]),
        "down": (values[..., 1:, :], values[..., :-1, :]),
        "channel": (values[:, 1:], values[:, :-1]),
        "image": (values[1:], values[:-1]),
        "seed": (values, normal(1, range(200), [Draw("eps", (3, 64, 64), 1)])[0].double()),
        "level": (values, normal(0, range(200), [Draw("eps", (3, 64, 64), 2)])[0].double()),
        "purpose": (values, normal(0, range(200), [Draw("z", (3, 64, 64), 1)])[0].double()),
    }
    for name, (one, other) in others.items():
        assert abs(correlation(one, other)) < 4 / math.sqrt(one.numel()), name
        # Squares of values that share a radius, or bits of a counter, would be correlated.
        assert abs(correlation(one**2 - 1, other**2 - 1)) < 8 / math.sqrt(one.numel()), name


def test_another_map_is_unlike_the_own_one_and_the_others():
    own = counted(PAPER, 64, 0, range(1), 3)
    maps = [own.noise(1), own.input(1)]
    maps += [another(0, kind, 1, (3, 32, 32), number) for kind in ("eps", "z") for number in (0, 1, 300)]
    assert all(found.shape == (1, 3, 32, 32) for found in maps)
    for index, found in enumerate(maps):
        for other in maps[:index]:
            assert abs(correlation(found, other)) < 4 / math.sqrt(found.numel())


def test_uniform_numbers():
    drawn = uniform(0, range(5000), Draw("generator: fake transform", (14,)))
    near = 4 / math.sqrt(12 * drawn.numel())
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < near
    assert drawn[:, 0].unique().numel() == 5000


def test_all_tensors_are_on_the_device():
    """Operations that mix devices fail; a device without contents shows it on any machine."""
    found = normal(0, range(3), [Draw("eps", (3, 5, 7), 2), Draw("base", (3, 8, 8))], "meta")
    assert {values.device.type for values in found} == {"meta"}


@pytest.mark.gpu
def test_a_gpu_draws_the_numbers_of_a_cpu():
    draws = [Draw("base", (3, 64, 64)), Draw("eps", (3, 5, 7), 2)]
    for found, expected in zip(normal(3, range(100), draws, "cuda"), normal(3, range(100), draws), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=2e-7, atol=1e-12)
        assert (found.cpu() == expected).double().mean() > 0.9999
