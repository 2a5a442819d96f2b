"""How fast features are taken on this machine: resizing, network, and both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from udpm.core import runtime
from udpm.scoring.extractor import Extractor

SECONDS = 3.0
"""How long each measurement takes, at least one call."""

SEED = 0


def bench_extractor(extractor: Extractor, side: int, batch: int) -> Iterator[str]:
    """Measure an extractor on images of random bytes.

    Args:
        extractor: which.
        side: of the images.
        batch: images per call.

    Yields:
        Lines of text.

    Raises:
        UserError: the extractor does not take images of this side.
    """
    images = np.random.default_rng(SEED).integers(0, 256, (2 * batch, side, side, 3), dtype=np.uint8)
    threads = torch.get_num_threads()
    ready = extractor.inputs.prepare(images[:batch], threads)
    yield f"{extractor.name} on {runtime.describe(extractor.device)}: images of side {side}, batch {batch}"
    yield f"  preprocessing {extractor.inputs.describe()}"
    measured = {
        "resize": (batch, lambda: extractor.inputs.prepare(images[:batch], threads)),
        "network": (batch, lambda: extractor.forward(ready)),
        "both": (2 * batch, lambda: extractor.features(images, batch)),
    }
    for name, (count, call) in measured.items():
        yield f"  {name:<8} {_rate(call, count):8.0f} images per second"


def _rate(call: Callable[[], object], count: int) -> float:
    """Images per second; the first call, which may compile something, does not count."""
    call()
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < SECONDS:
        call()
        calls += 1
    return calls * count / (time.perf_counter() - start)
