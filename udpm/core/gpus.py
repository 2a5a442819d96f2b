"""GPUs of one machine that several processes share: each process claims a free one. Imports no torch.

A claim is a bound abstract Unix socket: the kernel frees it when the process ends, however it ends, and users of a
machine need no common folder.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udpm.core.errors import StoppedEarly

if TYPE_CHECKING:
    from udpm.core.work import StopRequest

POLICY = "UDPM_GPUS"
"""Environment variable: with "exclusive", a process waits until a GPU is free; by default it then shares one."""
MOST = 64
"""Processes that may share a GPU. Those beyond are not counted."""
PAUSE = 1.0
"""Seconds between two looks at GPUs that are all in use."""

_claims: dict[str, socket.socket] = {}
"""This process's claims, by name of the GPU, until it ends."""


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return names of the GPUs that a process may use: entries of CUDA_VISIBLE_DEVICES, or numbers from 0.

    Empty if none are found: a GPU that is not known here may still work.
    """
    value = environment.get(_variable(environment))
    if value is None:
        return [str(number) for number in range(_count())]
    # CUDA ignores what follows the first invalid entry.
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), map(str.strip, value.split(","))))


def _variable(environment: Mapping[str, str]) -> str:
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    return next((name for name in names if name in environment), names[0])


def _count() -> int:
    """Count the GPUs of this machine (NVIDIA, or AMD), 0 if none are found."""
    if nvidia := len(list(Path("/dev").glob("nvidia[0-9]*"))):
        return nvidia
    if Path("/dev/kfd").exists():
        nodes = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
        # Nodes of CPUs have the number 0.
        return max(sum(node.read_text().strip() not in ("", "0") for node in nodes), 1)
    # Windows Subsystem for Linux has one device for all GPUs.
    return int(Path("/dev/dxg").exists())


def is_exclusive(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether processes wait for a free GPU instead of sharing one."""
    return environment.get(POLICY) == "exclusive"


def claim(names: Sequence[str], count: int = 1, *, wait: bool, stop: StopRequest | bool = False) -> list[int]:
    """Claim GPUs until this process ends, those that the fewest other processes use first.

    Args:
        names: of the GPUs to choose from.
        count: how many, at most as many as there are names.
        wait: wait until so many are free; else share them, and say so.
        stop: checked while waiting.

    Returns:
        Their indices in `names`, in order.

    Raises:
        StoppedEarly: a signal came while waiting.
    """
    slots, announced = 1 if wait else MOST, False
    while not (chosen := _claim_at_once(names, count, slots)):
        if not announced:
            print(f"waiting for {count} of {len(names)} GPUs that other jobs of udpm use", file=sys.stderr, flush=True)
            announced = True
        if stop:
            raise StoppedEarly(f"stopped on {stop} while waiting for a GPU")
        # Random, so that jobs that wait for several GPUs do not keep in step.
        time.sleep(PAUSE * random.uniform(0.5, 1.5))
    for index, slot in chosen.items():
        if slot:
            others = f"{slot} other process{'es' * (slot > 1)}"
            print(f"GPU {names[index]} has {others} of udpm: none is free", file=sys.stderr)
    return sorted(chosen)


def _claim_at_once(names: Sequence[str], count: int, slots: int) -> dict[int, int]:
    """Claim all GPUs that are needed, or none. Returns the slot of each, by index; empty if too few are free."""
    chosen: dict[int, int] = {index: 0 for index, name in enumerate(names) if name in _claims}
    found: dict[str, socket.socket] = {}
    for slot, (index, name) in itertools.product(range(slots), enumerate(names)):
        if len(chosen) < count and index not in chosen and (claimed := _bind(name, slot)):
            chosen[index], found[name] = slot, claimed
    if len(chosen) < count:
        for claimed in found.values():
            claimed.close()
        return {}
    _claims.update(found)
    return dict(list(chosen.items())[:count])


def mark(name: str) -> None:
    """Claim a GPU that this process uses in any case, so that others choose another one."""
    if name not in _claims and (claimed := _bind(name, 0)):
        _claims[name] = claimed


def _bind(name: str, slot: int) -> socket.socket | None:
    """Claim one slot of a GPU; None if another process has it."""
    # SLURM numbers the GPUs of every job from 0.
    job = os.environ.get("SLURM_JOB_ID", "")
    claimed = socket.socket(socket.AF_UNIX)
    try:
        claimed.bind(f"\0udpm/gpu/{job}/{name}/{slot}")
    except OSError as error:
        claimed.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return claimed


def main() -> None:
    """Claim COUNT GPUs, then become COMMAND, which sees only these: ``python -m udpm.core.gpus COUNT COMMAND …``."""
    count, command = int(sys.argv[1]), sys.argv[2:]
    names = visible()
    # With fewer GPUs, the command says what it lacks.
    if names and count <= len(names):
        chosen = claim(names, count, wait=is_exclusive())
        for claimed in _claims.values():
            # The processes that the command starts keep it as well.
            claimed.set_inheritable(True)
        os.environ[_variable(os.environ)] = ",".join(names[index] for index in chosen)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
