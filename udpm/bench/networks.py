"""Measure the speed of sampling, of extracting features, and of training with the share of each part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from udpm.bench.data import random_levels
from udpm.bench.measure import BLOCKS, Timing, Workload, ceilings, now, record, repeated, row
from udpm.config.experiment import RunConfig
from udpm.config.training import Training
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.data.levels import Levels, open_levels
from udpm.diffusion.counter import counted
from udpm.diffusion.process import Latent, sample, seeded
from udpm.diffusion.schedule import Schedule
from udpm.metrics.extractor import Extractor
from udpm.networks.inference import Cost, count_cost, prepare_for_inference
from udpm.networks.unet import UNet, build_generator, generator_shape
from udpm.training.batch import draw_level, players_at
from udpm.training.estimate import iteration_cost
from udpm.training.graphs import recorded_steps
from udpm.training.losses import loss_weights
from udpm.training.trainer import Trainer


def bench_sampling(config: RunConfig, device: torch.device, batch: int, seconds: float) -> dict[str, Any]:
    """Measure a whole sampling chain, one call of the network built for the full side, and noise of either kind.

    Networks are freshly initialized, since their speed does not depend on their values, and run in float32. The chain's
    noise is drawn beforehand and images stay on the device, one from `devices.configure`. Each measurement takes about
    the given seconds. Returns the record, with median images per second of chain and call.
    """
    side, shape = config.dataset.side, generator_shape(config.model)
    schedule, cost, best = Schedule.from_config(config.process), count_cost(config), ceilings(device)
    generator = build_generator(config.model).eval().to(device)
    given = (schedule, side, 0, range(batch), shape.latent_channels)
    sources: dict[str, Callable[[], Latent]] = {
        "host": lambda: seeded(*given).map(lambda values: devices.to_device(values, device)),
        "counter": lambda: counted(*given, device=device),
    }
    latent = sources["host"]()
    images = torch.randn(batch, shape.inputs, side, side, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if config.model.classes else None
    network = prepare_for_inference(generator)
    full = prepare_for_inference(UNet(replace(shape, side=side, upscale=1)).eval().to(device))
    with torch.inference_mode():
        base, noises, inputs = latent
        chain = repeated(lambda: sample(schedule, network, base, noises, labels, inputs=inputs), device, seconds)
        step = repeated(lambda: full(images, 0.5, labels), device, seconds)
        noise = {kind: repeated(source, device, seconds) for kind, source in sources.items()}
    step_work = Workload(batch, cost.full_side * batch, 4 * cost.full_side_parameters)
    rows = [
        row("image", "float32", chain, work_of(cost, schedule, batch, bfloat16=False), best),
        row("full-side step", "float32", step, step_work, best),
        *(row("noise", kind, timing, Workload(batch), best) for kind, timing in noise.items()),
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
    noise = {row["way"]: row["images_per_second"]["median"] for row in found["rows"] if row["part"] == "noise"}
    return [
        f"{found['images_per_second']:.4g} images/s, {found['steps_per_second']:.4g} full-side steps/s, batches of "
        f"{found['batch']}, {found['device']}",
        f"noise alone: {', '.join(f'{kind} {rate:.4g} images/s' for kind, rate in noise.items())}",
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


WARM_UP, MOST_WARM_UP = 5, 1000
RANDOM_IMAGES = 1000
CONFIGURED, MEAN = "as configured", "mean"


@dataclass(frozen=True)
class BenchmarkData:
    """Data to measure training with: a prepared data set with its cache, or random images if these are None."""

    dataset: Path | None = None
    cache: Path | None = None

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[Levels]:
        """Open the data for a run; random images are deleted afterwards."""
        levels = config.process.levels
        if self.dataset is not None and self.cache is not None:
            yield open_levels(self.dataset, self.cache, levels)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield random_levels(Path(folder), config.dataset.side, levels, RANDOM_IMAGES)


class Clock:
    """Exclusive seconds of nested, named parts; synchronizes the device at their beginnings and ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, function: Callable) -> Callable:
        """Return the function with its time added to `part`."""

        def call(*arguments, **options):
            with self.of(part):
                return function(*arguments, **options)

        return call

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of a block to `part`."""
        self._mark()
        self._open.append(part)
        yield
        self._mark()
        self._open.pop()

    def _mark(self) -> None:
        """Add the time since the last mark to the innermost part."""
        moment = now(self._device)
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + moment - self._since
        self._since = moment


def bench_training(config: RunConfig, levels: Levels, iterations: int) -> dict[str, Any]:
    """Train for some iterations twice: for the speed, then with clocks around the parts.

    Args:
        config: of a run; its number of processes is ignored, and a late adversarial loss starts at once.
        iterations: number measured, after a warm-up.

    Returns:
        The record, with each part's share of the time.

    Raises:
        UserError: training is imported.
    """
    training = trained(config)
    # The iterations before the start are the cheap ones; a bench of a few would measure no other.
    losses = config.losses.model_copy(update={"adversarial_start": 0})
    config = config.model_copy(update={"losses": losses})
    device = devices.configure(training.device, training.threads, tf32=training.tf32)
    trainer = Trainer(config, levels, device)
    for _ in range(warm_up(config)):
        trainer.iterate()
    timing, blocks = Timing(), min(BLOCKS, iterations)
    for block in range(blocks):
        timing.measure(trainer.iterate, device, (block + 1) * iterations // blocks - block * iterations // blocks)
    cost = iteration_cost(config, trainer.perceptual)
    work = Workload(training.batch, cost.multiply_adds, cost.bytes, training.precision)
    best = ceilings(device)
    return record(
        "training",
        device,
        best,
        [row(MEAN, CONFIGURED, timing, work, best)],
        **setting(config),
        iterations=iterations,
        tf32=training.tf32 and device.type == "cuda",
        channels_last=training.channels_last,
        compile=training.compile,
        cuda_graphs=trainer.graphs is not None,
        noise=training.noise,
        shares=_time_shares(trainer, Clock(device), iterations),
        gpu_peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def warm_up(config: RunConfig) -> int:
    """Return the number of iterations after which everything was done at least once.

    Each network is compiled or recorded at its first step at each level, with and without R1 or R2.
    """
    if not (config.training.compile or config.training.cuda_graphs):
        return WARM_UP
    missing, weights = recorded_steps(config), loss_weights(config)
    iteration = 0
    while missing and iteration < MOST_WARM_UP:
        for player in players_at(config, iteration):
            level = draw_level(config, player, iteration)
            penalised = player == "discriminator" and weights[level - 1].at(iteration).penalised
            missing.discard((player, level, penalised))
        iteration += 1
    return max(iteration, WARM_UP)


def training_lines(found: dict[str, Any]) -> list[str]:
    """Format a record of `bench_training`."""
    (each,) = found["rows"]
    reached = found["ceilings"][f"{found['precision']}_flops"]
    rate = each["images_per_second"]["median"]
    marks = {"TF32": found["tf32"], "channels last": found["channels_last"], "compiled": found["compile"]}
    marks |= {"CUDA graphs": found.get("cuda_graphs"), "noise of a counter": found.get("noise") == "counter"}
    setting = ", ".join([found["precision"], *(mark for mark, there in marks.items() if there)])
    share = each["of_matrix_product"]
    lines = [
        f"{found['experiment']} on {found['device']}: batch {found['batch']}, {setting}",
        f"{rate / found['batch']:.2f} iterations/s, {rate:.1f} images/s",
        *(f"  {part:24} {100 * spent:5.1f} %" for part, spent in found["shares"].items()),
        f"arithmetic of both players and LPIPS: {share * reached / 1e9:.4g} GFLOP/s, {100 * share:.1f} % of the "
        f"{reached / 1e9:.4g} GFLOP/s that a large matrix product reaches here",
    ]
    if found["gpu_peak_bytes"]:
        lines.append(f"GPU memory: {found['gpu_peak_bytes'] / 2**30:.2f} GiB at most")
    return lines


def for_speed(config: RunConfig, batch: int | None, threads: int | None, *, random: bool) -> RunConfig:
    """Return the configuration with another batch and threads, and random LPIPS for random images."""
    if config.training == "imported":
        return config
    changes = {"batch": batch or config.training.batch, "threads": threads or config.training.threads}
    found = changed(config, **changes)
    if not random:
        return found
    return found.model_copy(update={"losses": config.losses.model_copy(update={"lpips_network": "vgg-random"})})


def setting(config: RunConfig) -> dict[str, Any]:
    """Return a record's entries on a run."""
    training = config.training
    return {"experiment": config.experiment, "batch": training.batch, "precision": training.precision}


