"""``python -m benchmarks``: how much faster this project draws and trains than the plain way, and by which gain."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import CONFIG, FILE, FOLDER, Numbers, OutputFile, OutputStem, Verbs, Whole
from udpm.core import kinds
from udpm.core.errors import UserError

GAINS = click.option("--gains", is_flag=True, help="Also switch every gain over alone.")
MEMORY = click.option("--memory", is_flag=True, help="Also measure every way's peak memory, in processes of their own.")
REPETITIONS = click.option("--repetitions", type=Whole(1), default=5, show_default=True, help="Of each way.")
THREADS = click.option("--threads", type=Whole(1, 1024), help="CPU threads; default: the configuration's.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the record instead of text.")
OUTPUT = click.option("--output", type=OutputFile(kinds.BENCH), help="Also write the record, .json.")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def command() -> None:
    """Compare with the plain way: float32, eager, no cache, parameter by parameter."""


@command.command(epilog="Example: python -m benchmarks train cifar10.json --batch 8 --output training.json")
@click.argument("config", type=FILE)
@click.option("--dataset", type=FOLDER, help="Prepared data set; default: random images.")
@click.option("--cache", type=FOLDER, help="Its level cache.")
@click.option("--batch", type=Whole(1), help="Images per iteration; default: the configuration's.")
@click.option("--levels", type=Numbers(int), help="Levels l, such as 1,3; default: all.")
@THREADS
@GAINS
@MEMORY
@REPETITIONS
@JSON
@OUTPUT
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
    from benchmarks.training import compare_training
    from udpm.bench.training import BenchmarkData, for_speed
    from udpm.config import RunConfig, read_resolved

    if (dataset is None) != (cache is None):
        raise click.UsageError("--dataset and --cache go together")
    resolved = for_speed(read_resolved(RunConfig, config), batch, threads, random=dataset is None)
    found = compare_training(resolved, BenchmarkData(dataset, cache), repetitions, levels, gains=gains, memory=memory)
    _show(found, as_json, output)


@command.command(epilog="Example: python -m benchmarks sample cifar10 --gains --output sampling.json")
@click.argument("experiment")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option("--batch", type=Whole(1), help="Images per call; default: the experiment's, at most 16 on a CPU.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: the experiment's.")
@click.option("--compile", "compiles", is_flag=True, help="Also the compiled network: minutes.")
@THREADS
@GAINS
@MEMORY
@REPETITIONS
@JSON
@OUTPUT
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

    EXPERIMENT is the name of a file in config/experiments/. Networks are freshly initialised. The plain way: float32
    with an FFT and contiguous weights. Ways are measured in turn.
    """
    from benchmarks.sampling import compare_sampling
    from udpm.config import load_experiment, resolve_run
    from udpm.core import devices

    settings = load_experiment(experiment, config)
    how = settings.sampling
    where = devices.configure(device or how.device, threads or how.threads, tf32=how.tf32)
    batch = batch or (how.batch if where.type == "cuda" else min(16, how.batch))
    run = resolve_run(experiment, settings.seeds[0], config)
    found = compare_sampling(run, where, batch, repetitions, gains=gains, memory=memory, compiles=compiles)
    _show(found, as_json, output)


@command.command(epilog="Example: python -m benchmarks table sampling.json training.json")
@click.argument("records", nargs=-1, required=True, type=FILE, metavar="RECORD...")
def table(records: tuple[Path, ...]) -> None:
    """Print records (--output, also of udpm bench) as markdown."""
    from benchmarks.figure import render_speeds

    click.echo(render_speeds(records), nl=False)


@command.command(epilog="Example: python -m benchmarks figure sampling.json training.json --output speed")
@click.argument("records", nargs=-1, required=True, type=FILE, metavar="RECORD...")
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help="Seconds that are compared."
)
@click.option("--output", type=OutputStem(kinds.FIGURE), required=True, metavar="STEM", help="Path without suffix.")
def figure(records: tuple[Path, ...], clock: str, output: Path) -> None:
    """Draw how many times faster than the plain way every way is."""
    from benchmarks.figure import plot_speeds

    plot_speeds(records, output, "speedup" if clock == "wall" else "cpu_speedup")


def _show(found: dict[str, Any], as_json: bool, output: Path | None) -> None:
    """Write a record where that is asked for, and print it, or as text."""
    from benchmarks.gains import comparison_lines
    from udpm.core.arrays import sealed
    from udpm.core.files import write_json

    found = sealed(found)
    if output is not None:
        write_json(output, found)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(comparison_lines(found)))


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake is one line and code 2."""
    try:
        command.main(arguments, prog_name="python -m benchmarks")
    except UserError as error:
        for mistake in error.mistakes:
            print(f"error: {' '.join(mistake.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
