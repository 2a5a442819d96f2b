"""Description of a training run before it begins; writes nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.data.levels import Levels
from udpm.runs.config_guard import check_config
from udpm.runs.records import is_run
from udpm.runs.status import read_status
from udpm.training.checkpoint import KEPT
from udpm.training.estimate import ResourceEstimate, estimate_resources, format_bytes, format_total, iteration_cost
from udpm.training.losses import load_lpips
from udpm.training.memory import CARDS, estimate_memory


def describe_run(config: RunConfig, levels: Levels | None, run: Path | None) -> str:
    """Describe a run before it starts: configuration, networks, memory, disk, arithmetic and devices, a line for each.

    Raises:
        UserError: the folder contains a run of another configuration.
    """
    training, side = config.training, config.dataset.side
    data = f"{config.dataset_name}, {side}×{side}, {f'{config.classes} classes' if config.classes else 'no labels'}"
    iterations = training.iterations
    if levels is not None:
        split = levels.store.split("train")
        images = split.stop - split.start
        data += f", {images} training images"
        iterations = training.ends_at(images)
    estimate = estimate_resources(config, iterations)
    counts = estimate.parameters
    networks = f"generator {config.generator.family} {counts['generator'] / 1e6:.2f} M parameters"
    if "discriminator" in counts:
        networks += f", discriminator {counts['discriminator'] / 1e6:.2f} M"
    arithmetic = f"{iteration_cost(config).multiply_adds / 1e9:.4g} G multiply-adds per iteration"
    if any(config.per_level("losses.lpips_weight")):
        arithmetic += " without LPIPS"
    lines = {
        "run": f"{config.experiment}, seed {config.seed}{_describe_folder(config, run)}",
        "data": data,
        "process": f"{config.process.levels} levels, alphas {config.process.alphas}, sigmas {config.process.sigmas}",
        "networks": f"{networks}; averages {', '.join(training.averages) or 'none'}",
        "losses": _describe_losses(config),
        "training": _describe_training(config, iterations),
        "memory": (
            f"{format_bytes(estimate.state)} for the state on each device: weights {format_bytes(estimate.weights)}, "
            f"gradients {format_bytes(estimate.gradients)}, Adam {format_bytes(estimate.moments)}, averages "
            f"{format_bytes(estimate.averages)}"
        ),
        "GPU": _describe_gpu(config),
        "disk": _describe_disk(config, estimate),
        "devices": f"{devices.found()} here; training.device: {training.device}",
        "arithmetic": f"{arithmetic}; udpm bench train measures how long it takes",
    }
    return "".join(f"{name:<11}{text}\n" for name, text in lines.items())


def _describe_folder(config: RunConfig, run: Path | None) -> str:
    if run is None:
        return ""
    if not is_run(run):
        return f"; {run} is new"
    check_config(run, config, allow_world_size_change=False, writes=False)
    status = read_status(run)
    at = "" if status.checkpoint is None else f", last checkpoint {status.checkpoint}"
    return f"; {run} is {status.state}{at}"


def _describe_losses(config: RunConfig) -> str:
    keys = {config.losses.reconstruction: "reconstruction_weight", "energy score": "energy_weight"}
    keys |= {"LPIPS": "lpips_weight", "adversarial": "adversarial_weight", "R1": "r1_gamma"}
    weights = {name: config.per_level(f"losses.{key}") for name, key in keys.items()}
    return ", ".join(f"{name} {values}" for name, values in weights.items() if any(values))


def _describe_training(config: RunConfig, iterations: int) -> str:
    training = config.training
    batches = f"{iterations} iterations of {training.batch} images"
    if training.processes > 1:
        shape = f"{training.nodes} × {training.processes_per_node}"
        batches += f": {training.batch // training.processes} for each of {training.processes} processes ({shape})"
    if training.accumulate > 1:
        batches += f", in {training.accumulate} parts"
    switches = {"TF32": training.tf32, "channels last": training.channels_last, "compiled": training.compile}
    used = [name for name, on in (switches | {"CUDA graphs": training.cuda_graphs}).items() if on]
    rate = f"rate {training.learning_rate:g}"
    if training.learning_rate_end < 1:
        end = training.learning_rate * training.learning_rate_end
        rate += f", {end:g} from iteration {training.decay_iterations or iterations}"
    return ", ".join([batches, rate, training.precision, *used])


def _describe_gpu(config: RunConfig) -> str:
    perceptual, lacks = None, ""
    if any(config.per_level("losses.lpips_weight")):
        try:
            with torch.device("meta"):
                perceptual = load_lpips("vgg-random", config.losses.lpips_exponent, torch.device("meta"))
        except UserError:
            lacks = " (without LPIPS, which is not installed)"
    found = estimate_memory(config, perceptual)
    fits = ", ".join(f"{found.largest_batch(size)} on {size} GB" for size in CARDS)
    return (
        f"about {format_bytes(found.total)}{lacks}: the state, and {format_bytes(found.kept)} in the {found.player}'s "
        f"step at l = {found.level} for {found.batch} images at once; images at once that fit: {fits}"
    )


def _describe_disk(config: RunConfig, estimate: ResourceEstimate) -> str:
    parts = [f"checkpoints {format_total(KEPT, estimate.checkpoint)}, one more during a save"]
    if estimate.milestones:
        total = format_total(estimate.milestones, estimate.milestone)
        parts.append(f"milestones {total}, one every {config.training.keep_every}")
    return "; ".join([*parts, f"weights at the end {format_bytes(estimate.final)}"])
