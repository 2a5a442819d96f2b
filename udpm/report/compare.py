"""Runs, sample sets, scores and other images side by side: one table, curves in one figure, images of equal noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from udpm.core.errors import UserError
from udpm.core.identify import what_is
from udpm.core.kinds import FIGURE
from udpm.data.open import open_images
from udpm.metrics.protocol import (
    DRAWING,
    MEASURING,
    calls_per_level,
    comparable,
    facts,
    mark_shared,
    noise_words,
    read_score,
    shared_words,
)
from udpm.report.figures.curves import PANELS, is_logarithmic, levels_of, read_metrics
from udpm.report.figures.style import COLOURS, LEVEL, bare, save, set_logarithmic, tiles
from udpm.report.scores import MATCHED, PATTERNS, SHOWN, shared_of
from udpm.report.table import MISSING, Table, cell
from udpm.runs.layout import Layout
from udpm.runs.records import COMPLETE, read_complete
from udpm.sampling.sample_set import SampleSet, load_samples

IMAGES = 12
"""Images of each subject in the figure."""
NOT_COMPARABLE = "not comparable"
METRICS = {"frechet_distance": "", "kernel_distance": "kernel distance", **SHOWN}
"""Metrics of the table and their columns; the first is called by its label."""


@dataclass(frozen=True)
class Subject:
    """One thing to compare, with the data found for it.

    Attributes:
        name: the shortest end of its path that no other has.
        score: from `read_score`.
        samples: its sample set.
        images: (n, h, w, 3) uint8, the first ones.
        metrics: of its training, a row per logged iteration.
        training: "iterations" and "cpu_seconds" of a finished run.
    """

    name: str
    score: dict[str, Any] | None = None
    samples: SampleSet | None = None
    images: np.ndarray | None = None
    metrics: pd.DataFrame | None = None
    training: dict[str, Any] = field(default_factory=dict)


def compare(paths: Sequence[Path], folder: Path) -> tuple[str, list[str]]:
    """Write the table ``compare``, and where there is something to draw the figures ``curves`` and ``grid``.

    Args:
        paths: runs' folders, sample sets (.npz, or .json of shards), scores, or images of any source. The sample set
            and score of a run or a sample set are found by their places in a folder of results.
        folder: to write to.

    Returns:
        The table as markdown, and the stems of the figures.

    Raises:
        UserError: a path is none of these, or cannot be read.
    """
    names = short_names(paths)
    subjects = [open_subject(path, name) for path, name in zip(paths, names, strict=True)]
    table = compare_table(subjects).write(folder / "compare")
    drawn = {
        "curves": plot_curves_together(subjects, folder / "curves"),
        "grid": plot_images_together(subjects, folder / "grid"),
    }
    for name in (name for name, made in drawn.items() if not made):
        # An earlier comparison may have had it.
        for suffix in FIGURE:
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    return table, [name for name, made in drawn.items() if made]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ, as in "digits/seed0" and "digits/seed1"."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{paths[0]}: is given twice; expected different things to compare")


def open_subject(path: Path, name: str) -> Subject:
    """Open a run's folder, a sample set, a score, or images.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    if (path / "metrics.jsonl").is_file() or (path / COMPLETE).is_file():
        return _open_run(path, name)
    kind = what_is(path) if path.exists() else None
    form = (kind.format if kind is not None else None) or ""
    if form.startswith("udpm-score/"):
        return Subject(name, score=read_score(path))
    if form.startswith("udpm-samples"):
        samples = load_samples(path)
        return Subject(name, _score_of(path, samples), samples, samples.images[:IMAGES])
    if not path.is_dir() and path.suffix.lower() not in (".zip", ".npz"):
        found = "not found" if not path.exists() else str(kind) if kind is not None else "another file"
        raise UserError(f"{path}: {found}; expected a run's folder, a sample set, a score, or images")
    return Subject(name, images=np.asarray(open_images(path)[:IMAGES]))


def _open_run(path: Path, name: str) -> Subject:
    samples, score = None, None
    finished = read_complete(path) if (path / COMPLETE).is_file() else {}
    results, place = _results_of(path, "runs"), path.resolve()
    if results is not None:
        record = Path(Layout(results).sample_record(place.parent.name, place.name.removeprefix("seed")))
        found = load_samples(record) if record.exists() else None
        # A run that was trained further has other weights than the samples.
        if found is not None and found.record.get("weights_sha256") == finished.get("weights_sha256", ""):
            samples, score = found, _score_of(record, found)
    metrics = read_metrics(path / "metrics.jsonl") if (path / "metrics.jsonl").is_file() else None
    training = {key: finished[key] for key in ("iterations", "cpu_seconds") if finished.get(key) is not None}
    return Subject(name, score, samples, None if samples is None else samples.images[:IMAGES], metrics, training)


