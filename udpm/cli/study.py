"""``udpm init`` and ``udpm run``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from udpm.cli.options import ANY, OutputFolder, Verb, Whole, usage_error
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm init flowers")
@click.argument("folder", type=OutputFolder(kinds.STUDY), metavar="DIR")
def init_command(folder: Path) -> None:
    """Write a new study: a folder in which `snakemake` runs the installed workflow.

    DIR gets a Snakefile, config/ with an experiment and a data set to edit, and the profiles of `snakemake`. Shipped
    experiments, data sets and sweeps need no copy: a file of the same name in config/ replaces them.
    """
    from udpm.study.template import template, write_study

    write_study(folder, template())
    click.echo(f"{folder}: a study; config/config.yaml says what runs")
    click.echo(f"next: cd {shlex.quote(str(folder))} && snakemake -n", err=True)


DEFAULT_MINUTES = 10
MOST_CLASSES = 100_000
MOST_MINUTES = 100_000


class ClassCount(click.ParamType):
    """A number of classes as text, or auto."""

    name = "auto|number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "auto" and not (str(value).isdecimal() and int(str(value)) <= MOST_CLASSES):
            self.fail(f"{value!r} is neither auto nor a number of classes up to {MOST_CLASSES}", param, ctx)
        return str(value)


@click.command(cls=Verb, name="run", epilog="Example: udpm run ~/Pictures/flowers --output flowers --minutes 30")
@click.argument("source", type=ANY, metavar="FOLDER|ZIP")
@click.option("--output", type=OutputFolder(kinds.RUN_STUDY), required=True, help="Folder of the study to write.")
@click.option("--side", type=Whole(1), help="Side of the images, a multiple of 32; default: 64 on a GPU, else 32.")
@click.option(
    "--minutes",
    type=Whole(1, MOST_MINUTES),
    help=f"Time for everything; default: {DEFAULT_MINUTES}, unless --iterations is given.",
)
@click.option("--iterations", type=Whole(1), help="Instead of --minutes: length of the training.")
@click.option(
    "--classes", type=ClassCount(), default="auto", help="Number of classes; auto: those that are found, 0: none."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: a GPU if there is one."
)
def run_command(
    source: Path,
    output: Path,
    side: int | None,
    minutes: int | None,
    iterations: int | None,
    classes: str,
    device: str,
) -> None:
    """Train on images of your own in one call: write a study, train, sample, score, draw.

    FOLDER|ZIP holds images (or is an .npz or Parquet files). The study is one of `udpm init`, with a data set and an
    experiment that extends photos32 or photos64. A short measurement at the start decides how many iterations fit into
    the minutes. After an interruption, the same command continues.
    """
    if minutes is not None and iterations is not None:
        raise usage_error("give either --minutes or --iterations")
    from udpm.study.pictures import Asked
    from udpm.study.run import run

    if minutes is None and iterations is None:
        minutes = DEFAULT_MINUTES
    asked = Asked(
        source=os.path.abspath(source),
        side=side,
        classes=classes,
        minutes=minutes,
        iterations=iterations,
        device=device,
    )
    run(output, asked, click.echo)
