"""Checks, and how a list of them runs within a time budget."""

from __future__ import annotations

import gc
import importlib.util
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.report import Report
from benchmarks.gpu.subjects import Digits, prepare_digits, small_run
from udpm.bench.measure import ceilings
from udpm.config import RunConfig
from udpm.core import devices
from udpm.core.errors import first_line

THREADS = 8
"""CPU threads on a machine with a GPU, where the CPU only computes reference results."""
GPU, TWO_GPUS = "a GPU", "2 GPUs"
OUT_OF_TIME = "out of time"


class Skipped(Exception):
    """The check cannot run here; the message says why."""


class Session:
    """Device, folder and report that all checks share.

    Args:
        device: "cuda" or "cpu".
        folder: for files, removed afterwards.
        report: that measurements go into.
        ends: when the time is up, on the monotonic clock.
        full: whether to use the sizes for a GPU; default: only on one.
    """

    def __init__(self, device: str, folder: Path, report: Report, ends: float, full: bool | None = None) -> None:
        self.folder, self.report, self.ends = folder, report, ends
        self.kept: dict[str, Any] = {}
        self.on_gpu = device == "cuda"
        self.full = self.on_gpu if full is None else full
        self.device = self.set_up()

    def set_up(self, *, tf32: bool = False) -> torch.device:
        """Reset threads, precision and debugging switches."""
        torch.backends.cudnn.deterministic = False
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        return devices.configure("cuda" if self.on_gpu else "cpu", THREADS if self.on_gpu else 1, tf32=tf32)

    def clean_up(self) -> None:
        """Free the memory that a check left behind."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            # Every stream on which a product ran has kept a workspace.
            getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def seconds_left(self) -> float:
        """Until the time is up; at least 1."""
        return max(1.0, self.ends - time.monotonic())

    def small_run(self, *, wide: bool | None = None, **changes: Any) -> RunConfig:
        """A run whose networks are small, wide where everything is full; see `subjects.small_run`."""
        return small_run(self.device, wide=self.full if wide is None else wide, **changes)

    @cached_property
    def digits(self) -> Digits:
        """The embedded data set, prepared."""
        return prepare_digits(self.folder / "digits")

    @cached_property
    def ceilings(self) -> dict[str, float]:
        """FLOP/s and bytes/s that the device reaches at best."""
        found = ceilings(self.set_up(tf32=True))
        self.set_up()
        self.report.device["ceilings"] = found
        return found


@dataclass(frozen=True)
class Check:
    """One check or measurement.

    Attributes:
        part: of the list.
        name: what must hold, or what is measured.
        run: returns the result in a few words. Raises `Skipped` if it cannot run here, any other exception if the
            check fails.
        needs: `GPU`, `TWO_GPUS`, or names of modules.
    """

    part: str
    name: str
    run: Callable[[Session], str]
    needs: tuple[str, ...] = ()

    def missing(self, device: str) -> str | None:
        """The first of its needs that this machine does not meet, or None."""
        gpus = torch.cuda.device_count() if device == "cuda" else 0
        for need in self.needs:
            if need in (GPU, TWO_GPUS):
                there = gpus >= (2 if need == TWO_GPUS else 1)
            else:
                there = importlib.util.find_spec(need) is not None
            if not there:
                return need
        return None


def expect(holds: bool, found: str) -> str:
    """Return the result if it is right.

    Raises:
        AssertionError: it is not.
    """
    if not holds:
        raise AssertionError(found)
    return found


def run_checks(checks: list[Check], session: Session) -> None:
    """Run checks in order and report each one as it ends; a failure does not stop the others."""
    device, lost = "cuda" if session.on_gpu else "cpu", None
    for check in checks:
        missing = check.missing(device)
        if missing is not None:
            session.report.add(check.part, check.name, "skipped", f"needs {missing}")
        elif lost is not None:
            session.report.add(check.part, check.name, "skipped", f"the GPU failed in: {lost}")
        elif time.monotonic() >= session.ends:
            session.report.add(check.part, check.name, "skipped", OUT_OF_TIME)
        elif not _run(check, session):
            lost = check.name


def _run(check: Check, session: Session) -> bool:
    """Run one check; return whether the device still works."""
    began, works, more = time.monotonic(), True, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            session.set_up()
            outcome, detail = "passed", check.run(session)
        except Skipped as reason:
            outcome, detail = "skipped", str(reason)
        except (Exception, SystemExit) as error:
            outcome, detail = "failed", f"{type(error).__name__}: {first_line(error)}"
            more["traceback"] = traceback.format_exc()
        # Outside the handlers: an exception keeps the tensors of its frames alive.
        try:
            session.set_up()
            session.clean_up()
        except Exception:
            works, more["afterwards"] = False, traceback.format_exc()
    session.report.add(check.part, check.name, outcome, detail, time.monotonic() - began, **more)
    return works
