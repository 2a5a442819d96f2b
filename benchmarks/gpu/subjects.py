"""Networks, runs and data that the checks use."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from udpm.bench.data import random_levels
from udpm.config import RunConfig
from udpm.config.load import resolve_run, validate
from udpm.data.levels import Levels, write_cache
from udpm.data.prepare import prepare
from udpm.networks.unet import build_generator
from udpm.networks.weights import Model

CONFIG = Path(__file__).parents[2] / "config"
IMAGES = 1000

SMALL = {
    "generator__channel_multipliers": [1, 2],
    "generator__blocks": 1,
    "discriminator__dropout": 0.0,
    "losses__lpips_weight": 0.0,
    "losses__r1_gamma": 0.5,
    "training__iterations": 1000,
    "training__warmup": 0,
    "training__learning_rate": 1e-3,
    "training__precision": "float32",
    "training__flip": True,
}
WIDE = {
    "generator__channels": 32,
    "generator__attention": [8],
    "discriminator__channels": 32,
    "training__batch": 16,
}
NARROW = {"generator__channels": 8, "discriminator__channels": 8, "training__batch": 4}


@dataclass(frozen=True)
class Digits:
    """The embedded data set, prepared.

    Attributes:
        dataset: its folder.
        cache: the folder of its level caches.
    """

    dataset: Path
    cache: Path


def prepare_digits(folder: Path) -> Digits:
    """Prepare the embedded data set; needs scikit-learn."""
    config = resolve_run("digits-paper", 0, CONFIG)
    with redirect_stdout(io.StringIO()):
        prepare(config.dataset, folder / "dataset")
        write_cache(folder / "dataset", folder / "cache")
    return Digits(folder / "dataset", folder / "cache")


def experiment(name: str, **changes: Any) -> RunConfig:
    """A shipped experiment's run, changed.

    Args:
        name: of the experiment.
        changes: new values by dotted key, with "__" for the dots.
    """
    values = resolve_run(name, 0, CONFIG).model_dump()
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = values
        for parent in parents:
            section = section[parent]
        section[last] = value
    return validate(RunConfig, values, name)


def small_run(device: torch.device, *, wide: bool, **changes: Any) -> RunConfig:
    """A run with small networks: R1 at all levels, no LPIPS, no dropout.

    Args:
        device: that it trains on.
        wide: the CIFAR-10 experiment with 32 channels, enough for a GPU; else the digits' with 8.
        changes: as `experiment` takes them.
    """
    name, sizes = ("cifar10", WIDE) if wide else ("digits-paper", NARROW)
    return experiment(name, **SMALL | sizes | {"training__device": device.type} | changes)


def random_data(folder: Path, config: RunConfig) -> Levels:
    """Random images of the side that a run trains on, labelled at random."""
    folder.mkdir(parents=True, exist_ok=True)
    levels = random_levels(folder, config.dataset.side, config.process.levels, IMAGES)
    levels.store.labels[:] = np.random.default_rng(1).integers(0, max(config.classes, 1), IMAGES)
    return levels


def wake(network: nn.Module) -> nn.Module:
    """Randomize all convolutions: the last ones of a fresh network are nearly zero."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            values = torch.randn(module.weight.shape, generator=generator) * fan_in**-0.5
            with torch.no_grad():
                module.weight.copy_(values)
    return network


def awake_model(config: RunConfig, device: torch.device) -> Model:
    """A generator of a run's shape with random weights, the same on every device."""
    torch.manual_seed(0)
    generator = wake(build_generator(config.model)).eval().requires_grad_(False)
    return Model(generator.to(device), config.model, {})


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖, in double precision on the CPU; infinite where a value is not finite."""
    one, other = (value.detach().to("cpu", torch.float64) for value in (found, expected))
    if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        return float("inf")
    return ((one - other).norm() / other.norm().clamp(min=1e-30)).item()
