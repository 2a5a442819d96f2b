"""The guard: before any work, no output may be, hold or lie in what is read, or take the place of somebody's file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from udpm.core.errors import UserError
from udpm.core.files import through_links, writable
from udpm.core.folders import FolderKind, check_folder, working_directory
from udpm.core.kinds import FileKind, KeptFolder

BESIDE = {".npz": ".json", ".json": ".npz", ".pt": ".json"}
"""A file that is read with another of the same name: a sample set's and an extractor's record."""


@dataclass(frozen=True)
class Output:
    """What a command writes.

    Attributes:
        option: that names it, for messages.
        path: the file or folder.
        kind: what it will be; None: a folder in which files of other names are written.
    """

    option: str
    path: Path
    kind: FileKind | FolderKind | KeptFolder | None


def nothing(folder: Path, name: Path) -> bool:
    """What most folders that are read may hold of a command's outputs."""
    return False


@dataclass(frozen=True)
class Input:
    """What a command reads.

    Attributes:
        option: that names it, for messages.
        path: the file or folder; all below a folder is read, too.
        holds: whether an output may have a name all the same, given the folder and the name relative to it.
    """

    option: str
    path: Path
    holds: Callable[[Path, Path], bool] = nothing


def guard(outputs: Iterable[Output], inputs: Iterable[Input]) -> None:
    """Check before the work that its results can be written, and cost nobody anything.

    An output is refused if it is an input (under another name, too: a link, a hard link), lies in an input's folder, or
    is a folder around one that would be replaced; if it is another output; if it exists and is not recognised as this
    kind of file or folder, made by udpm and, where it is a folder that is replaced, with nothing else in it; if it is
    neither a file nor a folder (a device, a pipe); or if it cannot be written.

    Raises:
        UserError: an output is refused.
    """
    here = working_directory()
    read = [(told, _Place(path)) for told in inputs for path in (told.path, *_beside(told.path))]
    written = [(output, _Place(output.path)) for output in outputs]
    for output, place in written:
        _check_type(output)
        if isinstance(output.kind, FolderKind) and here.is_relative_to(place.real):
            raise _refuse(output, "is the folder you are in, or one around it; name a folder of its own")
        for told, other in read:
            _check_input(output, place, told, other)
    for (output, place), (second, taken) in combinations(written, 2):
        _check_both(output, place, second, taken)
    for output, _ in written:
        _check_kind(output)
        writable(output.path)


class _Place:
    """Where a path leads, as the disk knows it: a hard link or other letters make no difference.

    Args:
        path: of a file or folder, which may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.real = Path(os.path.realpath(path))
        self.identity = _identity(self.real)
        self.around = {_identity(parent): parent for parent in self.real.parents}


def _identity(path: Path) -> tuple[int, int] | str:
    try:
        found = os.stat(path)
    except OSError:
        return str(path)
    return found.st_dev, found.st_ino


def _beside(path: Path) -> list[Path]:
    other = path.with_suffix(BESIDE[path.suffix]) if path.suffix in BESIDE else path
    return [other] if other != path and other.is_file() else []


def _refuse(output: Output, reason: str) -> UserError:
    return UserError(f"{output.option}: {output.path}: {reason}")


def _check_type(output: Output) -> None:
    """No device or pipe, no file for a folder, no folder for a file."""
    wants_folder = not isinstance(output.kind, FileKind)
    try:
        mode = os.stat(output.path).st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise _refuse(output, "one of the folders in it is a file; name another path") from None
    except OSError as error:
        through_links(output.path)
        raise _refuse(output, f"cannot be written: {error.strerror or error}") from None
    if stat.S_ISDIR(mode) and not wants_folder:
        raise _refuse(output, "is a folder; name a file")
    if stat.S_ISREG(mode) and wants_folder:
        raise _refuse(output, "is a file; name a folder")
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise _refuse(output, "is a device or a pipe; name a file" if not wants_folder else "is no folder; name one")


def _check_input(output: Output, place: _Place, read: Input, other: _Place) -> None:
    if place.identity == other.identity:
        if isinstance(output.kind, FileKind) or not read.holds(other.real, Path()):
            raise _refuse(output, f"is what {read.option} reads; name another place")
        return
    around = place.around.get(other.identity)
    if around is not None and not read.holds(around, place.real.relative_to(around)):
        raise _refuse(output, f"lies in {read.path}, which {read.option} reads; name another place")
    # A folder that is not replaced may lie around an input, as a run's does around its configuration.
    if isinstance(output.kind, FolderKind) and place.identity in other.around:
        raise _refuse(output, f"lies around {read.path}, which {read.option} reads; name another place")


def _check_both(output: Output, place: _Place, other: Output, taken: _Place) -> None:
    if output.kind is None or other.kind is None:
        return
    if place.identity == taken.identity:
        raise _refuse(other, f"is what {output.option} writes, too; name another place")
    replaced = isinstance(other.kind, FolderKind) and taken.identity in place.around
    if replaced or (isinstance(output.kind, FolderKind) and place.identity in taken.around):
        raise _refuse(other, f"and what {output.option} writes lie in one another; name another place")


def _check_kind(output: Output) -> None:
    place, kind = through_links(output.path), output.kind
    if isinstance(kind, FolderKind):
        try:
            check_folder(output.path, kind)
        except UserError as error:
            raise UserError(f"{output.option}: {error}") from None
    elif isinstance(kind, KeptFolder) and place.is_dir():
        others = kind.foreign(place)
        if others:
            raise _refuse(
                output, f"holds other files ({', '.join(others[:3])}), and is no {kind.what}; name another folder"
            )
    elif isinstance(kind, FileKind) and place.exists() and place.stat().st_size and not kind.made(place):
        raise _refuse(output, f"exists, and is no {kind.what} that udpm wrote; name another file, or delete it")
