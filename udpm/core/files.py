"""Files that are either whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.reading import opened


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, else removed.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    # The host too: in containers every process may have the same number.
    temporary = path.with_name(f".{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        # On a read-only disk even removing what is not there fails.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_outputs(outputs: dict[str, tuple[Path | None, str]], *inputs: str | os.PathLike | None) -> None:
    """Check before the work that its results can be written and take no other file's place.

    Args:
        outputs: by option, where to (or None) and the suffix that the file must have.
        inputs: files that are read.

    Raises:
        UserError: a wrong suffix, the same file twice, or a folder that cannot be written.
    """
    taken = {Path(path).resolve(): "what is read" for path in inputs if path is not None}
    for option, (path, suffix) in outputs.items():
        if path is None:
            continue
        if path.suffix != suffix:
            raise UserError(f"{option}: {path} must end in {suffix}")
        if path.resolve() in taken:
            raise UserError(f"{option}: {path} is {taken[path.resolve()]}; name another file")
        taken[path.resolve()] = f"{option} too"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path}: cannot be written: {path.parent} is read-only")


def remove_temporary(folder: str | os.PathLike, keep: str = "") -> None:
    """Remove what killed processes left in a folder of files they were writing, except of files called `keep`."""
    for temporary in Path(folder).glob(".*.tmp-*"):
        if not (keep and temporary.name.startswith(f".{keep}.tmp-")):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike, *known: str) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success its files are synced and it takes `path`'s place, else it goes.

    Args:
        path: the folder. One that is there is replaced only if it is empty or was made so before.
        known: names of files that tell a folder made so.

    Raises:
        UserError: the folder cannot be written or the disk is full, or it holds something else.
    """
    path = Path(path)
    if Path.cwd().is_relative_to(path.resolve()):
        raise UserError(f"{path}: is the folder you are in, or one around it; name a folder of its own")
    if path.is_dir() and any(path.iterdir()) and not any((path / name).exists() for name in known):
        raise UserError(f"{path}: holds other files (no {' or '.join(known)}); name a folder of its own")
    building = path.with_name(f".{path.name}.building")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        for file in building.rglob("*"):
            sync(file)
        sync(building)
        shutil.rmtree(path, ignore_errors=True)
        building.rename(path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def sync(path: str | os.PathLike) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically. NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: not a regular file, or it cannot be read.
    """
    with opened(path, "file") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
