"""A generator as sampling calls it: laid out for convolutions; in bfloat16, compiled, or recorded as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from udpm.core.devices import is_device_failure
from udpm.core.errors import UserError
from udpm.networks.layers import times_like
from udpm.networks.unet import UNet

VARIANTS = 64
"""Compiled forms that one network may have: levels × sizes of batch × (training, evaluation)."""


def compiled(function: Callable[..., torch.Tensor], key: str, **options: Any) -> Callable[..., torch.Tensor]:
    """A network compiled anew for each shape of its input, which are few and fixed.

    Args:
        function: the network, or a function that calls it.
        key: of the configuration, for messages.
        options: of torch.compile.

    Returns:
        What is called like `function`; raises UserError where it cannot be compiled.
    """
    # Beyond its limit PyTorch goes on eagerly, and says so only to its log.
    limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.recompile_limit = limit
    # Left open, the second level's shape would make a form for any shape, slower than one for its own.
    fast = torch.compile(function, dynamic=False, **options)

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            return fast(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", None) or error
            if is_device_failure(cause):
                raise cause from None
            raise UserError(f"{key}: PyTorch cannot compile the network here: {_reason(cause)}") from None

    return call


def _reason(cause: Exception) -> str:
    """One line of what went wrong."""
    if type(cause).__name__ == "InvalidCxxCompiler":
        return "there is no C++ compiler; install g++, or leave the key out"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    told = lines[0] if lines else "no reason given"
    return f"{type(cause).__name__}: {told}; leave the key out"


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


Precision = Literal["float32", "bfloat16"]


def serve(
    generator: UNet, precision: Precision = "float32", *, compiles: bool = False, graphs: bool = False
) -> Callable[..., torch.Tensor]:
    """Prepare a generator for inference, in place.

    Weights have their channels last, so that feature maps do too and convolutions need not reorder either. With
    bfloat16 the weights of convolutions and linear layers are rounded once, here, instead of by autocast in every call;
    normalisations, time, softmax and what comes out stay float32.

    Args:
        generator: in eval mode.
        precision: of convolutions and linear layers.
        compiles: by torch.compile, at the first call of each shape; GPUs then replay CUDA graphs of it.
        graphs: on a GPU, replay CUDA graphs of the uncompiled network; of no effect on a CPU.

    Returns:
        f, float32 in and out.
    """
    # torch's stubs leave memory_format out.
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = generator if precision == "float32" else _in_bfloat16(generator)
    if compiles:
        return _compiled(network)
    if graphs and next(generator.parameters()).is_cuda:
        return Graphs(network)
    return network


def _in_bfloat16(generator: UNet) -> Callable[..., torch.Tensor]:
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)

    def call(x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return generator(x, time, labels).float()

    return call


def _compiled(network: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    # This mode records CUDA graphs on a GPU. One that tries algorithms out would draw other images in another process.
    fast = compiled(network, "sampling.compile", mode="reduce-overhead", fullgraph=True)

    def call(x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        # Outputs lie in memory that later calls write to: none is kept beyond this call, so each begins anew.
        torch.compiler.cudagraph_mark_step_begin()
        # As a tensor: a number would be compiled in.
        return fast(x, times_like(time, x), labels).clone()

    return call
