"""What a device or its libraries report when they fail, told as what it is. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from udpm.core.errors import UserError

# PyTorch has types of its own for some of these only; libraries, TorchScript and NCCL pass the words on.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|alloc_failed", re.IGNORECASE)
_FAILED = re.compile(
    r"\b(CUDA|HIP|NCCL) (driver |runtime |kernel )?error|\bcuda failure|CU(DNN|BLAS|SOLVER|FFT)_STATUS|cudnn error|"
    r"device-side assert|illegal memory access|\bnccl(Unhandled|System|Internal|Invalid)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+ (?:[KMGT]i?B|bytes))", re.IGNORECASE)
LESS = "ask for less at once, or take a machine with more memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, a device's or the host's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def is_device_failure(error: BaseException) -> bool:
    """Whether an error is of a device or its libraries (out of memory, a CUDA or NCCL error), not of what was given."""
    if is_out_of_memory(error) or type(error).__name__ in ("AcceleratorError", "DistBackendError"):
        return True
    return isinstance(error, RuntimeError) and _FAILED.search(str(error)) is not None


@contextmanager
def told_plainly(relief: str = LESS) -> Iterator[None]:
    """Turn a device's failure into one line; everything else passes.

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
        raise UserError(described(error, relief)) from error


def described(error: BaseException, relief: str = LESS) -> str:
    """A device's failure in one line, without addresses and process numbers, which differ each time."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not is_out_of_memory(error):
        told = next((line for line in lines if _FAILED.search(line)), lines[0] if lines else type(error).__name__)
        # NCCL says what went wrong in its last line, under this heading.
        last = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else []
        return f"the device or one of its libraries failed: {': '.join([told, *last[:1]])}"
    asked = _ASKED.search(str(error))
    wanted = f" ({asked[1]} more were asked for)" if asked else ""
    return f"out of memory on {_whose(str(error))}{wanted}: {relief}"


def _whose(text: str) -> str:
    on_gpu = re.search(r"\b(CUDA|GPU|HIP|CUBLAS\w*|CUDNN\w*|NCCL)", text, re.IGNORECASE)
    return "the GPU" if on_gpu else "the CPU"
