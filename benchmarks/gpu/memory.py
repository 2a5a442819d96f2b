"""Memory: what `udpm train --dry-run` estimates, against what the allocator counts."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.checks import Check, Session, expect
from benchmarks.gpu.speed import measured_run
from benchmarks.gpu.subjects import random_data
from udpm.training.dryrun import LiveBytes, estimate_memory
from udpm.training.trainer import Trainer

ITERATIONS = 2
"""Adam's moments come with the first one."""
WITHIN = 0.15
GIB = 2**30


def _estimated(session: Session, batch: int | None = None, **changes: Any) -> str:
    """Train at the finest level, where the peak is; on a CPU, follow the storages instead of asking an allocator."""
    given = changes | ({"training__batch": batch} if batch and session.full else {})
    config, lacks = measured_run(session, **given, training__level_probabilities=[1, 0, 0])
    levels, device = random_data(session.folder / "memory", config), session.set_up(tf32=True)
    session.clean_up()
    before = torch.cuda.memory_allocated() if session.on_gpu else 0
    counted = LiveBytes()
    with nullcontext() if session.on_gpu else counted:
        trainer = Trainer(config, levels, device)
        for _ in range(ITERATIONS):
            trainer.iterate()
    recorded = config.training.cuda_graphs
    measured = torch.cuda.max_memory_allocated() - before if session.on_gpu else counted.peak
    reserved = torch.cuda.max_memory_reserved() if session.on_gpu else None
    if recorded and reserved is not None:
        # Memory of a recording counts as allocated only while it is being made.
        measured = reserved
    found = estimate_memory(config, trainer.perceptual)
    ratio = found.total / measured
    way = f"{config.training.precision}{', recorded' if recorded else ''}{lacks}"
    session.report.timings.append(
        {
            "of": "memory",
            "way": way,
            "batch": found.batch,
            "estimated_bytes": found.total,
            "state_bytes": found.state + found.perceptual,
            "measured_bytes": measured,
            "reserved_bytes": reserved,
            "allocated_before_bytes": before,
            "ratio": ratio,
        }
    )
    text = f"batch {found.batch}{lacks}: estimated {found.total / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB"
    if reserved is not None:
        text += f" ({reserved / GIB:.2f} GiB reserved, {before / GIB:.2f} GiB in use before)"
    if recorded and not session.on_gpu:
        return f"{text}; ratio {ratio:.3f}; nothing is recorded on a CPU"
    return expect(abs(ratio - 1) <= WITHIN, f"{text}; ratio {ratio:.3f}")


BATCHES = (32, 64)
CHECKS = [
    *(
        Check("memory", f"the estimate of training cifar10 holds: batch {batch}", partial(_estimated, batch=batch))
        for batch in BATCHES
    ),
    Check(
        "memory",
        "the estimate of training cifar10 holds: float32",
        partial(_estimated, training__precision="float32"),
    ),
    Check(
        "memory", "the estimate of training cifar10 holds: recorded", partial(_estimated, training__cuda_graphs=True)
    ),
]
