"""``udpm cache``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FOLDER, OutputFolder, Verb
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm cache results/datasets/digits --output results/caches/digits")
@click.argument("dataset", type=FOLDER)
@click.option(
    "--output",
    type=OutputFolder(kinds.CACHE),
    required=True,
    help="Folder of the cache; replaced once the new one is whole.",
)
def command(dataset: Path, output: Path) -> None:
    """Write the downsampled levels of a prepared data set, as exact integer block sums."""
    from udpm.data.cache import write_cache

    sides = write_cache(dataset, output)
    click.echo(f"{output}: {len(sides)} levels, of side {', '.join(map(str, sides))}")
