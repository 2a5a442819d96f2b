"""From a folder of images to samples in one call: write a study, measure, and run its workflow."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from udpm.config.load import load_experiment, load_study, resolve_run
from udpm.config.validation import read_yaml
from udpm.core.errors import UserError
from udpm.core.files import exclusive, write_json, write_text
from udpm.core.kinds import STUDY_RECORD
from udpm.core.reading import read_text
from udpm.core.work import Progress, StopRequest, duration
from udpm.data.store import RECORD, open_store
from udpm.runs.layout import Layout
from udpm.runs.records import read_metrics_lines
from udpm.study.budget import LEAST, Speed, iterations_in, length_of, measure, seconds_after_training
from udpm.study.pictures import (
    FEWEST_IMAGES,
    Asked,
    Found,
    experiment_file,
    experiment_text,
    look_at,
    name_of,
    read_study,
    sample_count,
    scored_count,
    write,
)
from udpm.study.workflow import check_packages, snakemake

Say = Callable[[str], None]
JOBS_OF_PREPARATION = 4
"""Starts of Python before the measurement: Snakemake, and jobs that resolve, prepare and cache."""
LONGEST_JOB_START = 10.0
TAIL = 1 << 16
TEXT_BYTES = 1 << 20
SEED = 0
SHOWN = 3
"""Largest number of images to name that are left out."""


def run(folder: Path, asked: Asked, say: Say) -> None:
    """Do everything, or continue: what is done stays, and no speed is measured twice.

    Args:
        folder: of the study, new, empty, or of the same call before.
        asked: the call.
        say: prints a line.

    Raises:
        UserError: a mistake in the images or the options; nothing is written then.
        StoppedEarly: interrupted; the same call continues.
    """
    stop, started = StopRequest.install(), time.monotonic()
    check_packages()
    new = not (folder / STUDY_RECORD).exists()
    if new:
        record = _begin(folder, asked, say)
    else:
        record = read_study(folder)
        _check_same(folder, asked, record)
        say(f"{folder}: continues")
    name, layout = record["name"], Layout(_results(folder))
    with exclusive(folder / STUDY_RECORD, "running this study"):
        if record["iterations"] is None or not (folder / layout.dataset_record(name)).exists():
            say("prepare the images and their levels")
            snakemake(folder, [layout.dataset_record(name), layout.cache_record(name)], stop)
        _check_prepared(folder / layout.dataset(name), record, say)
        # An experiment that was edited, or was written before a kill, has its iterations.
        if record["iterations"] is None and _is_unedited(folder, record):
            record = _measure(folder, record, started, say)
        iterations = resolve_run(name, SEED, folder / "config").training.iterations
        say(f"train for {iterations} iterations; pictures: {folder / layout.run(name, SEED) / 'previews'}")
        with _Training(folder / layout.run(name, SEED), iterations) as training:
            snakemake(folder, [layout.completion(name, SEED)], stop, training.look)
        say("sample, score and draw" if _is_scored(folder, name) else "sample and draw")
        snakemake(folder, _targets(folder, name, layout), stop)
    _finish(folder, record, started, say)


def _begin(folder: Path, asked: Asked, say: Say) -> dict[str, Any]:
    device = asked.device
    if device != "cpu":
        from udpm.core import devices

        device = devices.configure(device, 1).type
    source = Path(asked.source)
    found = look_at(source, asked.side, asked.classes, device == "cuda")
    say(f"{source}: {found.describe()}")
    length = None if asked.iterations is None else length_of(asked.iterations)
    record = write(folder, name_of(source), found, asked, device, length)
    say(f"{folder}: a study, to train on {device}; its settings are in {experiment_file(folder, record['name'])}")
    if record["extractor"] is None:
        say("no scores: they need pip install 'udpm[features]'")
    return record


def _check_same(folder: Path, asked: Asked, record: dict[str, Any]) -> None:
    before, now = record["asked"], asked.model_dump()
    differing = [key for key, value in now.items() if before.get(key) != value]
    if "source" in differing:
        raise UserError(f"{folder}: was begun with the images of {before['source']}; choose another --output")
    if differing:
        was, given = (_options(differing, call) for call in (before, now))
        raise UserError(
            f"{folder}: was begun {was}, not {given}; choose another --output, or edit "
            f"{experiment_file(folder, record['name'])} and give the first command again"
        )


def _options(names: list[str], call: dict[str, Any]) -> str:
    given = [f"--{name} {call[name]}" for name in names if call.get(name) is not None]
    return f"with {' '.join(given)}" if given else f"without {' '.join(f'--{name}' for name in names)}"


def _check_prepared(dataset: Path, record: dict[str, Any], say: Say) -> None:
    """Show which images were left out, and refuse to train on too few.

    Raises:
        UserError: too few were prepared.
    """
    prepared = open_store(dataset).record
    skipped = sorted((image["name"], image["why"]) for image in prepared.get("skipped", []))
    if not skipped:
        return
    shown = "; ".join(f"{name}: {why}" for name, why in skipped[:SHOWN])
    more = "; …" if len(skipped) > SHOWN else ""
    left_out = f"{len(skipped)} images are left out ({shown}{more}); all are in {dataset / RECORD}"
    if prepared["count"] < FEWEST_IMAGES:
        raise UserError(
            f"{record['asked']['source']}: {prepared['count']} images are left, training needs {FEWEST_IMAGES} or "
            f"more; {left_out}"
        )
    say(left_out)


def _is_unedited(folder: Path, record: dict[str, Any]) -> bool:
    file = experiment_file(folder, record["name"])
    return read_text(file, "experiment", TEXT_BYTES) == experiment_text(record, None)


def _measure(folder: Path, record: dict[str, Any], started: float, say: Say) -> dict[str, Any]:
    """Measure once, and write the number of iterations to the study."""
    name, found, layout = record["name"], Found(**record["found"]), Layout(folder / _results(folder))
    job = min((time.monotonic() - started) / JOBS_OF_PREPARATION, LONGEST_JOB_START)
    config = resolve_run(name, SEED, folder / "config")
    data = Path(layout.dataset(name)), Path(layout.cache(name))
    speed = Speed(**measure(config, *data, job, record["extractor"]).rounded())
    scored = scored_count(record["found"]) if record["extractor"] else 0
    after = seconds_after_training(speed, sample_count(found.images), scored)
    seconds = record["asked"]["minutes"] * 60 - (time.monotonic() - started) - after
    length = length_of(iterations_in(seconds, speed), speed.after)
    file = experiment_file(folder, name)
    made = record | {"measured": vars(speed), "iterations": length.iterations}
    write_text(file, experiment_text(made, length))
    write_json(folder / STUDY_RECORD, made)
    allowed, rest = duration(60 * record["asked"]["minutes"]), duration(after)
    fits = f"{length.iterations} iterations fit into {allowed}, with {rest} for the rest"
    if length.iterations == LEAST:
        fits = f"{allowed} is too short, so only {LEAST} iterations; the rest takes {rest}"
    say(f"measured {speed.before:.2g} s an iteration, {speed.after:.2g} s with the discriminator: {fits}")
    return made


class _Training:
    """Progress of a training, from its metrics."""

    def __init__(self, run: Path, iterations: int) -> None:
        self._metrics, self._iterations = run / "metrics.jsonl", iterations
        self._done = self._reached()
        self._progress: Progress | None = None

    def __enter__(self) -> _Training:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.__exit__()

    def look(self) -> None:
        """Show what was added."""
        reached = self._reached()
        if reached <= self._done:
            return
        if self._progress is None:
            # The time until the first line is not the training's alone.
            self._progress = Progress(self._iterations, "train", "iteration", reached)
        else:
            self._progress.update(reached - self._done)
        self._done = reached

    def _reached(self) -> int:
        with suppress(UserError):
            if self._metrics.exists():
                lines = [line for line in read_metrics_lines(self._metrics, TAIL) if line]
                return int(lines[-1]["iteration"]) if lines else 0
        return 0


def _results(folder: Path) -> str:
    """Return the study's folder of results, which its user may have changed."""
    file = folder / "config/config.yaml"
    return load_study(read_yaml(file), str(file)).results


