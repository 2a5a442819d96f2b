"""Tensors to a GPU and back without anybody waiting; on a CPU they are left where they are. Imports torch."""

from __future__ import annotations

import torch


def pinned(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on the host, in memory that a GPU can fetch from by itself if that is where they will go."""
    return values.pin_memory() if device.type == "cuda" else values


def moved(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the host on a device. A GPU fetches them in the order of its work; the host goes on at once."""
    if device.type != "cuda":
        return values.to(device)
    # Pinned memory is given to others only once the copy is done: PyTorch's allocator sees to that.
    return pinned(values, device).to(device, non_blocking=True)


def bind_thread(device: torch.device) -> None:
    """Let this thread's allocations and copies go to a device; a new thread begins with the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


class Arriving:
    """Values on their way to the host.

    Args:
        values: on any device; what is computed into them later is not seen.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._host = values
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def wait(self) -> torch.Tensor:
        """The values, once they are here."""
        if self._done is not None:
            self._done.synchronize()
        return self._host
