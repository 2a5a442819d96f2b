"""Description of a training run before it begins, with the memory of its steps; writes nothing.

Memory is counted without computing anything: each step runs on the meta device, whose tensors have shapes, types and
storages but no contents. A storage counts from the operation that creates it until its last reference goes, as in
PyTorch's allocator.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.data.levels import Levels
from udpm.networks.discriminator import GROUP
from udpm.runs.config_guard import check_config, check_weights
from udpm.runs.records import is_run
from udpm.runs.status import read_status
from udpm.training.batch import discriminator_is_due
from udpm.training.checkpoint import KEPT
from udpm.training.estimate import (
    FLOAT,
    IterationCounter,
    ResourceEstimate,
    estimate_resources,
    format_bytes,
    format_total,
    iteration_cost,
    tensor_bytes,
)
from udpm.training.graphs import recorded_steps
from udpm.training.losses import LossWeights, loss_weights
from udpm.training.perceptual import Perceptual, load_lpips


def describe_run(config: RunConfig, levels: Levels | None, run: Path | None) -> str:
    """Describe a run before it starts: configuration, networks, memory, disk, arithmetic and devices, a line for each.

    Raises:
        UserError: the folder contains a run of another configuration, or the initial weights do not exist.
    """
    folder = _describe_folder(config, run)
    check_weights(run, config)
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
    cost = iteration_cost(config, iterations=iterations)
    arithmetic = f"{cost.multiply_adds / 1e9:.4g} G multiply-adds per iteration"
    if any(config.per_level("losses.lpips_weight")):
        arithmetic += " without LPIPS"
    lines = {
        "run": f"{config.experiment}, seed {config.seed}{folder}",
        "data": data,
        "process": f"{config.process.levels} levels, alphas {config.process.alphas}, sigmas {config.process.sigmas}",
        "networks": f"{networks}; averages {', '.join([*training.averages, *training.power_averages]) or 'none'}",
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
    kind = "adversarial" if config.losses.adversarial == "standard" else "relativistic adversarial"
    keys |= {"LPIPS": "lpips_weight", kind: "adversarial_weight", "R1": "r1_gamma", "R2": "r2_gamma"}
    weights = {name: config.per_level(f"losses.{key}") for name, key in keys.items()}
    parts = [f"{name} {values}" for name, values in weights.items() if any(values)]
    if config.losses.augmentation.transforms:
        parts.append(f"augmentation with probability {config.losses.augmentation.probability:g}")
    return ", ".join(parts)


def _describe_training(config: RunConfig, iterations: int) -> str:
    training = config.training
    batches = f"{iterations} iterations of {training.batch} images"
    if training.processes > 1:
        shape = f"{training.nodes} × {training.processes_per_node}"
        batches += f": {training.batch // training.processes} for each of {training.processes} processes ({shape})"
    if training.accumulate > 1:
        batches += f", in {training.accumulate} parts"
    switches = {
        "TF32": training.tf32 and training.device != "cpu",
        "channels last": training.channels_last,
        "compiled": training.compile,
        "CUDA graphs": training.cuda_graphs,
        "noise of a counter": training.noise == "counter",
    }
    used = [name for name, on in switches.items() if on]
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
    if estimate.snapshots:
        parts.append(f"snapshots for udpm average {format_total(estimate.snapshots, estimate.snapshot)}")
    return "; ".join([*parts, f"weights at the end {format_bytes(estimate.final)}"])


CARDS = (24, 40, 80)
"""Memory of common GPUs in GB."""
USABLE = 0.9
"""Usable share of a GPU's memory; the rest is for fragmentation, workspaces of libraries, and errors."""
CONTEXT = 1e9
"""Bytes of a CUDA context and its libraries, which PyTorch's own count leaves out."""
BLOCK = 512
"""Bytes that PyTorch's allocator rounds up to."""
TERMS = {
    "discriminator": ("r1", "r2", "noise", "dropout"),
    "generator": ("energy", "lpips", "adversarial", "noise"),
}
"""Fields of `LossWeights` that add to what a player's step keeps."""


