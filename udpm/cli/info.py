"""``udpm info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from udpm.cli.options import ANY, OutputFile, Verb
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm info results/datasets/digits --check --sheet digits.png")
@click.argument("path", type=ANY)
@click.option(
    "--sheet",
    type=OutputFile(kinds.SHEET, ".png", ".jpg", ".jpeg"),
    help="Also draw a contact sheet of a data set (.png or .jpg).",
)
@click.option("--check", is_flag=True, help="Compare all bytes of a data set or cache with its record.")
def command(path: Path, sheet: Path | None, check: bool) -> None:
    """Say what a file or folder made by udpm is: its record, as JSON.

    PATH is a data set, a cache or a run (folders), a weight file, a checkpoint, a reference, a sample set, a sampling
    chain, a latent-space experiment, or a published checkpoint (.pt). For a data set, images of each class, mean and
    standard deviation (0..255, training split) are counted and added.
    """
    from udpm.core.errors import UserError

    if (sheet or check) and not _is_prepared(path):
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


def _is_prepared(path: Path) -> bool:
    return (path / "dataset.json").exists() or (path / "cache.json").exists()


def _check(path: Path) -> None:
    from udpm.core.errors import UserError
    from udpm.data.cache import read_cache_record
    from udpm.data.store import check_files, open_store
    from udpm.data.summary import differences

    if (path / "dataset.json").exists():
        changed = differences(open_store(path))
    else:
        changed = check_files(path, read_cache_record(path))
    if changed:
        raise UserError(f"{path}: not as it was made: {', '.join(changed)} changed; delete it and make it again")
    click.echo(f"{path}: ok")


def _describe(path: Path) -> dict:
    from udpm.core.errors import UserError
    from udpm.core.reading import read_json

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
        return _safetensors(path)
    if path.suffix == ".pt" and not path.with_suffix(".json").exists():
        from udpm.networks.importer import read_weights

        return read_weights([path]).describe()
    if path.suffix == ".npz" and not path.with_suffix(".json").exists():
        from udpm.data.arrays import load_arrays

        return load_arrays(path, "file with a record", "udpm reference, sample --chain or latents")[1]
    return _beside(path)


def _beside(path: Path) -> dict:
    """The record of the same name with .json."""
    from udpm.core.errors import UserError
    from udpm.core.reading import read_json

    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.with_suffix(".json").exists():
        raise UserError(f"{path}: not a file made by udpm")
    return read_json(path.with_suffix(".json"), "record")


def _safetensors(path: Path) -> dict:
    from safetensors import SafetensorError, safe_open

    from udpm.core.errors import UserError

    try:
        with safe_open(path, "np") as file:
            description = json.loads((file.metadata() or {}).get("udpm", "{}"))
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None
    return {**description, "tensors": len(shapes)}
