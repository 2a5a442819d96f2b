"""How fast images are drawn on this machine, against one step of a network at the full side."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from udpm.config.experiment import RunConfig
from udpm.core import provenance, runtime
from udpm.core.measure import ceilings, now, paired
from udpm.networks.build import build_generator, generator_shape
from udpm.networks.cost import count_cost
from udpm.networks.serving import Precision, serve
from udpm.networks.unet import IMAGE_CHANNELS, UNet
from udpm.networks.weights import Model
from udpm.process.chain import noise_sides, sample
from udpm.process.schedule import Schedule
from udpm.sampling.plain import sample_plainly
from udpm.sampling.sampler import Sampler

FORMAT = "udpm-speed/1"
COMPARISON = "udpm-comparison/1"
PLAIN = "plain"
LEAST = 2
"""Batches measured at the least, after one that is not."""


def bench_sampling(config: RunConfig, device: torch.device, batch: int, seconds: float) -> dict:
    """Images per second of a whole sampling chain, and of one call of the network built for the full side.

    Networks are freshly initialised: their speed does not depend on their values. They run in float32. Noise is drawn
    beforehand and images stay on the device.

    Args:
        config: of a run.
        device: where to run, as `runtime.configure` gives it.
        batch: images per call.
        seconds: measured for at the least, for either.

    Returns:
        The record: images per second of both, and on what.
    """
    side, shape = config.dataset.side, generator_shape(config.model)
    schedule = Schedule.from_config(config.process)
    generator = build_generator(config.model).eval().to(device)
    noises = [torch.randn(batch, IMAGE_CHANNELS, part, part, device=device) for part in noise_sides(schedule, side)]
    images = torch.randn(batch, IMAGE_CHANNELS, side, side, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if config.model.classes else None
    network = serve(generator)
    chain = _rate(lambda: sample(schedule, network, images, noises, labels), device, batch, seconds)
    full = serve(UNet(replace(shape, side=side, upscale=1)).eval().to(device))
    step = _rate(lambda: full(images, 0.5, labels), device, batch, seconds)
    return {
        "format": FORMAT,
        "experiment": config.experiment,
        "dataset": config.dataset_name,
        "side": side,
        "levels": config.process.levels,
        "batch": batch,
        "precision": "float32",
        "images_per_second": chain,
        "steps_per_second": step,
        "device": runtime.describe(device),
        "provenance": provenance.record(),
    }


def compare_sampling(config: RunConfig, device: torch.device, batch: int, repetitions: int) -> dict[str, Any]:
    """A batch of images, from a seed to bytes: the plain way, and as `udpm sample` draws it, in turn.

    Args:
        config: of a run; networks are freshly initialised.
        device: where to run, as `runtime.configure` gives it.
        batch: images per call.
        repetitions: of each way.

    Returns:
        The record: times and how many times faster than the plain way, what was counted, and the share of what the
        device reaches at best.
    """
    side, schedule = config.dataset.side, Schedule.from_config(config.process)
    generator = build_generator(config.model).eval().requires_grad_(False).to(device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if config.model.classes else None
    precisions: list[Precision] = ["float32", "bfloat16"]
    # Each sampler prepares its network's weights in place.
    samplers = {
        kind: Sampler(Model(deepcopy(generator), config.model, {}), batch=batch, precision=kind) for kind in precisions
    }
    calls: dict[str, Callable[[], object]] = {
        PLAIN: lambda: sample_plainly(schedule, generator, side, labels, batch),
        **{kind: lambda sampler=sampler: sampler.sample(batch) for kind, sampler in samplers.items()},
    }
    measured, best, cost = paired(calls, repetitions, device), ceilings(device), count_cost(config)
    for name, found in measured.items():
        kind = "bfloat16" if name == "bfloat16" else "float32"
        found["images_per_second"] = batch / found["seconds"]["median"]
        found["of_matrix_product"] = 2 * cost.total * batch / found["seconds"]["median"] / best[f"{kind}_flops"]
        found["weight_bytes"] = schedule.levels * cost.generator_parameters * (2 if kind == "bfloat16" else 4)
        found["of_copy"] = found["weight_bytes"] / found["seconds"]["median"] / best["copy_bytes"]
    return {
        "format": COMPARISON,
        "of": "sampling",
        "experiment": config.experiment,
        "batch": batch,
        "multiply_adds": cost.total * batch,
        "ceilings": best,
        "ways": measured,
        "device": runtime.describe(device),
        "provenance": provenance.record(),
    }


def _rate(call: Callable[[], object], device: torch.device, batch: int, seconds: float) -> float:
    """Images per second of a call."""
    with torch.inference_mode():
        call()
        begin, calls = now(device), 0
        while calls < LEAST or now(device) - begin < seconds:
            call()
            calls += 1
        return calls * batch / (now(device) - begin)
