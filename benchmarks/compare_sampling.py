"""Drawing images the plain way and ours, in turn; and with each gain switched over alone."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from benchmarks.baseline_sampling import SamplingGains, SwitchedSampler, sampling_ways
from benchmarks.gains import PLAIN, gain_by_gain
from udpm.bench.measure import ceilings, in_turn, peak_bytes, speedup
from udpm.bench.record import record, row
from udpm.bench.sampling import work_of
from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.diffusion.schedule import Schedule
from udpm.networks.flops import count_cost
from udpm.networks.unet import build_generator
from udpm.networks.weights import Model

PART = "batch"
TWICE = 2


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
        found = row(PART, name, timings[name], work_of(cost, schedule, batch, way.bfloat16), best)
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


def _fresh(config: RunConfig, device: torch.device) -> Model:
    return Model(build_generator(config.model).eval().requires_grad_(False).to(device), config.model, {})


def _call(model: Model, batch: int, gains: SamplingGains) -> Callable[[], object]:
    # Ways prepare weights each in its own manner, in place.
    sampler = SwitchedSampler(replace(model, generator=deepcopy(model.generator)), batch, gains)
    return lambda: sampler.sample(batch)
