"""Checkpoints: the whole state in one file, and a manifest that is written last and says that the file is whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.files import read_json, sha256, write_json
from udpm.networks.weights import read_tensors, write_tensors
from udpm.training.state import State

FORMAT = "udpm-checkpoint/2"
KEPT = 2


def save_checkpoint(folder: Path, state: State, description: dict[str, Any]) -> None:
    """Write the state as ``<iteration>.safetensors``, then its manifest, then remove all but the newest two.

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
    for old in checkpoints(folder)[:-KEPT]:
        _manifest(old).unlink(missing_ok=True)
        old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, whole or not, oldest first."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def resume(folder: Path, state: State) -> dict[str, Any] | None:
    """Load the newest checkpoint that is whole; one that is not is reported and passed over.

    Returns:
        Its description, or None where there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            description = _load(path, state)
        except (UserError, RuntimeError, KeyError) as error:
            print(f"warning: passed over: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        return description
    if found:
        raise UserError(f"{folder}: none of its {len(found)} checkpoints can be read; delete the folder to start anew")
    return None


def _load(path: Path, state: State) -> dict[str, Any]:
    manifest = read_json(_manifest(path), "checkpoint's manifest")
    if manifest.get("sha256") != sha256(path):
        raise UserError(f"{path}: its bytes are not those that were written (SHA-256)")
    tensors, description = read_tensors(path, FORMAT)
    state.load(tensors, description["iteration"])
    return description


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
