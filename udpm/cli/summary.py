"""``udpm summary``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import CONFIG, RESULTS, OutputPlace, Verb
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm summary digits --results results --output results")
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--results", type=RESULTS, default="results", show_default=True, help="Folder of the results.")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option("--output", type=OutputPlace(kinds.PAGE), required=True, help="Folder of summary.md and overview.html.")
def command(experiments: tuple[str, ...], results: Path, config: Path, output: Path) -> None:
    """Say on one page what ran, on what, the headline numbers with their protocol, and what is missing.

    Each EXPERIMENT is the name of a file in config/experiments/. Written are summary.md, and the same as overview.html.
    """
    from udpm.reporting.study import Paper

    click.echo(Paper(results, config, experiments).write_summary(output), nl=False)
