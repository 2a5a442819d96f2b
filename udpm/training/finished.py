"""Whether a run is finished: its files' content says so, not their times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.training.records import COMPLETE, read_complete

WEIGHTS, CHECKPOINTS = "weights.safetensors", "checkpoints"


def is_finished(run: Path, iterations: int, dataset_sha256: str | None, digest: Callable[[Path], str] = sha256) -> bool:
    """Whether a run ended after so many iterations on these images, and its weights are those it ended with.

    Args:
        run: the run's folder.
        iterations: at its end.
        dataset_sha256: identity of the images; None where it is unknown.
        digest: gives SHA-256 of a file.

    Raises:
        UserError: training here would replace weights that cannot be made again, or that are not the run's.
    """
    record = read_completion(run, digest)
    if record is None:
        return False
    if dataset_sha256 is not None and record.get("dataset_sha256") not in (None, dataset_sha256):
        raise UserError(
            f"{run}: was trained on other images than the data set holds now; bring the images back, give the data set "
            "and the experiment new names, or delete the run's folder"
        )
    done = record.get("iterations") or 0
    if done < iterations and not has_checkpoint(run):
        raise UserError(
            f"{run}: is finished after {done} iterations, and the checkpoints that training would go on from to "
            f"{iterations} are gone; set training.iterations back to {done}, or name a new experiment that starts from "
            "these weights (weights:)"
        )
    return done >= iterations


def read_completion(run: Path, digest: Callable[[Path], str] = sha256) -> dict[str, Any] | None:
    """The completion record of a run whose weights are there; None where it is not finished.

    Raises:
        UserError: the weights are not those that the record tells of, or have neither a record nor checkpoints.
    """
    weights = run / WEIGHTS
    if not weights.exists():
        return None
    if not (run / COMPLETE).exists():
        if has_checkpoint(run):
            return None
        raise UserError(
            f"{weights}: has neither {COMPLETE} nor checkpoints next to it: training would begin anew and replace it; "
            "move it away, or bring the other files back"
        )
    record = read_complete(run)
    if digest(weights) != record["weights_sha256"]:
        way = "; or delete it, and the last checkpoint makes it again" if has_checkpoint(run) else ""
        raise UserError(
            f"{weights}: is not what the run ended with: its SHA-256 is not the one in {COMPLETE}; put that file "
            f"back{way}"
        )
    return record


def may_be_finished(run: Path, training: Any) -> bool:
    """Whether a run may have nothing left to train, without reading the data set.

    Args:
        run: the run's folder.
        training: section of its configuration. With `epochs` the length depends on the data set, so any run that
            completed may be finished.

    Raises:
        UserError: as `is_finished`.
    """
    if training.epochs:
        return read_completion(run) is not None
    return is_finished(run, training.iterations, None)


def has_checkpoint(run: Path) -> bool:
    """Whether training could go on from a checkpoint that seems whole: it and its manifest are there."""
    manifests = (run / CHECKPOINTS).glob("[0-9]*.json")
    return any(manifest.with_suffix(".safetensors").is_file() for manifest in manifests)
