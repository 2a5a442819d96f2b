"""``udpm schedule``, ``cost`` and ``info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from udpm.cli.options import ANY, CONFIG, FOLDER, Numbers, OutputFile, OutputStem, Verb, Whole
from udpm.core import kinds

if TYPE_CHECKING:
    from udpm.config import Process


SIDE = 32
NORMALIZATIONS = ("norm", "sum")


class Asked(NamedTuple):
    """A requested schedule: its name to display, its process, and the side of its images (None if not given)."""

    name: str
    process: Process
    side: int | None


@click.command(cls=Verb, epilog="Example: udpm schedule --alphas 0.5,0.2,1e-3 --sigmas 0.1,0.2,0.3 --side 32")
@click.argument("experiment", required=False)
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option("--alphas", type=Numbers(float), help="Instead of an experiment: α for each level, l = 1 first.")
@click.option("--sigmas", type=Numbers(float), help="With --alphas: σ for each level, l = 1 first.")
@click.option("--side", type=Whole(1), help=f"With --alphas: N; default: the data set's, else {SIDE}.")
@click.option(
    "--normalization", type=click.Choice(NORMALIZATIONS), help="With --alphas: normalization of H's box; default: norm."
)
@click.option("--dataset", type=FOLDER, help="Prepared data set, for bounds valid for its training split.")
@click.option(
    "--output", type=OutputStem(kinds.FIGURE), metavar="STEM", help="Also write STEM.csv, STEM.svg and STEM.png."
)
def schedule_command(
    experiment: str | None,
    config: Path,
    alphas: list[float] | None,
    sigmas: list[float] | None,
    side: int | None,
    normalization: str | None,
    dataset: Path | None,
    output: Path | None,
) -> None:
    """Show signal, noise and posterior of a noise schedule at every level, and how well sampling starts.

    The schedule is that of EXPERIMENT, a file in config/experiments/, or the one given by --alphas and --sigmas. Warns
    if the distribution of the schedule's last state is not that which sampling starts from.
    """
    if alphas is not None and sigmas is not None and experiment is None:
        asked = _typed(alphas, sigmas, side, normalization)
    elif experiment is not None and all(value is None for value in (alphas, sigmas, side, normalization)):
        asked = _experiment(experiment, config)
    else:
        raise click.UsageError(
            "give either an EXPERIMENT, or --alphas and --sigmas (with --side and --normalization)",
            click.get_current_context(),
        )
    from udpm.diffusion.schedule import Schedule
    from udpm.report.figures.schedule import draw_schedule, readable_schedule, schedule_table, schedule_warning

    side, mean_square, source = _images(asked, dataset)
    table = schedule_table(Schedule.from_config(asked.process), side, mean_square)
    if output is not None:
        draw_schedule(table, asked.name, output)
    click.echo(readable_schedule(table, source), nl=False)
    warning = schedule_warning(table)
    if warning is not None:
        click.echo(f"warning: {warning}", err=True)


def _experiment(name: str, config: Path) -> Asked:
    from udpm.config import load_experiment, resolve_run

    run = resolve_run(name, load_experiment(name, config).seeds[0], config)
    return Asked(name, run.process, run.dataset.side)


def _typed(alphas: list[float], sigmas: list[float], side: int | None, normalization: str | None) -> Asked:
    from udpm.config import Process
    from udpm.config.validation import validate
    from udpm.core.errors import UserError

    if len(alphas) != len(sigmas):
        raise UserError(f"--alphas has {len(alphas)} values, --sigmas {len(sigmas)}; give one of each per level")
    values = {"levels": len(alphas), "alphas": alphas, "sigmas": sigmas}
    if normalization is not None:
        values["normalization"] = normalization
    process = validate(Process, values, "--alphas, --sigmas")
    listed = " and ".join(
        f"{letter} = {', '.join(f'{value:g}' for value in numbers)}"
        for letter, numbers in (("α", process.alphas), ("σ", process.sigmas))
    )
    return Asked(listed, process, side)


def _images(asked: Asked, dataset: Path | None) -> tuple[int, float, str]:
    """Return N, m₂, and a description of the source of m₂."""
    from udpm.core.errors import UserError

    store = None
    if dataset is not None:
        from udpm.data.store import open_store

        store = open_store(dataset)
        if asked.side not in (None, store.side):
            raise UserError(f"{dataset}: has images of side {store.side}, but the schedule is for side {asked.side}")
    side = asked.side or (store.side if store else SIDE)
    levels = asked.process.levels
    if side % 2**levels:
        raise UserError(f"side {side} cannot be halved {levels} times: not divisible by 2^{levels} = {2**levels}")
    if store is None:
        return side, 1.0, "the largest possible for images in [-1, 1]; --dataset measures it"
    from udpm.data.summary import mean_square

    count = len(store.images[store.split("train")])
    return side, mean_square(store, levels), f"measured on the {count} training images of {dataset}"


@click.command(cls=Verb, epilog="Example: udpm cost cifar10 ffhq64 --output results/tables/cost")
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option(
    "--output", type=OutputStem(kinds.TABLE), metavar="STEM", help="Also write STEM.csv, .md, .tex and .html."
)
def cost_command(experiments: tuple[str, ...], config: Path, output: Path | None) -> None:
    """Count the multiply-adds and parameters of an image, and those of a network at the full side.

    Each EXPERIMENT is the name of a file in config/experiments/. Needs no weights and no data.
    """
    from udpm.config import load_experiment, resolve_run
    from udpm.networks.flops import count_cost
    from udpm.report.paper.tables import cost_table

    runs = {name: resolve_run(name, load_experiment(name, config).seeds[0], config) for name in experiments}
    table = cost_table({name: count_cost(run) for name, run in runs.items()})
    if output is not None:
        table.write(output)
    click.echo(table.markdown(), nl=False)


@click.command(cls=Verb, epilog="Example: udpm info results/datasets/digits --check --sheet digits.png")
@click.argument("path", type=ANY)
@click.option(
    "--sheet",
    type=OutputFile(kinds.SHEET, ".png", ".jpg", ".jpeg"),
    help="Also draw a contact sheet of a data set (.png or .jpg).",
)
@click.option("--check", is_flag=True, help="Compare all bytes of a data set or cache with its record.")
def info_command(path: Path, sheet: Path | None, check: bool) -> None:
    """Print the record of a file or folder made by udpm as JSON.

    PATH is a data set, a cache or a run (folders), a weight file, a checkpoint, a reference, a sample set, a sampling
    chain, a latent-space experiment, or a published checkpoint (.pt). For a data set, the output includes the images
    per class, mean and standard deviation (0..255, training split).
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
        from udpm.interop.checkpoint import read_weights

        return read_weights([path]).describe()
    if path.suffix == ".npz" and not path.with_suffix(".json").exists():
        from udpm.data.npz import load_arrays

        return load_arrays(path, "file with a record", "udpm reference, sample --chain or latents")[1]
    return _side_record(path)


def _side_record(path: Path) -> dict:
    """Read the record with the same name and suffix .json."""
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
