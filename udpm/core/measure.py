"""What benchmarks measure with: paired repetitions, and what the device reaches at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MATRIX = 2048
COPIED_BYTES = 1 << 28
REPETITIONS = 8


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def paired(calls: dict[str, Callable[[], object]], repetitions: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Time several ways to do the same thing, in turn, so that whatever disturbs the machine disturbs them alike.

    Args:
        calls: by name; the first is what the others are compared with. Each is called once before, not counted.
        repetitions: of every call; every other time in reverse order.
        device: waited for on both sides of a call.

    Returns:
        By name: `seconds` and `cpu_seconds` (of this process's threads), and how many times faster than the first,
        `speedup` and `cpu_speedup`, from pairs of one repetition; each as median, quartiles and number.
    """
    for call in calls.values():
        call()
    walls: dict[str, list[float]] = {name: [] for name in calls}
    cpus: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions):
        for name in list(calls)[:: -1 if repetition % 2 else 1]:
            wall, cpu = now(device), time.process_time()
            calls[name]()
            walls[name].append(now(device) - wall)
            cpus[name].append(time.process_time() - cpu)
    first = next(iter(calls))
    return {
        name: {
            "seconds": spread(walls[name]),
            "cpu_seconds": spread(cpus[name]),
            "speedup": spread(_ratios(walls[first], walls[name])),
            "cpu_speedup": spread(_ratios(cpus[first], cpus[name])),
        }
        for name in calls
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, lower and upper quartile, and number of values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high, "count": len(values)}


def ceilings(device: torch.device) -> dict[str, float]:
    """The best that this device reaches: FLOP/s of a large product of matrices by type, bytes/s of a large copy."""
    import torch

    found = {}
    for kind in (torch.float32, torch.bfloat16):
        matrix = torch.randn(MATRIX, MATRIX, device=device, dtype=kind)
        found[f"{str(kind).removeprefix('torch.')}_flops"] = 2 * MATRIX**3 / _best(lambda m=matrix: m @ m, device)
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # A copy reads and writes every byte.
    return found | {"copy_bytes": 2 * COPIED_BYTES / _best(lambda: target.copy_(source), device)}


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(REPETITIONS):
        since = now(device)
        call()
        seconds.append(now(device) - since)
    return min(seconds)


def _ratios(plain: list[float], other: list[float]) -> list[float]:
    # A clock too coarse for a tiny call must not divide by zero.
    return [a / max(b, 1e-9) for a, b in zip(plain, other, strict=True)]
