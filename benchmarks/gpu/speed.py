"""Part 6: how fast: the device at best, training the paper's CIFAR-10 run, drawing its images."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.checks import Check, Session
from benchmarks.gpu.subjects import awake_model, experiment, random_data
from udpm.bench.measure import repeated
from udpm.bench.record import Work, row
from udpm.bench.training import Images, bench_training, for_speed
from udpm.config import RunConfig
from udpm.diffusion.sampler import noise_sides, sample
from udpm.diffusion.schedule import Schedule
from udpm.networks.flops import count_cost
from udpm.networks.inference import Precision, serve
from udpm.networks.weights import Model
from udpm.sampling.sampler import Sampler
from udpm.training.plain import SwitchedTrainer, TrainingGains
from udpm.training.trainer import Trainer

ITERATIONS, WARM = 60, 20
PLAIN_ITERATIONS = 20
SECONDS = 1.5
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")
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


def _training(session: Session, way: str, **changes: Any) -> str:
    """`udpm bench train`; before the first one, a training that loads all kernels."""
    config, lacks = measured_run(session, **changes)
    iterations, warm = (ITERATIONS, WARM) if session.full else (2, 1)
    with Images().opened(config) as levels:
        if "kernels" not in session.kept:
            session.kept["kernels"] = True
            _iterate(Trainer(config, levels, session.device), warm)
            session.clean_up()
        found = bench_training(config, levels, iterations)
    (each,) = found["rows"]
    rate = each["images_per_second"]["median"] / found["batch"]
    session.report.timings.append(
        {"of": "training", "way": way + lacks, "iterations_per_second": rate, "record": found}
    )
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in list(found["shares"].items())[:4])
    peak = f"; {found['gpu_peak_bytes'] / 2**30:.1f} GiB" if found["gpu_peak_bytes"] else ""
    return (
        f"{rate:.2f} iterations/s at batch {found['batch']}{lacks}; {100 * each['of_matrix_product']:.1f} % of "
        f"products; {shares}{peak}"
    )


def _plain_training(session: Session) -> str:
    """The plain way: float32 with TF32, eager, no cache, parameter by parameter."""
    config, lacks = measured_run(session)
    session.set_up(tf32=True)
    folder = session.folder / "plain"
    levels, iterations = random_data(folder, config), PLAIN_ITERATIONS if session.full else 1
    trainer = SwitchedTrainer(config, levels, session.device, TrainingGains())
    _iterate(trainer, 8 if session.full else 1)
    timing = repeated(partial(_iterate, trainer, iterations), session.device, 0)
    rates = [iterations / seconds for seconds in timing.wall]
    rate = sorted(rates)[len(rates) // 2]
    session.report.timings.append(
        {
            "of": "training",
            "way": f"plain{lacks}",
            "iterations_per_second": rate,
            "all": rates,
            "batch": config.training.batch,
        }
    )
    return f"{rate:.2f} iterations/s at batch {config.training.batch}{lacks}"


def _iterate(trainer: Trainer, iterations: int) -> None:
    for _ in range(iterations):
        trainer.iterate()


def _sampling(session: Session, batch: int, precision: Precision, graphs: bool, tf32: bool = False) -> str:
    """From a seed to bytes, as `udpm sample` draws."""
    device = session.set_up(tf32=tf32)
    config, model, multiply_adds = _subject(session)
    batch, count = (batch, BATCHES_AT_ONCE[batch]) if session.full else (2, 2)
    # Weights are prepared in place.
    own = replace(model, generator=deepcopy(model.generator))
    sampler, images = Sampler(own, batch=batch, precision=precision, graphs=graphs), batch * count
    seconds = SECONDS if session.full else 0.0
    whole = repeated(lambda: sampler.sample(images), device, seconds)
    chain = repeated(_chain(config, model, batch, precision, graphs), device, seconds)
    best = session.ceilings
    peak = torch.cuda.max_memory_allocated() if session.on_gpu else None
    told = []
    for part, timing, drawn in (("from seed to bytes", whole, images), ("the chain alone", chain, batch)):
        work = Work(drawn, multiply_adds * drawn, precision=precision)
        found = row(part, way_of(precision, graphs, tf32), timing, work, best, batch=batch, gpu_peak_bytes=peak)
        session.report.timings.append({"of": "sampling", **found})
        told.append(
            f"{found['images_per_second']['median']:.0f} images/s {part}, "
            f"{100 * found['of_matrix_product']:.1f} % of products"
        )
    return "; ".join(told)


def _subject(session: Session) -> tuple[RunConfig, Model, int]:
    """The run whose images are drawn, its generator on the device, and multiply-adds of an image; made once."""
    if "drawn" not in session.kept:
        config = measured_run(session)[0]
        session.kept["drawn"] = config, awake_model(config, session.device), count_cost(config).total
    return session.kept["drawn"]


def _chain(config: RunConfig, model: Model, batch: int, precision: Precision, graphs: bool) -> Callable[[], object]:
    """A chain whose noise is on the device, and whose images stay there."""
    schedule, side = Schedule.from_config(config.process), config.dataset.side
    device = next(model.generator.parameters()).device
    network = serve(deepcopy(model.generator), precision, graphs=graphs)
    base, *noises = [torch.randn(batch, 3, size, size, device=device) for size in (side, *noise_sides(schedule, side))]
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def call() -> object:
        return sample(schedule, network, base, noises, labels)

    return call


def way_of(precision: str, graphs: bool, tf32: bool) -> str:
    """A way of drawing in words."""
    return f"{precision}{', TF32' if tf32 else ''}{', graphs' if graphs else ''}"


def _drawn(part: str, batch: int, precision: Precision, *, graphs: bool = False, tf32: bool = False) -> Check:
    name = f"sampling cifar10, batch {batch}: {way_of(precision, graphs, tf32)}"
    return Check(part, name, partial(_sampling, batch=batch, precision=precision, graphs=graphs, tf32=tf32))


def _trained(part: str, way: str, **changes: Any) -> Check:
    return Check(part, f"training cifar10: {way}", partial(_training, way=way, **changes))


FLOAT32 = {"training__precision": "float32", "training__tf32": True}
FIRST = [
    Check("speed", "the device at best", _ceilings),
    _trained("speed", "as configured"),
    _trained("speed", "as configured, recorded", training__cuda_graphs=True),
    Check("speed", "training cifar10: the plain way", _plain_training),
    _drawn("speed", 250, "bfloat16", graphs=True),
    _drawn("speed", 250, "bfloat16"),
    _drawn("speed", 250, "float32", tf32=True),
    _drawn("speed", 1, "bfloat16", graphs=True),
    _drawn("speed", 1, "float32", tf32=True),
]
LATER = [
    _trained("variants", "workers 2", training__workers=2),
    _trained("variants", "recorded, workers 2", training__cuda_graphs=True, training__workers=2),
    _trained("variants", "channels last", training__channels_last=True),
    _trained("variants", "float32 with TF32", **FLOAT32),
    _trained("variants", "float32 with TF32, recorded", **FLOAT32, training__cuda_graphs=True),
    _drawn("variants", 250, "float32"),
    _drawn("variants", 250, "float32", graphs=True),
    *(_drawn("variants", 25, precision, graphs=graphs) for precision in PRECISIONS for graphs in (True, False)),
    _drawn("variants", 1, "bfloat16"),
    _drawn("variants", 1, "float32", graphs=True),
    *(_drawn("variants", 1000, precision, graphs=graphs) for precision in PRECISIONS for graphs in (True, False)),
]
