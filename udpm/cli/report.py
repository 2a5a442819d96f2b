"""``udpm table``, ``paper``, ``summary``, ``card`` and ``figure``."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import CONFIG, FILE, FOLDER, RESULTS, RUN, OutputFile, OutputPlace, OutputStem, Verb, Verbs, check
from udpm.core import kinds
from udpm.core.errors import EXIT_USER_ERROR, UserError


@click.command(cls=Verb, epilog="Example: udpm table results/scores/digits/*.json --output results/tables/scores")
@click.argument("scores", type=FILE, nargs=-1, required=True)
@click.option("--output", type=OutputStem(kinds.TABLE), required=True, metavar="STEM", help="Path without suffix.")
def table_command(scores: tuple[Path, ...], output: Path) -> None:
    """Render SCORES as STEM.csv (full precision and protocol) and as readable STEM.md, .tex and .html."""
    from udpm.report.scores import score_table

    click.echo(score_table(scores).write(output))


@click.command(cls=Verb, epilog="Example: udpm paper table1 digits --results results --output results/tables/paper")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--results", type=RESULTS, default="results", show_default=True, help="Folder of the results.")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    help="Add this experiment to the set-up and run-time tables; repeatable.",
)
@click.option(
    "--output", type=OutputPlace(), required=True, help="Folder of the tables: TABLE.csv, .md, .tex and .html."
)
@click.pass_context
def paper_command(
    context: click.Context,
    tables: tuple[str, ...],
    results: Path,
    config: Path,
    experiments: tuple[str, ...],
    output: Path,
) -> None:
    """Render the paper's tables with published and measured numbers, or "not run".

    TABLE is the name of a file in config/published/ (table1, table2, peers, …), or one of training, generator,
    discriminator and runtime; default: all. If a table cannot be rendered, it is reported as one line, the others are
    still rendered, and the exit code is 2.
    """
    from udpm.config.published_scores import table_names
    from udpm.report.paper.study import Paper

    names = tables or table_names(config)
    stems = {name: output / name for name in names}
    check(writes=[file for stem in stems.values() for file in OutputStem(kinds.TABLE).outputs("--output", stem, {})])
    paper = Paper(results, config, experiments)
    wrong = False
    for name, stem in stems.items():
        try:
            click.echo(paper.write(name, stem))
        except UserError as error:
            wrong = True
            click.echo(" ".join(f"error: {error}".split()), err=True)
    if wrong:
        context.exit(EXIT_USER_ERROR)


@click.command(cls=Verb, epilog="Example: udpm summary digits --results results --output results")
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--results", type=RESULTS, default="results", show_default=True, help="Folder of the results.")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option("--output", type=OutputPlace(kinds.PAGE), required=True, help="Folder of summary.md and overview.html.")
def summary_command(experiments: tuple[str, ...], results: Path, config: Path, output: Path) -> None:
    """Summarize on one page what ran, on which data, the main numbers with their protocol, and what is missing.

    Each EXPERIMENT is the name of a file in config/experiments/. Writes summary.md and the same page as overview.html.
    """
    from udpm.report.paper.study import Paper

    click.echo(Paper(results, config, experiments).write_summary(output), nl=False)


@click.command(
    cls=Verb,
    epilog="Example: udpm card results/runs/digits/seed0 --score results/scores/digits/seed0.json "
    "--output results/runs/digits/seed0/README.md",
)
@click.argument("run", type=RUN)
@click.option("--score", "scores", type=FILE, multiple=True, help="Score of this run's images; repeatable.")
@click.option("--output", type=OutputFile(kinds.CARD), required=True, help="Model card to write, usually README.md.")
def card_command(run: Path, scores: tuple[Path, ...], output: Path) -> None:
    """Write a finished run's model card: data, training, scores, limits, licence of the data.

    The card has the format of Hugging Face's model cards. A score of another run, or of weights that the run no longer
    has, is refused. An edited card is never replaced.
    """
    from udpm.core.files import write_text
    from udpm.report.card import model_card

    write_text(output, model_card(run, scores))
    click.echo(f"{output}: model card of {run}, {len(scores)} scores")


STEM = click.option(
    "--output", type=OutputStem(kinds.FIGURE), required=True, metavar="STEM", help="Path without suffix."
)


@click.group(cls=Verbs)
def figure_command() -> None:
    """Render a figure as STEM.svg and STEM.png, and its data as STEM.csv."""


@figure_command.command(epilog="Example: udpm figure samples results/samples/digits/seed0.npz --output figures/samples")
@click.argument("source", type=FILE)
@STEM
def samples(source: Path, output: Path) -> None:
    """Draw the first images of a sample set, one row per class."""
    from udpm.report.figures.samples import draw_samples

    draw_samples(source, output)


@figure_command.command(
    epilog="Example: udpm figure chain results/samples/digits/seed0_chain.npz --output figures/chain"
)
@click.argument("source", type=FILE)
@STEM
def chain(source: Path, output: Path) -> None:
    """Draw the way from noise to image: states and network outputs of one image per class."""
    from udpm.report.figures.samples import draw_chain

    draw_chain(source, output)


@figure_command.command(
    epilog="Example: udpm figure curves results/runs/digits/seed0/metrics.jsonl --output figures/curves"
)
@click.argument("source", type=FILE)
@STEM
def curves(source: Path, output: Path) -> None:
    """Plot training losses by level, also of a run that is still training."""
    from udpm.report.figures.curves import draw_curves

    draw_curves(source, output)


@figure_command.command(epilog="Example: udpm figure selection selection.json --output figures/selection")
@click.argument("source", type=FILE)
@STEM
def selection(source: Path, output: Path) -> None:
    """Plot the Fréchet distance of a run's milestones and mark the chosen one."""
    from udpm.report.figures.curves import draw_selection

    draw_selection(source, output)


