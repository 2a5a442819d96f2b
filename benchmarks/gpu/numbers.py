"""Numerics: a GPU computes what a CPU computes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch

from benchmarks.gpu.checks import Check, Session, expect
from benchmarks.gpu.subjects import difference, wake
from udpm.core import devices
from udpm.diffusion import counter
from udpm.diffusion.process import adjoint, downsample, noise_sides, posterior, project, sample
from udpm.diffusion.schedule import Schedule
from udpm.networks.discriminator import build_discriminator
from udpm.networks.inference import Precision, prepare_for_inference
from udpm.networks.unet import UNet, UNetShape

FAMILIES = ("ncsnpp", "ddpmpp", "adm")
SIDES = (16, 8, 4)
SEVERAL = 4
FLOAT32 = 1e-4
"""Tolerance for a float32 network, relative to the norm of its output; TF32 differs by more."""
CHAIN = 1e-3
"""Tolerance for several networks in a row."""
BFLOAT16 = 0.06
PLAIN = 1e-6
"""Tolerance for arithmetic without long sums."""
TF32_FROM = 5e-5
"""Products of TF32 inputs differ by more than this, those of float32 inputs by less."""
PRODUCT = 1024


def _switch(session: Session) -> str:
    """Check that products use TF32 only if the configuration allows it."""
    one, other = (torch.randn(PRODUCT, PRODUCT, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    exact = one.double() @ other.double()
    errors = []
    for tf32 in (False, True):
        device = session.set_up(tf32=tf32)
        expect(devices.uses_tf32(device) == (tf32 and session.on_gpu), "the TF32 switch has no effect")
        errors.append(difference(one.to(device) @ other.to(device), exact))
    expect(errors[0] < TF32_FROM, f"products of float32 differ by {errors[0]:.1e}")
    return f"float32 products are off by {errors[0]:.1e}, with TF32 by {errors[1]:.1e}"


def _network(family: str, channels: int) -> UNet:
    torch.manual_seed(0)
    shape = UNetShape(family, SIDES[0], channels, (1, 2), 1, attention=(8,), classes=10)
    return wake(UNet(shape)).eval().requires_grad_(False)


def _inputs(side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn((SEVERAL, 3, side, side), generator=draw), torch.randint(0, 10, (SEVERAL,), generator=draw)


@torch.inference_mode()
def _f(session: Session, family: str, precision: Precision) -> str:
    """Compare outputs of a network at every side with the CPU's float32 outputs."""
    # Heads of adm have 64 channels, and attention twice as many as the network's width.
    expected = _network(family, 64 if session.full else 32 if family == "adm" else 8)
    found = prepare_for_inference(deepcopy(expected).to(session.device), precision)
    limit, differences = FLOAT32 if precision == "float32" else BFLOAT16, []
    for level, side in enumerate(SIDES, start=1):
        x, labels = _inputs(side, level)
        time = (level - 0.5) / len(SIDES)
        output = found(x.to(session.device), time, labels.to(session.device))
        expect(output.dtype == torch.float32, f"the output is {output.dtype}")
        differences.append(difference(output, expected(x, time, labels)))
    shown = ", ".join(f"{value:.1e}" for value in differences)
    return expect(max(differences) <= limit, f"differ by {shown} at sides {SIDES} (at most {limit:g})")


@torch.inference_mode()
def _chain(session: Session) -> str:
    """Compare whole chains with either posterior."""
    schedule, differences = Schedule((0.5, 0.2, 1e-3), (0.1, 0.2, 0.3)), []
    expected = _network("ncsnpp", 32 if session.full else 8)
    found = deepcopy(expected).to(session.device)
    draw = torch.Generator().manual_seed(0)
    base, *noises = [torch.randn(SEVERAL, 3, side, side, generator=draw) for side in (32, *noise_sides(schedule, 32))]
    labels = torch.arange(SEVERAL)
    for form in ("scalar", "exact"):
        there = [value.to(session.device) for value in noises]
        ours = sample(schedule, found, base.to(session.device), there, labels.to(session.device), form)
        theirs = sample(schedule, expected, base, noises, labels, form)
        differences += [difference(one.output, other.output) for one, other in zip(ours, theirs, strict=True)]
    worst = max(differences)
    return expect(worst <= CHAIN, f"outputs of all levels, both posteriors, differ by {worst:.1e} (at most {CHAIN:g})")


def _arithmetic(device: torch.device) -> Iterator[tuple[str, float]]:
    """H, Hᵀ, P and the posterior, by name."""
    x, noise = _inputs(32)[0], _inputs(32, 1)[0]
    state, schedule = _inputs(16, 2)[0], Schedule((0.5, 0.2, 1e-3), (0.1, 0.2, 0.3))
    there = [value.to(device) for value in (x, noise, state)]
    yield "H", difference(downsample(there[0], 2, 3), downsample(x, 2, 3))
    yield "Hᵀ", difference(adjoint(there[0], 2, 2), adjoint(x, 2, 2))
    yield "P", difference(project(there[0]), project(x))
    for form in ("scalar", "exact"):
        for level in (2, 3):
            found = posterior(schedule, there[2], there[0], level, form).draw(there[1])
            yield "posterior", difference(found, posterior(schedule, state, x, level, form).draw(noise))


def _process(session: Session) -> str:
    found: dict[str, float] = {}
    for name, value in _arithmetic(session.device):
        found[name] = max(value, found.get(name, 0.0))
    shown = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    return expect(max(found.values()) <= PLAIN, f"{shown} (at most {PLAIN:g})")


def _discriminator(session: Session) -> str:
    """D's outputs and the gradient that R1 squares."""
    torch.manual_seed(0)
    config = session.small_run()
    expected = build_discriminator(config)
    found = deepcopy(expected).to(session.device)
    differences = []
    for level, side in enumerate((32, 16, 8), start=1):
        x, labels = _inputs(side, level)
        results = []
        for network, device in ((found, session.device), (expected, torch.device("cpu"))):
            real = x.to(device).requires_grad_(True)
            logits = network(real, (level - 0.5) / 3, labels.to(device), 0.0, None)
            (gradient,) = torch.autograd.grad(logits.sum(), real)
            results.append((logits, gradient))
        differences += [difference(ours, theirs) for ours, theirs in zip(*results, strict=True)]
    worst = max(differences)
    return expect(worst <= CHAIN, f"outputs and gradients differ by {worst:.1e} (at most {CHAIN:g})")


def _noise(session: Session) -> str:
    """Noise of a counter: words are equal, normal numbers up to the last bit."""
    draws = [counter.Draw("base", (3, 64, 64)), counter.Draw("eps", (3, 5, 7), 2)]
    found = [counter.normal(0, range(100), draws, place) for place in (session.device, "cpu")]
    ours, theirs = (torch.cat([values.cpu().flatten() for values in drawn]) for drawn in found)
    off, worst = int((ours != theirs).sum()), difference(ours, theirs)
    return expect(worst <= PLAIN, f"{off} of {len(ours)} numbers differ, by {worst:.1e} (at most {PLAIN:g})")


CHECKS = [
    Check("numbers", "TF32 only if allowed", _switch),
    Check("numbers", "noise of a counter is the CPU's", _noise),
    Check("numbers", "H, its adjoint and the posterior match the CPU's", _process),
    *(
        Check(
            "numbers",
            f"f of {family} in {precision} matches the CPU's",
            partial(_f, family=family, precision=precision),
        )
        for family in FAMILIES
        for precision in ("float32", "bfloat16")
    ),
    Check("numbers", "the sampling chain matches the CPU's", _chain),
    Check("numbers", "D and its gradient match the CPU's", _discriminator),
]
