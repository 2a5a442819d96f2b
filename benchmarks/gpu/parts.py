"""All checks in order: correctness and memory, then speed, then other settings, profiles and what has to compile."""

from __future__ import annotations

from benchmarks.gpu import machine, memory, numbers, processes, profiling, sampling, scoring, speed, training
from benchmarks.gpu.checks import Check

PARTS: dict[str, list[Check]] = {
    "machine": machine.CHECKS,
    "numbers": numbers.CHECKS,
    "training": training.CHECKS,
    "sampling": sampling.CHECKS,
    "scoring": scoring.CHECKS,
    "memory": memory.CHECKS,
    "speed": speed.FIRST,
    "processes": processes.CHECKS,
    "variants": speed.LATER,
    "profile": profiling.CHECKS,
    "compile": speed.COMPILED,
    "more": speed.MORE,
}
