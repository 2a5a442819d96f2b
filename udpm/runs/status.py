"""State of training runs and of the points of a sweep, read from their folders alone. Imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved, to_json
from udpm.config.points import LoadedSweep
from udpm.config.validation import Model, Section
from udpm.core.containers import read_header
from udpm.core.errors import UserError
from udpm.core.reading import JSON_BYTES, read_text
from udpm.core.work import duration
from udpm.runs.attempts import PastAttempt, read_attempts
from udpm.runs.config_guard import MUTABLE_KEYS, differences, missing, run_changes
from udpm.runs.layout import Layout
from udpm.runs.lock import STALE_SECONDS, is_dead, name_of, read_owner
from udpm.runs.records import (
    CHECKPOINTS,
    COMPLETE,
    is_run,
    iteration_of,
    numbered,
    read_complete,
    read_metrics_lines,
    read_run_length,
)

QUIET_INTERVALS = 10
"""A living trainer counts as hung after this many intervals between metrics without new ones ..."""
QUIET_AT_LEAST = 300.0
"""... but not before this many seconds, ..."""
QUIET_AT_FIRST = 3600.0
"""... nor before this many if no interval is known yet: compiling and reading take time."""
TAIL = 2**16
"""Bytes to read at the end of ``metrics.jsonl``; a line has about a thousand."""
COLUMNS = ("run", "state", "iteration", "img/s", "left", "checkpoint", "heartbeat", "where", "attempts", "note")


@dataclass(frozen=True)
class RunStatus:
    """State of a run; None marks entries that are unknown or do not apply. Ages and remaining times in seconds.

    Attributes:
        run: its folder.
        state: complete; running; stalled: its trainer sends no heartbeat, or hangs; failed: the last attempt failed,
            and the note says why; stopped: no trainer runs, and a checkpoint exists to resume from; waiting: no
            checkpoint exists yet; unreadable: the note names the file.
        iteration: completed iterations.
        iterations: total; with training.epochs an upper bound until the run is complete.
        images_per_second: in the last line of metrics.
        seconds_left: remaining time at that speed, while it runs.
        checkpoint: iteration of the last one.
        checkpoint_age: its age.
        heartbeat_age: age of the trainer's heartbeat, by the clocks of its node and of this one.
        host: where it trains, or where the last attempt failed or ended abruptly.
        job: its SLURM job on that host.
        attempt: number of SLURM's restarts of that job.
        attempts: number of attempts.
        note: further details.
    """

    run: str
    state: str
    iteration: int | None = None
    iterations: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    checkpoint: int | None = None
    checkpoint_age: float | None = None
    heartbeat_age: float | None = None
    host: str | None = None
    job: str | None = None
    attempt: str | None = None
    attempts: int | None = None
    note: str = ""


def read_statuses(runs: Iterable[Path]) -> list[RunStatus]:
    """Read the current state of runs. An unreadable one is listed with the reason."""
    found = []
    for run in runs:
        try:
            found.append(read_status(run))
        except UserError as error:
            found.append(RunStatus(str(run), "unreadable", note=" ".join(str(error).split())))
    return found


def read_status(run: Path) -> RunStatus:
    """Read the current state of a run.

    Raises:
        UserError: the folder is no run's, or its records cannot be read.
    """
    if not is_run(run):
        raise UserError(f"{run}: not a run's folder, which contains config.json, such as results/runs/digits/seed0")
    now, lines, owner = time.time(), _last_lines(run / "metrics.jsonl"), read_owner(run)
    training = read_run_length(run)
    done = {"iteration": lines[-1]["iteration"] if lines else None, "iterations": training.get("iterations")}
    done["images_per_second"] = lines[-1].get("images_per_second") if lines else None
    checkpoint = _last_checkpoint(run, now)
    attempts = read_attempts(run)
    known = {**done, **checkpoint, "attempts": len(attempts) or None}
    if (run / COMPLETE).exists():
        total = read_complete(run).get("iterations")
        if not _is_extended(total, training):
            return RunStatus(str(run), "complete", **known | {"iteration": total, "iterations": total})
    if owner is not None and not is_dead(owner):
        return _at_work(run, owner, lines, known, training, now)
    failure, last = _last_failure(run), attempts[-1] if attempts else PastAttempt()
    # A file in failures/ may explain the state: older runs have no record of attempts.
    not_finite = last.ended != "failed" or "is not finite" in last.reason
    if failure is not None and failure[0] >= (checkpoint.get("checkpoint") or 0) and not_finite:
        return RunStatus(str(run), "failed", **known | _where(last.record), note=failure[1])
    if last.ended == "failed":
        note = " ".join(last.reason.removeprefix(f"{run}: ").split())
        return RunStatus(str(run), "failed", **known | _where(last.record), note=note)
    note = ""
    if last.ended is None and last.record:
        note, known = _silent(last, now), known | _where(last.record)
    elif owner is not None:
        note = f"{name_of(owner)} ended abruptly"
    return RunStatus(str(run), "stopped" if checkpoint else "waiting", **known, note=note)


def render_statuses(statuses: list[RunStatus]) -> str:
    """Format a table with a row for each run."""
    rows = [_row(status) for status in statuses]
    used = [column for column in range(len(COLUMNS)) if any(row[column] for row in rows)]
    return aligned([[row[column] for column in used] for row in (COLUMNS, *rows)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of equal length as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)


def statuses_json(statuses: list[RunStatus]) -> str:
    """Format the same as a JSON list, in full precision."""
    return json.dumps([asdict(status) for status in statuses], indent=2, ensure_ascii=False) + "\n"


def _at_work(
    run: Path, owner: dict[str, Any], lines: list[dict], known: dict[str, Any], training: dict[str, Any], now: float
) -> RunStatus:
    """Return the state of a run whose owner is not known to be dead."""
    age = max(0.0, now - owner.get("time", 0.0))
    known = known | {"heartbeat_age": age} | _where(owner)
    quiet = _quiet(run, owner, now)
    if age > STALE_SECONDS:
        return RunStatus(str(run), "stalled", **known, note=f"no heartbeat from {name_of(owner)}")
    if quiet > _patience(lines):
        note = f"{name_of(owner)} is alive, but has written no metrics for {duration(quiet)}"
        return RunStatus(str(run), "stalled", **known, note=note)
    return RunStatus(str(run), "running", **known, seconds_left=_seconds_left(known, training))


def _silent(last: PastAttempt, now: float) -> str:
    """Describe an attempt that recorded no end and does not own the folder."""
    who = " ".join(name_of(last.record).split())
    if is_dead(last.record):
        return f"{who} ended abruptly"
    began = duration(max(0.0, now - last.record["began"]))
    what = "was waiting for another trainer to end" if last.waits else "has not recorded an end"
    return f"{who} began {began} ago and {what}"


def _where(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record.get(key) for key in ("host", "job", "attempt")}


def _is_extended(total: Any, training: dict[str, Any]) -> bool:
    """Return whether a run that finished after `total` iterations is being extended to more."""
    wanted = training.get("iterations")
    return isinstance(total, int) and isinstance(wanted, int) and not training.get("epochs") and wanted > total


def _quiet(run: Path, owner: dict[str, Any], now: float) -> float:
    """Return the seconds since the trainer began or last wrote metrics."""
    metrics = run / "metrics.jsonl"
    written = metrics.stat().st_mtime if metrics.is_file() else 0.0
    return now - max(written, owner.get("since") or owner.get("time", 0.0))


def _patience(lines: list[dict]) -> float:
    if len(lines) < 2:
        return QUIET_AT_FIRST
    interval = lines[-1].get("seconds", 0.0) - lines[-2].get("seconds", 0.0)
    return max(QUIET_AT_LEAST, QUIET_INTERVALS * interval)


def _seconds_left(known: dict[str, Any], training: dict[str, Any]) -> float | None:
    needed = (known["iteration"], known["iterations"], known["images_per_second"], training.get("batch"))
    if not all(isinstance(value, (int, float)) for value in needed) or not known["images_per_second"]:
        return None
    return (known["iterations"] - known["iteration"]) * training["batch"] / known["images_per_second"]


def _last_lines(path: Path) -> list[dict]:
    """Return the last lines of metrics, at most two, the older first."""
    if not path.exists():
        return []
    # A line is invalid if it begins before the tail, or if a killed process wrote only part of it.
    return [line for line in read_metrics_lines(path, TAIL) if line is not None][-2:]


def _last_checkpoint(run: Path, now: float) -> dict[str, Any]:
    """Return iteration and age of the newest checkpoint with a manifest, which is written last."""
    for manifest in reversed(numbered(run / CHECKPOINTS, ".json")):
        try:
            if manifest.with_suffix(".safetensors").is_file():
                age = max(0.0, now - manifest.stat().st_mtime)
                return {"checkpoint": iteration_of(manifest), "checkpoint_age": age}
        except OSError:
            # Removed meanwhile by the trainer, which keeps only the newest.
            continue
    return {}


def _last_failure(run: Path) -> tuple[int, str] | None:
    """Return the iteration of the newest recorded failure, and a description."""
    found = numbered(run / "failures", ".safetensors")
    if not found:
        return None
    what = "a loss was not finite"
    with suppress(UserError, KeyError):
        record = read_header(found[-1]).description
        what = f"{record['player']}/{record['term']} of level {record['level']} was not finite"
    return iteration_of(found[-1]), f"{what} in iteration {iteration_of(found[-1]) + 1}: see {found[-1]}"


def _row(status: RunStatus) -> tuple[str, ...]:
    done = "" if status.iteration is None else str(status.iteration)
    if status.iterations and status.state != "complete":
        done = f"{done or 0} of {status.iterations}"
    checkpoint = ""
    if status.checkpoint is not None and status.checkpoint_age is not None:
        checkpoint = f"{status.checkpoint}, {duration(status.checkpoint_age)} ago"
    parts = {"": status.host, "job ": status.job, "attempt ": status.attempt}
    where = ", ".join(f"{name}{value}" for name, value in parts.items() if value)
    rate = status.images_per_second
    return (
        status.run,
        status.state,
        done,
        "" if rate is None else f"{rate:.4g}",
        "" if status.seconds_left is None else duration(status.seconds_left),
        checkpoint,
        "" if status.heartbeat_age is None else f"{duration(status.heartbeat_age)} ago",
        where,
        "" if status.attempts is None else str(status.attempts),
        status.note,
    )


Compare = Callable[[Any, Any, set[str]], dict[str, str]]
SHOWN_NAMES = 4
"""Number of points to name for each state in a summary."""


@dataclass(frozen=True)
class PointStatus:
    """Status of a point's run with one seed.

    Attributes:
        point: name of the point.
        seed: training seed.
        state: new; changed: the folder holds a run of another configuration, which would be refused; longer: training
            will continue to more iterations; resample, rescore: the run is kept and the later steps are repeated;
            trained: not scored yet; complete; or the state of an unfinished run in `udpm status`.
        note: changed keys with their old and new values, or other details.
    """

    point: str
    seed: int
    state: str
    note: str = ""


def point_statuses(loaded: LoadedSweep, results: Path) -> list[PointStatus]:
    """Return the status of all points and seeds, as found in the folder of results."""
    trained, scored = trained_points(loaded, results), loaded.scored
    return [_status_or_reason(loaded, results, key, trained[key], scored[key[0]]) for key in loaded.runs]


def trained_points(loaded: LoadedSweep, results: Path) -> dict[tuple[str, int], str]:
    """Return, for each point and seed, the point whose run it uses, as found in the folder of results."""
    return loaded.trained(lambda key: missing(Path(Layout(results).run(*key)), loaded.runs[key]))


def render_points(statuses: list[PointStatus]) -> str:
    """Format a table with a row for each point and seed."""
    rows = [("point", "seed", "state", "note")]
    rows += [(status.point, str(status.seed), status.state, status.note) for status in statuses]
    return aligned(rows)


def summarize_points(name: str, statuses: list[PointStatus]) -> str:
    """Format the number of runs in each state as one line, naming points that are not complete."""
    states: dict[str, list[PointStatus]] = {}
    for status in statuses:
        states.setdefault(status.state, []).append(status)
    parts = [
        f"{len(found)} {state}" + ("" if state == "complete" else f" ({_names(found)})")
        for state, found in states.items()
    ]
    return f"sweep {name}: {len({one.point for one in statuses})} points, {len(statuses)} runs: {', '.join(parts)}"


def _names(statuses: list[PointStatus]) -> str:
    names = list(dict.fromkeys(f"{one.point}: {one.note}" if one.note else one.point for one in statuses))
    return ", ".join([*names[:SHOWN_NAMES], *(["…"] if len(names) > SHOWN_NAMES else [])])


def _status_or_reason(
    loaded: LoadedSweep, results: Path, key: tuple[str, int], trained: str, scored: str
) -> PointStatus:
    """Return a point's status; if its files cannot be read, "unreadable" with the reason."""
    try:
        return _point_status(loaded, results, key, trained, scored)
    except UserError as error:
        return PointStatus(loaded.points[key[0]].point.name, key[1], "unreadable", " ".join(str(error).split()))


