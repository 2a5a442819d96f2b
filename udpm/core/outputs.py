"""Guard against bad output paths before any work: none may overlap an input, or replace a user's file."""

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

COMPANIONS = {".npz": ".json", ".json": ".npz", ".pt": ".json"}
"""Files read together with another of the same name: the records of sample sets and extractors."""


@dataclass(frozen=True)
class Output:
    """An output of a command, which `option` names. Kind None: a folder in which files of other names are written."""

    option: str
    path: Path
    kind: FileKind | FolderKind | KeptFolder | None


def nothing(folder: Path, name: Path) -> bool:
    """Allow no output in an input's folder."""
    return False


@dataclass(frozen=True)
class Input:
    """An input of a command, which `option` names; a folder is read with everything below it.

    `holds` returns whether an output is allowed in the folder, given the folder and the output's relative name.
    """

    option: str
    path: Path
    holds: Callable[[Path, Path], bool] = nothing


def guard(outputs: Iterable[Output], inputs: Iterable[Input]) -> None:
    """Check before the work that its outputs can be written, and replace nothing of the user's.

    Refuses an output that

    - is an input (also under another name: a symbolic or hard link), is inside an input's folder, or is a folder to
      replace that contains one;
    - is also another output;
    - exists and is not recognized as a file or folder of this kind that udpm wrote, or is a folder to replace that
      contains anything else;
    - is neither a file nor a folder (a device, a pipe);
    - cannot be written.

    Raises:
        UserError: an output is refused.
    """
    here = working_directory()
    read = [(given, _Location(path)) for given in inputs for path in (given.path, *_companions(given.path))]
    written = [(output, _Location(output.path)) for output in outputs]
    for output, location in written:
        _check_type(output)
        if isinstance(output.kind, FolderKind) and here.is_relative_to(location.real):
            raise _refuse(output, "is or contains the working directory; choose a separate folder")
        for given, other in read:
            _check_input(output, location, given, other)
    for (output, location), (second, taken) in combinations(written, 2):
        _check_both(output, location, second, taken)
    for output, _ in written:
        _check_kind(output)
        writable(output.path)


class _Location:
    """Identity of a path on disk, the same for links, hard links and names that differ only in case."""

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


def _companions(path: Path) -> list[Path]:
    other = path.with_suffix(COMPANIONS[path.suffix]) if path.suffix in COMPANIONS else path
    return [other] if other != path and other.is_file() else []


def _refuse(output: Output, reason: str) -> UserError:
    return UserError(f"{output.option}: {output.path}: {reason}")


def _check_type(output: Output) -> None:
    """Refuse a device or pipe, a file instead of a folder, and a folder instead of a file."""
    wants_folder = not isinstance(output.kind, FileKind)
    try:
        mode = os.stat(output.path).st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise _refuse(output, "one of the folders in this path is a file; choose another path") from None
    except OSError as error:
        through_links(output.path)
        raise _refuse(output, f"cannot be written: {error.strerror or error}") from None
    if stat.S_ISDIR(mode) and not wants_folder:
        raise _refuse(output, "is a folder; expected a file")
    if stat.S_ISREG(mode) and wants_folder:
        raise _refuse(output, "is a file; expected a folder")
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise _refuse(output, f"is a device or a pipe; expected a {'folder' if wants_folder else 'file'}")


def _check_input(output: Output, location: _Location, read: Input, other: _Location) -> None:
    if location.identity == other.identity:
        if isinstance(output.kind, FileKind) or not read.holds(other.real, Path()):
            raise _refuse(output, f"is also the input of {read.option}; choose another path")
        return
    around = location.around.get(other.identity)
    if around is not None and not read.holds(around, location.real.relative_to(around)):
        raise _refuse(output, f"is inside {read.path}, the input of {read.option}; choose another path")
    # A folder that is not replaced may contain an input, as a run's folder contains its configuration.
    if isinstance(output.kind, FolderKind) and location.identity in other.around:
        raise _refuse(output, f"contains {read.path}, the input of {read.option}; choose another path")


def _check_both(output: Output, location: _Location, other: Output, taken: _Location) -> None:
    if output.kind is None or other.kind is None:
        return
    if location.identity == taken.identity:
        raise _refuse(other, f"is also the output of {output.option}; choose another path")
    replaced = isinstance(other.kind, FolderKind) and taken.identity in location.around
    if replaced or (isinstance(output.kind, FolderKind) and location.identity in taken.around):
        raise _refuse(other, f"is inside the output of {output.option}, or contains it; choose another path")


def _check_kind(output: Output) -> None:
    location, kind = through_links(output.path), output.kind
    if isinstance(kind, FolderKind):
        try:
            check_folder(output.path, kind)
        except UserError as error:
            raise UserError(f"{output.option}: {error}") from None
    elif isinstance(kind, KeptFolder) and location.is_dir():
        if others := ", ".join(kind.foreign(location)[:3]):
            raise _refuse(output, f"contains other files ({others}), not a {kind.what}; choose another folder")
    elif isinstance(kind, FileKind) and location.exists() and location.stat().st_size and not kind.made(location):
        raise _refuse(output, f"already exists, not a {kind.what} that udpm wrote; choose another file, or delete it")
