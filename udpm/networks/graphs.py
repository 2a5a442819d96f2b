"""A network's calls recorded as CUDA graphs: its kernels are launched all at once instead of one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from udpm.networks.layers import times_like

WARM_UP = 3
"""Calls before one is recorded, in which libraries choose algorithms and allocate what they keep."""

Output = TypeVar("Output")
Recording = tuple[Callable[[], object], Output]
"""What repeats a recorded call, and its output, which every repetition overwrites."""
Record = Callable[[Callable[[], torch.Tensor]], Recording]


def record_graph(call: Callable[[], Output], pool: Any = None) -> Recording:
    """Record a call as a CUDA graph. It must read from tensors that stay where they are.

    Args:
        call: run on the current device, without waiting for it.
        pool: memory to share with other recordings (`torch.cuda.graph_pool_handle`). None of these may run while this
            one's output is still read.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The thread that prepares noise allocates pinned memory meanwhile, which recording in mode "global" forbids to all.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = call()
    return graph.replay, output


@dataclass(frozen=True)
class _Kept:
    """A recorded call.

    Attributes:
        inputs: x, time and, where there are labels, these; what is to be computed is copied into them.
        replay: repeats the call.
        output: what it left.
    """

    inputs: tuple[torch.Tensor, ...]
    replay: Callable[[], object]
    output: torch.Tensor


class Graphs:
    """Calls a network by recordings, one for each shape and layout of its input. For inference only.

    Args:
        network: f, which must not change afterwards.
        record: makes a recording.
    """

    def __init__(self, network: Callable[..., torch.Tensor], record: Record = record_graph) -> None:
        self._network, self._record = network, record
        self._kept: dict[tuple, _Kept] = {}

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """One call of the network; arguments and output are a `UNet`'s. The output is the caller's own."""
        given = (x, times_like(time, x)) if labels is None else (x, times_like(time, x), labels)
        key = tuple((value.shape, value.stride(), value.dtype) for value in given)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = self._recorded(given)
        for held, value in zip(kept.inputs, given, strict=True):
            held.copy_(value)
        kept.replay()
        # The next replay overwrites it.
        return kept.output.clone()

    def _recorded(self, given: tuple[torch.Tensor, ...]) -> _Kept:
        inputs = tuple(value.clone() for value in given)
        replay, output = self._record(lambda: self._network(*inputs))
        return _Kept(inputs, replay, output)
