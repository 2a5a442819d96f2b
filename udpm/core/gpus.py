"""GPUs of one machine that several processes share: each process claims a free one. Imports no torch.

A claim is a bound abstract Unix socket: the kernel frees it when the process ends, however it ends, and users of a
machine need no common folder.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from udpm.core.errors import EXIT_USER_ERROR, StoppedEarly, UserError

if TYPE_CHECKING:
    from udpm.core.work import StopRequest

POLICY = "UDPM_GPUS"
"""Environment variable: "exclusive" waits until a GPU is free, "share" (the default) then shares one."""
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
    """Count the GPUs of this machine that the installed PyTorch may use; 0 if none are found."""
    try:
        build = version("torch")
    except PackageNotFoundError:
        return 0
    if "+cpu" in build:
        return 0
    if "+rocm" in build:
        # Nodes of CPUs have the number 0.
        nodes = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
        return sum(node.read_text().strip() not in ("", "0") for node in nodes)
    if nvidia := len(list(Path("/dev").glob("nvidia[0-9]*"))):
        return nvidia
    # Windows Subsystem for Linux has one device for all GPUs, and this library only for NVIDIA's.
    return int(Path("/dev/dxg").exists() and Path("/usr/lib/wsl/lib/libcuda.so.1").exists())


def is_exclusive(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether processes wait for a free GPU instead of sharing one.

    Raises:
        UserError: the environment variable has another value than exclusive or share.
    """
    policy = environment.get(POLICY, "share")
    if policy not in ("exclusive", "share"):
        raise UserError(f"environment variable {POLICY}: must be exclusive or share, got {policy}")
    return policy == "exclusive"


def claim(names: Sequence[str], count: int = 1, *, wait: bool, stop: StopRequest | bool = False) -> list[int]:
    """Claim GPUs until this process ends, those that the fewest other processes use first.

    Args:
        names: of the GPUs to choose from.
        count: how many, at most as many as there are names.
        wait: wait until `count` GPUs are free; else share GPUs with other processes and print a note.
        stop: checked while waiting.

    Returns:
        Their indices in `names`, in order.

    Raises:
        StoppedEarly: a signal came while waiting.
    """
    announced = False
    while not (chosen := _claim_at_once(names, count, wait)):
        if not announced:
            print(f"waiting for {count} of {len(names)} GPUs that other jobs of udpm use", file=sys.stderr, flush=True)
            announced = True
        if stop:
            raise StoppedEarly(f"stopped on {stop} while waiting for a GPU")
        # Random, so that jobs that wait for several GPUs do not keep in step.
        time.sleep(PAUSE * random.uniform(0.5, 1.5))
    for index, users in chosen.items():
        if users:
            others = f"{users} other process{'es' * (users > 1)}"
            print(f"GPU {names[index]} has {others} of udpm: none is free", file=sys.stderr)
    return sorted(chosen)


def _claim_at_once(names: Sequence[str], count: int, wait: bool) -> dict[int, int]:
    """Claim all GPUs that are needed, or none.

    Returns:
        The number of other processes that use each, by index; empty if too few are free.
    """
    chosen: dict[int, int] = {index: 0 for index, name in enumerate(names) if name in _claims}
    found: dict[str, socket.socket] = {}
    users = [users_of(name) for name in names]
    by_use = sorted(range(len(names)), key=lambda index: (users[index], index))
    # Free ones first. Their first slot may just have been taken by another process.
    tries = [(index, 1) for index in by_use if not users[index]] + [(index, MOST) for index in by_use if not wait]
    for index, slots in tries:
        if len(chosen) < count and index not in chosen and (claimed := _bind_first(names[index], slots)):
            chosen[index], found[names[index]] = users[index], claimed
    if len(chosen) < count:
        for claimed in found.values():
            claimed.close()
        return {}
    _claims.update(found)
    return dict(list(chosen.items())[:count])


def mark(name: str) -> None:
    """Claim a GPU that this process uses in any case, so that others choose another one."""
    if name not in _claims and (claimed := _bind_first(name, MOST)):
        _claims[name] = claimed


def users_of(name: str) -> int:
    """Return the number of claims of udpm's processes on a GPU."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    return sum(f"@{_address(name)}/" in line for line in lines)


def _address(name: str) -> str:
    # SLURM numbers the GPUs of every job from 0. An address has room for 107 bytes.
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"udpm/gpu/{job}/{name if len(name) <= 60 else hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _bind_first(name: str, slots: int) -> socket.socket | None:
    """Bind the first free one of a GPU's slots; None if there is none."""
    for slot in range(slots):
        claimed = socket.socket(socket.AF_UNIX)
        try:
            claimed.bind(f"\0{_address(name)}/{slot}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                claimed.close()
                continue
            # A sandbox may forbid it. Training matters more.
            print(f"GPU {name} cannot be claimed ({error.strerror}); other jobs may use it, too", file=sys.stderr)
        return claimed
    return None


def main() -> None:
    """Claim COUNT GPUs, then become COMMAND, which sees only these: ``python -m udpm.core.gpus COUNT COMMAND …``."""
    count, command = int(sys.argv[1]), sys.argv[2:]
    try:
        names = visible()
        # With fewer GPUs, the command says what it lacks.
        if names and count <= len(names):
            chosen = claim(names, count, wait=is_exclusive())
            for claimed in _claims.values():
                # They last as long as the command. The processes that it starts mark their GPUs themselves.
                claimed.set_inheritable(True)
            os.environ[_variable(os.environ)] = ",".join(names[index] for index in chosen)
        os.execvp(command[0], command)
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
