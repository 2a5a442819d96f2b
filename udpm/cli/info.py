"""``udpm info``."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import ANY, OutputFile, Verb
from udpm.core import kinds
from udpm.core.containers import read_header
from udpm.core.errors import UserError
from udpm.core.identify import PREPARED, SAFETENSORS, Kind, what_is
from udpm.core.reading import read_json
from udpm.runs.layout import Layout
from udpm.runs.records import WEIGHTS, is_run


@click.command(cls=Verb, epilog="Example: udpm info results/datasets/digits --check --sheet digits.png")
@click.argument("path", type=ANY)
@click.option(
    "--sheet",
    type=OutputFile(kinds.SHEET, ".png", ".jpg", ".jpeg"),
    help="Also draw a data set's contact sheet (.png, .jpg).",
)
@click.option("--check", is_flag=True, help="Compare all bytes of a data set or cache with its record.")
def info_command(path: Path, sheet: Path | None, check: bool) -> None:
    """Recognize a file or folder, describe it as JSON, and show the next command to run (on standard error).

    PATH is anything that udpm made or takes: images that are not prepared (a folder, .zip, .npz, .npy or Parquet
    files), a data set, a cache, a run, weights, a checkpoint, a reference, a sample set, a score, a configuration, and
    so on. For a data set, the output includes the images per class, mean and standard deviation (0..255, training
    split); for other images, numbers by split and classes.
    """
    if (sheet or check) and not any((path / name).exists() for name in ("dataset.json", "cache.json")):
        raise UserError(f"{path}: --sheet is for a data set, --check for a data set or a level cache")
    if check:
        _check(path)
    if sheet:
        from udpm.data.levels import draw_sheet
        from udpm.data.store import open_store

        draw_sheet(open_store(path), sheet)
        click.echo(f"{sheet}: contact sheet", err=True)
    if check:
        return
    kind = what_is(path)
    options: dict[str, int] = {}
    if kind is not None and kind.images:
        from udpm.data.describe import describe_images

        facts, options, _ = describe_images(path)
        shown = {"kind": kind.name, **facts}
    else:
        shown = describe(path, kind)
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    following = None if kind is None else next_command(path, kind, options)
    if following:
        click.echo(f"next: {shlex.join(following)}", err=True)


def _check(path: Path) -> None:
    from udpm.data.levels import differences, read_cache_record
    from udpm.data.store import check_files, open_store

    if (path / "dataset.json").exists():
        changed = differences(open_store(path))
    else:
        changed = check_files(path, read_cache_record(path))
    if changed:
        raise UserError(f"{path}: changed since it was made: {', '.join(changed)}; delete it and make it again")
    click.echo(f"{path}: ok")


def describe(path: Path, kind: Kind | None = None) -> dict[str, Any]:
    """Return the record of a file or folder that udpm made, or the kind of another one that is known.

    Raises:
        UserError: missing, unknown, or its record cannot be read.
    """
    if (path / "dataset.json").exists():
        from udpm.data.levels import summarize
        from udpm.data.store import open_store

        store = open_store(path)
        return {**store.record, **summarize(store)}
    known = {"kind": kind.name, "takes": kind.takes} if kind is not None else None
    if path.is_dir():
        for name in ("cache.json", "networks.json", "complete.json", "config.json"):
            if (path / name).exists():
                return read_json(path / name, "record")
        if (path / WEIGHTS).is_file():
            return describe(path / WEIGHTS)
        if known is None:
            raise UserError(f"{path}: {_unknown_folder(path)}")
        return known
    if known is not None and known["kind"] in UNDESCRIBED:
        return known
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
    if path.with_suffix(".json").exists():
        return read_json(path.with_suffix(".json"), "record")
    if known is None:
        raise UserError(f"{path}: not a file made by udpm, nor images")
    return known


def _unknown_folder(path: Path) -> str:
    """Return the error about a folder without a record: it is inside a run, holds runs, or neither."""
    if is_run(parent := Path(os.path.abspath(path)).parent):
        return f"is a part of a run; give the run, {parent}"
    if runs := sorted(str(entry) for entry in path.iterdir() if is_run(entry)):
        return f"holds {len(runs)} run{'s' * (len(runs) > 1)}; give one of them, such as {runs[0]}"
    return "not a folder made by udpm; expected a data set, a level cache, a run, or images"


UNDESCRIBED = ("statistics of features", "a noise file", "a TorchScript file", "an exported network", SAFETENSORS)
"""Files without a record."""
Words = list[str]
"""A command, with or without its first word, udpm."""


def next_command(path: Path, kind: Kind, options: dict[str, int]) -> Words | None:
    """Return a command that does something useful with a file or folder, and overwrites nothing; None if unknown.

    Args:
        options: of `udpm prepare`, for images.
    """
    given = f"./{path}" if str(path).startswith("-") else str(path)
    if kind.images:
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return ["udpm", "prepare", given, *words, "--output", _free(Layout("results").dataset(_stem(path)))]
    make = NEXT.get(kind.name)
    return None if make is None else ["udpm", *make(given, path)]


def _stem(path: Path) -> str:
    """Return a plain name for what is made of a file or folder."""
    name = Path(os.path.abspath(path)).name
    name = name if path.is_dir() else name.partition(".")[0]
    return re.sub(r"[^\w.-]|^[-.]+", "_", name) or "images"


def _free(path: str, suffix: str = "") -> str:
    """Return a path that does not exist, nor with any suffix; numbered from 2 if this one does."""
    for number in range(1, 1000):
        candidate = Path(f"{path}-{number}" if number > 1 else path)
        if not any(candidate.parent.glob(f"{escape(candidate.name)}*")):
            break
    return f"{candidate}{suffix}"


def _made(verb: str, ending: str, suffix: str = "") -> Callable[[str, Path], Words]:
    """Return a command with one input, and an output in the working directory that is named after it."""
    return lambda given, path: [*verb.split(), given, "--output", _free(f"{_stem(path)}{ending}", suffix)]


def _of_weights(given: str, path: Path) -> Words:
    name = _stem(path) if path.is_dir() or path.stem != "weights" else _stem(path.absolute().parent)
    return ["sample", given, "--output", _free(f"{name}-samples", ".npz")]


def _around(given: str, path: Path) -> Words:
    """Describe the folder that a record is in."""
    return ["info", str(path.parent)]


def _of_run(given: str, path: Path) -> Words:
    return ["status", str(path.absolute().parent.parent)]


def _configured(*words: str) -> Callable[[str, Path], Words]:
    """Return a command that takes the name of a file two folders below the configuration's."""
    return lambda given, path: [*words, path.stem, "--config", str(path.absolute().parent.parent)]


