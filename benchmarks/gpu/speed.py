"""Speed: ceilings of the device, training the paper's CIFAR-10 run, sampling from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.gains import mean_timing
from benchmarks.gpu.checks import Check, Session, Skipped
from benchmarks.gpu.subjects import awake_model, experiment, random_data
from benchmarks.training import SwitchedTrainer, TrainingGains
from udpm.bench.measure import BLOCKS, Timing, Workload, now, row
from udpm.bench.networks import BenchmarkData, bench_training, for_speed
from udpm.config import RunConfig
from udpm.diffusion.process import Network, noise_sides, sample
from udpm.diffusion.schedule import Schedule
from udpm.networks.inference import Precision, count_cost
from udpm.networks.weights import Model
from udpm.sampling.sampler import Sampler
from udpm.training.batch import level_shares
from udpm.training.estimate import IterationCost, IterationCounter
from udpm.training.trainer import Trainer

WARM = 3
"""Calls before those that are timed, in which kernels are loaded and passes recorded."""
BENCHED = 20
SECONDS = 1.0
"""Approximate time of all repetitions of a call."""
MOST = 20
"""Calls of a repetition."""
COMPILING = 60.0
"""Seconds that must be left to begin to compile the networks of a training; it may take longer."""
BATCHES_AT_ONCE = {1: 20, 25: 8, 250: 4, 1000: 2}
"""Batches that one timed call draws, by size: enough that noise is prepared while the device is at work."""


def measured_run(session: Session, **changes: Any) -> tuple[RunConfig, str]:
    """The run whose speed is measured, and what it lacks: the CIFAR-10 experiment, a small one on a CPU.

    LPIPS has random weights, and is left out where its package is missing.
    """
    make = partial(experiment, "cifar10", training__device=session.device.type) if session.full else session.small_run
    config = make(**changes)
    if any(config.per_level("losses.lpips_weight")) and Check("", "", str, ("lpips",)).missing("cpu"):
        return make(**changes, losses__lpips_weight=0.0), ", without LPIPS: no package lpips"
    return for_speed(config, None, None, random=True), ""


def _ceilings(session: Session) -> str:
    """Products and copies."""
    best = session.ceilings
    return (
        f"{best['bfloat16_flops'] / 1e12:.4g} TFLOP/s in bfloat16, {best['float32_flops'] / 1e12:.4g} in float32; "
        f"copy {best['copy_bytes'] / 1e12:.3g} TB/s"
    )


def _bench(session: Session) -> str:
    """`udpm bench train`."""
    config, lacks = measured_run(session)
    with BenchmarkData().opened(config) as levels:
        found = bench_training(config, levels, BENCHED if session.full else 2)
    (each,) = found["rows"]
    session.report.timings.append({"of": "training", "way": f"udpm bench train{lacks}", "record": found})
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in found["shares"].items())
    return f"{each['images_per_second']['median'] / found['batch']:.2f} iterations/s{lacks}: {shares}"


def _training(session: Session, way: str, plain: bool = False, **changes: Any) -> str:
    """Time iterations at each level, and average over levels as training draws them."""
    config, lacks = measured_run(session, **changes)
    best = session.ceilings
    device = session.set_up(tf32=True)
    levels = random_data(session.folder / "speed", config)
    trainer = SwitchedTrainer(config, levels, device, TrainingGains() if plain else TrainingGains.configured(config))
    costs = _costs(session, config, trainer)
    timings, texts = [], []
    for level in range(1, config.process.levels + 1):
        trainer.at_level(level)
        timings.append(_timed(session, trainer.iterate))
        texts.append(f"{1e3 * statistics.median(timings[-1].wall):.1f}")
    shares, batch = level_shares(config), config.training.batch
    parts = [*(f"l = {level}" for level in range(1, len(timings) + 1)), "mean"]
    peak = torch.cuda.max_memory_allocated() if session.on_gpu else None
    precision = trainer.config.training.precision
    for part, timing, cost in zip(
        parts, [*timings, mean_timing(timings, shares)], [*costs, IterationCost.mean(costs, shares)], strict=True
    ):
        work = Workload(batch, cost.multiply_adds, cost.bytes, precision)
        found = row(part, way + lacks, timing, work, best, batch=batch, gpu_peak_bytes=peak)
        session.report.timings.append({"of": "training", **found})
    return (
        f"{found['images_per_second']['median'] / batch:.2f} iterations/s at batch {batch}{lacks}; {', '.join(texts)} "
        f"ms at l = 1, 2, 3; {100 * found['of_matrix_product']:.1f} % of products; {(peak or 0) / 2**30:.1f} GiB"
    )


def _costs(session: Session, config: RunConfig, trainer: Trainer) -> list[IterationCost]:
    """Multiply-adds of an iteration by level, counted once: they do not depend on the way of computing."""
    if "costs" not in session.kept:
        counter = IterationCounter(config, trainer.perceptual)
        session.kept["costs"] = [counter.count(level) for level in range(1, config.process.levels + 1)]
    return session.kept["costs"]


def _timed(session: Session, call: Callable[[], object]) -> Timing:
    """Time repetitions of as many calls as fill the time; within one, the device is not waited for."""
    for _ in range(WARM if session.full else 1):
        call()
    one, timing = Timing(), Timing()
    one.measure(call, session.device)
    calls = max(1, min(MOST, round(SECONDS / BLOCKS / one.wall[0]))) if session.full else 1
    for _ in range(BLOCKS if session.full else 1):
        timing.measure(call, session.device, calls)
    return timing


def _compiled(session: Session) -> str:
    """Compile both networks for the finest level, and time iterations there."""
    if session.seconds_left < COMPILING:
        raise Skipped(f"compiling takes minutes, and {session.seconds_left:.0f} s are left; give --budget more")
    config, lacks = measured_run(session, training__compile=True, training__level_probabilities=[1, 0, 0])
    best, device = session.ceilings, session.set_up(tf32=True)
    levels = random_data(session.folder / "speed", config)
    trainer = SwitchedTrainer(config, levels, device, TrainingGains.configured(config))
    first = Timing()
    first.measure(trainer.iterate, device)
    timing, batch = _timed(session, trainer.iterate), config.training.batch
    peak = torch.cuda.max_memory_allocated() if session.on_gpu else None
    cost = _costs(session, config, trainer)[0]
    work = Workload(batch, cost.multiply_adds, cost.bytes, config.training.precision)
    found = row("l = 1", f"compiled{lacks}", timing, work, best, batch=batch, gpu_peak_bytes=peak)
    session.report.timings.append({"of": "training", "first_seconds": first.wall[0], **found})
    return (
        f"{1e3 * statistics.median(timing.wall):.1f} ms an iteration at l = 1, batch {batch}{lacks}; the first one "
        f"took {first.wall[0]:.0f} s; {(peak or 0) / 2**30:.1f} GiB"
    )


def _sampling(
    session: Session,
    batch: int,
    precision: Precision,
    graphs: bool,
    tf32: bool = False,
    compiles: bool = False,
    contiguous: bool = False,
    counter: bool = False,
) -> str:
    """Time sampling from a seed to bytes, as `udpm sample` does it, and the chain alone."""
    config, model, multiply_adds = _subject(session)
    best = session.ceilings
    device = session.set_up(tf32=tf32)
    batch, count = (batch, BATCHES_AT_ONCE[batch]) if session.full else (2, 2)
    # Weights are prepared in place.
    own = replace(model, generator=deepcopy(model.generator))
    how: dict[str, Any] = {"graphs": graphs, "compiles": compiles, "noise_kind": "counter" if counter else "host"}
    sampler, images = Sampler(own, batch=batch, precision=precision, **how), batch * count
    if contiguous:
        # Nothing has been recorded yet.
        own.generator.to(memory_format=torch.contiguous_format)
    began = now(device)
    sampler.sample(images)
    first = now(device) - began
    whole = _timed(session, lambda: sampler.sample(images))
    chain = _timed(session, _chain(config, sampler._network, batch, device))
    peak = torch.cuda.max_memory_allocated() if session.on_gpu else None
    texts = []
    for part, timing, drawn in (("from seed to bytes", whole, images), ("the chain alone", chain, batch)):
        work = Workload(drawn, multiply_adds * drawn, precision=precision)
        way = way_of(precision, graphs, tf32, compiles, contiguous, counter)
        found = row(part, way, timing, work, best, batch=batch, gpu_peak_bytes=peak)
        session.report.timings.append({"of": "sampling", "first_seconds": first, **found})
        texts.append(
            f"{found['images_per_second']['median']:.0f} images/s {part}, "
            f"{100 * found['of_matrix_product']:.1f} % of products"
        )
    return "; ".join([*texts, f"the first call took {first:.1f} s"])


def _subject(session: Session) -> tuple[RunConfig, Model, int]:
    """The run whose images are drawn, its generator on the device, and multiply-adds of an image; made once."""
    if "drawn" not in session.kept:
        config = measured_run(session)[0]
        session.kept["drawn"] = config, awake_model(config, session.device), count_cost(config).total
    return session.kept["drawn"]


def _chain(config: RunConfig, network: Network, batch: int, device: torch.device) -> Callable[[], object]:
    """A chain whose noise is on the device, and whose images stay there."""
    schedule, side = Schedule.from_config(config.process), config.dataset.side
    base, *noises = [torch.randn(batch, 3, size, size, device=device) for size in (side, *noise_sides(schedule, side))]
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def call() -> object:
        return sample(schedule, network, base, noises, labels)

    return call


def way_of(
    precision: str, graphs: bool, tf32: bool, compiles: bool, contiguous: bool = False, counter: bool = False
) -> str:
    """A way of drawing in words."""
    switches = {"TF32": tf32, "graphs": graphs, "compiled": compiles, "contiguous": contiguous, "counter": counter}
    return ", ".join([precision, *(name for name, on in switches.items() if on)])


def _drawn(
    part: str, batch: int, precision: Precision, *, graphs: bool = False, tf32: bool = False, **more: bool
) -> Check:
    name = f"sampling cifar10, batch {batch}: {way_of(precision, graphs, tf32, **{'compiles': False} | more)}"
    return Check(part, name, partial(_sampling, batch=batch, precision=precision, graphs=graphs, tf32=tf32, **more))


def _trained(part: str, way: str, **changes: Any) -> Check:
    return Check(part, f"training cifar10: {way}", partial(_training, way=way, **changes))


FLOAT32 = {"training__precision": "float32", "training__tf32": True}
FIRST = [
    Check("speed", "ceilings of the device", _ceilings),
    _trained("speed", "as configured"),
    _trained("speed", "as configured, recorded", training__cuda_graphs=True),
    _trained("speed", "the plain way", plain=True),
    _drawn("speed", 250, "bfloat16", graphs=True),
    _drawn("speed", 250, "bfloat16"),
    _drawn("speed", 250, "float32", tf32=True),
    _drawn("speed", 1, "bfloat16", graphs=True),
    _drawn("speed", 1, "float32", tf32=True),
]
COUNTER = {"training__cuda_graphs": True, "training__noise": "counter"}
LATER = [
    _trained("variants", "recorded, noise of a counter", **COUNTER),
    _drawn("variants", 250, "bfloat16", graphs=True, counter=True),
    _trained("variants", "channels last, recorded", training__channels_last=True, training__cuda_graphs=True),
    _drawn("variants", 250, "bfloat16", graphs=True, contiguous=True),
    _drawn("variants", 1000, "bfloat16", graphs=True),
    _drawn("variants", 1000, "bfloat16", graphs=True, contiguous=True),
    _trained("variants", "float32 with TF32, recorded", **FLOAT32, training__cuda_graphs=True),
    _drawn("variants", 25, "bfloat16", graphs=True),
    _drawn("variants", 250, "float32", tf32=True, graphs=True),
    _drawn("variants", 1, "bfloat16", graphs=True, contiguous=True),
    _trained("variants", "channels last", training__channels_last=True),
]
COMPILED = [
    _drawn("compile", 250, "bfloat16", compiles=True),
    Check("compile", "training cifar10: compiled, l = 1", _compiled),
]
MORE = [
    Check("more", "udpm bench train cifar10", _bench),
    _trained("more", "recorded, workers 2", training__cuda_graphs=True, training__workers=2),
    _trained("more", "float32 with TF32", **FLOAT32),
    _drawn("more", 250, "float32"),
    _drawn("more", 1, "float32", graphs=True),
]
