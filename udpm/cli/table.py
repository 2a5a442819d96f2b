"""``udpm table``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, OutputStem, Verb
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm table results/scores/digits/*.json --output results/tables/scores")
@click.argument("scores", type=FILE, nargs=-1, required=True)
@click.option("--output", type=OutputStem(kinds.TABLE), required=True, metavar="STEM", help="Path without suffix.")
def command(scores: tuple[Path, ...], output: Path) -> None:
    """Render SCORES as STEM.csv (full precision, whole protocol) and STEM.md, .tex and .html (to read)."""
    from udpm.reporting.tables import write_table

    click.echo(write_table(scores, output))
