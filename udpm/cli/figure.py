"""``udpm figure``."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import CONFIG, FILE, FOLDER, RESULTS, OutputStem, Verbs
from udpm.core import kinds

STEM = click.option(
    "--output", type=OutputStem(kinds.FIGURE), required=True, metavar="STEM", help="Path without suffix."
)


@click.group(cls=Verbs)
def command() -> None:
    """Render a figure as STEM.svg and STEM.png, with STEM.csv of the data behind it."""


@command.command(epilog="Example: udpm figure samples results/samples/digits/seed0.npz --output figures/samples")
@click.argument("source", type=FILE)
@STEM
def samples(source: Path, output: Path) -> None:
    """The first images of a sample set, a row for each class."""
    from udpm.reporting.pictures import draw_samples

    draw_samples(source, output)


@command.command(epilog="Example: udpm figure chain results/samples/digits/seed0_chain.npz --output figures/chain")
@click.argument("source", type=FILE)
@STEM
def chain(source: Path, output: Path) -> None:
    """From noise to image: the states and network outputs of one image per class."""
    from udpm.reporting.pictures import draw_chain

    draw_chain(source, output)


@command.command(epilog="Example: udpm figure curves results/runs/digits/seed0/metrics.jsonl --output figures/curves")
@click.argument("source", type=FILE)
@STEM
def curves(source: Path, output: Path) -> None:
    """Training losses by level; also of a run that is still training."""
    from udpm.reporting.curves import draw_curves

    draw_curves(source, output)


@command.command(epilog="Example: udpm figure selection selection.json --output figures/selection")
@click.argument("source", type=FILE)
@STEM
def selection(source: Path, output: Path) -> None:
    """The Fréchet distance of a run's milestones, and which was chosen."""
    from udpm.reporting.selection import draw_selection

    draw_selection(source, output)


@command.command(epilog="Example: udpm figure schedule results/configs/digits/seed0.json --output figures/schedule")
@click.argument("source", type=FILE)
@STEM
def schedule(source: Path, output: Path) -> None:
    """Signal, noise and their ratio at every level of a run's schedule."""
    from udpm.reporting.schedule import draw_run_schedule

    draw_run_schedule(source, output)


@command.command(
    epilog="Example: udpm figure forward results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--output figures/forward"
)
@click.argument("source", type=FILE)
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set that the run is trained on.")
@STEM
def forward(source: Path, dataset: Path, output: Path) -> None:
    """The forward process of a run's schedule: a training image of each class, and its state at every level."""
    from udpm.reporting.forward_process import draw_forward_process

    draw_forward_process(source, dataset, output)


@command.command(epilog="Example: udpm figure latents results/latents/digits/seed0/swap.npz --output figures/swap")
@click.argument("source", type=FILE)
@STEM
def latents(source: Path, output: Path) -> None:
    """The images of a latent-space experiment, rows and columns named."""
    from udpm.reporting.latents import draw_latents

    draw_latents(source, output)


@command.command(epilog="Example: udpm figure tradeoff --results results --output figures/tradeoff")
@click.option("--results", type=RESULTS, default="results", show_default=True, help="Folder of the results.")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@STEM
def tradeoff(results: Path, config: Path, output: Path) -> None:
    """FID against multiply-adds: published points of the paper and its peers, and what was measured here."""
    from udpm.reporting.study import Paper

    Paper(results, config).draw_tradeoff(output)


@command.command(
    epilog="Example: udpm figure neighbours results/samples/digits/seed0.npz --dataset results/datasets/digits "
    "--output figures/neighbours"
)
@click.argument("source", type=FILE)
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set that the model was trained on.")
@click.option("--columns", type=click.IntRange(1, 24), default=12, show_default=True, help="Samples shown.")
@STEM
def neighbours(source: Path, dataset: Path, columns: int, output: Path) -> None:
    """Samples over their nearest training images, with the distance against that of held-out images (memorisation)."""
    from udpm.reporting.neighbours import draw_neighbours

    draw_neighbours(source, dataset, output, columns)


@command.command(epilog="Example: udpm figure speed results/speed/training.json --output figures/speed")
@click.argument("records", nargs=-1, required=True, type=FILE, metavar="RECORD...")
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help="Seconds that are compared."
)
@STEM
def speed(records: tuple[Path, ...], clock: str, output: Path) -> None:
    """How many times faster than the plain way, of records that udpm bench sample|train --baseline wrote."""
    from udpm.reporting.speed import draw_speeds

    draw_speeds(records, output, "speedup" if clock == "wall" else "cpu_speedup")


def _telling(draw: Callable[..., None]) -> Callable[..., None]:
    """A command that says, after it has drawn, what it wrote."""

    @wraps(draw)
    def told(output: Path, **given: Any) -> None:
        draw(output=output, **given)
        with open(f"{output}.png", "rb") as file:
            width, height = struct.unpack(">II", file.read(24)[16:])
        click.echo(f"{output}.png: {width}×{height} pixels; also .svg, and .csv of the data")

    return told


for _drawing in command.commands.values():
    _drawing.callback = _telling(_drawing.callback)
