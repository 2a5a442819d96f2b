"""``udpm cost``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import CONFIG, OutputStem, Verb
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm cost cifar10 ffhq64 --output results/tables/cost")
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option(
    "--output", type=OutputStem(kinds.TABLE), metavar="STEM", help="Also write STEM.csv, .md, .tex and .html."
)
def command(experiments: tuple[str, ...], config: Path, output: Path | None) -> None:
    """Count what an image costs: multiply-adds and parameters, beside those of a network at the full side.

    Each EXPERIMENT is the name of a file in config/experiments/. Nothing is trained or computed: neither weights nor
    data are needed.
    """
    from udpm.config import load_experiment, resolve_run
    from udpm.networks.cost import count_cost
    from udpm.reporting.cost import render_costs, write_costs

    runs = {name: resolve_run(name, load_experiment(name, config).seeds[0], config) for name in experiments}
    costs = {name: count_cost(run) for name, run in runs.items()}
    if output is not None:
        write_costs(costs, output)
    click.echo(render_costs(costs), nl=False)
