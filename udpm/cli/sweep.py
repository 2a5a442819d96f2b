"""``udpm sweep``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import CONFIG, RESULTS, OutputFile, OutputStem, Verbs
from udpm.core import kinds

CONFIG_FOLDER = click.option(
    "--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration."
)
RESULTS_FOLDER = click.option(
    "--results", type=RESULTS, default="results", show_default=True, help="Folder of the results."
)
STEM = click.option("--output", type=OutputStem(kinds.TABLE), metavar="STEM", help="Path without suffix.")


FIGURE = click.option(
    "--output", type=OutputStem(kinds.FIGURE), required=True, metavar="STEM", help="Path without suffix."
)


@click.group(cls=Verbs)
def sweep_command() -> None:
    """Plan, watch and rank a sweep, a file in config/sweeps/. `snakemake sweep --config sweep=NAME` runs it."""


@sweep_command.command(epilog="Example: udpm sweep plan schedules-digits --output results/sweeps/schedules-digits/plan")
@click.argument("sweep")
@CONFIG_FOLDER
@STEM
def plan(sweep: str, config: Path, output: Path | None) -> None:
    """Show every point's schedule, how well its sampling starts, and device-hours, before running anything.

    With --output the table is also written as STEM.csv, .md, .tex and .html.
    """
    from udpm.config import load_sweep
    from udpm.report.sweep.plan import plan_table

    table = plan_table(load_sweep(sweep, config))
    click.echo(table.markdown() if output is None else table.write(output), nl=False)


@sweep_command.command(epilog="Example: udpm sweep status schedules-digits --results results")
@click.argument("sweep")
@CONFIG_FOLDER
@RESULTS_FOLDER
def status(sweep: str, config: Path, results: Path) -> None:
    """Show the status of every point, and which key causes work to be repeated.

    \b
    new       nothing exists yet
    changed   its folder holds a run of another configuration, which would be refused
    longer    its training will continue to more iterations
    resample  keeps the run; samples and scores will be made again
    rescore   only the scores will be made again
    trained   not scored yet
    complete  scored
    and running, stalled, stopped, waiting, failed as in `udpm status`
    """
    from udpm.config import load_sweep
    from udpm.runs.status import point_standings, render_points

    click.echo(render_points(point_standings(load_sweep(sweep, config), results)), nl=False)


@sweep_command.command(epilog="Example: udpm sweep rank schedules-digits --output ranking --best best.yaml")
@click.argument("sweep")
@CONFIG_FOLDER
@RESULTS_FOLDER
@STEM
@click.option(
    "--best",
    type=OutputFile(kinds.EXPERIMENT),
    help="Also write the best point as an experiment, at the base's length.",
)
def rank(sweep: str, config: Path, results: Path, output: Path | None, best: Path | None) -> None:
    """Rank all points scored so far, and list missing scores.

    With --output the table is also written as STEM.csv, .md, .tex and .html.
    """
    from udpm.config import load_sweep
    from udpm.core.files import write_text
    from udpm.report.sweep.ranking import best_experiment, ranking_table, read_results

    loaded = load_sweep(sweep, config)
    found = read_results(loaded, results)
    table = ranking_table(loaded, found)
    click.echo(table.markdown() if output is None else table.write(output), nl=False)
    if best is not None:
        write_text(best, best_experiment(loaded, found))


@sweep_command.command(epilog="Example: udpm sweep heat schedules-digits start --output results/sweeps/heat")
@click.argument("sweep")
@click.argument("grid")
@CONFIG_FOLDER
@RESULTS_FOLDER
@FIGURE
def heat(sweep: str, grid: str, config: Path, results: Path, output: Path) -> None:
    """Draw a GRID of two axes as a heat map: STEM.svg, STEM.png, and its data as STEM.csv."""
    from udpm.config import load_sweep
    from udpm.report.sweep.figures import draw_heat_map
    from udpm.report.sweep.ranking import read_results

    loaded = load_sweep(sweep, config)
    draw_heat_map(loaded, read_results(loaded, results), grid, output)


@sweep_command.command(
    epilog="Example: udpm sweep strip ablations-digits --output results/sweeps/ablations-digits/strip"
)
@click.argument("sweep")
@CONFIG_FOLDER
@RESULTS_FOLDER
@FIGURE
def strip(sweep: str, config: Path, results: Path, output: Path) -> None:
    """Draw the same images of every point, with one noise and class per column, and its score: svg, png and csv.

    Images are those of the point's first seed. Samples that do not exist yet are shown as missing. Of too many points,
    only the best are shown.
    """
    from udpm.config import load_sweep
    from udpm.report.sweep.figures import draw_strip
    from udpm.report.sweep.ranking import read_results

    loaded = load_sweep(sweep, config)
    draw_strip(loaded, read_results(loaded, results), results, output)
