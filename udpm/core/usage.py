"""Resource usage of a command: time, images per second, memory and GPU utilization. Does not import torch itself."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 10.0
_images = 0


def count_images(count: int) -> None:
    """Count images that went through a network."""
    global _images
    _images += count


@contextmanager
def measured(path: Path, verb: str) -> Iterator[None]:
    """Append this process's usage to a file when the context ends, also after an error: one line per attempt.

    Only rank 0 writes. GPU numbers are null without a GPU; utilization is also null if nvidia-ml-py is not installed.

    Args:
        path: .jsonl.
        verb: the command.
    """
    busy: list[float] = []
    began, ended = time.monotonic(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(busy, ended), name="udpm-usage", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        seconds = time.monotonic() - began
        line = {
            "verb": verb,
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "seconds": round(seconds, 2),
            "images": _images or None,
            "images_per_second": round(_images / seconds, 2) if _images else None,
            # Kilobytes: getrusage(2).
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            **_gpu(busy),
        }
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def _gpu(busy: list[float]) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {"gpu": None, "gpu_peak_memory_mib": None, "gpu_busy_percent": None}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1),
        "gpu_busy_percent": round(sum(busy) / len(busy), 1) if busy else None,
    }


def _watch(busy: list[float], ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        torch = sys.modules.get("torch")
        cuda = getattr(torch, "cuda", None)
        if cuda is None or not cuda.is_initialized():
            continue
        try:
            busy.append(float(cuda.utilization()))
        except Exception:  # nvidia-ml-py is missing, or the GPU does not report its utilization
            return
