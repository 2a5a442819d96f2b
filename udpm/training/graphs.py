"""Forward and backward passes recorded as CUDA graphs: launched all at once instead of kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from udpm.config.experiment import RunConfig
from udpm.networks.inference import record_graph
from udpm.training.batch import TrainingBatch
from udpm.training.losses import LossWeights

Outputs = list[torch.Tensor | None]
Pass = Callable[[str, TrainingBatch, LossWeights], dict[str, torch.Tensor]]
Record = Callable[[Callable[[], Outputs], Any], tuple[Callable[[], object], Outputs]]
"""Records a call, with memory that it may share with other recordings; returns what repeats it, and its outputs."""


def recorder_for(config: RunConfig, device: torch.device) -> Record | None:
    """Return what records the passes of a run; None where they are launched one kernel after the other."""
    return record_graph if config.training.cuda_graphs and device.type == "cuda" else None


@dataclass(frozen=True)
class _Recorded:
    """A recorded pass.

    Attributes:
        key: of what it reads and computes; it serves no other.
        inputs: the batch that it reads; the next one is copied into it.
        replay: repeats the pass.
        names: of the losses.
        losses: their values, which the next replay overwrites.
        gradients: of all parameters, None for those that have none; overwritten too.
    """

    key: tuple
    inputs: TrainingBatch
    replay: Callable[[], object]
    names: list[str]
    losses: torch.Tensor
    gradients: Outputs


class RecordedPasses:
    """Calls the forward and backward pass of a player's step by recordings.

    There is one for each player, level and whether R1 applies; it is made anew when a loss weight changes. Weights are
    read where they are, so they may change between calls but must stay where they are.

    Optimizers and averages are not recorded. They are a few kernels each, and the fused Adam of CUDA takes a learning
    rate on the device as float32 only, which is not the rate that it takes from the host.

    Args:
        run_pass: adds the gradients of a batch to the parameters' and returns the losses, detached.
        parameters: of each player's network.
        record: makes a recording.
        accumulate: whether gradients of several batches are summed.
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
        # The noise comes with the batch, scaled already; R1 is the discriminator's.
        weights = replace(weights, noise=0.0, r1=weights.r1 if player == "discriminator" else 0.0)
        key = (weights, *((name, value.shape, value.stride()) for name, value in batch.tensors().items()))
        slot = (player, batch.level, weights.r1 > 0)
        if slot not in self._kept or self._kept[slot].key != key:
            # First the old one's memory is given back.
            self._kept.pop(slot, None)
            self._kept[slot] = self._recorded(key, player, batch, weights)
        kept, parameters = self._kept[slot], self._parameters[player]
        for name, value in batch.tensors().items():
            getattr(kept.inputs, name).copy_(value)
        earlier = [parameter.grad for parameter in parameters]
        kept.replay()
        for parameter, before, gradient in zip(parameters, earlier, kept.gradients, strict=True):
            parameter.grad = gradient if before is None else before
        if self._accumulate:
            self._add(parameters, earlier, kept.gradients)
        return dict(zip(kept.names, kept.losses.clone().unbind(), strict=True))

    def _recorded(self, key: tuple, player: str, batch: TrainingBatch, weights: LossWeights) -> _Recorded:
        inputs = replace(batch, **{name: value.clone() for name, value in batch.tensors().items()})
        parameters, names = self._parameters[player], list[str]()

        def call() -> Outputs:
            for parameter in parameters:
                # The gradients then lie in the recording's own memory.
                parameter.grad = None
            losses = self._run_pass(player, inputs, weights)
            names[:] = losses
            return [torch.stack(list(losses.values())), *(parameter.grad for parameter in parameters)]

        earlier = [parameter.grad for parameter in parameters]
        devices = [batch.target.device] if batch.target.is_cuda else []
        # The calls that precede a recording draw from the random state, too.
        with torch.random.fork_rng(devices):
            replay, (losses, *gradients) = self._record(call, self._pool)
        assert losses is not None
        for parameter, before in zip(parameters, earlier, strict=True):
            parameter.grad = before
        return _Recorded(key, inputs, replay, names, losses, gradients)

    @staticmethod
    def _add(parameters: list[torch.nn.Parameter], earlier: Outputs, gradients: Outputs) -> None:
        for parameter, before, gradient in zip(parameters, earlier, gradients, strict=True):
            if gradient is None:
                continue
            if before is None:
                parameter.grad = gradient.clone()
            else:
                before.add_(gradient)
