"""``udpm paper``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import CONFIG, RESULTS, OutputPlace, OutputStem, Verb, check
from udpm.core import kinds
from udpm.core.errors import EXIT_USER_ERROR, UserError


@click.command(cls=Verb, epilog="Example: udpm paper table1 digits --results results --output results/tables/paper")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--results", type=RESULTS, default="results", show_default=True, help="Folder of the results.")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option("--experiment", "experiments", multiple=True, help="Also in the set-up and run-time tables; repeatable.")
@click.option(
    "--output", type=OutputPlace(), required=True, help="Folder of the tables: TABLE.csv, .md, .tex and .html."
)
@click.pass_context
def command(
    context: click.Context,
    tables: tuple[str, ...],
    results: Path,
    config: Path,
    experiments: tuple[str, ...],
    output: Path,
) -> None:
    """Render the paper's tables: published numbers beside what was measured, "not run" where nothing was.

    TABLE is the name of a file in config/published/ (table1, table2, peers, …), or one of training, generator,
    discriminator and runtime; without any, all are rendered. A table that cannot be rendered is told in one line, the
    others are rendered all the same; the exit code is then 2.
    """
    from udpm.config.results import table_names
    from udpm.reporting.study import Paper

    names = tables or table_names(config)
    stems = {name: output / name for name in names}
    check(writes=[told for stem in stems.values() for told in OutputStem(kinds.TABLE).outputs("--output", stem, {})])
    paper = Paper(results, config, experiments)
    wrong = False
    for name, stem in stems.items():
        try:
            click.echo(paper.write(name, stem))
        except UserError as error:
            wrong = True
            click.echo(" ".join(f"error: {error}".split()), err=True)
    if wrong:
        context.exit(EXIT_USER_ERROR)
