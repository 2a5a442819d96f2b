"""``udpm bench``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from udpm.cli.options import (
    ANY,
    CONFIG_FOLDER,
    FILE,
    FOLDER,
    Duration,
    OutputFile,
    Verbs,
    Whole,
    check,
    complete_configs,
    usage_error,
)
from udpm.core import devices, kinds
from udpm.core.files import write_json

if TYPE_CHECKING:
    import torch

    from udpm.bench.networks import BenchmarkData
    from udpm.config import RunConfig

SIDES = ("8", "16", "32", "64", "128", "256")
"""Sides that three levels of a cache can halve."""

THREADS = click.option("--threads", type=Whole(1, 1024), help="CPU threads; default: the configuration's.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the record instead of text.")
OUTPUT = click.option("--output", type=OutputFile(kinds.BENCH), help="Also write the record, .json.")
DATASET = click.option("--dataset", type=FOLDER, help="Prepared data set; default: random images.")
CACHE = click.option("--cache", type=FOLDER, help="Its level cache.")
BATCH = click.option("--batch", type=Whole(1), help="Images per iteration; default: the configuration's.")
CALL_BATCH = click.option(
    "--batch", type=Whole(1), help="Images per call; default: the experiment's, at most 16 on a CPU."
)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: the experiment's.")


@click.group(cls=Verbs)
def bench_command() -> None:
    """Measure speed on this machine."""


@bench_command.command(epilog="Example: udpm bench data resources/ffhq.zip --side 64")
@click.argument("images", type=ANY, required=False)
@click.option("--side", type=click.Choice(SIDES), default="32", help="Side of the prepared images.")
@click.option(
    "--workers",
    type=Whole(1, 1024),
    help="Processes that decode and resize, at most one for 512 images; default: one for each core.",
)
@click.option("--limit", type=Whole(1), default=20000, help="Largest number of images to prepare.")
@click.option("--batch", type=Whole(1), default=64, help="Images per training batch.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--threads", type=Whole(1, 1024), default=1, help="CPU threads for feeding.")
@JSON
@OUTPUT
def data(
    images: Path | None, side: str, workers: int | None, limit: int, batch: int, device: str, threads: int, **shown: Any
) -> None:
    """Measure how fast images are prepared, what limits it, and how fast training is fed.

    IMAGES is a folder of images or a .zip of one; without it, only feeding is measured. Nothing is kept.
    """
    from udpm.bench.data import (
        IMAGES,
        bench_feeding,
        bench_preparation,
        feeding_lines,
        open_for_bench,
        preparation_lines,
    )
    from udpm.bench.measure import ceilings, record

    where = devices.configure(device, threads)
    # Open the images first: measuring the ceilings takes seconds, and the path may be wrong.
    opened = None if images is None else open_for_bench(str(images), int(side))
    best, found = ceilings(where), {}
    if opened is not None:
        found = bench_preparation(*opened, workers or len(os.sched_getaffinity(0)), limit, best)
    rows = found.pop("rows", []) + bench_feeding(int(side), batch, where, best)
    made = record("data", where, best, rows, **found | {"side": int(side), "batch": batch, "fed": IMAGES})
    report(made, lambda made: [*(preparation_lines(made) if images else []), *feeding_lines(made)], **shown)


@bench_command.command(
    epilog="Example: udpm bench train results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--cache results/caches/digits"
)
@click.argument("config", type=FILE)
@DATASET
@CACHE
@click.option("--iterations", type=Whole(1), default=50, help="Iterations to measure.")
@BATCH
@THREADS
@JSON
@OUTPUT
def train(config: Path, iterations: int, as_json: bool, output: Path | None, **setting: Any) -> None:
    """Measure how fast a run trains, and where its time goes: data, both players' steps, LPIPS, optimizers, averages.

    CONFIG is a run's resolved configuration (udpm resolve). An adversarial loss that starts late is measured as if it
    had started. With random images LPIPS has random weights too. Nothing is kept.
    """
    from udpm.bench.networks import bench_training, training_lines

    resolved, images = training_setting(config, **setting)
    with images.opened(resolved) as levels:
        report(bench_training(resolved, levels, iterations), training_lines, as_json, output)


@bench_command.command(epilog="Example: udpm bench score results/configs/digits/scoring.json --extractor x.pt")
@click.argument("config", type=FILE)
@click.option("--extractor", type=FILE, help="TorchScript file, executed as a program; default: the configuration's.")
@click.option("--side", type=Whole(1), default=32, help="Side of the images.")
@JSON
@OUTPUT
def score(config: Path, extractor: Path | None, side: int, as_json: bool, output: Path | None) -> None:
    """Measure how fast features are extracted: resizing, the network, and both together.

    CONFIG is a resolved scoring section (udpm resolve --part scoring). Nothing is kept.
    """
    from udpm.bench.networks import bench_extractor, scoring_lines
    from udpm.config import Scoring, read_resolved
    from udpm.metrics.extractor import extractor_files, open_extractor

    scoring = read_resolved(Scoring, config)
    check(extractor_files(scoring))
    network = open_extractor(scoring, extractor, devices.configure(scoring.device, scoring.threads))
    report(bench_extractor(network, side, scoring.batch), scoring_lines, as_json, output)


@bench_command.command(epilog="Example: udpm bench sample cifar10 --output results/speed/cifar10.json")
@click.argument("experiment", shell_complete=complete_configs("experiments"))
@CONFIG_FOLDER
@CALL_BATCH
@click.option("--seconds", type=Duration(), default=5.0, help="Approximate duration.")
@DEVICE
@click.option("--output", type=OutputFile(kinds.BENCH), help="Also write the record, .json, for the run-time table.")
@THREADS
@JSON
def sample(seconds: float, as_json: bool, output: Path | None, **setting: Any) -> None:
    """Measure images per second, and those of one step of a network at the full side.

    EXPERIMENT is the name of a file in config/experiments/. Networks are freshly initialized: this needs neither
    weights nor data.
    """
    from udpm.bench.networks import bench_sampling, sampling_lines

    run, where, images = sampling_setting(**setting)
    report(bench_sampling(run, where, images, seconds), sampling_lines, as_json, output)


def training_setting(
    config: Path, dataset: Path | None, cache: Path | None, batch: int | None, threads: int | None
) -> tuple[RunConfig, BenchmarkData]:
    """Return the configuration and the data to measure training with."""
    from udpm.bench.networks import BenchmarkData, for_speed
    from udpm.config import RunConfig, read_resolved

    if (dataset is None) != (cache is None):
        raise usage_error("--dataset and --cache go together")
    resolved = for_speed(read_resolved(RunConfig, config), batch, threads, random=dataset is None)
    return resolved, BenchmarkData(dataset, cache)


def sampling_setting(
    experiment: str, config: Path, batch: int | None, device: str | None, threads: int | None
) -> tuple[RunConfig, torch.device, int]:
    """Return the configuration, the device and the batch to measure sampling with."""
    from udpm.config import load_experiment, resolve_run

    settings = load_experiment(experiment, config)
    sampling = settings.sampling
    where = devices.configure(device or sampling.device, threads or sampling.threads, tf32=sampling.tf32)
    batch = batch or (sampling.batch if where.type == "cuda" else min(16, sampling.batch))
    return resolve_run(experiment, settings.seeds[0], config), where, batch


def report(
    found: dict[str, Any], lines: Callable[[dict[str, Any]], list[str]], as_json: bool, output: Path | None
) -> None:
    """Write a record if an output is given, and print it as JSON or text."""
    from udpm.core.arrays import sealed

    found = sealed(found)
    if output is not None:
        write_json(output, found)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))
