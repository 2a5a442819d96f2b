"""A generator as sampling calls it: laid out for speed, in bfloat16, compiled or recorded; and what its calls cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from udpm.config.experiment import RunConfig
from udpm.config.model import check_fit
from udpm.core.devices import is_device_failure
from udpm.core.errors import UserError
from udpm.networks.discriminator import build_discriminator
from udpm.networks.layers import times_like
from udpm.networks.unet import UNet, generator_shape

VARIANTS = 64
"""Limit on compiled variants of one network: levels × batch sizes × (training, evaluation)."""


def compile_network(function: Callable[..., torch.Tensor], key: str, **options: Any) -> Callable[..., torch.Tensor]:
    """Compile a network separately for each input shape; the shapes are few and fixed.

    Args:
        function: the network, or a function that calls it.
        key: configuration key, for messages.
        options: options of torch.compile.

    Returns:
        A function with the arguments of `function`; raises UserError if compilation fails.
    """
    # Beyond its limit PyTorch silently falls back to eager mode.
    limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.recompile_limit = limit
    # With the default, the second level's shape would cause compilation for dynamic shapes, which is slower.
    fast = torch.compile(function, dynamic=False, **options)

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            return fast(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", None) or error
            if is_device_failure(cause):
                raise cause from None
            raise UserError(f"{key}: PyTorch cannot compile the network: {_reason(cause)}") from None

    return call


def _reason(cause: Exception) -> str:
    """Describe the cause of a failed compilation in one line."""
    if type(cause).__name__ == "InvalidCxxCompiler":
        return "no C++ compiler found; install g++, or leave the key out"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = lines[0] if lines else "no reason given"
    return f"{type(cause).__name__}: {reason}; leave the key out"


WARM_UP = 3
"""Calls before recording, in which libraries choose algorithms and allocate workspaces."""

Output = TypeVar("Output")
Recording = tuple[Callable[[], object], Output]
"""Function that replays a recorded call, and the output, which every replay overwrites."""
Record = Callable[[Callable[[], torch.Tensor]], Recording]


def record_graph(call: Callable[[], Output], pool: Any = None) -> Recording:
    """Record a call as a CUDA graph. Its inputs must be tensors with fixed addresses.

    Args:
        call: function that launches work on the current device without synchronizing.
        pool: memory shared with other recordings (`torch.cuda.graph_pool_handle`), which must not run while this
            recording's output is in use.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The prefetch thread allocates pinned memory at the same time, which mode "global" would forbid to all threads.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = call()
    return graph.replay, output


