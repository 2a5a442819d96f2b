"""``udpm table``, ``paper``, ``summary``, ``card``, ``figure`` and ``sweep``."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import (
    ANY,
    CONFIG_FOLDER,
    FILE,
    FOLDER,
    RESULTS_FOLDER,
    RUN,
    OutputFile,
    OutputStem,
    SharedFolder,
    Verb,
    Verbs,
    check,
    complete_configs,
    usage_error,
)
from udpm.cli.terminal import echo_error, echo_states
from udpm.core import kinds
from udpm.core.errors import EXIT_USER_ERROR, UserError
from udpm.core.files import write_text

FIGURE = click.option(
    "--output", type=OutputStem(kinds.FIGURE), required=True, metavar="STEM", help="Path without suffix."
)
TABLE = click.option("--output", type=OutputStem(kinds.TABLE), metavar="STEM", help="Path without suffix.")


@click.command(cls=Verb, epilog="Example: udpm table results/scores/digits/*.json --output results/tables/scores")
@click.argument("scores", type=FILE, nargs=-1, required=True)
@click.option("--output", type=OutputStem(kinds.TABLE), required=True, metavar="STEM", help="Path without suffix.")
def table_command(scores: tuple[Path, ...], output: Path) -> None:
    """Render SCORES as STEM.csv (full precision and protocol) and as readable STEM.md, .tex and .html."""
    from udpm.report.scores import score_table

    click.echo(score_table(scores).write(output))


@click.command(cls=Verb, epilog="Example: udpm paper table1 digits --results results --output results/tables/paper")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@RESULTS_FOLDER
@CONFIG_FOLDER
@click.option("--experiment", "experiments", multiple=True, help="Add to set-up and run-time tables; repeatable.")
@click.option("--output", type=SharedFolder(), required=True, help="Folder of the tables: TABLE.csv, .md, .tex, .html.")
def paper_command(
    tables: tuple[str, ...], results: Path, config: Path, experiments: tuple[str, ...], output: Path
) -> None:
    """Render the paper's tables with published and measured numbers, or "not run".

    TABLE is the name of a file in config/published/ (table1, table2, peers, …), or one of training, generator,
    discriminator and runtime; default: all. If a table cannot be rendered, it is reported as one line, the others are
    still rendered, and the exit code is 2.
    """
    from udpm.config.published_scores import table_names
    from udpm.report.paper.study import StudyReport

    names = tables or table_names(config)
    stems = {name: output / name for name in names}
    check(writes=[file for stem in stems.values() for file in OutputStem(kinds.TABLE).outputs("--output", stem, {})])
    paper = StudyReport(results, config, experiments)
    wrong = False
    for name, stem in stems.items():
        try:
            click.echo(paper.write(name, stem))
        except UserError as error:
            wrong = True
            echo_error(" ".join(f"error: {error}".split()))
    if wrong:
        click.get_current_context().exit(EXIT_USER_ERROR)


@click.command(cls=Verb, epilog="Example: udpm summary digits --results results --output results")
@click.argument(
    "experiments", nargs=-1, required=True, metavar="EXPERIMENT...", shell_complete=complete_configs("experiments")
)
@RESULTS_FOLDER
@CONFIG_FOLDER
@click.option("--output", type=SharedFolder(kinds.PAGE), required=True, help="Folder of summary.md and overview.html.")
def summary_command(experiments: tuple[str, ...], results: Path, config: Path, output: Path) -> None:
    """Summarize on one page what ran, on which data, the main numbers with their protocol, and what is missing.

    Each EXPERIMENT is the name of a file in config/experiments/. Writes summary.md and the same page as overview.html.
    """
    from udpm.report.paper.study import StudyReport

    click.echo(StudyReport(results, config, experiments).write_summary(output), nl=False)


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
    from udpm.report.card import model_card

    write_text(output, model_card(run, scores))
    click.echo(f"{output}: model card of {run}, {len(scores)} scores")


COMPARISON = {f"compare{suffix}": kind for suffix, kind in kinds.TABLE.items()} | {
    f"{name}{suffix}": kind for name in ("curves", "grid") for suffix, kind in kinds.FIGURE.items()
}
"""Files of a comparison and their kinds."""


@click.command(
    cls=Verb,
    epilog="Example: udpm compare results/runs/digits/seed0 results/runs/digits-paper/seed0 --output comparison",
)
@click.argument("subjects", type=ANY, nargs=-1, required=True, metavar="SUBJECT SUBJECT...")
@click.option("--output", type=SharedFolder(COMPARISON), required=True, help="Folder of the table and the figures.")
def compare_command(subjects: tuple[Path, ...], output: Path) -> None:
    """Compare runs, sample sets, scores, or images of any source: one table, curves in one figure, images side by side.

    A SUBJECT is a run's folder, a sample set, a score, or a folder, .zip or .npz of images. Scores and samples of a run
    are found in its folder of results. Scores of different protocols are marked as not comparable.

    Writes compare.md, .csv, .tex and .html, curves and grid as .svg, .pdf, .png and .csv.
    """
    from udpm.report.compare import compare

    if len(subjects) < 2:
        raise usage_error("give at least two things to compare")
    table, figures = compare(subjects, output)
    click.echo(table)
    for name in figures:
        click.echo(f"{output / name}.png")


@click.group(cls=Verbs)
def figure_command() -> None:
    """Render a figure as STEM.svg, STEM.pdf and STEM.png, and its data as STEM.csv."""


SOURCE = click.argument("source", type=FILE)


def _plotting(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of `udpm figure` from a function that plots; it prints the files it wrote."""

    def decorate(plot: Callable[..., None]) -> click.Command:
        @figure_command.command(epilog=f"Example: udpm figure {example}")
        @FIGURE
        @wraps(plot)
        def command(output: Path, **given: Any) -> None:
            plot(output=output, **given)
            with open(f"{output}.png", "rb") as file:
                width, height = struct.unpack(">II", file.read(24)[16:])
            click.echo(f"{output}.png: {width}×{height} pixels; also .svg, .pdf, and .csv of the data")

        return command

    return decorate


