"""Devices: choose one, copy to and from it, report its failures in one line. Imports no torch at import."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udpm.core import gpus
from udpm.core.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np
    import torch

    from udpm.core.work import StopRequest


# PyTorch has exception types for only some of these; libraries, TorchScript and NCCL report only text.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|alloc_failed", re.IGNORECASE)
_FAILED = re.compile(
    r"\b(CUDA|HIP|NCCL) (driver |runtime |kernel )?error|\bcuda failure|CU(DNN|BLAS|SOLVER|FFT)_STATUS|cudnn error|"
    r"device-side assert|illegal memory access|\bnccl(Unhandled|System|Internal|Invalid)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+ (?:[KMGT]i?B|bytes))", re.IGNORECASE)
LESS = "use smaller batches or images, or a machine with more memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that memory ran out, on a device or on the host."""
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
    """Convert a device failure into a `UserError` of one line, with the advice `relief` if memory runs out.

    Raises:
        UserError: memory ran out, or the device or one of its libraries failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_device_failure(error):
            raise
        raise UserError(describe_failure(error, relief)) from error


def describe_failure(error: BaseException, relief: str = LESS) -> str:
    """Describe an error for which `is_device_failure` holds in one line, with the advice `relief` if memory ran out.

    Leaves out addresses and process IDs, which change from run to run.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not is_out_of_memory(error):
        first = next((line for line in lines if _FAILED.search(line)), lines[0] if lines else type(error).__name__)
        # NCCL prints the cause on the line after "Last error:".
        last = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else []
        return f"the device or one of its libraries failed: {': '.join([first, *last[:1]])}"
    asked = _ASKED.search(str(error))
    size = f" (tried to allocate {asked[1]})" if asked else ""
    on_gpu = re.search(r"\b(CUDA|GPU|HIP|CUBLAS\w*|CUDNN\w*|NCCL)", str(error), re.IGNORECASE)
    return f"out of memory on {'the GPU' if on_gpu else 'the CPU'}{size}: {relief}"


def configure(
    device: str,
    threads: int,
    local: int | None = None,
    *,
    tf32: bool = False,
    own_gpu: bool = False,
    stop: StopRequest | bool = False,
) -> torch.device:
    """Choose the device and fix the number of CPU threads.

    Results on a CPU depend on the number of threads, so the configuration sets it and overrides OMP_NUM_THREADS.

    Args:
        device: "auto" (CUDA if available, else CPU), "cpu" or "cuda".
        threads: CPU threads of this process, >= 1.
        local: index of its GPU, the local rank of one of several processes; None: a GPU that no other process of udpm
            uses, if one is free.
        tf32: allow GPUs to compute float32 products with TF32 inputs.
        own_gpu: the launcher may have assigned this process one GPU, the only one that it sees.
        stop: checked while waiting for a GPU.

    Raises:
        UserError: "cuda" is configured but not available, or the node has fewer GPUs than processes.
        StoppedEarly: a signal came while waiting.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    chosen = choose(device, local, own_gpu=own_gpu, stop=stop)
    if chosen.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        # Benchmarking algorithms would let timing decide how results are rounded.
        torch.backends.cudnn.benchmark = False
        torch.cuda.set_device(chosen.index)
    return chosen


def choose(
    device: str, local: int | None = None, *, own_gpu: bool = False, stop: StopRequest | bool = False
) -> torch.device:
    """Choose a device and claim it if it is a GPU, without changing PyTorch's settings.

    Args:
        device: "auto", "cpu" or "cuda", as of `configure`; or one GPU, "cuda:1".
        local, own_gpu, stop: as of `configure`.

    Raises:
        UserError, StoppedEarly: as `configure`; or an unknown device.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
        raise UserError(f"device: must be auto, cpu, cuda or one GPU such as cuda:1, got {device!r}")
    device, _, number = device.partition(":")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is not available: PyTorch sees no CUDA device; use device: auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    names = gpus.visible()
    if len(names) != count:
        names = [str(number) for number in range(count)]
    if number:
        local = int(number)
        if local >= count:
            raise UserError(f"device: cuda:{local} is not available: PyTorch sees {found()}, numbered from 0")
    elif local is None:
        (local,) = gpus.claim(names, wait=gpus.is_exclusive(), stop=stop)
    elif own_gpu and count == 1:
        # `srun --gpus-per-task=1` and the like. NCCL refuses two processes that see the same GPU.
        local = 0
    if local >= count:
        raise UserError(
            f"device: process {local + 1} of this node sees {count} GPU{'s' * (count != 1)}; request a GPU for each "
            "process, or start fewer (training.processes_per_node)"
        )
    gpus.mark(names[local])
    return torch.device("cuda", local)


