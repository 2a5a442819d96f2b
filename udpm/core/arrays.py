"""Check and digest arrays, and derive seeds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from udpm.core.errors import UserError

KINDS: dict[type, str] = {np.floating: "floating-point", np.integer: "integer"}
"""Names of abstract types in errors; concrete types use their own name."""

SEAL = "record_sha256"
"""Key that holds the SHA-256 of the rest of a record. Records of older versions lack it."""


def check_array(
    where: str, values: np.ndarray, kind: type, shape: Sequence[int | str], sizes: dict[str, int] | None = None
) -> None:
    """Check type and shape of an array, and that floating-point values are finite.

    Args:
        where: file and array, for the error ("a.npz: images").
        kind: np.uint8, np.floating, …: a type or a family of types.
        shape: a size for each axis; a name stands for any size above 0, and for the same one wherever it occurs.
        sizes: known sizes by name; new ones are added.

    Raises:
        UserError: type, shape or a value differs.
    """
    sizes = {} if sizes is None else sizes
    fits = np.issubdtype(values.dtype, kind) and values.ndim == len(shape)
    for found, wanted in zip(values.shape, shape, strict=False):
        size = sizes.setdefault(wanted, found) if isinstance(wanted, str) else wanted
        fits = fits and found == size > 0
    if not fits:
        expected = f"{KINDS.get(kind) or np.dtype(kind).name} ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        raise UserError(f"{where} is {values.dtype} {values.shape}; expected {expected}")
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise UserError(f"{where} contains values that are not finite (NaN or infinite)")


def check_arrays(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[type, Sequence[int | str]]]
) -> None:
    """Check type and shape of each array of a file, as `check_array` does; a name in several shapes is one size.

    Raises:
        UserError: one is missing, or its type, shape or a value differs.
    """
    sizes: dict[str, int] = {}
    for name, (kind, shape) in expected.items():
        if name not in arrays:
            raise UserError(f"{path}: array {name} not found; expected {', '.join(expected)}")
        check_array(f"{path}: {name}", arrays[name], kind, shape, sizes)


def image_grid(
    rows: Sequence[Sequence[np.ndarray] | np.ndarray], columns: int, gap: int, factor: int = 1
) -> np.ndarray:
    """Arrange images side by side on white.

    Args:
        rows: images of each row, (h, w, 3) uint8, all of one size; a row may hold fewer than `columns`.
        gap: pixels between images.
        factor: by which each side of an image is enlarged.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = (size * factor for size in rows[0][0].shape[:2])
    down, across = height + gap, width + gap
    canvas = np.full((len(rows) * down - gap, columns * across - gap, 3), 255, dtype=np.uint8)
    for top, images in zip(range(0, len(rows) * down, down), rows, strict=True):
        for left, image in zip(range(0, columns * across, across), images, strict=False):
            enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
            canvas[top : top + height, left : left + width] = enlarged
    return canvas


def content_digest(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of arrays (names, types, shapes, values) and a JSON-compatible record."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.asarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    digest.update(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())
    return digest.hexdigest()


def sealed(record: Mapping[str, Any], keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return a record with a digest of it, or of the given keys, for `check_seal`."""
    return {**record, SEAL: content_digest({}, _sealed_part(record, keys))}


def check_seal(path: str | os.PathLike, record: Mapping[str, Any], keys: Collection[str] | None = None) -> None:
    """Check that a record is unchanged since it was written; a record of an older version, without a digest, passes.

    Raises:
        UserError: it was changed.
    """
    if SEAL in record and record[SEAL] != content_digest({}, _sealed_part(record, keys)):
        what = ", ".join(keys) if keys else "it"
        raise UserError(f"{path}: was changed since it was written (SHA-256 of {what} differs); make it again")


def _sealed_part(record: Mapping[str, Any], keys: Collection[str] | None) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != SEAL and (keys is None or key in keys)}


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from the identity of a random draw, e.g. ``derive_seed(run_seed, "noise", iteration)``.

    Equal parts give equal seeds on every machine; any differing part gives an unrelated one (BLAKE2b).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
