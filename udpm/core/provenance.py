"""Where a result came from: versions, commit, machine."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("udpm", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "lpips")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; a missing package is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the package's source, with ``-dirty`` if edited; None where there is no repository."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def record() -> dict[str, Any]:
    """The provenance block that every record of the project carries."""
    return {"versions": versions(), "commit": commit(), "machine": f"{platform.system()} {platform.machine()}"}
