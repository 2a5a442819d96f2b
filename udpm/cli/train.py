"""``udpm train``, ``status`` and ``clean``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER, RESULTS, OutputFolder, Verb, check
from udpm.core import kinds
from udpm.core.processes import StopRequest


@click.command(
    cls=Verb,
    epilog="Example: udpm train results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--cache results/caches/digits --run results/runs/digits/seed0",
)
@click.argument("config", type=FILE)
@click.option("--dataset", type=FOLDER, help="Prepared data set.  [required, but for a dry run]")
@click.option("--cache", type=FOLDER, help="Its level cache.  [required, but for a dry run]")
@click.option(
    "--run",
    type=OutputFolder(kinds.RUN),
    help="The run's folder: checkpoints, metrics.jsonl, weights.  [required, but for a dry run]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be trained and what it takes; write nothing.")
@click.option("--max-minutes", type=click.FloatRange(0), help="Stop after so long, with the state saved and code 75.")
@click.option("--allow-world-size-change", is_flag=True, help="Continue a run of another number of processes.")
@click.option(
    "--stale-after",
    type=click.FloatRange(0, min_open=True),
    default=60,
    show_default=True,
    help="Seconds after which another trainer in the folder that shows no sign of life is taken for dead.",
)
def train_command(
    config: Path,
    dataset: Path | None,
    cache: Path | None,
    run: Path | None,
    dry_run: bool,
    max_minutes: float | None,
    allow_world_size_change: bool,
    stale_after: float,
) -> None:
    """Train a model.

    CONFIG is a run's resolved configuration (udpm resolve). The same command continues a run that was interrupted:
    the weights come out as if it had not been. SIGTERM, SIGUSR1 or Ctrl-C save the state and exit with code 75.
    """
    stop = StopRequest.install()
    from udpm.config import RunConfig, read_resolved

    resolved = read_resolved(RunConfig, config)
    if dry_run:
        check({"weights": resolved.weights})
        _describe(resolved, dataset, cache, run)
        return
    dataset, cache, run = _given("--dataset", dataset), _given("--cache", cache), _given("--run", run)
    check({"weights": resolved.weights})
    from udpm.runs.attempts import attempted

    # Imports and files may fail, so they come after the attempt is recorded.
    with attempted(run, resolved, allow_world_size_change) as attempt:
        from udpm.data.levels import open_levels
        from udpm.training.trainer import train

        train(
            resolved,
            open_levels(dataset, cache, resolved.process.levels),
            run,
            stop,
            max_minutes=max_minutes,
            allow_world_size_change=allow_world_size_change,
            stale=stale_after,
            attempt=attempt,
        )


def _given(name: str, value: Path | None) -> Path:
    if value is None:
        raise click.UsageError(f"Missing option '{name}'.", click.get_current_context())
    return value


def _describe(config, dataset: Path | None, cache: Path | None, run: Path | None) -> None:
    from udpm.core.errors import UserError
    from udpm.data.levels import open_levels

    levels = open_levels(dataset, cache, config.process.levels) if dataset and cache else None
    if config.training == "imported":
        raise UserError(f"{config.experiment}: training is imported, so there is nothing to train")
    from udpm.report.dryrun import describe_run

    click.echo(describe_run(config, levels, run), nl=False)


@click.command(cls=Verb, epilog="Example: udpm status --results results")
@click.argument("runs", nargs=-1, type=FOLDER, metavar="[RUN]...")
@click.option("--results", type=RESULTS, help="Also all runs in the folder runs/ of this one.")
@click.option("--json", "as_json", is_flag=True, help="Write a JSON list; times and ages in seconds.")
def status_command(runs: tuple[Path, ...], results: Path | None, as_json: bool) -> None:
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
    from udpm.runs.layout import Layout
    from udpm.runs.records import is_run
    from udpm.runs.status import read_status, read_statuses, render_statuses, statuses_json

    found = list(runs)
    if results is not None:
        in_results = [folder for folder in Layout(results).found(Layout(results).runs + "/*/*") if is_run(folder)]
        if not in_results:
            raise UserError(f"{results}: holds no runs; expected folders like {Layout(results).run('digits', 0)}")
        found += in_results
    if not found:
        raise click.UsageError("give RUN folders, or --results", click.get_current_context())
    different = list(dict.fromkeys(found))
    standings = read_statuses(different) if len(different) > 1 else [read_status(different[0])]
    click.echo(statuses_json(standings) if as_json else render_statuses(standings), nl=False)


@click.command(cls=Verb, epilog="Example: udpm clean results")
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="FOLDER...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean_command(folders: tuple[Path, ...], yes: bool) -> None:
    """Remove checkpoints of finished runs.

    FOLDER is a run's folder, or a folder of results: then of all finished runs in it. Says what each would free, and
    asks. A run is finished if its weights are those that complete.json tells of; no other is touched, and no link is
    followed.

    A run without checkpoints stays complete. It can no longer go on to more iterations.
    """
    from udpm.core.errors import UserError
    from udpm.runs.cleaning import Leftovers, find_runs, leftovers, remove

    found: list[Leftovers] = []
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
