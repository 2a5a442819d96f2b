"""Where a result came from: versions, commit, machine, and SHA-256 of files, remembered between looks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.files import sha256, write_text
from udpm.core.reading import read_bytes

NANOSECONDS = 10**9
LONGEST = 2**28
SETTLED = 2 * NANOSECONDS
"""Age of a change, in nanoseconds, from which another one shows in the time of change: clocks of file systems tick."""

Key = tuple[int, int, int, int]


class Digests:
    """Digests of files by path, inode, size and times.

    The time of change (ctime) counts, which nothing that writes to a file can set back: a file whose time of
    modification was kept or restored is still read again.

    Args:
        path: file that remembers them, a line for each; lines that cannot be read are passed over. None: no memory
            beyond this object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known, self._lines = _read(path) if path is not None else ({}, 0)
        self._new: dict[str, tuple[Key, str]] = {}

    def __call__(self, path: str | os.PathLike) -> str:
        """SHA-256 of a file's bytes, in hexadecimal.

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

    def forget(self, path: str | os.PathLike) -> None:
        """Read a file again when it is asked for next."""
        name = os.path.abspath(os.fsdecode(path))
        self._new.pop(name, None)
        self._known.pop(name, None)

    def save(self) -> None:
        """Remember new digests. What cannot be written is computed again next time."""
        settled = time.time_ns() - SETTLED
        new = {name: found for name, found in self._new.items() if found[0][3] < settled}
        if self._path is None or not new:
            return
        self._known |= new
        self._new = {name: found for name, found in self._new.items() if name not in new}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._lines > 2 * len(self._known) + 100:
                # Several processes may add lines; one that is lost here is a file read once more.
                write_text(self._path, _text(self._known))
                self._lines = len(self._known)
            else:
                append(self._path, _text(new))
                self._lines += len(new)


def append(path: Path, text: str) -> None:
    """Add lines to a file in one write, after a line that a kill may have torn.

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
    """Versions of Python and of the packages that can change a number; a missing package is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the package's source, with ``-dirty`` if edited; None where there is no repository."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def record() -> dict[str, Any]:
    """The provenance block that every record of the project carries."""
    return {"versions": versions(), "commit": commit(), "machine": f"{platform.system()} {platform.machine()}"}
