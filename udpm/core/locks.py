"""One process at a time for what is being made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from udpm.core.errors import UserError


@contextmanager
def only_one(path: str | Path, doing: str) -> Iterator[None]:
    """Keep other processes from making `path` meanwhile; the lock lies beside it and goes with its holder.

    Args:
        path: file or folder that is being made.
        doing: for the error, e.g. "preparing this data set".

    Raises:
        UserError: another process is at it, the folder cannot be written, or somebody's file has the lock's name.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    # Taking a lock empties the file.
    if lock.is_symlink() or (lock.exists() and (not lock.is_file() or lock.stat().st_size)):
        raise UserError(f"{lock}: has the name of a lock that is needed for a while; move it away")
    held = FileLock(lock, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        raise UserError(f"{path}: another process is {doing}; wait for it or stop it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        # Removed while it is held: whoever opened it before notices that it has lost its name and starts over.
        lock.unlink(missing_ok=True)
        held.release()
