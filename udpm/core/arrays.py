"""What arrays that are read must be, and a digest of what a file holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from udpm.core.errors import UserError

KINDS = {np.floating: "floating-point", np.integer: "integer"}
"""What abstract types are called in errors; a concrete type has its own name."""


def check_array(where: str, values: np.ndarray, kind: type, shape: Sequence[int | str]) -> None:
    """Check type and shape of an array, and that floating-point values are finite.

    Args:
        where: file and array, for the error ("a.npz: images").
        values: the array.
        kind: np.uint8, np.floating, …: a type or a family of types.
        shape: a size for each axis; a name stands for any size above 0, the same wherever it is repeated.

    Raises:
        UserError: it is something else.
    """
    sizes: dict[str, int] = {}
    fits = np.issubdtype(values.dtype, kind) and values.ndim == len(shape)
    for found, wanted in zip(values.shape, shape, strict=False):
        size = sizes.setdefault(wanted, found) if isinstance(wanted, str) else wanted
        fits = fits and found == size > 0
    if not fits:
        expected = f"{KINDS.get(kind) or np.dtype(kind).name} ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        raise UserError(f"{where} is {values.dtype} {values.shape}; expected {expected}")
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise UserError(f"{where} holds values that are not finite (NaN or infinite)")


def content_digest(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> str:
    """SHA-256 over arrays (names, types, shapes, values) and a record that JSON can hold."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.asarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    digest.update(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())
    return digest.hexdigest()