def trained(config: RunConfig) -> Training:
    """Return the training section of a run that trains.

    Raises:
        UserError: training is imported.
    """
    if config.training == "imported":
        raise UserError(f"{config.experiment}: training is imported; there is nothing to measure")
    return config.training


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    """Return the run with other values in its training section."""
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _time_shares(trainer: Trainer, clock: Clock, iterations: int) -> dict[str, float]:
    """Return each part's share of the time; that of a step excludes its parts."""
    # This trainer is discarded afterwards, so its methods may be replaced by timed ones.
    trainer.batches = clock.timed("data and noise", trainer.batches)
    # A recorded pass calls no module.
    if trainer.perceptual is not None and trainer.graphs is None:
        trainer.perceptual.forward = clock.timed("LPIPS", trainer.perceptual.forward)  # type: ignore[method-assign]
    for player, optimizer in trainer.state.optimizers.items():
        optimizer.step = clock.timed(f"optimizer, {player}", optimizer.step)  # type: ignore[method-assign]
    trainer.state.update_ema = clock.timed("averages", trainer.state.update_ema)  # type: ignore[method-assign]
    train_step = trainer.train_step

    def timed(player: str, iteration: int):
        with clock.of(f"{player} step"):
            return train_step(player, iteration)

    trainer.train_step = timed  # type: ignore[method-assign]
    with clock.of("rest"):
        for _ in range(iterations):
            trainer.iterate()
    whole = sum(clock.seconds.values())
    return {part: spent / whole for part, spent in sorted(clock.seconds.items(), key=lambda item: -item[1])}
