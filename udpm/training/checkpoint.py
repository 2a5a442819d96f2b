"""Checkpoints: the training state in one file and a manifest, written last, that proves the file complete.

Also the state of a training that failed, for diagnosis.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch

from udpm.config.validation import Exactly, NonNegativeInt, PositiveInt, Record, Sha256, SplitRanges, validate
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json
from udpm.core.reading import read_json
from udpm.networks.weights import check_tensors, read_tensors, write_tensors
from udpm.runs.records import iteration_of, numbered
from udpm.training.batch import TrainingBatch
from udpm.training.metrics import NotFinite
from udpm.training.state import State

FORMAT = "udpm-checkpoint/2"
FAILURE_FORMAT = "udpm-failure/1"
KEPT = 2
COUNTER = "n_averaged"
"""Last part of the names of integer tensors."""

FAILURE_NAMES = {"fake_noise": "on_fake", "real_noise": "on_real", "dropped_labels": "hidden"}
"""Names in a failure's file that differ from those of a batch's parts."""


class Manifest(Record):
    """Required content of a checkpoint's manifest."""

    format: Annotated[str, Exactly(FORMAT)]
    iteration: PositiveInt
    sha256: Sha256


class CheckpointRecord(Record):
    """Required content of a checkpoint's description."""

    format: Annotated[str, Exactly(FORMAT)]
    iteration: PositiveInt
    dataset_sha256: Sha256
    dataset_splits: SplitRanges | None = None
    processes: list[dict[str, NonNegativeInt]]
    origin: dict[str, Any] | None
    run: dict[str, Any]


def save_checkpoint(folder: Path, state: State, description: dict[str, Any]) -> None:
    """Write the state as ``<iteration>.safetensors``, then its manifest; then remove all but the newest two.

    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints are unchanged.
    """
    path = folder / f"{state.iteration:09d}.safetensors"
    write_tensors(path, state.tensors(), {"format": FORMAT, "iteration": state.iteration, **description})
    write_json(_manifest(path), {"format": FORMAT, "iteration": state.iteration, "sha256": sha256(path)})
    for old in [found for found in checkpoints(folder) if iteration_of(found) <= state.iteration][:-KEPT]:
        _remove(old)


def save_failure(
    run: Path, state: State, problem: NotFinite, batch: TrainingBatch, description: dict[str, Any]
) -> None:
    """Write ``failures/<iteration>.safetensors``: the state, and the first batch whose loss was not finite.

    Losses are checked once per interval (training.log_every), so the state is that of the interval's end. Metadata hold
    its `iteration`, and as `first` that of the batch, which is over all processes, counted from 0.
    """
    parts = {f"batch/{FAILURE_NAMES.get(name, name)}": value for name, value in batch.tensors().items()}
    about = {"format": FAILURE_FORMAT, "term": problem.term, "player": problem.player, "level": batch.level}
    path = run / "failures" / f"{problem.iteration:09d}.safetensors"
    write_tensors(path, {**state.tensors(), **parts}, {**description, **about, "first": problem.iteration})


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, complete or not, oldest first."""
    return numbered(folder, ".safetensors")


def resume(
    folder: Path, state: State, total: int, check: Callable[[Path, dict[str, Any]], None]
) -> dict[str, Any] | None:
    """Load the newest complete checkpoint; warn about incomplete ones and skip them.

    Args:
        total: iterations of the whole training.
        check: called with a complete checkpoint and its description before loading; raises UserError if it is not this
            run's.

    Returns:
        Its description; None without a checkpoint, or if writing the first one was interrupted.

    Raises:
        UserError: no checkpoint is complete, or the newest complete one is not this run's or not a state that training
            reaches.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            manifest = _read_manifest(path)
        except UserError as error:
            print(f"warning: skipped: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        # The file is complete: an error in it is not the trace of a kill, so it is refused, not skipped.
        validate(Manifest, manifest, str(_manifest(path)))
        tensors, description = read_tensors(path, FORMAT, integers=(COUNTER,))
        validate(CheckpointRecord, description, str(path))
        check(path, description)
        _check_iteration(path, manifest["iteration"], description["iteration"], total)
        _check_state(path, state, tensors, manifest["iteration"])
        state.load(tensors, manifest["iteration"])
        return description
    # The manifest comes last: a single checkpoint without one is an interrupted first save, and nothing is lost.
    if found and (len(found) > 1 or _manifest(found[0]).exists()):
        raise UserError(f"{folder}: none of its {len(found)} checkpoints can be read; delete the folder to start anew")
    return None


def forget_after(folder: Path, iteration: int) -> None:
    """Remove skipped checkpoints of later iterations, which training will write again.

    Call on rank 0 alone, once all processes have resumed.
    """
    for path in checkpoints(folder):
        if iteration_of(path) > iteration:
            _remove(path)


def _remove(path: Path) -> None:
    _manifest(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest and check the file's bytes against it."""
    manifest = read_json(_manifest(path), "checkpoint's manifest")
    if manifest.get("sha256") != sha256(path):
        raise UserError(f"{path}: its bytes are not those that were written (SHA-256)")
    return manifest


def _check_iteration(path: Path, manifest: int, description: int, total: int) -> None:
    """Check that name, manifest and description agree, and that training reaches this iteration."""
    if not iteration_of(path) == manifest == description:
        raise UserError(
            f"{path}: is of iteration {iteration_of(path)} by its name, {manifest} by its manifest and {description} "
            "by its description; remove it to continue from the one before"
        )
    if manifest > total:
        raise UserError(
            f"{path}: is of iteration {manifest}, but training ends after {total}; remove it from the folder"
        )


def _check_state(path: Path, state: State, tensors: dict[str, torch.Tensor], iteration: int) -> None:
    """Check that the tensors are a state of this run after `iteration` iterations."""
    moments = {name for name in tensors if name.startswith("adam/")}
    expected = {name: value.shape for name, value in state.tensors().items() if not name.startswith("adam/")}
    for player, network in state.networks.items():
        for name, parameter in network.named_parameters():
            # A parameter without a gradient so far has no moments; one with some of them must have all.
            if moments & {f"adam/{player}/{kind}/{name}" for kind in ("step", "exp_avg", "exp_avg_sq")}:
                expected[f"adam/{player}/step/{name}"] = torch.Size()
                expected |= {f"adam/{player}/{kind}/{name}": parameter.shape for kind in ("exp_avg", "exp_avg_sq")}
    check_tensors(f"{path}: is not a state of this run", tensors, expected)
    if not any(name.startswith("adam/generator/") for name in moments):
        raise UserError(f"{path}: is not a state of this run: it has no moments of Adam for the generator")
    for name in moments:
        kind, values = name.split("/")[2], tensors[name]
        if kind == "exp_avg_sq" and (values < 0).any():
            raise UserError(f"{path}: tensor {name} has values below 0, impossible for means of squares")
        if kind == "step" and not (1 <= values <= iteration and values == values.round()):
            raise UserError(f"{path}: tensor {name} is {values:g}; expected a whole number in 1..{iteration}")
    for name in (name for name in tensors if name.endswith(f"/{COUNTER}")):
        if tensors[name] < 1:
            raise UserError(f"{path}: tensor {name} is {tensors[name]}; expected 1 or more")


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
