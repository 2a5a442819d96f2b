"""Asynchronous copies between host and GPU, conversion of images to bytes, torchvision with a CPU-only torch."""

from __future__ import annotations

import numpy as np
import torch


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Convert images in [-1, 1], (B, 3, h, w), to (B, h, w, 3) uint8 on their device, rounded and clipped."""
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """Convert images as `to_uint8` does, to an array on the host."""
    return to_uint8(images).cpu().numpy()


def pinned(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy host values to pinned memory if they will go to a GPU, which can then fetch them asynchronously."""
    return values.pin_memory() if device.type == "cuda" else values


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy host values to a device. For a GPU the copy is queued in stream order, and the host does not wait."""
    if device.type != "cuda":
        return values.to(device)
    # PyTorch's allocator does not reuse the pinned memory before the copy is done.
    return pinned(values, device).to(device, non_blocking=True)


def bind_thread(device: torch.device) -> None:
    """Make a device current in this thread; a new thread starts with the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


class AsyncHostCopy:
    """Asynchronous copy of values to the host.

    Args:
        values: on any device; later changes to them are not copied.
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
        """Return the values, after the copy has finished."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


# The published Linux wheel of torchvision is built for CUDA. With a CPU build of torch its compiled operators do not
# load, and `import torchvision` (hence lpips and clean-fid) fails when it registers a fake kernel for torchvision::nms.
# Declaring the two schemas is enough: transforms and models never call them. The library must stay alive.
_OPERATORS = ("nms", "qnms")
_library: torch.library.Library | None = None


def enable() -> None:
    """Declare torchvision's operator schemas if they are missing. Call before importing it."""
    global _library
    if _library is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        pass
    else:
        return
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
