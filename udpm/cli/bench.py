"""``udpm bench``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER

SIDES = ("8", "16", "32", "64", "128", "256")
"""That three levels of a cache can halve."""


@click.group()
def command() -> None:
    """Measure speed on this machine."""


@command.command(epilog="Example: udpm bench data resources/ffhq.zip --side 64")
@click.argument("images", type=click.Path(path_type=Path), required=False)
@click.option("--side", type=click.Choice(SIDES), default="32", show_default=True, help="Side of the prepared images.")
@click.option("--workers", type=click.IntRange(1), help="Processes that decode and resize; default: one for each core.")
@click.option("--limit", type=click.IntRange(1), default=20000, show_default=True, help="Images prepared at most.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images that are fed at once.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of the feeding.")
def data(
    images: Path | None, side: str, workers: int | None, limit: int, batch: int, device: str, threads: int
) -> None:
    """How fast images are prepared and training is fed, and what limits the preparation.

    IMAGES is a folder of images or a .zip of one; without it only the feeding is measured. Nothing is kept.
    """
    if images is not None:
        from udpm.data.benchmark import bench_preparation

        for line in bench_preparation(str(images), int(side), workers or len(os.sched_getaffinity(0)), limit):
            click.echo(line)
    from udpm.core import runtime
    from udpm.data.feeding import bench_feeding

    for line in bench_feeding(int(side), batch, runtime.configure(device, threads)):
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


@command.command(epilog="Example: udpm bench score results/configs/digits/scoring.json --extractor x.pt --side 32")
@click.argument("config", type=FILE)
@click.option("--extractor", type=FILE, help="Its TorchScript file; default: what the configuration names.")
@click.option("--side", type=click.IntRange(1), default=32, show_default=True, help="Side of the images.")
def score(config: Path, extractor: Path | None, side: int) -> None:
    """How fast features are taken of images: resizing, the network, and both together.

    CONFIG is a resolved scoring section (udpm resolve --part scoring). Nothing is kept.
    """
    from udpm.config import Scoring, read_resolved
    from udpm.core import runtime
    from udpm.scoring.benchmark import bench_extractor
    from udpm.scoring.extractor import open_extractor

    scoring = read_resolved(Scoring, config)
    network = open_extractor(scoring, extractor, runtime.configure(scoring.device, scoring.threads))
    for line in bench_extractor(network, side, scoring.batch):
        click.echo(line)
