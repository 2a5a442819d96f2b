"""Download published files: complete, with the expected digest, or not at all."""

from __future__ import annotations

import os
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256
from udpm.core.progress import Progress


@dataclass(frozen=True)
class PublishedFile:
    """File published by a third party, with its SHA-256 in hexadecimal."""

    name: str
    url: str
    sha256: str


INCEPTION = PublishedFile(
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
VGG = PublishedFile(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
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
    """Return the path of a published file in a folder, after downloading it if missing. Always checks its digest.

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
    elif (found := sha256(path)) != file.sha256:
        raise UserError(f"{path}: has SHA-256 {found}, expected {file.sha256}; remove it, and {_by_hand(file, path)}")
    return path


def _download(file: PublishedFile, path: Path) -> None:
    with atomic_path(path) as temporary:
        try:
            _receive(file, temporary)
        # No network, a refused connection and a time-out are OSErrors; the others come from an incomplete response.
        except (OSError, HTTPException, ValueError) as error:
            raise UserError(f"{path}: cannot be downloaded ({error}); {_by_hand(file, path)}") from None
        if (found := sha256(temporary)) != file.sha256:
            raise UserError(
                f"{path}: the download from {file.url} has SHA-256 {found}, expected {file.sha256}; "
                f"{_by_hand(file, path)}"
            )


def _receive(file: PublishedFile, path: Path) -> None:
    with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as answer, open(path, "wb") as handle:
        total = int(answer.headers.get("Content-Length") or 0)
        with Progress(total, f"download {file.name}", "byte") as progress:
            while chunk := answer.read(CHUNK_BYTES):
                handle.write(chunk)
                progress.update(len(chunk))


def _by_hand(file: PublishedFile, path: Path) -> str:
    return f"put {file.name} from {file.url} into {path.parent}; `udpm fetch` does so on a machine with network access"
