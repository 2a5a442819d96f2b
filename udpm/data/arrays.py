"""Arrays and the record of what made them, in one .npz."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from udpm.core.errors import UserError
from udpm.core.files import atomic_path

UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged .npz raises, or a file that is none."""


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Write arrays, and their record as JSON in an array `record`, atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, record=np.array(json.dumps(record)), **arrays)


def load_arrays(path: str | Path, what: str, made_by: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote: arrays and record.

    Args:
        path: the file.
        what: what it should be, for the error ("chain").
        made_by: the command that makes it, for the error.

    Raises:
        UserError: missing or unreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(str(arrays.pop("record")))
    except FileNotFoundError:
        raise UserError(f"{path}: {what} not found; `{made_by}` makes it") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable {what}: {error}") from None
