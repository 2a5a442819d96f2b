"""Failures of a device and its libraries: recognize them, and report them in one line. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from udpm.core.errors import UserError

# PyTorch has exception types for some of these only; libraries, TorchScript and NCCL pass on the text.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|alloc_failed", re.IGNORECASE)
_FAILED = re.compile(
    r"\b(CUDA|HIP|NCCL) (driver |runtime |kernel )?error|\bcuda failure|CU(DNN|BLAS|SOLVER|FFT)_STATUS|cudnn error|"
    r"device-side assert|illegal memory access|\bnccl(Unhandled|System|Internal|Invalid)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+ (?:[KMGT]i?B|bytes))", re.IGNORECASE)
LESS = "use smaller batches or images, or a machine with more memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def is_device_failure(error: BaseException) -> bool:
    """Return whether a device or its libraries failed (out of memory, a CUDA or NCCL error), rather than the input."""
    if is_out_of_memory(error) or type(error).__name__ in ("AcceleratorError", "DistBackendError"):
        return True
    return isinstance(error, RuntimeError) and _FAILED.search(str(error)) is not None


@contextmanager
def as_user_errors(relief: str = LESS) -> Iterator[None]:
    """Raise a device's failure as a `UserError` of one line; other errors pass through.

    Args:
        relief: what to change where memory runs out.

    Raises:
        UserError: memory ran out, or the device or one of its libraries failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_device_failure(error):
            raise
        raise UserError(describe(error, relief)) from error


def describe(error: BaseException, relief: str = LESS) -> str:
    """Describe a device's failure in one line, without addresses and process IDs, which change from run to run.

    Args:
        error: for which `is_device_failure` holds.
        relief: what to change where memory runs out.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not is_out_of_memory(error):
        first = next((line for line in lines if _FAILED.search(line)), lines[0] if lines else type(error).__name__)
        # NCCL names the cause in the line below this one.
        last = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else []
        return f"the device or one of its libraries failed: {': '.join([first, *last[:1]])}"
    asked = _ASKED.search(str(error))
    size = f" (tried to allocate {asked[1]})" if asked else ""
    return f"out of memory on {_where(str(error))}{size}: {relief}"


def _where(text: str) -> str:
    on_gpu = re.search(r"\b(CUDA|GPU|HIP|CUBLAS\w*|CUDNN\w*|NCCL)", text, re.IGNORECASE)
    return "the GPU" if on_gpu else "the CPU"
