"""Arrays and the record of what made them, in one .npz."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from udpm.core.arrays import content_digest
from udpm.core.errors import UserError
from udpm.core.files import atomic_path
from udpm.core.reading import parse_json
from udpm.data.npz import unpack

DIGEST = "content_sha256"
"""Key of a record: SHA-256 of the arrays and the rest of the record. Files of older versions have none."""


def save_arrays(
    path: str | Path, arrays: dict[str, np.ndarray], record: dict[str, Any], *, compressed: bool = True
) -> None:
    """Write arrays, and their record with a digest of it all as JSON in an array `record`, atomically."""
    text = json.dumps(record | {DIGEST: content_digest(arrays, record)})
    write = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        write(handle, **arrays, record=np.array(text))


def load_arrays(path: str | Path, what: str, made_by: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote: arrays and record. The caller checks the values.

    Args:
        path: the file.
        what: what it should be, for the error ("chain").
        made_by: the command that makes it, for the error.

    Raises:
        UserError: missing, unreadable, or changed since it was written.
    """
    arrays = read_npz(path, what, made_by)
    if "record" not in arrays:
        raise UserError(f"{path}: not a {what}: it has no record; `{made_by}` makes it")
    record = parse_json(str(arrays.pop("record")), f"{path}: not a readable {what}: its record")
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a {what}: its record is not a JSON object")
    digest = record.pop(DIGEST, None)
    if digest is not None and digest != content_digest(arrays, record):
        raise UserError(f"{path}: its content was changed since it was written (SHA-256); make it again")
    return arrays, record


def read_npz(
    path: str | Path, what: str, made_by: str = "", names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an .npz, or those of the given names that it has.

    Args:
        path: the file.
        what: what it should be, for the error.
        made_by: the command that makes it, for the error.
        names: arrays to read; default: all.

    Raises:
        UserError: missing or unreadable.
    """
    if made_by and not os.path.lexists(path):
        raise UserError(f"{path}: {what} not found; `{made_by}` makes it")
    return unpack(path, what, names)
