"""Compare ways of doing the same work, made of gains that can be switched one by one: time, speedup, memory."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from udpm.bench.measure import Timing, spread
from udpm.core.errors import UserError
from udpm.core.work import SPAWN, init_worker

if TYPE_CHECKING:
    import torch

PLAIN = "plain"
SPECIAL = ("compile", "graphs")
"""Gains that not every machine supports, or that take minutes."""

Gains = TypeVar("Gains")
"""A frozen dataclass of booleans: what makes a way faster than the plain one, each on or off."""


def in_turn(calls: dict[str, Callable[[], object]], repetitions: int, device: torch.device) -> dict[str, Timing]:
    """Time several calls in turn, so that disturbances of the machine affect all of them.

    Args:
        calls: by name. Each is called once before, uncounted.
        repetitions: of every call; every other one in reverse order.
        device: where they run.
    """
    for call in calls.values():
        call()
    timings = {name: Timing() for name in calls}
    for repetition in range(repetitions):
        for name in list(calls)[:: -1 if repetition % 2 else 1]:
            timings[name].measure(calls[name], device)
    return timings


def speedup(slow: Timing, fast: Timing) -> dict[str, Any]:
    """Return speedups from pairs of one repetition: `speedup` in wall time, `cpu_speedup` in CPU time or None."""
    cpu = spread(_ratios(slow.cpu, fast.cpu)) if slow.cpu and fast.cpu else None
    return {"speedup": spread(_ratios(slow.wall, fast.wall)), "cpu_speedup": cpu}


def _ratios(slow: list[float], fast: list[float]) -> list[float]:
    # A coarse clock may measure zero.
    return [max(a, 1e-9) / max(b, 1e-9) for a, b in zip(slow, fast, strict=True)]


def mean_timing(timings: list[Timing], shares: list[float]) -> Timing:
    """Return the weighted mean of several timings by repetition; shares sum to 1."""

    def mixed(kind: str) -> list[float]:
        repetitions = zip(*(getattr(timing, kind) for timing in timings), strict=True)
        return [sum(share * value for share, value in zip(shares, one, strict=True)) for one in repetitions]

    return Timing(mixed("wall"), mixed("cpu"))


def peak_bytes(function: Callable[..., object], *arguments: object) -> int:
    """Measure the peak memory of a call in a separate process, with everything loaded; on a GPU, PyTorch's allocations.

    Args:
        function: at the top level of a module, to be pickled.
        arguments: can be pickled.

    Raises:
        UserError: the process was killed.
    """
    try:
        with ProcessPoolExecutor(1, SPAWN, initializer=init_worker) as pool:
            return pool.submit(_peak, function, *arguments).result()
    except BrokenProcessPool:
        raise UserError("--memory: the measuring process was killed, probably because memory ran out") from None


def _peak(function: Callable[..., object], *arguments: object) -> int:
    import torch

    function(*arguments)
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Not getrusage: its maximum is inherited from a larger parent.
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(kilobytes) * 1024


def gain_by_gain(
    part: str, full: Gains, make: Callable[[Gains], Callable[[], object]], repetitions: int, device: torch.device
) -> list[dict[str, Any]]:
    """Time the full way with each gain switched alone, in turn with the full way; at most two are in memory.

    Args:
        part: of the work.
        full: gains of the full way.
        make: returns a call that works with given gains.
        repetitions: of each.
        device: where they run.

    Returns:
        By gain: whether the full way has it, the seconds with and without it, and its speedup.
    """
    whole = make(full)
    return [
        _switched(part, name, used, whole, make(replace(full, **{name: not used})), repetitions, device)
        for name, used in switches(full).items()
    ]


def _switched(
    part: str,
    name: str,
    used: bool,
    whole: Callable[[], object],
    other: Callable[[], object],
    repetitions: int,
    device: torch.device,
) -> dict[str, Any]:
    """Time one gain: `whole` has it if `used`, otherwise `other` has it."""
    # The previous trainer is a cycle of references and would otherwise stay in memory.
    gc.collect()
    calls = {"with": whole, "without": other} if used else {"without": whole, "with": other}
    timings = in_turn(calls, repetitions, device)
    fast, slow = timings["with"], timings["without"]
    seconds = {"seconds_with": spread(fast.wall), "seconds_without": spread(slow.wall)}
    return {"part": part, "gain": name.replace("_", " "), "used": used, **seconds, **speedup(slow, fast)}


def switches(gains: Any) -> dict[str, bool]:
    """Return a way's gains by name; those in `SPECIAL` only if the way has them."""
    found = {field.name: getattr(gains, field.name) for field in fields(gains)}
    return {name: used for name, used in found.items() if used or name not in SPECIAL}


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """Format the record of a comparison."""
    best = found["ceilings"]
    lines = [
        f"{found['of']} of {found['experiment']}, batch {found['batch']}, {found['device']}",
        f"  ceilings: {best['float32_flops'] / 1e9:.4g} GFLOP/s float32, {best['bfloat16_flops'] / 1e9:.4g} bfloat16, "
        f"copy {best['copy_bytes'] / 1e9:.4g} GB/s",
    ]
    for each in found["rows"]:
        lines.append(f"  {each['part']:6} {each['way']:18}{_times(each)}")
    for each in found.get("gains", []):
        slow, fast = each["seconds_without"], each["seconds_with"]
        state = "has it" if each["used"] else "lacks it"
        lines.append(
            f"  {each['part']:6} {each['gain']:16} ×{each['speedup']['median']:.3f} ({each['speedup']['low']:.3f}–"
            f"{each['speedup']['high']:.3f}): {fast['median']:.3f} s with, {slow['median']:.3f} without; {state}"
        )
    return lines


def _times(each: dict[str, Any]) -> str:
    seconds, cpu = each["seconds"], each["cpu_seconds"]
    memory = f"; {each['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in each else ""
    spent = ""
    if cpu is not None:
        faster = each["cpu_speedup"]["median"]
        spent = f"CPU {cpu['median']:.3f} s ({cpu['low']:.3f}–{cpu['high']:.3f})  ×{faster:.2f}; "
    return (
        f"{seconds['median']:8.3f} s ({seconds['low']:.3f}–{seconds['high']:.3f})  ×{each['speedup']['median']:.2f}; "
        f"{spent}{100 * each['of_matrix_product']:.1f} % of products, {100 * each['of_copy']:.1f} % of copies{memory}"
    )
