"""``udpm clean``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FOLDER, Verb


@click.command(cls=Verb, epilog="Example: udpm clean results")
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="FOLDER...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(folders: tuple[Path, ...], yes: bool) -> None:
    """Remove checkpoints of finished runs.

    FOLDER is a run's folder, or a folder of results: then of all finished runs in it. Says what each would free, and
    asks. A run is finished if its weights are those that complete.json tells of; no other is touched, and no link is
    followed.

    A run without checkpoints stays complete. It can no longer go on to more iterations.
    """
    from udpm.core.errors import UserError
    from udpm.training.cleaning import find_runs, leftovers, remove

    found = []
    for folder in folders:
        runs = [leftovers(run) for run in find_runs(folder)]
        if [one.run for one in runs] == [folder] and runs[0].kept:
            raise UserError(f"{folder}: nothing is removed: {runs[0].kept}")
        found += [one for one in runs if one.run not in [other.run for other in found]]
    for one in found:
        what = one.kept or (f"checkpoints, {_megabytes(one.size)}" if one.files else "no checkpoints")
        click.echo(f"{one.run}: {'kept: ' if one.kept else ''}{what}")
    total = sum(one.size for one in found)
    if not any(one.files for one in found):
        click.echo("nothing to remove")
        return
    try:
        agreed = yes or click.confirm(f"Remove {_megabytes(total)}? These runs can then not go on to more iterations.")
    except click.Abort:
        raise UserError("nothing is removed: there was no answer; pass --yes") from None
    if not agreed:
        click.echo("nothing is removed")
        return
    for one in found:
        remove(one)
    click.echo(f"removed {_megabytes(total)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
