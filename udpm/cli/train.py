"""From images to weights: ``udpm fetch``, ``prepare``, ``cache``, ``train``, ``status`` and ``clean``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from udpm.cli.options import (
    ANY,
    FILE,
    FOLDER,
    RESULTS,
    SETTINGS,
    Duration,
    OutputFile,
    OutputFolder,
    SharedFolder,
    Verb,
    Whole,
    check,
    usage_error,
)
from udpm.cli.terminal import echo_states
from udpm.core import kinds
from udpm.core.errors import UserError
from udpm.core.files import CIFAR10, EXTRACTOR_WEIGHTS, VGG, expanded, fetch
from udpm.core.files import sha256 as file_sha256
from udpm.core.hub import is_address
from udpm.core.work import StopRequest

FILES = {**EXTRACTOR_WEIGHTS, "vgg": VGG, "cifar10": CIFAR10}
IMAGE_FILES = (".zip", ".npz", ".npy", ".parquet")
"""Suffixes of files of images that `prepare` takes."""


class FileOrAddress(click.Choice):
    """A file that `udpm fetch` knows, or the address of a model on the Hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as text."""
        return str(value) if is_address(value) else super().convert(value, param, ctx)


@click.command(cls=Verb, epilog="Example: udpm fetch inception --folder resources/weights")
@click.argument("file", type=FileOrAddress(list(FILES)), metavar="FILE")
@click.option(
    "--folder",
    type=SharedFolder(),
    help="Folder to write to; default: resources/weights, torchvision's (vgg), resources/cifar10.",
)
@click.option("--sha256", metavar="HEX", help="Required SHA-256; default: the published one, if there is one.")
@click.option("--offline", is_flag=True, help="Only check an existing file; UDPM_OFFLINE=1 does the same.")
def fetch_command(file: str, folder: Path | None, sha256: str | None, offline: bool) -> None:
    """Download weights or a data set in advance, on a machine with network access.

    FILE is inception, dinov2, clip, vgg or cifar10; or hf://OWNER/NAME[@REVISION], a model on the Hugging Face Hub,
    whose weights become OWNER--NAME.safetensors, a file for `weights` of an experiment. An existing file is checked
    and left unchanged.
    """
    if is_address(file):
        _keep_weights(file, folder or Path("resources/weights"), sha256, offline)
        return
    from dataclasses import replace

    wanted = replace(FILES[file], sha256=sha256.lower()) if sha256 else FILES[file]
    path = fetch(wanted, folder or default_folder(file), download=not offline)
    if wanted.sha256:
        click.echo(f"{path}: ok, SHA-256 {wanted.sha256}")
    else:
        click.echo(f"{path}: SHA-256 {file_sha256(path)}; none is published, so pin it with scoring.weights_sha256")


def _keep_weights(address: str, folder: Path, digest: str | None, offline: bool) -> None:
    from udpm.core.hub import keep
    from udpm.runs.records import WEIGHTS

    path = keep(address, WEIGHTS, folder, digest and digest.lower(), offline=offline)
    click.echo(f"{path}: ok, SHA-256 {file_sha256(path)}; `weights: {path}` starts from it")


def default_folder(file: str) -> Path:
    """Return the folder of a file that `udpm fetch` downloads."""
    if file == "vgg":
        from torch import hub

        return Path(hub.get_dir()) / "checkpoints"
    return Path("resources/weights" if file in EXTRACTOR_WEIGHTS else "resources/cifar10")


@click.command(
    cls=Verb,
    epilog="Example: udpm prepare results/configs/datasets/digits.json --output results/datasets/digits, or "
    "udpm prepare flowers.zip --side 64 --classes 5 --output results/datasets/flowers",
)
@click.argument("source", type=ANY)
@click.option("--output", type=OutputFolder(kinds.DATASET), required=True, help="Folder of the data set.")
@click.option("--side", type=Whole(1), help="SOURCE is images; side of the prepared ones in pixels.")
@click.option("--classes", type=Whole(0, 100_000), help="With --side: number of classes; default: 0, unlabelled.")
@click.option("--holdout", type=Whole(0), help="With --side: images kept out of training, if there is no test split.")
@click.option("--workers", type=Whole(1, 1024), help="Processes that decode and resize; default: one per core.")
def prepare_command(
    source: Path, output: Path, side: int | None, classes: int | None, holdout: int | None, workers: int | None
) -> None:
    """Convert images to a data set: checked, of one size, memory-mapped.

    SOURCE is a data set's resolved configuration (udpm resolve --dataset NAME), or with --side the images: a folder or
    .zip of files, an .npz or .npy, or Parquet files. The same command resumes an interrupted preparation; a finished
    one is left unchanged.
    """
    stop = StopRequest.install()

    from udpm.config import DatasetConfig, read_resolved
    from udpm.config.validation import validate
    from udpm.data.prepare import prepare

    if side is not None:
        images = {"source": "folder", "path": str(source), "side": side}
        resolved = validate(DatasetConfig, images | {"classes": classes or 0, "holdout": holdout or 0}, "options")
    elif classes is not None or holdout is not None:
        raise usage_error("--classes and --holdout are for images, with --side")
    elif source.is_dir() or source.suffix.lower() in IMAGE_FILES:
        raise UserError(f"{source}: not a resolved configuration; give --side N with images")
    else:
        resolved = read_resolved(DatasetConfig, source)
    paths = {key: getattr(resolved, key) for key in ("path", "labels")}
    check({key: path and expanded(path, key) for key, path in paths.items()})
    prepare(resolved, output, workers, stop)


@click.command(cls=Verb, epilog="Example: udpm cache results/datasets/digits --output results/caches/digits")
@click.argument("dataset", type=FOLDER)
@click.option("--output", type=OutputFolder(kinds.CACHE), required=True, help="Folder of the cache, replaced whole.")
def cache_command(dataset: Path, output: Path) -> None:
    """Write the downsampled levels of a prepared data set, as exact integer block sums."""
    from udpm.data.levels import write_cache

    sides = write_cache(dataset, output)
    click.echo(f"{output}: {len(sides)} levels, of side {', '.join(map(str, sides))}")


@click.command(
    cls=Verb,
    epilog="Example: udpm train results/configs/digits/seed0.json --dataset results/datasets/digits "
    "--cache results/caches/digits --run results/runs/digits/seed0",
)
@click.argument("config", type=FILE)
@click.option("--dataset", type=FOLDER, help="Prepared data set.  [required except for a dry run]")
@click.option("--cache", type=FOLDER, help="Its level cache.  [required except for a dry run]")
@click.option("--run", type=OutputFolder(kinds.RUN), help="The run's folder.  [required except for a dry run]")
@SETTINGS
@click.option("--dry-run", is_flag=True, help="Show what would be trained and its cost; write nothing.")
@click.option("--max-minutes", type=Duration(), help="Save the state and exit with code 75 after this time.")
@click.option("--allow-world-size-change", is_flag=True, help="Resume a run with another number of processes.")
@click.option(
    "--stale-after",
    "stale",
    type=Duration(above=True),
    default=60,
    help="Seconds without a heartbeat after which another trainer in the folder counts as dead.",
)
def train_command(
    config: Path,
    dataset: Path | None,
    cache: Path | None,
    run: Path | None,
    settings: tuple[str, ...],
    dry_run: bool,
    **how: Any,
) -> None:
    """Train a model.

    CONFIG is a run's resolved configuration (udpm resolve). Values of --set replace values in it; the run's
    config.json records them. The same command resumes an interrupted run, with the same weights as without the
    interruption. SIGTERM, SIGUSR1 and Ctrl-C save the state and exit with code 75.
    """
    stop = StopRequest.install()
    from udpm.config import RunConfig, read_resolved

    resolved = read_resolved(RunConfig, config)
    if settings:
        from udpm.config.idle import idle_notes
        from udpm.config.overrides import override, read_settings
        from udpm.runs.config_guard import name_changed

        changes = read_settings(RunConfig, settings)
        changed = override(RunConfig, resolved.model_dump(), changes, str(config))
        resolved = name_changed(resolved, changed, changes)
        for note in idle_notes(resolved, changes):
            click.echo(note, err=True)
    if dry_run:
        check({"weights": resolved.weights})
        from udpm.data.levels import open_levels

        levels = open_levels(dataset, cache, resolved.process.levels) if dataset and cache else None
        if resolved.training == "imported":
            raise UserError(f"{resolved.experiment}: training is imported; nothing to train")
        from udpm.training.dryrun import describe_run
        from udpm.training.trackers.follow import check_installed

        check_installed(resolved.training.trackers)
        click.echo(describe_run(resolved, levels, run), nl=False)
        return
    dataset, cache, run = _given("--dataset", dataset), _given("--cache", cache), _given("--run", run)
    check({"weights": resolved.weights})
    from udpm.runs.attempts import attempted

    # Imports and files may fail, so record the attempt first.
    with attempted(run, resolved, how["allow_world_size_change"]) as attempt:
        from udpm.data.levels import open_levels
        from udpm.training.trainer import train

        train(resolved, open_levels(dataset, cache, resolved.process.levels), run, stop, attempt=attempt, **how)


def _given(name: str, value: Path | None) -> Path:
    if value is None:
        raise usage_error(f"Missing option '{name}'.")
    return value


@click.command(cls=Verb, epilog="Example: udpm status --results results")
@click.argument("runs", nargs=-1, type=FOLDER, metavar="[RUN]...")
@click.option("--results", type=RESULTS, help="Add all runs in the folder runs/ of this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; times and ages in seconds.")
def status_command(runs: tuple[Path, ...], results: Path | None, as_json: bool) -> None:
    """Show the status of training runs, from the files in their folders.

    \b
    running     a trainer is at work
    stalled     its heartbeat has stopped, or it no longer writes metrics
    stopped     no trainer; the same `udpm train` resumes from the checkpoint
    waiting     training has not begun
    failed      the last attempt failed; the note gives the reason
    complete    the weights exist
    unreadable  one of its files cannot be read; other runs are still shown
    """
    from udpm.runs.layout import Layout
    from udpm.runs.records import is_run
    from udpm.runs.status import read_status, read_statuses, render_statuses, statuses_json

    found = list(runs)
    if results is not None:
        in_results = [folder for folder in Layout(results).found(Layout(results).runs + "/*/*") if is_run(folder)]
        if not in_results:
            raise UserError(f"{results}: no runs found; expected folders like {Layout(results).run('digits', 0)}")
        found += in_results
    if not found:
        raise usage_error("give RUN folders, or --results")
    different = list(dict.fromkeys(found))
    statuses = read_statuses(different) if len(different) > 1 else [read_status(different[0])]
    if as_json:
        click.echo(statuses_json(statuses), nl=False)
    else:
        echo_states(render_statuses(statuses))


@click.command(cls=Verb, epilog="Example: udpm clean results")
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="FOLDER...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean_command(folders: tuple[Path, ...], yes: bool) -> None:
    """Remove checkpoints of finished runs.

    FOLDER is a run's folder, or a folder of results with runs. Shows how much space each finished run would free, and
    asks for confirmation. A run is finished if its weights match complete.json. Other runs are not changed, and links
    are not followed.

    A run without checkpoints stays complete, but can no longer be extended to more iterations.
    """
    from udpm.runs.records import Leftovers, find_runs, leftovers, remove_leftovers

    found: list[Leftovers] = []
    for folder in folders:
        runs = [leftovers(run) for run in find_runs(folder)]
        if [one.run for one in runs] == [folder] and runs[0].kept:
            raise UserError(f"{folder}: nothing removed: {runs[0].kept}")
        found += [one for one in runs if one.run not in [other.run for other in found]]
    for one in found:
        what = one.kept or (f"checkpoints, {_megabytes(one.size)}" if one.files else "no checkpoints")
        click.echo(f"{one.run}: {'kept: ' if one.kept else ''}{what}")
    total = sum(one.size for one in found)
    if not any(one.files for one in found):
        click.echo("nothing to remove")
        return
    try:
        agreed = yes or click.confirm(f"Remove {_megabytes(total)}? These runs can then no longer be extended.")
    except click.Abort:
        raise UserError("nothing removed: no answer; pass --yes") from None
    if not agreed:
        click.echo("nothing removed")
        return
    for one in found:
        remove_leftovers(one)
    click.echo(f"removed {_megabytes(total)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


@click.command(cls=Verb, epilog="Example: udpm average results/runs/digits/seed0 --width 0.12 --output a.safetensors")
@click.argument("run", type=FOLDER)
@click.option(
    "--width", type=float, required=True, help="Standard deviation of the averaged iterations / their number."
)
@click.option("--output", type=OutputFile(kinds.AVERAGE, ".safetensors"), required=True, help="Weight file to write.")
@click.option("--at", type=Whole(1), help="Iteration of the snapshot at which the average ends; default: the last.")
def average_command(run: Path, width: float, output: Path, at: int | None) -> None:
    """Reconstruct an average of a run's weights after training, of any width.

    RUN is the folder of a run with training.posthoc_average, finished or not. Its snapshots are combined to the average
    that training would have tracked for this width, above 0 and at most 0.25. `udpm sample` takes the result.
    """
    from udpm.training.posthoc import average_run

    click.echo(average_run(run, width, output, at))
