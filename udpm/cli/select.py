"""``udpm select``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, OutputFile, OutputStem, Verb
from udpm.core import kinds


@click.command(
    cls=Verb,
    epilog="Example: udpm select results/selection/digits/seed0/scores/*.json "
    "--output results/selection/digits/seed0/selection.json",
)
@click.argument("scores", type=FILE, nargs=-1, required=True)
@click.option("--output", type=OutputFile(kinds.SELECTION), required=True, help="The selection, .json.")
@click.option("--table", type=OutputStem(kinds.TABLE), metavar="STEM", help="Also STEM.csv, .md, .tex and .html.")
def command(scores: tuple[Path, ...], output: Path, table: Path | None) -> None:
    """Choose the milestone of least Fréchet distance from SCORES, one for each milestone of a run.

    The chosen one's distance is the least of many, so it is no score to report: draw other images of it with
    `udpm sample --selection`, and score those with `udpm score --selection`.
    """
    from udpm.core.arrays import sealed
    from udpm.core.files import write_json
    from udpm.scoring.selection import select

    selection = select(scores)
    if table is not None:
        from udpm.reporting.selection import write_table

        write_table(selection, table)
    write_json(output, sealed(selection))
    chosen, label, distance = (selection[key] for key in ("iteration", "label", "frechet_distance"))
    click.echo(f"{output}: iteration {chosen}, {label} {distance:.4g}")
