"""``udpm export``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER


@click.command(epilog="Example: udpm export results/samples/digits/seed0.npz --layout classes --output digits")
@click.argument("samples", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="Folder of the images; replaced once the new one is whole.")
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
def command(samples: Path, output: Path, layout: str, image_format: str) -> None:
    """Write a sample set (.npz) as image files, one per image."""
    from udpm.data.export import export_images

    count = export_images(samples, output, layout, image_format)
    click.echo(f"{output}: {count} files")