def _is_scored(folder: Path, name: str) -> bool:
    return load_experiment(name, folder / "config").scoring is not None


def _targets(folder: Path, name: str, layout: Layout) -> list[str]:
    """Return what is made at the end: the grid, the curves, the page, and the table of scores."""
    figures = [f"{layout.figure(f'{name}/seed{SEED}/{kind}')}.png" for kind in ("samples", "curves")]
    table = [f"{layout.table('scores')}.md"] if _is_scored(folder, name) else []
    return [*figures, layout.overview, *table]


def _finish(folder: Path, record: dict[str, Any], started: float, say: Say) -> None:
    """Show where the results are, and what may follow."""
    name = record["name"]
    made = _targets(folder, name, Layout(folder / _results(folder)))
    for path in made:
        if path.endswith("scores.md"):
            say(read_text(Path(path), "table", TEXT_BYTES).partition("\n\n")[0])
    pages = ", ".join(path for path in made if not path.endswith(".md"))
    say(f"done in {duration(time.monotonic() - started)}: {pages}")
    place = shlex.quote(str(folder))
    say(f"next: cd {place} && snakemake                  # all figures, the latent space among them")
    say(f"      cd {place} && snakemake --profile slurm  # on a cluster")
    say(f"to train longer, or on another device, first edit {experiment_file(folder, name)}")
