"""Checkpoints: the whole state in one file, and a manifest that is written last and says that the file is whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from udpm.core.device_errors import is_device_failure
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json
from udpm.core.reading import read_json
from udpm.networks.weights import read_tensors, write_tensors
from udpm.training.records import iteration_of, numbered
from udpm.training.state import State

FORMAT = "udpm-checkpoint/2"
KEPT = 2


def save_checkpoint(folder: Path, state: State, description: dict[str, Any]) -> None:
    """Write the state as ``<iteration>.safetensors``, then its manifest, then remove all older than the one before.

    Args:
        folder: of the checkpoints.
        state: what is saved.
        description: of the run, for whoever finds the file.

    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    path = folder / f"{state.iteration:09d}.safetensors"
    write_tensors(path, state.tensors(), {"format": FORMAT, "iteration": state.iteration, **description})
    write_json(_manifest(path), {"format": FORMAT, "iteration": state.iteration, "sha256": sha256(path)})
    for old in [found for found in checkpoints(folder) if iteration_of(found) <= state.iteration][:-KEPT]:
        _remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, whole or not, oldest first."""
    return numbered(folder, ".safetensors")


def resume(folder: Path, state: State, check: Callable[[Path, dict[str, Any]], None]) -> dict[str, Any] | None:
    """Load the newest checkpoint that is whole; one that is not is reported and passed over.

    Args:
        folder: of the checkpoints.
        state: what is loaded into.
        check: called with a whole checkpoint and its description before anything is loaded; raises UserError where it
            belongs to something else.

    Returns:
        Its description; None where there is no checkpoint, or where the first one was never finished.

    Raises:
        UserError: there are checkpoints, but none is whole, or the newest of those does not belong to this run.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            tensors, description = _read(path)
        except UserError as error:
            print(f"warning: passed over: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        check(path, description)
        try:
            state.load(tensors, description["iteration"])
        except (RuntimeError, KeyError) as error:
            if is_device_failure(error):
                raise
            raise UserError(f"{path}: is whole, but not a state of this run: {str(error).splitlines()[-1]}") from None
        return description
    # The manifest comes last: a single checkpoint without one is a first save that was interrupted; nothing is lost.
    if found and (len(found) > 1 or _manifest(found[0]).exists()):
        raise UserError(f"{folder}: none of its {len(found)} checkpoints can be read; delete the folder to start anew")
    return None


def forget_after(folder: Path, iteration: int) -> None:
    """Remove what was passed over: checkpoints of later iterations, which training comes to again.

    Only for the process that writes, once all processes have resumed.
    """
    for path in checkpoints(folder):
        if iteration_of(path) > iteration:
            _remove(path)


def _remove(path: Path) -> None:
    _manifest(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    manifest = read_json(_manifest(path), "checkpoint's manifest")
    if manifest.get("sha256") != sha256(path):
        raise UserError(f"{path}: its bytes are not those that were written (SHA-256)")
    return read_tensors(path, FORMAT)


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
