"""Sample sets: one .npz of lossless images and labels, with a JSON record beside it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256, write_json
from udpm.core.kinds import SAMPLES_COMMENT
from udpm.core.reading import read_json
from udpm.data.arrays import UNREADABLE

FORMAT = "udpm-samples/1"
SHARDS = "shards"
OWN = ("shard", "count", "sha256")
"""Keys in which the records of one set's shards differ."""


@dataclass(frozen=True)
class SampleSet:
    """Images that a model drew.

    Attributes:
        images: (n, side, side, 3) uint8, RGB.
        labels: (n,) int64, the class asked for; all zero for an unconditional model.
        record: what made them (run, iteration, seed, posterior, NFE, ...), plus their count and SHA-256.
        outputs: by level, the network's outputs at levels above 1, shown at full side; empty unless asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    record: dict[str, Any]
    outputs: dict[int, np.ndarray] = field(default_factory=dict)


def save_samples(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    record: dict[str, Any],
    outputs: dict[int, np.ndarray] | None = None,
) -> None:
    """Write a sample set to `path` (.npz) and its record to the same name with .json, record last.

    Args:
        path: where to; its suffix must be .npz.
        images: (n, side, side, 3) uint8.
        labels: (n,) int64.
        record: what made them.
        outputs: by level, of the images' shape.
    """
    path = Path(path)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        shown = {f"output_{level}": values for level, values in (outputs or {}).items()}
        np.savez_compressed(handle, images=images, labels=labels, **shown)
        handle.close()
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = SAMPLES_COMMENT
    write_json(record_path(path), {"format": FORMAT, "count": len(images), "sha256": sha256(path), **record})


def load_samples(path: str | Path) -> SampleSet:
    """Read a sample set and its record.

    Args:
        path: the .npz, or the record (.json) of a set that was drawn in shards.

    Raises:
        UserError: missing or unreadable, or a file is not the one its record describes.
    """
    path = Path(path)
    if path.suffix == ".json":
        record = _record(path)
        if SHARDS in record:
            return _joined(path, record)
        path = path.with_suffix(".npz")
    return _load(path)


def join_shards(shards: Sequence[Path], output: Path) -> None:
    """Make one sample set of its shards: a record that names them; the images stay where they are.

    Args:
        shards: all of them (.npz), in any order.
        output: .json, in a folder at or above theirs.

    Raises:
        UserError: a shard is missing, damaged, there twice, or of another set than the rest.
    """
    if output.suffix != ".json":
        raise UserError(f"--output: {output} must end in .json")
    records = {path: _record(record_path(path)) for path in shards}
    for path, record in records.items():
        if "shard" not in record:
            raise UserError(f"{path}: is a whole sample set, not a shard of one")
        _check(path, record)
    ordered = sorted(records, key=lambda path: records[path]["shard"])
    expected = [[index, len(shards)] for index in range(1, len(shards) + 1)]
    found = [records[path]["shard"] for path in ordered]
    if found != expected:
        told = ", ".join(f"{index} of {count}" for index, count in found)
        raise UserError(f"{output}: needs shards 1 to {len(shards)} of {len(shards)}, got {told}")
    first, *others = (_common(records[path]) for path in ordered)
    for path, other in zip(ordered[1:], others, strict=True):
        if other != first:
            key = next(key for key in first | other if first.get(key) != other.get(key))
            raise UserError(f"{path}: is of another sample set than {ordered[0]}: {key} differs; draw its shards again")
    folder = output.parent.resolve()
    parts = [
        {"file": os.path.relpath(path.resolve(), folder), **{key: records[path][key] for key in OWN[1:]}}
        for path in ordered
    ]
    whole = {"count": sum(part["count"] for part in parts), "sha256": _digest(parts), SHARDS: parts}
    write_json(output, {"format": FORMAT, **whole, **first})


def _joined(path: Path, record: dict[str, Any]) -> SampleSet:
    parts = []
    for told in record[SHARDS]:
        part = path.parent / told["file"]
        parts.append(_load(part, told))
    outputs = {level: np.concatenate([part.outputs[level] for part in parts]) for level in parts[0].outputs}
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return SampleSet(images, labels, record, outputs)


def _load(path: Path, told: dict[str, Any] | None = None) -> SampleSet:
    """A set in one file, whose record lies beside it unless it is `told`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
            levels = [int(name.removeprefix("output_")) for name in arrays.files if name.startswith("output_")]
            outputs = {level: arrays[f"output_{level}"] for level in levels}
    except FileNotFoundError:
        raise UserError(f"{path}: sample set not found; `udpm sample` makes it") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable sample set: {error}") from None
    record = _record(record_path(path)) if told is None else told | {"format": FORMAT}
    _check(path, record)
    return SampleSet(images, labels, record, outputs)


def _check(path: Path, record: dict[str, Any]) -> None:
    if not path.exists():
        raise UserError(f"{path}: sample set not found; `udpm sample` makes it")
    if record.get("format") != FORMAT or record.get("sha256") != sha256(path):
        raise UserError(f"{record_path(path)}: does not describe {path.name}; draw the sample set again")


def _record(path: Path) -> dict[str, Any]:
    return read_json(path, "sample set's record")


def _common(record: dict[str, Any]) -> dict[str, Any]:
    """What the shards of one set have in common."""
    return {key: value for key, value in record.items() if key not in {"format", *OWN}}


def _digest(parts: list[dict[str, Any]]) -> str:
    return hashlib.sha256(" ".join(part["sha256"] for part in parts).encode()).hexdigest()


def record_path(path: str | Path) -> Path:
    """The record that belongs to a sample set's .npz."""
    return Path(path).with_suffix(".json")
