"""Networks compiled by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from udpm.core.device_errors import is_device_failure
from udpm.core.errors import UserError

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
