"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def output(help_text: str, name: str = "--output", *, required: bool = True):
    """A file to be written, atomically."""
    return click.option(name, type=FILE, required=required, help=help_text)


def source(name: str, help_text: str, *, required: bool = True, folder: bool = False):
    """A file or folder to be read; its absence is reported by whoever reads it."""
    return click.option(name, type=FOLDER if folder else FILE, required=required, help=help_text)
