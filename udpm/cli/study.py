"""``udpm init``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from udpm.cli.options import OutputFolder, Verb
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
