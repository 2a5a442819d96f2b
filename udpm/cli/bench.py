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
@click.argument("images", type=click.Path(path_type=Path), required=False)
@click.option("--side", type=click.IntRange(8), default=32, show_default=True, help="Side of the prepared images.")
@click.option("--workers", type=click.IntRange(1), help="Processes that decode and resize; default: one for each core.")
@click.option("--limit", type=click.IntRange(1), default=20000, show_default=True, help="Images prepared at most.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images that are fed at once.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of the feeding.")
def data(
    images: Path | None, side: int, workers: int | None, limit: int, batch: int, device: str, threads: int
) -> None:
    """How fast images are prepared and training is fed, and what limits the preparation.

    IMAGES is a folder of images or a .zip of one; without it only the feeding is measured. Nothing is kept.
    """
    if images is not None:
        from udpm.data.benchmark import bench_preparation

        for line in bench_preparation(str(images), side, workers or len(os.sched_getaffinity(0)), limit):
            click.echo(line)
    from udpm.core import runtime
    from udpm.data.feeding import bench_feeding

    for line in bench_feeding(side, batch, runtime.configure(device, threads)):
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
