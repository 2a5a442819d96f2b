"""``udpm join``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, OutputFile, Verb
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm join shard1.npz shard2.npz --output samples.json")
@click.argument("shards", type=FILE, nargs=-1, required=True)
@click.option(
    "--output",
    type=OutputFile(kinds.JOINED, ".json"),
    required=True,
    help="The set's record, .json: it stands for the set everywhere.",
)
def command(shards: tuple[Path, ...], output: Path) -> None:
    """Make one sample set of its shards (udpm sample --shard).

    The shards stay where they are: the record names them, with their checksums.
    """
    from udpm.data.samples import join_shards

    count = join_shards(shards, output)
    click.echo(f"{output}: {count} images of {len(shards)} shards")
