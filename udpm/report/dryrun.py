"""What a training run would be and take, told before it begins; writes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.core.progress import duration
from udpm.data.levels import Levels
from udpm.runs.config_guard import check_config
from udpm.runs.records import is_run
from udpm.runs.status import read_status
from udpm.training.checkpoint import KEPT
from udpm.training.needs import Needs, amount, count_arithmetic, count_needs, times

TRYING_SECONDS = 0.5


def describe_run(config: RunConfig, levels: Levels | None, run: Path | None) -> str:
    """Configuration, networks, memory, disk, arithmetic and devices, as lines to read.

    Args:
        config: of the run, which trains.
        levels: the data set and its caches, if there.
        run: the run's folder, if known.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    iterations = _iterations(config, levels)
    needs = count_needs(config, iterations)
    lines = {
        "run": f"{config.experiment}, seed {config.seed}{_standing(config, run)}",
        "data": _data(config, levels),
        "process": f"{config.process.levels} levels, alphas {config.process.alphas}, sigmas {config.process.sigmas}",
        "networks": _networks(config, needs),
        "losses": _losses(config),
        "training": _training(config, iterations),
        "memory": (
            f"{amount(needs.state)} for the state on each device: weights {amount(needs.weights)}, gradients "
            f"{amount(needs.gradients)}, Adam {amount(needs.moments)}, averages {amount(needs.averages)}; what the "
            "networks keep of a batch comes on top and is not estimated"
        ),
        "disk": _disk(config, needs),
        "devices": f"{devices.found()} here; training.device: {config.training.device}",
        "arithmetic": _arithmetic(config, iterations),
    }
    return "".join(f"{name:<11}{text}\n" for name, text in lines.items())


def _iterations(config: RunConfig, levels: Levels | None) -> int:
    if levels is None:
        return config.training.iterations
    split = levels.store.split("train")
    return config.training.ends_at(split.stop - split.start)


def _standing(config: RunConfig, run: Path | None) -> str:
    if run is None:
        return ""
    if not is_run(run):
        return f"; {run} is new"
    check_config(run, config, allow_world_size_change=False, writes=False)
    standing = read_status(run)
    at = "" if standing.checkpoint is None else f", last checkpoint {standing.checkpoint}"
    return f"; {run} is {standing.state}{at}"


def _data(config: RunConfig, levels: Levels | None) -> str:
    side, classes = config.dataset.side, config.classes
    told = f"{config.dataset_name}, {side}×{side}, {f'{classes} classes' if classes else 'no labels'}"
    if levels is None:
        return told
    split = levels.store.split("train")
    return f"{told}, {split.stop - split.start} training images"


def _networks(config: RunConfig, needs: Needs) -> str:
    section, counts = config.generator, needs.parameters
    told = f"generator {section.family} {counts['generator'] / 1e6:.2f} M parameters"
    if "discriminator" in counts:
        told += f", discriminator {counts['discriminator'] / 1e6:.2f} M"
    return told + f"; averages {', '.join(config.training.averages) or 'none'}"


def _losses(config: RunConfig) -> str:
    losses = config.losses
    keys = {
        losses.reconstruction: "reconstruction_weight",
        "LPIPS": "lpips_weight",
        "adversarial": "adversarial_weight",
    }
    parts = {name: config.per_level(f"losses.{key}") for name, key in (keys | {"R1": "r1_gamma"}).items()}
    return ", ".join(f"{name} {values}" for name, values in parts.items() if any(values))


def _training(config: RunConfig, iterations: int) -> str:
    training = config.training
    share = training.batch // training.processes
    told = f"{iterations} iterations of {training.batch} images"
    if training.processes > 1:
        told += (
            f": {share} for each of {training.processes} processes ({training.nodes} × {training.processes_per_node})"
        )
    if training.accumulate > 1:
        told += f", in {training.accumulate} parts"
    switches = {"TF32": training.tf32, "channels last": training.channels_last, "compiled": training.compile}
    return ", ".join(
        [told, f"rate {training.learning_rate:g}", training.precision, *(k for k, on in switches.items() if on)]
    )


def _disk(config: RunConfig, needs: Needs) -> str:
    told = f"checkpoints {times(KEPT, needs.checkpoint)}, one more during a save; "
    if needs.milestones:
        told += f"milestones {times(needs.milestones, needs.milestone)}, one every {config.training.keep_every}; "
    return told + f"weights at the end {amount(needs.final)}"


def _arithmetic(config: RunConfig, iterations: int) -> str:
    """Multiply-adds, and the time they would take at the speed of one convolution."""
    count = count_arithmetic(config)
    told = f"{count / 1e9:.4g} G multiply-adds per iteration"
    if any(config.per_level("losses.lpips_weight")):
        told += " without LPIPS"
    if config.training.device == "cuda" and not torch.cuda.is_available():
        return told
    training = config.training
    device = devices.configure(training.device, training.threads, tf32=training.tf32)
    speed = _speed(config, device)
    seconds = iterations * count / speed / training.processes
    return (
        f"{told}; at least {duration(seconds)} in all if devices are like this one ({devices.describe(device)}), where "
        f"a convolution of the generator does {speed / 1e9:.3g} G per second; training is slower than that"
    )


def _speed(config: RunConfig, device: torch.device) -> float:
    """Multiply-adds per second of a convolution of the generator's first U-Net level, over a process's part or less."""
    training, section = config.training, config.generator
    width, side = section.channels * section.channel_multipliers[0], config.dataset.side // 2
    share = training.batch // training.processes // training.accumulate
    kind = torch.bfloat16 if training.precision == "bfloat16" else torch.float32
    convolution = torch.nn.Conv2d(width, width, 3, padding=1).to(device, kind).requires_grad_(False)
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    convolution = convolution.to(memory_format=layout)

    def values_of(images: int) -> torch.Tensor:
        return torch.zeros(images, width, side, side, device=device, dtype=kind).to(memory_format=layout)

    # A CPU without bfloat16 takes minutes for a GPU's batch.
    one = values_of(1)
    convolution(one).sum().item()
    start = time.perf_counter()
    convolution(one).sum().item()
    images = max(1, min(share, int(TRYING_SECONDS / (time.perf_counter() - start))))
    values = values_of(images)
    convolution(values).sum().item()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < TRYING_SECONDS:
        result = convolution(values)
        if count % 16 == 0 and device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
    result.sum().item()
    elapsed = time.perf_counter() - start
    return count * images * 9 * width**2 * side**2 / elapsed