@figure_command.command(
    epilog="Example: udpm figure schedule results/configs/digits/seed0.json --output figures/schedule"
)
@click.argument("source", type=FILE)
@STEM
def schedule(source: Path, output: Path) -> None:
    """Plot signal, noise and their ratio at every level of a run's schedule."""
    from udpm.report.figures.schedule import draw_run_schedule

    draw_run_schedule(source, output)


@figure_command.command(
    epilog="Example: udpm figure forward results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--output figures/forward"
)
@click.argument("source", type=FILE)
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set that the run is trained on.")
@STEM
def forward(source: Path, dataset: Path, output: Path) -> None:
    """Draw the forward process of a run's schedule: a training image of each class, and its state at every level."""
    from udpm.report.figures.samples import draw_forward_process

    draw_forward_process(source, dataset, output)


@figure_command.command(
    epilog="Example: udpm figure latents results/latents/digits/seed0/swap.npz --output figures/swap"
)
@click.argument("source", type=FILE)
@STEM
def latents(source: Path, output: Path) -> None:
    """Draw the images of a latent-space experiment with labelled rows and columns."""
    from udpm.report.figures.latents import draw_latents

    draw_latents(source, output)


@figure_command.command(epilog="Example: udpm figure tradeoff --results results --output figures/tradeoff")
@click.option("--results", type=RESULTS, default="results", show_default=True, help="Folder of the results.")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@STEM
def tradeoff(results: Path, config: Path, output: Path) -> None:
    """Plot FID against multiply-adds: published points of the paper and its peers, and measured ones."""
    from udpm.report.paper.study import Paper

    Paper(results, config).draw_tradeoff(output)


@figure_command.command(
    epilog="Example: udpm figure neighbours results/samples/digits/seed0.npz --dataset results/datasets/digits "
    "--output figures/neighbours"
)
@click.argument("source", type=FILE)
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set that the model was trained on.")
@click.option("--columns", type=click.IntRange(1, 24), default=12, show_default=True, help="Number of samples.")
@STEM
def neighbours(source: Path, dataset: Path, columns: int, output: Path) -> None:
    """Draw samples above their nearest training images, with the distances of held-out images for comparison."""
    from udpm.report.figures.samples import draw_neighbours

    draw_neighbours(source, dataset, output, columns)


def _reporting(draw: Callable[..., None]) -> Callable[..., None]:
    """Make a drawing command print the files it wrote."""

    @wraps(draw)
    def command(output: Path, **given: Any) -> None:
        draw(output=output, **given)
        with open(f"{output}.png", "rb") as file:
            width, height = struct.unpack(">II", file.read(24)[16:])
        click.echo(f"{output}.png: {width}×{height} pixels; also .svg, and .csv of the data")

    return command


for _drawing in figure_command.commands.values():
    if _drawing.callback is not None:
        _drawing.callback = _reporting(_drawing.callback)
