"""``udpm fetch``, ``prepare``, ``cache`` and ``info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from udpm.cli.options import ANY, FILE, FOLDER, OutputFile, OutputFolder, SharedFolder, Verb, Whole, check
from udpm.core import kinds
from udpm.core.containers import read_header
from udpm.core.errors import UserError
from udpm.core.files import expanded
from udpm.core.reading import read_json
from udpm.core.work import StopRequest

FILES = ("inception", "vgg", "cifar10")


@click.command(cls=Verb, epilog="Example: udpm fetch inception --folder resources/weights")
@click.argument("file", type=click.Choice(FILES))
@click.option(
    "--folder",
    type=SharedFolder(),
    help="Folder to write to; default: resources/weights (inception), torchvision's (vgg), resources/cifar10.",
)
@click.option("--sha256", metavar="HEX", help="Required SHA-256; default: the published file's.")
@click.option("--offline", is_flag=True, help="Only check an existing file; UDPM_OFFLINE=1 does the same.")
def fetch_command(file: str, folder: Path | None, sha256: str | None, offline: bool) -> None:
    """Download weights or a data set in advance, on a machine with network access.

    An existing file is checked and left unchanged.
    """
    from dataclasses import replace

    from udpm.core import files as published

    wanted = {"inception": published.INCEPTION, "vgg": published.VGG, "cifar10": published.CIFAR10}[file]
    wanted = replace(wanted, sha256=sha256.lower()) if sha256 else wanted
    path = published.fetch(wanted, folder or _default_folder(file), download=not offline)
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
@click.option("--output", type=OutputFolder(kinds.DATASET), required=True, help="Folder of the store, replaced whole.")
@click.option("--workers", type=Whole(1, 1024), help="Processes that decode and resize; default: one per core.")
def prepare_command(config: Path, output: Path, workers: int | None) -> None:
    """Convert a source of images to a checked, memory-mapped store.

    CONFIG is a data set's resolved configuration (udpm resolve --dataset NAME). The same command resumes an interrupted
    preparation; a finished one is left unchanged.
    """
    stop = StopRequest.install()

    from udpm.config import DatasetConfig, read_resolved
    from udpm.data.prepare import prepare

    resolved = read_resolved(DatasetConfig, config)
    paths = {key: getattr(resolved, key) for key in ("path", "labels")}
    check({key: path and expanded(path, key) for key, path in paths.items()})
    prepare(resolved, output, workers, stop)


@click.command(cls=Verb, epilog="Example: udpm cache results/datasets/digits --output results/caches/digits")
@click.argument("dataset", type=FOLDER)
@click.option("--output", type=OutputFolder(kinds.CACHE), required=True, help="Folder of the cache, replaced whole.")
def cache_command(dataset: Path, output: Path) -> None:
    """Write the downsampled levels of a prepared data set, as exact integer block sums."""
    from udpm.data.levels import write_cache

    sides = write_cache(dataset, output)
    click.echo(f"{output}: {len(sides)} levels, of side {', '.join(map(str, sides))}")


@click.command(cls=Verb, epilog="Example: udpm info results/datasets/digits --check --sheet digits.png")
@click.argument("path", type=ANY)
@click.option(
    "--sheet",
    type=OutputFile(kinds.SHEET, ".png", ".jpg", ".jpeg"),
    help="Also draw a data set's contact sheet (.png, .jpg).",
)
@click.option("--check", is_flag=True, help="Compare all bytes of a data set or cache with its record.")
def info_command(path: Path, sheet: Path | None, check: bool) -> None:
    """Print the record of a file or folder made by udpm as JSON.

    PATH is a data set, a cache or a run (folders), a weight file, a checkpoint, a reference, a sample set, a sampling
    chain, a latent-space experiment, or a published checkpoint (.pt). For a data set, the output includes the images
    per class, mean and standard deviation (0..255, training split).
    """
    if (sheet or check) and not any((path / name).exists() for name in ("dataset.json", "cache.json")):
        raise UserError(f"{path}: --sheet is for a data set, --check for a data set or a level cache")
    if check:
        _check(path)
    if sheet:
        from udpm.data.store import open_store
        from udpm.data.summary import draw_sheet

        draw_sheet(open_store(path), sheet)
        click.echo(f"{sheet}: contact sheet", err=True)
    if not check:
        click.echo(json.dumps(_describe(path), indent=2, ensure_ascii=False))


def _check(path: Path) -> None:
    from udpm.data.levels import read_cache_record
    from udpm.data.store import check_files, open_store
    from udpm.data.summary import differences

    if (path / "dataset.json").exists():
        changed = differences(open_store(path))
    else:
        changed = check_files(path, read_cache_record(path))
    if changed:
        raise UserError(f"{path}: changed since it was made: {', '.join(changed)}; delete it and make it again")
    click.echo(f"{path}: ok")


def _describe(path: Path) -> dict:
    if (path / "dataset.json").exists():
        from udpm.data.store import open_store
        from udpm.data.summary import summarize

        store = open_store(path)
        return {**store.record, **summarize(store)}
    if path.is_dir():
        for name in ("cache.json", "complete.json", "config.json"):
            if (path / name).exists():
                return read_json(path / name, "record")
        raise UserError(f"{path}: not a folder made by udpm; expected a data set, a level cache or a run")
    if path.suffix == ".safetensors":
        header = read_header(path)
        return {**header.description, "tensors": len(header.shapes)}
    if path.suffix == ".pt" and not path.with_suffix(".json").exists():
        from udpm.interop.checkpoint import read_weights

        return read_weights([path]).describe()
    if path.suffix == ".npz" and not path.with_suffix(".json").exists():
        from udpm.data.npz import load_arrays

        return load_arrays(path, "file with a record", "udpm reference, sample --chain or latents")[1]
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.with_suffix(".json").exists():
        raise UserError(f"{path}: not a file made by udpm")
    return read_json(path.with_suffix(".json"), "record")
