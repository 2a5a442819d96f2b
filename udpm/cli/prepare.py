"""``udpm prepare``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER


@click.command(epilog="Example: udpm prepare results/configs/datasets/digits.json --output results/datasets/digits")
@click.argument("config", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="Folder of the store; replaced once the new one is whole.")
def command(config: Path, output: Path) -> None:
    """Turn a source of images into a checked, memory-mapped store.

    CONFIG is a data set's resolved configuration (udpm resolve --part dataset).
    """
    from udpm.config import DatasetConfig, read_resolved
    from udpm.data.prepare import prepare

    prepare(read_resolved(DatasetConfig, config), output)
