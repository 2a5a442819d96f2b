"""``python -m benchmarks``: measure the speedup of sampling and training over the plain way, and of each gain."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from udpm.cli import bench
from udpm.cli.options import CONFIG_FOLDER, FILE, Numbers, OutputStem, Verbs, Whole
from udpm.core import kinds
from udpm.core.errors import UserError

GAINS = click.option("--gains", is_flag=True, help="Also switch every gain over alone.")
MEMORY = click.option("--memory", is_flag=True, help="Also measure every way's peak memory, in separate processes.")
REPETITIONS = click.option("--repetitions", type=Whole(1), default=5, help="Of each way.")


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}
)
def command() -> None:
    """Compare with the plain way: float32, eager, no cache, parameter by parameter."""


@command.command(epilog="Example: python -m benchmarks train cifar10.json --batch 8 --output training.json")
@click.argument("config", type=FILE)
@bench.DATASET
@bench.CACHE
@bench.BATCH
@click.option("--levels", type=Numbers(int), help="Levels l, such as 1,3; default: all.")
@bench.THREADS
@GAINS
@MEMORY
@REPETITIONS
@bench.JSON
@bench.OUTPUT
def train(
    config: Path,
    dataset: Path | None,
    cache: Path | None,
    batch: int | None,
    levels: list[int] | None,
    threads: int | None,
    gains: bool,
    memory: bool,
    repetitions: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure an iteration, level by level.

    CONFIG is a run's resolved configuration (udpm resolve). The plain way: float32 with a DataLoader, FFT, average and
    Adam updated parameter by parameter and losses read in every step. Ways are measured in turn. LPIPS has random
    weights where images are random.
    """
    from benchmarks.gains import comparison_lines
    from benchmarks.training import compare_training

    resolved, images = bench.training_setting(config, dataset, cache, batch, threads)
    found = compare_training(resolved, images, repetitions, levels, gains=gains, memory=memory)
    bench.report(found, comparison_lines, as_json, output)


@command.command(epilog="Example: python -m benchmarks sample cifar10 --gains --output sampling.json")
@click.argument("experiment")
@CONFIG_FOLDER
@bench.CALL_BATCH
@bench.DEVICE
@click.option("--compile", "compiles", is_flag=True, help="Also the compiled network: minutes.")
@bench.THREADS
@GAINS
@MEMORY
@REPETITIONS
@bench.JSON
@bench.OUTPUT
def sample(
    experiment: str,
    config: Path,
    batch: int | None,
    device: str | None,
    compiles: bool,
    threads: int | None,
    gains: bool,
    memory: bool,
    repetitions: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure a batch of images, from a seed to bytes.

    EXPERIMENT is the name of a file in config/experiments/. Networks are freshly initialized. The plain way: float32
    with an FFT and contiguous weights. Ways are measured in turn.
    """
    from benchmarks.gains import comparison_lines
    from benchmarks.sampling import compare_sampling

    run, where, images = bench.sampling_setting(experiment, config, batch, device, threads)
    found = compare_sampling(run, where, images, repetitions, gains=gains, memory=memory, compiles=compiles)
    bench.report(found, comparison_lines, as_json, output)


@command.command(epilog="Example: python -m benchmarks table sampling.json training.json")
@click.argument("records", nargs=-1, required=True, type=FILE, metavar="RECORD...")
def table(records: tuple[Path, ...]) -> None:
    """Print records (--output, also of udpm bench) as markdown."""
    from benchmarks.figure import render_speeds

    click.echo(render_speeds(records), nl=False)


@command.command(epilog="Example: python -m benchmarks figure sampling.json training.json --output speed")
@click.argument("records", nargs=-1, required=True, type=FILE, metavar="RECORD...")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", help="Seconds to compare.")
@click.option("--output", type=OutputStem(kinds.FIGURE), required=True, metavar="STEM", help="Path without suffix.")
def figure(records: tuple[Path, ...], clock: str, output: Path) -> None:
    """Plot the speedup of every way over the plain one."""
    from benchmarks.figure import plot_speeds

    plot_speeds(records, output, "speedup" if clock == "wall" else "cpu_speedup")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error of the user is reported in one line, with exit code 2."""
    try:
        command.main(arguments, prog_name="python -m benchmarks")
    except UserError as error:
        for mistake in error.mistakes:
            print(f"error: {' '.join(mistake.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