@_plotting("samples results/samples/digits/seed0.npz --output figures/samples")
@SOURCE
def samples(source: Path, output: Path) -> None:
    """Draw the first images of a sample set, one row per class."""
    from udpm.report.figures.samples import plot_samples

    plot_samples(source, output)


@_plotting("chain results/samples/digits/seed0_chain.npz --output figures/chain")
@SOURCE
def chain(source: Path, output: Path) -> None:
    """Draw the chain from noise to image: states and network outputs of one image per class."""
    from udpm.report.figures.samples import plot_chain

    plot_chain(source, output)


@_plotting("curves results/runs/digits/seed0/metrics.jsonl --output figures/curves")
@SOURCE
def curves(source: Path, output: Path) -> None:
    """Plot training losses by level, also of a run that is still training."""
    from udpm.report.figures.curves import plot_curves

    plot_curves(source, output)


@_plotting("selection selection.json --output figures/selection")
@SOURCE
def selection(source: Path, output: Path) -> None:
    """Plot the Fréchet distance of a run's milestones and mark the chosen one."""
    from udpm.report.figures.curves import plot_selection

    plot_selection(source, output)


@_plotting("diagnosis results/diagnoses/digits/seed0.json --output figures/diagnosis")
@SOURCE
def diagnosis(source: Path, output: Path) -> None:
    """Plot where a run loses quality and variety, by level, and what its discriminator contributes."""
    from udpm.report.figures.diagnosis import plot_diagnosis

    plot_diagnosis(source, output)


@_plotting("schedule results/configs/digits/seed0.json --output figures/schedule")
@SOURCE
def schedule(source: Path, output: Path) -> None:
    """Plot signal, noise and their ratio at every level of a run's schedule."""
    from udpm.report.figures.schedule import plot_run_schedule

    plot_run_schedule(source, output)


@_plotting("forward results/configs/digits/seed0.json --dataset results/datasets/digits --output figures/forward")
@SOURCE
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set that the run is trained on.")
def forward(source: Path, dataset: Path, output: Path) -> None:
    """Draw the forward process of a run's schedule: a training image of each class, and its state at every level."""
    from udpm.report.figures.samples import plot_forward_process

    plot_forward_process(source, dataset, output)


@_plotting("latents results/latents/digits/seed0/swap.npz --output figures/swap")
@SOURCE
def latents(source: Path, output: Path) -> None:
    """Draw the images of a latent-space experiment with labelled rows and columns."""
    from udpm.report.figures.latents import plot_latents

    plot_latents(source, output)


@_plotting("tradeoff --results results --output figures/tradeoff")
@RESULTS_FOLDER
@CONFIG_FOLDER
def tradeoff(results: Path, config: Path, output: Path) -> None:
    """Plot FID against multiply-adds: published points of the paper and its peers, and measured ones."""
    from udpm.report.paper.study import StudyReport

    StudyReport(results, config).plot_tradeoff(output)


