"""``udpm schedule``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from udpm.cli.options import CONFIG, FOLDER, Numbers, OutputStem, Verb, Whole
from udpm.core import kinds

if TYPE_CHECKING:
    from udpm.config import Process

SIDE = 32
NORMALIZATIONS = ("norm", "sum")


class Asked(NamedTuple):
    """A schedule that was asked for: its name for people, its process, and the side of its images (None if unsaid)."""

    name: str
    process: Process
    side: int | None


@click.command(cls=Verb, epilog="Example: udpm schedule --alphas 0.5,0.2,1e-3 --sigmas 0.1,0.2,0.3 --side 32")
@click.argument("experiment", required=False)
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option("--alphas", type=Numbers(float), help="Instead of an experiment: α for each level, l = 1 first.")
@click.option("--sigmas", type=Numbers(float), help="With --alphas: σ for each level, l = 1 first.")
@click.option("--side", type=Whole(1), help=f"With --alphas: N; default: the data set's, else {SIDE}.")
@click.option("--normalization", type=click.Choice(NORMALIZATIONS), help="With --alphas: of H's box; default: norm.")
@click.option("--dataset", type=FOLDER, help="Prepared data set, for bounds that hold for its training split.")
@click.option(
    "--output", type=OutputStem(kinds.FIGURE), metavar="STEM", help="Also write STEM.csv, STEM.svg and STEM.png."
)
def command(
    experiment: str | None,
    config: Path,
    alphas: list[float] | None,
    sigmas: list[float] | None,
    side: int | None,
    normalization: str | None,
    dataset: Path | None,
    output: Path | None,
) -> None:
    """Show a noise schedule level by level: signal, noise, posterior; and how well sampling starts.

    The schedule is that of EXPERIMENT, a file in config/experiments/, or the one given by --alphas and --sigmas. A
    schedule whose last state is not what sampling starts from is warned of.
    """
    typed = (alphas, sigmas, side, normalization)
    by_hand = alphas is not None and sigmas is not None
    if by_hand == (experiment is not None) or (not by_hand and any(value is not None for value in typed)):
        raise click.UsageError(
            "give either an EXPERIMENT, or --alphas and --sigmas (with --side and --normalization)",
            click.get_current_context(),
        )
    from udpm.process.schedule import Schedule
    from udpm.reporting.schedule import draw_schedule, readable_schedule, schedule_table, schedule_warning

    asked = _typed(alphas, sigmas, side, normalization) if by_hand else _experiment(experiment, config)
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
    from udpm.config.load import validate
    from udpm.core.errors import UserError

    if len(alphas) != len(sigmas):
        raise UserError(f"--alphas has {len(alphas)} values, --sigmas {len(sigmas)}; give one of each for each level")
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
    """N, m₂, and where m₂ comes from."""
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
    from udpm.data.moments import mean_square

    count = len(store.images[store.split("train")])
    return side, mean_square(store, levels), f"measured on the {count} training images of {dataset}"
