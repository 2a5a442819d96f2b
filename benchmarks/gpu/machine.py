"""The machine: its GPU, libraries and switches."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from benchmarks.gpu.checks import GPU, Check, Session, expect
from udpm.core import devices


def describe_machine(device: str) -> dict[str, Any]:
    """Describe what results depend on: device, libraries, cores."""
    found: dict[str, Any] = {
        "name": "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    if device == "cpu":
        return found
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        "architectures": torch.cuda.get_arch_list(),
    }


def _described(session: Session) -> str:
    found = session.report.device
    return ", ".join(f"{key} {value}" for key, value in found.items() if key not in ("architectures", "budget"))


def _switches(session: Session) -> str:
    """Check that PyTorch reports what `devices.configure` set."""
    texts = []
    for tf32 in (False, True):
        session.set_up(tf32=tf32)
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
        expect(flags == (tf32, tf32, False), f"matmul, cudnn, benchmark are {flags} where TF32 is {tf32}")
        texts.append(f"TF32 {'on' if tf32 else 'off'}: {flags}, precision {torch.get_float32_matmul_precision()}")
    return "; ".join(texts)


def _usable(session: Session) -> str:
    """A product, a convolution and a copy back."""
    value = torch.ones(64, 64, device=session.device)
    total = torch.nn.functional.conv2d((value @ value)[None, None], torch.ones(1, 1, 3, 3, device=session.device))
    return expect(total.sum().item() == 62 * 62 * 9 * 64, devices.describe(session.device))


CHECKS = [
    Check("machine", "GPU and libraries", _described),
    Check("machine", "the device computes", _usable),
    Check("machine", "switches of TF32 and cuDNN follow the configuration", _switches, (GPU,)),
]
