"""``udpm train``, ``status`` and ``clean``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from udpm.cli.options import FILE, FOLDER, RESULTS, OutputFolder, Verb, check, usage_error
from udpm.core import kinds
from udpm.core.errors import UserError
from udpm.core.work import StopRequest


@click.command(
    cls=Verb,
    epilog="Example: udpm train results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--cache results/caches/digits --run results/runs/digits/seed0",
)
@click.argument("config", type=FILE)
@click.option("--dataset", type=FOLDER, help="Prepared data set.  [required except for a dry run]")
@click.option("--cache", type=FOLDER, help="Its level cache.  [required except for a dry run]")
@click.option("--run", type=OutputFolder(kinds.RUN), help="The run's folder.  [required except for a dry run]")
@click.option("--dry-run", is_flag=True, help="Show what would be trained and its cost; write nothing.")
@click.option("--max-minutes", type=click.FloatRange(0), help="Save the state and exit with code 75 after this time.")
@click.option("--allow-world-size-change", is_flag=True, help="Resume a run with another number of processes.")
@click.option(
    "--stale-after",
    "stale",
    type=click.FloatRange(0, min_open=True),
    default=60,
    help="Seconds without a heartbeat after which another trainer in the folder counts as dead.",
)
def train_command(
    config: Path, dataset: Path | None, cache: Path | None, run: Path | None, dry_run: bool, **how: Any
) -> None:
    """Train a model.

    CONFIG is a run's resolved configuration (udpm resolve). The same command resumes an interrupted run, with the same
    weights as without the interruption. SIGTERM, SIGUSR1 and Ctrl-C save the state and exit with code 75.
    """
    stop = StopRequest.install()
    from udpm.config import RunConfig, read_resolved

    resolved = read_resolved(RunConfig, config)
    if dry_run:
        check({"weights": resolved.weights})
        from udpm.data.levels import open_levels

        levels = open_levels(dataset, cache, resolved.process.levels) if dataset and cache else None
        if resolved.training == "imported":
            raise UserError(f"{resolved.experiment}: training is imported; nothing to train")
        from udpm.training.dryrun import describe_run

        click.echo(describe_run(resolved, levels, run), nl=False)
        return
    dataset, cache, run = _given("--dataset", dataset), _given("--cache", cache), _given("--run", run)
    check({"weights": resolved.weights})
    from udpm.runs.attempts import attempted

    # Imports and files may fail, so record the attempt first.
    with attempted(run, resolved, how["allow_world_size_change"]) as attempt:
        from udpm.data.levels import open_levels
        from udpm.training.trainer import train

        train(resolved, open_levels(dataset, cache, resolved.process.levels), run, stop, attempt=attempt, **how)


def _given(name: str, value: Path | None) -> Path:
    if value is None:
        raise usage_error(f"Missing option '{name}'.")
    return value


@click.command(cls=Verb, epilog="Example: udpm status --results results")
@click.argument("runs", nargs=-1, type=FOLDER, metavar="[RUN]...")
@click.option("--results", type=RESULTS, help="Add all runs in the folder runs/ of this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; times and ages in seconds.")
def status_command(runs: tuple[Path, ...], results: Path | None, as_json: bool) -> None:
    """Show the status of training runs, from the files in their folders.

    \b
    running   a trainer is at work
    stalled   its heartbeat has stopped, or it no longer writes metrics
    stopped   no trainer; the same `udpm train` resumes from the checkpoint
    waiting   training has not begun
    failed    the last attempt failed; the note gives the reason
    complete  the weights exist
    unreadable  one of its files cannot be read; other runs are still shown
    """
    from udpm.runs.layout import Layout
    from udpm.runs.records import is_run
    from udpm.runs.status import read_status, read_statuses, render_statuses, statuses_json

    found = list(runs)
    if results is not None:
        in_results = [folder for folder in Layout(results).found(Layout(results).runs + "/*/*") if is_run(folder)]
        if not in_results:
            raise UserError(f"{results}: no runs found; expected folders like {Layout(results).run('digits', 0)}")
        found += in_results
    if not found:
        raise usage_error("give RUN folders, or --results")
    different = list(dict.fromkeys(found))
    statuses = read_statuses(different) if len(different) > 1 else [read_status(different[0])]
    click.echo(statuses_json(statuses) if as_json else render_statuses(statuses), nl=False)


@click.command(cls=Verb, epilog="Example: udpm clean results")
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="FOLDER...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean_command(folders: tuple[Path, ...], yes: bool) -> None:
    """Remove checkpoints of finished runs.

    FOLDER is a run's folder, or a folder of results with runs. Shows how much space each finished run would free, and
    asks for confirmation. A run is finished if its weights match complete.json. Other runs are not changed, and links
    are not followed.

    A run without checkpoints stays complete, but can no longer be extended to more iterations.
    """
    from udpm.runs.records import Leftovers, find_runs, leftovers, remove_leftovers

    found: list[Leftovers] = []
    for folder in folders:
        runs = [leftovers(run) for run in find_runs(folder)]
        if [one.run for one in runs] == [folder] and runs[0].kept:
            raise UserError(f"{folder}: nothing removed: {runs[0].kept}")
        found += [one for one in runs if one.run not in [other.run for other in found]]
    for one in found:
        what = one.kept or (f"checkpoints, {_megabytes(one.size)}" if one.files else "no checkpoints")
        click.echo(f"{one.run}: {'kept: ' if one.kept else ''}{what}")
    total = sum(one.size for one in found)
    if not any(one.files for one in found):
        click.echo("nothing to remove")
        return
    try:
        agreed = yes or click.confirm(f"Remove {_megabytes(total)}? These runs can then no longer be extended.")
    except click.Abort:
        raise UserError("nothing removed: no answer; pass --yes") from None
    if not agreed:
        click.echo("nothing removed")
        return
    for one in found:
        remove_leftovers(one)
    click.echo(f"removed {_megabytes(total)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
