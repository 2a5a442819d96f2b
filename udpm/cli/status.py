"""``udpm status``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FOLDER, RESULTS, Verb


@click.command(cls=Verb, epilog="Example: udpm status --results results")
@click.argument("runs", nargs=-1, type=FOLDER, metavar="[RUN]...")
@click.option("--results", type=RESULTS, help="Also all runs in the folder runs/ of this one.")
@click.option("--json", "as_json", is_flag=True, help="Write a JSON list; times and ages in seconds.")
def command(runs: tuple[Path, ...], results: Path | None, as_json: bool) -> None:
    """Say where training runs stand, from what lies in their folders.

    \b
    running   a trainer is at work
    stalled   its heartbeat stands still, or it lives but writes no metrics any more
    stopped   nobody trains; the same `udpm train` continues from the checkpoint
    waiting   nothing is trained yet
    failed    the last attempt failed; the note says why
    complete  the weights are there
    unreadable  a file of it cannot be read; the others are told all the same
    """
    from udpm.core.errors import UserError
    from udpm.reporting.status import read_standing, read_standings, render_standings, standings_json
    from udpm.training.records import is_run

    found = list(runs)
    if results is not None:
        in_results = [folder for folder in sorted((results / "runs").glob("*/*")) if is_run(folder)]
        if not in_results:
            raise UserError(f"{results}: holds no runs; expected folders like {results / 'runs/digits/seed0'}")
        found += in_results
    if not found:
        raise click.UsageError("give RUN folders, or --results", click.get_current_context())
    different = list(dict.fromkeys(found))
    standings = read_standings(different) if len(different) > 1 else [read_standing(different[0])]
    click.echo(standings_json(standings) if as_json else render_standings(standings), nl=False)
