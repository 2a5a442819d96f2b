"""Checkpoints of finished runs, which can be removed. Imports no torch."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udpm.core.errors import UserError
from udpm.runs.layout import Layout
from udpm.runs.lock import is_dead, read_owner
from udpm.runs.records import CHECKPOINTS, COMPLETE, WEIGHTS, is_run, read_completion, read_run_length

OURS = re.compile(r"[0-9]{9,18}\.(?:safetensors|json)|\..+\.tmp-.+")
"""Names of checkpoints, of their manifests, and of temporary files that a killed process left."""


@dataclass(frozen=True)
class Leftovers:
    """Files of one run that can be removed.

    Attributes:
        run: its folder.
        files: to remove.
        size: their total size in bytes.
        kept: why the run's checkpoints must stay; empty if they can go, or if none exist.
    """

    run: Path
    files: list[Path]
    size: int
    kept: str = ""


def find_runs(folder: Path) -> list[Path]:
    """Return the run's folder itself, or all runs of a folder of results. Symbolic links are not followed.

    Raises:
        UserError: the folder is neither.
    """
    if is_run(folder):
        return [folder]
    runs = Path(Layout(folder).runs)
    if runs.is_symlink():
        raise UserError(f"{runs}: is a symbolic link, which is not followed; pass the folder that it points to")
    found = [run for name in _folders(runs) for run in _folders(name) if is_run(run)]
    if not found:
        raise UserError(
            f"{folder}: neither a run's folder nor a folder of results with runs; expected one like "
            "results/runs/digits/seed0, or results"
        )
    return found


def leftovers(run: Path) -> Leftovers:
    """Return the files of a run that can be removed: none unless its files prove that it is finished.

    Raises:
        UserError: its records cannot be read.
    """
    kept = _why_kept(run)
    folder = run / CHECKPOINTS
    if kept or not folder.is_dir():
        return Leftovers(run, [], 0, kept)
    if folder.is_symlink():
        return Leftovers(run, [], 0, f"{CHECKPOINTS} is a symbolic link, which is not followed")
    files, size = [], 0
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        if OURS.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
            files.append(path)
            size += status.st_size
    return Leftovers(run, files, size)


def remove(found: Leftovers) -> None:
    """Remove the files found by `leftovers`, and the folder of checkpoints if that leaves it empty.

    Raises:
        UserError: a file cannot be removed.
    """
    try:
        for path in found.files:
            path.unlink(missing_ok=True)
        folder = found.run / CHECKPOINTS
        if found.files and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be removed: {error.strerror}") from None


def _why_kept(run: Path) -> str:
    owner = read_owner(run)
    if owner is not None and not is_dead(owner):
        return "a trainer is running"
    if not (run / COMPLETE).exists() or not (run / WEIGHTS).exists():
        return "not finished: training resumes from its checkpoints"
    try:
        record = read_completion(run)
    except UserError as error:
        return str(error).removeprefix(f"{run}/")
    if record is None:
        return "its weights were removed just now"
    length = read_run_length(run)
    if not length.get("epochs") and (length.get("iterations") or 0) > (record.get("iterations") or 0):
        return f"being extended from {record['iterations'] or 0} to {length['iterations']} iterations"
    return ""


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the folders in a folder, sorted. Symbolic links are not followed."""
    if folder.is_dir() and not folder.is_symlink():
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