@_plotting("neighbours results/samples/digits/seed0.npz --dataset results/datasets/digits --output figures/neighbours")
@SOURCE
@click.option("--dataset", type=FOLDER, required=True, help="Prepared data set that the model was trained on.")
@click.option("--columns", type=click.IntRange(1, 24), default=12, help="Number of samples.")
def neighbours(source: Path, dataset: Path, columns: int, output: Path) -> None:
    """Draw samples above their nearest training images, with the distances of held-out images for comparison."""
    from udpm.report.figures.samples import plot_neighbours

    plot_neighbours(source, dataset, output, columns)


@click.group(cls=Verbs)
def sweep_command() -> None:
    """Plan, watch and rank a sweep, a file in config/sweeps/. `snakemake sweep --config sweep=NAME` runs it."""


@sweep_command.command(epilog="Example: udpm sweep plan schedules-digits --output results/sweeps/schedules-digits/plan")
@click.argument("sweep", shell_complete=complete_configs("sweeps"))
@CONFIG_FOLDER
@TABLE
def plan(sweep: str, config: Path, output: Path | None) -> None:
    """Show every point's schedule, how well its sampling starts, and device-hours, before running anything.

    With --output the table is also written as STEM.csv, .md, .tex and .html.
    """
    from udpm.config import load_sweep
    from udpm.report.sweep import plan_table

    table = plan_table(load_sweep(sweep, config))
    click.echo(table.markdown() if output is None else table.write(output), nl=False)


@sweep_command.command(epilog="Example: udpm sweep status schedules-digits --results results")
@click.argument("sweep", shell_complete=complete_configs("sweeps"))
@CONFIG_FOLDER
@RESULTS_FOLDER
def status(sweep: str, config: Path, results: Path) -> None:
    """Show the status of every point, and which key causes work to be repeated.

    \b
    new       nothing exists yet
    changed   its folder holds a run of another configuration, which would be refused
    longer    its training will continue to more iterations
    resample  keeps the run; samples and scores will be made again
    rescore   only the scores will be made again
    trained   not scored yet
    complete  scored
    and running, stalled, stopped, waiting, failed as in `udpm status`
    """
    from udpm.config import load_sweep
    from udpm.runs.status import point_statuses, render_points

    echo_states(render_points(point_statuses(load_sweep(sweep, config), results)))


@sweep_command.command(epilog="Example: udpm sweep rank schedules-digits --output ranking --best best.yaml")
@click.argument("sweep", shell_complete=complete_configs("sweeps"))
@CONFIG_FOLDER
@RESULTS_FOLDER
@TABLE
@click.option("--best", type=OutputFile(kinds.EXPERIMENT), help="Also write the best point as a full experiment.")
def rank(sweep: str, config: Path, results: Path, output: Path | None, best: Path | None) -> None:
    """Rank all points scored so far, and list missing scores.

    With --output the table is also written as STEM.csv, .md, .tex and .html.
    """
    from udpm.config import load_sweep
    from udpm.report.sweep import best_experiment, ranking_table, read_results

    loaded = load_sweep(sweep, config)
    found = read_results(loaded, results)
    table = ranking_table(loaded, found)
    click.echo(table.markdown() if output is None else table.write(output), nl=False)
    if best is not None:
        write_text(best, best_experiment(loaded, found))


@sweep_command.command(epilog="Example: udpm sweep heat schedules-digits start --output results/sweeps/heat")
@click.argument("sweep", shell_complete=complete_configs("sweeps"))
@click.argument("grid")
@CONFIG_FOLDER
@RESULTS_FOLDER
@FIGURE
def heat(sweep: str, grid: str, config: Path, results: Path, output: Path) -> None:
    """Draw a GRID of two axes as a heat map: STEM.svg, .pdf and .png, and its data as STEM.csv."""
    from udpm.config import load_sweep
    from udpm.report.figures.sweep import plot_heat_map
    from udpm.report.sweep import read_results

    loaded = load_sweep(sweep, config)
    plot_heat_map(loaded, read_results(loaded, results), grid, output)


@sweep_command.command(epilog="Example: udpm sweep strip ablations-digits --output results/sweeps/strip")
@click.argument("sweep", shell_complete=complete_configs("sweeps"))
@CONFIG_FOLDER
@RESULTS_FOLDER
@FIGURE
def strip(sweep: str, config: Path, results: Path, output: Path) -> None:
    """Draw the same images of every point, with one noise and class per column, and its score: svg, pdf, png and csv.

    Images are those of the point's first seed. Samples that do not exist yet are shown as missing. Of too many points,
    only the best are shown.
    """
    from udpm.config import load_sweep
    from udpm.report.figures.sweep import plot_sample_strip
    from udpm.report.sweep import read_results

    loaded = load_sweep(sweep, config)
    plot_sample_strip(loaded, read_results(loaded, results), results, output)
