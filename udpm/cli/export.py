"""``udpm export``."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from udpm.cli.options import ANY, OutputFolder, Verb
from udpm.core import kinds

EXPORT = OutputFolder(lambda given: kinds.BUNDLE if given["source"].is_dir() else kinds.IMAGES)


@click.command(
    cls=Verb,
    epilog="Example: udpm export results/samples/digits/seed0.npz --layout classes --output digits, or "
    "udpm export results/runs/digits/seed0 digits-model",
)
@click.argument("source", type=ANY)
@click.argument("folder", type=EXPORT, required=False)
@click.option("--output", type=EXPORT, help="The same as FOLDER.")
@click.option(
    "--layout",
    type=click.Choice(["flat", "classes"]),
    default="flat",
    show_default=True,
    help="All files in one folder, or in a folder for each class.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["png", "jpg"]),
    default="png",
    show_default=True,
    help="png is lossless; jpg is smaller and not for scores.",
)
@click.pass_context
def command(
    context: click.Context, source: Path, folder: Path | None, output: Path | None, layout: str, image_format: str
) -> None:
    """Write a sample set as image files, one per image, or gather a finished run to hand on.

    SOURCE is a sample set (.npz), or a run's folder: then FOLDER gets its weights, configuration, model card, scores
    and samples. FOLDER is replaced once the new one is whole.
    """
    if (folder is None) == (output is None):
        raise click.UsageError("give the folder to write to once: as FOLDER or as --output", context)
    target = folder or output
    if not source.is_dir():
        from udpm.data.export import export_images

        count = export_images(source, target, layout, image_format)
        click.echo(f"{target}: {count} files")
        return
    for name in ("layout", "image_format"):
        if context.get_parameter_source(name) != ParameterSource.DEFAULT:
            raise click.UsageError("--layout and --format are for sample sets, not for runs", context)
    from udpm.reporting.bundle import bundle_run

    click.echo(f"{target}: {', '.join(bundle_run(source, target))}")
