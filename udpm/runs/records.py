"""Schemas of the files in a run's folder, whether it is finished, and which files can go. Imports no torch."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict

from udpm.config.validation import (
    Exactly,
    NonNegativeFloat,
    NonNegativeInt,
    Record,
    SplitRanges,
    is_valid,
    read_record,
    validate,
)
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.core.hub import download, is_address
from udpm.core.reading import read_json, read_json_lines
from udpm.runs.layout import Layout
from udpm.runs.lock import ProcessRecord, is_dead, read_owner

COMPLETE, ATTEMPTS = "complete.json", "attempts.jsonl"
WEIGHTS, CHECKPOINTS = "weights.safetensors", "checkpoints"
RUN_FILES = ("config.json", "owner.json", COMPLETE, ATTEMPTS)
"""Files that mark a folder as a run's."""
RUN_FORMAT = "udpm-run/1"
"""Format of ``complete.json``."""
SHOWN = 4
"""Largest number of runs in an error."""
ITERATION = re.compile(r"[0-9]{9,18}")
CHECKPOINT_FILE = re.compile(r"[0-9]{9,18}\.(?:safetensors|json)|\..+\.tmp-.+")
"""Names of checkpoints, of their manifests, and of temporary files that a killed process left."""
SEALED = (
    *("format", "experiment", "seed", "iterations", "seconds", "cpu_seconds", "parameters", "device", "processes"),
    *("origin", "dataset_sha256", "dataset_splits", "class_names", "weights_sha256"),
)
"""Keys that the digest of ``complete.json`` covers: all that are shown or that decisions depend on."""


class Provenance(Record):
    """Provenance of a result."""

    versions: dict[str, str]
    commit: str | None
    machine: str


class Origin(Record):
    """Files that imported weights were read from."""

    kind: str | None = None
    files: list[dict[str, str]] = []


class Complete(Record):
    """``complete.json``: a run that ended."""

    format: Annotated[str, Exactly(RUN_FORMAT)]
    experiment: str
    seed: NonNegativeInt
    iterations: NonNegativeInt | None = None
    seconds: NonNegativeFloat | None = None
    cpu_seconds: NonNegativeFloat | None = None
    parameters: dict[str, NonNegativeInt] = {}
    device: str | None = None
    origin: Origin | None = None
    dataset_sha256: str | None = None
    dataset_splits: SplitRanges | None = None
    class_names: list[str] | None = None
    weights_sha256: str
    provenance: Provenance


class MetricsLine(Record):
    """A line of ``metrics.jsonl``; all other entries are numbers too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    iteration: NonNegativeInt
    seconds: NonNegativeFloat = 0.0
    cpu_seconds: NonNegativeFloat = 0.0
    images_per_second: NonNegativeFloat = 0.0


class AttemptLine(ProcessRecord):
    """A line of ``attempts.jsonl``: the beginning or the end of an attempt, or the failure of a rank other than 0."""

    began: float | None = None
    waits: bool = False
    owns: float | None = None
    ended: str | None = None
    reason: str = ""
    rank: NonNegativeInt | None = None
    failed: bool = False
    saved: NonNegativeInt | None = None
    start: str | None = None
    series: str | None = None


class _Training(Record):
    iterations: NonNegativeInt | None = None
    epochs: NonNegativeInt | None = None
    batch: NonNegativeInt | None = None


class RunSummary(Record):
    """The part of ``config.json`` that defines a run's length; also valid for older runs with other keys."""

    training: _Training | Literal["imported"] = _Training()


def read_run_length(run: Path) -> dict[str, Any]:
    """Return `iterations`, `epochs` and `batch` of a run's configuration, if known.

    Raises:
        UserError: ``config.json`` cannot be read.
    """
    path = run / "config.json"
    if not path.exists():
        return {}
    training = validate(RunSummary, read_json(path, "resolved configuration"), str(path)).training
    return {} if training == "imported" else training.model_dump()


def read_complete(run: Path) -> dict[str, Any]:
    """Return the record of a finished run; missing optional entries are None or empty.

    Raises:
        UserError: missing, unreadable, of another format, not such a record, or changed since it was written.
    """
    path, what = run / COMPLETE, "record of a finished run"
    try:
        read_json(path, what)
    except UserError as error:
        if path.exists() and has_checkpoint(run):
            raise UserError(f"{error}; delete it, and training writes it again from the last checkpoint") from None
        raise
    return read_record(Complete, path, what, SEALED, fill=True)


def read_metrics_lines(path: Path, tail: int | None = None) -> Iterator[dict[str, Any] | None]:
    """Yield the lines of ``metrics.jsonl``; None for an invalid line.

    Args:
        tail: read only this many bytes at its end; None: all.

    Raises:
        UserError: the file cannot be read.
    """
    return (line if is_valid(MetricsLine, line) else None for line in read_json_lines(path, "record of metrics", tail))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a training run's."""
    return any((folder / name).is_file() for name in RUN_FILES)


def last_saved(run: Path) -> int:
    """Return the iteration of a run's newest checkpoint that seems complete; 0 if none does."""
    manifests = reversed(numbered(run / CHECKPOINTS, ".json"))
    return next((iteration_of(path) for path in manifests if path.with_suffix(".safetensors").is_file()), 0)