def _results_of(path: Path, folder: str) -> Path | None:
    """Return the folder of results of a path RESULTS/`folder`/EXPERIMENT/NAME; None for other paths."""
    parents = path.resolve().parents
    return parents[2] if len(parents) > 2 and parents[1].name == folder else None


def _score_of(path: Path, samples: SampleSet) -> dict[str, Any] | None:
    """Return the score of a sample set in a folder of results, if it is of these images."""
    results, place = _results_of(path, "samples"), path.resolve()
    found = None if results is None else Path(Layout(results).scores(place.stem, place.parent.name))
    if found is None or not found.is_file():
        return None
    score = read_score(found)
    return score if score["subject"].get("samples_sha256") == samples.record["sha256"] else None


def compare_table(subjects: Sequence[Subject]) -> Table:
    """Return the table of the subjects' metrics; a score of another protocol than the first one's is not comparable."""
    first = next((subject for subject in subjects if subject.score is not None), None)
    known = [name for name in METRICS if any(_value(subject, name) is not None for subject in subjects)]
    label = "Fréchet distance" if first is None or first.score is None else _label(first.score)
    rows, notes, full = [], [], []
    for subject in subjects:
        differing = _differing(first, subject)
        row = {"": subject.name, "N": cell(_count(subject))}
        for name in known:
            pattern = PATTERNS.get(name, "{:.2f}")
            text = NOT_COMPARABLE if differing else cell(_value(subject, name), pattern)
            row[METRICS[name] or label] = _marked(subject, text) if name == "frechet_distance" else text
        if any(_value(other, MATCHED) is not None for other in subjects):
            row["at equal N"] = _at_equal_n(first, subject)
        row["iterations"] = cell(subject.training.get("iterations"))
        row["CPU seconds"] = cell(subject.training.get("cpu_seconds"), "{:.0f}")
        rows.append(row)
        full.append(_full(subject, differing))
        notes += _notes(subject, first, differing)
    return Table(pd.DataFrame(rows), list(dict.fromkeys(notes)), "Comparison", pd.DataFrame(full))


def _differing(first: Subject | None, subject: Subject) -> list[str]:
    """Return the parts of the protocol, other than N, in which a score differs from the first one."""
    if first is None or first.score is None or subject.score is None:
        return []
    one, other = (dict(comparable(found, MEASURING)) for found in (first.score, subject.score))
    # The label of a distance contains N.
    return [key for key in one if one[key] != other[key] and key not in ("n", "metric")]


def _at_equal_n(first: Subject | None, subject: Subject) -> str:
    value = _value(subject, MATCHED)
    if value is None or subject.score is None:
        return MISSING
    if _differing(first, subject):
        return NOT_COMPARABLE
    return _marked(subject, f"{value:.2f} ({subject.score['metrics'][MATCHED]['n']})")


def _marked(subject: Subject, text: str) -> str:
    """Mark a distance in features that share labels with a loss of the training, unless none is shown."""
    if subject.score is None or text in (MISSING, NOT_COMPARABLE):
        return text
    return mark_shared(text, shared_of(subject.score))


def _notes(subject: Subject, first: Subject | None, differing: list[str]) -> list[str]:
    if subject.score is None:
        return [f"{subject.name}: no score of it found; `udpm score` makes one."]
    if differing and first is not None:
        words = ", ".join(key.replace("_sha256", "").replace("_", " ") for key in differing)
        return [f"{subject.name}: not comparable with {first.name}; these differ: {words}."]
    shared = shared_of(subject.score)
    notes = [] if shared is None else [f"{shared_words(shared)}."]
    if first is not None and (drawn := _drawn_otherwise(first, subject)):
        notes.append(f"{subject.name}: not drawn as {first.name}: {', '.join(drawn)}.")
    if first is not None and _count(subject) != _count(first):
        notes.append(
            "N differs. Distances fall as N grows: compare only those of equal N, in brackets if they are given."
        )
    return notes


def _drawn_otherwise(first: Subject, subject: Subject) -> list[str]:
    """Say in which ways of drawing a sample set differs from the first one, as in "guidance 2.0 instead of 1.0"."""
    if first.score is None or subject.score is None:
        return []
    if {first.score["subject"]["kind"], subject.score["subject"]["kind"]} != {"samples"}:
        return []
    one, other = (dict(comparable(found, DRAWING)) for found in (first.score, subject.score))
    words = {"nfe": "network calls", "classes": "labels of classes"}
    return [
        f"{words.get(key, key.replace('_', ' '))} {other[key]} instead of {one[key]}"
        for key in DRAWING
        if one[key] != other[key]
    ]


def _label(score: dict[str, Any]) -> str:
    return score["metrics"]["frechet_distance"]["label"]


def _value(subject: Subject, name: str) -> float | None:
    return None if subject.score is None else subject.score["metrics"].get(name, {}).get("value")


