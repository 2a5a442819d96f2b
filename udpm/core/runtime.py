"""Devices, threads and precision, decided in one place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from udpm.core.errors import UserError

if TYPE_CHECKING:
    import torch


def configure(device: str, threads: int, local: int = 0, *, tf32: bool = False, own_gpu: bool = False) -> torch.device:
    """Choose the device and fix the number of CPU threads.

    Results on a CPU depend on the number of threads, so it comes from the configuration and overrides whatever
    OMP_NUM_THREADS says.

    Args:
        device: "auto" (CUDA if there, else CPU), "cpu" or "cuda".
        threads: CPU threads of this process, >= 1.
        local: number of this process on its node: the GPU it takes.
        tf32: whether GPUs may compute float32 products with TF32 inputs.
        own_gpu: whether the launcher may have assigned this process one GPU, the only one that it sees.

    Raises:
        UserError: "cuda" is asked for and there is none, or fewer GPUs than processes on this node.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but PyTorch sees no CUDA device; use device: auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if own_gpu and count == 1:
        # `srun --gpus-per-task=1` and its like. Two processes that see the same GPU are refused by NCCL.
        local = 0
    if local >= count:
        raise UserError(
            f"device: process {local + 1} of this node sees {count} GPU{'s' * (count != 1)}; ask for a GPU for each "
            "process, or start fewer (training.processes_per_node)"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    # Trying algorithms out and keeping the fastest would let a clock choose how results are rounded.
    torch.backends.cudnn.benchmark = False
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def uses_tf32(device: torch.device) -> bool:
    """Whether float32 products on a device may be computed with TF32 inputs, for records; on a CPU none are."""
    import torch

    backends = torch.backends
    return device.type == "cuda" and (backends.cuda.matmul.allow_tf32 or backends.cudnn.allow_tf32)


def resident_bytes() -> int:
    """Memory that this process has in RAM now, in bytes."""
    # The second number of statm is the resident set, in pages: proc(5).
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def found() -> str:
    """The devices here, e.g. "2 × NVIDIA H200" or "no CUDA device"."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "no CUDA device"


def describe(device: torch.device) -> str:
    """Name of the device for records, e.g. "NVIDIA H200" or "cpu (2 threads)"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
