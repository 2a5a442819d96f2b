"""``udpm card``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, RUN, OutputFile, Verb
from udpm.core import kinds


@click.command(
    cls=Verb,
    epilog="Example: udpm card results/runs/digits/seed0 --score results/scores/digits/seed0.json "
    "--output results/runs/digits/seed0/README.md",
)
@click.argument("run", type=RUN)
@click.option("--score", "scores", type=FILE, multiple=True, help="Of this run's images; repeatable.")
@click.option("--output", type=OutputFile(kinds.CARD), required=True, help="The card, README.md by custom.")
def command(run: Path, scores: tuple[Path, ...], output: Path) -> None:
    """Write a finished run's model card: data, training, scores, limits, licence of the data.

    It has the format of Hugging Face's model cards. A score of another run, or of weights that the run no longer
    has, is refused. A card that was edited is never replaced.
    """
    from udpm.core.files import write_text
    from udpm.reporting.card import model_card

    write_text(output, model_card(run, scores))
    click.echo(f"{output}: model card of {run}, {len(scores)} scores")
