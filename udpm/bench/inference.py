"""Measure the speed of sampling, against one step of a network at the full side, and of extracting features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from udpm.bench.measure import ceilings, repeated
from udpm.bench.record import Workload, record, row
from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.diffusion.sampler import sample, seeded
from udpm.diffusion.schedule import Schedule
from udpm.metrics.extractor import Extractor
from udpm.networks.flops import Cost, count_cost
from udpm.networks.inference import prepare_for_inference
from udpm.networks.unet import UNet, build_generator, generator_shape


def bench_sampling(config: RunConfig, device: torch.device, batch: int, seconds: float) -> dict[str, Any]:
    """Measure a whole sampling chain, and one call of the network built for the full side.

    Networks are freshly initialized, since their speed does not depend on their values, and run in float32. Noise is
    drawn beforehand and images stay on the device, one from `devices.configure`. Each measurement takes about the given
    seconds. Returns the record, with median images per second of both.
    """
    side, shape = config.dataset.side, generator_shape(config.model)
    schedule, cost, best = Schedule.from_config(config.process), count_cost(config), ceilings(device)
    generator = build_generator(config.model).eval().to(device)
    latent = seeded(schedule, side, 0, range(batch), shape.latent_channels).map(lambda values: values.to(device))
    images = torch.randn(batch, shape.inputs, side, side, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if config.model.classes else None
    network = prepare_for_inference(generator)
    full = prepare_for_inference(UNet(replace(shape, side=side, upscale=1)).eval().to(device))
    with torch.inference_mode():
        base, noises, inputs = latent
        chain = repeated(lambda: sample(schedule, network, base, noises, labels, inputs=inputs), device, seconds)
        step = repeated(lambda: full(images, 0.5, labels), device, seconds)
    step_work = Workload(batch, cost.full_side * batch, 4 * cost.full_side_parameters)
    rows = [
        row("image", "float32", chain, work_of(cost, schedule, batch, bfloat16=False), best),
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


def sampling_lines(found: dict[str, Any]) -> list[str]:
    """Format a record of `bench_sampling`."""
    return [
        f"{found['images_per_second']:.4g} images/s, {found['steps_per_second']:.4g} full-side steps/s, batches of "
        f"{found['batch']}, {found['device']}"
    ]


def work_of(cost: Cost, schedule: Schedule, batch: int, bfloat16: bool) -> Workload:
    """Return the work of sampling a batch; bytes are the weights, read at every call."""
    read = schedule.levels * cost.generator_parameters * (2 if bfloat16 else 4)
    return Workload(batch, cost.total * batch, read, "bfloat16" if bfloat16 else "float32")


SECONDS = 3.0
"""Approximate duration of each measurement."""
SEED = 0


def bench_extractor(extractor: Extractor, side: int, batch: int) -> dict[str, Any]:
    """Measure an extractor on images of random bytes.

    Returns the record. Bytes are those of images, network inputs, weights and features.

    Raises:
        UserError: the extractor does not accept images of this side.
    """
    images = np.random.default_rng(SEED).integers(0, 256, (2 * batch, side, side, 3), dtype=np.uint8)
    threads, device = torch.get_num_threads(), extractor.device
    ready = extractor.inputs.prepare(images[:batch], threads)
    with FlopCounterMode(display=False) as counter:
        features = extractor.forward(ready)
    resize = Workload(batch, 0, images[:batch].nbytes + ready.nbytes)
    network = Workload(batch, counter.get_total_flops() // 2, ready.nbytes + _size(extractor.module) + features.nbytes)
    both = Workload(2 * batch, 2 * network.multiply_adds, 2 * (resize.bytes + network.bytes))
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
    """Format a record of `bench_extractor`."""
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
