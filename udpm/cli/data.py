"""``udpm fetch``, ``prepare`` and ``cache``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER, OutputFolder, OutputPlace, Verb, Whole, check
from udpm.core import kinds

FILES = ("inception", "vgg", "cifar10")


@click.command(cls=Verb, epilog="Example: udpm fetch inception --folder resources/weights")
@click.argument("file", type=click.Choice(FILES))
@click.option(
    "--folder",
    type=OutputPlace(),
    help="Folder to write to; default: resources/weights (inception), torchvision's (vgg), resources/cifar10.",
)
@click.option("--sha256", metavar="HEX", help="Required SHA-256; default: the published file's.")
@click.option("--offline", is_flag=True, help="Only check an existing file; UDPM_OFFLINE=1 does the same.")
def fetch_command(file: str, folder: Path | None, sha256: str | None, offline: bool) -> None:
    """Download weights or a data set in advance, on a machine with network access.

    An existing file is checked and left unchanged.
    """
    from dataclasses import replace

    from udpm.core import download as published
    from udpm.core.download import fetch

    wanted = {"inception": published.INCEPTION, "vgg": published.VGG, "cifar10": published.CIFAR10}[file]
    wanted = replace(wanted, sha256=sha256.lower()) if sha256 else wanted
    path = fetch(wanted, folder or _default_folder(file), download=not offline)
    click.echo(f"{path}: ok, SHA-256 {wanted.sha256}")


def _default_folder(file: str) -> Path:
    if file == "vgg":
        from torch import hub

        return Path(hub.get_dir()) / "checkpoints"
    return Path("resources/weights" if file == "inception" else "resources/cifar10")


@click.command(
    cls=Verb, epilog="Example: udpm prepare results/configs/datasets/digits.json --output results/datasets/digits"
)
@click.argument("config", type=FILE)
@click.option(
    "--output",
    type=OutputFolder(kinds.DATASET),
    required=True,
    help="Folder of the store; replaced once the new one is complete.",
)
@click.option("--workers", type=Whole(1, 1024), help="Processes that decode and resize; default: one per core.")
def prepare_command(config: Path, output: Path, workers: int | None) -> None:
    """Convert a source of images to a checked, memory-mapped store.

    CONFIG is a data set's resolved configuration (udpm resolve --dataset NAME). The same command resumes an interrupted
    preparation; a finished one is left unchanged.
    """
    from udpm.core.processes import StopRequest

    stop = StopRequest.install()

    from udpm.config import DatasetConfig, read_resolved
    from udpm.core.files import expanded
    from udpm.data.prepare import prepare

    resolved = read_resolved(DatasetConfig, config)
    paths = {key: getattr(resolved, key) for key in ("path", "labels")}
    check({key: path and expanded(path, key) for key, path in paths.items()})
    prepare(resolved, output, workers, stop)


@click.command(cls=Verb, epilog="Example: udpm cache results/datasets/digits --output results/caches/digits")
@click.argument("dataset", type=FOLDER)
@click.option(
    "--output",
    type=OutputFolder(kinds.CACHE),
    required=True,
    help="Folder of the cache; replaced once the new one is complete.",
)
def cache_command(dataset: Path, output: Path) -> None:
    """Write the downsampled levels of a prepared data set, as exact integer block sums."""
    from udpm.data.levels import write_cache

    sides = write_cache(dataset, output)
    click.echo(f"{output}: {len(sides)} levels, of side {', '.join(map(str, sides))}")
