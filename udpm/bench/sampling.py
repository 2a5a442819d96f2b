"""How fast images are drawn on this machine: the plain way and ours, and against one step at the full side."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from udpm.bench.measure import ceilings, in_turn, peak_bytes, repeated, speedup
from udpm.bench.record import PLAIN, Work, gain_by_gain, record, row
from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.diffusion.sampler import noise_sides, sample
from udpm.diffusion.schedule import Schedule
from udpm.networks.build import build_generator, generator_shape
from udpm.networks.flops import Cost, count_cost
from udpm.networks.inference import serve
from udpm.networks.unet import IMAGE_CHANNELS, UNet
from udpm.networks.weights import Model
from udpm.sampling.plain import SamplingGains, SwitchedSampler, sampling_ways

PART = "batch"
TWICE = 2


def bench_sampling(config: RunConfig, device: torch.device, batch: int, seconds: float) -> dict[str, Any]:
    """A whole sampling chain, and one call of the network built for the full side.

    Networks are freshly initialised: their speed does not depend on their values. They run in float32. Noise is drawn
    beforehand and images stay on the device.

    Args:
        config: of a run.
        device: where to run, as `runtime.configure` gives it.
        batch: images per call.
        seconds: measured for, about, for either.

    Returns:
        The record, with images per second of both, medians.
    """
    side, shape = config.dataset.side, generator_shape(config.model)
    schedule, cost, best = Schedule.from_config(config.process), count_cost(config), ceilings(device)
    generator = build_generator(config.model).eval().to(device)
    noises = [torch.randn(batch, IMAGE_CHANNELS, part, part, device=device) for part in noise_sides(schedule, side)]
    images = torch.randn(batch, IMAGE_CHANNELS, side, side, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if config.model.classes else None
    network = serve(generator)
    full = serve(UNet(replace(shape, side=side, upscale=1)).eval().to(device))
    with torch.inference_mode():
        chain = repeated(lambda: sample(schedule, network, images, noises, labels), device, seconds)
        step = repeated(lambda: full(images, 0.5, labels), device, seconds)
    step_work = Work(batch, cost.full_side * batch, 4 * cost.full_side_parameters)
    rows = [
        row("image", "float32", chain, _work(cost, schedule, batch, bfloat16=False), best),
        row("full-side step", "float32", step, step_work, best),
    ]
    return record(
        "sampling",
        device,
        best,
        rows,
        experiment=config.experiment,
        dataset=config.dataset_name,
        side=side,
        levels=config.process.levels,
        batch=batch,
        precision="float32",
        tf32=devices.uses_tf32(device),
        images_per_second=rows[0]["images_per_second"]["median"],
        steps_per_second=rows[1]["images_per_second"]["median"],
    )


def compare_sampling(
    config: RunConfig,
    device: torch.device,
    batch: int,
    repetitions: int,
    *,
    gains: bool = False,
    memory: bool = False,
    compiles: bool = False,
) -> dict[str, Any]:
    """A batch of images, from a seed to bytes: the plain way, and as `udpm sample` draws it, in turn.

    Args:
        config: of a run; networks are freshly initialised.
        device: where to run, as `runtime.configure` gives it.
        batch: images per call.
        repetitions: of each way.
        gains: also switch each gain of the last way off alone.
        memory: also measure each way's peak memory, in a process of its own.
        compiles: also measure the network compiled.

    Returns:
        The record: times and how many times faster than the plain way, what was counted, and the share of what the
        device reaches at best.
    """
    ways = sampling_ways(graphs=device.type == "cuda", compiles=compiles)
    model = _fresh(config, device)
    timings = in_turn({name: _call(model, batch, way) for name, way in ways.items()}, repetitions, device)
    best, cost, schedule = ceilings(device), count_cost(config), Schedule.from_config(config.process)
    rows = []
    for name, way in ways.items():
        found = row(PART, name, timings[name], _work(cost, schedule, batch, way.bfloat16), best)
        rows.append(found | speedup(timings[PLAIN], timings[name]))
        if memory:
            threads = torch.get_num_threads()
            rows[-1]["peak_bytes"] = peak_bytes(draw_twice, config, device.type, threads, batch, way)
    found = record("sampling", device, best, rows, experiment=config.experiment, batch=batch, repetitions=repetitions)
    if gains:
        full = list(ways.values())[-1]
        found["gains"] = gain_by_gain(PART, full, lambda way: _call(model, batch, way), repetitions, device)
    return found


def draw_twice(config: RunConfig, device: str, threads: int, batch: int, gains: SamplingGains) -> None:
    """Draw two batches with some gains; for the memory that it takes."""
    sampler = SwitchedSampler(_fresh(config, devices.configure(device, threads)), batch, gains)
    for _ in range(TWICE):
        sampler.sample(batch)


def sampling_lines(found: dict[str, Any]) -> list[str]:
    """What `bench_sampling` found, as text."""
    return [
        f"{found['images_per_second']:.4g} images/s, {found['steps_per_second']:.4g} full-side steps/s, batches of "
        f"{found['batch']}, {found['device']}"
    ]


def _fresh(config: RunConfig, device: torch.device) -> Model:
    return Model(build_generator(config.model).eval().requires_grad_(False).to(device), config.model, {})


def _call(model: Model, batch: int, gains: SamplingGains) -> Callable[[], object]:
    # Ways prepare weights each in its own manner, in place.
    sampler = SwitchedSampler(replace(model, generator=deepcopy(model.generator)), batch, gains)
    return lambda: sampler.sample(batch)


def _work(cost: Cost, schedule: Schedule, batch: int, bfloat16: bool) -> Work:
    """Of a batch; bytes are the weights, which every call reads at least once."""
    read = schedule.levels * cost.generator_parameters * (2 if bfloat16 else 4)
    return Work(batch, cost.total * batch, read, "bfloat16" if bfloat16 else "float32")
