"""The workflow and the configurations that ship with udpm."""

from __future__ import annotations

from pathlib import Path

FOLDER = "shipped"
"""Folder of the installed package that holds copies of `SHIPPED`; setup.py makes it, and a clone has none."""
SHIPPED = ("config", "workflow", "slurm", "envs")
"""Folders of a clone that are installed with the package."""


def shipped_folder() -> Path:
    """Return the folder that holds the shipped `config/`, `workflow/`, `slurm/` and `envs/`.

    This is the root of the clone that the package is imported from, or a folder inside the installed package.
    """
    package = Path(__file__).parents[1]
    installed = package / FOLDER
    return installed if installed.is_dir() else package.parent


def shipped_configs(part: str) -> Path:
    """Return the folder of the shipped configurations of a part, such as experiments; it need not exist."""
    return shipped_folder() / "config" / part