@dataclass(frozen=True)
class BatchMemory:
    """Memory of a training on each device, in bytes.

    Attributes:
        state: weights, gradients, moments and averages; with recorded passes, their gradients.
        perceptual: weights of LPIPS.
        batch: images at once on a device: its share of the batch, or a part of it with `training.accumulate`.
        kept: peak of what the networks keep of these images; with recorded passes, also the peak of the calls before a
            recording.
        level, player: of the step with the peak.
        per_image: growth of the peak per further image.
    """

    state: int
    perceptual: int
    batch: int
    kept: int
    level: int
    player: str
    per_image: float

    @property
    def total(self) -> int:
        """Peak of the sum."""
        return self.state + self.perceptual + self.kept

    def largest_batch(self, gigabytes: float) -> int:
        """Return the number of images at once that fit into a GPU of this size; 0 if the state alone does not."""
        free = USABLE * gigabytes * 1e9 - CONTEXT - self.total
        batch = int(self.batch + free / self.per_image)
        return max(0, batch // GROUP * GROUP if batch >= GROUP else batch)


def estimate_memory(config: RunConfig, perceptual: Perceptual | None = None, batch: int | None = None) -> BatchMemory:
    """Estimate the memory of a training on each device.

    Does not count images kept on the device (`training.data`) or savings by torch.compile.

    Args:
        config: of a run that trains.
        perceptual: LPIPS; None leaves out its features.
        batch: images at once; by default as configured.
    """
    training = config.training
    batch = batch or training.batch // training.processes // training.accumulate
    steps = _Steps(config, perceptual)
    order = sorted(steps.largest(), key=lambda step: steps.peak(step[0], step[1], batch), reverse=True)
    together = order[:1]
    if training.cuda_graphs:
        # One step is called before it is recorded, while the recordings' memory has room for the largest. A decaying
        # weight has the largest recorded anew.
        together = [order[0], order[0] if config.losses.r1_decay_per_1000 != 1 else order[:2][-1]]
    kept, more = (sum(steps.peak(player, level, size) for player, level in together) for size in (batch, batch + GROUP))
    needs = estimate_resources(config, training.iterations)
    recorded = 0
    if training.cuda_graphs:
        # Every recording has separate gradients. The state has those of one for each player, or sums over parts.
        counted = 0 if training.accumulate > 1 else 1
        recordings = Counter(player for player, _, _ in recorded_steps(config))
        recorded = sum(FLOAT * needs.parameters[player] * (count - counted) for player, count in recordings.items())
    return BatchMemory(
        state=needs.state + recorded,
        perceptual=tensor_bytes(perceptual.parameters()) if perceptual is not None else 0,
        batch=batch,
        kept=kept,
        level=order[0][1],
        player=order[0][0],
        per_image=(more - kept) / GROUP,
    )


class _Steps:
    """Steps of a run's players in an iteration with all losses."""

    def __init__(self, config: RunConfig, perceptual: Perceptual | None) -> None:
        self._config, self._counter = config, IterationCounter(config, perceptual)
        start, every = config.losses.adversarial_start, config.training.discriminator_every * config.losses.r1_every
        iteration = -(-start // every) * every
        self.players = ["discriminator", "generator"] if discriminator_is_due(config, iteration) else ["generator"]
        self._weights = [weights.at(iteration) for weights in loss_weights(config)]
        if perceptual is None:
            self._weights = [replace(weights, lpips=0.0) for weights in self._weights]
        self._known: dict[tuple[str, int, int], int] = {}

    def largest(self) -> list[tuple[str, int]]:
        """Return players and levels, without levels whose terms a finer one has, too."""
        found: list[tuple[str, int]] = []
        for player in self.players:
            finer: list[set[str]] = []
            for level, weights in enumerate(self._weights, start=1):
                terms = {name for name in TERMS[player] if getattr(weights, name) > 0}
                if player == "discriminator" and not weights.adversarial:
                    continue
                if not any(terms <= other for other in finer):
                    found.append((player, level))
                finer.append(terms)
        return found

    def peak(self, player: str, level: int, batch: int) -> int:
        """Return the peak of the bytes that a step adds to the state, which includes gradients."""
        if (player, level, batch) not in self._known:
            self._known[player, level, batch] = self._count(player, level, batch)
        return self._known[player, level, batch]

    def _count(self, player: str, level: int, batch: int) -> int:
        weights = self._weights[level - 1]
        parameters = self._counter.parameters(player)
        for parameter in parameters:
            parameter.grad = None
        peak = 0
        # Later parts add to existing gradients.
        for _ in range(min(self._config.training.accumulate, 2)):
            before = tensor_bytes(parameter.grad for parameter in parameters if parameter.grad is not None)
            with LiveBytes() as counted:
                self._forward(player, level, weights, batch).backward()
            peak = max(peak, before + counted.peak)
        own = tensor_bytes(parameter.grad for parameter in parameters if parameter.grad is not None)
        for parameter in parameters:
            parameter.grad = None
        return max(0, peak - own)

    def _forward(self, player: str, level: int, weights: LossWeights, batch: int) -> torch.Tensor:
        enabled = self._config.training.precision == "bfloat16"
        with AsOnGPU(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return self._counter.forward(player, level, weights, batch)


class LiveBytes(TorchDispatchMode):
    """Track the storages of tensors that operations create in its context: bytes of live ones, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = {id(value.untyped_storage()) for value in _tensors((args, kwargs))}
        for value in _tensors(found):
            storage = value.untyped_storage()
            known = self._known.get(id(storage))
            if id(storage) not in given and (known is None or known() is not storage):
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self._known[id(storage)] = weakref.ref(storage)
                weakref.finalize(storage, self._free, size)
                self.live += size
        self.peak = max(self.peak, self.live)
        return found

    def _free(self, size: int) -> None:
        self.live -= size


LOWER = {"conv2d", "conv_transpose2d", "linear", "matmul", "bmm"}
"""Functions whose inputs CUDA's autocast converts to bfloat16."""
FULL = {"group_norm", "softplus", "l1_loss", "mse_loss", "pow", "__pow__", "interpolate"}
"""Functions whose inputs CUDA's autocast converts to float32."""


class AsOnGPU(TorchFunctionMode):
    """Make operations on the meta device keep the tensors that they keep on a GPU.

    Applies CUDA's autocast rules to the functions that networks and losses call, while autocast is enabled for the CPU
    (the meta device has none), and replaces attention and dropout by their fused versions.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cast: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if torch.is_autocast_enabled("cpu") and name in LOWER | FULL:
            kind = torch.bfloat16 if name in LOWER else torch.float32
            args, kwargs = tree_map(lambda value: self._to(value, kind), (args, kwargs))
        if name == "scaled_dot_product_attention":
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, torch.is_grad_enabled())[0]
        if name == "dropout":
            value, probability, training = (*args, *kwargs.values())[:3]
            return torch.native_dropout(value, probability, training)[0] if training and probability else value
        return function(*args, **kwargs)

    def _to(self, value: Any, kind: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == kind:
            return value
        if not (value.is_leaf and value.requires_grad and kind == torch.bfloat16):
            return value.to(kind)
        # A weight is converted once per pass and kept until its end.
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(kind)
        return self._cast[id(value)]


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
