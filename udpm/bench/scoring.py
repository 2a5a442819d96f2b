"""How fast features are taken on this machine: resizing, network, and both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from udpm.bench.measure import ceilings, repeated
from udpm.bench.record import Work, record, row
from udpm.metrics.extractor import Extractor

SECONDS = 3.0
"""How long each measurement takes, about."""

SEED = 0


def bench_extractor(extractor: Extractor, side: int, batch: int) -> dict[str, Any]:
    """Measure an extractor on images of random bytes.

    Args:
        extractor: which.
        side: of the images.
        batch: images per call.

    Returns:
        The record. Bytes are those of images, of what the network is fed, of its weights and of its features.

    Raises:
        UserError: the extractor does not take images of this side.
    """
    images = np.random.default_rng(SEED).integers(0, 256, (2 * batch, side, side, 3), dtype=np.uint8)
    threads, device = torch.get_num_threads(), extractor.device
    ready = extractor.inputs.prepare(images[:batch], threads)
    with FlopCounterMode(display=False) as counter:
        features = extractor.forward(ready)
    resize = Work(batch, 0, images[:batch].nbytes + ready.nbytes)
    network = Work(batch, counter.get_total_flops() // 2, ready.nbytes + _size(extractor.module) + features.nbytes)
    both = Work(2 * batch, 2 * network.multiply_adds, 2 * (resize.bytes + network.bytes))
    measured = {
        "resize": (resize, lambda: extractor.inputs.prepare(images[:batch], threads)),
        "network": (network, lambda: extractor.forward(ready)),
        "both": (both, lambda: extractor.features(images, batch)),
    }
    timings = {name: repeated(call, device, SECONDS) for name, (_, call) in measured.items()}
    best = ceilings(device)
    rows = [row(name, "", timings[name], work, best) for name, (work, _) in measured.items()]
    preprocessing = extractor.inputs.describe()
    return record(
        "scoring", device, best, rows, extractor=extractor.name, preprocessing=preprocessing, side=side, batch=batch
    )


def scoring_lines(found: dict[str, Any]) -> list[str]:
    """What `bench_extractor` found, as text."""
    return [
        f"{found['extractor']} on {found['device']}: images of side {found['side']}, batch {found['batch']}",
        f"  preprocessing {found['preprocessing']}",
        *(
            f"  {each['part']:<8} {each['images_per_second']['median']:8.0f} images per second"
            for each in found["rows"]
        ),
    ]


def _size(module: torch.nn.Module) -> int:
    return sum(values.nbytes for values in [*module.parameters(), *module.buffers()])
