"""Profiles: where the time of a GPU goes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.checks import Check, Session
from benchmarks.gpu.speed import measured_run
from benchmarks.gpu.subjects import awake_model
from udpm.bench.measure import now
from udpm.bench.networks import BenchmarkData
from udpm.networks.inference import Precision
from udpm.sampling.sampler import Sampler
from udpm.training.trainer import Trainer

CALLS, WARM = 2, 3
UNDISTURBED = 4
TOP = 15
BUSY = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace's events in which the GPU is at work."""
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
LAYOUT = ("nchwToNhwc", "nhwcToNchw")
"""Kernels that only bring maps from one layout to another."""
MICROSECONDS = 1e6


def summarize(events: list[dict[str, Any]], calls: int) -> dict[str, Any]:
    """Summarize a trace of several calls.

    Args:
        events: of a Chrome trace as torch.profiler writes it.
        calls: that it is of.

    Returns:
        For each call: `kernels`, `launches` and `operators`, counted; `gpu_seconds` in which the GPU was at work and
        `seconds` from the first event to the last, by the profiler's clock; `busy`, their ratio; `layout` and
        `host_to_device`, shares of the GPU's time; `top`, the kernels that took longest.
    """
    whole = [event for event in events if event.get("ph") == "X" and "ts" in event and "dur" in event]
    busy = [event for event in whole if event.get("cat") in BUSY]
    kernels = [event for event in busy if event["cat"] == "kernel"]
    launches = [event for event in whole if str(event.get("name", "")).startswith(LAUNCHES)]
    operators = [event for event in whole if event.get("cat") == "cpu_op"]
    # An event of the profiler itself may span more than what is profiled.
    seen = [*busy, *operators, *launches]
    span = max(map(_end, seen)) - min(float(event["ts"]) for event in seen) if seen else 0.0
    active, summed = _union(busy), sum(float(event["dur"]) for event in busy)
    copied = sum(float(event["dur"]) for event in busy if event["cat"] == "gpu_memcpy" and "HtoD" in event["name"])
    laid_out = sum(float(event["dur"]) for event in kernels if any(word in event["name"] for word in LAYOUT))
    return {
        "calls": calls,
        "kernels": len(kernels) / calls,
        "launches": len([event for event in launches if event.get("cat") != "cpu_op"]) / calls,
        "operators": len(operators) / calls,
        "seconds": span / MICROSECONDS / calls,
        "gpu_seconds": active / MICROSECONDS / calls,
        "busy": active / span if span else 0.0,
        "layout": laid_out / summed if summed else 0.0,
        "host_to_device": copied / summed if summed else 0.0,
        "top": _top(kernels, summed, calls),
    }


def _end(event: dict[str, Any]) -> float:
    return float(event["ts"]) + float(event["dur"])


def _union(events: list[dict[str, Any]]) -> float:
    """Microseconds in which at least one of the events is running."""
    total, reached = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: float(event["ts"])):
        start, end = max(float(event["ts"]), reached), _end(event)
        total += max(0.0, end - start)
        reached = max(reached, end)
    return total


def _top(kernels: list[dict[str, Any]], summed: float, calls: int) -> list[dict[str, Any]]:
    durations: dict[str, list[float]] = defaultdict(list)
    for event in kernels:
        durations[event["name"]].append(float(event["dur"]))
    order = sorted(durations, key=lambda name: -sum(durations[name]))[:TOP]
    return [
        {
            "name": name,
            "share": sum(durations[name]) / summed,
            "calls": len(durations[name]) / calls,
            "seconds": sum(durations[name]) / MICROSECONDS / calls,
        }
        for name in order
    ]


def _profiled(session: Session, name: str, call: Callable[[], object]) -> str:
    """Time some calls without the profiler, then trace a few and keep the summary."""
    for _ in range(WARM if session.full else 1):
        call()
    times = UNDISTURBED if session.full else 1
    began = now(session.device)
    for _ in range(times):
        call()
    alone = (now(session.device) - began) / times
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if session.on_gpu else [])]
    with profile(activities=activities, acc_events=True) as trace:
        for _ in range(CALLS):
            call()
        now(session.device)
    path = session.folder / "trace.json"
    trace.export_chrome_trace(str(path))
    found = summarize(_events(path), CALLS)
    path.unlink()
    found["undisturbed_seconds"] = alone
    found["undisturbed_busy"] = found["gpu_seconds"] / alone
    if session.on_gpu:
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    session.report.profile[name] = found
    if session.on_gpu and not found["kernels"]:
        raise RuntimeError("the profiler saw no kernels")
    return _told(found)


def _events(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return json.load(file)["traceEvents"]


def _told(found: dict[str, Any]) -> str:
    first = "; ".join(f"{100 * each['share']:.0f} % {each['name'][:60]}" for each in found["top"][:3])
    return (
        f"{1e3 * found['undisturbed_seconds']:.2f} ms a call, GPU at work {1e3 * found['gpu_seconds']:.2f} ms "
        f"({100 * found['undisturbed_busy']:.0f} %); {found['kernels']:.0f} kernels, {found['launches']:.0f} launches, "
        f"{found['operators']:.0f} operators; layout {100 * found['layout']:.1f} %, host to device "
        f"{100 * found['host_to_device']:.1f} %; {first}"
    )


def _iteration(session: Session, level: int, **changes: Any) -> str:
    """An iteration of the CIFAR-10 run, both players at one level."""
    way = ", recorded" if changes.get("training__cuda_graphs") else ""
    shares = [float(other == level) for other in (1, 2, 3)]
    config, lacks = measured_run(session, **changes, training__level_probabilities=shares)
    session.set_up(tf32=True)
    with BenchmarkData().opened(config) as levels:
        trainer = Trainer(config, levels, session.device)
        return _profiled(session, f"training, l={level}{way}{lacks}", trainer.iterate)


def _drawing(session: Session, batch: int, precision: Precision, graphs: bool) -> str:
    """A batch of images, from a seed to bytes."""
    batch = batch if session.full else 2
    model = awake_model(measured_run(session)[0], session.device)
    sampler = Sampler(model, batch=batch, precision=precision, graphs=graphs)
    name = f"sampling, batch {batch}, {precision}{', graphs' if graphs else ''}"
    return _profiled(session, name, lambda: sampler.sample(batch))


GRAPHS = {"training__cuda_graphs": True}
CHECKS = [
    *(
        Check("profile", f"an iteration of training at l={level}{more}", partial(_iteration, level=level, **changes))
        for more, changes in ((", recorded", GRAPHS), ("", {}))
        for level in (1, 3)
    ),
    *(
        Check(
            "profile",
            f"drawing 250 images in bfloat16{more}",
            partial(_drawing, batch=250, precision="bfloat16", graphs=graphs),
        )
        for more, graphs in ((", graphs", True), ("", False))
    ),
]
