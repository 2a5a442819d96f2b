"""Sampling with its gains switched one by one, compared with the plain way."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.fft import sample_by_fft
from benchmarks.gains import PLAIN, gain_by_gain, in_turn, peak_bytes, speedup
from udpm.bench.measure import ceilings, record, row
from udpm.bench.networks import work_of
from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.diffusion.process import Latent, SamplingStep
from udpm.diffusion.schedule import Schedule
from udpm.networks.inference import count_cost
from udpm.networks.unet import build_generator
from udpm.networks.weights import Model
from udpm.sampling.sampler import Sampler, Start


@dataclass(frozen=True)
class SamplingGains:
    """Gains of sampling over the plain way, each on or off.

    Attributes:
        pooling: H as average pooling and repeating, instead of products with its spectrum.
        channels_last: weights and feature maps with their channels last.
        inference_mode: torch.inference_mode instead of torch.no_grad.
        bfloat16: the network's convolutions and linear layers, instead of float32.
        graphs: CUDA graphs of the network's calls; no effect on a CPU, nor with `compile`.
        compile: the network by torch.compile.
    """

    pooling: bool = False
    channels_last: bool = False
    inference_mode: bool = False
    bfloat16: bool = False
    graphs: bool = False
    compile: bool = False


def sampling_ways(*, graphs: bool, compiles: bool) -> dict[str, SamplingGains]:
    """Return ways of sampling by name, the plain one first, the one with all gains last.

    Args:
        graphs: whether there is a GPU to replay CUDA graphs.
        compiles: whether to add the compiled network, which takes minutes.
    """
    float32 = SamplingGains(pooling=True, channels_last=True, inference_mode=True)
    bfloat16 = replace(float32, bfloat16=True)
    found = {PLAIN: SamplingGains(), "float32": float32, "bfloat16": bfloat16}
    if graphs:
        found["bfloat16, graphs"] = replace(bfloat16, graphs=True)
    if compiles:
        found["bfloat16, compiled"] = replace(bfloat16, compile=True)
    return found


class SwitchedSampler(Sampler):
    """A sampler of one batch with some gains; with all, it equals `Sampler`.

    Args:
        model: loaded weights; they are prepared in place.
        batch: images per network call.
        gains: to use.
    """

    def __init__(self, model: Model, batch: int, gains: SamplingGains) -> None:
        super().__init__(
            model,
            batch=batch,
            precision="bfloat16" if gains.bfloat16 else "float32",
            compiles=gains.compile,
            graphs=gains.graphs,
        )
        if not gains.channels_last:
            model.generator.to(memory_format=torch.contiguous_format)
        self.gains = gains

    def _chain(self, latent: Latent, labels: np.ndarray, start: Start | None = None) -> list[SamplingStep]:
        assert start is None
        if self.gains.inference_mode:
            return self._by_operator(latent, labels)
        with torch.inference_mode(False), torch.no_grad():
            return self._by_operator(latent, labels)

    def _by_operator(self, latent: Latent, labels: np.ndarray) -> list[SamplingStep]:
        if self.gains.pooling:
            return super()._chain(latent, labels)
        (base, noises, inputs), chosen = self._fed(latent, labels)
        return sample_by_fft(self.schedule, self._network, base, noises, chosen, inputs)


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
    """Time a batch of images, from a seed to bytes: the plain way and that of `udpm sample`, in turn.

    Args:
        config: of a run; networks are freshly initialized.
        device: where to run, from `devices.configure`.
        batch: images per call.
        repetitions: of each way.
        gains: also switch off each gain of the last way alone.
        memory: also measure each way's peak memory, in a separate process.
        compiles: also measure the network compiled.

    Returns:
        The record: times, speedups over the plain way, counted work, and its share of the device's ceilings.
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
    """Draw two batches with some gains, to measure memory."""
    sampler = SwitchedSampler(_fresh(config, devices.configure(device, threads)), batch, gains)
    for _ in range(TWICE):
        sampler.sample(batch)


def _fresh(config: RunConfig, device: torch.device) -> Model:
    return Model(build_generator(config.model).eval().requires_grad_(False).to(device), config.model, {})


def _call(model: Model, batch: int, gains: SamplingGains) -> Callable[[], object]:
    # Each way prepares the weights differently, in place.
    sampler = SwitchedSampler(replace(model, generator=deepcopy(model.generator)), batch, gains)
    return lambda: sampler.sample(batch)
