"""Forward and backward passes recorded as CUDA graphs: one launch instead of one per kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from udpm.config.experiment import RunConfig
from udpm.networks.inference import record_graph
from udpm.training.batch import TrainingBatch, discriminator_is_due, level_shares
from udpm.training.losses import LossWeights, loss_weights

Outputs = list[torch.Tensor | None]
Pass = Callable[[str, TrainingBatch, LossWeights], dict[str, torch.Tensor]]
Record = Callable[[Callable[[], Outputs], Any], tuple[Callable[[], object], Outputs]]
"""Function of a call and a memory pool that records the call; returns a function that repeats it, and its outputs."""


def recorder_for(config: RunConfig, device: torch.device) -> Record | None:
    """Return the recorder of a run's passes; None without CUDA graphs."""
    return record_graph if config.training.cuda_graphs and device.type == "cuda" else None


def recorded_steps(config: RunConfig) -> set[tuple[str, int, bool]]:
    """Return the steps that are recorded separately once the adversarial loss has started.

    Each is a player, a level that training draws, and whether the step has a penalty. The discriminator takes none at a
    level without adversarial weight, and one of both kinds where R1 or R2 is applied only in every n-th step.
    """
    weights = loss_weights(config)
    levels = [level for level, share in enumerate(level_shares(config), start=1) if share]
    start, period = config.losses.adversarial_start, config.training.discriminator_every * config.losses.r1_every
    due = [iteration for iteration in range(start, start + period) if discriminator_is_due(config, iteration)]
    found = {("generator", level, False) for level in levels}
    return found | {
        ("discriminator", level, weights[level - 1].at(iteration).penalised)
        for level in levels
        if weights[level - 1].adversarial > 0
        for iteration in due
    }


@dataclass(frozen=True)
class _Recorded:
    """A recorded pass, limited to the inputs and weights of `key`.

    It reads `inputs`, into which later batches are copied. The next replay overwrites losses and gradients.
    """

    key: tuple
    inputs: TrainingBatch
    replay: Callable[[], object]
    names: list[str]
    losses: torch.Tensor
    gradients: Outputs


class RecordedPasses:
    """Run the forward and backward pass of a player's step by recordings.

    There is one recording per player, level and use of penalties, renewed when a loss weight changes. It reads weights
    in place: they may change between calls, but not move.

    Optimizers and averages are not recorded: they are a few kernels each, and CUDA's fused Adam rounds a learning rate
    on the device to float32, which one from the host is not.

    `run_pass` adds the gradients of a batch to the parameters' and returns the losses, detached.
    """

    def __init__(
        self, run_pass: Pass, parameters: dict[str, list[torch.nn.Parameter]], record: Record, *, accumulate: bool
    ) -> None:
        self._run_pass, self._parameters, self._record = run_pass, parameters, record
        self._accumulate = accumulate
        self._pool = torch.cuda.graph_pool_handle() if record is record_graph else None
        self._kept: dict[tuple, _Recorded] = {}

    def __call__(self, player: str, batch: TrainingBatch, weights: LossWeights) -> dict[str, torch.Tensor]:
        """Do the same as `run_pass`, by a recording."""
        # Irrelevant to a recording: the batch's noise is already scaled, and penalties are the discriminator's.
        weights = replace(weights, noise=0.0)
        if player == "generator":
            weights = replace(weights, r1=0.0, r2=0.0)
        key = (weights, *((name, value.shape, value.stride()) for name, value in batch.tensors().items()))
        slot = (player, batch.level, weights.penalised)
        if slot not in self._kept or self._kept[slot].key != key:
            # Free the old recording's memory first.
            self._kept.pop(slot, None)
            self._kept[slot] = self._recorded(key, player, batch, weights)
        kept, parameters = self._kept[slot], self._parameters[player]
        for name, value in batch.tensors().items():
            getattr(kept.inputs, name).copy_(value)
        earlier = [parameter.grad for parameter in parameters]
        kept.replay()
        for parameter, before, gradient in zip(parameters, earlier, kept.gradients, strict=True):
            if before is not None:
                parameter.grad = before if gradient is None else before.add_(gradient)
            else:
                # The next replay overwrites `gradient`.
                parameter.grad = gradient.clone() if self._accumulate and gradient is not None else gradient
        return dict(zip(kept.names, kept.losses.clone().unbind(), strict=True))

    def _recorded(self, key: tuple, player: str, batch: TrainingBatch, weights: LossWeights) -> _Recorded:
        inputs = replace(batch, **{name: value.clone() for name, value in batch.tensors().items()})
        parameters, names = self._parameters[player], list[str]()

        def call() -> Outputs:
            for parameter in parameters:
                # So that gradients are allocated in the recording's memory.
                parameter.grad = None
            losses = self._run_pass(player, inputs, weights)
            names[:] = losses
            return [torch.stack(list(losses.values())), *(parameter.grad for parameter in parameters)]

        earlier = [parameter.grad for parameter in parameters]
        devices = [batch.target.device] if batch.target.is_cuda else []
        # Warm-up calls before a recording draw random numbers, too.
        with torch.random.fork_rng(devices):
            replay, (losses, *gradients) = self._record(call, self._pool)
        assert losses is not None
        for parameter, before in zip(parameters, earlier, strict=True):
            parameter.grad = before
        return _Recorded(key, inputs, replay, names, losses, gradients)
