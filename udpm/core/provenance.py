"""Provenance of results (versions, commit, machine, digests of files), and what a command used. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.files import sha256, write_text
from udpm.core.reading import read_bytes

LONGEST = 2**28
SETTLED = 2 * 10**9
"""Age in nanoseconds after which another change is sure to alter a file's ctime: file systems' clocks are coarse."""

Key = tuple[int, int, int, int]


class Digests:
    """Cache of file digests, keyed by path, inode, size and times.

    The key includes the ctime, which no writer can set back: a file whose mtime was kept or restored is still read
    again.

    Args:
        path: file that stores them, a line for each; unreadable lines are skipped. None: keep them only in this object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known, self._lines = _read(path) if path is not None else ({}, 0)
        self._new: dict[str, tuple[Key, str]] = {}

    def __call__(self, path: str | os.PathLike) -> str:
        """Return the SHA-256 of a file's bytes, in hexadecimal.

        Raises:
            UserError: the file cannot be read.
        """
        name = os.path.abspath(os.fsdecode(path))
        before = _key(name)
        for found in (self._new.get(name), self._known.get(name)):
            if found is not None and found[0] == before:
                return found[1]
        digest = sha256(path)
        if before is not None and before == _key(name):
            self._new[name] = (before, digest)
        return digest

    def save(self) -> None:
        """Store new digests. Digests that cannot be written are computed again next time."""
        settled = time.time_ns() - SETTLED
        new = {name: found for name, found in self._new.items() if found[0][3] < settled}
        if self._path is None or not new:
            return
        self._known |= new
        self._new = {name: found for name, found in self._new.items() if name not in new}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._lines > 2 * len(self._known) + 100:
                # Other processes may append meanwhile; a lost line only costs reading a file again.
                write_text(self._path, _text(self._known))
                self._lines = len(self._known)
            else:
                append(self._path, _text(new))
                self._lines += len(new)


def append(path: Path, text: str) -> None:
    """Append lines to a file in one write, on a new line even if a kill left the last one incomplete.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, "a+b") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + text.encode())


def _key(name: str) -> Key | None:
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _text(found: dict[str, tuple[Key, str]]) -> str:
    return "".join(json.dumps([name, *key, digest]) + "\n" for name, (key, digest) in found.items())


def _read(path: Path) -> tuple[dict[str, tuple[Key, str]], int]:
    known: dict[str, tuple[Key, str]] = {}
    try:
        lines = read_bytes(path, "list of digests", LONGEST).split(b"\n")
    except UserError:
        return {}, 0
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):
            name, inode, size, modified, changed, digest = json.loads(line)
            if isinstance(name, str) and isinstance(digest, str) and len(digest) == 64:
                known[name] = ((inode, size, modified, changed), digest)
    return known, len(lines)


PACKAGES = ("udpm", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "lpips")


def versions() -> dict[str, str]:
    """Return the versions of Python and of installed packages that can change results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the git commit of the package's source, with ``-dirty`` if edited; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def record() -> dict[str, Any]:
    """Return the provenance block of the project's records."""
    return {"versions": versions(), "commit": commit(), "machine": f"{platform.system()} {platform.machine()}"}


SAMPLE_SECONDS = 10.0
_images = 0


def count_images(count: int) -> None:
    """Count images that went through a network."""
    global _images
    _images += count


@contextmanager
def measured(path: Path, verb: str) -> Iterator[None]:
    """Append this process's usage to a file when the context ends, also after an error: one line per attempt.

    Only rank 0 writes. GPU numbers are null without a GPU; utilization is also null if nvidia-ml-py is not installed.
    """
    busy: list[float] = []
    began, ended = time.monotonic(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(busy, ended), name="udpm-usage", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        seconds = time.monotonic() - began
        line = {
            "verb": verb,
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "seconds": round(seconds, 2),
            "images": _images or None,
            "images_per_second": round(_images / seconds, 2) if _images else None,
            # Kilobytes: getrusage(2).
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            **_gpu(busy),
        }
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                append(path, json.dumps(line) + "\n")


def _gpu(busy: list[float]) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {"gpu": None, "gpu_peak_memory_mib": None, "gpu_busy_percent": None}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1),
        "gpu_busy_percent": round(sum(busy) / len(busy), 1) if busy else None,
    }


def _watch(busy: list[float], ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        torch = sys.modules.get("torch")
        cuda = getattr(torch, "cuda", None)
        if cuda is None or not cuda.is_initialized():
            continue
        try:
            busy.append(float(cuda.utilization()))
        except Exception:  # nvidia-ml-py is missing, or the GPU does not report its utilization
            return
