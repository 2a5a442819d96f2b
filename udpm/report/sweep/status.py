"""Where the points of a sweep stand: what is done, what is new, and what would be done again. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved, to_json
from udpm.config.points import LoadedSweep
from udpm.config.validation import Model, Section
from udpm.core.errors import UserError
from udpm.core.reading import JSON_BYTES, read_text
from udpm.runs.config_guard import MUTABLE_KEYS, differences, missing, run_changes
from udpm.runs.layout import Layout
from udpm.runs.records import is_run
from udpm.runs.status import read_status

Compare = Callable[[Any, Any, set[str]], dict[str, str]]


SHOWN_NAMES = 4
"""Points that a summary names of each state."""


@dataclass(frozen=True)
class PointStanding:
    """Where a point's run of one seed stands.

    Attributes:
        point: name of the point.
        seed: training seed.
        state: new; changed: the folder holds a run of another configuration, which is refused; longer: its training
            goes on to more iterations; resample and rescore: the run stays, what follows is done again; trained: not
            scored yet; complete; or what `udpm status` says of a run under way.
        note: which keys, and what they were.
    """

    point: str
    seed: int
    state: str
    note: str = ""


def point_standings(loaded: LoadedSweep, results: Path) -> list[PointStanding]:
    """Where all points stand, from what lies in the folder of results.

    Raises:
        UserError: a record there cannot be read.
    """
    trained, scored = trained_points(loaded, results), loaded.scored
    return [_standing_or_reason(loaded, results, key, trained[key], scored[key[0]]) for key in loaded.runs]


def trained_points(loaded: LoadedSweep, results: Path) -> dict[tuple[str, int], str]:
    """Return the point whose run each point and seed uses, given what lies in the folder of results."""
    return loaded.trained(lambda key: missing(Path(Layout(results).run(*key)), loaded.runs[key]))


def render_points(standings: list[PointStanding]) -> str:
    """A table to read, a row for each point and seed."""
    rows = [("point", "seed", "state", "note")]
    rows += [(standing.point, str(standing.seed), standing.state, standing.note) for standing in standings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] + [0]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def summary(name: str, standings: list[PointStanding]) -> str:
    """How many points and seeds are in each state, in a line; those that something is to be done for are named."""
    states: dict[str, list[PointStanding]] = {}
    for standing in standings:
        states.setdefault(standing.state, []).append(standing)
    told = [
        f"{len(found)} {state}" + ("" if state == "complete" else f" ({_names(found)})")
        for state, found in states.items()
    ]
    return f"sweep {name}: {len({one.point for one in standings})} points, {len(standings)} runs: {', '.join(told)}"


def _names(standings: list[PointStanding]) -> str:
    names = list(dict.fromkeys(f"{one.point}: {one.note}" if one.note else one.point for one in standings))
    return ", ".join([*names[:SHOWN_NAMES], *(["…"] if len(names) > SHOWN_NAMES else [])])


def _standing_or_reason(
    loaded: LoadedSweep, results: Path, key: tuple[str, int], trained: str, scored: str
) -> PointStanding:
    """A point's standing; of one whose files cannot be read, which file it is."""
    try:
        return _standing(loaded, results, key, trained, scored)
    except UserError as error:
        return PointStanding(loaded.points[key[0]].point.name, key[1], "unreadable", " ".join(str(error).split()))


def _standing(loaded: LoadedSweep, results: Path, key: tuple[str, int], trained: str, scored: str) -> PointStanding:
    experiment, seed = key
    resolved, run = loaded.points[experiment], loaded.runs[trained, seed]
    layout = Layout(results)
    folder, point = Path(layout.run(trained, seed)), resolved.point.name
    shares = "" if trained == experiment else f"uses the run of {loaded.points[trained].point.name}"
    if not is_run(folder):
        return PointStanding(point, seed, "new", shares)
    changed = _differences(RunConfig, folder / "config.json", run, run_changes)
    if changed:
        return PointStanding(point, seed, "changed", changed)
    standing = read_status(folder)
    if standing.state != "complete":
        at = "" if standing.checkpoint is None else f"checkpoint {standing.checkpoint} of {standing.iterations}"
        return PointStanding(point, seed, standing.state, "; ".join(filter(None, (shares, at, standing.note))))
    own = resolved.experiment
    redone = {
        "longer": _differences(RunConfig, folder / "config.json", run, differences),
        "resample": _section_differences(own.sampling, Path(layout.section("sampling", experiment))),
        "rescore": _section_differences(own.scoring, Path(layout.section("scoring", scored))),
    }
    for state, why in redone.items():
        if why:
            return PointStanding(point, seed, state, why)
    there = Path(layout.scores(f"seed{seed}", experiment)).is_file()
    return PointStanding(point, seed, "complete" if there else "trained", shares)


def _section_differences(now: Section, path: Path) -> str:
    """How a section of an experiment differs from the one in a file called after it."""
    found = _differences(type(now), path, now)
    return "; ".join(f"{path.stem}.{change}" for change in found.split("; ")) if found else ""


def _differences(model: type[Model], path: Path, now: Model, compare: Compare = differences) -> str:
    """How a configuration differs from the one in a file, if that is there, in words."""
    if not path.exists() or read_text(path, "resolved configuration", JSON_BYTES) == to_json(now):
        return ""
    return "; ".join(compare(read_resolved(model, path), now, MUTABLE_KEYS).values())