def _plainly(*words: str, option: str | None = None) -> Callable[[str, Path], Words]:
    return lambda given, path: [*words, *([option] if option else []), given]


def _dataset(given: str, path: Path) -> Words:
    return ["cache", given, "--output", _free(Layout("results").cache(_stem(path)))]


NEXT: dict[str, Callable[[str, Path], Words]] = {
    PREPARED: _dataset,
    "a level cache": lambda given, path: ["info", given, "--check"],
    "a folder of exported images": lambda given, path: ["reference", "--help"],
    "a bundle": _of_weights,
    "a run's folder": _of_weights,
    "the folder of a run that is not finished": _plainly("status"),
    "a folder of results": _plainly("status", option="--results"),
    "a configuration folder": lambda given, path: ["resolve", "--help"],
    "a weights file": _of_weights,
    "a checkpoint of a training": _of_run,
    "a snapshot of a training's averages": _of_run,
    "a sample set": _made("figure samples", "-grid"),
    "the record of a sample set": _made("figure samples", "-grid"),
    "a sampling chain": _made("figure chain", "-chain"),
    "a latent-space experiment": _made("figure latents", "-latents"),
    "a run's metrics": _made("figure curves", "-curves"),
    "a selection": _made("figure selection", "-selection"),
    "a diagnosis": _made("figure diagnosis", "-diagnosis"),
    "a score": _made("table", "-table"),
    "a reference": lambda given, path: ["score", "--help"],
    "statistics of features": lambda given, path: ["reference", "--help"],
    "a noise file": lambda given, path: ["sample", "--help"],
    "a TorchScript file": lambda given, path: ["score", "--help"],
    "the record of an extractor": lambda given, path: ["score", "--help"],
    "the record of a prepared data set": _around,
    "the record of a level cache": _around,
    "the record of exported images": _around,
    "the record of a bundle": _around,
    "the record of exported networks": _around,
    "an exported network": _around,
    "the record of a finished run": _around,
    "a PyTorch checkpoint": _made("import", "", ".safetensors"),
    SAFETENSORS: _made("import", "-imported", ".safetensors"),
    "an experiment's YAML configuration": _configured("resolve"),
    "a data set's YAML configuration": _configured("resolve", "--dataset"),
    "a sweep's YAML configuration": _configured("sweep", "plan"),
    "a run's resolved configuration": lambda given, path: ["train", given, "--dry-run"],
    "a data set's resolved configuration": lambda given, path: [
        *("prepare", given, "--output", _free(Layout("results").dataset(_stem(path)))),
    ],
    "a resolved sampling section": lambda given, path: ["sample", "--help"],
    "a resolved scoring section": lambda given, path: ["score", "--help"],
    "a resolved latents section": lambda given, path: ["latents", "--help"],
    "a published configuration": lambda given, path: ["import", "--help"],
}
"""Makers of the next command, by the name of the kind of file or folder."""
