"""``udpm bench``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER


@click.group()
def command() -> None:
    """Measure speed on this machine."""


@command.command(epilog="Example: udpm bench data resources/ffhq.zip --side 64")
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--side", type=click.IntRange(1), default=32, show_default=True, help="Side of the prepared images.")
@click.option("--workers", type=click.IntRange(1), help="Processes that decode and resize; default: one for each core.")
@click.option("--limit", type=click.IntRange(1), default=20000, show_default=True, help="Images prepared at most.")
def data(images: Path, side: int, workers: int | None, limit: int) -> None:
    """How fast images are prepared, and what limits it.

    IMAGES is a folder of images or a .zip of one; nothing is kept.
    """
    from udpm.data.benchmark import bench_preparation

    for line in bench_preparation(str(images), side, workers or len(os.sched_getaffinity(0)), limit):
        click.echo(line)


@command.command(
    epilog="Example: udpm bench train results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--cache results/caches/digits"
)
@click.argument("config", type=FILE)
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set.")
@click.option("--cache", type=FOLDER, required=True, help="Its level cache.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="Iterations measured.")
def train(config: Path, dataset: Path, cache: Path, iterations: int) -> None:
    """How fast a run trains, and where its time goes: data, both players' steps, LPIPS, optimisers, averages.

    CONFIG is a run's resolved configuration (udpm resolve). Nothing is kept.
    """
    from udpm.config import RunConfig, read_resolved
    from udpm.data.cache import open_levels
    from udpm.training.benchmark import bench_training

    resolved = read_resolved(RunConfig, config)
    for line in bench_training(resolved, open_levels(dataset, cache, resolved.process.levels), iterations):
        click.echo(line)