def uses_tf32(device: torch.device) -> bool:
    """Return whether float32 products on a device may use TF32 inputs, for records; on a CPU they never do."""
    import torch

    backends = torch.backends
    return device.type == "cuda" and (backends.cuda.matmul.allow_tf32 or backends.cudnn.allow_tf32)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    # The second number of statm is the resident set, in pages: proc(5).
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def found() -> str:
    """Describe the CUDA devices of this machine, e.g. "2 × NVIDIA H200" or "no CUDA device"."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "no CUDA device"


def survey() -> dict[str, Any]:
    """Describe PyTorch and the GPUs that it sees, as JSON. Initializes CUDA, which may take long or end the process.

    Returns:
        torch: version; cuda, hip: versions of the build, or None; driver: highest version of CUDA that the driver
        takes, in thousands, or None; trouble: the reason in one line why there is no GPU, or None; gpus: name, memory
        and free memory in bytes of each (None if it cannot be read); nccl: version, or None; hub: torchvision's folder
        of downloaded files.
    """
    import torch

    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "driver": version() if version else None,
        "trouble": None,
        "gpus": [],
        "nccl": None,
        "hub": torch.hub.get_dir(),
    }
    try:
        torch.cuda.init()
    # A build for CPUs raises AssertionError.
    except (RuntimeError, AssertionError) as error:
        found["trouble"] = first_line(error)
    else:
        found["gpus"] = [_survey_gpu(index) for index in range(torch.cuda.device_count())]
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def _survey_gpu(index: int) -> dict[str, Any]:
    import torch

    properties, free = torch.cuda.get_device_properties(index), None
    # A GPU in exclusive mode takes no second process.
    with suppress(RuntimeError):
        free = torch.cuda.mem_get_info(index)[0]
    return {"name": properties.name, "memory": properties.total_memory, "free": free}


def describe(device: torch.device) -> str:
    """Describe a device for records, e.g. "NVIDIA H200" or "cpu (2 threads)"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{device.type} ({count} thread{'s' if count != 1 else ''})"


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Convert images in [-1, 1], (B, 3, h, w), to (B, h, w, 3) uint8 on their device, rounded and clipped."""
    import torch

    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """Convert images as `to_uint8` does, to an array on the host."""
    return to_uint8(images).cpu().numpy()


def pinned(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy host values to pinned memory if they will go to a GPU, which can then fetch them asynchronously."""
    return values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy host values to a device. For a GPU the copy is queued in stream order, and the host does not wait.

    Values on the device stay where they are.
    """
    if device.type != "cuda":
        return values.to(device)
    # PyTorch's allocator does not reuse the pinned memory before the copy is done.
    return pinned(values, device).to(device, non_blocking=True)


def bind_thread(device: torch.device) -> None:
    """Make a device current in this thread; a new thread starts with the first GPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)


class AsyncHostCopy:
    """Asynchronous copy of values on any device to the host; later changes to them are not copied."""

    def __init__(self, values: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._host = values
        if values.is_cuda:
            import torch

            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def wait(self) -> torch.Tensor:
        """Return the values, after the copy has finished."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


# The published Linux wheel of torchvision is built for CUDA. With a CPU build of torch its compiled operators do not
# load, and `import torchvision` (hence lpips and clean-fid) fails when it registers a fake kernel for torchvision::nms.
# Declaring the two schemas is enough: transforms and models never call them. The library must stay alive.
_library: torch.library.Library | None = None


def patch_torchvision() -> None:
    """Declare torchvision's operator schemas if they are missing. Call before importing it."""
    global _library
    import torch

    if _library is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    with suppress(RuntimeError):
        import torchvision  # noqa: F401

        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
