"""Several processes that train one model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.gpu.checks import TWO_GPUS, Check, Session, Skipped, expect
from benchmarks.gpu.subjects import CONFIG, experiment
from benchmarks.gpu.training import compared, run_command
from udpm.config.load import to_json
from udpm.core.errors import first_line
from udpm.training.state import State

ROOT = CONFIG.parent
ITERATIONS = 8
LONGEST = 150.0
"""Seconds for two processes to start and train."""

Start = Callable[[list[str], str], list[subprocess.Popen]]
"""Starts two processes with a udpm command, of a backend."""


def _torchrun(arguments: list[str], backend: str) -> list[subprocess.Popen]:
    program = "udpm" if backend == "nccl" else "benchmarks.gpu.one_gpu"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    return [_started([*launch, program, *arguments], {})]


def _srun(arguments: list[str], backend: str) -> list[subprocess.Popen]:
    """Two processes with the variables of srun's tasks, each of which sees one GPU."""
    started = []
    for rank in range(2):
        given = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank)}
        started.append(_started([sys.executable, "-m", "udpm", *arguments], given | {"SLURM_LOCALID": str(rank)}))
    return started


def _started(command: list[str], more: dict[str, str]) -> subprocess.Popen:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCHELASTIC"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=kept | {"PYTHONPATH": path} | more,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A launcher's processes end with it.
        start_new_session=True,
    )


def _together(session: Session, start: Start, backend: str) -> str:
    """Compare the weights of two processes with those of one that accumulates."""
    folder = session.folder / f"{start.__name__}-{backend}"
    folder.mkdir()
    changes = {"training__iterations": ITERATIONS, "training__device": session.device.type}
    changes |= {"training__threads": 1, "training__warmup": 0, "training__tf32": False}
    two = {"training__processes_per_node": 2, "training__backend": backend}
    _ended(start(_command(session, folder, "two", **changes, **two), backend), session)
    code, text = run_command(*_command(session, folder, "one", **changes, training__accumulate=2))
    expect(code == 0, f"one process: exit code {code}: {text}")
    found, expected = (load_file(folder / name / "weights.safetensors") for name in ("two", "one"))
    fresh = State.fresh(experiment("digits-paper", **changes), torch.device("cpu")).generator.state_dict()
    saved = {name: fresh[name.partition("/")[2]] for name in expected}
    return f"{compared(saved, found, expected)}, after {ITERATIONS} iterations"


def _command(session: Session, folder: Path, name: str, **changes: Any) -> list[str]:
    path = folder / f"{name}.json"
    path.write_text(to_json(experiment("digits-paper", **changes)), encoding="utf-8")
    data = ["--dataset", session.digits.dataset, "--cache", session.digits.cache]
    return ["train", *map(str, [path, *data, "--run", folder / name])]


def _ended(started: list[subprocess.Popen], session: Session) -> None:
    """Wait for processes, and kill them if they take too long."""
    failures = []
    try:
        for process in started:
            _, text = process.communicate(timeout=min(LONGEST, session.seconds_left))
            if process.returncode:
                shown = [line for line in text.splitlines() if "error:" in line] or text.splitlines()[-3:]
                failures.append(f"exit code {process.returncode}: {' '.join(shown)[-500:]}")
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"not done after {error.timeout:.0f} s") from None
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    expect(not failures, first_line(RuntimeError("; ".join(failures) or "none")))


def _by_hand(session: Session) -> str:
    raise Skipped("not automated: kill one of two ranks by hand; the other one must end with exit code 75 in seconds")


CHECKS = [
    Check(
        "processes",
        "2 by torchrun on one GPU (gloo) equal one that accumulates",
        partial(_together, start=_torchrun, backend="gloo"),
        ("sklearn",),
    ),
    Check(
        "processes",
        "2 tasks of srun with one visible GPU (gloo) equal one that accumulates",
        partial(_together, start=_srun, backend="gloo"),
        ("sklearn",),
    ),
    Check(
        "processes",
        "2 by torchrun on 2 GPUs (NCCL) equal one that accumulates",
        partial(_together, start=_torchrun, backend="nccl"),
        (TWO_GPUS, "sklearn"),
    ),
    Check("processes", "a rank of 2 that is killed ends the other one (NCCL)", _by_hand, (TWO_GPUS,)),
    Check("processes", "srun --gpus-per-task=1 (NCCL)", _by_hand, (TWO_GPUS,)),
]