def numbered(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder that are named by iteration, such as 000003200.safetensors, in ascending order.

    Raises:
        UserError: a file is in its place, so that what is saved later could not be written.
    """
    if folder.is_file():
        raise UserError(f"{folder}: is a file; expected a folder, or nothing")
    found = [path for path in folder.glob(f"*{suffix}") if path.suffix == suffix and ITERATION.fullmatch(path.stem)]
    return sorted(found, key=iteration_of)


def iteration_of(path: Path) -> int:
    """Return the iteration in a file's name."""
    return int(path.stem)


def is_finished(run: Path, iterations: int, dataset_sha256: str | None, digest: Callable[[Path], str] = sha256) -> bool:
    """Return whether a run completed this many iterations on these images, and its weights are unchanged since.

    Args:
        dataset_sha256: identity of the images; None if unknown.

    Raises:
        UserError: training here would replace weights that cannot be reproduced, or that are not the run's.
    """
    record = read_completion(run, digest)
    if record is None:
        return False
    if dataset_sha256 is not None and record.get("dataset_sha256") not in (None, dataset_sha256):
        raise UserError(
            f"{run}: was trained on other images than the data set now has; restore the images, give the data set and "
            "the experiment new names, or delete the run's folder"
        )
    done = record.get("iterations") or 0
    if done < iterations and not has_checkpoint(run):
        raise UserError(
            f"{run}: is finished after {done} iterations, and the checkpoints needed to continue to {iterations} are "
            f"gone; set training.iterations back to {done}, or name a new experiment that starts from these weights "
            "(weights:)"
        )
    return done >= iterations


def read_completion(run: Path, digest: Callable[[Path], str] = sha256) -> dict[str, Any] | None:
    """Return the completion record of a finished run, after checking its weights; None if it is not finished.

    Raises:
        UserError: the weights do not match the record, or exist with neither a record nor checkpoints.
    """
    weights = run / WEIGHTS
    if not weights.exists():
        return None
    if not (run / COMPLETE).exists():
        if has_checkpoint(run):
            return None
        raise UserError(
            f"{weights}: {COMPLETE} and checkpoints not found next to it: training would restart and replace it; move "
            "it away, or restore the other files"
        )
    record = read_complete(run)
    if digest(weights) != record["weights_sha256"]:
        way = ", or delete it to rebuild it from the last checkpoint" if has_checkpoint(run) else ""
        raise UserError(
            f"{weights}: is not what the run ended with: its SHA-256 differs from the one in {COMPLETE}; restore the "
            f"original file{way}"
        )
    return record


def may_be_finished(run: Path, training: Any) -> bool:
    """Return whether a run may have no iterations left, without reading the data set.

    Args:
        training: section of its configuration. With `epochs` the length depends on the data set, so any run that
            completed may be finished.

    Raises:
        UserError: as `is_finished`.
    """
    if training.epochs:
        return read_completion(run) is not None
    return is_finished(run, training.iterations, None)


def has_checkpoint(run: Path) -> bool:
    """Return whether training could resume from a checkpoint: one exists together with its manifest."""
    return last_saved(run) > 0


@dataclass(frozen=True)
class Leftovers:
    """Files of one run that can be removed.

    Attributes:
        size: total size of the files in bytes.
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


def find_weights(path: str | Path) -> Path:
    """Return the weight file that a path stands for.

    The address of a model on the Hugging Face Hub, hf://OWNER/NAME[@REVISION], stands for its weights, which are
    downloaded to the cache of huggingface_hub.
    A run's folder stands for its ``weights.safetensors``, which need not exist yet, and so does any other folder with
    such a file; a folder of results, of runs or of one experiment's runs stands for the only weights in it. Anything
    else is returned unchanged.

    Raises:
        UserError: a folder that holds no weights, or those of several runs; or a model that cannot be downloaded.
    """
    if is_address(path):
        return download(path, WEIGHTS)
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file() or is_run(path):
        return path / WEIGHTS
    folder = Path(os.path.abspath(path))
    # The folder may be RESULTS, RESULTS/runs or RESULTS/runs/EXPERIMENT.
    layouts = [Layout(results) for results in (folder, folder.parent, folder.parent.parent)]
    found = [file for layout in layouts for file in layout.found(layout.weights("*", "*"))]
    inside = [path / file.relative_to(folder) for file in dict.fromkeys(found) if file.is_relative_to(folder)]
    if not inside:
        raise UserError(f"{path}: holds no {WEIGHTS}; expected a weights file or a run's folder")
    if len(inside) > 1:
        runs = ", ".join(str(file.parent) for file in inside[:SHOWN]) + ", …" * (len(inside) > SHOWN)
        raise UserError(f"{path}: holds the weights of {len(inside)} runs; expected one of {runs}")
    return inside[0]


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
        if CHECKPOINT_FILE.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
            files.append(path)
            size += status.st_size
    return Leftovers(run, files, size)


def remove_leftovers(found: Leftovers) -> None:
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
