"""``python -m benchmarks.gpu``: go through the list on this machine."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu.checks import Check

BUDGET = 480.0
GRACE = 120.0
"""Seconds after the budget before the program kills itself; the check that is running then may still finish."""
FAILED, NOT_MEASURED = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run the list, or the parts that --only names, and return the exit code.

    0: every check passed or was skipped; 1: one failed; 2: a usage error, or no GPU.
    """
    asked = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from benchmarks.gpu.parts import PARTS
        from udpm.core.errors import UserError
    except ImportError as error:
        return _stop(f"{(error.name or 'a package').partition('.')[0]} cannot be imported here: {error}")
    unknown = [part for part in asked.only or [] if part not in PARTS]
    if unknown:
        return _stop(f"--only: {', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    checks = [check for part, listed in PARTS.items() if not asked.only or part in asked.only for check in listed]
    if asked.device == "cuda" and not _has_gpu():
        return _would_run(checks)
    try:
        return _run(checks, asked.device, asked.output, asked.budget)
    except UserError as error:
        return _stop(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, required=True, help="Write all results to this JSON file, after every check."
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: try the list itself, with tiny networks."
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="Run only these parts.")
    parser.add_argument(
        "--budget", type=_seconds, default=BUDGET, metavar="SECONDS", help="Start no check after this time."
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _would_run(checks: list[Check]) -> int:
    parts: dict[str, list[str]] = {}
    for check in checks:
        parts.setdefault(check.part, []).append(check.name)
    for part, names in parts.items():
        print(f"would run  {part:10} {'; '.join(names)}")
    return _stop("PyTorch sees no CUDA device here: nothing was measured; try the list with --device cpu")


def _run(checks: list[Check], device: str, output: Path, budget: float) -> int:
    from benchmarks.gpu.checks import Session, run_checks
    from benchmarks.gpu.machine import describe_machine
    from benchmarks.gpu.report import Report
    from udpm.core.files import writable

    writable(output)
    ends = time.monotonic() + budget
    # A call that hangs inside a library cannot be interrupted otherwise.
    faulthandler.dump_traceback_later(budget + GRACE, exit=True, file=sys.__stderr__)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = Report(output, describe_machine(device) | {"budget": budget})
            run_checks(checks, Session(device, Path(folder), report, ends))
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"\n{report.table()}", flush=True)
    return FAILED if report.failed else 0


def _stop(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return NOT_MEASURED


if __name__ == "__main__":
    sys.exit(main())
