"""All checks in order: correctness, then speed, then profiles, then slower settings."""

from __future__ import annotations

from benchmarks.gpu import machine, numbers, processes, profiling, sampling, scoring, speed, training
from benchmarks.gpu.checks import Check

PARTS: dict[str, list[Check]] = {
    "machine": machine.CHECKS,
    "numbers": numbers.CHECKS,
    "training": training.CHECKS,
    "sampling": sampling.CHECKS,
    "scoring": scoring.CHECKS,
    "processes": processes.CHECKS,
    "speed": speed.FIRST,
    "profile": profiling.CHECKS,
    "variants": speed.LATER,
}
