"""``udpm prepare``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, OutputFolder, Verb, Whole, check
from udpm.core import kinds


@click.command(
    cls=Verb, epilog="Example: udpm prepare results/configs/datasets/digits.json --output results/datasets/digits"
)
@click.argument("config", type=FILE)
@click.option(
    "--output",
    type=OutputFolder(kinds.DATASET),
    required=True,
    help="Folder of the store; replaced once the new one is whole.",
)
@click.option("--workers", type=Whole(1, 1024), help="Processes that decode and resize; default: one for each core.")
def command(config: Path, output: Path, workers: int | None) -> None:
    """Turn a source of images into a checked, memory-mapped store.

    CONFIG is a data set's resolved configuration (udpm resolve --dataset NAME). A killed preparation goes on where it
    was; a finished one is left alone.
    """
    from udpm.core.signals import StopRequest

    stop = StopRequest.install()

    from udpm.config import DatasetConfig, read_resolved
    from udpm.core.paths import expanded
    from udpm.data.prepare import prepare

    resolved = read_resolved(DatasetConfig, config)
    paths = {key: getattr(resolved, key) for key in ("path", "labels")}
    check({key: path and expanded(path, key) for key, path in paths.items()})
    prepare(resolved, output, workers, stop)