def _count(subject: Subject) -> int | None:
    if subject.score is not None:
        return subject.score["protocol"]["n"]
    return None if subject.samples is None else len(subject.samples.images)


def _full(subject: Subject, differing: list[str]) -> dict[str, Any]:
    protocol = {} if subject.score is None else dict(comparable(subject.score))
    if subject.score is not None:
        protocol |= {key: facts(subject.score)[key] for key in ("loss_features", "shared_labels")}
    values = {} if subject.score is None else {name: _value(subject, name) for name in subject.score["metrics"]}
    return {"name": subject.name, **subject.training, **values, "differs": " ".join(differing), **protocol}


def plot_curves_together(subjects: Sequence[Subject], stem: Path) -> bool:
    """Plot every recorded loss of several runs: a row for each loss, a column for each level, a colour for each run.

    Returns False, and draws nothing, if no run has recorded one.
    """
    runs = {subject.name: subject.metrics for subject in subjects if subject.metrics is not None}
    columns = [column for metrics in runs.values() for kind in PANELS for column in levels_of(metrics, kind)]
    if not columns:
        return False
    kinds = [kind for kind in PANELS if any(column.startswith(f"{kind}/l") for column in columns)]
    levels = sorted({int(column.rpartition("/l")[2]) for column in columns})
    size = (2.9 * len(levels) + 0.3, min(0.92 * len(kinds) + 0.7, 9.0))
    figure, grid = plt.subplots(len(kinds), len(levels), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for row, kind in zip(grid, kinds, strict=True):
        for axes, level in zip(row, levels, strict=True):
            _plot_panel(axes, runs, kind, level)
        row[0].set_ylabel(PANELS[kind].replace(": ", ":\n"), fontsize=7, rotation=0, ha="right", va="center")
    for axes, level in zip(grid[0], levels, strict=True):
        axes.set_title(f"{LEVEL} = {level}")
    for axes in grid[-1]:
        axes.set_xlabel("iteration", fontsize=7)
    looks = zip(_colours(len(runs)), runs, strict=True)
    lines = [Line2D([], [], color=colour, label=name) for colour, name in looks]
    figure.legend(handles=lines, loc="outside upper center", ncols=2)
    save(figure, stem, pd.concat([metrics.assign(run=name) for name, metrics in runs.items()], ignore_index=True))
    return True


def _plot_panel(axes: Axes, runs: dict[str, pd.DataFrame], kind: str, level: int) -> None:
    column = f"{kind}/l{level}"
    for colour, metrics in zip(_colours(len(runs)), runs.values(), strict=True):
        known = metrics[["iteration", column]].dropna() if column in metrics else pd.DataFrame()
        if len(known):
            axes.plot(known["iteration"], known[column], color=colour, linewidth=1.0)
    axes.tick_params(labelsize=7)
    if not axes.lines:
        # Not invisible: its labels may be those of a row or a column.
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(left=False, labelleft=False, bottom=False)
    elif is_logarithmic(kind, np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])):
        set_logarithmic(axes, "2346")
        axes.tick_params(which="minor", labelsize=7)


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def plot_images_together(subjects: Sequence[Subject], stem: Path) -> bool:
    """Show the first images of several subjects, a row for each; the title says whether they are of the same noise.

    Returns False, and draws nothing, if fewer than two have images.
    """
    shown = [(subject, subject.images) for subject in subjects if subject.images is not None]
    if len(shown) < 2:
        return False
    count = min(IMAGES, *(len(images) for _, images in shown))
    figure, grid, _ = tiles(count, len(shown), 0.8, (1.6, 0.5))
    for cells, (subject, images) in zip(grid, shown, strict=True):
        for axes, image in zip(cells, images, strict=False):
            axes.imshow(image, interpolation="nearest")
            bare(axes)
        cells[0].set_ylabel(subject.name, rotation=0, ha="right", va="center", fontsize=7)
    noises = [_noise(subject) for subject, _ in shown]
    if None not in noises:
        figure.suptitle(f"same noise: {noises[0]}" if len(set(noises)) == 1 else "different noise")
    named = zip((subject.name for subject, _ in shown), noises, strict=True)
    rows = [{"row": name, "images": count, "noise": noise} for name, noise in named]
    save(figure, stem, pd.DataFrame(rows))
    return True


def _noise(subject: Subject) -> str | None:
    """Name the noise of a subject's images and what else they start from; None if unknown."""
    if subject.samples is None or subject.images is None:
        return None
    record, side = subject.samples.record, subject.images.shape[1]
    if record.get("seed") is None and record.get("noise") is None:
        return None
    conditional = "class-conditional" if record.get("classes") else "unconditional"
    levels = (record.get("nfe") or 0) // calls_per_level(record)
    return f"{noise_words(record)}, side {side}, {levels or 'unknown'} levels, {conditional}"
