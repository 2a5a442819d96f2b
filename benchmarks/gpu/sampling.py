"""Sampling on a GPU: recorded graphs against eager calls, and the same bytes in any number of parts."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.checks import Check, Session, expect
from benchmarks.gpu.subjects import awake_model, difference
from udpm.diffusion.counter import NoiseKind
from udpm.networks.inference import CUDAGraphRunner, Precision, Recording
from udpm.networks.weights import Model
from udpm.sampling.generate import shard_numbers
from udpm.sampling.sampler import Sampler

BATCH, COUNT = 8, 44
"""Five batches and a tail: while the first is recorded, noise of later ones is prepared and pinned by a thread."""
SEED = 3
PIXELS = 0.02
"""Share of bytes that may differ by one between a CPU's and a GPU's images, because of rounding."""


def _rerun(call: Callable[[], torch.Tensor]) -> Recording:
    """Replace a recording on a CPU: read the same inputs and overwrite the same output."""
    output = call()
    return lambda: output.copy_(call()), output


def _sampler(
    model: Model,
    session: Session,
    precision: Precision = "float32",
    guidance: float = 1.0,
    *,
    graphs: bool = False,
    noise: NoiseKind = "host",
) -> Sampler:
    # Weights are prepared in place.
    own = replace(model, generator=deepcopy(model.generator))
    sampler = Sampler(own, batch=BATCH, guidance=guidance, precision=precision, graphs=graphs, noise_kind=noise)
    if graphs and not session.on_gpu:
        sampler._network = CUDAGraphRunner(sampler._network, _rerun)
    return sampler


def _graphs(session: Session, precision: Precision, guidance: float, noise: NoiseKind = "host") -> str:
    """Compare every byte of the images, and of the outputs at all levels."""
    changes = {"generator__label_dropout": 0.1} if guidance != 1 else {}
    model = awake_model(session.small_run(**changes), session.device)
    eager, recorded = (
        _sampler(model, session, precision, guidance, graphs=graphs, noise=noise) for graphs in (False, True)
    )
    labels = eager.balanced_labels(COUNT)
    expected, found, again = (sampler.images(labels, SEED, levels=(1, 2, 3)) for sampler in (eager, recorded, recorded))
    spread = int(np.ptp(expected[1]))
    expect(spread > 50, f"images hardly vary ({spread})")
    for level, images in expected.items():
        for other, when in ((found, "recorded"), (again, "replayed")):
            wrong = float((images != other[level]).mean())
            expect(wrong == 0, f"{when}: {100 * wrong:.2g} % of the bytes of level {level} differ")
    return f"{COUNT} images in batches of {BATCH}, all levels: the same bytes, recorded and replayed"


def _decode(session: Session) -> str:
    """Decode latents in batches with a smaller last one."""
    model = awake_model(session.small_run(), session.device)
    eager, recorded = (_sampler(model, session, graphs=graphs) for graphs in (False, True))
    latents = [eager.latent(seed) for seed in range(BATCH + 3)]
    labels = [seed % 10 for seed in range(len(latents))]
    off = difference(recorded.decode(latents, labels), eager.decode(latents, labels))
    return expect(off < 1e-5, f"{len(latents)} latents in batches of {BATCH} differ by {off:.1e}")


def _twice(session: Session) -> str:
    """Draw a sample set twice, and in two shards."""
    model = awake_model(session.small_run(), session.device)
    sampler = _sampler(model, session, graphs=True)
    whole, again = (sampler.sample(COUNT, seed=SEED) for _ in range(2))
    labels, parts = sampler.balanced_labels(COUNT), []
    for index in (1, 2):
        numbers = shard_numbers(COUNT, BATCH, index, 2)
        # As another job would.
        other = _sampler(model, session, graphs=True)
        parts.append(other.images(labels[numbers.start : numbers.stop], SEED, numbers.start)[1])
    expect(bool((whole == again).all()), "the second time other bytes came out")
    return expect(bool((whole == np.concatenate(parts)).all()), f"{COUNT} images twice and in 2 parts")


def _as_on_a_cpu(session: Session, noise: NoiseKind) -> str:
    """Draw images of the same weights and seed on both devices."""
    config = session.small_run()
    found, expected = (
        _sampler(awake_model(config, device), session, noise=noise).sample(COUNT, seed=SEED).astype(int)
        for device in (session.device, torch.device("cpu"))
    )
    off = np.abs(found - expected)
    share = float((off > 0).mean())
    return expect(share <= PIXELS and off.max() <= 1, f"{100 * share:.2g} % of bytes differ, by {off.max()} at most")


CHECKS = [
    *(
        Check(
            "sampling",
            f"recorded graphs draw the eager images: {precision}{more}",
            partial(_graphs, precision=precision, guidance=guidance),
        )
        for precision in ("float32", "bfloat16")
        for more, guidance in (("", 1.0), (", guidance 2", 2.0))
    ),
    Check("sampling", "recorded graphs decode the eager images", _decode),
    Check("sampling", "the same bytes twice and in two shards", _twice),
    Check(
        "sampling",
        "recorded graphs draw the eager images: noise of a counter",
        partial(_graphs, precision="float32", guidance=1.0, noise="counter"),
    ),
    Check("sampling", "images match the CPU's", partial(_as_on_a_cpu, noise="host")),
    Check("sampling", "images match the CPU's: noise of a counter", partial(_as_on_a_cpu, noise="counter")),
]
