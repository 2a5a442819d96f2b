"""Sampling with its gains switched one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.fft import sample_by_fft
from benchmarks.gains import PLAIN
from udpm.diffusion.sampler import Latent, Step
from udpm.networks.weights import Model
from udpm.sampling.sampler import Sampler


@dataclass(frozen=True)
class SamplingGains:
    """What makes drawing faster than the plain way, each on or off.

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
    """Ways to draw by name, the plain one first, the one with all gains last.

    Args:
        graphs: whether there is a GPU to replay CUDA graphs.
        compiles: whether compiling, which takes a while, is wanted.
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
    """A sampler of one batch with some gains; with all, it is the sampler itself.

    Args:
        model: loaded weights; they are prepared in place.
        batch: images per network call.
        gains: which.
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

    def _chain(self, latent: Latent, labels: np.ndarray) -> list[Step]:
        if self.gains.inference_mode:
            return self._by_operator(latent, labels)
        with torch.inference_mode(False), torch.no_grad():
            return self._by_operator(latent, labels)

    def _by_operator(self, latent: Latent, labels: np.ndarray) -> list[Step]:
        if self.gains.pooling:
            return super()._chain(latent, labels)
        return sample_by_fft(self.schedule, self._network, *self._fed(latent, labels))
