"""``udpm train``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER
from udpm.core.signals import StopRequest


@click.command(
    epilog="Example: udpm train results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--cache results/caches/digits --run results/runs/digits/seed0"
)
@click.argument("config", type=FILE)
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set.")
@click.option("--cache", type=FOLDER, required=True, help="Its level cache.")
@click.option("--run", type=FOLDER, required=True, help="The run's folder: checkpoints, metrics.jsonl, weights.")
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
    dataset: Path,
    cache: Path,
    run: Path,
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
    from udpm.data.cache import open_levels
    from udpm.training.loop import train

    resolved = read_resolved(RunConfig, config)
    train(
        resolved,
        open_levels(dataset, cache, resolved.process.levels),
        run,
        stop,
        max_minutes=max_minutes,
        allow_world_size_change=allow_world_size_change,
        stale=stale_after,
    )
