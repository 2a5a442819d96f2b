"""What of finished runs is of no further use: their checkpoints. Imports no torch."""

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
"""Names of checkpoints, of their manifests, and of what a killed process was writing."""


@dataclass(frozen=True)
class Leftovers:
    """What can be removed of one run.

    Attributes:
        run: its folder.
        files: that can go.
        size: of these, in bytes.
        kept: why nothing can; empty where something can, or there is nothing.
    """

    run: Path
    files: list[Path]
    size: int
    kept: str = ""


def find_runs(folder: Path) -> list[Path]:
    """The run that a folder is, or all runs of a folder of results; what is linked from there is none of them.

    Raises:
        UserError: it is neither.
    """
    if is_run(folder):
        return [folder]
    runs = Path(Layout(folder).runs)
    if runs.is_symlink():
        raise UserError(f"{runs}: is a link, which is not followed; name the folder that it leads to")
    found = [run for name in _folders(runs) for run in _folders(name) if is_run(run)]
    if not found:
        raise UserError(
            f"{folder}: neither a run's folder nor one of results with runs in it; expected one like "
            "results/runs/digits/seed0, or results"
        )
    return found


def leftovers(run: Path) -> Leftovers:
    """What can be removed of a run: nothing unless it is finished, by its files' content.

    Raises:
        UserError: its records cannot be read.
    """
    kept = _why_kept(run)
    folder = run / CHECKPOINTS
    if kept or not folder.is_dir():
        return Leftovers(run, [], 0, kept)
    if folder.is_symlink():
        return Leftovers(run, [], 0, f"{CHECKPOINTS} is a link, which is not followed")
    files, size = [], 0
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        if OURS.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
            files.append(path)
            size += status.st_size
    return Leftovers(run, files, size)


def remove(found: Leftovers) -> None:
    """Remove what was found, and the folder of checkpoints if nothing else is in it.

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
        return "a trainer is at work"
    if not (run / COMPLETE).exists() or not (run / WEIGHTS).exists():
        return "not finished: training goes on from its checkpoints"
    try:
        record = read_completion(run)
    except UserError as error:
        return str(error).removeprefix(f"{run}/")
    if record is None:
        return "its weights were removed just now"
    length = read_run_length(run)
    if not length.get("epochs") and (length.get("iterations") or 0) > (record.get("iterations") or 0):
        return f"on its way from {record['iterations'] or 0} to {length['iterations']} iterations"
    return ""


def _folders(folder: Path) -> Iterator[Path]:
    """Folders in a folder that is no link, in order; links are left out."""
    if folder.is_dir() and not folder.is_symlink():
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