class CUDAGraphRunner:
    """Call a network by replaying CUDA graphs, one per shape and layout of its input. For inference only.

    Args:
        network: f, which must not change afterwards.
        record: records a call.
    """

    def __init__(self, network: Callable[..., torch.Tensor], record: Record = record_graph) -> None:
        self._network, self._record = network, record
        self._kept: dict[tuple, tuple[tuple[torch.Tensor, ...], Callable[[], object], torch.Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Call the network; arguments and output are those of `UNet`. Later calls do not overwrite the output."""
        given = (x, times_like(time, x)) if labels is None else (x, times_like(time, x), labels)
        key = tuple((value.shape, value.stride(), value.dtype) for value in given)
        if key not in self._kept:
            inputs = tuple(value.clone() for value in given)
            self._kept[key] = inputs, *self._record(lambda: self._network(*inputs))
        inputs, replay, output = self._kept[key]
        for held, value in zip(inputs, given, strict=True):
            held.copy_(value)
        replay()
        # The next replay overwrites the original.
        return output.clone()


Precision = Literal["float32", "bfloat16"]


def prepare_for_inference(
    generator: UNet, precision: Precision = "float32", *, compiles: bool = False, graphs: bool = False
) -> Callable[..., torch.Tensor]:
    """Prepare a generator for inference, in place.

    Converts weights to channels-last format; feature maps then follow, and convolutions need not reorder either. With
    bfloat16, rounds the weights of convolutions and linear layers once, instead of by autocast in every call;
    normalizations, time, softmax and the output stay float32.

    Args:
        generator: generator in eval mode.
        precision: precision of convolutions and linear layers.
        compiles: use torch.compile, at the first call of each shape; on GPUs, replay CUDA graphs of the result.
        graphs: on GPUs, replay CUDA graphs of the uncompiled network; no effect on a CPU.

    Returns:
        f, with float32 input and output.
    """
    # torch's stubs leave memory_format out.
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = generator if precision == "float32" else _in_bfloat16(generator)
    if compiles:
        return _compiled(network)
    if graphs and next(generator.parameters()).is_cuda:
        return CUDAGraphRunner(network)
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
    # This mode records CUDA graphs on a GPU. A mode with autotuning would produce different images in each process.
    fast = compile_network(network, "sampling.compile", mode="reduce-overhead", fullgraph=True)

    def call(x: torch.Tensor, time: float | torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        # Replays reuse the memory of outputs. They are cloned below, so every call may begin a new step.
        torch.compiler.cudagraph_mark_step_begin()
        # A number would be compiled as a constant.
        return fast(x, times_like(time, x), labels).clone()

    return call


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one image, and numbers of parameters.

    Attributes:
        side: N.
        calls: multiply-adds of the generator's call at level l, whose input has side N/2^l; l = 1 first.
        full_side: multiply-adds of one call of a network built for the full side.
        generator_at_full_side: multiply-adds of the generator with an input of side N.
        generator_parameters: parameters of the generator.
        full_side_parameters: parameters of the network built for the full side.
        discriminator_parameters: parameters of the discriminator, or None if none is trained.
    """

    side: int
    calls: tuple[int, ...]
    full_side: int
    generator_at_full_side: int
    generator_parameters: int
    full_side_parameters: int
    discriminator_parameters: int | None

    @property
    def total(self) -> int:
        """Multiply-adds of one image, with all L calls."""
        return sum(self.calls)

    @property
    def ratio(self) -> float:
        """Ratio of all L calls to one call of the network built for the full side."""
        return self.total / self.full_side

    @property
    def own_ratio(self) -> float:
        """Ratio of all L calls to one call of the generator itself at the full side."""
        return self.total / self.generator_at_full_side


def count_cost(config: RunConfig) -> Cost:
    """Count the cost of a configured model's networks, without allocating or computing anything.

    The network built for the full side has the generator's architecture with R = N and an output of the input's side.
    Its attention is at those of the same sides that are among its U-Net levels.

    Raises:
        UserError: the architecture cannot be built for the full side.
    """
    side, shape = config.dataset.side, generator_shape(config.model)
    _check_full_side(config)
    with torch.device("meta"):
        generator, full = UNet(shape), UNet(replace(shape, side=side, upscale=1))
        discriminator = build_discriminator(config) if config.adversarial else None
    return Cost(
        side=side,
        calls=tuple(multiply_adds(generator, side >> level) for level in range(1, config.process.levels + 1)),
        full_side=multiply_adds(full, side),
        generator_at_full_side=multiply_adds(generator, side),
        generator_parameters=count_parameters(generator),
        full_side_parameters=count_parameters(full),
        discriminator_parameters=count_parameters(discriminator) if discriminator is not None else None,
    )


def multiply_adds(network: UNet, side: int) -> int:
    """Count the multiply-adds of one call for one image, half of PyTorch's FLOPs.

    Includes convolutions (also resampling filters that are convolutions), linear layers and the two products of
    attention. Excludes normalizations, activations, softmax, and the pooling and repetition that implement filter
    [1, 1]. The network must be on the meta device.
    """
    image = torch.empty(1, network.shape.inputs, side, side, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.no_grad(), counted_flops() as counted:
        network(image, 0.5, label)
    return counted.flops // 2


@contextmanager
def counted_flops() -> Iterator[_Flops]:
    """Count PyTorch's FLOPs of what is called on the meta device, forwards and backwards; values are wrong."""
    with _Flops() as counted, _Skipped():
        yield counted


class _Flops(TorchDispatchMode):
    """Add up the FLOPs of operations in its context, including gradients of gradients."""

    # PyTorch's FlopCounterMode also tracks modules, by slow hooks that break when a gradient is differentiated.

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


class _Skipped(TorchFunctionMode):
    """Skip functions that keep the shape and are not counted: most of the time on the meta device is theirs."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if function in (F.group_norm, F.silu) else function(*args, **(kwargs or {}))


def count_parameters(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _check_full_side(config: RunConfig) -> None:
    # A network with R = N is the generator for images of side 2N.
    side, section = config.dataset.side, config.generator
    sides = [side >> depth for depth in range(len(section.channel_multipliers))]
    attention = [wanted for wanted in section.attention if wanted in sides]
    try:
        check_fit(2 * side, config.process, section.model_copy(update={"attention": attention}), "twice the side")
    except ValueError as error:
        raise UserError(f"{config.experiment}: as a network for the full side {side}: {error}") from None
