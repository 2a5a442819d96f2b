"""``udpm train``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER, OutputFolder, Verb, check
from udpm.core import kinds
from udpm.core.signals import StopRequest


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
def command(
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
    if not dry_run:
        _require({"--dataset": dataset, "--cache": cache, "--run": run})
    check({"weights": resolved.weights})
    if dry_run:
        _describe(resolved, dataset, cache, run)
        return
    from udpm.training.start import attempted

    # Imports and files may fail, so they come after the attempt is recorded.
    with attempted(run, resolved, allow_world_size_change) as attempt:
        from udpm.data.cache import open_levels
        from udpm.training.loop import train

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


def _require(options: dict[str, Path | None]) -> None:
    for name, value in options.items():
        if value is None:
            raise click.UsageError(f"Missing option '{name}'.", click.get_current_context())


def _describe(config, dataset: Path | None, cache: Path | None, run: Path | None) -> None:
    from udpm.core.errors import UserError
    from udpm.data.cache import open_levels

    levels = open_levels(dataset, cache, config.process.levels) if dataset and cache else None
    if config.training == "imported":
        raise UserError(f"{config.experiment}: training is imported, so there is nothing to train")
    from udpm.reporting.dryrun import describe_run

    click.echo(describe_run(config, levels, run), nl=False)
