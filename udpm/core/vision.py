"""Makes torchvision importable beside a CPU-only torch."""

from __future__ import annotations

import torch

# The published Linux wheel of torchvision is built for CUDA. Beside a CPU build of torch its compiled operators do not
# load, and `import torchvision` (hence lpips and clean-fid) fails on registering a fake kernel for torchvision::nms.
# Declaring the two schemas is enough: transforms and models never call them. The library must stay alive.
_OPERATORS = ("nms", "qnms")
_library: torch.library.Library | None = None


def enable() -> None:
    """Declare torchvision's missing operator schemas; does nothing where they exist. Call before importing it."""
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
