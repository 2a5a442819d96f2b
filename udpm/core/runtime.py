"""Devices, threads and precision, decided in one place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from udpm.core.errors import UserError

if TYPE_CHECKING:
    import torch


def configure(device: str, threads: int) -> torch.device:
    """Choose the device and fix the number of CPU threads.

    Results on a CPU depend on the number of threads, so it comes from the configuration and overrides whatever
    OMP_NUM_THREADS says.

    Args:
        device: "auto" (CUDA if there, else CPU), "cpu" or "cuda".
        threads: CPU threads of this process, >= 1.

    Raises:
        UserError: "cuda" is asked for and there is none.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but PyTorch sees no CUDA device; use device: auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def describe(device: torch.device) -> str:
    """Name of the device for records, e.g. "NVIDIA H200" or "cpu (2 threads)"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
