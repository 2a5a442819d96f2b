"""Replace folders atomically: build a new one next to the old one, exchange them, recover after a kill."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from udpm.core.errors import UserError
from udpm.core.files import exclusive, leading, remove_temporary, sha256, sync, through_links, write_json
from udpm.core.reading import read_json

CONTENTS = ".udpm.json"
"""Name of the list of a folder's files, in the folder itself: any other file there is the user's."""
FORMAT = "udpm-folder/1"
MARK = ".udpm"
"""File that marks a folder of work in progress, in case a user has a folder of the same name."""
IGNORED = (".snakemake_timestamp", ".DS_Store", ".nfs*", "*.cpython-*.pyc")
"""Files that Snakemake, file managers, network disks and Python leave in a folder."""
NAMES_SHOWN = 3
LARGEST_LIST = 1 << 28
"""Maximal bytes of a list of contents: millions of files."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that a command writes as a whole.

    Attributes:
        what: for messages, such as "level cache".
        making: for messages about another process, such as "caching this data set".
        record: name of its record.
        format: of the record, without its version.
        older: patterns of the files of a folder from before lists of contents existed; none: it is refused.
        exact: treat a file whose bytes changed as the user's. Prepared images are not a user's work: changed ones are
            damaged, and are prepared again.
        fresh: write it only where no folder or an empty one is. Its files are the user's from then on, and not listed.
    """

    what: str
    making: str
    record: str
    format: str
    older: tuple[str, ...] = ()
    exact: bool = False
    fresh: bool = False


def foreign(folder: Path, kind: FolderKind) -> str | None:
    """Return why a folder must not be replaced, e.g. its files that are not of `kind`; None if it may be replaced."""
    if folder.is_dir() and os.path.ismount(folder):
        return "is a mount point, which cannot be replaced; choose a folder inside it"
    found = _files(folder)
    if not found:
        return None
    if kind.fresh:
        return f"is not empty ({_shown(found)}); choose a new or an empty folder for the {kind.what}"
    listed = _listed(folder, kind)
    if listed is None:
        return (
            f"contains other files ({_shown(found)}), not a {kind.what}; choose a new or an empty folder, or delete "
            "this one"
        )
    own, patterns = listed
    others = [name for name in found if name not in own and not any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    others += [name for name in found if name not in others and not _is_plain(folder / name)]
    if others:
        return f"contains files besides the {kind.what} ({_shown(others)}); move them away, or choose another folder"
    changed = [name for name in found if own.get(name) and sha256(folder / name) != own[name]]
    if changed:
        return f"its files were changed ({_shown(changed)}); move them away, or choose another folder"
    return None


def check_folder(folder: str | os.PathLike, kind: FolderKind) -> None:
    """Refuse a folder that must not be replaced.

    Raises:
        UserError: see `foreign`; or it is the working directory or contains it.
    """
    target = through_links(folder)
    if working_directory().is_relative_to(target.resolve()):
        raise UserError(f"{folder}: is or contains the working directory; choose a separate folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"{folder}: is a file; expected a folder")
    reason = foreign(target, kind)
    if reason is not None:
        raise UserError(f"{folder}: {reason}")


@contextmanager
def atomic_folder(path: str | os.PathLike, kind: FolderKind) -> Iterator[Path]:
    """Yield an empty folder next to `path`; on success its files are synced and it replaces `path`, else it is removed.

    `path` may be a link to the folder. An existing one is replaced only if it is empty or of this kind.

    Raises:
        UserError: the folder cannot be written or the disk is full, it contains something else, or another process is
            writing it.
    """
    check_folder(path, kind)
    target = through_links(path)
    with exclusive(target, kind.making):
        work = WorkFolder(target, target.with_name(f".{target.name}.work"))
        try:
            work.open()
            work.new.mkdir()
            yield work.new
            if not kind.fresh:
                files = sorted(str(file.relative_to(work.new)) for file in work.new.rglob("*") if file.is_file())
                digests = {name: sha256(work.new / name) if kind.exact else None for name in files}
                list_contents(work.new, kind, digests)
            check_folder(path, kind)
            work.publish()
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        finally:
            work.remove()


class WorkFolder:
    """A hidden folder in which the next version of a folder is built. Use it under the folder's lock.

    It survives a kill, and `open` then continues from it: one version of the folder is complete at all times.

    Args:
        new: name of the next version in it.
        old: name of the previous version in it, if the disk cannot exchange two folders.
        known: names of further files in it, which are removed with it.
    """

    def __init__(
        self, folder: Path, path: Path, new: str = "new", old: str = "old", known: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.path, self.new, self._old, self._known = folder, path, path / new, path / old, known

    def open(self, *, keep: bool = False) -> None:
        """Create it, after undoing an interrupted replacement. Removes files left by a kill unless `keep`.

        Raises:
            UserError: a user's file or folder has its name.
        """
        if os.path.lexists(self.path):
            self._check()
            if self._old.exists():
                if self.folder.exists() and any(self.folder.iterdir()):
                    shutil.rmtree(self._old)
                else:
                    os.rename(self._old, self.folder)
            if not keep:
                self.remove()
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MARK).touch()

    def publish(self) -> None:
        """Sync the next version's files and exchange it with the folder. The work folder keeps the previous version."""
        for path in (*self.new.rglob("*"), self.new):
            sync(path)
        if not self.folder.exists():
            os.rename(self.new, self.folder)
        elif not exchange(self.new, self.folder):
            os.rename(self.folder, self._old)
            os.rename(self.new, self.folder)
        sync(self.folder.parent)

    def remove(self) -> None:
        """Remove it and its files: the mark last, so that it stays recognizable after a kill meanwhile."""
        if self._old.exists() and not self.folder.exists():
            return
        for part in (self.new, self._old):
            shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            remove_temporary(self.path)
            for name in (*self._known, MARK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def _check(self) -> None:
        """Check that udpm created it: it has a mark or, from before marks existed, a journal."""
        known, found = {self.new.name, self._old.name, *self._known, MARK}, set()
        if self.path.is_dir() and not self.path.is_symlink():
            names = {entry.name for entry in self.path.iterdir()}
            found = {name for name in names if not fnmatch.fnmatchcase(name, ".*.tmp-*")}
            marked = MARK in found or any(b'"format": "udpm-' in leading(self.path / name) for name in self._known)
            if found <= known and (marked or not found):
                return
        raise UserError(f"{self.path}: has the name of the folder for work in progress; move it away")


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders or files of one disk atomically; return False if the system or the disk cannot."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def list_contents(folder: Path, kind: FolderKind, files: dict[str, str | None]) -> None:
    """Write the list of a folder's files, by relative name, with SHA-256 if edits must be detected."""
    write_json(folder / CONTENTS, {"format": FORMAT, "kind": kind.format, "files": files})


def _listed(folder: Path, kind: FolderKind) -> tuple[dict[str, str | None], tuple[str, ...]] | None:
    """Return a folder's files with their expected SHA-256, and patterns of others; None if it is of another kind."""
    contents, record = folder / CONTENTS, folder / kind.record
    with suppress(UserError):
        if _is_plain(contents):
            value = read_json(contents, "list of contents", LARGEST_LIST)
            if value.get("format") == FORMAT and value.get("kind") == kind.format and _is_list(value.get("files")):
                return {**value["files"], CONTENTS: None}, ()
        elif kind.older and _is_plain(record):
            value = read_json(record, "record")
            if str(value.get("format")).partition("/")[0] == kind.format:
                return {kind.record: None}, kind.older
    return None


def _is_list(files: object) -> bool:
    return isinstance(files, dict) and all(value is None or isinstance(value, str) for value in files.values())


def _files(folder: Path) -> list[str]:
    """Return all files and links below a folder, by relative name; none if it does not exist."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        found += [os.path.relpath(os.path.join(root, name), folder) for name in (*files, *links)]
    return sorted(name for name in found if not any(fnmatch.fnmatchcase(Path(name).name, p) for p in IGNORED))


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _shown(names: list[str]) -> str:
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def working_directory() -> Path:
    """Return the working directory.

    Raises:
        UserError: it was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory no longer exists; change to one that does") from None
