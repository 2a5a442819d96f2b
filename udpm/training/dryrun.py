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
from udpm.training.estimate import (
    ResourceEstimate,
    estimate_resources,
    format_bytes,
    format_total,
    iteration_cost,
)
from udpm.training.losses import load_lpips
from udpm.training.memory import CARDS, estimate_memory


def describe_run(config: RunConfig, levels: Levels | None, run: Path | None) -> str:
    """Configuration, networks, memory, disk, arithmetic and devices, as lines to read.

    Args:
        config: of the run, which trains.
        levels: the data set and its caches, if there.
        run: the run's folder, if known.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    iterations = _describe_iterations(config, levels)
    needs = estimate_resources(config, iterations)
    lines = {
        "run": f"{config.experiment}, seed {config.seed}{_describe_standing(config, run)}",
        "data": _describe_data(config, levels),
        "process": f"{config.process.levels} levels, alphas {config.process.alphas}, sigmas {config.process.sigmas}",
        "networks": _describe_networks(config, needs),
        "losses": _describe_losses(config),
        "training": _describe_training(config, iterations),
        "memory": (
            f"{format_bytes(needs.state)} for the state on each device: weights {format_bytes(needs.weights)}, "
            f"gradients {format_bytes(needs.gradients)}, Adam {format_bytes(needs.moments)}, averages "
            f"{format_bytes(needs.averages)}"
        ),
        "GPU": _describe_gpu(config),
        "disk": _describe_disk(config, needs),
        "devices": f"{devices.found()} here; training.device: {config.training.device}",
        "arithmetic": _describe_arithmetic(config),
    }
    return "".join(f"{name:<11}{text}\n" for name, text in lines.items())


def _describe_iterations(config: RunConfig, levels: Levels | None) -> int:
    if levels is None:
        return config.training.iterations
    split = levels.store.split("train")
    return config.training.ends_at(split.stop - split.start)


def _describe_standing(config: RunConfig, run: Path | None) -> str:
    if run is None:
        return ""
    if not is_run(run):
        return f"; {run} is new"
    check_config(run, config, allow_world_size_change=False, writes=False)
    standing = read_status(run)
    at = "" if standing.checkpoint is None else f", last checkpoint {standing.checkpoint}"
    return f"; {run} is {standing.state}{at}"


def _describe_data(config: RunConfig, levels: Levels | None) -> str:
    side, classes = config.dataset.side, config.classes
    told = f"{config.dataset_name}, {side}×{side}, {f'{classes} classes' if classes else 'no labels'}"
    if levels is None:
        return told
    split = levels.store.split("train")
    return f"{told}, {split.stop - split.start} training images"


def _describe_networks(config: RunConfig, needs: ResourceEstimate) -> str:
    section, counts = config.generator, needs.parameters
    told = f"generator {section.family} {counts['generator'] / 1e6:.2f} M parameters"
    if "discriminator" in counts:
        told += f", discriminator {counts['discriminator'] / 1e6:.2f} M"
    return told + f"; averages {', '.join(config.training.averages) or 'none'}"


def _describe_losses(config: RunConfig) -> str:
    losses = config.losses
    keys = {
        losses.reconstruction: "reconstruction_weight",
        "LPIPS": "lpips_weight",
        "adversarial": "adversarial_weight",
    }
    parts = {name: config.per_level(f"losses.{key}") for name, key in (keys | {"R1": "r1_gamma"}).items()}
    return ", ".join(f"{name} {values}" for name, values in parts.items() if any(values))


def _describe_training(config: RunConfig, iterations: int) -> str:
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
    switches["CUDA graphs"] = training.cuda_graphs
    return ", ".join(
        [told, f"rate {training.learning_rate:g}", training.precision, *(k for k, on in switches.items() if on)]
    )


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


def _describe_disk(config: RunConfig, needs: ResourceEstimate) -> str:
    told = f"checkpoints {format_total(KEPT, needs.checkpoint)}, one more during a save; "
    if needs.milestones:
        told += (
            f"milestones {format_total(needs.milestones, needs.milestone)}, one every {config.training.keep_every}; "
        )
    return told + f"weights at the end {format_bytes(needs.final)}"


def _describe_arithmetic(config: RunConfig) -> str:
    text = f"{iteration_cost(config).multiply_adds / 1e9:.4g} G multiply-adds per iteration"
    if any(config.per_level("losses.lpips_weight")):
        text += " without LPIPS"
    return f"{text}; udpm bench train measures how long it takes"
