"""Write a new study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from udpm.config.shipped import shipped_folder
from udpm.core.errors import UserError
from udpm.core.folders import atomic_folder
from udpm.core.kinds import STUDY

COPIED = {
    "workflow/study": "",
    "workflow/profiles": "profiles",
    "config/cluster.yaml": "config/cluster.yaml",
    "config/schema": "config/schema",
    "slurm": "slurm",
}
"""Shipped files and folders that a study has copies of, and their names in it."""


def template() -> dict[str, bytes]:
    """Return the files of a new study by relative path.

    Raises:
        UserError: the installed package lacks them.
    """
    root, found = shipped_folder(), {}
    for source, name in COPIED.items():
        path = root / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                found[str(Path(name) / file.relative_to(path))] = file.read_bytes()
    if "Snakefile" not in found:
        raise UserError(f"{root}: udpm was installed without its workflow; install it again")
    return found


def write_study(folder: Path, files: Mapping[str, bytes], check: Callable[[Path], None] = lambda new: None) -> None:
    """Write the files of a study by relative path: all of them, or none if `check` of the written ones raises an error.

    Raises:
        UserError: the folder is not empty, cannot be written, or is inside the installed package.
    """
    check_place(folder)
    with atomic_folder(folder, STUDY) as new:
        for name, content in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        check(new)


def check_place(folder: Path) -> None:
    """Refuse a folder inside the package, which the next installation would replace.

    Raises:
        UserError: it is inside the package.
    """
    package = Path(__file__).parents[1].resolve()
    if folder.resolve().is_relative_to(package):
        raise UserError(f"{folder}: is inside the installed udpm ({package}); choose another folder")