def _point_status(loaded: LoadedSweep, results: Path, key: tuple[str, int], trained: str, scored: str) -> PointStatus:
    experiment, seed = key
    resolved, run = loaded.points[experiment], loaded.runs[trained, seed]
    layout = Layout(results)
    folder, point = Path(layout.run(trained, seed)), resolved.point.name
    shares = "" if trained == experiment else f"uses the run of {loaded.points[trained].point.name}"
    if not is_run(folder):
        return PointStatus(point, seed, "new", shares)
    changed = _differences(RunConfig, folder / "config.json", run, run_changes)
    if changed:
        return PointStatus(point, seed, "changed", changed)
    status = read_status(folder)
    if status.state != "complete":
        at = "" if status.checkpoint is None else f"checkpoint {status.checkpoint} of {status.iterations}"
        return PointStatus(point, seed, status.state, "; ".join(filter(None, (shares, at, status.note))))
    own = resolved.experiment
    assert own.scoring is not None
    redone = {
        "longer": _differences(RunConfig, folder / "config.json", run, differences),
        "resample": _section_differences(own.sampling, Path(layout.section("sampling", experiment))),
        "rescore": _section_differences(own.scoring, Path(layout.section("scoring", scored))),
    }
    for state, why in redone.items():
        if why:
            return PointStatus(point, seed, state, why)
    there = Path(layout.scores(f"seed{seed}", experiment)).is_file()
    return PointStatus(point, seed, "complete" if there else "trained", shares)


def _section_differences(now: Section | None, path: Path) -> str:
    """Describe how a section of an experiment differs from the file with the section's name."""
    found = "" if now is None else _differences(type(now), path, now)
    return "; ".join(f"{path.stem}.{change}" for change in found.split("; ")) if found else ""


def _differences(model: type[Model], path: Path, now: Model, compare: Compare = differences) -> str:
    """Describe how a configuration differs from the one in a file; empty if that is missing."""
    if not path.exists() or read_text(path, "resolved configuration", JSON_BYTES) == to_json(now):
        return ""
    return "; ".join(compare(read_resolved(model, path), now, MUTABLE_KEYS).values())
