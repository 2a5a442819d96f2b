"""``udpm info``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(epilog="Example: udpm info results/runs/digits/seed0/weights.safetensors")
@click.argument("path", type=click.Path(path_type=Path))
def command(path: Path) -> None:
    """Say what a file or folder made by udpm is: its record, as JSON.

    PATH is a data set, a cache or a run (folders), a weight file, a checkpoint, a reference, a sample set, a sampling
    chain, a latent-space experiment, or a published checkpoint (.pt).
    """
    click.echo(json.dumps(_describe(path), indent=2, ensure_ascii=False))


def _describe(path: Path) -> dict:
    from udpm.core.errors import UserError
    from udpm.core.files import read_json

    if path.is_dir():
        for name in ("dataset.json", "cache.json", "complete.json", "config.json"):
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
