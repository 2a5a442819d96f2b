"""``udpm bench``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import FILE, FOLDER

SIDES = ("8", "16", "32", "64", "128", "256")
"""That three levels of a cache can halve."""

RANDOM_IMAGES = 1000


@click.group()
def command() -> None:
    """Measure speed on this machine."""


@command.command(epilog="Example: udpm bench data resources/ffhq.zip --side 64")
@click.argument("images", type=click.Path(path_type=Path), required=False)
@click.option("--side", type=click.Choice(SIDES), default="32", show_default=True, help="Side of the prepared images.")
@click.option("--workers", type=click.IntRange(1), help="Processes that decode and resize; default: one for each core.")
@click.option("--limit", type=click.IntRange(1), default=20000, show_default=True, help="Images prepared at most.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images that are fed at once.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of the feeding.")
def data(
    images: Path | None, side: str, workers: int | None, limit: int, batch: int, device: str, threads: int
) -> None:
    """How fast images are prepared and training is fed, and what limits the preparation.

    IMAGES is a folder of images or a .zip of one; without it only the feeding is measured. Nothing is kept.
    """
    if images is not None:
        from udpm.data.benchmark import bench_preparation

        for line in bench_preparation(str(images), int(side), workers or len(os.sched_getaffinity(0)), limit):
            click.echo(line)
    from udpm.core import runtime
    from udpm.data.feeding import bench_feeding

    for line in bench_feeding(int(side), batch, runtime.configure(device, threads)):
        click.echo(line)


BASELINE = click.option("--baseline", is_flag=True, help="Measure against the same work done the plain way.")
REPETITIONS = click.option(
    "--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Of each way, with --baseline."
)
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads; default: the configuration's.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the record instead of a table, with --baseline.")


@command.command(
    epilog="Example: udpm bench train results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--cache results/caches/digits"
)
@click.argument("config", type=FILE)
@click.option("--dataset", type=FOLDER, help="Prepared data set; default: random images.")
@click.option("--cache", type=FOLDER, help="Its level cache.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="Iterations measured.")
@click.option("--batch", type=click.IntRange(1), help="Images per iteration; default: the configuration's.")
@THREADS
@BASELINE
@REPETITIONS
@JSON
def train(
    config: Path,
    dataset: Path | None,
    cache: Path | None,
    iterations: int,
    batch: int | None,
    threads: int | None,
    baseline: bool,
    repetitions: int,
    as_json: bool,
) -> None:
    """How fast a run trains, and where its time goes: data, both players' steps, LPIPS, optimisers, averages.

    CONFIG is a run's resolved configuration (udpm resolve). With --baseline: how much faster an iteration is than in
    float32 with a DataLoader, FFT, an average updated parameter by parameter and losses read in every step; both are
    measured in turn. LPIPS has random weights where images are random. Nothing is kept.
    """
    import tempfile

    from udpm.config import RunConfig, read_resolved
    from udpm.data.cache import open_levels
    from udpm.data.feeding import random_levels
    from udpm.training.benchmark import bench_training, compare_training, for_speed

    if (dataset is None) != (cache is None):
        raise click.UsageError("--dataset and --cache belong together")
    resolved = for_speed(read_resolved(RunConfig, config), batch, threads, random=dataset is None)
    side, count = resolved.dataset.side, resolved.process.levels
    with tempfile.TemporaryDirectory() as folder:
        if dataset is None or cache is None:
            levels = random_levels(Path(folder), side, count, RANDOM_IMAGES)
        else:
            levels = open_levels(dataset, cache, count)
        if baseline:
            _tell(compare_training(resolved, levels, repetitions), as_json)
            return
        for line in bench_training(resolved, levels, iterations):
            click.echo(line)


@command.command(epilog="Example: udpm bench score results/configs/digits/scoring.json --extractor x.pt --side 32")
@click.argument("config", type=FILE)
@click.option("--extractor", type=FILE, help="Its TorchScript file; default: what the configuration names.")
@click.option("--side", type=click.IntRange(1), default=32, show_default=True, help="Side of the images.")
def score(config: Path, extractor: Path | None, side: int) -> None:
    """How fast features are taken of images: resizing, the network, and both together.

    CONFIG is a resolved scoring section (udpm resolve --part scoring). Nothing is kept.
    """
    from udpm.config import Scoring, read_resolved
    from udpm.core import runtime
    from udpm.scoring.benchmark import bench_extractor
    from udpm.scoring.extractor import open_extractor

    scoring = read_resolved(Scoring, config)
    network = open_extractor(scoring, extractor, runtime.configure(scoring.device, scoring.threads))
    for line in bench_extractor(network, side, scoring.batch):
        click.echo(line)


@command.command(epilog="Example: udpm bench sample cifar10 --output results/speed/cifar10.json")
@click.argument("experiment")
@click.option("--config", type=FOLDER, default="config", show_default=True, help="Folder of the configuration.")
@click.option(
    "--batch", type=click.IntRange(1), help="Images per call; default: the experiment's, at most 16 on a CPU."
)
@click.option("--seconds", type=click.FloatRange(0), default=5.0, show_default=True, help="Measured for at the least.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: the experiment's.")
@click.option("--output", type=FILE, help="Also write the record, .json, for the paper's run-time table.")
@THREADS
@BASELINE
@REPETITIONS
@JSON
def sample(
    experiment: str,
    config: Path,
    batch: int | None,
    seconds: float,
    device: str | None,
    output: Path | None,
    threads: int | None,
    baseline: bool,
    repetitions: int,
    as_json: bool,
) -> None:
    """How many images a second are drawn, against one step of a network at the full side.

    EXPERIMENT is the name of a file in config/experiments/. Networks are freshly initialised: neither weights nor data
    are needed. With --baseline instead: how much faster a batch is drawn, from a seed to bytes, than in float32 with an
    FFT and contiguous weights; both are measured in turn.
    """
    from udpm.config import load_experiment, resolve_run
    from udpm.core import runtime
    from udpm.core.files import write_json
    from udpm.sampling.benchmark import bench_sampling, compare_sampling

    settings = load_experiment(experiment, config)
    where = runtime.configure(device or settings.sampling.device, threads or settings.sampling.threads)
    batch = batch or (settings.sampling.batch if where.type == "cuda" else min(16, settings.sampling.batch))
    run = resolve_run(experiment, settings.seeds[0], config)
    if baseline:
        record = compare_sampling(run, where, batch, repetitions)
        _tell(record, as_json)
    else:
        record = bench_sampling(run, where, batch, seconds)
        click.echo(
            f"{record['images_per_second']:.4g} images/s, {record['steps_per_second']:.4g} full-side steps/s, batches "
            f"of {batch}, {record['device']}"
        )
    if output is not None:
        write_json(output, record)


def _tell(record: dict[str, Any], as_json: bool) -> None:
    """Print a comparison as its record, or as a table."""
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(f"{record['of']} of {record['experiment']}, batch {record['batch']}, {record['device']}")
    best = record["ceilings"]
    click.echo(
        f"  ceilings: {best['float32_flops'] / 1e9:.4g} GFLOP/s float32, {best['bfloat16_flops'] / 1e9:.4g} bfloat16, "
        f"copy {best['copy_bytes'] / 1e9:.4g} GB/s"
    )
    groups = {"": record["ways"]} if "ways" in record else {f"l = {level}": v for level, v in record["levels"].items()}
    for group, ways in groups.items():
        for name, found in ways.items():
            click.echo(f"  {group:6}{name:14}{_line(found)}")
    for name, found in record.get("iteration", {}).items():
        click.echo(
            f"  mean  {name:14}{found['seconds']:8.3f} s  ×{found['speedup']:.2f}; CPU {found['cpu_seconds']:.3f} s  "
            f"×{found['cpu_speedup']:.2f}"
        )


def _line(found: dict[str, Any]) -> str:
    seconds, cpu = found["seconds"], found["cpu_seconds"]
    return (
        f"{seconds['median']:8.3f} s ({seconds['low']:.3f}–{seconds['high']:.3f})  ×{found['speedup']['median']:.2f}; "
        f"CPU {cpu['median']:.3f} s ({cpu['low']:.3f}–{cpu['high']:.3f})  ×{found['cpu_speedup']['median']:.2f}"
    )
